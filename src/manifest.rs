//! Manifest text → documents → JSON Schema → [`Workload`]s, or [`Problem`]s; the only place that knows YAML.
//!
//! Does not look at other files, at the host, or at what runs: [`read`] is a function of one file's bytes. Rules
//! across documents are checked by [`crate::desired`].

mod codes;
mod configuration;
mod explain;
pub mod render;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::codes::CODES;
pub use self::configuration::{configuration, empty_configuration};
use self::explain::Explainer;
pub(crate) use self::explain::nearest;
use self::yaml::{Entry, Flaw, Kind, Mark, Node, Parsed, shorten};
use crate::schema;
use crate::workload::{API_VERSION, DEV_SHM, KIND, Name, Workload};

/// Largest file that is read. A manifest is a few hundred bytes; the limit bounds what a hostile one costs.
pub const FILE_LIMIT: usize = 256 * 1024;

/// Most problems of one file that are listed; what is more is counted.
pub const PROBLEM_LIMIT: usize = 1_000;

/// Longest source line that is kept with a problem, in characters; a longer one is shown from near the value.
const LINE_LIMIT: usize = 240;

/// How much of a long source line is shown before the value, in characters.
const LINE_BEFORE: usize = 40;

/// Where a document stands: the path of its file as it is shown to the user, and its index in that file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// Path as the user would type it: the root as given, joined with the path below it.
    pub file: PathBuf,
    /// From 1; 0 when the problem concerns the whole file.
    pub line: u32,
    /// From 1, in characters; 0 when the problem concerns the whole file.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Error,
    Warning,
}

/// Something wrong in the user's file. Data, not an error: all of them are listed, and other documents go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    #[serde(flatten)]
    pub position: Position,
    pub severity: Severity,
    /// A stable kebab-case code: `ipc-mode-invalid`.
    pub code: &'static str,
    /// JSON pointer of the value within its document: `/spec/ipcMode`; empty for the whole document or file.
    pub pointer: String,
    /// A lower-case fragment without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Text that would put the value right, for editors and the shown patch.
    pub fix: Option<String>,
    /// The workload whose document it stands in, if that has a readable name.
    #[serde(skip)]
    pub workload: Option<Name>,
    /// Another place that belongs to it: the first of two equal names.
    pub related: Option<Position>,
    /// Bytes of the value within the file, for showing it; empty for the whole file.
    #[serde(skip)]
    pub bytes: Range<usize>,
    /// The source line, without its end, for showing it; empty for the whole file.
    #[serde(skip)]
    pub source_line: String,
}

/// What one file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// In the order of the file. A broken document keeps its index.
    pub documents: Vec<Document>,
    /// All problems of this file alone, those of its documents included, in the order of their positions.
    pub problems: Vec<Problem>,
    /// Set when the file as a whole may hide any workload (unreadable, too large, not UTF-8, empty); a code.
    pub unreadable: Option<&'static str>,
    /// The file has no document at all, but is not empty: only comments, or only `---`.
    pub comments_only: bool,
}

/// One document of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Position of the document's first value.
    pub position: Position,
    /// From 0, counting the documents that are not empty.
    pub index: usize,
    pub content: Content,
}

/// What a document turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A document of ours that names a workload. `None`: it has problems.
    Workload { name: Name, workload: Option<Box<Workload>>, places: Places },
    /// Of another API group, or with neither `apiVersion` nor `kind`. `names` is what it has as `metadata.name`.
    Foreign { name: Option<String> },
    /// A syntax error, or a document of ours without a readable, valid name: it may hide any workload.
    Unreadable { code: &'static str },
}

/// Where the values stand that rules across documents point at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    pub name: Option<Place>,
    pub ipc_mode: Option<Place>,
}

/// One value's place, enough to make a [`Problem`] of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub position: Position,
    pub pointer: String,
    pub bytes: Range<usize>,
    pub source_line: String,
}

/// Reads one file. Total: every input gives a [`Reading`], in time and memory bounded by [`FILE_LIMIT`].
///
/// `file` is only for showing. A file that ends in `.json` is read in the same way, since JSON is YAML.
pub fn read(file: &Path, bytes: &[u8]) -> Reading {
    if bytes.len() > FILE_LIMIT {
        return too_large(file, bytes);
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let hint = match bytes {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "this is UTF-16; save the file as UTF-8",
                _ => "save the file as UTF-8",
            };
            return hidden(file, "not-utf8", "not valid UTF-8 from here on", hint, &good);
        }
    };
    if let Some(at) = text.find('\0') {
        return hidden(
            file,
            "nul-byte",
            "a NUL character",
            "manifests are text; is this the right file?",
            &text[..at],
        );
    }
    let base = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let text = &text[base..];
    if text.trim().is_empty() {
        let hint = "remove the file, or write the manifest again; until then nothing of its source is removed";
        return hidden(file, "empty-file", "the file is empty", hint, "");
    }
    let mut reader = Reader::new(file, text, base);
    let parsed = yaml::documents(text, base);
    let comments_only = parsed.is_empty();
    if comments_only {
        let message = "the file has nothing but comments".to_owned();
        let problem = Problem::of_file(file, Severity::Warning, "comments-only", message);
        let hint = "workloads that came from this file are kept; remove the file to remove them";
        reader.problems.push(Problem { hint: Some(hint.to_owned()), ..problem });
    }
    let documents = parsed
        .into_iter()
        .enumerate()
        .map(|(index, parsed)| {
            let before = reader.problems.len();
            let document = reader.document(index, parsed);
            if let Content::Workload { name, .. } = &document.content {
                for problem in &mut reader.problems[before..] {
                    problem.workload = Some(name.clone());
                }
            }
            document
        })
        .collect::<Vec<_>>();
    Reading { documents, problems: reader.finish(), unreadable: None, comments_only }
}

/// The reading of a file over [`FILE_LIMIT`], of which only a beginning was read.
///
/// It may hide any workload, unless its first document says that it is not for us.
pub fn too_large(file: &Path, prefix: &[u8]) -> Reading {
    let text = match std::str::from_utf8(&prefix[..prefix.len().min(FILE_LIMIT)]) {
        Ok(text) => text,
        // Most likely cut inside a character.
        Err(error) => std::str::from_utf8(&prefix[..error.valid_up_to()]).unwrap_or_default(),
    };
    let head = yaml::head(text.trim_start_matches('\u{feff}'));
    let other_group = head.api_version.as_deref().is_some_and(|it| !is_ours(it));
    let neither = head.whole && head.api_version.is_none() && head.kind.is_none();
    if other_group || neither {
        let message =
            format!("not a manifest of Evenkeel, and larger than {} KiB", FILE_LIMIT >> 10);
        let problem = Problem::of_file(file, Severity::Warning, "foreign-document", message);
        let position = problem.position.clone();
        let document =
            Document { position, index: 0, content: Content::Foreign { name: head.name } };
        return Reading {
            documents: vec![document],
            problems: vec![problem],
            ..Reading::default()
        };
    }
    let message = format!("larger than {} KiB", FILE_LIMIT >> 10);
    let reading = unreadable(file, "file-too-large", message);
    let hint = "split it into several files; until then nothing of its source is removed";
    let problems = reading
        .problems
        .into_iter()
        .map(|it| Problem { hint: Some(hint.to_owned()), ..it })
        .collect();
    Reading { problems, ..reading }
}

/// The reading of a file that could not be read at all; `message` is a fragment that says why.
pub fn unreadable(file: &Path, code: &'static str, message: impl Into<String>) -> Reading {
    let problem = Problem::of_file(file, Severity::Error, code, message.into());
    Reading { problems: vec![problem], unreadable: Some(code), ..Reading::default() }
}

/// A file whose text cannot be used from the end of `before` on; all of it when that is empty.
fn hidden(file: &Path, code: &'static str, message: &str, hint: &str, before: &str) -> Reading {
    let reading = unreadable(file, code, message);
    let number = |it: usize| u32::try_from(it).unwrap_or(u32::MAX);
    let problems = reading.problems.into_iter().map(|problem| {
        let mut problem = Problem { hint: Some(hint.to_owned()), ..problem };
        if code != "empty-file" {
            let line = before.rsplit('\n').next().unwrap_or_default();
            problem.position.line = number(before.matches('\n').count() + 1);
            problem.position.column = number(line.chars().count() + 1);
            problem.bytes = before.len()..before.len();
        }
        problem
    });
    Reading { problems: problems.collect(), ..reading }
}

/// Whether an `apiVersion` is of our API group, in whatever version.
fn is_ours(api_version: &str) -> bool {
    let group = API_VERSION.split('/').next().unwrap_or_default();
    api_version.split('/').next() == Some(group)
}

impl Problem {
    /// A problem of a file as a whole.
    pub fn of_file(file: &Path, severity: Severity, code: &'static str, message: String) -> Self {
        Self {
            position: Position { file: file.to_owned(), line: 0, column: 0 },
            severity,
            code,
            pointer: String::new(),
            message,
            hint: None,
            fix: None,
            workload: None,
            related: None,
            bytes: 0..0,
            source_line: String::new(),
        }
    }

    /// A problem of a value whose place was kept.
    pub fn at(place: &Place, severity: Severity, code: &'static str, message: String) -> Self {
        Self {
            position: place.position.clone(),
            severity,
            code,
            pointer: place.pointer.clone(),
            message,
            hint: None,
            fix: None,
            workload: None,
            related: None,
            bytes: place.bytes.clone(),
            source_line: place.source_line.clone(),
        }
    }
}

/// Turns the documents of one file into what they mean.
struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    /// Offset of `text` in the file.
    base: usize,
    /// Offsets in `text` at which lines start.
    lines: Vec<usize>,
    problems: Vec<Problem>,
    /// Problems over the limit, and how bad the worst of them is.
    more: usize,
    worst: Severity,
}

impl<'a> Reader<'a> {
    fn new(file: &'a Path, text: &'a str, base: usize) -> Self {
        let bytes = text.as_bytes();
        let ends = |at: &usize| {
            bytes[*at] == b'\n' || bytes[*at] == b'\r' && bytes.get(at + 1) != Some(&b'\n')
        };
        let lines =
            std::iter::once(0).chain((0..bytes.len()).filter(ends).map(|at| at + 1)).collect();
        Self { file, text, base, lines, problems: Vec::new(), more: 0, worst: Severity::Warning }
    }

    fn finish(mut self) -> Vec<Problem> {
        if self.more > 0 {
            let message = format!("{} more problems are not listed", self.more);
            self.problems.push(Problem::of_file(
                self.file,
                self.worst,
                "too-many-problems",
                message,
            ));
        }
        self.problems
    }

    fn document(&mut self, index: usize, parsed: Parsed) -> Document {
        match parsed {
            Parsed::Broken(flaw) => {
                let position = self.position(&flaw.mark);
                let code = flaw.code;
                self.report(Severity::Error, flaw);
                Document { position, index, content: Content::Unreadable { code } }
            }
            Parsed::Document { root, flaws } => {
                let position = self.position(&root.mark);
                let content =
                    if is_foreign(&root) { self.foreign(&root) } else { self.ours(&root, flaws) };
                Document { position, index, content }
            }
        }
    }

    /// A document that is not for us. What is odd in it is its own reader's business.
    fn foreign(&mut self, root: &Node) -> Content {
        let api_version = root.get("apiVersion").and_then(Node::text);
        let near = |it: &str| explain::nearest(it, [API_VERSION]).is_some();
        let kind = root.get("kind").and_then(Node::text);
        let why = match (api_version, kind) {
            (Some(text), _) => format!("its `apiVersion` is `{}`", shorten(text)),
            (None, Some(kind)) => {
                format!("its `kind` is `{}`, and it has no `apiVersion`", shorten(kind))
            }
            (None, None) => "it has neither `apiVersion` nor `kind`".to_owned(),
        };
        let message = format!("not a manifest of Evenkeel: {why}");
        let entry = root.entry("apiVersion").filter(|_| api_version.is_some());
        let (pointer, mark) = entry.map_or((String::new(), root.mark.clone()), |it| {
            ("/apiVersion".to_owned(), it.node.mark.clone())
        });
        let flaw = Flaw::new("foreign-document", pointer, mark, message);
        let flaw = match api_version {
            Some(text) if near(text) || kind == Some(KIND) => {
                flaw.hint(format!("did you mean `{API_VERSION}`?")).fix(API_VERSION)
            }
            _ => flaw.hint("name the file in an `.evenkeelignore` to keep it out"),
        };
        self.report(Severity::Warning, flaw);
        let name = root.get("metadata").and_then(|it| it.get("name"));
        let name = name.and_then(|it| match &it.kind {
            Kind::Text(text) => Some(text.to_string()),
            Kind::Number(number) => Some(number.to_string()),
            Kind::Null | Kind::Bool(_) | Kind::List(_) | Kind::Map(_) => None,
        });
        Content::Foreign { name }
    }

    fn ours(&mut self, root: &Node, flaws: Vec<Flaw>) -> Content {
        let name = readable_name(root, &flaws);
        let other_version =
            root.get("apiVersion").filter(|it| it.text().is_some_and(|text| text != API_VERSION));
        let mut errors = flaws;
        let mut warnings = Vec::new();
        let mut json = None;
        if let Some(version) = other_version {
            // What else it says follows rules that are not known here.
            errors.push(version_flaw(version));
        } else {
            let value = root.json();
            let explainer = Explainer { root, text: self.text, base: self.base };
            let broken = schema::check(&value);
            let mut found: Vec<Flaw> = broken.iter().flat_map(|it| explainer.explain(it)).collect();
            // What is ambiguous as YAML has been said, and one place breaks one rule of a kind once.
            let said =
                |it: &&Flaw| matches!(it.code, "number-ambiguous" | "unknown-tag" | "nul-byte");
            let said: HashSet<&str> =
                errors.iter().filter(said).map(|it| it.pointer.as_str()).collect();
            found.retain(|it| !said.contains(it.pointer.as_str()));
            let mut seen = HashSet::new();
            found.retain(|flaw| seen.insert((flaw.pointer.clone(), flaw.code)));
            // A value of the wrong type breaks the rules about its text as well.
            let mistyped: HashSet<String> = found
                .iter()
                .filter(|it| it.code == "wrong-type")
                .map(|it| it.pointer.clone())
                .collect();
            found.retain(|it| it.code == "wrong-type" || !mistyped.contains(&it.pointer));
            errors.append(&mut found);
            errors.extend(self_join(root));
            errors.extend(duplicate_mounts(root));
            warnings = [unused_shm_size(root), duplicate_variables(root)].concat();
            json = Some(value);
        }
        let mut workload = None;
        if let (true, Some(json)) = (errors.is_empty(), json) {
            match schema::decode(&json) {
                Ok(decoded) => workload = Some(Box::new(decoded)),
                Err(text) => {
                    errors.push(Flaw::new("value-invalid", String::new(), root.mark.clone(), text));
                }
            }
        }
        let of_name = |it: &&Flaw| matches!(it.pointer.as_str(), "/metadata" | "/metadata/name");
        let hides = errors.iter().find(of_name).or(errors.first());
        let code = hides.map_or("name-invalid", |it| it.code);
        let errors = errors.into_iter().map(|it| (Severity::Error, it));
        let mut flaws: Vec<_> =
            errors.chain(warnings.into_iter().map(|it| (Severity::Warning, it))).collect();
        flaws.sort_by_key(|(_, it)| (it.mark.bytes.start, it.mark.line));
        for (severity, flaw) in flaws {
            self.report(severity, flaw);
        }
        match name {
            Some(name) => {
                let places = Places {
                    name: self.place(root, "/metadata/name"),
                    ipc_mode: self.place(root, "/spec/ipcMode"),
                };
                Content::Workload { name, workload, places }
            }
            None => Content::Unreadable { code },
        }
    }

    fn place(&self, root: &Node, pointer: &str) -> Option<Place> {
        let (_, node) = root.at(pointer)?;
        Some(Place {
            position: self.position(&node.mark),
            pointer: pointer.to_owned(),
            bytes: self.on_one_line(&node.mark),
            source_line: self.source_line(&node.mark),
        })
    }

    fn position(&self, mark: &Mark) -> Position {
        Position { file: self.file.to_owned(), line: mark.line, column: mark.column }
    }

    fn report(&mut self, severity: Severity, flaw: Flaw) {
        if self.problems.len() >= PROBLEM_LIMIT {
            self.more += 1;
            self.worst = self.worst.min(severity);
            return;
        }
        let Flaw { code, pointer, mark, message, hint, fix, related } = flaw;
        let bytes = self.on_one_line(&mark);
        let whole = bytes == mark.bytes;
        let raw = self.text.get(bytes.start - self.base..bytes.end - self.base).unwrap_or_default();
        // A fix takes the place of the value, so it keeps the value's quotes, and a value of several lines has none.
        let quote = raw.chars().next().filter(|c| matches!(c, '"' | '\'') && code != "wrong-type");
        let fix = fix.filter(|_| whole).map(|it| match quote {
            Some(quote) if !it.starts_with(['"', '\'', '{']) => format!("{quote}{it}{quote}"),
            _ => it,
        });
        self.problems.push(Problem {
            position: self.position(&mark),
            severity,
            code,
            pointer,
            message,
            hint,
            fix,
            workload: None,
            related: related.map(|it| self.position(&it)),
            source_line: self.source_line(&mark),
            bytes,
        });
    }

    /// The line that a value starts on, without its end, as offsets in the text.
    fn line(&self, mark: &Mark) -> Range<usize> {
        let at = mark.bytes.start.saturating_sub(self.base).min(self.text.len());
        let index = self.lines.partition_point(|start| *start <= at);
        let start = self.lines.get(index.saturating_sub(1)).copied().unwrap_or_default();
        let end = self.lines.get(index).copied().unwrap_or(self.text.len());
        start..start + self.text[start..end].trim_end_matches(['\n', '\r']).len()
    }

    /// The part of a value that is on its first line.
    fn on_one_line(&self, mark: &Mark) -> Range<usize> {
        let start = mark.bytes.start.clamp(self.base, self.base + self.text.len());
        start..mark.bytes.end.min(self.base + self.line(mark).end).max(start)
    }

    /// The line that a value starts on. Of a very long one the part around the value, with `…` for the rest.
    fn source_line(&self, mark: &Mark) -> String {
        let Range { start, end } = self.line(mark);
        let line = &self.text[start..end];
        let at = mark.bytes.start.saturating_sub(self.base).clamp(start, end) - start;
        if line.len() <= LINE_LIMIT {
            return line.to_owned();
        }
        let before = line[..at].char_indices().rev().nth(LINE_BEFORE - 1).map_or(0, |it| it.0);
        let shown: String = line[before..].chars().take(LINE_LIMIT).collect();
        let head = if before > 0 { "…" } else { "" };
        let tail = if shown.len() < line.len() - before { "…" } else { "" };
        format!("{head}{shown}{tail}")
    }
}

/// Whether a document is none of ours: it says another API group, or neither `apiVersion` nor anything like our
/// `kind`.
///
/// A document without a usable `apiVersion` that is of our kind is ours with a mistake in it, so that the mistake is
/// told and holds what it may name.
fn is_foreign(root: &Node) -> bool {
    let text = |key: &str| root.get(key).and_then(Node::text);
    match text("apiVersion") {
        Some(api_version) => !is_ours(api_version),
        None => text("kind").is_none_or(|it| explain::nearest(it, [KIND]).is_none()),
    }
}

/// The name of the workload, when it is certain: valid, and not one of two.
fn readable_name(root: &Node, flaws: &[Flaw]) -> Option<Name> {
    let doubtful = |it: &Flaw| {
        matches!(it.pointer.as_str(), "" | "/metadata" | "/metadata/name")
            && !matches!(it.code, "key-not-text" | "merge-key")
    };
    if flaws.iter().any(doubtful) {
        return None;
    }
    root.get("metadata")?.get("name")?.text()?.parse().ok()
}

fn version_flaw(version: &Node) -> Flaw {
    let text = version.text().unwrap_or_default();
    let number = |it: &str| -> Option<u32> {
        let digits = it.split('/').nth(1)?.strip_prefix('v')?;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let newer = number(text) > number(API_VERSION);
    let message = format!("`{}` is not a version that this Evenkeel reads", shorten(text));
    let flaw = Flaw::new(
        "api-version-unsupported",
        "/apiVersion".to_owned(),
        version.mark.clone(),
        message,
    );
    if newer {
        flaw.hint(format!("it is for a newer Evenkeel; this one reads `{API_VERSION}`"))
    } else {
        flaw.hint(format!("this Evenkeel reads `{API_VERSION}`")).fix(API_VERSION)
    }
}

/// The one rule inside a document that JSON Schema has no words for: a value that depends on another's text.
fn self_join(root: &Node) -> Option<Flaw> {
    let name = root.get("metadata")?.get("name")?.text()?;
    let mode = root.get("spec")?.get("ipcMode")?;
    if mode.text()?.strip_prefix("container:")? != name {
        return None;
    }
    let message = format!("`{}` cannot join itself", shorten(name));
    let flaw = Flaw::new("ipc-self-join", "/spec/ipcMode".to_owned(), mode.mark.clone(), message);
    Some(flaw.hint("name another workload, or write `shareable` to let others join this one"))
}

/// The items of a list below `spec`, each with what its `field` says.
fn items<'a>(root: &'a Node, list: &str, field: &str) -> Vec<(usize, &'a Entry, &'a str)> {
    let Some(Kind::List(items)) = root.get("spec").and_then(|it| it.get(list)).map(|it| &it.kind)
    else {
        return Vec::new();
    };
    let entry = |(index, item): (usize, &'a Node)| {
        let entry = item.entry(field)?;
        Some((index, entry, entry.node.text()?))
    };
    items.iter().enumerate().filter_map(entry).collect()
}

fn duplicate_mounts(root: &Node) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut seen: HashMap<String, Mark> = HashMap::new();
    for (index, entry, target) in items(root, "mounts", "target") {
        let Ok(target) = target.parse::<crate::workload::AbsolutePath>() else { continue };
        let mark = entry.node.mark.clone();
        if let Some(first) = seen.get(target.as_str()) {
            let message = format!("`{}` is the target of two mounts", shorten(target.as_str()));
            let hint = format!("the first is at line {}; only one of them can be seen", first.line);
            let pointer = format!("/spec/mounts/{index}/target");
            let flaw = Flaw::new("duplicate-mount", pointer, mark, message).hint(hint);
            flaws.push(Flaw { related: Some(first.clone()), ..flaw });
        } else {
            seen.insert(target.as_str().to_owned(), mark);
        }
    }
    flaws
}

fn duplicate_variables(root: &Node) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut seen: HashMap<&str, Mark> = HashMap::new();
    for (index, entry, name) in items(root, "env", "name") {
        let mark = entry.node.mark.clone();
        if let Some(first) = seen.insert(name, mark.clone()) {
            let message = format!("`{}` is set twice, and this one wins", shorten(name));
            let flaw = Flaw::new("duplicate-env", format!("/spec/env/{index}/name"), mark, message);
            let flaw = flaw.hint(format!("the one before is at line {}", first.line));
            flaws.push(Flaw { related: Some(first), ..flaw });
        }
    }
    flaws
}

fn unused_shm_size(root: &Node) -> Vec<Flaw> {
    let own = |target: &str| {
        target.parse::<crate::workload::AbsolutePath>().is_ok_and(|it| it.as_str() == DEV_SHM)
    };
    let size = root.get("spec").and_then(|it| it.entry("shmSize"));
    match (size, items(root, "mounts", "target").iter().any(|(.., target)| own(target))) {
        (Some(size), true) => {
            let message = format!("`shmSize` has no effect beside a mount on {DEV_SHM}");
            let flaw = Flaw::new(
                "shm-size-unused",
                "/spec/shmSize".to_owned(),
                size.mark.clone(),
                message,
            );
            vec![
                flaw.hint("set the `size` of that mount if it is a tmpfs, and leave `shmSize` out"),
            ]
        }
        _ => Vec::new(),
    }
}
