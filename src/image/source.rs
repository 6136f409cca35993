//! The bytes of an archive, whether it is compressed or not, read from front to back.

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result, Seek as _, SeekFrom};

use flate2::read::MultiGzDecoder;

/// Largest content of a compressed archive; far more than any image, and read in minutes.
const UNPACKED_LIMIT: u64 = 64 << 30;

/// Up to here an archive may be as compressed as it likes.
const SMALL: u64 = 1 << 30;

/// Beyond [`SMALL`], how many times its size an archive may hold. Programs and text stay below ten, gzip can do a
/// thousand.
const RATIO_LIMIT: u64 = 100;

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
    Gzip { decoder: Box<MultiGzDecoder<BufReader<File>>>, limit: u64 },
}

impl Source {
    /// Finds out by the first bytes how it is compressed; names lie.
    pub(super) fn open(mut file: File) -> Result<Self> {
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(0))?;
        let mut magic = Vec::new();
        (&mut file).take(6).read_to_end(&mut magic)?;
        file.seek(SeekFrom::Start(0))?;
        let file = BufReader::with_capacity(SKIP, file);
        let bytes = match magic.as_slice() {
            [0x1f, 0x8b, ..] => {
                let limit = UNPACKED_LIMIT.min(SMALL.max(size.saturating_mul(RATIO_LIMIT)));
                Bytes::Gzip { decoder: Box::new(MultiGzDecoder::new(file)), limit }
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                return Err(refused("is compressed with zstd; use gzip or nothing"));
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => {
                return Err(refused("is compressed with xz; use gzip or nothing"));
            }
            [b'B', b'Z', b'h', ..] => {
                return Err(refused("is compressed with bzip2; use gzip or nothing"));
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
            Bytes::Gzip { .. } => {
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
            Bytes::Gzip { decoder, limit } => {
                let n = decoder.read(buffer)?;
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
