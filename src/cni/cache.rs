//! What attachments were made with, a file each: for CHECK and DEL, and to find those of nobody.
//!
//! An entry is there before the first plugin is called and goes after the last one has taken back what it did, so
//! whatever a plugin may have left is named by one. It has the network's configuration of then: what was added with it
//! is deleted with it, whatever has become of the file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::configuration::Network;
use super::json;
use super::{Allocation, Attachment, Error, Key, read_file};
use crate::rundir::{Durability, write_atomically};

/// Largest entry that is read: a configuration, a result and what surrounds them.
const LARGEST: u64 = 8 << 20;

/// Marks the shape of an entry.
const KIND: &str = "evenkeel/cni/1";

/// The directory with the entries. Making one touches nothing.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

/// One attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    kind: String,
    network: String,
    attachment: Attachment,
    /// The last plugin has done its part. Otherwise whoever added it was ended, or could not undo it.
    // Invariant: if so, there is a result, and it can be understood.
    complete: bool,
    /// As it was when this was added.
    // Invariant: that of a network with this name.
    configuration: Box<RawValue>,
    /// Of the last plugin that has done its part, as it printed it.
    result: Option<Box<RawValue>>,
}

impl Entry {
    pub(super) fn begin(network: &Network, attachment: &Attachment) -> Self {
        Self {
            kind: KIND.to_owned(),
            network: network.name().to_owned(),
            attachment: attachment.clone(),
            complete: false,
            configuration: network.raw().to_owned(),
            result: None,
        }
    }

    pub(super) fn advance(&mut self, result: Box<RawValue>, complete: bool) {
        self.result = Some(result);
        self.complete = complete;
    }

    pub(super) fn result(&self) -> Option<&RawValue> {
        self.result.as_deref()
    }

    pub fn key(&self) -> Key {
        Key::of(&self.network, &self.attachment)
    }

    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// What was added, if that came to its end.
    pub fn allocation(&self) -> Option<Allocation> {
        let result = self.result.as_deref().filter(|_| self.complete)?;
        Some(Allocation::of_result(result).expect("it was looked at when the entry was read"))
    }

    /// The configuration that it was added with.
    pub(super) fn configuration(&self) -> Network {
        Network::parse(self.configuration.get()).expect("it was looked at when the entry was read")
    }
}

/// All entries, in order of their keys.
#[derive(Debug, Default)]
pub struct Listing {
    pub entries: Vec<Entry>,
    pub broken: Vec<BrokenEntry>,
}

/// A file that does not say what was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenEntry {
    pub path: PathBuf,
    /// By the file's name: what can be deleted with the network's present configuration. `None`: not one of ours.
    pub key: Option<Key>,
    pub reason: String,
}

impl Cache {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// All that has been added, or begun, and not been deleted. What cannot be read hides nothing else.
    pub fn list(&self) -> Result<Listing, Error> {
        let failed =
            |cause| Error::Cache { operation: "list", path: self.directory.clone(), cause };
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            other => other.map_err(failed)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            // Left by a writer that was killed before it could rename it.
            if path.file_name().is_some_and(|it| !it.as_encoded_bytes().starts_with(b".")) {
                paths.push(path);
            }
        }
        paths.sort();
        let mut listing = Listing::default();
        for path in paths {
            match read(&path) {
                Ok(Some(entry)) => listing.entries.push(entry),
                Ok(None) => {}
                Err(reason) => {
                    listing.broken.push(BrokenEntry { key: key_of(&path), path, reason });
                }
            }
        }
        Ok(listing)
    }

    /// The entry of an attachment, if there is one.
    pub fn read(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let path = self.path(key)?;
        read(&path).map_err(|reason| Error::CacheBroken { path, reason })
    }

    /// Outlives a power cut where that is possible: addresses may be kept on a disk, and then have to be found again.
    pub(super) fn write(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.path(&entry.key())?;
        let mut text = json::raw(entry).get().to_owned();
        text.push('\n');
        write_atomically(&path, text.as_bytes(), Durability::Disk).map_err(|it| Error::Cache {
            operation: it.operation,
            path: it.path,
            cause: it.cause,
        })
    }

    pub(super) fn remove(&self, key: &Key) -> Result<(), Error> {
        let path = self.path(key)?;
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error::Cache { operation: "remove", path, cause })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, key: &Key) -> Result<PathBuf, Error> {
        key.check()?;
        Ok(self.directory.join(key.file_name()))
    }
}

fn key_of(path: &Path) -> Option<Key> {
    Key::of_file_name(path.file_name()?.to_str()?)
}

/// An entry that is what its name says, and can be deleted.
fn read(path: &Path) -> Result<Option<Entry>, String> {
    let Some(text) = read_file(path, LARGEST)? else { return Ok(None) };
    // What is in it has a depth that was looked at, and is one deeper here.
    let entry: Entry = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if entry.kind != KIND {
        return Err(format!("it is of another kind: `{}`", json::quoted(&entry.kind, 60)));
    }
    if key_of(path) != Some(entry.key()) {
        return Err(format!("it is about {}", entry.key()));
    }
    entry.attachment.check().map_err(|error| error.to_string())?;
    let network = Network::parse(entry.configuration.get()).map_err(|error| error.to_string())?;
    if network.name() != entry.network {
        return Err(format!("its configuration is that of `{}`", network.name()));
    }
    match &entry.result {
        Some(result) => drop(Allocation::of_result(result)?),
        None if entry.complete => return Err("it has no result".to_owned()),
        None => {}
    }
    Ok(Some(entry))
}
