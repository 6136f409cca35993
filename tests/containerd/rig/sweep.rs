//! Finding and removing everything that a rig has started or mounted, without its help.
//!
//! A rig's directory has a name of its own, so whatever mentions it is the rig's.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel::config::cgroup_parent;
use rustix::process::Signal;

/// How the directories of rigs begin.
pub(crate) const PREFIX: &str = "evenkeel-rig-";

/// The file that says whose a rig is: pid and start time.
const OWNER: &str = "owner";

/// The file that keeps the names of shims' sockets.
const SOCKETS: &str = "sockets";

/// Tries of removing what does not go at once, 50 ms apart: a killed process may take seconds to be reaped.
const TRIES: u32 = 400;

/// A process that is not a zombie.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) arguments: Vec<String>,
}

/// Notes this test process as the owner of a rig.
pub(crate) fn claim(directory: &Path) {
    let pid = std::process::id();
    std::fs::write(directory.join(OWNER), format!("{pid} {}", start_time(pid).unwrap())).unwrap();
}

/// Removes rigs whose test process is gone.
pub(crate) fn stale() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // Without the file it is being made or being removed by somebody else.
        let Ok(owner) = std::fs::read_to_string(entry.path().join(OWNER)) else { continue };
        let is_alive = owner
            .split_once(' ')
            .and_then(|(pid, start)| Some((pid.parse::<u32>().ok()?, start.parse::<u64>().ok()?)))
            .is_none_or(|(pid, start)| start_time(pid) == Some(start));
        if !is_alive {
            remove(&entry.path());
        }
    }
}

/// Ends and removes everything of a rig. Returns what could not be removed.
pub(crate) fn remove(directory: &Path) -> Vec<String> {
    // Has to be read before it is removed.
    let sockets = shim_sockets(directory);
    let parents = cgroup_parents(directory);
    let mut left = Vec::new();
    for _ in 0..TRIES {
        left.clear();
        for process in processes_of(directory) {
            // A stopped one is killed all the same.
            signal(process.pid, Signal::KILL);
            left.push(format!("process {} {:?}", process.pid, process.arguments));
        }
        let mut mounts = mounts_below(directory);
        mounts.reverse();
        for mount in mounts {
            // Another one may have to go first; the next round sees what is left.
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH).ok();
            left.push(format!("mount {}", mount.display()));
        }
        if left.is_empty() {
            left.extend(
                parents
                    .iter()
                    .filter(|it| !remove_cgroups(it))
                    .map(|it| format!("cgroup {}", it.display())),
            );
        }
        if left.is_empty() {
            match std::fs::remove_dir_all(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    left.push(format!("directory: {error}"));
                }
                _ => {}
            }
        }
        if left.is_empty() {
            break;
        }
        pause();
    }
    for socket in sockets {
        drop(std::fs::remove_file(socket));
    }
    left
}

/// All processes but this one.
pub(crate) fn processes() -> Vec<Process> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id()).filter_map(process).collect()
}

/// The processes that mention the directory in their arguments, or that run in a container below it.
pub(crate) fn processes_of(directory: &Path) -> Vec<Process> {
    let text = directory.to_str().unwrap();
    // A container that is just being made still has all mounts of the host, those of other rigs included: only what
    // is mounted on its root says whose it is.
    let is_inside = |pid: u32| {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(4) == Some("/") && line.contains(text))
    };
    let mut processes = processes();
    processes.retain(|it| {
        it.arguments.iter().any(|argument| argument.contains(text)) || is_inside(it.pid)
    });
    processes
}

/// Mount points below a directory in this mount namespace, in the order in which they were mounted.
pub(crate) fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(directory)).collect()
}

/// Sends a signal; one that is gone already needs none.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, signal).ok();
}

/// Whether a process is there and no zombie. Its arguments would not tell: in the middle of an `execve` it has none.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Some(stat) = stat(pid) else { return false };
    match stat.first().map(String::as_str) {
        // The first thread may have ended before the others.
        Some("Z") => stat.get(17).is_some_and(|threads| threads != "0" && threads != "1"),
        state => state != Some("X"),
    }
}

/// Whether a signal has stopped every thread of a process.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut states = threads.filter_map(|it| std::fs::read_to_string(it.path().join("stat")).ok());
    states.all(|it| it.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

fn process(pid: u32) -> Option<Process> {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // A zombie, and a kernel thread, have none.
    if arguments.is_empty() {
        return None;
    }
    let arguments = arguments.split(|byte| *byte == 0);
    Some(Process {
        pid,
        arguments: arguments.map(|it| String::from_utf8_lossy(it).into_owned()).collect(),
    })
}

fn start_time(pid: u32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// The fields of /proc/PID/stat from the third on, which is the state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold anything.
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Sockets of shims are not below the rig, and a killed shim leaves its own. When containerd cleans up after it, nothing
/// but our own note still says which.
pub(crate) fn shim_sockets(directory: &Path) -> BTreeSet<PathBuf> {
    let mut sockets = shim_sockets_of_bundles(directory);
    sockets.extend(sockets_in(&directory.join(SOCKETS)));
    sockets
}

/// Of shims that containerd still knows.
pub(crate) fn shim_sockets_of_bundles(directory: &Path) -> BTreeSet<PathBuf> {
    let notes = files(&directory.join("containerd-state"), &["address", "bootstrap.json"]);
    notes.iter().flat_map(|it| sockets_in(it)).collect()
}

fn sockets_in(file: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let paths = text.split("unix://").skip(1);
    let paths = paths.map(|it| PathBuf::from(it.split(['"', '\n']).next().unwrap_or_default()));
    paths.filter(|it| it.starts_with("/run/containerd/s")).collect()
}

/// Notes the sockets of the rig's present shims, before one of them is killed.
pub(crate) fn remember_sockets(directory: &Path) {
    let sockets = shim_sockets(directory);
    let lines = sockets.iter().map(|it| format!("unix://{}\n", it.display()));
    std::fs::write(directory.join(SOCKETS), lines.collect::<String>()).unwrap();
}

/// Where the cgroups of a rig's containers and of those of the sites beside it are, in every hierarchy.
fn cgroup_parents(directory: &Path) -> Vec<PathBuf> {
    let sites = std::fs::read_dir(directory.join("sites")).into_iter().flatten().flatten();
    let sites = sites.map(|it| it.path()).chain([directory.to_owned()]);
    // By the run directory in the product, and by the rig's own name in specs that a test writes itself.
    let mut names: Vec<PathBuf> = sites.map(|it| cgroup_parent(&it.join("run")).into()).collect();
    names.push(Path::new("/").join(directory.file_name().unwrap()));
    let roots = cgroup_roots();
    let below = |name: &PathBuf| {
        let name = name.strip_prefix("/").unwrap().to_owned();
        roots.iter().map(move |root| root.join(&name))
    };
    names.iter().flat_map(below).collect()
}

/// Removes a cgroup and those below it. Returns whether it is gone.
pub(crate) fn remove_cgroups(parent: &Path) -> bool {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|it| it.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    match std::fs::remove_dir(parent) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// The hierarchies of version 1, and the one of version 2.
pub(crate) fn cgroup_roots() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|it| it.path());
    below.filter(|it| it.is_dir()).chain([root.clone()]).collect()
}

/// Files of these names at any depth that containerd and runc use.
fn files(directory: &Path, names: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = queue.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            // Deeper are the containers' own files.
            if depth < 3 && entry.file_type().is_ok_and(|it| it.is_dir()) {
                queue.push((path, depth + 1));
            } else if names.iter().any(|name| path.ends_with(name)) {
                found.push(path);
            }
        }
    }
    found
}

#[expect(
    clippy::disallowed_methods,
    reason = "runs while a rig is dropped, outside of any async task"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}
