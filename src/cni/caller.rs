//! Runs the chain of a network: adds, checks and deletes.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::value::RawValue;

use super::configuration::{Network, Plugin};
use super::process::{self, Call, Verb};
use super::{Allocation, Attachment, Cache, Entry, Error, Key, json, listed};

/// Where plugins are, unless told otherwise: as their makers install them, and as Debian does.
pub const PLUGIN_DIRECTORIES: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// How long one call of one plugin may take, unless told otherwise. Most take a tenth of a second; who asks a DHCP
/// server or waits for the lock of iptables takes longer, and who takes longer than this hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Where plugins find the programs that they call, beside where we do.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file of the file system of namespaces is one.
const NSFS: u64 = 0x6e73_6673;

/// Calls plugins, and keeps what they came to.
///
/// # Guarantees
/// Each call of a plugin ends: after the deadline it is killed, with its process group. A plugin's environment is what
/// the protocol says and PATH. Whatever may have been done is named by an entry of the cache until it is undone, so
/// one DEL of what [`Cache::list`] lists leaves nothing. That is so after `kill -9` too, and when a future of these is
/// dropped: the plugin that runs is killed then with its process group, what it and those before it have done stays,
/// and so does the entry.
///
/// # Assumptions
/// One call at a time for one container. The caller is in the network namespace of the host.
#[derive(Debug)]
pub struct Caller {
    directories: Vec<PathBuf>,
    /// `CNI_PATH`
    searched: OsString,
    cache: Cache,
    deadline: Duration,
}

/// What a check came to; what it found is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// All plugins say that it is as it was made.
    Sound,
    /// Nobody was asked: the configuration forbids it, or its version does not know it.
    Skipped,
}

impl Caller {
    /// Looks for plugins in these directories, in this order; `deadline` is for one call of one plugin.
    pub fn new(directories: &[PathBuf], cache: Cache, deadline: Duration) -> Result<Self, Error> {
        let is_bad =
            |it: &&PathBuf| !it.is_absolute() || it.as_os_str().as_encoded_bytes().contains(&b':');
        if let Some(path) = directories.iter().find(is_bad) {
            let reason = "name a directory with plugins from the root, and without `:`".to_owned();
            return Err(Error::ConfigInvalid { path: path.clone(), reason });
        }
        let searched = std::env::join_paths(directories).expect("there is no `:` in them");
        Ok(Self { directories: directories.to_vec(), searched, cache, deadline })
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Puts a namespace onto a network: ADD for each plugin in order, each with the result of the one before.
    ///
    /// Refuses what has an entry: plugins would fail for what there is already, and undoing that would take it away.
    /// Before anything is done, all programs of the chain are looked for. If a plugin fails, or the result cannot be
    /// kept, DEL is called for the whole chain, whatever any of it answers, and the first failure is returned. The
    /// entry stays if that undoing was not complete: then a DEL comes before the next ADD.
    pub async fn add(
        &self,
        network: &Network,
        attachment: &Attachment,
    ) -> Result<Allocation, Error> {
        let key = Key::of(network.name(), attachment);
        attachment.check()?;
        if self.cache.read(&key)?.is_some() {
            return Err(Error::AlreadyAdded { key });
        }
        let mut programs = Vec::new();
        for plugin in network.plugins() {
            programs.push(self.find(&plugin.kind, network)?);
            if let Some(ipam) = &plugin.ipam {
                self.find(ipam, network)?;
            }
        }
        let mut entry = Entry::begin(network, attachment);
        self.cache.write(&entry)?;
        match self.add_all(network, &programs, &mut entry).await {
            Ok(allocation) => Ok(allocation),
            Err(error) => {
                if self.undo(network, &entry).await {
                    // An entry too many is found and deleted later.
                    self.cache.remove(&key).ok();
                }
                Err(error)
            }
        }
    }

    async fn add_all(
        &self,
        network: &Network,
        programs: &[PathBuf],
        entry: &mut Entry,
    ) -> Result<Allocation, Error> {
        let mut allocation = Allocation::default();
        for (at, (plugin, program)) in network.plugins().iter().zip(programs).enumerate() {
            let call = call(Verb::Add, network, plugin);
            let output = self.run(&call, program, network, plugin, entry, entry.result()).await?;
            let (result, of_it) = result_of(&call, &output)?;
            allocation = of_it;
            entry.advance(result, at + 1 == programs.len());
            self.cache.write(entry)?;
        }
        Ok(allocation)
    }

    /// Whether all of the chain has taken back what it did.
    async fn undo(&self, network: &Network, entry: &Entry) -> bool {
        let mut is_undone = true;
        for plugin in network.plugins().iter().rev() {
            is_undone &= self.del_one(network, plugin, entry).await.is_ok();
        }
        is_undone
    }

    /// Asks whether what was added is still as it was: CHECK for each plugin in order, with the result of the last one,
    /// until one says no. Uses what it was added with.
    pub async fn check(&self, key: &Key) -> Result<Checked, Error> {
        let entry = self.cache.read(key)?.filter(|it| it.allocation().is_some());
        let Some(entry) = entry else { return Err(Error::NotAdded { key: key.clone() }) };
        let network = entry.configuration();
        if !network.can_check() {
            return Ok(Checked::Skipped);
        }
        for plugin in network.plugins() {
            let call = call(Verb::Check, &network, plugin);
            let program = self.find(&plugin.kind, &network)?;
            self.run(&call, &program, &network, plugin, &entry, entry.result()).await?;
        }
        Ok(Checked::Sound)
    }

    /// Takes a namespace off a network: DEL for each plugin in reverse order, then the entry goes.
    ///
    /// Uses what it was added with. Without an entry, or with a broken one, uses what is given as the present
    /// configuration; without that either, what has no entry is taken to be gone. Ends at the first plugin that fails,
    /// as an address must not be given back while ports still lead to it, and the entry stays.
    pub async fn del(
        &self,
        key: &Key,
        present: Option<(&Network, &Attachment)>,
    ) -> Result<(), Error> {
        let present = present.map(|(network, attachment)| {
            attachment.check()?;
            if Key::of(network.name(), attachment) == *key {
                return Ok((network.clone(), Entry::begin(network, attachment)));
            }
            Err(Error::AttachmentInvalid(format!("what is there now is not that of {key}")))
        });
        let present = present.transpose()?;
        let (network, entry) = match (self.cache.read(key), present) {
            (Ok(Some(entry)), _) => (entry.configuration(), entry),
            (Ok(None), None) => return Ok(()),
            (Ok(None) | Err(Error::CacheBroken { .. }), Some(present)) => present,
            (Err(error), _) => return Err(error),
        };
        for plugin in network.plugins().iter().rev() {
            self.del_one(&network, plugin, &entry).await?;
        }
        self.cache.remove(key)
    }

    async fn del_one(
        &self,
        network: &Network,
        plugin: &Plugin,
        entry: &Entry,
    ) -> Result<(), Error> {
        let call = call(Verb::Del, network, plugin);
        let program = self.find(&plugin.kind, network)?;
        // Plugins of before do not know it there.
        let previous = entry.result().filter(|_| network.version().has_check());
        self.run(&call, &program, network, plugin, entry, previous).await.map(drop)
    }

    async fn run(
        &self,
        call: &Call,
        program: &Path,
        network: &Network,
        plugin: &Plugin,
        entry: &Entry,
        previous: Option<&RawValue>,
    ) -> Result<String, Error> {
        let attachment = entry.attachment();
        let request = plugin.request(network, &attachment.capabilities, previous);
        let environment = self.environment(call.verb, attachment);
        process::run(call, program, &environment, &request, self.deadline).await
    }

    /// Nothing of ours but PATH.
    fn environment(&self, verb: Verb, attachment: &Attachment) -> [(&'static str, OsString); 7] {
        let mut namespace = attachment.namespace.clone().into_os_string();
        // The path of one that is gone is left out, as the protocol allows: plugins fail for a path that is there and
        // is no namespace, which is what is left of one that was mounted.
        if verb == Verb::Del && is_gone(&attachment.namespace) {
            namespace = OsString::new();
        }
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        if !path.is_empty() {
            path.push(":");
        }
        path.push(PATH);
        [
            ("CNI_COMMAND", verb.as_str().into()),
            ("CNI_CONTAINERID", attachment.container.clone().into()),
            ("CNI_NETNS", namespace),
            ("CNI_IFNAME", attachment.interface.clone().into()),
            ("CNI_ARGS", attachment.arguments().into()),
            ("CNI_PATH", self.searched.clone()),
            ("PATH", path),
        ]
    }

    /// The program of a plugin: the first file of that name that can be run.
    fn find(&self, plugin: &str, network: &Network) -> Result<PathBuf, Error> {
        let paths = self.directories.iter().map(|it| it.join(plugin));
        let found = paths.into_iter().find(|path| {
            path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        });
        found.ok_or_else(|| Error::PluginMissing {
            plugin: plugin.to_owned(),
            network: network.name().to_owned(),
            directories: listed(&self.directories),
        })
    }
}

fn call(verb: Verb, network: &Network, plugin: &Plugin) -> Call {
    Call { verb, plugin: plugin.kind.clone(), network: network.name().to_owned() }
}

/// Certainly: if that cannot be found out, the plugin says what it thinks of it.
fn is_gone(namespace: &Path) -> bool {
    match rustix::fs::statfs(namespace) {
        Ok(facts) => u64::try_from(facts.f_type).is_ok_and(|it| it != NSFS),
        Err(errno) => errno == rustix::io::Errno::NOENT || errno == rustix::io::Errno::NOTDIR,
    }
}

/// What a plugin printed on ADD, as it is and as it is meant.
fn result_of(call: &Call, output: &str) -> Result<(Box<RawValue>, Allocation), Error> {
    let is_object = json::Object::parse(output).is_ok();
    let raw = RawValue::from_string(output.trim().to_owned());
    let (true, Ok(raw)) = (is_object, raw) else { return Err(process::garbage(call, output)) };
    match Allocation::of_result(&raw) {
        Ok(allocation) => Ok((raw, allocation)),
        Err(why) => {
            let what = format!("printed no result: {why}");
            Err(Error::PluginGarbage { call: call.clone(), what })
        }
    }
}
