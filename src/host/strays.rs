//! What is left of instances of which the runtime knows no task, on the real host: found by their cgroups and by what
//! runc keeps below our run directory.
//!
//! Does not know what the runtime knows: whoever ends something has asked it. Tells a process of an instance by its
//! cgroup, which no process leaves by itself, and its shim by its working directory, which is that container's bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;
use serde::Deserialize;

use super::Whom;
use super::linux::{remove_tree, signal_member, signal_process, start_time};
use super::mountinfo::Mount;
use crate::observed::Stray;
use crate::workload::InstanceId;

/// Where every distribution mounts cgroups, and where runc looks for them.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Cgroups below an instance's that are looked into; what a program nests deeper is not ours to follow.
const DEPTH: usize = 16;

/// The strays of one run directory.
#[derive(Debug)]
pub(super) struct Strays {
    /// `evenkeel` or `evenkeel-<8 hex>`.
    parent: String,
    /// `<run>/runc`, with a directory for each namespace of containerd.
    runc: PathBuf,
}

/// What runc keeps of a container, as far as it is of use here.
#[derive(Debug, Deserialize)]
struct Kept {
    init_process_pid: u32,
    /// In ticks since boot: with the pid it names one process.
    init_process_start: u64,
    config: KeptConfig,
}

#[derive(Debug, Deserialize)]
struct KeptConfig {
    rootfs: PathBuf,
}

impl Strays {
    pub(super) fn new(cgroup_parent: &str, run: &Path) -> Self {
        let parent = cgroup_parent.trim_start_matches('/').to_owned();
        Self { parent, runc: run.join("runc") }
    }

    /// All but those that the runtime has a task of.
    pub(super) fn all(
        &self,
        mounts: &[Mount],
        tasks: &BTreeSet<InstanceId>,
    ) -> io::Result<BTreeMap<InstanceId, Stray>> {
        let mut strays: BTreeMap<InstanceId, Stray> = BTreeMap::new();
        for directory in self.kept()? {
            if let Some(id) = id_of(&directory).filter(|id| !tasks.contains(id)) {
                strays.entry(id).or_default();
            }
        }
        for directory in subdirectories(&hierarchy(mounts)?.join(&self.parent))? {
            let Some(id) = id_of(&directory).filter(|id| !tasks.contains(id)) else { continue };
            let pids = members(&directory)?;
            if !pids.is_empty() {
                strays.entry(id).or_default().pids = pids;
            }
        }
        Ok(strays)
    }

    pub(super) fn one(&self, mounts: &[Mount], id: &InstanceId) -> io::Result<Option<Stray>> {
        let pids = members(&self.cgroup(mounts, id)?)?;
        let is_kept = self.kept()?.iter().any(|it| it.ends_with(id.as_str()));
        Ok((is_kept || !pids.is_empty()).then_some(Stray { pids, unsure: false }))
    }

    pub(super) fn signal(
        &self,
        mounts: &[Mount],
        id: &InstanceId,
        whom: Whom,
        signal: Signal,
    ) -> io::Result<bool> {
        let mut reached = false;
        match whom {
            Whom::Main => {
                let mut kept = self.kept()?;
                kept.retain(|it| it.ends_with(id.as_str()));
                for kept in kept.iter().filter_map(|it| read(it)) {
                    let pid = kept.init_process_pid;
                    if start_time(pid) == Some(kept.init_process_start) {
                        reached |= signal_member(pid, signal, |path| self.is_in(path, id))?;
                    }
                }
            }
            Whom::All => {
                for pid in members(&self.cgroup(mounts, id)?)? {
                    reached |= signal_member(pid, signal, |path| self.is_in(path, id))?;
                }
                self.thaw(mounts, id);
            }
            Whom::Shim => {
                for bundle in self.bundles(id)? {
                    for pid in processes()? {
                        reached |= signal_process(pid, signal, |it| is_shim(it, &bundle, id))?;
                    }
                }
            }
        }
        Ok(reached)
    }

    pub(super) fn remove(&self, mounts: &[Mount], id: &InstanceId) -> io::Result<()> {
        if !members(&self.cgroup(mounts, id)?)?.is_empty() {
            return Err(io::Error::other("a process of it still lives"));
        }
        // Its root file system, where runc was told that it is: a copy of nothing, now that nobody is in it.
        for rootfs in self.bundles(id)?.iter().map(|it| it.join("rootfs")) {
            for _ in mounts.iter().filter(|it| it.point == rootfs) {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                match rustix::mount::unmount(&rootfs, flags) {
                    Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for mount in mounts.iter().filter(|it| matches!(it.kind.as_str(), "cgroup" | "cgroup2")) {
            remove_cgroups(&mount.point.join(&self.parent).join(id.as_str()), DEPTH);
        }
        let mut kept = self.kept()?;
        kept.retain(|it| it.ends_with(id.as_str()));
        kept.iter().try_for_each(|it| remove_tree(it, 2))
    }

    /// The directories that runc keeps containers' states in.
    fn kept(&self) -> io::Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        for namespace in subdirectories(&self.runc)? {
            kept.extend(subdirectories(&namespace)?);
        }
        Ok(kept)
    }

    /// The bundles that runc was given for an instance. Their names have to be right too: what runc says of another
    /// runtime's container is nothing to act by.
    fn bundles(&self, id: &InstanceId) -> io::Result<Vec<PathBuf>> {
        let kept = self.kept()?.into_iter().filter(|it| it.ends_with(id.as_str()));
        let bundle = |directory: PathBuf| {
            let bundle = read(&directory)?.config.rootfs.parent()?.to_owned();
            let namespace = directory.parent()?.file_name()?;
            bundle.ends_with(Path::new(namespace).join(id.as_str())).then_some(bundle)
        };
        Ok(kept.filter_map(bundle).collect())
    }

    fn cgroup(&self, mounts: &[Mount], id: &InstanceId) -> io::Result<PathBuf> {
        Ok(hierarchy(mounts)?.join(&self.parent).join(id.as_str()))
    }

    /// Whether a process's cgroup is the instance's, or below it.
    fn is_in(&self, path: &Path, id: &InstanceId) -> bool {
        let parts: Vec<_> = path.iter().collect();
        parts.windows(2).any(|it| it[0] == self.parent.as_str() && it[1] == id.as_str())
    }

    /// On cgroup v1 some kernels end no process that is frozen.
    fn thaw(&self, mounts: &[Mount], id: &InstanceId) {
        let freezer = mounts.iter().find(|it| it.kind == "cgroup" && has_controller(it, "freezer"));
        if let Some(freezer) = freezer {
            let state = freezer.point.join(&self.parent).join(id.as_str()).join("freezer.state");
            // Without the file there is nothing that could be frozen.
            drop(fs::OpenOptions::new().write(true).open(state).and_then(|mut it| {
                use io::Write as _;
                it.write_all(b"THAWED")
            }));
        }
    }
}

/// The hierarchy that runc itself lists a container's processes by: the one of version 2, or that of the devices.
fn hierarchy(mounts: &[Mount]) -> io::Result<&Path> {
    let unified = |it: &&Mount| it.kind == "cgroup2" && it.point == Path::new(CGROUPS);
    let devices = |it: &&Mount| it.kind == "cgroup" && has_controller(it, "devices");
    let found = mounts.iter().rfind(unified).or_else(|| mounts.iter().rfind(devices));
    match found {
        Some(mount) if mount.root == "/" => Ok(&mount.point),
        Some(mount) => Err(io::Error::other(format!(
            "only a part of the cgroups is mounted at {}",
            mount.point.display()
        ))),
        None => Err(io::Error::other(format!(
            "no cgroups are mounted at {CGROUPS}, so it is not known what runs in them"
        ))),
    }
}

/// By the name of the directory that it is mounted on: `devices`, `cpu,cpuacct`.
fn has_controller(mount: &Mount, controller: &str) -> bool {
    let name = mount.point.file_name().and_then(|it| it.to_str()).unwrap_or_default();
    mount.point.starts_with(CGROUPS) && name.split(',').any(|it| it == controller)
}

/// The living processes of a cgroup and those below it. One that is not there has none.
fn members(directory: &Path) -> io::Result<BTreeSet<u32>> {
    fn gather(directory: &Path, depth: usize, found: &mut BTreeSet<u32>) -> io::Result<()> {
        match fs::read_to_string(directory.join("cgroup.procs")) {
            Ok(text) => {
                for word in text.split_ascii_whitespace() {
                    match word.parse() {
                        // Not to be seen from our pid namespace, and there.
                        Ok(0) | Err(_) => {
                            let path = directory.display();
                            let why = format!("`{path}` has a process of another pid namespace");
                            return Err(io::Error::other(why));
                        }
                        // Zombies are gone.
                        Ok(pid) => found.extend(start_time(pid).map(|_| pid)),
                    }
                }
            }
            Err(error) if is_gone(&error) => return Ok(()),
            // One of threads: the cgroup above it lists their processes.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        if depth > 0 {
            for below in subdirectories(directory)? {
                gather(&below, depth - 1, found)?;
            }
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    gather(directory, DEPTH, &mut found)?;
    Ok(found)
}

/// The one that is empty goes; the others are still in use, or went by themselves.
fn remove_cgroups(directory: &Path, depth: usize) {
    if depth > 0 {
        for below in subdirectories(directory).unwrap_or_default() {
            remove_cgroups(&below, depth - 1);
        }
    }
    drop(fs::remove_dir(directory));
}

/// None in what is not there.
fn subdirectories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        match entry.and_then(|it| Ok((it.file_type()?.is_dir(), it.path()))) {
            Ok((true, path)) => found.push(path),
            Ok((false, _)) => {}
            Err(error) if is_gone(&error) => return Ok(found),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A cgroup that is removed meanwhile has no device any more.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::NODEV)
}

fn id_of(directory: &Path) -> Option<InstanceId> {
    directory.file_name()?.to_str()?.parse().ok()
}

/// `None`: another runtime's, or one that is only being made.
fn read(kept: &Path) -> Option<Kept> {
    serde_json::from_slice(&fs::read(kept.join("state.json")).ok()?).ok()
}

fn processes() -> io::Result<Vec<u32>> {
    let pids =
        fs::read_dir("/proc")?.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
    let own = std::process::id();
    Ok(pids.filter(|it| *it > 1 && *it != own).collect())
}

/// A shim works in the bundle of its container, also when that was deleted below it.
fn is_shim(process: &Path, bundle: &Path, id: &InstanceId) -> io::Result<bool> {
    let directory = match fs::read_link(process.join("cwd")) {
        Ok(directory) => directory,
        // A kernel thread's, or one that ends just now.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut deleted = bundle.as_os_str().to_owned();
    deleted.push(" (deleted)");
    if directory != bundle && directory.as_os_str() != deleted {
        return Ok(false);
    }
    let arguments = fs::read(process.join("cmdline"))?;
    let arguments: Vec<&[u8]> = arguments.split(|it| *it == 0).collect();
    let is_of = arguments.windows(2).any(|it| it[0] == b"-id" && it[1] == id.as_str().as_bytes());
    Ok(is_of && fs::read(process.join("comm"))?.starts_with(b"containerd-shim"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, point: &str, root: &str) -> Mount {
        Mount {
            device: 1,
            root: root.into(),
            point: point.into(),
            options: String::new(),
            propagation: Vec::new(),
            kind: kind.to_owned(),
            source: kind.into(),
            super_options: String::new(),
        }
    }

    #[test]
    fn processes_are_looked_for_where_runc_looks_for_them() {
        let tmpfs = || mount("tmpfs", "/sys/fs/cgroup", "/");
        let v1 = |name: &str| mount("cgroup", &format!("/sys/fs/cgroup/{name}"), "/");
        let unified = mount("cgroup2", "/sys/fs/cgroup/unified", "/");
        let rows = [
            (vec![mount("cgroup2", "/sys/fs/cgroup", "/")], Some("/sys/fs/cgroup")),
            (vec![tmpfs(), v1("cpu"), v1("devices")], Some("/sys/fs/cgroup/devices")),
            (
                vec![tmpfs(), v1("devices"), v1("cpu"), unified.clone()],
                Some("/sys/fs/cgroup/devices"),
            ),
            (vec![tmpfs(), unified], None),
            (vec![tmpfs(), mount("cgroup", "/sys/fs/cgroup/devices", "/docker/x")], None),
            (vec![mount("cgroup2", "/elsewhere", "/")], None),
            (Vec::new(), None),
        ];
        for (mounts, expected) in rows {
            let found = hierarchy(&mounts);
            assert_eq!(found.ok(), expected.map(Path::new), "{mounts:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = directory.path().join("a-0123456789");
        assert!(members(&cgroup).unwrap().is_empty());
        let below = cgroup.join("below");
        fs::create_dir_all(&below).unwrap();
        let own = std::process::id();
        fs::write(cgroup.join("cgroup.procs"), "").unwrap();
        fs::write(below.join("cgroup.procs"), format!("{own}\n{}\n", i32::MAX)).unwrap();
        assert_eq!(members(&cgroup).unwrap(), BTreeSet::from([own]));
        // Somebody whom we cannot see is somebody.
        fs::write(below.join("cgroup.procs"), "0\n").unwrap();
        members(&cgroup).unwrap_err();
        fs::remove_file(below.join("cgroup.procs")).unwrap();
        fs::create_dir(below.join("cgroup.procs")).unwrap();
        members(&cgroup).unwrap_err();
    }
}
