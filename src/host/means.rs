//! What a container runtime needs besides itself to start anything: the programs that it runs, and cgroups.
//!
//! Looked for as its own process would, in its root and environment. What cannot be looked at is not known, and what
//! is not known is not missing.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Means;
use super::mountinfo::{self, Mount};
use crate::observed::{RuntimeProcess, Space};

/// What containerd starts for a container.
pub const SHIM: &str = "containerd-shim-runc-v2";

/// What that starts in turn.
pub const RUNC: &str = "runc";

/// Where cgroups are expected.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The hierarchies of version 1 that runc puts a container into; it fails where it cannot.
const CONTROLLERS: [&str; 13] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// Where a runtime finds the programs that it starts; `None`: nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Programs {
    pub shim: Option<PathBuf>,
    pub runc: Option<PathBuf>,
}

/// What it is known to lack. `tasks`: processes of containers that it runs, whose shims may look elsewhere than it does.
pub(super) fn of<'a>(process: &RuntimeProcess, tasks: impl Iterator<Item = &'a u32>) -> Means {
    let programs = programs(process, tasks).ok();
    let missing = programs.into_iter().flat_map(|it| {
        let lacking = [(SHIM, it.shim.is_none()), (RUNC, it.runc.is_none())];
        lacking.into_iter().filter(|it| it.1).map(|it| it.0)
    });
    Means {
        missing_programs: missing.collect(),
        cgroup_fault: cgroups(process).and_then(Result::err),
    }
}

/// How much room there is where it keeps the content of images; `None`: not known.
///
/// A disk that does not answer is one that it could run nothing from.
pub(super) fn image_space(process: &RuntimeProcess) -> Option<Space> {
    let content = process.content.as_ref()?;
    let root = Directory::of(process.pid).root().ok()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened =
        rustix::fs::openat2(&root, content, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let it = rustix::fs::fstatvfs(&opened).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(it.f_frsize);
    // What is kept for root may still be written by the runtime, and is not to be counted on.
    let reserved = it.f_bfree.saturating_sub(it.f_bavail);
    let total = bytes(it.f_blocks.saturating_sub(reserved));
    (total > 0).then(|| Space { total, free: bytes(it.f_bavail) })
}

/// Where it finds its programs, as paths in its root.
///
/// containerd looks for a shim in its working directory, then in its `PATH`, then beside its own program. The shim
/// inherits the `PATH`, and looks for runc in nothing else; not in parts of it that are relative.
pub fn programs<'a>(
    process: &RuntimeProcess,
    tasks: impl Iterator<Item = &'a u32>,
) -> io::Result<Programs> {
    let own = Directory::of(process.pid);
    let root = own.root()?;
    let work = fs::read_link(own.0.join("cwd"))?;
    let path = [process.directories.clone(), own.search_path()?].concat();
    let mut beside = own.program()?;
    beside.pop();
    let of_shim =
        std::iter::once(work.clone()).chain(path.iter().map(|it| work.join(it))).chain([beside]);
    let shim = find(Some(&root), of_shim, SHIM)?;
    let mut runc = find(Some(&root), path.into_iter().filter(|it| it.is_absolute()), RUNC)?;
    if runc.is_none() {
        // Its configuration may give shims another `PATH`, which shows in those that run.
        let shims = tasks.filter_map(|it| Directory::of(*it).parent());
        let theirs = shims.filter_map(|it| Directory::of(it).search_path().ok()).flatten();
        runc = find(Some(&root), theirs.filter(|it| it.is_absolute()), RUNC)?;
    }
    Ok(Programs { shim, runc })
}

/// A program in the first of these directories that has it: a file that may be executed. In `root`, or in ours.
pub fn find(
    root: Option<&OwnedFd>,
    directories: impl IntoIterator<Item = PathBuf>,
    program: &str,
) -> io::Result<Option<PathBuf>> {
    for directory in directories {
        let path = directory.join(program);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = match root {
            Some(root) => {
                rustix::fs::openat2(root, &path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
            }
            None => rustix::fs::open(&path, flags, Mode::empty()),
        };
        let found = match opened {
            Ok(file) => rustix::fs::fstat(file)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error.into()),
        };
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        if is_file && found.st_mode & 0o111 != 0 {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Which version of cgroups it can make containers' in, or why in none; `None`: not known.
pub fn cgroups(process: &RuntimeProcess) -> Option<Result<&'static str, String>> {
    let text = fs::read(Directory::of(process.pid).0.join("mountinfo")).ok()?;
    Some(cgroups_among(&mountinfo::parse(&text)))
}

/// The same, of a process with these mounts.
pub fn cgroups_among(mounts: &[Mount]) -> Result<&'static str, String> {
    let root = Path::new(CGROUPS);
    let read_only = |it: &Mount| {
        let is = |options: &str| options.split(',').any(|it| it == "ro");
        is(&it.options) || is(&it.super_options)
    };
    let fault = |it: &Mount| Err(format!("`{}` is mounted read-only", it.point.display()));
    if let Some(top) = mounts.iter().rfind(|it| it.point == root && it.kind == "cgroup2") {
        return if read_only(top) { fault(top) } else { Ok("v2") };
    }
    let mut is_there = false;
    for controller in CONTROLLERS {
        let of = || {
            let has = |it: &&Mount| it.super_options.split(',').any(|it| it == controller);
            mounts.iter().filter(|it| it.kind == "cgroup").filter(has)
        };
        is_there |= of().next().is_some();
        // One and the same hierarchy may be mounted in several places.
        if let Some(first) = of().next()
            && of().all(read_only)
        {
            return fault(first);
        }
    }
    let is_hybrid = mounts.iter().any(|it| it.kind == "cgroup2" && it.point.starts_with(root));
    match (is_there, is_hybrid) {
        (false, _) => Err(format!("no cgroups are mounted at `{CGROUPS}`")),
        (true, false) => Ok("v1"),
        (true, true) => Ok("v1, hybrid"),
    }
}

/// A process's directory in /proc.
struct Directory(PathBuf);

impl Directory {
    fn of(pid: u32) -> Self {
        Self(PathBuf::from(format!("/proc/{pid}")))
    }

    fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(rustix::fs::open(self.0.join("root"), flags, Mode::empty())?)
    }

    /// The directories of the `PATH` that it was started with.
    fn search_path(&self) -> io::Result<Vec<PathBuf>> {
        let environment = fs::read(self.0.join("environ"))?;
        if environment.is_empty() {
            // The kernel shows none of a process that is just becoming its program, or has hidden it.
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut variables = environment.split(|it| *it == 0);
        let path = variables.find_map(|it| it.strip_prefix(b"PATH="));
        let path = OsString::from_vec(path.unwrap_or_default().to_vec());
        let is_empty = path.is_empty();
        Ok(std::env::split_paths(&path).filter(|_| !is_empty).collect())
    }

    /// Its program, also when that was replaced since.
    fn program(&self) -> io::Result<PathBuf> {
        let program = fs::read_link(self.0.join("exe"))?.into_os_string().into_vec();
        let program = program.strip_suffix(b" (deleted)").unwrap_or(&program);
        Ok(PathBuf::from(OsString::from_vec(program.to_vec())))
    }

    fn parent(&self) -> Option<u32> {
        let text = fs::read_to_string(self.0.join("stat")).ok()?;
        // The name of the program stands in parentheses, and may have some itself.
        text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Child, Command};

    /// A process with that `PATH` in that directory, which ends with the test.
    struct Process(Child);

    impl Process {
        fn start(program: &Path, work: &Path, path: Option<&str>) -> Self {
            let mut command = Command::new(program);
            command.arg("1000").current_dir(work).env_clear().env("HOME", "/");
            command.envs(path.map(|it| ("PATH", it)));
            let process = Self(command.spawn().unwrap());
            // It is what it will be, which takes a moment longer than its start.
            let environment = format!("/proc/{}/environ", process.0.id());
            while fs::read(&environment).unwrap().is_empty() {
                std::thread::yield_now();
            }
            process
        }

        fn finds(&self, directories: &[PathBuf]) -> Programs {
            let process = RuntimeProcess {
                pid: self.0.id(),
                directories: directories.to_vec(),
                content: None,
            };
            programs(&process, [].iter()).unwrap()
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn program(directory: &Path, name: &str, mode: u32) -> PathBuf {
        fs::create_dir_all(directory).unwrap();
        let path = directory.join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn programs_are_found_where_the_process_itself_would_find_them() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |it: &str| temporary.path().join(it);
        for it in ["own", "work", "a", "b", "extra"] {
            fs::create_dir(at(it)).unwrap();
        }
        let daemon = at("own/daemon");
        for copy in [&daemon, &at("own/newer")] {
            fs::copy("/bin/sleep", copy).unwrap();
        }
        let path = format!("{}:relative:{}", at("a").display(), at("b").display());
        let process = Process::start(&daemon, &at("work"), Some(&path));
        let nothing = Programs::default();
        let is = |shim: Option<PathBuf>, runc: Option<PathBuf>| Programs { shim, runc };
        assert_eq!(process.finds(&[]), nothing);
        // Neither what may not be executed nor a directory is a program.
        program(&at("a"), SHIM, 0o644);
        fs::create_dir(at("a").join(RUNC)).unwrap();
        assert_eq!(process.finds(&[]), nothing);
        // Beside the program there is a shim, but no runc.
        let beside = [program(&at("own"), SHIM, 0o755), program(&at("own"), RUNC, 0o755)];
        assert_eq!(process.finds(&[]), is(Some(beside[0].clone()), None));
        // Also when the program was replaced since.
        fs::rename(at("own/newer"), &daemon).unwrap();
        assert_eq!(process.finds(&[]), is(Some(beside[0].clone()), None));
        let relative = [
            program(&at("work/relative"), SHIM, 0o755),
            program(&at("work/relative"), RUNC, 0o755),
        ];
        assert_eq!(process.finds(&[]), is(Some(relative[0].clone()), None));
        let b = [program(&at("b"), SHIM, 0o755), program(&at("b"), RUNC, 0o755)];
        assert_eq!(process.finds(&[]), is(Some(relative[0].clone()), Some(b[1].clone())));
        fs::remove_file(&relative[0]).unwrap();
        assert_eq!(process.finds(&[]), is(Some(b[0].clone()), Some(b[1].clone())));
        // What it puts before its `PATH` itself.
        let extra = program(&at("extra"), RUNC, 0o755);
        assert_eq!(process.finds(&[at("extra")]), is(Some(b[0].clone()), Some(extra)));
        let work = program(&at("work"), SHIM, 0o755);
        assert_eq!(process.finds(&[]).shim, Some(work));
        // No `PATH` at all.
        let bare = Process::start(Path::new("/bin/sleep"), &at("b"), None);
        assert_eq!(bare.finds(&[]), is(Some(b[0].clone()), None));
    }

    #[test]
    fn a_symbolic_link_to_a_program_is_one_and_a_dead_one_is_none() {
        let temporary = tempfile::tempdir().unwrap();
        let real = program(&temporary.path().join("real"), "x", 0o755);
        let link = temporary.path().join(RUNC);
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let root = Directory::of(std::process::id()).root().unwrap();
        let found = || find(Some(&root), [temporary.path().to_owned()], RUNC).unwrap();
        assert_eq!(found(), Some(link));
        fs::remove_file(real).unwrap();
        assert_eq!(found(), None);
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_missing() {
        let mut ended = Command::new("true").spawn().unwrap();
        let process = RuntimeProcess { pid: ended.id(), directories: Vec::new(), content: None };
        // Its directory is there and says nothing any more.
        let id = rustix::process::Pid::from_child(&ended);
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(id), options).unwrap();
        assert_eq!(of(&process, [].iter()), Means::default());
        ended.wait().unwrap();
        assert_eq!(of(&process, [].iter()), Means::default());
    }

    #[test]
    fn cgroups_that_cannot_be_written_to_are_told_from_those_that_nobody_needs() {
        let mounts = |lines: &[&str]| {
            let lines: Vec<String> = lines.iter().map(|it| format!("1 2 0:3 / {it}")).collect();
            mountinfo::parse(lines.join("\n").as_bytes())
        };
        let memory = "/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let both = "/sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct";
        let unified = "/sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let top = "/sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let sealed = "/sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw";
        let read_only = "/sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let own = "/sys/fs/cgroup/mine ro - cgroup cgroup rw,name=mine";
        let elsewhere = "/cgroup/memory rw - cgroup cgroup rw,memory";
        for (lines, expected) in [
            (&[top][..], Ok("v2")),
            (&[sealed], Err("`/sys/fs/cgroup` is mounted read-only")),
            // The upper one is seen.
            (&[sealed, top], Ok("v2")),
            (&[top, sealed], Err("`/sys/fs/cgroup` is mounted read-only")),
            (
                &["/sys/fs/cgroup rw - cgroup2 cgroup2 ro"],
                Err("`/sys/fs/cgroup` is mounted read-only"),
            ),
            (&[memory, both], Ok("v1")),
            (&[memory, unified], Ok("v1, hybrid")),
            (&[both, read_only], Err("`/sys/fs/cgroup/memory` is mounted read-only")),
            (&[read_only, elsewhere], Ok("v1")),
            (&[memory, own], Ok("v1")),
            (&[own, unified], Err("no cgroups are mounted at `/sys/fs/cgroup`")),
            (&["/proc rw - proc proc rw"], Err("no cgroups are mounted at `/sys/fs/cgroup`")),
        ] {
            assert_eq!(cgroups_among(&mounts(lines)), expected.map_err(str::to_owned), "{lines:?}");
        }
    }
}
