//! The bytes of an archive, whether it is compressed or not, read from front to back.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result, Seek as _, SeekFrom};

use flate2::read::MultiGzDecoder;

/// Largest content of a compressed archive; far more than any image, and read in minutes.
const UNPACKED_LIMIT: u64 = 64 << 30;

/// Up to here an archive may be as compressed as it likes.
const SMALL: u64 = 1 << 30;

/// Beyond [`SMALL`], how many times its size an archive may hold. Programs and text stay below ten, gzip can do a
/// thousand, and zstd far more.
const RATIO_LIMIT: u64 = 100;

/// What is compressed with gzip begins so.
pub(super) const GZIP: [u8; 2] = [0x1f, 0x8b];
/// What is compressed with zstd begins so.
pub(super) const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How much is read to skip something in a compressed archive.
const SKIP: usize = 1 << 16;

/// An archive that is being read.
#[derive(Debug)]
pub(super) struct Source {
    bytes: Bytes,
    /// In the uncompressed content.
    position: u64,
}

#[derive(Debug)]
enum Bytes {
    Plain { file: BufReader<File>, size: u64 },
    Packed { decoder: Decoder, limit: u64 },
}

struct Decoder(Box<dyn Read + Send>);

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

impl Source {
    /// Finds out by the first bytes how it is compressed; names lie.
    pub(super) fn open(file: File) -> Result<Self> {
        Self::bounded(file, SMALL)
    }

    /// Refuses what unpacks to more than `small` and to [`RATIO_LIMIT`] times its size.
    fn bounded(mut file: File, small: u64) -> Result<Self> {
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(0))?;
        let mut magic = Vec::new();
        (&mut file).take(6).read_to_end(&mut magic)?;
        file.seek(SeekFrom::Start(0))?;
        let file = BufReader::with_capacity(SKIP, file);
        let limit = UNPACKED_LIMIT.min(small.max(size.saturating_mul(RATIO_LIMIT)));
        let packed =
            |decoder: Box<dyn Read + Send>| Bytes::Packed { decoder: Decoder(decoder), limit };
        let bytes = match magic.as_slice() {
            magic if magic.starts_with(&GZIP) => packed(Box::new(MultiGzDecoder::new(file))),
            magic if magic.starts_with(&ZSTD) => {
                packed(Box::new(zstd::stream::read::Decoder::with_buffer(file)?))
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => {
                return Err(refused("is compressed with xz; use zstd, gzip or nothing"));
            }
            [b'B', b'Z', b'h', ..] => {
                return Err(refused("is compressed with bzip2; use zstd, gzip or nothing"));
            }
            _ => Bytes::Plain { file, size },
        };
        Ok(Self { bytes, position: 0 })
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Goes forward, or back where that is possible.
    pub(super) fn skip_to(&mut self, offset: u64) -> Result<()> {
        match &mut self.bytes {
            Bytes::Plain { file, size } => {
                // Seeking beyond the end would be no error.
                if offset > *size {
                    return Err(truncated());
                }
                let distance = i128::from(offset) - i128::from(self.position);
                match i64::try_from(distance) {
                    // Keeps what is buffered.
                    Ok(distance) => file.seek_relative(distance)?,
                    Err(_) => drop(file.seek(SeekFrom::Start(offset))?),
                }
                self.position = offset;
            }
            Bytes::Packed { .. } => {
                let mut buffer = vec![0; SKIP];
                if offset < self.position {
                    return Err(refused("a compressed archive is read from front to back"));
                }
                while self.position < offset {
                    let length = usize::try_from(offset - self.position).unwrap_or(SKIP).min(SKIP);
                    let n = self.read(&mut buffer[..length])?;
                    if n == 0 {
                        return Err(truncated());
                    }
                }
            }
        }
        Ok(())
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = match &mut self.bytes {
            Bytes::Plain { file, .. } => file.read(buffer)?,
            Bytes::Packed { decoder, limit } => {
                let n = decoder.0.read(buffer).map_err(|error| {
                    if error.kind() == ErrorKind::UnexpectedEof { truncated() } else { error }
                })?;
                if self.position.saturating_add(u64::try_from(n).unwrap_or(u64::MAX)) > *limit {
                    return Err(refused(
                        "unpacks to far more than an image of its size would; it is not read",
                    ));
                }
                n
            }
        };
        self.position += u64::try_from(n).unwrap_or(u64::MAX);
        Ok(n)
    }
}

pub(super) fn refused(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}

pub(super) fn truncated() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "ends too early; it may still be being copied")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn compressed(content: &[u8]) -> File {
        let mut encoder = GzEncoder::new(tempfile::tempfile().unwrap(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn with_zstd(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        zstd::stream::copy_encode(content, &mut file, 19).unwrap();
        file
    }

    #[test]
    fn what_unpacks_to_far_too_much_is_refused_before_it_is_unpacked() {
        let bomb = vec![0; 8 << 20];
        for compressed in [compressed, with_zstd] {
            let mut source = Source::bounded(compressed(&bomb), 1 << 20).unwrap();
            assert!(source.skip_to(8 << 20).is_err());
            assert!(source.position() <= 1 << 20);
            let mut source = Source::bounded(compressed(&bomb), 8 << 20).unwrap();
            source.skip_to(8 << 20).unwrap();
            assert_eq!(source.read(&mut [0]).unwrap(), 0);
        }
    }

    /// A window of 2 GiB may be asked for by a few bytes.
    #[test]
    fn an_archive_cannot_ask_for_all_memory() {
        let mut file = tempfile::tempfile().unwrap();
        // A frame with a window of 2^41 bytes, and one empty last block.
        file.write_all(&[ZSTD.as_slice(), &[0x00, 0xf8, 0x01, 0x00, 0x00]].concat()).unwrap();
        assert!(Source::open(file).unwrap().read(&mut [0]).is_err());
    }

    #[test]
    fn a_compressed_archive_of_several_members_is_read_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        for part in ["one ", "two"] {
            let mut encoder = GzEncoder::new(&mut file, Compression::fast());
            encoder.write_all(part.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        let mut frames = tempfile::tempfile().unwrap();
        for part in ["one ", "two"] {
            zstd::stream::copy_encode(part.as_bytes(), &mut frames, 1).unwrap();
        }
        for file in [file, frames] {
            let mut text = String::new();
            Source::open(file).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "one two");
        }
    }

    #[test]
    fn nothing_is_skipped_beyond_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut source = Source::open(file).unwrap();
        source.skip_to(8).unwrap();
        source.skip_to(4).unwrap();
        let mut rest = Vec::new();
        source.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"456789");
        assert_eq!(source.position(), 10);
        assert!(source.skip_to(11).is_err());
        assert!(Source::open(compressed(b"0123456789")).unwrap().skip_to(11).is_err());
    }
}
