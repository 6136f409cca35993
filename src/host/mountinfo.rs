//! `/proc/PID/mountinfo`, read as bytes: which mounts stand where, in the order in which they cover each other.
//!
//! Own code of a few lines because the parsers at hand neither undo the octal escapes of mount points nor survive
//! one foreign mount whose name is not UTF-8. It mounts and unmounts nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// One line: a mount of a mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device number of its file system.
    pub device: u64,
    /// What of the file system is mounted: `/`, or `ipc:[4026531839]` for nsfs.
    pub root: OsString,
    /// Where, seen from the process's own root.
    pub point: PathBuf,
    /// `rw,nosuid,…`
    pub options: String,
    /// Propagation: `shared:1`, `master:1`; none for a private mount.
    pub propagation: Vec<String>,
    /// `tmpfs`, `nsfs`, …
    pub kind: String,
    /// The name that was given as its source.
    pub source: OsString,
    /// Those of its file system, for all places where it is mounted: `rw,memory`.
    pub super_options: String,
}

impl Mount {
    /// Inode of the namespace that an nsfs mount pins.
    pub fn namespace(&self) -> Option<u64> {
        let root = self.root.to_str()?;
        let inode = root.split_once(":[")?.1.strip_suffix(']')?;
        (self.kind == "nsfs").then(|| inode.parse().ok()).flatten()
    }
}

/// All mounts of a mountinfo file; of two on one point the later one is seen. A line that does not have the form
/// documented in proc(5) is skipped.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.by_ref().nth(2)?;
    let root = OsString::from_vec(unescape(fields.next()?));
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = text(fields.next()?);
    let propagation = fields.by_ref().take_while(|field| *field != b"-").map(text).collect();
    let kind = text(fields.next()?);
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = fields.next().map(text).unwrap_or_default();
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    Some(Mount { device, root, point, options, propagation, kind, source, super_options })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// The kernel writes space, tab, newline and backslash as `\040` and so on.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
        };
        match more.get(..3).and_then(octal) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &more[3..];
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_is_used_is_read() {
        let mounts = parse(
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
              41 40 0:4 ipc:[4026532252] /run/evenkeel/ipc/a-1/ns rw - nsfs nsfs rw\n",
        );
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, PathBuf::from("/mnt2"));
        assert_eq!(mounts[0].root, "/mnt1");
        assert_eq!(mounts[0].kind, "ext3");
        assert_eq!(mounts[0].source, "/dev/root");
        assert_eq!(mounts[0].propagation, ["master:1", "shared:7"]);
        assert_eq!(mounts[0].super_options, "rw,errors=continue");
        assert_eq!(mounts[0].namespace(), None);
        assert_eq!((mounts[1].kind.as_str(), mounts[1].namespace()), ("nsfs", Some(4_026_532_252)));
        assert!(mounts[1].propagation.is_empty());
    }

    #[test]
    fn escapes_are_undone_and_names_need_not_be_text() {
        let mounts = parse(b"1 2 0:30 / /a\\040b\\134c\xff rw - tmpfs shm rw\nnot a mount\n\n");
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].point.as_os_str(), &OsString::from_vec(b"/a b\\c\xff".to_vec()));
    }
}
