//! Images in archives: OCI layouts and what `docker save` writes, plain or compressed with gzip or zstd.
//!
//! Unpacks nothing and writes nothing: an archive is indexed by name and digest, and its blobs are handed out as
//! streams. What is in a blob is checked by whoever stores it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::index::{Index, Packed, Part, Place};
use self::reader::Reader;
use self::source::Source;
use crate::content::{Blob, NewImage};
use crate::observed::{Came, Image, ImagePlace};

mod index;
mod reader;
mod source;
mod tar;

/// Archives of one directory that are looked at; a box has a handful.
const ARCHIVE_LIMIT: usize = 1000;

/// How the names of archives end.
const ENDINGS: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst"];

/// How long who looks for an image waits for new archives to be read: a plain one takes milliseconds, but a compressed
/// one has to be unpacked to its end, and nobody else is to wait for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// The archives in some directories. What was read is remembered as long as the file stays the same.
#[derive(Debug)]
pub struct Archives {
    directories: Vec<PathBuf>,
    /// And these files.
    files: Vec<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    reader: Reader,
    patience: Duration,
}

/// What [`Archives::find`] found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// Of the names asked for, those that an archive has.
    pub images: BTreeMap<String, Image>,
    /// What is wrong with archives, whether they were asked for or not.
    pub problems: Vec<ArchiveProblem>,
    /// Archives that are still being read: what is not found may be in them.
    pub unread: Vec<PathBuf>,
}

/// Why an archive, or an image in it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}`: {message}", path.display())]
pub struct ArchiveProblem {
    pub path: PathBuf,
    pub message: String,
}

impl ArchiveProblem {
    fn new(path: &Path, message: impl fmt::Display) -> Self {
        Self { path: path.to_owned(), message: message.to_string() }
    }
}

/// What tells a file from what it was before. A copy with the times set back still has another ctime.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    /// `None`: it is being read.
    index: Option<Result<Arc<Index>, ArchiveProblem>>,
}

impl Archives {
    /// Reads nothing yet. Directories need not exist.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        let (known, reader) = (BTreeMap::new(), Reader::default());
        Self { directories, files: Vec::new(), known, reader, patience: PATIENCE }
    }

    /// These archives, whatever they are called and wherever they are.
    pub fn of_files(files: Vec<PathBuf>) -> Self {
        Self { files, ..Self::new(Vec::new()) }
    }

    /// Waits that long for archives to be read, for those who have nothing else to do.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Told when an archive has been read that nobody waited for.
    pub fn late(&self) -> Arc<Notify> {
        self.reader.late()
    }

    /// Looks for images by their full names; a name with a digest is found by the digest alone. Of two archives that
    /// have one name, the first by path counts.
    ///
    /// Costs one `stat` for each archive that has not changed; new ones are read, and waited for up to a second: not for
    /// async threads. Nothing is found in those that take longer before they were read.
    pub fn find(&mut self, names: &BTreeSet<String>) -> Found {
        let mut found = Found::default();
        if names.is_empty() {
            return found;
        }
        self.refresh(&mut found.problems);
        self.collect_found(names, &mut found);
        found
    }

    /// Every image that has a name in an archive.
    pub fn all(&mut self) -> Found {
        let mut found = Found::default();
        self.refresh(&mut found.problems);
        let indexes = self.known.values().filter_map(|it| it.index.as_ref()?.as_ref().ok());
        let names = indexes.flat_map(|it| it.names().map(str::to_owned)).collect();
        self.collect_found(&names, &mut found);
        found
    }

    fn collect_found(&self, names: &BTreeSet<String>, found: &mut Found) {
        for (path, known) in &self.known {
            let index = match &known.index {
                Some(Ok(index)) => index,
                Some(Err(problem)) => {
                    found.problems.push(problem.clone());
                    continue;
                }
                None => {
                    found.unread.push(path.clone());
                    continue;
                }
            };
            found.problems.extend(index.problems.iter().map(|it| ArchiveProblem::new(path, it)));
            for name in names {
                let Some(packed) = index.find(name) else { continue };
                let image = Image {
                    name: name.clone(),
                    digest: packed.target.digest.to_string(),
                    config: packed.config.clone(),
                    place: ImagePlace::Archive(path.clone()),
                };
                match found.images.get(name) {
                    None => {
                        found.images.insert(name.clone(), image);
                    }
                    Some(first) if first.digest == image.digest => {}
                    Some(first) => {
                        let ImagePlace::Archive(used) = &first.place else { continue };
                        let message =
                            format!("`{name}` is in `{}` as well, which is used", used.display());
                        found.problems.push(ArchiveProblem::new(path, message));
                    }
                }
            }
        }
    }

    /// Opens the archive of an image that was found, to hand out its blobs.
    pub fn import(&self, image: &Image) -> Result<Import, ArchiveProblem> {
        let ImagePlace::Archive(path) = &image.place else {
            return Err(ArchiveProblem::new(Path::new(&image.name), "is not in an archive"));
        };
        let known = self
            .known
            .get(path)
            .and_then(|it| Some((&it.stamp, it.index.as_ref()?.as_ref().ok()?)));
        let packed =
            known.and_then(|(stamp, index)| Some((stamp, index.by_digest(&image.digest)?)));
        let Some((stamp, packed)) = packed else {
            return Err(ArchiveProblem::new(path, format!("has no `{}` any more", image.name)));
        };
        let (file, metadata) = open(path)?;
        if Stamp::of(&metadata) != *stamp {
            return Err(changed(path));
        }
        Import::new(path, file, &image.name, packed)
    }

    /// Brings what is known up to date.
    fn refresh(&mut self, problems: &mut Vec<ArchiveProblem>) {
        let mut paths = BTreeSet::new();
        let mut is_new = false;
        for directory in &self.directories {
            if let Err(problem) = list(directory, &mut paths) {
                problems.push(problem);
            }
        }
        paths.extend(self.files.iter().cloned());
        self.known.retain(|path, _| paths.contains(path));
        for path in paths {
            let stamp = match std::fs::metadata(&path) {
                Ok(metadata) => Stamp::of(&metadata),
                Err(error) => {
                    self.known.remove(&path);
                    if error.kind() != std::io::ErrorKind::NotFound {
                        problems.push(ArchiveProblem::new(&path, error));
                    }
                    continue;
                }
            };
            if self.known.get(&path).is_none_or(|known| known.stamp != stamp) {
                is_new = true;
                self.known.insert(path, Known { stamp, index: None });
            }
        }
        self.collect(is_new.then(|| Instant::now() + self.patience));
    }

    /// Takes over what was read, and has read what was not; waits for that until then.
    fn collect(&mut self, deadline: Option<Instant>) {
        loop {
            for (path, known) in self.known.iter().filter(|(_, it)| it.index.is_none()) {
                self.reader.read(path, &known.stamp);
            }
            let Some((path, stamp, index)) = self.reader.next(deadline) else { return };
            // One that has changed meanwhile is read again.
            if let Some(known) = self.known.get_mut(&path).filter(|it| it.stamp == stamp) {
                known.index = Some(index.map(Arc::new));
            }
        }
    }
}

/// The archives of one directory.
fn list(directory: &Path, paths: &mut BTreeSet<PathBuf>) -> Result<(), ArchiveProblem> {
    let problem = |error: std::io::Error| ArchiveProblem::new(directory, error);
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(problem)?,
    };
    let mut count = 0;
    for entry in entries {
        let name = entry.map_err(problem)?.file_name();
        let bytes = name.as_bytes();
        // A name that begins with a dot is of a file that is being copied.
        if bytes.starts_with(b".") || !ENDINGS.iter().any(|it| bytes.ends_with(it.as_bytes())) {
            continue;
        }
        count += 1;
        if count > ARCHIVE_LIMIT {
            let message =
                format!("has more than {ARCHIVE_LIMIT} archives; the rest is not looked at");
            return Err(ArchiveProblem::new(directory, message));
        }
        paths.insert(directory.join(name));
    }
    Ok(())
}

fn read(path: &Path, stamp: &Stamp) -> Result<Index, ArchiveProblem> {
    let (file, metadata) = open(path)?;
    if Stamp::of(&metadata) != *stamp {
        return Err(changed(path));
    }
    let broken = |error: std::io::Error| ArchiveProblem::new(path, error);
    let index = Index::read(&file).map_err(broken)?;
    if Stamp::of(&file.metadata().map_err(broken)?) == *stamp {
        Ok(index)
    } else {
        Err(changed(path))
    }
}

/// Opens a regular file; anything else could block.
fn open(path: &Path) -> Result<(File, Metadata), ArchiveProblem> {
    let problem = |error: std::io::Error| ArchiveProblem::new(path, error);
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).expect("the flags are small numbers");
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(problem)?;
    let metadata = file.metadata().map_err(problem)?;
    if metadata.is_file() {
        Ok((file, metadata))
    } else {
        Err(ArchiveProblem::new(path, "is not a regular file"))
    }
}

fn changed(path: &Path) -> ArchiveProblem {
    ArchiveProblem::new(path, "changed while it was read; it is read again when it is complete")
}

/// The blobs of one image, in the order in which they stand in the archive. Reading them blocks.
#[derive(Debug)]
pub struct Import {
    path: PathBuf,
    image: NewImage,
    /// From the last to the first.
    parts: Vec<Part>,
    /// The one that it stands at.
    part: Option<Part>,
    current: Current,
}

impl Import {
    fn new(path: &Path, file: File, name: &str, packed: &Packed) -> Result<Self, ArchiveProblem> {
        let source = Source::open(file).map_err(|error| ArchiveProblem::new(path, error))?;
        let mut parts = packed.parts.clone();
        parts.sort_by_key(|part| match part.place {
            Place::Archive { offset } => offset,
            Place::Memory(_) => 0,
        });
        parts.reverse();
        let image = NewImage {
            name: name.to_owned(),
            digest: packed.target.digest.to_string(),
            media_type: packed.target.media_type.clone(),
            size: packed.target.size,
            config: packed.config.clone(),
            came: Came::Imported,
        };
        Ok(Self {
            path: path.to_owned(),
            image,
            parts,
            part: None,
            current: Current { source, left: 0, memory: None },
        })
    }

    /// What is to be recorded once all blobs are stored.
    pub fn image(&self) -> &NewImage {
        &self.image
    }

    /// Goes to the next blob, if there is one. What is between them, and was not read of the one before, is skipped:
    /// in a compressed archive that has to be unpacked, and takes its time.
    pub fn advance(&mut self) -> Result<(), ArchiveProblem> {
        self.part = self.parts.pop();
        let Some(part) = &self.part else { return Ok(()) };
        self.current.left = part.size;
        self.current.memory = match &part.place {
            Place::Memory(bytes) => Some(std::io::Cursor::new(Arc::clone(bytes))),
            Place::Archive { offset } => {
                let skipped = self.current.source.skip_to(*offset);
                skipped.map_err(|error| ArchiveProblem::new(&self.path, error))?;
                None
            }
        };
        Ok(())
    }

    /// The blob that it stands at; `None` before the first one and after the last.
    pub fn blob(&mut self) -> Option<Blob<'_>> {
        let Part { digest, size, labels, place: _ } = self.part.as_ref()?;
        let (digest, labels) = (digest.to_string(), labels.clone());
        Some(Blob { digest, size: *size, labels, content: &mut self.current })
    }

    /// Both at once.
    #[expect(
        clippy::should_implement_trait,
        reason = "each blob borrows the archive, which an iterator cannot say"
    )]
    pub fn next(&mut self) -> Result<Option<Blob<'_>>, ArchiveProblem> {
        self.advance()?;
        Ok(self.blob())
    }
}

/// The content of one blob.
#[derive(Debug)]
struct Current {
    source: Source,
    left: u64,
    memory: Option<std::io::Cursor<Arc<[u8]>>>,
}

impl Read for Current {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(memory) = &mut self.memory {
            return memory.read(buffer);
        }
        let n = (&mut self.source).take(self.left).read(buffer)?;
        self.left -= u64::try_from(n).unwrap_or(u64::MAX);
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests;
