//! A model of registries: what they have is put there, and they fail as they are told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::bytes::Bytes;

use super::{Answer, Error, Pieces, Reason, Registry};
use crate::content::{CONFIG, Descriptor, Digest, LAYER, MANIFEST};

/// What a piece of a stream has; small, so that there are several of them.
const PIECE: usize = 4096;

/// Registries in memory; clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct MemoryRegistry(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<String, Descriptor>,
    content: BTreeMap<Digest, Bytes>,
    /// What each call of a verb ends with, the next first.
    failures: BTreeMap<&'static str, VecDeque<Error>>,
    /// Streams break off after so many bytes, the next first.
    cuts: VecDeque<u64>,
    /// The next stream has other bytes than it should.
    spoils: bool,
    /// How long a call takes.
    delay: Duration,
    calls: Vec<String>,
}

impl MemoryRegistry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a name an image of one layer, and returns what the name stands for from now on.
    pub fn put(&self, image: &str, layer: &[u8]) -> Descriptor {
        self.put_layers(image, &[layer])
    }

    /// The same with several layers.
    pub fn put_layers(&self, image: &str, layers: &[&[u8]]) -> Descriptor {
        let mut state = self.state();
        let mut add = |media_type: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            state.content.insert(digest.clone(), Bytes::copy_from_slice(bytes));
            let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            Descriptor::new(media_type, digest, size)
        };
        let layers: Vec<Descriptor> = layers.iter().map(|it| add(LAYER, it)).collect();
        let diff_ids: Vec<&Digest> = layers.iter().map(|it| &it.digest).collect();
        let config = serde_json::json!({
            "architecture": crate::content::architecture(),
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = add(CONFIG, config.to_string().as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
        });
        let manifest = add(MANIFEST, manifest.to_string().as_bytes());
        state.images.insert(image.to_owned(), manifest.clone());
        manifest
    }

    /// Gives a name whatever it is said to be.
    pub fn put_raw(&self, image: &str, media_type: &str, bytes: &[u8]) {
        let digest = Digest::of(bytes);
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let mut state = self.state();
        state.content.insert(digest.clone(), Bytes::copy_from_slice(bytes));
        state.images.insert(image.to_owned(), Descriptor::new(media_type, digest, size));
    }

    /// Takes a name away.
    pub fn remove(&self, image: &str) {
        self.state().images.remove(image);
    }

    /// The next call of a verb (`resolve`, `read`, `stream`) fails.
    pub fn fail_next(&self, verb: &'static str, error: Error) {
        self.state().failures.entry(verb).or_default().push_back(error);
    }

    /// The next stream breaks off after so many bytes.
    pub fn cut_next(&self, after: u64) {
        self.state().cuts.push_back(after);
    }

    /// The next stream has other bytes than it should.
    pub fn spoil_next(&self) {
        self.state().spoils = true;
    }

    /// How long each call takes from now on.
    pub fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// What was asked for since the last time, as `verb subject`; of a stream, also the offset.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    async fn call(&self, verb: &'static str, subject: &str) -> Result<(), Error> {
        let delay = {
            let mut state = self.state();
            state.calls.push(format!("{verb} {subject}"));
            state.delay
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match self.state().failures.get_mut(verb).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn content(&self, content: &Descriptor) -> Result<Bytes, Error> {
        let missing = || Error::new(Reason::NotFound, format!("there is no `{}`", content.digest));
        self.state().content.get(&content.digest).cloned().ok_or_else(missing)
    }
}

impl Registry for MemoryRegistry {
    fn resolve<'a>(&'a self, image: &'a str) -> Answer<'a, Descriptor> {
        Box::pin(async move {
            self.call("resolve", image).await?;
            let missing = || Error::new(Reason::NotFound, format!("there is no image `{image}`"));
            let state = self.state();
            let by_digest = image.split_once('@').and_then(|it| it.1.parse::<Digest>().ok());
            let found = match by_digest {
                Some(digest) => state.images.values().find(|it| it.digest == digest),
                None => state.images.get(image),
            };
            found.cloned().ok_or_else(missing)
        })
    }

    fn read<'a>(&'a self, _: &'a str, content: &'a Descriptor) -> Answer<'a, Vec<u8>> {
        Box::pin(async move {
            self.call("read", content.digest.as_str()).await?;
            Ok(self.content(content)?.to_vec())
        })
    }

    fn stream<'a>(
        &'a self,
        _: &'a str,
        content: &'a Descriptor,
        offset: u64,
    ) -> Answer<'a, Pieces> {
        Box::pin(async move {
            self.call("stream", &format!("{} from {offset}", content.digest)).await?;
            let mut bytes = self.content(content)?;
            let cut = self.state().cuts.pop_front();
            if std::mem::take(&mut self.state().spoils) {
                bytes = bytes.iter().map(|it| !it).collect();
            }
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let mut pieces: Vec<Result<Bytes, Error>> = Vec::new();
            let mut left = cut.unwrap_or(u64::MAX);
            for piece in bytes[from..].chunks(PIECE) {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                pieces.push(Ok(Bytes::copy_from_slice(&piece[..length])));
                left -= u64::try_from(length).unwrap_or(u64::MAX);
                if left == 0 {
                    pieces.push(Err(Error::new(Reason::Silent, "the connection was cut")));
                    break;
                }
            }
            Ok(Box::pin(tokio_stream::iter(pieces)) as Pieces)
        })
    }
}
