//! The entries of a tar archive: names, sizes and offsets.
//!
//! Extracts nothing, so that no name of an entry ever becomes a path. Everything that an archive says about itself is
//! bounded before it is believed.

use std::io::{Error, ErrorKind, Read as _, Result};

use super::source::{Source, refused, truncated};

const BLOCK: u64 = 512;

/// Most entries of an archive; an image has a hundred blobs at most.
const ENTRY_LIMIT: usize = 100_000;

/// Longest name that an extension header may carry; the kernel's is 4096.
const NAME_LIMIT: u64 = 1 << 16;

/// Largest extended header; they hold a few names and times.
const PAX_LIMIT: u64 = 1 << 20;

/// A file or a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Normalised: no `.`, `..`, or slash at either end.
    pub(super) name: String,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        offset: u64,
        size: u64,
    },
    /// The entry of that name has the content.
    Link(String),
}

/// Goes through an archive from entry to entry.
pub(super) struct Walker<'a> {
    source: &'a mut Source,
    /// Where the next header is.
    next: u64,
    count: usize,
}

/// What extension headers say about the entry after them.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(source: &'a mut Source) -> Self {
        Self { source, next: 0, count: 0 }
    }

    /// The archive, standing at the content of the entry that came last.
    pub(super) fn content(&mut self) -> &mut Source {
        self.source
    }

    /// The next file or link; whatever else there is, and what has an impossible name, is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            self.count += 1;
            if self.count > ENTRY_LIMIT {
                return Err(Error::new(
                    ErrorKind::InvalidData,
                    format!("has more than {ENTRY_LIMIT} entries"),
                ));
            }
            self.source.skip_to(self.next)?;
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header[156];
            let size = match kind {
                // Links have none, whatever the header says.
                b'1'..=b'6' => 0,
                _ => extended.size.take().map_or_else(|| number(&header[124..136]), Ok)?,
            };
            let offset = self.source.position();
            let padded = size.checked_next_multiple_of(BLOCK).and_then(|it| offset.checked_add(it));
            self.next = padded.ok_or_else(|| refused("has an entry of impossible size"))?;
            match kind {
                b'L' => extended.name = Some(self.text(size, NAME_LIMIT)?),
                b'K' => extended.link = Some(self.text(size, NAME_LIMIT)?),
                b'x' => {
                    let records = self.text(size, PAX_LIMIT)?;
                    pax(&records, &mut extended)?;
                }
                b'0' | b'\0' | b'7' | b'1' | b'2' => {
                    let Extended { name, link, size: _ } = std::mem::take(&mut extended);
                    let Some(name) = normal("", &name.unwrap_or_else(|| own_name(&header))) else {
                        continue;
                    };
                    let target = || link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
                    let kind = match kind {
                        b'1' => normal("", &target()).map(Kind::Link),
                        b'2' => normal(name.rsplit_once('/').map_or("", |it| it.0), &target())
                            .map(Kind::Link),
                        _ => Some(Kind::File { offset, size }),
                    };
                    if let Some(kind) = kind {
                        return Ok(Some(Entry { name, kind }));
                    }
                }
                // Directories, devices, global headers, and what later programs invent.
                _ => extended = Extended::default(),
            }
        }
    }

    /// `None` at the end: a block of zeros, or nothing at all.
    fn header(&mut self) -> Result<Option<[u8; 512]>> {
        let mut header = [0; 512];
        let mut length = 0;
        while length < header.len() {
            match self.source.read(&mut header[length..])? {
                0 if length == 0 => return Ok(None),
                0 => return Err(truncated()),
                n => length += n,
            }
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = header.iter().enumerate();
        let sum: u64 = sum
            .map(|(n, byte)| u64::from(if (148..156).contains(&n) { b' ' } else { *byte }))
            .sum();
        if number(&header[148..156])? == sum {
            Ok(Some(header))
        } else {
            Err(refused("is not a tar archive"))
        }
    }

    fn text(&mut self, size: u64, limit: u64) -> Result<Vec<u8>> {
        if size > limit {
            return Err(refused("has an extension header of impossible size"));
        }
        let mut text = Vec::new();
        let length = (&mut *self.source).take(size).read_to_end(&mut text)?;
        if u64::try_from(length).ok() == Some(size) { Ok(text) } else { Err(truncated()) }
    }
}

/// Octal digits, or a binary number behind a byte with the highest bit set.
fn number(field: &[u8]) -> Result<u64> {
    let invalid = || refused("has a header with a wrong number");
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // Negative ones, and those over 64 bits, make no sense.
        let (high, low) = rest.split_at(rest.len().saturating_sub(8));
        if *first != 0x80 || high.iter().any(|byte| *byte != 0) {
            return Err(invalid());
        }
        return Ok(low.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    let digits = field
        .iter()
        .skip_while(|byte| **byte == b' ')
        .take_while(|byte| !matches!(byte, b' ' | b'\0'));
    digits.into_iter().try_fold(0_u64, |number, byte| match byte {
        b'0'..=b'7' => {
            number.checked_mul(8).map(|it| it + u64::from(byte - b'0')).ok_or_else(invalid)
        }
        _ => Err(invalid()),
    })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn own_name(header: &[u8; 512]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    // GNU's own format has other things in the place of the prefix.
    let prefix = if &header[257..263] == b"ustar\0" { until_nul(&header[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Records of the form `length key=value\n`.
fn pax(mut records: &[u8], extended: &mut Extended) -> Result<()> {
    let invalid = || refused("has an extended header that cannot be read");
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(invalid)?;
        let length =
            std::str::from_utf8(&records[..space]).ok().and_then(|it| it.parse::<usize>().ok());
        let length =
            length.filter(|it| (space + 2..=records.len()).contains(it)).ok_or_else(invalid)?;
        let record = records[space + 1..length].strip_suffix(b"\n").ok_or_else(invalid)?;
        records = &records[length..];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(invalid)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extended.name = Some(value.to_vec()),
            b"linkpath" => extended.link = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|it| it.parse().ok());
                extended.size = Some(size.ok_or_else(invalid)?);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A path below `directory` without detours; `None` when it leaves the archive or is not text.
pub(super) fn normal(directory: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(until_nul(path)).ok()?;
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
