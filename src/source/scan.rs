//! One walk over one root: which files there are and what they look like from outside.
//!
//! Reads names and inodes only, never content. Directories whose name starts with a dot are not entered, but symlinks
//! may lead through them: that is how a `ConfigMap` is mounted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, FileType, OFlags};
use rustix::io::Errno;

use super::events::{Key, Watches};
use super::file::{self, FILE_LIMIT, FileId, Kind, Refusal, Signature};
use super::ignore::{self, Ignore};
use crate::desired::{Below, Root};

/// Most manifests of one source.
pub const FILES_LIMIT: usize = 20_000;

/// Most names that are looked at in one source, manifests or not.
pub const NAMES_LIMIT: usize = 200_000;

/// Most bytes of manifests in one source.
pub const TOTAL_LIMIT: u64 = 64 << 20;

/// Deepest directory below a root.
pub const DEPTH_LIMIT: usize = 32;

/// Most symlinks on the way to a root, as the kernel has it.
const LINK_LIMIT: usize = 40;

/// Whether a file of that name is read.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    // Editors' and copiers' litter (`a.yaml~`, `#a.yaml#`, `a.yaml.swp`, `a.yaml.tmp`) ends otherwise.
    !bytes.starts_with(b".")
        && [&b".yaml"[..], b".yml", b".json"].iter().any(|end| bytes.ends_with(end))
}

/// What a walk found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) root: Root,
    /// Identity of the root; `None`: there is none.
    pub(super) id: Option<FileId>,
    /// By path below the root; the empty path for a root that is a file.
    pub(super) files: BTreeMap<PathBuf, Entry>,
    /// `.evenkeelignore` of the root.
    pub(super) ignore: Option<Entry>,
    /// Directories by path below the root, and what may be one.
    pub(super) below: BTreeMap<PathBuf, Below>,
    /// Identity and last change of each directory, so that something that came and went is seen without events.
    pub(super) directories: BTreeSet<(FileId, (i64, i64))>,
    /// Something vanished during the walk: it has to be repeated.
    pub(super) unsteady: bool,
}

/// A name that counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    File(Place),
    Refused(Refusal),
}

/// A regular file behind a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Path to open.
    pub(super) path: PathBuf,
    pub(super) signature: Signature,
    /// It has other names too: events and /proc may show it under one of them.
    pub(super) many_names: bool,
    /// Where its events come from.
    pub(super) key: Option<Key>,
}

/// Walks over one source.
pub(super) struct Walk<'a> {
    /// As given, absolute or relative to the working directory.
    pub(super) root: &'a Path,
    pub(super) source: usize,
    pub(super) ignore: &'a Ignore,
    pub(super) watches: &'a mut Watches,
}

/// A directory that is still to be read.
struct Todo {
    real: PathBuf,
    below: PathBuf,
    depth: usize,
}

impl Walk<'_> {
    pub(super) fn run(mut self) -> Found {
        let mut found = Found {
            root: Root::Missing,
            id: None,
            files: BTreeMap::new(),
            ignore: None,
            below: BTreeMap::new(),
            directories: BTreeSet::new(),
            unsteady: false,
        };
        for (directory, name) in hinges(self.root) {
            self.watches.name(&directory, &name, self.source);
        }
        match file::kind(self.root) {
            Kind::Directory(metadata) => {
                found.root = Root::Directory { device: metadata.dev() };
                found.id = Some(FileId::of(&metadata));
                self.directory(&mut found);
            }
            Kind::File(metadata) => {
                found.root = Root::File;
                found.id = Some(FileId::of(&metadata));
                let entry = self.place(self.root.to_owned(), &metadata, None);
                found.files.insert(PathBuf::new(), entry);
            }
            // Opening what is no file could block or worse.
            Kind::Refused(refusal) if refusal.code == "not-a-regular-file" => {
                found.root = Root::File;
                found.files.insert(PathBuf::new(), Entry::Refused(refusal));
            }
            Kind::Refused(refusal) => found.root = Root::Unreadable(refusal.message),
            Kind::Gone => {}
        }
        found
    }

    fn directory(&mut self, found: &mut Found) {
        // Resolved once, so that a symlink that is re-pointed during the walk does not mix two trees.
        let real = match std::fs::canonicalize(self.root) {
            Ok(real) => real,
            Err(error) => {
                found.root = Root::Unreadable(format!("cannot be resolved: {error}"));
                return;
            }
        };
        let mut left = Left { files: FILES_LIMIT, names: NAMES_LIMIT, bytes: TOTAL_LIMIT };
        let mut visited = BTreeSet::new();
        // Symlinked directories last: what is reachable without a symlink keeps that path.
        let mut plain = VecDeque::from([Todo { real, below: PathBuf::new(), depth: 0 }]);
        let mut linked = VecDeque::new();
        while let Some(todo) = plain.pop_front().or_else(|| linked.pop_front()) {
            let outcome =
                self.enter(&todo, found, &mut left, &mut visited, &mut plain, &mut linked);
            match outcome {
                Ok(()) => {}
                Err(Stop::Refused(refusal)) if todo.below.as_os_str().is_empty() => {
                    found.root = Root::Unreadable(refusal.message);
                    found.files.clear();
                    found.below.clear();
                    return;
                }
                Err(Stop::Refused(refusal)) => {
                    found.files.insert(todo.below, Entry::Refused(refusal));
                }
                Err(Stop::Gone) => found.unsteady = true,
                Err(Stop::Limit(what)) => {
                    let message = format!("holds more than {what}; the rest was not read");
                    let refusal = Refusal { code: "source-too-large", message };
                    found.files.insert(todo.below, Entry::Refused(refusal));
                    return;
                }
            }
        }
    }

    fn enter(
        &mut self,
        todo: &Todo,
        found: &mut Found,
        left: &mut Left,
        visited: &mut BTreeSet<FileId>,
        plain: &mut VecDeque<Todo>,
        linked: &mut VecDeque<Todo>,
    ) -> Result<(), Stop> {
        if todo.depth > DEPTH_LIMIT {
            return Err(Stop::Limit(format!("{DEPTH_LIMIT} directories in one another")));
        }
        let directory = file::open_quietly(&todo.real, OFlags::DIRECTORY)?;
        let directory = std::fs::File::from(directory);
        let metadata =
            directory.metadata().map_err(|error| Stop::Refused(Refusal::by_system(&error)))?;
        let id = FileId::of(&metadata);
        // A loop, or a directory that was reached before on another way.
        if !visited.insert(id) {
            return Ok(());
        }
        self.watches.directory(&todo.real, id, self.source);
        if todo.depth > 0 {
            found.below.insert(todo.below.clone(), Below::Directory { device: id.device });
        }
        found.directories.insert((id, (metadata.ctime(), metadata.ctime_nsec())));

        let mut names = Vec::new();
        for entry in Dir::new(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            left.names = left
                .names
                .checked_sub(1)
                .ok_or_else(|| Stop::Limit(format!("{NAMES_LIMIT} names")))?;
            let hidden = name.as_bytes().starts_with(b".");
            let is_ignore_file = name == ignore::FILE && todo.depth == 0;
            let interesting = match entry.file_type() {
                FileType::Directory | FileType::Symlink | FileType::Unknown => true,
                // What is neither a file nor a directory is refused by its name.
                FileType::RegularFile
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice => is_manifest(name),
            };
            if is_ignore_file || (interesting && !hidden) {
                names.push((name.to_owned(), entry.file_type()));
            }
        }
        names.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in names {
            self.name(todo, id, &name, kind, found, left, plain, linked)?;
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one walk, used by this pair of functions alone"
    )]
    fn name(
        &mut self,
        todo: &Todo,
        directory: FileId,
        name: &OsStr,
        kind: FileType,
        found: &mut Found,
        left: &mut Left,
        plain: &mut VecDeque<Todo>,
        linked: &mut VecDeque<Todo>,
    ) -> Result<(), Stop> {
        let real = todo.real.join(name);
        let below = todo.below.join(name);
        let is_link = kind == FileType::Symlink
            || (kind == FileType::Unknown
                && std::fs::symlink_metadata(&real).is_ok_and(|it| it.is_symlink()));
        // Saves a look at each: what it is is known.
        if kind == FileType::Directory && name != ignore::FILE {
            if !self.ignore.matches(&below, true) {
                plain.push_back(Todo { real, below, depth: todo.depth + 1 });
            }
            return Ok(());
        }
        let behind = file::kind(&real);
        if name == ignore::FILE {
            found.ignore = match behind {
                Kind::File(metadata) => {
                    Some(self.place(real, &metadata, (!is_link).then_some((directory, name))))
                }
                Kind::Directory(_) => Some(Entry::Refused(Refusal {
                    code: "ignore-unreadable",
                    message: "is a directory, not a file".to_owned(),
                })),
                Kind::Refused(refusal) => Some(Entry::Refused(refusal)),
                Kind::Gone => None,
            };
            return Ok(());
        }
        if self.ignore.matches(&below, matches!(behind, Kind::Directory(_))) {
            return Ok(());
        }
        let entry = match behind {
            Kind::Directory(_) => {
                let queue = if is_link { linked } else { plain };
                queue.push_back(Todo { real, below, depth: todo.depth + 1 });
                return Ok(());
            }
            Kind::Gone => {
                // Listed a moment ago: somebody is at work here.
                found.unsteady = true;
                return Ok(());
            }
            // A name without an ending could be a directory full of manifests, if it could be followed.
            Kind::Refused(refusal)
                if is_manifest(name) || (is_link && !name.as_bytes().contains(&b'.')) =>
            {
                Entry::Refused(refusal)
            }
            Kind::File(metadata) if is_manifest(name) => {
                let size = metadata.size().min(u64::try_from(FILE_LIMIT).unwrap_or(u64::MAX));
                left.bytes = left.bytes.checked_sub(size).ok_or_else(|| {
                    Stop::Limit(format!("{} MiB of manifests", TOTAL_LIMIT >> 20))
                })?;
                self.place(real, &metadata, (!is_link).then_some((directory, name)))
            }
            // Less likely, and so it holds no more than what came from there.
            Kind::Refused(refusal)
                if refusal.code != "not-a-regular-file"
                    && (is_link || kind == FileType::Unknown) =>
            {
                found.below.insert(below, Below::Unknown { code: refusal.code });
                return Ok(());
            }
            Kind::Refused(_) | Kind::File(_) => return Ok(()),
        };
        left.files = left
            .files
            .checked_sub(1)
            .ok_or_else(|| Stop::Limit(format!("{FILES_LIMIT} manifests")))?;
        match below.to_str() {
            Some(_) => found.files.insert(below, entry),
            // Such a path can be neither shown nor written down.
            None => found.files.insert(
                PathBuf::from(below.to_string_lossy().into_owned()),
                Entry::Refused(Refusal {
                    code: "file-unreadable",
                    message: "has a name that is not UTF-8; rename it".to_owned(),
                }),
            ),
        };
        Ok(())
    }

    /// A file and where its events come from: `at`, or, for a symlink, the directory that it leads to.
    fn place(
        &mut self,
        path: PathBuf,
        metadata: &std::fs::Metadata,
        at: Option<(FileId, &OsStr)>,
    ) -> Entry {
        let key = match at {
            Some((directory, name)) => Some(Key { directory, name: name.to_owned() }),
            None => self.real_place(&path),
        };
        let signature = Signature::of(metadata);
        Entry::File(Place { path, signature, many_names: metadata.nlink() > 1, key })
    }

    fn real_place(&mut self, path: &Path) -> Option<Key> {
        let real = std::fs::canonicalize(path).ok()?;
        self.watches.name(real.parent()?, real.file_name()?, self.source)
    }
}

/// What may still be read of a source.
struct Left {
    files: usize,
    names: usize,
    bytes: u64,
}

/// Why a directory was not read to its end.
enum Stop {
    Refused(Refusal),
    Gone,
    Limit(String),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT | Errno::NOTDIR => Self::Gone,
            _ => Self::Refused(Refusal::by_system(&error.into())),
        }
    }
}

/// The names that lead to `path`: its own, and every symlink on the way, each with the directory that it is in.
fn hinges(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut hinges = Vec::new();
    let mut real = PathBuf::from(if path.is_absolute() { "/" } else { "." });
    let mut rest: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&part);
        let found = std::fs::symlink_metadata(&next);
        let is_link = found.as_ref().is_ok_and(std::fs::Metadata::is_symlink);
        if is_link || found.is_err() || rest.is_empty() {
            hinges.push((real.clone(), part));
        }
        if found.is_err() {
            break;
        }
        if is_link {
            links += 1;
            let Ok(target) = std::fs::read_link(&next) else { break };
            if links > LINK_LIMIT {
                break;
            }
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part);
            }
        } else {
            real = next;
        }
    }
    hinges
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_names_with_a_manifests_ending_count() {
        for name in ["a.yaml", "a.yml", "a.json", "a.b.yaml"] {
            assert!(is_manifest(OsStr::new(name)), "{name}");
        }
        for name in [
            ".a.yaml",
            "a.yaml~",
            "#a.yaml#",
            ".#a.yaml",
            ".a.yaml.swp",
            "a.yaml.swp",
            "a.yaml.tmp",
            "a.txt",
            "yaml",
            ".yaml",
            "a.YAML",
            "a.yaml.bak",
            "4913",
        ] {
            assert!(!is_manifest(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn every_symlink_on_the_way_to_a_root_is_a_hinge() {
        let directory = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(directory.path()).unwrap();
        std::fs::create_dir_all(base.join("git/rev1/sub")).unwrap();
        std::os::unix::fs::symlink("rev1", base.join("git/current")).unwrap();
        std::os::unix::fs::symlink("git/current/sub", base.join("root")).unwrap();
        assert_eq!(
            hinges(&base.join("root")),
            [
                (base.clone(), "root".into()),
                (base.join("git"), "current".into()),
                (base.join("git/rev1"), "sub".into()),
            ]
        );
        assert_eq!(hinges(&base.join("none/deep")), [(base, "none".into())]);
    }
}
