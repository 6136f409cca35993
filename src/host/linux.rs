//! The real host: mounts by the mount calls, truth by mountinfo, processes by /proc.
//!
//! Keeps no record of what it mounted: every verb looks first, so a crash between two calls leaves nothing that the
//! next one would not see. `<run>/ipc` is a private mount of its own while anything is published, so that no mount
//! below it travels into other mount namespaces, where it would keep memory and make its removal fail. Namespaces
//! made later from ours, as every container's is, still start with a copy of what is mounted and can bind from it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::ClockId;

use super::mountinfo::{self, Mount};
use super::probe::Probe;
use super::strays::Strays;
use super::{Ask, Error, Facts, Host, Whom, means};
use crate::desired::BootTime;
use crate::observed::{FileKind, Published, PublishedPaths, Stray, View, published_paths};
use crate::workload::{self, Bytes, DEV_SHM, InstanceId};

/// Rounds of "look, unmount all that is there" before [`LinuxHost::unpublish`] gives up: one is enough unless
/// somebody mounts at the same time.
const UNMOUNT_ROUNDS: usize = 8;

/// Longest path of directories below an instance's directory; ours are one deep.
const REMOVE_DEPTH: usize = 8;

/// The box that we run on.
#[derive(Debug)]
pub struct LinuxHost {
    // Invariant: absolute and without symlinks, as mountinfo writes paths.
    run: PathBuf,
    // Held while mounts are changed: the private mount comes with the first instance and goes with the last one.
    changing: Mutex<()>,
    probe: Probe,
    strays: Strays,
}

impl LinuxHost {
    /// The host with `run` as our run directory, which is made (0700) with the first thing that is published: who
    /// only looks leaves no trace. The cgroups of its instances are below `cgroup_parent`.
    pub fn new(run: &Path, cgroup_parent: &str) -> Result<Self, Error> {
        let run =
            canonicalize(run).map_err(|cause| failure("find the run directory", run, cause))?;
        let strays = Strays::new(cgroup_parent, &run);
        Ok(Self { run, changing: Mutex::new(()), probe: Probe::new(kind_of), strays })
    }

    /// `<run>/ipc`.
    fn base(&self) -> PathBuf {
        self.run.join("ipc")
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `<run>/ipc/<id>` on a mount that nothing propagates from.
    fn make_directory_of(&self, id: &InstanceId) -> io::Result<PublishedPaths> {
        let base = self.base();
        make_private_directory(&base)?;
        let mounts = own_mounts()?;
        let top = mounts.iter().rfind(|mount| mount.point == base);
        // A mount over the directory would hide what already stands below it, out of reach of any unmount.
        let covers = top.is_none() && mounts.iter().any(|mount| mount.point.starts_with(&base));
        if top.is_none() && !covers {
            rustix::mount::mount_bind(&base, &base)?;
        }
        if top.is_none_or(|mount| !mount.propagation.is_empty()) && !covers {
            rustix::mount::mount_change(&base, MountPropagationFlags::PRIVATE)?;
        }
        make_private_directory(&base.join(id.as_str()))?;
        Ok(published_paths(&self.run, id))
    }

    /// Ends the private mount and the directory when nothing is published any more.
    fn end_base(&self) -> io::Result<()> {
        let base = self.base();
        let empty = match fs::read_dir(&base) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mounts = own_mounts()?;
        if !empty
            || mounts.iter().any(|mount| mount.point != base && mount.point.starts_with(&base))
        {
            return Ok(());
        }
        for _ in mounts.iter().filter(|mount| mount.point == base) {
            // Not lazily: a mount that somebody still uses may stay, there is nothing in it.
            match rustix::mount::unmount(&base, UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::BUSY) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        match fs::remove_dir(&base) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn mount_shm(&self, id: &InstanceId, size: Bytes) -> io::Result<()> {
        let paths = self.make_directory_of(id)?;
        if is_shm(&paths.shm, size)? {
            return Ok(());
        }
        unmount_all(&paths.shm)?;
        make_private_directory(&paths.shm)?;
        let data =
            CString::new(format!("mode=1777,size={}", size.get())).map_err(io::Error::other)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("shm", &paths.shm, "tmpfs", flags, data.as_c_str())?;
        Ok(())
    }

    fn pin_namespace(&self, id: &InstanceId, pid: u32) -> io::Result<()> {
        let source = PathBuf::from(format!("/proc/{pid}/ns/ipc"));
        let wanted = fs::metadata(&source)?.ino();
        let paths = self.make_directory_of(id)?;
        let mounts = own_mounts()?;
        let mut there = mounts.iter().filter(|mount| mount.point == paths.ns);
        if there.next().and_then(Mount::namespace) == Some(wanted) && there.next().is_none() {
            return Ok(());
        }
        unmount_all(&paths.ns)?;
        fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&paths.ns)?;
        rustix::mount::mount_bind(&source, &paths.ns)?;
        // The pid may have become another process between the two calls.
        if fs::metadata(&paths.ns)?.ino() == wanted {
            return Ok(());
        }
        unmount_all(&paths.ns)?;
        Err(io::Error::other(format!("process {pid} was replaced while its namespace was pinned")))
    }

    fn withdraw(&self, id: &InstanceId) -> io::Result<()> {
        let directory = self.base().join(id.as_str());
        unmount_all(&directory)?;
        remove_tree(&directory, REMOVE_DEPTH)?;
        self.end_base()
    }

    fn published(&self, mounts: &[Mount]) -> io::Result<BTreeMap<InstanceId, Published>> {
        let base = self.base();
        let mut published: BTreeMap<InstanceId, Published> = BTreeMap::new();
        let entries = match fs::read_dir(&base) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        for entry in entries.into_iter().flatten() {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                published.entry(id).or_default().directory = true;
            }
        }
        for mount in mounts {
            let Ok(below) = mount.point.strip_prefix(&base) else { continue };
            let mut parts = below.iter().map(|part| part.to_str());
            let Some(id) = parts.next().flatten().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let it = published.entry(id).or_default();
            match (parts.next().flatten(), parts.next()) {
                (Some("shm"), None) => {
                    it.shm = Some(mount.device);
                    it.shm_mounts += 1;
                }
                // Of stacked ones the last is what a joiner would open.
                (Some("ns"), None) => {
                    it.ns = mount.kind == "nsfs";
                    it.ns_inode = mount.namespace();
                }
                _ => {}
            }
        }
        Ok(published)
    }
}

impl Host for LinuxHost {
    fn observe(&self, ask: &Ask) -> Result<Facts, Error> {
        let boot_id = boot_id().map_err(|cause| failure("read", Path::new(BOOT_ID), cause))?;
        let (mounts, published) = {
            // Who has the directory open keeps the private mount on it from going, and nobody would find that later.
            let _changing = self.change();
            let mounts = own_mounts().map_err(|cause| failure("read", Path::new(MOUNTS), cause))?;
            let published = self.published(&mounts);
            (mounts, published.map_err(|cause| failure("read", &self.base(), cause))?)
        };
        let paths = self.probe.kinds(&ask.paths);
        // Not readable is not outdated: such a process simply has no view.
        let views = ask
            .pids
            .iter()
            .filter_map(|(pid, id)| Some((*pid, view_of(*pid, id).ok()??)))
            .collect();
        let host_view = self.view(std::process::id())?;
        let means = ask.runtime.as_ref();
        let image_space = means.and_then(means::image_space);
        let means = means.map(|it| means::of(it, ask.pids.keys())).unwrap_or_default();
        // What cannot be read is no reason to look at nothing else.
        let (strays, strays_unknown) = match &ask.tasks {
            None => (BTreeMap::new(), None),
            Some(tasks) => match self.strays.all(&mounts, tasks) {
                Ok(strays) => (strays, None),
                Err(error) => (BTreeMap::new(), Some(error.to_string())),
            },
        };
        Ok(Facts {
            boot_id,
            published,
            paths,
            views,
            host_view,
            strays,
            strays_unknown,
            means,
            image_space,
        })
    }

    fn publish_shm(&self, id: &InstanceId, size: Bytes) -> Result<(), Error> {
        let _changing = self.change();
        self.mount_shm(id, size)
            .map_err(|cause| failure("publish the shm of", Path::new(id.as_str()), cause))
    }

    fn publish_namespace(&self, id: &InstanceId, pid: u32) -> Result<(), Error> {
        let _changing = self.change();
        self.pin_namespace(id, pid)
            .map_err(|cause| failure("publish the IPC namespace of", Path::new(id.as_str()), cause))
    }

    fn unpublish(&self, id: &InstanceId) -> Result<(), Error> {
        let _changing = self.change();
        self.withdraw(id)
            .map_err(|cause| failure("unpublish", &self.base().join(id.as_str()), cause))
    }

    fn view(&self, pid: u32) -> Result<Option<View>, Error> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        look(&process).map_err(|cause| failure("look at", &process, cause))
    }

    fn mounts_shared_with(&self, runtime: u32) -> Result<(), String> {
        let namespace = |process: &str| {
            let path = format!("/proc/{process}/ns/mnt");
            fs::metadata(&path)
                .map(|it| (it.dev(), it.ino()))
                .map_err(|error| format!("`{path}`: {error}"))
        };
        if runtime == 0 {
            return Err("the container runtime runs in another pid namespace, so it is not known whether it sees our \
                        mounts"
                .to_owned());
        }
        let unknown = |error| {
            format!("it is not known whether the container runtime sees our mounts: {error}")
        };
        let theirs = namespace(&runtime.to_string()).map_err(unknown)?;
        if theirs == namespace("self").map_err(unknown)? {
            return Ok(());
        }
        Err(format!(
            "the container runtime (pid {runtime}) runs in another mount namespace, so it would not see our \
                     mounts"
        ))
    }

    fn make_directory(&self, path: &Path) -> Result<(), Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|cause| failure("make the directory", path, cause))
    }

    fn kill(&self, pid: u32, id: &InstanceId) -> Result<(), Error> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        signal_process(pid, Signal::KILL, |process| is_of(process, id))
            .map(drop)
            .map_err(|cause| failure("kill", &process, cause))
    }

    fn stray(&self, id: &InstanceId) -> Result<Option<Stray>, Error> {
        let look = || self.strays.one(&own_mounts()?, id);
        look().map_err(|cause| failure("look for processes of", Path::new(id.as_str()), cause))
    }

    fn signal_stray(
        &self,
        id: &InstanceId,
        whom: Whom,
        signal: workload::Signal,
    ) -> Result<bool, Error> {
        let send = || {
            let number = i32::from(signal.number());
            let signal = Signal::from_named_raw(number)
                .ok_or_else(|| io::Error::other(format!("signal {number} cannot be sent")))?;
            self.strays.signal(&own_mounts()?, id, whom, signal)
        };
        send().map_err(|cause| failure("signal what is left of", Path::new(id.as_str()), cause))
    }

    fn remove_stray(&self, id: &InstanceId) -> Result<(), Error> {
        let remove = || self.strays.remove(&own_mounts()?, id);
        remove().map_err(|cause| failure("remove what is left of", Path::new(id.as_str()), cause))
    }

    fn rest(&self) {
        evenkeel_trim::trim();
    }

    fn now(&self) -> BootTime {
        boot_time()
    }

    fn wall_clock_after(&self, span: Duration) -> String {
        wall_clock_after(span)
    }
}

/// Sends a signal to a process that is in a cgroup of which that holds; whether there is one. Pids are used again: what
/// is told is what was looked at.
pub(super) fn signal_member(
    pid: u32,
    signal: Signal,
    is_its: impl Fn(&Path) -> bool,
) -> io::Result<bool> {
    signal_process(pid, signal, |process| {
        let cgroups = fs::read_to_string(process.join("cgroup"))?;
        let path = |line: &str| PathBuf::from(line.splitn(3, ':').nth(2).unwrap_or_default());
        Ok(cgroups.lines().any(|line| is_its(&path(line))))
    })
}

/// Sends a signal to a process of which that holds, by its directory in /proc; whether there is one.
pub(super) fn signal_process(
    pid: u32,
    signal: Signal,
    is_it: impl Fn(&Path) -> io::Result<bool>,
) -> io::Result<bool> {
    // 0 is our own process group; 1 and ourselves can only be mistakes.
    let target = i32::try_from(pid)
        .ok()
        .filter(|it| *it > 1 && pid != std::process::id())
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // Held before it is looked at: what gets the signal is what was looked at.
    let held = match rustix::process::pidfd_open(target, PidfdFlags::empty()) {
        Ok(held) => held,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match is_it(&PathBuf::from(format!("/proc/{pid}"))) {
        Ok(true) => {}
        Ok(false) => return Ok(false),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    match rustix::process::pidfd_send_signal(held, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Time since boot, suspended time included.
pub fn boot_time() -> BootTime {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    BootTime(Duration::new(seconds, nanos))
}

/// RFC 3339 in UTC with milliseconds.
pub fn wall_clock() -> String {
    wall_clock_after(Duration::ZERO)
}

fn wall_clock_after(span: Duration) -> String {
    let now = jiff::Timestamp::now();
    let then =
        jiff::SignedDuration::try_from(span).ok().and_then(|span| now.checked_add(span).ok());
    format!("{:.3}", then.unwrap_or(now))
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MOUNTS: &str = "/proc/self/mountinfo";

/// The kernel's name of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// When a process was started, in ticks since boot: with its pid and the boot it names one process for ever.
/// `None`: there is no such process, or only a zombie of it is left.
///
/// The kernel reports the state of the first thread, which may have ended before the others: the process lives on in
/// those, and is counted as one thread more than they are until it can be waited for.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    let has_ended = match stat.state {
        'Z' => stat.num_threads <= 1,
        state => state == 'X',
    };
    (!has_ended).then_some(stat.starttime)
}

/// What programs have to be given so that the kernel's killer of those who use too much memory takes them, and not the
/// box around them: containerd's unit protects it from that killer, its shims inherit that, and so would all that they
/// start. `None`: nothing, and to give up less than what they inherit could need a right that is missing.
pub fn oom_score_adj_under(runtime: u32) -> Option<i32> {
    let score = fs::read_to_string(format!("/proc/{runtime}/oom_score_adj")).ok()?;
    unprotected(score.trim().parse().ok()?)
}

fn unprotected(runtime: i32) -> Option<i32> {
    (runtime < 0).then_some(0)
}

fn failure(operation: &'static str, subject: &Path, cause: io::Error) -> Error {
    Error { operation, subject: subject.display().to_string(), cause }
}

/// A source that cannot be looked at is not there: the mount would fail on it as well.
fn kind_of(path: &Path) -> Option<FileKind> {
    let is_directory = fs::metadata(path).ok()?.is_dir();
    Some(if is_directory { FileKind::Directory } else { FileKind::Other })
}

fn own_mounts() -> io::Result<Vec<Mount>> {
    Ok(mountinfo::parse(&fs::read(MOUNTS)?))
}

/// Makes a directory that only root can enter, and its missing parents.
fn make_private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The absolute path without symlinks of what may not be there yet: of as much of it as there is.
fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for there in path.ancestors() {
        match fs::canonicalize(there) {
            Ok(found) => {
                let rest = path.strip_prefix(there).unwrap_or(&path);
                return Ok(found.join(rest).components().collect());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}

/// Whether exactly one tmpfs of ours of that size is mounted there.
fn is_shm(path: &Path, size: Bytes) -> io::Result<bool> {
    let mounts = own_mounts()?;
    let there: Vec<&Mount> = mounts.iter().filter(|mount| mount.point == path).collect();
    if !matches!(there[..], [mount] if mount.kind == "tmpfs" && mount.source == "shm") {
        return Ok(false);
    }
    // The kernel rounds up to whole pages.
    let file_system = rustix::fs::statvfs(path)?;
    Ok(file_system.f_blocks == size.get().div_ceil(file_system.f_frsize.max(1)))
}

/// Unmounts everything at and below `path`, the last mounted first, until mountinfo shows nothing there.
pub(super) fn unmount_all(path: &Path) -> io::Result<()> {
    for _ in 0..UNMOUNT_ROUNDS {
        let mounts = own_mounts()?;
        let mut clean = true;
        for mount in mounts.iter().rev().filter(|mount| mount.point.starts_with(path)) {
            clean = false;
            match rustix::mount::unmount(
                &mount.point,
                UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
            ) {
                // Not mounted any more, or covered by something that the next round sees.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if clean {
            return Ok(());
        }
    }
    Err(io::Error::other("mounts there are covered by others or come back again and again"))
}

/// Removes a directory with what is in it, but never crosses into another file system or follows a link.
pub(super) fn remove_tree(path: &Path, depth: usize) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let device = match fs::symlink_metadata(path) {
        Ok(it) if it.is_dir() => it.dev(),
        Ok(_) => return gone(fs::remove_file(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device || depth == 0 {
            return Err(io::Error::other(format!(
                "`{}` is not ours to remove",
                entry.path().display()
            )));
        }
        gone(if metadata.is_dir() {
            remove_tree(&entry.path(), depth - 1)
        } else {
            fs::remove_file(entry.path())
        })?;
    }
    gone(fs::remove_dir(path))
}

/// What an instance's process sees; `None` when it is gone, or is another one by now.
fn view_of(pid: u32, id: &InstanceId) -> io::Result<Option<View>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held = match rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()) {
        Ok(held) => held,
        Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // All of it is asked of one process: a directory that is held goes with its process, whoever gets the pid.
    let process = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    if is_of(&process, id)? { look(&process) } else { Ok(None) }
}

/// Whether the process with that directory in /proc is in the cgroup of an instance. One that is gone is nobody's.
fn is_of(process: &Path, id: &InstanceId) -> io::Result<bool> {
    let cgroups = match fs::read_to_string(process.join("cgroup")) {
        Ok(cgroups) => cgroups,
        Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let is_its = |line: &str| {
        let path = line.splitn(3, ':').nth(2).unwrap_or_default();
        path.split('/').any(|part| part == id.as_str())
    };
    Ok(cgroups.lines().any(is_its))
}

/// What the process with that directory in /proc sees; `None` when it is gone, a zombie included.
fn look(process: &Path) -> io::Result<Option<View>> {
    let gone = |error: &io::Error| {
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        // A zombie has no namespaces any more: its mountinfo is EINVAL.
        matches!(code, Some(Errno::NOENT | Errno::SRCH | Errno::INVAL))
    };
    let looked = (|| {
        let ipc_ns = fs::metadata(process.join("ns/ipc"))?.ino();
        let mounts = mountinfo::parse(&fs::read(process.join("mountinfo"))?);
        let shm = mounts
            .iter()
            .rfind(|mount| mount.point.as_os_str() == DEV_SHM)
            .map(|mount| mount.device);
        let shm_root = shm.and_then(|device| shm_root(process, device));
        Ok(View { ipc_ns, shm, shm_root })
    })();
    match looked {
        Ok(view) => Ok(Some(view)),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Inode of a process's /dev/shm, found without following a link out of its root.
fn shm_root(process: &Path, device: u64) -> Option<u64> {
    let root =
        rustix::fs::open(process.join("root"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .ok()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let shm =
        rustix::fs::openat2(root, DEV_SHM, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let found = rustix::fs::fstat(shm).ok()?;
    (found.st_dev == device).then_some(found.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_protected_runtime_needs_unprotected_programs() {
        assert_eq!([-999, -1, 0, 1, 500].map(unprotected), [Some(0), Some(0), None, None, None]);
        assert_eq!(oom_score_adj_under(0), None);
    }
}
