//! Who has a file open for writing, by what /proc shows of every process.
//!
//! Asks nothing of the file itself: a lease (`F_SETLEASE`) would say the same in one call, but there is no safe way to
//! take one. Does not see writers in another kernel, which is why it is asked about local file systems only.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::io::Errno;

use super::file::FileId;

/// Most descriptors that are looked at; a box with more gets the answer "not known".
const DESCRIPTOR_LIMIT: usize = 500_000;

/// The inode of the first pid namespace: only there does /proc show every process.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What is known of the writers of some files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Writers {
    /// These are open for writing, and no other that was asked for.
    Known(Vec<FileId>),
    /// Some processes cannot be looked into. These at least are open for writing.
    Incomplete(Vec<FileId>),
}

/// Looks for writers of `files`, given with the last part of their real path.
pub(super) fn writers(files: &BTreeMap<FileId, OsString>) -> Writers {
    let mut found = Vec::new();
    let mut complete =
        std::fs::metadata("/proc/self/ns/pid").is_ok_and(|it| it.ino() == FIRST_PID_NAMESPACE);
    let Ok(processes) = std::fs::read_dir("/proc") else { return Writers::Incomplete(found) };
    let names: HashSet<&OsStr> = files.values().map(OsString::as_os_str).collect();
    let mut left = DESCRIPTOR_LIMIT;
    for process in processes.flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        match look_into(&process.path(), files, &names, &mut left, &mut found) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(_) => complete = false,
        }
        if left == 0 {
            complete = false;
            break;
        }
    }
    if complete { Writers::Known(found) } else { Writers::Incomplete(found) }
}

/// A process or descriptor that ended between two looks.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

fn look_into(
    process: &Path,
    files: &BTreeMap<FileId, OsString>,
    names: &HashSet<&OsStr>,
    left: &mut usize,
    found: &mut Vec<FileId>,
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
            found.push(id);
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
    use super::*;

    #[test]
    fn a_writer_is_found_and_a_reader_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let [read, written] = ["read.yaml", "written.yaml"].map(|name| directory.path().join(name));
        std::fs::write(&read, "a").unwrap();
        let _reader = std::fs::File::open(&read).unwrap();
        let writer = std::fs::File::create(&written).unwrap();
        let id = |path: &Path| FileId::of(&std::fs::metadata(path).unwrap());
        let ask: BTreeMap<_, _> = [&read, &written]
            .into_iter()
            .map(|path| (id(path), path.file_name().unwrap().to_owned()))
            .collect();
        let (Writers::Known(found) | Writers::Incomplete(found)) = writers(&ask);
        assert_eq!(found, [id(&written)]);
        drop(writer);
        let (Writers::Known(found) | Writers::Incomplete(found)) = writers(&ask);
        assert_eq!(found, []);
    }
}
