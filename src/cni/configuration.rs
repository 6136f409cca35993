//! Networks, from files: `*.conflist`, and `*.conf` and `*.json` with a single plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::{self, Object};
use super::{Error, attachment, listed, read_file};

/// Largest file that is read. What people write has some hundred bytes.
const LARGEST: u64 = 1 << 20;

/// Reserved for what is made at each call: not to be written by people, and not passed on if it is.
const RESERVED: [&str; 5] = ["cniVersion", "name", "capabilities", "runtimeConfig", "prevResult"];

/// A version of the specification that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// CHECK, and `prevResult` on DEL, are known to plugins.
    pub(super) fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|it| it.as_str() == text).ok_or(())
    }
}

/// A network's configuration: its name and its chain of plugins.
#[derive(Debug, Clone)]
pub struct Network {
    name: String,
    version: Version,
    disable_check: bool,
    // Invariant: not empty.
    plugins: Vec<Plugin>,
    /// All of it, as a list of plugins.
    raw: Box<RawValue>,
}

/// One of the chain.
#[derive(Debug, Clone)]
pub(super) struct Plugin {
    /// The name of its program.
    pub(super) kind: String,
    /// The program that it leaves addresses to.
    pub(super) ipam: Option<String>,
    capabilities: BTreeSet<String>,
    object: Object,
}

/// Why a text is no network's configuration, and what to do about that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidNetwork(String);

impl Network {
    /// Reads a list of plugins, as it is in a `*.conflist`.
    pub fn parse(text: &str) -> Result<Self, InvalidNetwork> {
        Self::of_list(text).map_err(InvalidNetwork)
    }

    /// Reads a single plugin, as it is in a `*.conf`. All later versions of the specification know lists only.
    pub fn parse_single(text: &str) -> Result<Self, InvalidNetwork> {
        Self::of_single(text).map_err(InvalidNetwork)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether one of its plugins wants that to be told, such as `portMappings`. What none wants reaches none.
    pub fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|it| it.capabilities.contains(capability))
    }

    /// Whether CHECK may be called.
    pub(super) fn can_check(&self) -> bool {
        !self.disable_check && self.version.has_check()
    }

    pub(super) fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    pub(super) fn raw(&self) -> &RawValue {
        &self.raw
    }

    fn of_list(text: &str) -> Result<Self, String> {
        let list = Object::parse(text)?;
        let name: String =
            list.read("name")?.ok_or("it has no `name`: write the network's name there")?;
        if !attachment::is_name(&name) {
            return Err(format!(
                "`{}` is no name of a network: use a-z, A-Z, 0-9, `_`, `.` and `-`, and a letter or digit first",
                json::quoted(&name, 60)
            ));
        }
        let version = version_of(&list)?;
        let disable_check = match list.read::<Flag>("disableCheck")? {
            None => false,
            Some(Flag::Is(it)) => it,
            Some(Flag::Said(it)) if it.eq_ignore_ascii_case("true") => true,
            Some(Flag::Said(it)) if it.eq_ignore_ascii_case("false") => false,
            Some(Flag::Said(_)) => {
                return Err("`disableCheck`: write true or false".to_owned());
            }
        };
        let Some(objects) = list.read::<Vec<Object>>("plugins")? else {
            let advice = if list.has("type") {
                "a single plugin belongs into a *.conf, or below `plugins`"
            } else {
                "write the plugins there; folders beside the file are not read"
            };
            return Err(format!("it has no `plugins`: {advice}"));
        };
        if objects.is_empty() {
            return Err("`plugins` is empty: write at least one there".to_owned());
        }
        let plugins = objects
            .into_iter()
            .enumerate()
            .map(|(at, it)| Plugin::new(it).map_err(|why| format!("`plugins[{at}]`: {why}")))
            .collect::<Result<_, _>>()?;
        let raw = RawValue::from_string(text.trim().to_owned()).map_err(|it| it.to_string())?;
        Ok(Self { name, version, disable_check, plugins, raw })
    }

    fn of_single(text: &str) -> Result<Self, String> {
        let single = Object::parse(text)?;
        if single.has("plugins") {
            return Err("it is a list of plugins: call it *.conflist".to_owned());
        }
        let mut list = Object::default();
        for (key, value) in single.iter() {
            if matches!(key.as_str(), "name" | "cniVersion" | "cniVersions") {
                list.push(key, value.clone());
            }
        }
        list.push("plugins", json::raw(&[&single]));
        Self::of_list(json::raw(&list).get())
            .map_err(|it| it.strip_prefix("`plugins[0]`: ").map_or(it.clone(), str::to_owned))
    }
}

/// As libcni takes it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Flag {
    Is(bool),
    Said(String),
}

/// The highest of those that are offered and that we speak.
fn version_of(list: &Object) -> Result<Version, String> {
    let mut offered: Vec<String> = list.read("cniVersions")?.unwrap_or_default();
    offered.extend(list.read::<String>("cniVersion")?);
    if let Some(best) = offered.iter().filter_map(|it| it.parse().ok()).max() {
        return Ok(best);
    }
    let known = Version::ALL.map(Version::as_str).join(", ");
    Err(if offered.is_empty() {
        format!("it has no `cniVersion`: write one of {known} there")
    } else {
        let offered = json::quoted(&offered.join(", "), 60);
        format!("`cniVersion` {offered} is not supported: write one of {known} there")
    })
}

impl Plugin {
    fn new(object: Object) -> Result<Self, String> {
        /// Other plugins may mean something else by that name.
        #[derive(Deserialize)]
        struct Ipam {
            #[serde(rename = "type")]
            kind: Option<String>,
        }

        let kind: String = object
            .read("type")?
            .ok_or("it has no `type`: write the name of the plugin's program there")?;
        if !is_program(&kind) {
            return Err(format!(
                "`type`: `{}` is no name of a program: write it without a path",
                json::quoted(&kind, 60)
            ));
        }
        let declared: BTreeMap<String, bool> = object.read("capabilities")?.unwrap_or_default();
        let capabilities = declared.into_iter().filter(|it| it.1).map(|it| it.0).collect();
        let ipam = object.read::<Ipam>("ipam").ok().flatten().and_then(|it| it.kind);
        let ipam = ipam.filter(|it| !it.is_empty());
        if let Some(ipam) = ipam.as_ref().filter(|it| !is_program(it)) {
            return Err(format!(
                "`ipam.type`: `{}` is no name of a program: write it without a path",
                json::quoted(ipam, 60)
            ));
        }
        Ok(Self { kind, ipam, capabilities, object })
    }

    /// What it gets on its standard input.
    pub(super) fn request(
        &self,
        network: &Network,
        capabilities: &BTreeMap<String, serde_json::Value>,
        previous: Option<&RawValue>,
    ) -> Vec<u8> {
        let mut request = Object::default();
        request.push("cniVersion", json::raw(&network.version.as_str()));
        request.push("name", json::raw(&network.name));
        for (key, value) in self.object.iter() {
            if !RESERVED.contains(&key.as_str()) && !key.starts_with("cni.dev/") {
                request.push(key, value.clone());
            }
        }
        let told: BTreeMap<_, _> =
            capabilities.iter().filter(|it| self.capabilities.contains(it.0)).collect();
        if !told.is_empty() {
            request.push("runtimeConfig", json::raw(&told));
        }
        if let Some(previous) = previous {
            request.push("prevResult", previous.to_owned());
        }
        json::raw(&request).get().as_bytes().to_vec()
    }
}

/// A name to be found in a directory, and in no other one.
fn is_program(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\\', '\0'])
}

/// All networks of some directories.
#[derive(Debug)]
pub struct Configurations {
    directories: Vec<PathBuf>,
    /// In order of directories, and in each of file names.
    found: Vec<Result<Network, BrokenFile>>,
}

/// A file that is no network's configuration, or a directory that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenFile {
    pub path: PathBuf,
    /// The name that it has all the same.
    pub name: Option<String>,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl fmt::Display for BrokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` cannot be used: {}", self.path.display(), self.reason)
    }
}

impl Configurations {
    /// Reads all of them. A directory that does not exist is empty; what cannot be read hides nothing else.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut found = Vec::new();
        for directory in directories {
            match files_of(directory) {
                Ok(files) => found.extend(files.iter().filter_map(|it| read(it).transpose())),
                Err(error) => found.push(Err(BrokenFile {
                    path: directory.clone(),
                    name: None,
                    reason: error.to_string(),
                })),
            }
        }
        Self { directories: directories.to_vec(), found }
    }

    /// All that can be used, in order; of those with one name the first one counts.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.found.iter().filter_map(|it| it.as_ref().ok())
    }

    pub fn broken(&self) -> impl Iterator<Item = &BrokenFile> {
        self.found.iter().filter_map(|it| it.as_ref().err())
    }

    /// The first of that name. If that one is broken, no later one takes its place.
    pub fn find(&self, name: &str) -> Result<&Network, Error> {
        for it in &self.found {
            match it {
                Ok(network) if network.name == name => return Ok(network),
                Err(broken) if broken.name.as_deref() == Some(name) => {
                    return Err(Error::ConfigInvalid {
                        path: broken.path.clone(),
                        reason: broken.reason.clone(),
                    });
                }
                Ok(_) | Err(_) => {}
            }
        }
        let broken: Vec<String> = self.broken().map(|it| format!("; {it}")).collect();
        Err(Error::NetworkUnknown {
            name: name.to_owned(),
            directories: listed(&self.directories),
            broken: broken.concat(),
        })
    }
}

fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let kinds = ["conflist", "conf", "json"];
        let is_hidden = path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|it| kinds.iter().any(|kind| it == *kind)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `None`: it is gone meanwhile.
fn read(path: &Path) -> Result<Option<Network>, BrokenFile> {
    let broken = |name, reason| BrokenFile { path: path.to_owned(), name, reason };
    let Some(text) = read_file(path, LARGEST).map_err(|reason| broken(None, reason))? else {
        return Ok(None);
    };
    let is_list = path.extension().is_some_and(|it| it == "conflist");
    let network = if is_list { Network::of_list(&text) } else { Network::of_single(&text) };
    network.map(Some).map_err(|reason| {
        let name = Object::parse(&text).ok().and_then(|it| it.read("name").ok().flatten());
        broken(name, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list with one plugin.
    fn list(name: &str, kind: &str) -> String {
        format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "{kind}"}}]}}"#)
    }

    fn kinds(network: &Network) -> Vec<&str> {
        network.plugins().iter().map(|it| it.kind.as_str()).collect()
    }

    struct Directories(tempfile::TempDir);

    impl Directories {
        fn with(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = directory.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(directory)
        }

        fn read(&self) -> Configurations {
            Configurations::read(&["a", "b", "absent"].map(|it| self.0.path().join(it)))
        }
    }

    #[test]
    fn networks_are_found_by_name_in_order_of_directories_and_files() {
        let directories = Directories::with(&[
            ("b/00-first.conflist", &list("x", "of-b")),
            ("b/10.conflist", &list("only-b", "one")),
            ("a/20-second.conflist", &list("x", "later")),
            ("a/10-first.conflist", &list("x", "first")),
            ("a/30.conf", r#"{"cniVersion": "0.3.1", "name": "single", "type": "loopback"}"#),
            ("a/40.json", r#"{"cniVersion": "0.3.1", "name": "other", "type": "loopback"}"#),
            ("a/.hidden.conflist", "{"),
            ("a/50.conflist.bak", "{"),
            ("a/readme", "{"),
        ]);
        let found = directories.read();
        assert_eq!(found.broken().count(), 0);
        let names: Vec<&str> = found.networks().map(Network::name).collect();
        assert_eq!(names, ["x", "x", "single", "other", "x", "only-b"]);
        assert_eq!(kinds(found.find("x").unwrap()), ["first"]);
        assert_eq!(kinds(found.find("only-b").unwrap()), ["one"]);
        assert_eq!(kinds(found.find("single").unwrap()), ["loopback"]);
        assert_eq!(found.find("single").unwrap().version(), Version::V0_3_1);
        let error = found.find("y").unwrap_err();
        assert_eq!(error.code(), "cni-network-unknown");
        assert!(error.to_string().starts_with("no network is called `y`: put a file"), "{error}");
    }

    #[test]
    fn a_broken_file_is_told_hides_no_other_and_has_no_stand_in() {
        let large = format!(r#"{{"name": "{}"}}"#, "x".repeat(1 << 20));
        let deep = format!("{{\"name\": {}1{}}}", "[".repeat(200), "]".repeat(200));
        let directories = Directories::with(&[
            ("a/10.conflist", "{"),
            ("a/20.conflist", &large),
            ("a/30.conflist", &deep),
            (
                "a/40.conflist",
                r#"{"cniVersion": "0.2.0", "name": "x", "plugins": [{"type": "y"}]}"#,
            ),
            ("a/60.conflist/file", ""),
            ("a/70.conflist", "\u{feff}{}"),
            ("a/90.conflist", &list("good", "one")),
            ("b/10.conflist", &list("x", "stand-in")),
            ("absent", ""),
        ]);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            directories.0.path().join("a/50.conflist"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        fs::write(directories.0.path().join("a/80.conflist"), b"\xff").unwrap();
        let found = directories.read();
        let broken: Vec<(String, &str)> = found
            .broken()
            .map(|it| (it.path.file_name().unwrap().to_str().unwrap().to_owned(), &*it.reason))
            .collect();
        let expected = [
            ("10.conflist", "EOF while parsing an object"),
            ("20.conflist", "it is larger than 1048576 bytes"),
            ("30.conflist", "it is nested deeper than 64"),
            ("40.conflist", "`cniVersion` 0.2.0 is not supported: write one of 0.3.0, 0.3.1,"),
            ("50.conflist", "it is not a file"),
            ("60.conflist", "it is not a file"),
            ("70.conflist", "expected value"),
            ("80.conflist", "it is not UTF-8"),
            ("absent", "Not a directory"),
        ];
        assert_eq!(broken.len(), expected.len(), "{broken:?}");
        for ((file, reason), (expected, why)) in broken.iter().zip(expected) {
            assert_eq!(file, expected);
            assert!(reason.starts_with(why), "{file}: {reason}");
        }
        assert_eq!(kinds(found.find("good").unwrap()), ["one"]);
        let error = found.find("x").unwrap_err();
        assert_eq!(error.code(), "cni-config-invalid");
        assert!(error.to_string().contains("a/40.conflist` cannot be used"), "{error}");
        // It may be in one of those.
        let error = found.find("y").unwrap_err().to_string();
        assert!(error.contains("a/10.conflist` cannot be used: EOF"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_told_with_what_to_do() {
        let with = |rest: &str| format!(r#"{{"cniVersion": "1.0.0", "name": "x", {rest}}}"#);
        for (text, why) in [
            ("[]".to_owned(), "invalid type"),
            (r#"{"cniVersion": "1.0.0"}"#.to_owned(), "it has no `name`: write"),
            (r#"{"name": 1}"#.to_owned(), "`name`: invalid type: integer `1`"),
            (list("../x", "y"), "`../x` is no name of a network: use"),
            (list("", "y"), "`` is no name of a network"),
            (r#"{"name": "x", "plugins": []}"#.to_owned(), "it has no `cniVersion`: write one of"),
            (with(r#""plugins": []"#), "`plugins` is empty"),
            (with(r#""plugins": {}"#), "`plugins`: invalid type"),
            (
                with(r#""type": "bridge""#),
                "it has no `plugins`: a single plugin belongs into a *.conf",
            ),
            (with(r#""other": 1"#), "it has no `plugins`: write the plugins there"),
            (with(r#""plugins": [{"type": "y"}, {}]"#), "`plugins[1]`: it has no `type`: write"),
            (with(r#""plugins": [{"type": "a/b"}]"#), "`plugins[0]`: `type`: `a/b` is no name"),
            (with(r#""plugins": [{"type": ".."}]"#), "`plugins[0]`: `type`: `..` is no name"),
            (with(r#""plugins": [{"type": ""}]"#), "`plugins[0]`: `type`: `` is no name"),
            (
                with(r#""plugins": [{"type": "y", "ipam": {"type": "../z"}}]"#),
                "`plugins[0]`: `ipam.type`: `../z` is no name",
            ),
            (
                with(r#""plugins": [{"type": "y", "capabilities": {"mac": 1}}]"#),
                "`plugins[0]`: `capabilities`: invalid type",
            ),
            (
                with(r#""plugins": [{"type": "y", "type": "z"}]"#),
                "`plugins`: `type` is there twice",
            ),
            (with(r#""disableCheck": 1, "plugins": [{"type": "y"}]"#), "`disableCheck`: "),
            (
                with(r#""disableCheck": "no", "plugins": [{"type": "y"}]"#),
                "`disableCheck`: write true",
            ),
        ] {
            let error = Network::parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(why), "{text}: {error}");
        }
        let error = Network::parse_single(&list("x", "y")).unwrap_err().to_string();
        assert_eq!(error, "it is a list of plugins: call it *.conflist");
        let error = Network::parse_single(r#"{"cniVersion": "1.0.0", "name": "x"}"#).unwrap_err();
        assert!(error.to_string().starts_with("it has no `type`"), "{error}");
    }

    #[test]
    fn the_highest_version_that_both_sides_speak_is_used() {
        let of = |versions: &str| {
            let text = format!(r#"{{{versions}, "name": "x", "plugins": [{{"type": "y"}}]}}"#);
            Network::parse(&text).map(|it| it.version().to_string())
        };
        for version in Version::ALL {
            let text = version.to_string();
            assert_eq!(of(&format!(r#""cniVersion": "{text}""#)), Ok(text));
        }
        let chosen = of(r#""cniVersion": "0.3.1", "cniVersions": ["0.4.0", "1.0.0", "2.0.0"]"#);
        assert_eq!(chosen.unwrap(), "1.0.0");
        assert_eq!(of(r#""cniVersions": ["1.1.0", "0.4.0"]"#).unwrap(), "1.1.0");
        assert_eq!(of(r#""cniVersion": "9.0.0", "cniVersions": ["0.4.0"]"#).unwrap(), "0.4.0");
        for bad in ["0.1.0", "0.2.0", "1.2.0", "1.0", "v1.0.0", ""] {
            let error = of(&format!(r#""cniVersion": "{bad}""#)).unwrap_err().to_string();
            assert!(error.contains("is not supported: write one of 0.3.0"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text = r#"{"cniVersion": "0.3.1", "name": "x", "type": "bridge", "mtu": 1.0,
            "capabilities": {"portMappings": true}, "ipam": {"type": "host-local"}}"#;
        let network = Network::parse_single(text).unwrap();
        assert_eq!((network.name(), network.version()), ("x", Version::V0_3_1));
        assert_eq!(network.plugins()[0].ipam.as_deref(), Some("host-local"));
        assert!(network.declares("portMappings"));
        let request = network.plugins()[0].request(&network, &BTreeMap::new(), None);
        assert_eq!(
            String::from_utf8(request).unwrap(),
            r#"{"cniVersion":"0.3.1","name":"x","type":"bridge","mtu":1.0,"ipam":{"type": "host-local"}}"#
        );
        // What is kept of it says the same.
        let again = Network::parse(network.raw().get()).unwrap();
        assert_eq!(kinds(&again), ["bridge"]);
    }
}
