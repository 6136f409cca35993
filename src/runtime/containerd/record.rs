//! How an instance is written on its container object, and read from it.
//!
//! Labels hold what people and filters look for; what is long, or the user's own, is JSON in extensions. A user's
//! labels never become containerd's: some of those make containerd act by itself.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use prost_types::Any;

use containerd_client::services::v1::Container;

use super::link::Fault;
use crate::desired::{Origin, Source};
use crate::observed::{Image, ImageConfig, ImagePlace};
use crate::runtime::{self, NewInstance, Update};
use crate::workload::{InstanceId, IpcDefaults, Name, Revision};

pub(super) const NAME: &str = "evenkeel/name";
pub(super) const REVISION: &str = "evenkeel/revision";
const SOURCE: &str = "evenkeel/source";
const ORIGIN: &str = "evenkeel/origin";
const IPC_MODE: &str = "evenkeel/ipc-mode";
const SHM_SIZE: &str = "evenkeel/shm-size";
const IMAGE_DIGEST: &str = "evenkeel/image-digest";
const RUN: &str = "evenkeel/run";
const END: &str = "evenkeel/end";
const ENDING: &str = "evenkeel/ending";

/// On the record of an image of ours: how it came and its name, since when nothing uses it, and that a person wants it kept.
pub(super) const IMAGE: &str = "evenkeel/image";
pub(super) const UNUSED: &str = "evenkeel/unused-since";
pub(super) const PIN: &str = "evenkeel/pin";

/// On a lease of ours, with its own ID.
pub(super) const LEASE: &str = "evenkeel/lease";

/// On a container object that stands in for a lost one.
pub(super) const READOPTED: &str = "evenkeel/readopted";

const MANIFEST_EXTENSION: &str = "evenkeel/manifest.v1";
const IMAGE_EXTENSION: &str = "evenkeel/image.v1";
const ORIGIN_EXTENSION: &str = "evenkeel/origin.v1";

/// containerd refuses a label whose key and value are longer together.
const LABEL_LIMIT: usize = 4096;

/// A part of a container object: labels and extensions. An empty label removes one that is there.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Record {
    pub(super) labels: HashMap<String, String>,
    pub(super) extensions: HashMap<String, Any>,
}

impl Record {
    /// Everything that is recorded when an instance is made.
    pub(super) fn of(instance: &NewInstance) -> Result<Self, Fault> {
        let NewInstance { id: _, revision, origin, workload, defaults, image } = instance;
        let mut record = Self::default();
        record.label(NAME, workload.name.as_str())?;
        record.label(REVISION, revision.as_str())?;
        record.label(IPC_MODE, &defaults.mode.to_string())?;
        record.label(SHM_SIZE, &defaults.shm_size.to_string())?;
        record.label(IMAGE_DIGEST, &image.digest)?;
        record.origin(origin)?;
        record.extension(MANIFEST_EXTENSION, workload)?;
        record.extension(IMAGE_EXTENSION, &image.config)?;
        record.labels.retain(|_, value| !value.is_empty());
        Ok(record)
    }

    /// What an update changes; the spec is not part of it.
    pub(super) fn changed(update: &Update) -> Result<Self, Fault> {
        let Update { origin, workload, run, end, ending, spec: _ } = update;
        let mut record = Self::default();
        if let Some(origin) = origin {
            record.origin(origin)?;
        }
        if let Some(workload) = workload {
            record.extension(MANIFEST_EXTENSION, workload)?;
        }
        if let Some(run) = run {
            record.label(RUN, &json(run)?)?;
            record.label(ENDING, "")?;
        }
        if let Some(end) = end {
            record.label(END, &json(end)?)?;
        }
        match ending {
            Some(0) => record.label(ENDING, "")?,
            Some(run) => record.label(ENDING, &run.to_string())?,
            None => {}
        }
        Ok(record)
    }

    /// The field mask that writes these labels and extensions and leaves all others.
    pub(super) fn mask(&self) -> Vec<String> {
        let labels = self.labels.keys().map(|key| format!("labels.{key}"));
        labels.chain(self.extensions.keys().map(|key| format!("extensions.{key}"))).collect()
    }

    fn label(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        if key.len() + value.len() > LABEL_LIMIT {
            return Err(Fault::refused(format!(
                "label `{key}` would be longer than {LABEL_LIMIT} bytes"
            )));
        }
        self.labels.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn extension(&mut self, key: &str, value: &impl serde::Serialize) -> Result<(), Fault> {
        let value = json(value)?.into_bytes();
        self.extensions.insert(key.to_owned(), Any { type_url: key.to_owned(), value });
        Ok(())
    }

    /// In labels where it fits; else in an extension, with the labels removed so that only one of them counts.
    fn origin(&mut self, origin: &Origin) -> Result<(), Fault> {
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| {
                Fault::refused(format!("the path `{}` is not UTF-8; rename it", path.display()))
            })
        };
        let source = text(origin.source.path())?;
        let place = format!("{}#{}", text(&origin.file)?, origin.document);
        if SOURCE.len() + source.len() > LABEL_LIMIT || ORIGIN.len() + place.len() > LABEL_LIMIT {
            self.extension(ORIGIN_EXTENSION, origin)?;
            self.label(SOURCE, "")?;
            self.label(ORIGIN, "")
        } else {
            self.label(SOURCE, &source)?;
            self.label(ORIGIN, &place)
        }
    }
}

/// What a container object of our namespace turned out to be.
#[derive(Debug)]
pub(super) enum Kind {
    /// An instance, but for its task and whether its snapshot is there.
    Ours(Box<runtime::Container>),
    /// It stands in for the lost object of a task.
    Readopted(InstanceId),
    /// Somebody else's, or not readable as ours: never touched.
    Foreign,
}

/// Reads a container object.
pub(super) fn read(container: &Container) -> Kind {
    match (container.labels.contains_key(READOPTED), container.id.parse()) {
        (true, Ok(id)) => return Kind::Readopted(id),
        (true, Err(_)) => return Kind::Foreign,
        (false, _) => {}
    }
    match instance(container) {
        Some(instance) => Kind::Ours(Box::new(instance)),
        None => Kind::Foreign,
    }
}

fn instance(container: &Container) -> Option<runtime::Container> {
    let labels = &container.labels;
    let name: Name = labels.get(NAME)?.parse().ok()?;
    let config: ImageConfig = extension(container, IMAGE_EXTENSION).unwrap_or_default();
    let built_in = IpcDefaults::default();
    Some(runtime::Container {
        id: container.id.parse().ok()?,
        name,
        revision: Revision::recorded(labels.get(REVISION)?),
        origin: read_origin(container).unwrap_or_else(nowhere),
        workload: extension(container, MANIFEST_EXTENSION),
        defaults: IpcDefaults {
            mode: labels.get(IPC_MODE).and_then(|it| it.parse().ok()).unwrap_or(built_in.mode),
            shm_size: labels
                .get(SHM_SIZE)
                .and_then(|it| it.parse().ok())
                .unwrap_or(built_in.shm_size),
        },
        image: Image {
            name: container.image.clone(),
            digest: labels.get(IMAGE_DIGEST).cloned().unwrap_or_default(),
            config,
            place: ImagePlace::Store,
        },
        has_snapshot: false,
        run: labels.get(RUN).and_then(|it| serde_json::from_str(it).ok()),
        end: labels.get(END).and_then(|it| serde_json::from_str(it).ok()),
        ending: labels.get(ENDING).and_then(|it| it.parse().ok()),
        task: crate::observed::Task::None,
    })
}

fn read_origin(container: &Container) -> Option<Origin> {
    let Some((source, place)) = container.labels.get(SOURCE).zip(container.labels.get(ORIGIN))
    else {
        return extension(container, ORIGIN_EXTENSION);
    };
    let (file, document) = place.rsplit_once('#')?;
    Some(Origin {
        source: Source::new(Path::new("/"), Path::new(source)),
        file: PathBuf::from(file),
        document: document.parse().ok()?,
    })
}

/// The origin of an instance whose record of it was damaged: no manifest is there, so that nothing follows from its
/// absence, and a document of that name takes the instance over.
fn nowhere() -> Origin {
    Origin {
        source: Source::new(Path::new("/"), Path::new("/")),
        file: PathBuf::new(),
        document: 0,
    }
}

fn extension<T: serde::de::DeserializeOwned>(container: &Container, key: &str) -> Option<T> {
    serde_json::from_slice(&container.extensions.get(key)?.value).ok()
}

fn json(value: &impl serde::Serialize) -> Result<String, Fault> {
    serde_json::to_string(value)
        .map_err(|error| Fault::refused(format!("it cannot be recorded: {error}")))
}

/// The labels of an instance's snapshot.
pub(super) fn snapshot_labels(instance: &NewInstance) -> HashMap<String, String> {
    HashMap::from([
        (NAME.to_owned(), instance.workload.name.to_string()),
        (REVISION.to_owned(), instance.revision.to_string()),
    ])
}

/// Whether the object was made for this very instance.
pub(super) fn is_of(labels: &HashMap<String, String>, instance: &NewInstance) -> bool {
    labels.get(NAME).is_some_and(|it| it == instance.workload.name.as_str())
        && labels.get(REVISION).is_some_and(|it| it == instance.revision.as_str())
}

/// `name=="a"` for containerd's filters.
pub(super) fn filter(field: &str, value: &str) -> String {
    format!("{field}==\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The labels that garbage collection follows, as containerd wants them.
pub(super) fn plain(labels: &BTreeMap<String, String>) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
