//! The manifest files, in memory: as the source would scan them, and as the rules understand them by themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use evenkeel::desired::{BootTime, FileState, Root, Scan, Source};
use evenkeel::manifest::{self, Reading};
use evenkeel::workload::Workload;

use crate::faults::Fault;
use crate::script::{Content, Doc};

pub(crate) fn source() -> Source {
    Source::new(Path::new("/"), Path::new("/manifests"))
}

/// A directory of manifests.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    files: BTreeMap<String, File>,
    locked: BTreeSet<String>,
    device: Option<u64>,
    /// Something is different since the last scan.
    changed: bool,
    last_change: BootTime,
}

#[derive(Debug, Clone)]
struct File {
    settled: Option<Content>,
    half: Option<Content>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self {
            files: BTreeMap::new(),
            locked: BTreeSet::new(),
            device: Some(1),
            changed: true,
            last_change: BootTime::default(),
        }
    }

    pub(crate) fn write(&mut self, path: &str, content: Content) {
        self.files.insert(path.to_owned(), File { settled: Some(content), half: None });
        self.changed = true;
    }

    pub(crate) fn begin(&mut self, path: &str, content: Content) {
        let settled = self.files.remove(path).and_then(|it| it.settled);
        self.files.insert(path.to_owned(), File { settled, half: Some(content) });
        self.changed = true;
    }

    pub(crate) fn finish(&mut self, path: &str) {
        if let Some(file) = self.files.get_mut(path)
            && let Some(half) = file.half.take()
        {
            file.settled = Some(half);
            self.changed = true;
        }
    }

    pub(crate) fn finish_all(&mut self) {
        for path in self.files.keys().cloned().collect::<Vec<_>>() {
            self.finish(&path);
        }
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.files.remove(path);
        self.changed = true;
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if let Some(file) = self.files.remove(from) {
            self.files.insert(to.to_owned(), file);
            self.changed = true;
        }
    }

    pub(crate) fn lock(&mut self, path: &str, readable: bool) {
        if readable {
            self.locked.remove(path);
        } else {
            self.locked.insert(path.to_owned());
        }
        self.changed = true;
    }

    pub(crate) fn unlock_all(&mut self) {
        self.locked.clear();
        self.changed = true;
    }

    pub(crate) fn set_root(&mut self, device: Option<u64>) {
        self.device = device;
        self.changed = true;
    }

    pub(crate) fn has_root(&self) -> bool {
        self.device.is_some()
    }

    pub(crate) fn clear(&mut self) {
        self.files.clear();
        self.changed = true;
    }

    /// A watcher that has seen nothing yet has no settled content of what is being written.
    pub(crate) fn forget(&mut self) {
        for file in self.files.values_mut().filter(|it| it.half.is_some()) {
            file.settled = None;
        }
        self.changed = true;
    }

    fn is_locked(&self, path: &str) -> bool {
        self.locked.contains(path)
    }

    /// What the source would hand over.
    pub(crate) fn scan(&mut self, at: BootTime, fault: Option<Fault>) -> Scan {
        if std::mem::take(&mut self.changed) {
            self.last_change = at;
        }
        let root = match self.device {
            None => Root::Missing,
            Some(_) if self.is_locked(".") && fault != Some(Fault::RootReadInPart) => {
                Root::Unreadable("permission denied".to_owned())
            }
            Some(device) => Root::Directory { device },
        };
        let mut files = BTreeMap::new();
        if matches!(root, Root::Directory { .. }) {
            for (path, file) in &self.files {
                if self.is_locked(".") && Some(path) == self.files.keys().next_back() {
                    continue;
                }
                let directory = path.split_once('/').map(|it| it.0);
                let refused = [directory, Some(path.as_str())];
                if fault == Some(Fault::DirectoryIsEmpty)
                    && directory.is_some_and(|it| self.is_locked(it))
                {
                    continue;
                }
                if let Some(refused) = refused.into_iter().flatten().find(|it| self.is_locked(it)) {
                    files.insert(PathBuf::from(refused), FileState::Settled(unreadable(refused)));
                    continue;
                }
                let state = match &file.settled {
                    Some(content) => FileState::Settled(reading(path, content)),
                    None => FileState::Unsettled,
                };
                files.insert(PathBuf::from(path), state);
            }
            // An empty directory that cannot be read may hold anything.
            let is_hidden =
                |it: &&String| !it.contains('.') && fault != Some(Fault::DirectoryIsEmpty);
            for path in self.locked.iter().filter(is_hidden) {
                files.insert(PathBuf::from(path), FileState::Settled(unreadable(path)));
            }
        }
        Scan {
            source: source(),
            at,
            last_change: self.last_change,
            root,
            files,
            below: BTreeMap::new(),
        }
    }

    /// The same, by the rules' own understanding.
    pub(crate) fn truth(&self) -> Truth {
        let mut truth = Truth { device: self.device, ..Truth::default() };
        if self.device.is_none() || self.is_locked(".") {
            truth.blocked = true;
            truth.device = None;
            return truth;
        }
        truth.blocked = self.locked.iter().any(|it| !it.contains('.'));
        for (path, file) in &self.files {
            let directory = path.split_once('/').map(|it| it.0);
            if self.is_locked(path) || directory.is_some_and(|it| self.is_locked(it)) {
                truth.blocked = true;
                continue;
            }
            match &file.settled {
                None => truth.blocked = true,
                Some(Content::Spoilt(how)) => match how.as_str() {
                    "comments" | "foreign" => {
                        truth.partial.insert(path.clone());
                    }
                    _ => truth.blocked = true,
                },
                Some(Content::Docs(docs)) => {
                    for doc in docs {
                        truth.documents += 1;
                        truth.valid += usize::from(!doc.is_bad());
                        truth.docs.entry(doc.name.clone()).or_default().push(doc.clone());
                    }
                }
            }
        }
        truth
    }
}

/// What the files say at one time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Truth {
    pub(crate) device: Option<u64>,
    /// All documents by name.
    docs: BTreeMap<String, Vec<Doc>>,
    /// Something may hide any workload.
    pub(crate) blocked: bool,
    /// Files that hold what came from them.
    pub(crate) partial: BTreeSet<String>,
    pub(crate) documents: usize,
    pub(crate) valid: usize,
}

/// What the files say of one workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Nothing,
    /// It is named, and cannot be acted on.
    Invalid,
    Valid(&'a Doc),
}

impl Truth {
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.docs.keys()
    }

    fn own(&self, name: &str) -> Said<'_> {
        match self.docs.get(name).map(Vec::as_slice) {
            None | Some([]) => Said::Nothing,
            Some([first, others @ ..]) => {
                if first.is_bad() || others.iter().any(|it| it != first) {
                    Said::Invalid
                } else {
                    Said::Valid(first)
                }
            }
        }
    }

    /// Also by the rules about donors.
    pub(crate) fn said(&self, name: &str) -> Said<'_> {
        let Said::Valid(doc) = self.own(name) else { return self.own(name) };
        let mut at = doc;
        let mut steps = 0;
        while let Some(donor) = at.donor().filter(|_| at.field("state") != "absent") {
            // What is further up the chain is the affair of those who join it, but a circle is everybody's in it.
            match self.own(donor) {
                Said::Nothing if steps == 0 => return Said::Invalid,
                Said::Valid(next) => {
                    if steps == 0 && next.field("ipc") != "shareable" && next.donor().is_none() {
                        return Said::Invalid;
                    }
                    if next.name == name {
                        return Said::Invalid;
                    }
                    at = next;
                }
                Said::Nothing | Said::Invalid => break,
            }
            steps += 1;
            if steps > self.docs.len() {
                break;
            }
        }
        Said::Valid(doc)
    }
}

impl Doc {
    pub(crate) fn field(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    pub(crate) fn donor(&self) -> Option<&str> {
        self.field("ipc").strip_prefix("container:")
    }

    fn is_bad(&self) -> bool {
        self.fields.contains_key("bad") || self.donor() == Some(self.name.as_str())
    }

    /// What it means to the product; `None`: it is invalid by itself.
    pub(crate) fn workload(&self) -> Option<Arc<Workload>> {
        type Known = Mutex<HashMap<Doc, Option<Arc<Workload>>>>;
        static KNOWN: OnceLock<Known> = OnceLock::new();
        let known = KNOWN.get_or_init(Mutex::default);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .entry(self.clone())
            .or_insert_with(|| {
                let reading = manifest::read(Path::new("/x.yaml"), self.yaml().as_bytes());
                reading.documents.into_iter().find_map(|it| match it.content {
                    manifest::Content::Workload { workload, .. } => workload.map(Arc::from),
                    manifest::Content::Foreign { .. } | manifest::Content::Unreadable { .. } => {
                        None
                    }
                })
            })
            .clone()
    }

    fn yaml(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!(
            "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: {}\nspec:\n  command: [run]\n",
            self.name
        );
        let mut restart = Vec::new();
        let line = |text: &mut String, it: String| {
            writeln!(text, "  {it}").expect("a string takes everything");
        };
        let image = if self.field("image").is_empty() { "one" } else { self.field("image") };
        line(&mut text, format!("image: localhost/{image}:1"));
        for (key, value) in &self.fields {
            match key.as_str() {
                "args" => line(&mut text, format!("args: [\"{value}\"]")),
                "ipc" => line(&mut text, format!("ipcMode: {value}")),
                "shm" => line(&mut text, format!("shmSize: {value}")),
                "state" => line(&mut text, format!("state: {value}")),
                "stop" => line(&mut text, format!("stop: {{timeout: {value}}}")),
                "restart" => restart.push(format!("policy: {value}")),
                "retries" => restart.push(format!("maxRetries: {value}")),
                "follow" => restart.push(format!("onDonorChange: {value}")),
                "boot" => restart.push(format!("onBoot: {value}")),
                "clear" => line(&mut text, format!("removeOnExit: {value}")),
                "bind" => {
                    let source = mount(value).display().to_string();
                    let create = !self.field("make").is_empty();
                    line(
                        &mut text,
                        format!(
                            "mounts: [{{type: bind, source: {source}, target: /data, create: {create}}}]"
                        ),
                    );
                }
                "bad" => line(&mut text, format!("unheardOf: {value}")),
                _ => {}
            }
        }
        if !restart.is_empty() {
            line(&mut text, format!("restart: {{{}}}", restart.join(", ")));
        }
        text
    }
}

/// What a document's `bind` names.
pub(crate) fn mount(name: &str) -> PathBuf {
    Path::new("/srv").join(name)
}

fn text(content: &Content) -> String {
    match content {
        Content::Docs(docs) => {
            let docs: Vec<String> = docs.iter().map(Doc::yaml).collect();
            docs.join("---\n")
        }
        Content::Spoilt(how) => match how.as_str() {
            "syntax" => "a: [1\nb: }".to_owned(),
            "comments" => "# nothing\n".to_owned(),
            "foreign" => "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: other\n".to_owned(),
            "nameless" => {
                "apiVersion: evenkeel/v1\nkind: Container\nspec:\n  image: localhost/one:1\n"
                    .to_owned()
            }
            _ => String::new(),
        },
    }
}

/// Reads through the product's own loader; each text once.
fn reading(path: &str, content: &Content) -> Arc<Reading> {
    type Known = Mutex<HashMap<(String, String), Arc<Reading>>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let text = text(content);
    let known = KNOWN.get_or_init(Mutex::default);
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(known.entry((path.to_owned(), text)).or_insert_with_key(|(path, text)| {
        Arc::new(manifest::read(&source().path().join(path), text.as_bytes()))
    }))
}

fn unreadable(path: &str) -> Arc<Reading> {
    let message = "cannot be read: permission denied";
    Arc::new(manifest::unreadable(&source().path().join(path), "file-unreadable", message))
}

/// Quiet after an event of a file before a scan, as the source has it.
pub(crate) const QUIET: Duration = Duration::from_millis(50);

/// Between scans when nothing happens.
pub(crate) const RESYNC: Duration = Duration::from_secs(45);
