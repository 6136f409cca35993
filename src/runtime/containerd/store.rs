//! Content, images and unpacking.
//!
//! Fetches nothing from anywhere: what is not in containerd comes through [`Store::write`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, ApplyRequest, CreateImageRequest, DeleteImageRequest,
    GetImageRequest, Image as ImageRecord, Info, InfoRequest, ListImagesRequest,
    ReadContentRequest, Resource, UpdateImageRequest, UpdateRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::types;
use prost::bytes::Bytes;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::link::{During as _, Fault, Link, Tolerate as _};
use super::record::{IMAGE, PIN, UNUSED, plain};
use super::{LIST_LIMIT, METADATA_LIMIT};
use crate::content::{
    Blob, Descriptor, INDEX_DEPTH, JSON_LIMIT, NewBlob, NewImage, NewLayer, Target, architecture,
    chain_ids, choose, parse_config, parse_target, stack,
};
use crate::observed::{Came, Image, ImageConfig, ImagePlace, StoredImage};
use crate::runtime::{BlobWriter, ErrorKind, Mark, Written, verb};

/// What is sent at once; containerd takes at most 16 MiB, and spends the more of its time the smaller they are.
const PIECE: usize = 2 << 20;

/// One piece on its way to a slow disk that others write to as well.
const PIECE_LIMIT: Duration = Duration::from_mins(1);

/// A commit flushes the whole blob, and unpacking writes a whole layer: gigabytes to flash storage.
const LAYER_LIMIT: Duration = Duration::from_mins(15);

/// Another stream may write the same blob; it is asked again until that one has ended.
const LOCKED_PAUSE: Duration = Duration::from_millis(100);
const LOCKED_TRIES: u32 = 600;

/// How containerd says that what was written is not what it was said to be, since 1.0.
const OTHER_DIGEST: &str = "unexpected commit digest";

/// Resolved images that are remembered; the oldest thing that a box has are a few dozen.
const CACHE_LIMIT: usize = 512;

/// Reads and writes images of one namespace.
pub(super) struct Store {
    link: Link,
    snapshotter: String,
    /// Tells what this process unpacks from what another one does.
    own: String,
    /// By the digest of the target: what a digest stands for never changes.
    resolved: Mutex<BTreeMap<String, Arc<Resolved>>>,
    /// One at a time: two that unpack one layer would remove each other's snapshot.
    unpacking: tokio::sync::Mutex<()>,
}

/// What an image's target comes to on this box.
struct Resolved {
    config: ImageConfig,
    config_digest: String,
    config_size: u64,
    layers: Vec<Descriptor>,
    chain: Vec<String>,
}

impl Resolved {
    fn size(&self) -> u64 {
        self.layers.iter().map(|it| it.size).fold(self.config_size, u64::saturating_add)
    }
}

impl Store {
    pub(super) fn new(link: Link, snapshotter: String) -> Self {
        Self {
            link,
            snapshotter,
            own: own_name(),
            resolved: Mutex::default(),
            unpacking: tokio::sync::Mutex::default(),
        }
    }

    /// The records of all images.
    pub(super) async fn records(&self) -> Result<Vec<ImageRecord>, Fault> {
        let request = ListImagesRequest::default();
        Ok(self.link.answer(LIST_LIMIT, self.link.images().list(request)).await?.images)
    }

    /// Those of these names that a container can be made from: unpacked, or with everything there to do so.
    pub(super) async fn usable(
        &self,
        records: &[ImageRecord],
        names: &BTreeSet<String>,
        snapshots: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Image>, Fault> {
        let mut images = BTreeMap::new();
        for ImageRecord { name, target, .. } in records.iter().filter(|it| names.contains(&it.name))
        {
            let Some(target) = target else { continue };
            let Some(resolved) = self.resolve(&target.digest).await? else { continue };
            let unpacked = resolved.chain.last().is_none_or(|top| snapshots.contains(top));
            if unpacked || self.has_layers(&resolved).await? {
                let image = Image {
                    name: name.clone(),
                    digest: target.digest.clone(),
                    config: resolved.config.clone(),
                    place: ImagePlace::Store,
                };
                images.insert(name.clone(), image);
            }
        }
        Ok(images)
    }

    /// What there is under each name. Of somebody else's images the size is not looked for.
    pub(super) async fn stored(
        &self,
        records: &[ImageRecord],
    ) -> Result<BTreeMap<String, StoredImage>, Fault> {
        let mut stored = BTreeMap::new();
        for record in records {
            let ImageRecord { name, target, labels, .. } = record;
            let Some(target) = target else { continue };
            let came = came(record);
            let resolved = if came.is_some() { self.resolve(&target.digest).await? } else { None };
            let image = StoredImage {
                digest: target.digest.clone(),
                came,
                size: resolved.map_or(0, |it| it.size()),
                pinned: labels.contains_key(PIN),
                unused: labels.get(UNUSED).and_then(|it| it.parse().ok()),
            };
            stored.insert(name.clone(), image);
        }
        Ok(stored)
    }

    /// The record of an image, if it points at that; refused if it is somebody else's.
    async fn own_record(&self, name: &str, digest: &str) -> Result<Option<ImageRecord>, Fault> {
        let record = self.find(name).await?;
        let record = record.filter(|it| it.target.as_ref().is_some_and(|it| it.digest == digest));
        match record {
            Some(record) if came(&record).is_none() => {
                Err(Fault::conflict("it was put there by somebody else"))
            }
            record => Ok(record),
        }
    }

    async fn find(&self, name: &str) -> Result<Option<ImageRecord>, Fault> {
        let request = GetImageRequest { name: name.to_owned() };
        let answer = self.link.answer(METADATA_LIMIT, self.link.images().get(request)).await;
        Ok(answer.unless_missing()?.and_then(|it| it.image))
    }

    pub(super) async fn mark(&self, name: &str, digest: &str, mark: &Mark) -> Result<(), Fault> {
        let Some(ImageRecord { target, .. }) = self.own_record(name, digest).await? else {
            return Err(Fault::missing(format!("it does not point at `{digest}` any more")));
        };
        // An empty label removes one that is there.
        let (label, value) = match mark {
            Mark::Unused(since) => (UNUSED, since.to_string()),
            Mark::Used => (UNUSED, String::new()),
            Mark::Pinned => (PIN, "true".to_owned()),
            Mark::Unpinned => (PIN, String::new()),
        };
        let labels = HashMap::from([(label.to_owned(), value)]);
        // The target is not in the mask, but containerd 1.7 dies of an image without one.
        let record = ImageRecord { name: name.to_owned(), labels, target, ..Default::default() };
        self.change(record, vec![format!("labels.{label}")]).await
    }

    /// Removes the record, and waits until what only it has kept is gone.
    pub(super) async fn forget(&self, name: &str, digest: &str) -> Result<(), Fault> {
        let Some(record) = self.own_record(name, digest).await? else { return Ok(()) };
        // Older than 2.0 it does not look at the target; what is wanted again meanwhile comes again.
        let request =
            DeleteImageRequest { name: name.to_owned(), sync: true, target: record.target };
        let removed = self.link.answer(LAYER_LIMIT, self.link.images().delete(request)).await;
        removed.unless_missing().map(drop)
    }

    async fn change(&self, record: ImageRecord, paths: Vec<String>) -> Result<(), Fault> {
        let request = UpdateImageRequest {
            image: Some(record),
            update_mask: Some(FieldMask { paths }),
            source_date_epoch: None,
        };
        self.link.answer(METADATA_LIMIT, self.link.images().update(request)).await.map(drop)
    }

    /// Puts one blob into the content store under a lease; one that is there only gets the lease and its labels.
    pub(super) async fn write(&self, lease: &str, blob: Blob<'_>) -> Result<(), Fault> {
        let link = self.link.under(lease)?;
        let Some(writing) = self.begin(&link, &blob.digest, blob.size, &blob.labels).await? else {
            return Ok(());
        };
        let reference = reference(&blob.digest);
        match writing.send_all(&link, blob).await {
            // Another one was faster.
            Err(fault) if fault.kind == ErrorKind::Conflict => Ok(()),
            Err(fault) => {
                abort(&link, reference).await;
                Err(fault)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Asks for the right to write a blob. `None`: it is there, and has the labels.
    async fn begin(
        &self,
        link: &Link,
        digest: &str,
        size: u64,
        labels: &BTreeMap<String, String>,
    ) -> Result<Option<Writing>, Fault> {
        let mut tries = 0;
        loop {
            match Writing::open(link, &reference(digest), digest, size).await {
                Ok(writing) => return Ok(Some(writing)),
                Err(fault) if fault.kind == ErrorKind::Conflict => {
                    return self.relabel(link, digest, labels).await.map(|()| None);
                }
                Err(fault) if fault.says("locked") && tries < LOCKED_TRIES => {
                    tries += 1;
                    tokio::time::sleep(LOCKED_PAUSE).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Begins to write a blob as it comes, or goes on with it. `None`: it is there.
    pub(super) async fn open(&self, lease: &str, blob: &NewBlob) -> Result<Option<Writer>, Fault> {
        let link = self.link.under(lease)?;
        let digest = blob.digest.as_str();
        loop {
            let begun = self.begin(&link, digest, blob.size, &blob.labels).await?;
            let Some(writing) = begun else { return Ok(None) };
            if writing.offset > blob.size {
                // Nothing that was ever right.
                drop(writing);
                abort(&link, reference(digest)).await;
                continue;
            }
            let sent = writing.offset;
            let blob = blob.clone();
            return Ok(Some(Writer {
                link,
                writing,
                blob,
                sent,
                is_due: false,
                waiting: Vec::new(),
            }));
        }
    }

    /// Unpacks an image whose blobs are there, and records it.
    pub(super) async fn record(&self, lease: &str, image: &NewImage) -> Result<(), Fault> {
        // The record comes last: of what cannot be unpacked no container can ever be made, and what has its name until
        // now may be needed. The lease keeps all of it until then.
        self.unpack(lease, &image.digest).await?;
        let target = types::Descriptor {
            media_type: image.media_type.clone(),
            digest: image.digest.clone(),
            size: i64::try_from(image.size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        // It is not known any more how long it was unused: it is wanted now.
        let own = format!("{} {}", image.came.as_str(), image.name);
        let labels = [(IMAGE, own), (UNUSED, String::new())];
        let labels = labels.map(|(key, value)| (key.to_owned(), value));
        let record = ImageRecord {
            name: image.name.clone(),
            target: Some(target),
            labels: labels.into(),
            ..Default::default()
        };
        let request = CreateImageRequest { image: Some(record.clone()), source_date_epoch: None };
        let made = self
            .link
            .answer(METADATA_LIMIT, self.link.images().create(request))
            .await
            .unless_there()?;
        if made.is_none() {
            let there = self.find(&image.name).await?;
            let mut paths = vec!["target".to_owned()];
            // Somebody else's stays theirs, whatever it points at.
            if there.is_some_and(|it| came(&it).is_some()) {
                paths.extend([IMAGE, UNUSED].map(|it| format!("labels.{it}")));
            }
            self.change(record, paths).await?;
        }
        Ok(())
    }

    /// Makes the snapshots of an image's layers, as far as they are not there. `Conflict`: its layers are not those of
    /// its configuration.
    pub(super) async fn unpack(&self, lease: &str, digest: &str) -> Result<(), Fault> {
        let link = self.link.under(lease)?;
        let Some(image) = self.resolve(digest).await? else {
            return Err(Fault::missing(format!("the content of `{digest}` is not in containerd")));
        };
        let Some(top) = image.chain.last() else { return Ok(()) };
        // What is below a layer that is there is there as well, and stays as long as that does.
        if !self.keep_snapshot(lease, top).await? {
            for layer in stack(&image.layers, &image.config.diff_ids) {
                self.unpack_layer(lease, &layer).await?;
            }
        }
        // The snapshots live as long as the image does.
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        let labels = BTreeMap::from([(label, top.clone())]);
        self.label(&link, &image.config_digest, &labels).await
    }

    /// Makes the snapshot of one layer, or keeps the one that is there under the lease: the image that it is of may go.
    pub(super) async fn unpack_layer(&self, lease: &str, layer: &NewLayer) -> Result<(), Fault> {
        let link = &self.link.under(lease)?;
        let NewLayer { blob, diff_id, parent, chain_id } = layer;
        // Who has no more to do than that does not wait for somebody who unpacks another layer, which takes minutes.
        if self.keep_snapshot(lease, chain_id).await? {
            return Ok(());
        }
        let _one_at_a_time = self.unpacking.lock().await;
        if self.keep_snapshot(lease, chain_id).await? {
            return Ok(());
        }
        // Another process may unpack the same layer. What one that was killed has left goes with its lease.
        let key = format!("evenkeel-unpack-{}-{chain_id}", self.own);
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: parent.clone().unwrap_or_default(),
            ..Default::default()
        };
        let prepare = || {
            link.answer(METADATA_LIMIT, async { link.snapshots().prepare(request.clone()).await })
        };
        let prepared = match prepare().await.unless_there()? {
            Some(prepared) => prepared,
            // Somebody was killed while unpacking it; what is in there is not known.
            None => {
                self.remove_snapshot(link, &key).await?;
                prepare().await?
            }
        };
        let applied = self.apply(link, blob, diff_id, prepared.mounts).await;
        let committed = match applied {
            Ok(()) => {
                let request = CommitSnapshotRequest {
                    snapshotter: self.snapshotter.clone(),
                    name: chain_id.clone(),
                    key: key.clone(),
                    ..Default::default()
                };
                link.answer(LAYER_LIMIT, link.snapshots().commit(request)).await.unless_there()
            }
            Err(fault) => Err(fault),
        };
        match committed {
            Ok(Some(())) => Ok(()),
            Ok(None) => self.remove_snapshot(link, &key).await,
            Err(fault) => {
                // The first failure is what counts.
                drop(self.remove_snapshot(link, &key).await);
                Err(fault)
            }
        }
    }

    async fn apply(
        &self,
        link: &Link,
        layer: &Descriptor,
        diff_id: &str,
        mounts: Vec<types::Mount>,
    ) -> Result<(), Fault> {
        let diff = types::Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest.to_string(),
            size: i64::try_from(layer.size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let request = ApplyRequest { diff: Some(diff), mounts, ..Default::default() };
        let answer = link.answer(LAYER_LIMIT, link.diff().apply(request)).await?;
        match answer.applied {
            Some(applied) if applied.digest == diff_id => Ok(()),
            _ => Err(Fault::conflict(format!(
                "layer `{}` is not what the image's configuration says",
                layer.digest
            ))),
        }
    }

    async fn remove_snapshot(&self, link: &Link, key: &str) -> Result<(), Fault> {
        let request =
            RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        link.answer(METADATA_LIMIT, link.snapshots().remove(request))
            .await
            .unless_missing()
            .map(drop)
    }

    /// Puts a snapshot under a lease; whether it is there.
    async fn keep_snapshot(&self, lease: &str, key: &str) -> Result<bool, Fault> {
        if !self.has_snapshot(key).await? {
            return Ok(false);
        }
        let resource =
            Resource { id: key.to_owned(), r#type: format!("snapshots/{}", self.snapshotter) };
        let request = AddResourceRequest { id: lease.to_owned(), resource: Some(resource) };
        self.link.answer(METADATA_LIMIT, self.link.leases().add_resource(request)).await?;
        // It may have gone just before that.
        self.has_snapshot(key).await
    }

    async fn has_snapshot(&self, key: &str) -> Result<bool, Fault> {
        let request =
            StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let stat = self.link.answer(METADATA_LIMIT, self.link.snapshots().stat(request)).await;
        Ok(stat.unless_missing()?.is_some())
    }

    async fn has_layers(&self, image: &Resolved) -> Result<bool, Fault> {
        for layer in &image.layers {
            let request = InfoRequest { digest: layer.digest.to_string() };
            let info = self
                .link
                .answer(METADATA_LIMIT, self.link.content().info(request))
                .await
                .unless_missing()?;
            if info.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `None`: something of it is missing or cannot be read.
    async fn resolve(&self, digest: &str) -> Result<Option<Arc<Resolved>>, Fault> {
        if let Some(resolved) = self.cache().get(digest) {
            return Ok(Some(Arc::clone(resolved)));
        }
        let mut next = digest.to_owned();
        for _ in 0..INDEX_DEPTH {
            let Some(bytes) = self.read(&next).await? else { return Ok(None) };
            match parse_target(&bytes) {
                Ok(Target::Index(index)) => match choose(&index, architecture()) {
                    Some(entry) => next = entry.digest.to_string(),
                    None => return Ok(None),
                },
                Ok(Target::Manifest(manifest)) => {
                    let config_digest = manifest.config.digest.to_string();
                    let Some(bytes) = self.read(&config_digest).await? else { return Ok(None) };
                    let Ok(config) = parse_config(&bytes).map(|it| it.config) else {
                        return Ok(None);
                    };
                    if config.diff_ids.len() != manifest.layers.len() {
                        return Ok(None);
                    }
                    let chain = chain_ids(&config.diff_ids);
                    let resolved = Arc::new(Resolved {
                        config,
                        config_digest,
                        config_size: manifest.config.size,
                        layers: manifest.layers,
                        chain,
                    });
                    let mut cache = self.cache();
                    if cache.len() >= CACHE_LIMIT {
                        cache.clear();
                    }
                    cache.insert(digest.to_owned(), Arc::clone(&resolved));
                    return Ok(Some(resolved));
                }
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// A small blob. `None`: it is not there, or far too large for what it should be.
    async fn read(&self, digest: &str) -> Result<Option<Vec<u8>>, Fault> {
        let size = i64::try_from(JSON_LIMIT).unwrap_or(i64::MAX);
        let request = InfoRequest { digest: digest.to_owned() };
        let info = self
            .link
            .answer(METADATA_LIMIT, self.link.content().info(request))
            .await
            .unless_missing()?;
        if info.and_then(|it| it.info).is_none_or(|it| it.size > size) {
            return Ok(None);
        }
        let request = ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
        let pieces = self
            .link
            .gather(LIST_LIMIT, self.link.content().read(request))
            .await
            .unless_missing()?;
        Ok(pieces.map(|pieces| pieces.into_iter().flat_map(|it| it.data).collect()))
    }

    /// A blob that was there may lack the labels that keep what it refers to.
    async fn relabel(
        &self,
        link: &Link,
        digest: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Fault> {
        if labels.is_empty() { Ok(()) } else { self.label(link, digest, labels).await }
    }

    async fn label(
        &self,
        link: &Link,
        digest: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Fault> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_owned(), labels: plain(labels), ..Default::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        link.answer(METADATA_LIMIT, link.content().update(request)).await.map(drop)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Resolved>>> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How we brought what the record is of; `None`: somebody else made it. Who gives an image another name copies its labels
/// as well, so that ours say the name.
fn came(record: &ImageRecord) -> Option<Came> {
    let (came, name) = record.labels.get(IMAGE)?.split_once(' ')?;
    if name == record.name { came.parse().ok() } else { None }
}

/// A name that no other process has, nor one of this number before.
fn own_name() -> String {
    // What the standard library seeds its maps with is the randomness that there is.
    let random = std::hash::RandomState::new().hash_one(());
    format!("{}-{random:016x}", std::process::id())
}

/// The name under which a blob is written, as long as it is not complete.
fn reference(digest: &str) -> String {
    format!("evenkeel-{digest}")
}

/// Throws away what was written of a blob. It would stay until the lease is gone; failing to tidy up changes nothing.
async fn abort(link: &Link, reference: String) {
    let request = AbortRequest { r#ref: reference };
    drop(link.answer(METADATA_LIMIT, link.content().abort(request)).await);
}

/// See [`BlobWriter`]. Sends large pieces, however small those are that come.
pub(super) struct Writer {
    link: Link,
    writing: Writing,
    blob: NewBlob,
    /// What containerd was sent of it.
    sent: u64,
    /// Whether it has to answer for the last piece yet, which it stores while the next one comes.
    is_due: bool,
    /// What comes after that.
    waiting: Vec<u8>,
}

impl Writer {
    async fn take(&mut self, piece: &[u8]) -> Result<(), Fault> {
        if self.offset() + size_of(piece) > self.blob.size {
            abort(&self.link, reference(self.blob.digest.as_str())).await;
            let NewBlob { digest, size, .. } = &self.blob;
            return Err(Fault::conflict(format!(
                "it has more than the {size} bytes of `{digest}`"
            )));
        }
        let mut rest = piece;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(PIECE - self.waiting.len()));
            if self.waiting.is_empty() {
                self.waiting.reserve_exact(PIECE);
            }
            self.waiting.extend_from_slice(part);
            rest = after;
            if self.waiting.len() == PIECE {
                self.flush(WriteAction::Write).await?;
            }
        }
        Ok(())
    }

    /// Sends what is waiting as soon as the piece before it is stored.
    async fn flush(&mut self, action: WriteAction) -> Result<(), Fault> {
        self.stored(PIECE_LIMIT).await?;
        let is_last = action == WriteAction::Commit;
        let data = std::mem::take(&mut self.waiting);
        let length = size_of(&data);
        let request = WriteContentRequest {
            action: action.into(),
            total: i64::try_from(self.blob.size).unwrap_or(i64::MAX),
            expected: self.blob.digest.to_string(),
            offset: i64::try_from(self.sent).unwrap_or(i64::MAX),
            data,
            labels: if is_last { plain(&self.blob.labels) } else { HashMap::new() },
            ..Default::default()
        };
        self.writing.send(request).await;
        self.sent += length;
        self.is_due = true;
        Ok(())
    }

    /// Waits until what was sent is stored.
    async fn stored(&mut self, limit: Duration) -> Result<(), Fault> {
        if std::mem::take(&mut self.is_due) {
            self.writing.answer(&self.link, limit).await?;
        }
        Ok(())
    }

    /// Everything is there now, or all that came before it ended.
    async fn finish(mut self) -> Result<(), Fault> {
        if self.offset() < self.blob.size {
            // What is there of it is good for the next try.
            self.flush(WriteAction::Write).await?;
            self.stored(PIECE_LIMIT).await?;
            let NewBlob { digest, size, .. } = &self.blob;
            return Err(Fault::refused(format!("blob `{digest}` is not {size} bytes long")));
        }
        let committed = async {
            self.flush(WriteAction::Commit).await?;
            self.stored(LAYER_LIMIT).await
        };
        match committed.await {
            // Another one was faster.
            Err(fault) if fault.kind == ErrorKind::Conflict => Ok(()),
            Err(fault) if fault.says(OTHER_DIGEST) => {
                abort(&self.link, reference(self.blob.digest.as_str())).await;
                Err(Fault::conflict(fault.to_string()))
            }
            // As on a full disk: what is there may be right.
            Err(fault) => Err(fault),
            Ok(()) => Ok(()),
        }
    }
}

impl BlobWriter for Writer {
    fn offset(&self) -> u64 {
        self.sent + size_of(&self.waiting)
    }

    fn write(&mut self, piece: Bytes) -> Written<'_> {
        Box::pin(async move {
            let written = self.take(&piece).await;
            written.during(verb::OPEN_BLOB, &self.blob.digest)
        })
    }

    fn commit(self: Box<Self>) -> Written<'static> {
        Box::pin(async move {
            let digest = self.blob.digest.clone();
            self.finish().await.during(verb::OPEN_BLOB, digest)
        })
    }
}

fn size_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// A blob that is being written. Its reference is locked until the stream ends.
struct Writing {
    requests: mpsc::Sender<WriteContentRequest>,
    answers: tonic::Streaming<containerd_client::services::v1::WriteContentResponse>,
    /// What was there when it was opened.
    offset: u64,
}

impl Writing {
    /// Asks for the reference before anything is read of the blob. `Conflict`: it is there.
    async fn open(link: &Link, reference: &str, digest: &str, size: u64) -> Result<Self, Fault> {
        let (requests, queue) = mpsc::channel(1);
        let status = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total: i64::try_from(size).unwrap_or(i64::MAX),
            expected: digest.to_owned(),
            ..Default::default()
        };
        let sent = requests.try_send(status);
        debug_assert!(sent.is_ok(), "the queue is new and has room");
        let call = async { link.content().write(ReceiverStream::new(queue)).await };
        let mut answers = link.answer(PIECE_LIMIT, call).await?;
        let status = link.next(PIECE_LIMIT, &mut answers).await?;
        let offset = u64::try_from(status.offset).unwrap_or_default();
        Ok(Self { requests, answers, offset })
    }

    /// Sends one request. Waits for nothing: the one before it was answered.
    async fn send(&mut self, request: WriteContentRequest) {
        // A closed queue means that the answer says why.
        drop(self.requests.send(request).await);
    }

    /// Waits for the answer to a request.
    async fn answer(&mut self, link: &Link, limit: Duration) -> Result<(), Fault> {
        link.next(limit, &mut self.answers).await.map(drop)
    }

    /// Sends everything and commits. What an earlier attempt left under the reference is overwritten.
    async fn send_all(mut self, link: &Link, blob: Blob<'_>) -> Result<(), Fault> {
        let Blob { digest, size, labels, content } = blob;
        let mut offset = 0_u64;
        loop {
            let mut data = vec![0; PIECE];
            let length = fill(content, &mut data).map_err(|error| {
                Fault::refused(format!("blob `{digest}` cannot be read: {error}"))
            })?;
            data.truncate(length);
            let end = offset + u64::try_from(length).unwrap_or(u64::MAX);
            let is_last = length < PIECE || end >= size;
            if end > size || (is_last && end != size) {
                return Err(Fault::refused(format!("blob `{digest}` is not {size} bytes long")));
            }
            let action = if is_last { WriteAction::Commit } else { WriteAction::Write };
            let request = WriteContentRequest {
                action: action.into(),
                total: i64::try_from(size).unwrap_or(i64::MAX),
                expected: digest.clone(),
                offset: i64::try_from(offset).unwrap_or(i64::MAX),
                data,
                labels: if is_last { plain(&labels) } else { HashMap::new() },
                ..Default::default()
            };
            let limit = if is_last { LAYER_LIMIT } else { PIECE_LIMIT };
            self.send(request).await;
            self.answer(link, limit).await?;
            if is_last {
                return Ok(());
            }
            offset = end;
        }
    }
}

/// Reads until the buffer is full or the end has come.
fn fill(content: &mut dyn std::io::Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match content.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
