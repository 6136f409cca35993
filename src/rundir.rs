//! What we keep under the run directory, and the owner's name in the state directory.
//!
//! Small files that another process can read at any time: `plan` beside a controller must decide as it does. Every
//! write is a rename, a write that would change nothing is left out, and a reboot forgets everything but the owner.
//! The mounts below `<run>/ipc` belong to [`crate::host`]. Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, DirEntryExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backoff::Strikes;
use crate::host::linux;
use crate::observed::{Approval, Hand, Removal};
use crate::status::Event;
use crate::workload::{InstanceId, Name};

mod events;

pub use events::Events;

/// Largest file that is read; ours are far smaller, and a reader must not run out of memory on a foreign one.
const LARGEST: u64 = 64 << 20;

/// Says whose a process beside a program is.
const OWNER: &str = "owner.json";

/// Directory of the journal.
const EVENTS: &str = "events";

/// Which images commands bring or change, a file each.
const IMAGES: &str = "images";

/// Locks of who pulls an image, a file each.
const PULLS: &str = "pulls";

/// Who ends everything now.
const SHUTDOWN: &str = "shutdown.json";

/// What does not outlive a boot, and does not say by itself of which it is.
const OF_ONE_BOOT: [&str; 4] = ["strikes", "removals.json", "approvals", "holds"];

/// Where strikes, approvals, holds, the lock and the status are. Making one touches nothing.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    found: Mutex<Found>,
    journal: events::Journal,
}

/// Files that could not be understood.
#[derive(Debug, Default)]
struct Found {
    /// Known now; one that is read well again is forgotten, so that it is reported anew should it break again.
    known: BTreeMap<PathBuf, String>,
    fresh: Vec<Broken>,
}

/// A file that is treated as absent because it cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub path: PathBuf,
    pub reason: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is treated as absent: {}", self.path.display(), self.reason)
    }
}

/// A file of ours that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} `{}`", path.display())]
pub struct Error {
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub cause: io::Error,
}

/// Why the controller's lock was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another controller works on this run directory.
    #[error("another evenkeel works on `{}`: {}", path.display(), by.as_ref().map_or_else(|| "it does not say which".to_owned(), ToString::to_string))]
    Locked { path: PathBuf, by: Option<Holder> },
    #[error(transparent)]
    Failed(#[from] Error),
}

/// One process for ever: a pid alone is soon another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    pub pid: u32,
    /// In ticks since boot.
    pub start_time: u64,
    pub boot_id: String,
    /// Wall clock, RFC 3339, for people.
    pub since: String,
}

impl Holder {
    /// This process.
    pub fn this() -> io::Result<Self> {
        let pid = std::process::id();
        let start_time = linux::start_time(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start_time, boot_id: linux::boot_id()?, since: linux::wall_clock() })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        linux::start_time(self.pid) == Some(self.start_time)
            && linux::boot_id().is_ok_and(|it| it == self.boot_id)
    }
}

/// Images that a command brings or changes, while it lives: nobody else takes them away, or what it makes them of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageHold {
    pub holder: Holder,
    pub names: BTreeSet<String>,
    /// What it makes them under.
    pub leases: BTreeSet<String>,
}

/// Ends a hold on images when it goes.
#[derive(Debug)]
pub struct HeldImages(PathBuf);

impl Drop for HeldImages {
    fn drop(&mut self) {
        // One that stays is of a process that is gone, and counts for nothing.
        drop(fs::remove_file(&self.0));
    }
}

/// Nobody else pulls an image while this lives.
#[derive(Debug)]
pub struct PullLock {
    path: PathBuf,
    // Held until the file is gone.
    _file: File,
}

impl Drop for PullLock {
    fn drop(&mut self) {
        // One that stays is locked by nobody.
        drop(fs::remove_file(&self.path));
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}, since {}", self.pid, self.since)
    }
}

fn exec_prefix(holder: &Holder) -> String {
    format!("exec-{}-{}-", holder.pid, holder.start_time)
}

/// Pid and start time of who made the directory of that name.
fn exec_maker(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix("exec-")?.splitn(3, '-');
    let maker = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().map(|_| maker)
}

/// Whose a process beside an instance's program is; stands beside its FIFOs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOwner {
    pub instance: InstanceId,
    /// The command.
    pub holder: Holder,
}

/// The controller's lock. It is free again when this is dropped or its process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    boot: OfBoot,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // This process may live on: nobody is to take it for the holder because somebody looks just now.
        let text = serde_json::to_string(&self.boot).unwrap_or_default();
        write_in_place(&mut self.file, &text).ok();
    }
}

/// What a lock's file says of its last holder: in which boot that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfBoot {
    boot_id: String,
}

/// Not by a new file: the lock is on this one, not on its name.
fn write_in_place(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{text}\n").as_bytes())
}

/// See [`RunDirectory::hands_stamp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    shutdown: Option<u64>,
    modified: (i64, i64),
    files: Vec<(std::ffi::OsString, u64)>,
}

/// An operation by hand that the controller keeps away from: it says so and waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// `stop`, `checkpoint`, …
    pub operation: String,
    /// Lets go when it ends; `None`: a person's word that stands until it is taken back or the box reboots.
    pub holder: Option<Holder>,
    /// Wall clock, RFC 3339, for people.
    pub since: String,
}

impl Hold {
    /// Whether it still counts.
    pub fn stands(&self) -> bool {
        self.holder.as_ref().is_none_or(Holder::is_alive)
    }
}

impl RunDirectory {
    pub fn new(path: &Path) -> Self {
        let (found, journal) = Default::default();
        Self { path: path.to_owned(), found, journal }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Files that were found broken since the last call; each is named once.
    pub fn take_broken(&self) -> Vec<Broken> {
        std::mem::take(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner).fresh)
    }

    /// Takes the lock that keeps a second controller away.
    ///
    /// # Errors
    /// At once when it is held: [`LockError::Locked`] names the holder.
    pub fn lock(&self) -> Result<Lock, LockError> {
        let path = self.path.join("lock");
        let failed = |cause| Error { operation: "lock", path: path.clone(), cause };
        make_directory(&self.path)?;
        let mut file = lock_file().create(true).open(&path).map_err(failed)?;
        match hold(&mut file, FlockOperation::NonBlockingLockExclusive).map_err(failed)? {
            Held::Ours => {}
            Held::By(by) => return Err(LockError::Locked { path: self.path.clone(), by }),
        }
        let this = Holder::this().map_err(failed)?;
        let boot = OfBoot { boot_id: this.boot_id.clone() };
        if read_json::<OfBoot>(&mut file).is_some_and(|it| it != boot) {
            self.forget_other_boots()?;
        }
        let text = serde_json::to_string(&this).map_err(|error| failed(error.into()))?;
        write_in_place(&mut file, &text).map_err(failed)?;
        Ok(Lock { file, boot })
    }

    /// A reboot empties a run directory on a tmpfs; on a disk, what counts in time since boot would be taken for this
    /// boot's, and a delay could last as long as the box was up before.
    fn forget_other_boots(&self) -> Result<(), Error> {
        for what in OF_ONE_BOOT {
            let path = self.path.join(what);
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(Error { operation: "forget", path, cause });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Who holds the lock now; `None`: nobody. Leaves it as it is.
    pub fn controller(&self) -> Result<Option<Holder>, Error> {
        let path = self.path.join("lock");
        let failed = |cause| Error { operation: "read", path: path.clone(), cause };
        let mut file = match lock_file().open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match hold(&mut file, FlockOperation::NonBlockingLockShared).map_err(failed)? {
            // Given back when the file is closed, right now.
            Held::Ours => Ok(None),
            Held::By(Some(by)) => Ok(Some(by)),
            Held::By(None) => {
                let text = "it is held, but does not say by whom";
                Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)))
            }
        }
    }

    /// Failures in a row, by workload.
    pub fn strikes(&self) -> Result<BTreeMap<Name, Strikes>, Error> {
        let named = self.read_all("strikes")?;
        Ok(named.into_iter().filter_map(|(name, it)| Some((name.parse().ok()?, it))).collect())
    }

    /// Records the strikes of a workload, or, with `None`, forgets them.
    pub fn set_strikes(&self, name: &Name, strikes: Option<&Strikes>) -> Result<(), Error> {
        let path = self.path.join("strikes").join(format!("{name}.json"));
        strikes.map_or_else(|| remove(&path), |it| write_json(&path, it))
    }

    /// Removals by absence, as far back as somebody kept them.
    pub fn removals(&self) -> Result<Vec<Removal>, Error> {
        Ok(self.read(&self.path.join("removals.json"))?.unwrap_or_default())
    }

    pub fn set_removals(&self, removals: &[Removal]) -> Result<(), Error> {
        let path = self.path.join("removals.json");
        if removals.is_empty() { remove(&path) } else { write_json(&path, &removals) }
    }

    /// What a person released, by token.
    pub fn approvals(&self) -> Result<BTreeMap<String, BTreeSet<Approval>>, Error> {
        self.read_all("approvals")
    }

    /// Releases exactly that set.
    pub fn approve(&self, token: &str, approvals: &BTreeSet<Approval>) -> Result<(), Error> {
        write_json(&self.approval(token)?, approvals)
    }

    /// Takes a release back, or forgets one that was used.
    pub fn withdraw_approval(&self, token: &str) -> Result<(), Error> {
        remove(&self.approval(token)?)
    }

    fn approval(&self, token: &str) -> Result<PathBuf, Error> {
        let directory = self.path.join("approvals");
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if token.is_empty() || token.len() > 64 || !token.chars().all(good) {
            let cause =
                io::Error::new(io::ErrorKind::InvalidInput, format!("`{token}` is not a token"));
            return Err(Error { operation: "write an approval to", path: directory, cause });
        }
        Ok(directory.join(format!("{token}.json")))
    }

    /// Operations by hand that still count, by workload. Those of processes that are gone are left out.
    pub fn holds(&self) -> Result<BTreeMap<Name, Hold>, Error> {
        let named: BTreeMap<String, Hold> = self.read_all("holds")?;
        let standing = named.into_iter().filter(|(_, hold)| hold.stands());
        Ok(standing.filter_map(|(name, it)| Some((name.parse().ok()?, it))).collect())
    }

    /// Keeps the controller away from a workload, or, with `None`, lets it go.
    pub fn set_hold(&self, name: &Name, hold: Option<&Hold>) -> Result<(), Error> {
        let path = self.path.join("holds").join(format!("{name}.json"));
        hold.map_or_else(|| remove(&path), |it| write_json(&path, it))
    }

    /// What persons asked for, by workload, and the files that could not be understood. Those count for nothing, and
    /// keep nobody from anything else.
    pub fn hands(&self) -> (BTreeMap<Name, Hand>, BTreeMap<PathBuf, String>) {
        let directory = self.path.join("hands");
        let (mut hands, mut broken) = (BTreeMap::new(), BTreeMap::new());
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    broken.insert(directory, error.to_string());
                }
                return (hands, broken);
            }
        };
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    broken.insert(directory.clone(), error.to_string());
                    continue;
                }
            };
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            // A dot: a write that was cut off.
            let Some(name) = file.strip_suffix(".json").filter(|it| !it.starts_with('.')) else {
                continue;
            };
            let read = name
                .parse::<Name>()
                .map_err(|_| "its name is no workload's".to_owned())
                .and_then(|name| Ok((name, read_hand(&path)?)));
            match read {
                Ok((name, Some(hand))) => drop(hands.insert(name, hand)),
                // Taken just now.
                Ok((_, None)) => {}
                Err(reason) => drop(broken.insert(path, reason)),
            }
        }
        (hands, broken)
    }

    /// Asks for something of a workload; what was asked before counts no more.
    pub fn set_hand(&self, name: &Name, hand: &Hand) -> Result<(), Error> {
        write_json(&self.hand(name), hand)
    }

    /// Forgets what was asked for, whatever it was; also a file that cannot be understood.
    pub fn remove_hand(&self, name: &Name) -> Result<(), Error> {
        remove(&self.hand(name))
    }

    /// Forgets just this wish: one that came in its place meanwhile stays.
    pub fn take_hand(&self, name: &Name, hand: &Hand) -> Result<(), Error> {
        let path = self.hand(name);
        let taken = self.path.join("hands").join(format!(".{name}.json.done"));
        match fs::rename(&path, &taken) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(Error { operation: "remove", path, cause }),
        }
        if read_hand(&taken).is_ok_and(|it| it.as_ref() != Some(hand)) {
            // A newer one, unless there is an even newer one by now.
            match fs::hard_link(&taken, &path) {
                Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error { operation: "put back", path, cause });
                }
                _ => {}
            }
        }
        remove(&taken)
    }

    /// The process that ends everything now, and that nobody is to get in the way of; one that has ended counts no
    /// more, however it ended.
    pub fn shutdown(&self) -> Option<Holder> {
        let text = read_bounded(&self.path.join(SHUTDOWN)).ok()??;
        // A half-written one was never asked for: it is renamed into its place.
        serde_json::from_slice(&text).ok().filter(Holder::is_alive)
    }

    /// Says that this process ends everything now, or, with `None`, that nobody does.
    pub fn set_shutdown(&self, by: Option<&Holder>) -> Result<(), Error> {
        let path = self.path.join(SHUTDOWN);
        by.map_or_else(|| remove(&path), |it| write_json(&path, it))
    }

    /// Something that is another after each change of what is asked for; costs a look at one directory.
    pub fn hands_stamp(&self) -> Stamp {
        let shutdown = fs::metadata(self.path.join(SHUTDOWN)).map(|it| it.ino()).ok();
        let path = self.path.join("hands");
        let modified = fs::metadata(&path).map_or((0, 0), |it| (it.mtime(), it.mtime_nsec()));
        // Two changes within a tick of the kernel's clock leave one time, but another file.
        let entries = fs::read_dir(&path).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|it| (it.file_name(), it.ino())).collect();
        files.sort_unstable();
        Stamp { shutdown, modified, files }
    }

    fn hand(&self, name: &Name) -> PathBuf {
        self.path.join("hands").join(format!("{name}.json"))
    }

    /// Where the FIFOs and owners of processes beside instances' programs are, each in a directory of its key.
    pub fn exec_directory(&self) -> PathBuf {
        self.path.join("exec")
    }

    /// Writes down whose a process is, before there is one.
    pub fn set_exec_owner(&self, key: &str, owner: &ExecOwner) -> Result<(), Error> {
        write_json(&self.exec_directory().join(key).join(OWNER), owner)
    }

    /// Whose each of them is. One that is made just now, or whose file cannot be understood, is nobody's: it is left
    /// alone.
    pub fn execs(&self) -> BTreeMap<String, ExecOwner> {
        let entries = fs::read_dir(self.exec_directory()).into_iter().flatten().flatten();
        let owner = |entry: fs::DirEntry| {
            let key = entry.file_name().into_string().ok()?;
            let text = read_bounded(&entry.path().join(OWNER)).ok()??;
            Some((key, serde_json::from_slice(&text).ok()?))
        };
        entries.filter_map(owner).collect()
    }

    /// Makes the directory of one, 0700. Its name says who makes it, as long as no file in it does.
    pub fn make_exec(&self, holder: &Holder) -> Result<tempfile::TempDir, Error> {
        let path = self.exec_directory();
        make_directory(&path)?;
        let made = tempfile::Builder::new().prefix(&exec_prefix(holder)).tempdir_in(&path);
        made.map_err(|cause| Error { operation: "make a directory in", path, cause })
    }

    /// Removes what commands have left that were killed before they wrote down whose it was: there is no process of
    /// theirs yet. What does not succeed is tried by the next one.
    pub fn sweep_execs(&self) {
        let entries = fs::read_dir(self.exec_directory()).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let maker = name.to_str().and_then(exec_maker);
            let is_left = maker.is_some_and(|(pid, start)| linux::start_time(pid) != Some(start));
            // The maker is dead, so no owner comes any more.
            if is_left
                && fs::symlink_metadata(entry.path().join(OWNER))
                    .is_err_and(|it| it.kind() == io::ErrorKind::NotFound)
            {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Opens the FIFOs of one whose command is gone, to be held until it is deleted. While a shim starts a process it
    /// waits for a reader of what that prints, for half a minute, and says nothing about the whole instance meanwhile.
    pub fn read_exec(&self, key: &str) -> Vec<File> {
        let entries = fs::read_dir(self.exec_directory().join(key)).into_iter().flatten().flatten();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        entries
            .filter(|it| it.file_type().is_ok_and(|it| it.is_fifo()))
            .filter_map(|it| rustix::fs::open(it.path(), flags, Mode::empty()).ok())
            .map(File::from)
            .collect()
    }

    /// Forgets one that is gone.
    pub fn remove_exec(&self, key: &str) -> Result<(), Error> {
        let path = self.exec_directory().join(key);
        match fs::remove_dir_all(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error { operation: "remove", path, cause })
            }
            _ => Ok(()),
        }
    }

    /// Says which images a command brings or changes, as long as what is returned lives. What commands have left that were
    /// killed goes by the way.
    pub fn hold_images(&self, hold: &ImageHold) -> Result<HeldImages, Error> {
        let directory = self.path.join(IMAGES);
        for (path, left) in self.image_holds_by_path() {
            if !left.holder.is_alive() {
                drop(fs::remove_file(path));
            }
        }
        let path = directory.join(format!("{}-{}.json", hold.holder.pid, hold.holder.start_time));
        write_json(&path, hold)?;
        Ok(HeldImages(path))
    }

    /// The images that living commands bring or change.
    pub fn image_holds(&self) -> Vec<ImageHold> {
        let mut holds: Vec<_> = self.image_holds_by_path().into_iter().map(|it| it.1).collect();
        holds.retain(|it| it.holder.is_alive());
        holds
    }

    /// Removes the locks that those have left who were killed while they pulled.
    pub fn sweep_pulls(&self) {
        for entry in fs::read_dir(self.path.join(PULLS)).into_iter().flatten().flatten() {
            // What nobody holds is held for a moment, and goes with that.
            drop(entry.file_name().to_str().map(|it| self.lock_pull(it)));
        }
    }

    /// Keeps everybody else from pulling under that lease; `None`: somebody else does it now. Whoever is killed holds nothing.
    pub fn lock_pull(&self, lease: &str) -> Result<Option<PullLock>, Error> {
        let directory = self.path.join(PULLS);
        make_directory(&directory)?;
        let path = directory.join(lease);
        let lock = || {
            let mut options = File::options();
            let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(io::Error::from(error)),
            }
            // Who had it may have removed the file since it was opened: the next one would lock another.
            let there = fs::metadata(&path).map(|it| (it.dev(), it.ino()));
            let is_there = there.ok() == Some(file.metadata().map(|it| (it.dev(), it.ino()))?);
            Ok(is_there.then_some(file))
        };
        match lock() {
            Ok(file) => Ok(file.map(|file| PullLock { path, _file: file })),
            Err(cause) => Err(Error { operation: "lock", path, cause }),
        }
    }

    fn image_holds_by_path(&self) -> Vec<(PathBuf, ImageHold)> {
        let entries = fs::read_dir(self.path.join(IMAGES)).into_iter().flatten().flatten();
        let hold = |entry: fs::DirEntry| {
            let path = entry.path();
            let text = read_bounded(&path).ok()??;
            let hold = serde_json::from_slice(&text).ok()?;
            Some((path, hold))
        };
        entries.filter_map(hold).collect()
    }

    /// Writes into the journal what happened. Nothing fails because that cannot be done now: it is done later.
    pub fn record(&self, event: Event) {
        self.journal.record(&self.path.join(EVENTS), &Event { pid: std::process::id(), ..event });
    }

    /// What happened, from the oldest event that is kept.
    pub fn events(&self) -> Events {
        Events::new(self.path.join(EVENTS))
    }

    #[cfg(test)]
    fn waits_to_record(&self) -> bool {
        self.journal.is_waiting()
    }

    /// The last status that was written, by this or another process.
    pub fn status<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        self.read(&self.path.join("status.json"))
    }

    pub fn set_status<T: Serialize>(&self, status: &T) -> Result<(), Error> {
        write_json(&self.path.join("status.json"), status)
    }

    /// All files of a directory that end in `.json`, by the rest of their name.
    fn read_all<T: DeserializeOwned>(&self, directory: &str) -> Result<BTreeMap<String, T>, Error> {
        let path = self.path.join(directory);
        let failed = |cause| Error { operation: "read", path: path.clone(), cause };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut all = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            // A dot: a write that was cut off.
            let Some(name) = name
                .to_str()
                .filter(|it| !it.starts_with('.'))
                .and_then(|it| it.strip_suffix(".json"))
            else {
                continue;
            };
            if let Some(value) = self.read(&entry.path())? {
                all.insert(name.to_owned(), value);
            }
        }
        Ok(all)
    }

    /// One file; a missing or broken one is `None`.
    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, Error> {
        let parsed = match read_bounded(path) {
            Ok(Some(bytes)) => {
                Some(serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
            }
            Ok(None) => Some(Err("it is far too large".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(cause) => return Err(Error { operation: "read", path: path.to_owned(), cause }),
        };
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match parsed {
            Some(Err(reason)) => {
                if found.known.insert(path.to_owned(), reason.clone()).as_ref() != Some(&reason) {
                    found.fresh.push(Broken { path: path.to_owned(), reason });
                }
                Ok(None)
            }
            Some(Ok(value)) => {
                found.known.remove(path);
                Ok(Some(value))
            }
            None => {
                found.known.remove(path);
                Ok(None)
            }
        }
    }
}

/// The name of the installation that a state directory belongs to: made once and kept for ever, so that two of them
/// never take each other's containers for their own.
///
/// # Errors
/// Also when the file is there and empty or cut off: a new name would make strangers of our own containers, so a
/// person has to say.
pub fn owner(state_directory: &Path) -> Result<String, Error> {
    let path = state_directory.join("owner");
    let failed = |operation, cause| Error { operation, path: path.clone(), cause };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            let whole = id.len() == 36 && id.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
            let broken = || {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it has no owner's id; remove it to get a new one",
                )
            };
            if whole { Ok(id.to_owned()) } else { Err(failed("read", broken())) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = fs::read_to_string("/proc/sys/kernel/random/uuid")
                .map_err(|cause| failed("write", cause))?;
            write_atomically(&path, id.trim().as_bytes(), Durability::Disk)?;
            Ok(id.trim().to_owned())
        }
        Err(error) => Err(failed("read", error)),
    }
}

fn lock_file() -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options
}

/// Who has a lock after a try to get it.
enum Held {
    Ours,
    /// `None`: it does not say.
    By(Option<Holder>),
}

/// Tries to lock a file. Where nobody says that it is his, somebody is about to write it, or only looks: that takes no
/// time, so it is tried again for a while.
#[expect(
    clippy::disallowed_methods,
    reason = "blocks for a second at most, before anything else runs"
)]
fn hold(file: &mut File, how: FlockOperation) -> io::Result<Held> {
    const TRIES: u32 = 200;
    for _ in 0..TRIES {
        match rustix::fs::flock(&*file, how) {
            Ok(()) => return Ok(Held::Ours),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(by) = read_holder(file) {
            return Ok(Held::By(Some(by)));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(Held::By(None))
}

/// What a held lock's file says. Between lock and write it names the holder before, which is dead.
fn read_holder(file: &mut File) -> Option<Holder> {
    read_json(file).filter(Holder::is_alive)
}

fn read_json<T: DeserializeOwned>(file: &mut File) -> Option<T> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(LARGEST).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// What a person asked for; `None`: the file is gone.
fn read_hand(path: &Path) -> Result<Option<Hand>, String> {
    match read_bounded(path) {
        Ok(Some(bytes)) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| error.to_string())
        }
        Ok(None) => Err("it is far too large".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// The content, or `None` when there is more than [`LARGEST`].
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(u64::try_from(read).is_ok_and(|read| read <= LARGEST).then_some(bytes))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let failed = |cause: serde_json::Error| Error {
        operation: "write",
        path: path.to_owned(),
        cause: cause.into(),
    };
    let mut bytes = serde_json::to_vec(value).map_err(failed)?;
    bytes.push(b'\n');
    write_atomically(path, &bytes, Durability::Boot)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(Error { operation: "remove", path: path.to_owned(), cause })
        }
        _ => Ok(()),
    }
}

/// What a written file has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A crash of ours: a tmpfs, which forgets with the boot anyhow.
    Boot,
    /// A power cut.
    Disk,
}

/// Writes a file by rename, so that a reader sees the old content or the new one; leaves it alone when it has that
/// content already. Missing directories are made, 0700.
pub(crate) fn write_atomically(
    path: &Path,
    content: &[u8],
    durability: Durability,
) -> Result<(), Error> {
    if fs::metadata(path)
        .is_ok_and(|it| it.len() == u64::try_from(content.len()).unwrap_or(u64::MAX))
        && fs::read(path).is_ok_and(|it| it == content)
    {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    make_directory(directory)?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    let written = (|| {
        // 0600, under a name that nobody else has: two commands may write one file at the same time. Removed again
        // when this fails, since it may be what fills the disk.
        let mut file =
            tempfile::Builder::new().prefix(&prefix).suffix(".new").tempfile_in(directory)?;
        // Past the wrapper, whose errors have no number.
        file.as_file_mut().write_all(content)?;
        if durability == Durability::Disk {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        if durability == Durability::Disk {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    })();
    written.map_err(|cause| Error { operation: "write", path: path.to_owned(), cause })
}

/// Makes a directory that only root can enter, with its missing parents.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| Error { operation: "make the directory", path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::time::Duration;

    use super::*;
    use crate::desired::{BootTime, Source};
    use crate::observed::HandKind;
    use crate::workload::Revision;

    fn fresh() -> (tempfile::TempDir, RunDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let run = RunDirectory::new(&directory.path().join("run"));
        (directory, run)
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn what_counts_in_time_since_boot_does_not_outlive_the_boot_on_a_disk_either() {
        let (_directory, run) = fresh();
        let removal = Removal {
            source: Source::new(Path::new("/"), Path::new("/m")),
            name: name("a"),
            at: BootTime(Duration::from_secs(1)),
            of: 4,
        };
        let strikes = Strikes {
            revision: Revision::recorded("0123456789abcdef"),
            count: 3,
            at: BootTime(Duration::from_hours(720)),
            run: None,
            failure: None,
        };
        let set = || {
            run.set_strikes(&name("a"), Some(&strikes)).unwrap();
            run.set_removals(std::slice::from_ref(&removal)).unwrap();
            run.approve("0123abcd", &BTreeSet::new()).unwrap();
        };
        let left = || {
            let (strikes, removals) = (run.strikes().unwrap().len(), run.removals().unwrap().len());
            (strikes, removals, run.approvals().unwrap().len())
        };
        drop(run.lock().unwrap());
        set();
        drop(run.lock().unwrap());
        assert_eq!(left(), (1, 1, 1), "a restart of the controller forgets nothing");
        let other = |text: &str| fs::write(run.path.join("lock"), text).unwrap();
        other(r#"{"bootId":"another"}"#);
        drop(run.lock().unwrap());
        assert_eq!(left(), (0, 0, 0));
        // One that was killed with the machine.
        set();
        other(r#"{"pid":1,"startTime":2,"bootId":"another","since":""}"#);
        drop(run.lock().unwrap());
        assert_eq!(left(), (0, 0, 0));
        set();
        drop(run.lock().unwrap());
        assert_eq!(left(), (1, 1, 1), "once");
    }

    #[test]
    fn what_a_command_left_that_was_killed_before_it_named_itself_is_swept() {
        let (_directory, run) = fresh();
        let this = Holder::this().unwrap();
        let dead = Holder { start_time: this.start_time + 1, ..this.clone() };
        let left = run.make_exec(&dead).unwrap().keep();
        // Its process may live, and only whoever can end it may forget it.
        let owned = run.make_exec(&dead).unwrap();
        let key = owned.path().file_name().unwrap().to_str().unwrap().to_owned();
        let instance = "a-0123456789".parse().unwrap();
        run.set_exec_owner(&key, &ExecOwner { instance, holder: dead }).unwrap();
        let begun = run.make_exec(&this).unwrap();
        let foreign = run.exec_directory().join("exec-foreign");
        fs::create_dir(&foreign).unwrap();
        run.sweep_execs();
        assert!(!left.exists());
        assert!(owned.path().exists() && begun.path().exists() && foreign.exists());
    }

    fn strikes(count: u32) -> Strikes {
        Strikes {
            revision: Revision::recorded("0123456789abcdef"),
            count,
            at: BootTime(Duration::from_millis(1500)),
            run: None,
            failure: None,
        }
    }

    fn approval(text: &str) -> Approval {
        Approval { name: name(text), instance: format!("{text}-0123456789").parse().unwrap() }
    }

    #[test]
    fn looking_makes_nothing() {
        let (directory, run) = fresh();
        assert!(run.strikes().unwrap().is_empty() && run.approvals().unwrap().is_empty());
        assert!(run.holds().unwrap().is_empty() && run.removals().unwrap().is_empty());
        assert_eq!(run.status::<String>().unwrap(), None);
        assert_eq!(run.controller().unwrap(), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_written_is_read_by_another_process() {
        let (_directory, run) = fresh();
        let other = RunDirectory::new(run.path());
        run.set_strikes(&name("a"), Some(&strikes(1))).unwrap();
        run.set_strikes(&name("b"), Some(&strikes(2))).unwrap();
        run.set_strikes(&name("b"), Some(&strikes(3))).unwrap();
        let source = Source::new(Path::new("/"), Path::new("/etc/evenkeel"));
        let removal =
            Removal { source, name: name("a"), at: BootTime(Duration::from_secs(7)), of: 4 };
        run.set_removals(std::slice::from_ref(&removal)).unwrap();
        let released = BTreeSet::from([approval("a"), approval("b")]);
        run.approve("3f9a", &released).unwrap();
        run.set_status(&"fine").unwrap();
        assert_eq!(
            other.strikes().unwrap(),
            BTreeMap::from([(name("a"), strikes(1)), (name("b"), strikes(3))])
        );
        assert_eq!(other.removals().unwrap(), [removal]);
        assert_eq!(other.approvals().unwrap(), BTreeMap::from([("3f9a".to_owned(), released)]));
        assert_eq!(other.status::<String>().unwrap().as_deref(), Some("fine"));
        run.set_strikes(&name("b"), None).unwrap();
        run.set_strikes(&name("b"), None).unwrap();
        run.withdraw_approval("3f9a").unwrap();
        run.set_removals(&[]).unwrap();
        assert_eq!(other.strikes().unwrap().len(), 1);
        assert!(other.approvals().unwrap().is_empty() && other.removals().unwrap().is_empty());
    }

    #[test]
    fn directories_and_files_are_for_root_only() {
        let (_directory, run) = fresh();
        run.set_strikes(&name("a"), Some(&strikes(1))).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(run.path()), 0o700);
        assert_eq!(mode(&run.path().join("strikes")), 0o700);
        assert_eq!(mode(&run.path().join("strikes/a.json")), 0o600);
    }

    #[test]
    fn the_same_content_is_not_written_again() {
        let (_directory, run) = fresh();
        let inode = || fs::metadata(run.path().join("status.json")).unwrap().ino();
        run.set_status(&"fine").unwrap();
        // Held open, so that its number is not given to the next file.
        let _file = File::open(run.path().join("status.json")).unwrap();
        let before = inode();
        run.set_status(&"fine").unwrap();
        assert_eq!(inode(), before);
        run.set_status(&"good").unwrap();
        assert_ne!(inode(), before);
    }

    #[test]
    fn a_half_written_file_is_absent_and_named_once() {
        let (_directory, run) = fresh();
        run.set_strikes(&name("a"), Some(&strikes(1))).unwrap();
        run.set_strikes(&name("b"), Some(&strikes(1))).unwrap();
        let path = run.path().join("strikes/a.json");
        let whole = fs::read(&path).unwrap();
        for end in [0, 1, whole.len() / 2, whole.len() - 3] {
            fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(run.strikes().unwrap().keys().map(Name::as_str).collect::<Vec<_>>(), ["b"]);
        }
        let broken = run.take_broken();
        assert!(broken.iter().all(|it| it.path == path) && !broken.is_empty(), "{broken:?}");
        assert!(broken[0].to_string().contains("strikes/a.json"));
        assert_eq!(run.strikes().unwrap().len(), 1);
        assert_eq!(run.take_broken(), [], "not again while it stays as it is");
        fs::write(&path, &whole).unwrap();
        assert_eq!(run.strikes().unwrap().len(), 2);
        fs::write(&path, "").unwrap();
        assert_eq!(run.strikes().unwrap().len(), 1);
        assert_eq!(run.take_broken().len(), 1, "it broke anew");
    }

    #[test]
    fn what_a_kill_between_write_and_rename_leaves_is_not_read() {
        let (_directory, run) = fresh();
        run.approve("a", &BTreeSet::new()).unwrap();
        fs::write(run.path().join("approvals/.b.json.q0x1.new"), "[]").unwrap();
        fs::write(run.path().join("approvals/notes.txt"), "x").unwrap();
        assert_eq!(run.approvals().unwrap().len(), 1);
        run.approve("b", &BTreeSet::new()).unwrap();
        assert_eq!(run.approvals().unwrap().len(), 2);
    }

    #[test]
    fn those_who_write_one_file_at_the_same_time_are_not_in_each_other_s_way() {
        let (_directory, run) = fresh();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let run = RunDirectory::new(run.path());
                scope.spawn(move || {
                    for n in 0..500 {
                        run.set_hand(&name("a"), &hand(HandKind::Stop, 1000 * writer + n)).unwrap();
                    }
                });
            }
            for _ in 0..2000 {
                assert_eq!(run.hands().1, BTreeMap::new());
            }
        });
        assert_eq!(run.hands().0.len(), 1);
        assert_eq!(fs::read_dir(run.path().join("hands")).unwrap().count(), 1);
    }

    #[test]
    fn a_token_cannot_leave_its_directory() {
        let (_directory, run) = fresh();
        for token in ["", "../x", "a/b", ".", "a b"] {
            assert!(run.approve(token, &BTreeSet::new()).is_err(), "{token}");
        }
        assert!(!run.path().exists());
    }

    fn hand(kind: HandKind, seconds: u64) -> Hand {
        let at = BootTime(Duration::from_secs(seconds));
        Hand { kind, at, boot_id: "boot".to_owned(), fresh: false }
    }

    #[test]
    fn each_change_of_what_is_asked_for_has_another_stamp() {
        let (_directory, run) = fresh();
        let mut stamps = vec![run.hands_stamp()];
        let mut changed = || {
            let stamp = run.hands_stamp();
            assert!(!stamps.contains(&stamp), "{stamps:?}");
            assert_eq!(run.hands_stamp(), stamp, "a look changes nothing");
            stamps.push(stamp);
        };
        for n in 0..20 {
            run.set_hand(&name("a"), &hand(HandKind::Stop, n)).unwrap();
            changed();
        }
        run.set_hand(&name("b"), &hand(HandKind::Stop, 1)).unwrap();
        changed();
        run.take_hand(&name("b"), &hand(HandKind::Stop, 1)).unwrap();
        let (hands, broken) = run.hands();
        assert_eq!((hands.len(), broken.len()), (1, 0));
    }

    #[test]
    fn a_wish_that_came_meanwhile_is_not_taken_for_the_one_before() {
        let (_directory, run) = fresh();
        let (old, new) = (hand(HandKind::Restart, 1), hand(HandKind::Stop, 2));
        run.set_hand(&name("a"), &new).unwrap();
        run.take_hand(&name("a"), &old).unwrap();
        assert_eq!(run.hands().0, BTreeMap::from([(name("a"), new.clone())]));
        run.take_hand(&name("a"), &new).unwrap();
        run.take_hand(&name("a"), &new).unwrap();
        assert!(run.hands().0.is_empty());
        assert_eq!(fs::read_dir(run.path().join("hands")).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_read_of_what_is_asked_for_is_named_and_keeps_nothing_else() {
        let (_directory, run) = fresh();
        run.set_hand(&name("a"), &hand(HandKind::Stop, 1)).unwrap();
        let directory = run.path().join("hands");
        fs::write(directory.join("b.json"), "{").unwrap();
        fs::create_dir(directory.join("c.json")).unwrap();
        fs::write(directory.join(".d.json.new"), "{").unwrap();
        let (hands, broken) = run.hands();
        assert_eq!(hands.len(), 1);
        let broken: Vec<_> = broken.keys().map(|it| it.file_name().unwrap()).collect();
        assert_eq!(broken, ["b.json", "c.json"]);
        fs::remove_dir_all(&directory).unwrap();
        fs::write(&directory, "").unwrap();
        assert_eq!((run.hands().0.len(), run.hands().1.len()), (0, 1));
        run.hands_stamp();
    }

    #[test]
    fn a_second_controller_is_told_who_is_first() {
        let (_directory, run) = fresh();
        let lock = run.lock().unwrap();
        let other = RunDirectory::new(run.path());
        let Err(LockError::Locked { by: Some(by), .. }) = other.lock() else { panic!("locked") };
        assert_eq!(by.pid, std::process::id());
        assert_eq!(other.controller().unwrap(), Some(by));
        let message = other.lock().unwrap_err().to_string();
        assert!(message.contains(&std::process::id().to_string()), "{message}");
        drop(lock);
        assert_eq!(other.controller().unwrap(), None);
        other.lock().unwrap();
    }

    #[test]
    fn those_who_only_look_are_in_nobody_s_way() {
        let (_directory, run) = fresh();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let other = RunDirectory::new(run.path());
                    while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                        other.controller().unwrap();
                    }
                });
            }
            let locked: Vec<bool> = (0..200).map(|_| run.lock().is_ok()).collect();
            is_over.store(true, std::sync::atomic::Ordering::SeqCst);
            assert!(locked.iter().all(|it| *it));
        });
    }

    #[test]
    fn locks_of_pulls_that_nobody_holds_are_swept() {
        let scratch = tempfile::tempdir().unwrap();
        let run = RunDirectory::new(scratch.path());
        let held = run.lock_pull("held").unwrap().unwrap();
        let left = scratch.path().join(PULLS).join("left");
        fs::write(&left, "").unwrap();
        run.sweep_pulls();
        assert!(!left.exists());
        assert!(run.lock_pull("held").unwrap().is_none());
        drop(held);
        assert!(run.lock_pull("held").unwrap().is_some());
    }

    #[test]
    fn a_lock_file_of_a_dead_process_says_nothing() {
        let (_directory, run) = fresh();
        drop(run.lock().unwrap());
        let path = run.path().join("lock");
        let file = lock_file().open(&path).unwrap();
        rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        for text in ["", "{", r#"{"pid":1,"startTime":1,"bootId":"x","since":"2026"}"#] {
            fs::write(&path, text).unwrap();
            assert!(matches!(run.lock(), Err(LockError::Locked { by: None, .. })), "{text}");
            assert!(run.controller().unwrap_err().to_string().contains("lock"), "{text}");
        }
    }

    #[test]
    fn a_hold_ends_with_its_process() {
        let (_directory, run) = fresh();
        let this = Holder::this().unwrap();
        let hold = |holder| Hold { operation: "stop".to_owned(), holder, since: "2026".to_owned() };
        run.set_hold(&name("a"), Some(&hold(Some(this.clone())))).unwrap();
        run.set_hold(&name("b"), Some(&hold(None))).unwrap();
        let earlier = Holder { start_time: this.start_time + 1, ..this.clone() };
        run.set_hold(&name("c"), Some(&hold(Some(earlier)))).unwrap();
        let rebooted = Holder { boot_id: "another".to_owned(), ..this };
        run.set_hold(&name("d"), Some(&hold(Some(rebooted)))).unwrap();
        assert_eq!(run.holds().unwrap().keys().map(Name::as_str).collect::<Vec<_>>(), ["a", "b"]);
        run.set_hold(&name("a"), None).unwrap();
        assert_eq!(run.holds().unwrap().len(), 1);
    }

    #[test]
    fn the_owner_is_made_once_and_never_made_up_anew() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let first = owner(&state).unwrap();
        assert_eq!(first.len(), 36);
        assert_eq!(owner(&state).unwrap(), first);
        assert_ne!(owner(&directory.path().join("other")).unwrap(), first);
        for broken in ["", &first[..20], "no id at all, but just as long ......"] {
            fs::write(state.join("owner"), broken).unwrap();
            assert!(owner(&state).unwrap_err().to_string().contains("owner"), "{broken}");
        }
    }

    #[test]
    fn an_error_names_the_path() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("run"), "a file").unwrap();
        let run = RunDirectory::new(&directory.path().join("run"));
        let error = run.set_status(&"x").unwrap_err();
        assert!(error.to_string().contains(run.path().to_str().unwrap()), "{error}");
        assert!(run.lock().unwrap_err().to_string().contains(run.path().to_str().unwrap()));
    }
}
