//! Brings an image from its registry into the runtime's store.
//!
//! Everything that comes is kept under one lease until the image is recorded, and what is there is not asked for again:
//! whoever is interrupted, the next one goes on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_stream::StreamExt as _;

use super::{Edge, Error};
use crate::backoff::Delays;
use crate::content::{
    Blob, Descriptor, Digest, INDEX_DEPTH, Manifest, NewBlob, NewImage, NewLayer, Target,
    Unreadable, architecture, choose, parse_config, parse_target, references, stack,
};
use crate::desired::BootTime;
use crate::host::Host;
use crate::observed::{Came, Progress, Pull, PullFailure};
use crate::plan::pull_lease;
use crate::registry::{self, Reason, Registry};
use crate::rundir::PullLock;
use crate::runtime::{ErrorKind, Runtime};
use crate::status::Chain;

/// Images that are pulled at the same time, and layers of each.
const IMAGES: usize = 3;

/// How often a layer is tried while more and more of it comes.
const TRIES: u32 = 5;

/// The pause between two of those.
const PAUSE: Duration = Duration::from_secs(1);

/// The first delay after a pull that failed, and the longest; each is twice the one before it.
const DELAY: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(5);

/// How long whoever else pulls the same image is waited for, and how often it is looked whether it has ended. One that
/// does not end may be stopped, and keeps nobody from it for ever.
const OTHERS: Duration = Duration::from_mins(30);
const LOOK: Duration = Duration::from_millis(500);

/// What is known of pulls, and how many there may be.
pub(super) struct Pulls {
    known: Mutex<BTreeMap<String, Pull>>,
    permits: Semaphore,
    begun: Notify,
}

impl Default for Pulls {
    fn default() -> Self {
        Self { known: Mutex::default(), permits: Semaphore::new(IMAGES), begun: Notify::new() }
    }
}

impl Pulls {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Pull>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, image: &str) {
        self.known().entry(image.to_owned()).or_default().under_way = Some(Progress::default());
        self.begun.notify_one();
    }

    fn change(&self, image: &str, change: impl FnOnce(&mut Progress)) {
        if let Some(Pull { under_way: Some(progress), .. }) = self.known().get_mut(image) {
            change(progress);
        }
    }

    fn end(&self, image: &str, result: &Result<(), Error>, now: BootTime, boot_id: &str) {
        let mut known = self.known();
        let pull = known.entry(image.to_owned()).or_default();
        pull.under_way = None;
        pull.asked = Some(now);
        pull.failure = result.as_ref().err().map(|error| {
            let count = pull.failure.as_ref().map_or(0, |it| it.count).saturating_add(1);
            let delay = delay(count, &format!("{image} {boot_id} {count}"));
            PullFailure {
                reason: reason(error),
                message: Chain(error).to_string(),
                count,
                at: now,
                until: now + delay.max(asked_delay(error)),
            }
        });
    }
}

/// The delay after so many failures. Boxes that fail together do not try again together, and each does the same every
/// time that it is looked at.
fn delay(count: u32, salt: &str) -> Duration {
    let delays = Delays { initial: DELAY, factor: 2, max: LONGEST, ..Delays::default() };
    let digest = Digest::of(salt.as_bytes());
    let share = u32::from_str_radix(&digest.hex()[..4], 16).unwrap_or(0) * 400 / 0xffff;
    delays.after(count) * (800 + share) / 1000
}

/// How long the registry asks to be left alone.
fn asked_delay(error: &Error) -> Duration {
    let Error::Pull { cause, .. } = error else { return Duration::ZERO };
    cause.retry_after.unwrap_or_default()
}

fn reason(error: &Error) -> &'static str {
    if let Error::Pull { cause, .. } = error {
        cause.reason.code()
    } else if matches!(error, Error::Unusable { .. }) {
        "image-unusable"
    } else if error.is_unreachable() {
        "runtime-not-answering"
    } else if Chain(error).to_string().contains("no space left on device") {
        "disk-full"
    } else {
        "store-failed"
    }
}

impl<R: Runtime, H: Host> Edge<R, H> {
    /// What is known of pulls of these images; the rest is forgotten.
    pub(in crate::controller) fn pulls_of(
        &self,
        is_wanted: impl Fn(&str) -> bool,
    ) -> BTreeMap<String, Pull> {
        let mut known = self.pulls.known();
        known.retain(|image, it| it.under_way.is_some() || is_wanted(image));
        known.clone()
    }

    /// Waits until a pull has begun.
    pub async fn until_pulling(&self) {
        self.pulls.begun.notified().await;
    }

    /// What is under way, by image.
    pub fn progress(&self) -> BTreeMap<String, Progress> {
        let known = self.pulls.known();
        known.iter().filter_map(|(image, it)| Some((image.clone(), it.under_way?))).collect()
    }

    pub(super) async fn pull(&self, image: &str, known: Option<&str>) -> Result<(), Error> {
        let Some(registry) = self.registry.clone() else {
            let cause = registry::Error::new(Reason::Settings, "no registries are to be asked");
            return Err(not_pulled(image, cause));
        };
        // However it ends, and if it is dropped, it is not under way any more.
        let _ends = Ends { pulls: &self.pulls, image };
        let result = self.pull_alone(&*registry, image, known).await;
        self.pulls.end(image, &result, self.host.now(), &self.boot_id);
        result
    }

    /// Pulls once it is our turn.
    async fn pull_alone(
        &self,
        registry: &dyn Registry,
        image: &str,
        known: Option<&str>,
    ) -> Result<(), Error> {
        let (_lock, has_waited) = self.lock_pull(image).await?;
        let _one_of_few = self.pulls.permits.acquire().await.map_err(|_| Error::Lost)?;
        self.pulls.begin(image);
        if has_waited && self.has_another(image, known).await? {
            return Ok(());
        }
        self.try_pull(registry, image, known).await
    }

    /// One pull at a time for an image, whoever wants it: a command beside a controller too. Also whether somebody else
    /// has pulled it meanwhile.
    async fn lock_pull(&self, image: &str) -> Result<(Option<PullLock>, bool), Error> {
        let lease = pull_lease(image);
        let mut waited = Duration::ZERO;
        while waited < OTHERS {
            if let Some(lock) = self.run.lock_pull(&lease)? {
                return Ok((Some(lock), waited > Duration::ZERO));
            }
            if waited.is_zero() {
                // It is, if not by us, and whoever waits for it is to know.
                self.pulls.begin(image);
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
        Ok((None, true))
    }

    /// Whether the store has something else under that name than it had when this was asked for.
    async fn has_another(&self, image: &str, known: Option<&str>) -> Result<bool, Error> {
        let mut there = self.runtime.observe(&[image.to_owned()].into()).await?.images;
        Ok(there.remove(image).is_some_and(|it| Some(it.digest.as_str()) != known))
    }

    async fn try_pull(
        &self,
        registry: &dyn Registry,
        image: &str,
        known: Option<&str>,
    ) -> Result<(), Error> {
        let failed = |cause| not_pulled(image, cause);
        let target = registry.resolve(image).await.map_err(failed)?;
        if known == Some(target.digest.as_str()) {
            return Ok(());
        }
        let lease = pull_lease(image);
        self.effect("pull/lease", self.runtime.lease(&lease)).await?;
        let manifest = self.pull_manifest(registry, image, &lease, &target).await?;
        let bytes = registry.read(image, &manifest.config).await.map_err(failed)?;
        let unusable = |why: Unreadable| Error::Unusable { image: image.to_owned(), why };
        let config = parse_config(&bytes).map_err(unusable)?.config;
        if config.diff_ids.len() != manifest.layers.len() {
            let (layers, named) = (manifest.layers.len(), config.diff_ids.len());
            let why = format!("it has {layers} layers, and its configuration names {named}");
            return Err(unusable(Unreadable(why)));
        }
        self.put(&lease, &manifest.config, BTreeMap::new(), &bytes).await?;
        let stack = stack(&manifest.layers, &config.diff_ids);
        // Some images have one layer several times; two who write it would wait for each other.
        let mut seen = BTreeSet::new();
        let layers: VecDeque<Descriptor> =
            manifest.layers.into_iter().filter(|it| seen.insert(it.digest.clone())).collect();
        let total = layers.iter().map(|it| it.size).fold(0, u64::saturating_add);
        self.pulls.change(image, |it| it.total = total);
        let layers = Layers { left: Mutex::new(layers), ..Layers::default() };
        let lane = || self.pull_layers(registry, image, &lease, &layers);
        tokio::try_join!(lane(), lane(), lane(), self.unpack_layers(&lease, &stack, &layers))?;
        let new = NewImage {
            name: image.to_owned(),
            digest: target.digest.to_string(),
            media_type: target.media_type.clone(),
            size: target.size,
            config,
            came: Came::Pulled,
        };
        // Only now is there an image.
        self.effect("pull/image", self.runtime.put_image(&lease, &new)).await?;
        self.effect("pull/release", self.runtime.remove_lease(&lease)).await
    }

    /// The manifest for this machine, with all that is on the way to it.
    async fn pull_manifest(
        &self,
        registry: &dyn Registry,
        image: &str,
        lease: &str,
        target: &Descriptor,
    ) -> Result<Manifest, Error> {
        let unusable = |why| Error::Unusable { image: image.to_owned(), why };
        let mut next = target.clone();
        for _ in 0..INDEX_DEPTH {
            let read = registry.read(image, &next).await;
            let bytes = read.map_err(|cause| not_pulled(image, cause))?;
            let content = parse_target(&bytes).map_err(unusable)?;
            self.put(lease, &next, references(&content), &bytes).await?;
            match content {
                Target::Manifest(manifest) => return Ok(manifest),
                Target::Index(index) => {
                    let chosen = choose(&index, architecture()).cloned();
                    next = chosen.ok_or_else(|| {
                        unusable(Unreadable(format!("it has nothing for {}", architecture())))
                    })?;
                }
            }
        }
        Err(unusable(Unreadable("its indexes name ever more indexes".to_owned())))
    }

    /// Stores what was read whole.
    async fn put(
        &self,
        lease: &str,
        content: &Descriptor,
        labels: BTreeMap<String, String>,
        mut bytes: &[u8],
    ) -> Result<(), Error> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let blob = Blob { digest: content.digest.to_string(), size, labels, content: &mut bytes };
        self.effect("pull/blob", self.runtime.put_blob(lease, blob)).await
    }

    /// Takes one layer after the other, as long as there are some.
    async fn pull_layers(
        &self,
        registry: &dyn Registry,
        image: &str,
        lease: &str,
        layers: &Layers,
    ) -> Result<(), Error> {
        while let Some(layer) = layers.next() {
            self.effect("pull/blob", self.pull_layer(registry, image, lease, &layer)).await?;
            layers.came(layer.digest);
        }
        Ok(())
    }

    /// Unpacks each layer as soon as it and those below it are there.
    async fn unpack_layers(
        &self,
        lease: &str,
        stack: &[NewLayer],
        layers: &Layers,
    ) -> Result<(), Error> {
        for layer in stack {
            layers.until(&layer.blob.digest).await;
            self.effect("pull/unpack", self.runtime.unpack_layer(lease, layer)).await?;
        }
        Ok(())
    }

    async fn pull_layer(
        &self,
        registry: &dyn Registry,
        image: &str,
        lease: &str,
        layer: &Descriptor,
    ) -> Result<(), Error> {
        let blob =
            NewBlob { digest: layer.digest.clone(), size: layer.size, labels: BTreeMap::new() };
        let mut counted = 0;
        for tried in 1.. {
            let Some(mut writer) = self.runtime.open_blob(lease, &blob).await? else { break };
            let begun = writer.offset();
            self.count(image, &mut counted, begun);
            let stopped = async {
                let mut pieces = registry.stream(image, layer, begun).await?;
                while let Some(piece) = pieces.next().await {
                    writer.write(piece?).await?;
                    self.count(image, &mut counted, writer.offset());
                }
                Ok::<_, Stopped>(())
            };
            match stopped.await {
                Ok(()) if writer.offset() >= layer.size => match writer.commit().await {
                    Ok(()) => break,
                    Err(error) => return Err(stored(image, error)),
                },
                Err(Stopped::Here(error)) => return Err(stored(image, error)),
                // It broke off, with an error or without one: what has come is kept.
                ended => {
                    let come = writer.offset();
                    drop(writer.commit().await);
                    let cause = match ended {
                        Err(Stopped::There(cause)) => cause,
                        _ => registry::Error::new(
                            Reason::Broken,
                            format!(
                                "blob `{}` ended after {come} of {} bytes",
                                layer.digest, layer.size
                            ),
                        ),
                    };
                    if come == begun || tried >= TRIES {
                        return Err(not_pulled(image, cause));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.count(image, &mut counted, layer.size);
        Ok(())
    }

    /// So much of a layer is there now; `counted`: what was told of it before.
    fn count(&self, image: &str, counted: &mut u64, come: u64) {
        self.pulls.change(image, |it| it.done = (it.done + come).saturating_sub(*counted));
        *counted = come;
    }
}

/// The layers of one image on their way.
#[derive(Default)]
struct Layers {
    left: Mutex<VecDeque<Descriptor>>,
    there: Mutex<BTreeSet<Digest>>,
    /// Waited for by the one who unpacks.
    changed: Notify,
}

impl Layers {
    fn next(&self) -> Option<Descriptor> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn came(&self, digest: Digest) {
        self.there.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        self.changed.notify_one();
    }

    async fn until(&self, digest: &Digest) {
        while !self.there.lock().unwrap_or_else(PoisonError::into_inner).contains(digest) {
            self.changed.notified().await;
        }
    }
}

/// Why a layer was not stored: it is another one than it is said to be, or the store had its reasons.
fn stored(image: &str, error: crate::runtime::Error) -> Error {
    if error.kind != ErrorKind::Conflict {
        return error.into();
    }
    not_pulled(image, registry::Error::new(Reason::Mismatch, Chain(&error).to_string()))
}

fn not_pulled(image: &str, cause: registry::Error) -> Error {
    Error::Pull { image: image.to_owned(), cause }
}

/// Why a stream ended before its time: at its source, or where it was to go.
enum Stopped {
    There(registry::Error),
    Here(crate::runtime::Error),
}

impl From<registry::Error> for Stopped {
    fn from(error: registry::Error) -> Self {
        Self::There(error)
    }
}

impl From<crate::runtime::Error> for Stopped {
    fn from(error: crate::runtime::Error) -> Self {
        Self::Here(error)
    }
}

/// Says that a pull is not under way any more, also of one that was dropped.
struct Ends<'a> {
    pulls: &'a Pulls,
    image: &'a str,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if let Some(pull) = self.pulls.known().get_mut(self.image) {
            pull.under_way = None;
        }
    }
}
