//! Who has a file open for writing.
//!
//! The kernel tells by a lease on the file. Where it gives none (a file of somebody else, without `CAP_LEASE`), what
//! /proc shows of every process is looked at instead. Neither sees writers in another kernel, which is why it is asked
//! about local file systems only.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::file::FileId;

/// Most descriptors that are looked at; a box with more gets the answer "not known".
const DESCRIPTOR_LIMIT: usize = 500_000;

/// The inode of the first pid namespace: only there does /proc show every process.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// How to get at a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// Path to open.
    pub(super) path: PathBuf,
    /// The last part of its real path; `None`: it has several.
    pub(super) name: Option<OsString>,
}

/// What is known of the writers of the files that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Writers {
    /// These are open for writing.
    pub(super) open: BTreeSet<FileId>,
    /// Of these, not found open, that cannot be known.
    pub(super) unknown: BTreeSet<FileId>,
}

/// Looks for writers of `files`.
pub(super) fn writers(files: &BTreeMap<FileId, Way>) -> Writers {
    let mut found = by_leases(files);
    if !found.unknown.is_empty() {
        let left = files.iter().filter(|(id, _)| found.unknown.contains(id));
        let mut left = by_processes(&left.map(|(id, way)| (*id, way.clone())).collect());
        found.open.append(&mut left.open);
        found.unknown = left.unknown;
    }
    found
}

/// Asks the kernel.
fn by_leases(files: &BTreeMap<FileId, Way>) -> Writers {
    let mut found = Writers::default();
    for (id, way) in files {
        match is_open_for_writing(*id, &way.path) {
            Some(true) => drop(found.open.insert(*id)),
            Some(false) => {}
            None => drop(found.unknown.insert(*id)),
        }
    }
    found
}

/// `None`: it is another file by now, or the kernel does not say.
fn is_open_for_writing(id: FileId, path: &Path) -> Option<bool> {
    // A FIFO that has taken the file's place must not be waited for.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || FileId::of(&metadata) != id {
        return None;
    }
    evenkeel_lease::is_open_for_writing(&file).ok()
}

/// Looks at every descriptor of every process.
fn by_processes(files: &BTreeMap<FileId, Way>) -> Writers {
    let mut open = BTreeSet::new();
    let mut complete =
        std::fs::metadata("/proc/self/ns/pid").is_ok_and(|it| it.ino() == FIRST_PID_NAMESPACE);
    let names: HashSet<&OsStr> = files.values().filter_map(|it| it.name.as_deref()).collect();
    let mut left = DESCRIPTOR_LIMIT;
    match std::fs::read_dir("/proc") {
        Err(_) => complete = false,
        Ok(processes) => {
            for process in processes.flatten() {
                if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                    continue;
                }
                match look_into(&process.path(), files, &names, &mut left, &mut open) {
                    Ok(()) => {}
                    Err(error) if is_gone(&error) => {}
                    Err(_) => complete = false,
                }
                if left == 0 {
                    complete = false;
                    break;
                }
            }
        }
    }
    let is_unknown =
        |id: &FileId, way: &Way| !open.contains(id) && (!complete || way.name.is_none());
    let unknown = files.iter().filter(|(id, way)| is_unknown(id, way)).map(|(id, _)| *id);
    let unknown = unknown.collect();
    Writers { open, unknown }
}

/// A process or descriptor that ended between two looks.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

fn look_into(
    process: &Path,
    files: &BTreeMap<FileId, Way>,
    names: &HashSet<&OsStr>,
    left: &mut usize,
    found: &mut BTreeSet<FileId>,
) -> std::io::Result<()> {
    for descriptor in std::fs::read_dir(process.join("fd"))? {
        let descriptor = descriptor?;
        *left = left.saturating_sub(1);
        if *left == 0 {
            return Ok(());
        }
        // The name first: to stat a descriptor on a dead network file system would block.
        let target = match std::fs::read_link(descriptor.path()) {
            Ok(target) => target,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        if !target.is_absolute() || !target.file_name().is_some_and(|name| names.contains(name)) {
            continue;
        }
        let Ok(metadata) = std::fs::metadata(descriptor.path()) else { continue };
        let id = FileId::of(&metadata);
        if files.contains_key(&id) && is_for_writing(process, &descriptor.file_name()) {
            found.insert(id);
        }
    }
    Ok(())
}

/// Reads the access mode of a descriptor; one that cannot be read is taken for a writer's.
fn is_for_writing(process: &Path, descriptor: &OsString) -> bool {
    let info = match std::fs::read_to_string(process.join("fdinfo").join(descriptor)) {
        Ok(info) => info,
        Err(error) => return !is_gone(&error),
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|it| u32::from_str_radix(it.trim(), 8).ok());
    // The lowest two bits are the access mode: 1 writes, 2 does both.
    flags.is_none_or(|flags| flags & 0b11 != 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn id(path: &Path) -> FileId {
        FileId::of(&std::fs::metadata(path).unwrap())
    }

    fn ask(paths: &[&Path]) -> BTreeMap<FileId, Way> {
        let way = |path: &Path| Way {
            path: path.to_owned(),
            name: Some(path.file_name().unwrap().to_owned()),
        };
        paths.iter().map(|path| (id(path), way(path))).collect()
    }

    #[test]
    fn a_writer_is_found_and_a_reader_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let [read, written] = ["read.yaml", "written.yaml"].map(|name| directory.path().join(name));
        std::fs::write(&read, "a").unwrap();
        let _reader = File::open(&read).unwrap();
        let writer = File::create(&written).unwrap();
        let files = ask(&[&read, &written]);
        for look in [by_leases, by_processes, writers] {
            assert_eq!(look(&files).open, BTreeSet::from([id(&written)]));
        }
        // The answer is whole although not every process may be open to us.
        assert_eq!(writers(&files).unknown, BTreeSet::new());
        drop(writer);
        for look in [by_leases, by_processes] {
            assert_eq!(look(&files).open, BTreeSet::new());
        }
        assert_eq!(writers(&files), Writers::default());
    }

    #[test]
    fn a_writer_under_another_name_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let [name, other] = ["a.yaml", "b.yaml"].map(|name| directory.path().join(name));
        std::fs::write(&name, "a").unwrap();
        std::fs::hard_link(&name, &other).unwrap();
        let files = BTreeMap::from([(id(&name), Way { path: name.clone(), name: None })]);
        // Its name in /proc says nothing.
        assert_eq!(by_processes(&files).unknown, BTreeSet::from([id(&name)]));
        assert_eq!(writers(&files), Writers::default());
        let _writer = File::options().append(true).open(&other).unwrap();
        assert_eq!(writers(&files).open, BTreeSet::from([id(&name)]));
    }

    #[test]
    fn of_a_file_that_is_another_by_now_nothing_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.yaml");
        std::fs::write(&path, "a").unwrap();
        let files = ask(&[&path]);
        std::fs::rename(&path, directory.path().join("kept")).unwrap();
        assert_eq!(by_leases(&files).unknown.len(), 1);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(by_leases(&files).unknown.len(), 1);
    }

    #[test]
    fn writers_that_come_while_they_are_looked_for_end_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.yaml");
        std::fs::write(&path, "a").unwrap();
        let files = ask(&[&path]);
        let end = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (path, end) = (path.clone(), Arc::clone(&end));
            move || {
                let mut opened = 0_u32;
                while !end.load(Ordering::Relaxed) {
                    drop(File::options().append(true).open(&path).unwrap());
                    opened += 1;
                }
                opened
            }
        });
        // Often enough that some break a lease, of which the kernel sends a signal that would end this process.
        for _ in 0..20_000 {
            by_leases(&files);
        }
        end.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    }
}
