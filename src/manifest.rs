//! Manifest text → documents → JSON Schema → [`Workload`]s, or [`Problem`]s; the only place that knows YAML.
//!
//! Does not look at other files, at the host, or at what runs: [`read`] is a function of one file's bytes. Rules
//! across documents are checked by [`crate::desired`].

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;

use crate::workload::{Name, Workload};

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

/// Stand-in: reads one file.
pub fn read(file: &std::path::Path, bytes: &[u8]) -> Reading {
    let position = |line| Position { file: file.to_owned(), line, column: u32::from(line > 0) };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return unreadable(file, "not-utf-8", "is not UTF-8".to_owned());
    };
    if text.trim().is_empty() {
        return unreadable(file, "empty-file", "is empty".to_owned());
    }
    let mut reading = Reading::default();
    let mut parts = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    for part in parts {
        let index = reading.documents.len();
        let content = match serde_yaml::from_str::<serde_json::Value>(&part) {
            Err(_) => Content::Unreadable { code: "syntax" },
            Ok(serde_json::Value::Null) => continue,
            Ok(value) => {
                let name = value.pointer("/metadata/name").and_then(|it| it.as_str());
                let ours =
                    value.get("apiVersion").and_then(|it| it.as_str()) == Some("evenkeel/v1");
                if !ours {
                    Content::Foreign { name: name.map(str::to_owned) }
                } else if let Some(name) = name.and_then(|it| it.parse::<Name>().ok()) {
                    let spec = value.get("spec").cloned().unwrap_or_default();
                    let spec = serde_json::from_value::<crate::workload::Spec>(spec).ok();
                    let workload = spec.map(|spec| {
                        Box::new(Workload {
                            name: name.clone(),
                            labels: std::collections::BTreeMap::new(),
                            annotations: std::collections::BTreeMap::new(),
                            spec,
                        })
                    });
                    Content::Workload { name, workload, places: Places::default() }
                } else {
                    Content::Unreadable { code: "name-missing" }
                }
            }
        };
        reading.documents.push(Document { position: position(1), index, content });
    }
    reading.comments_only = reading.documents.is_empty();
    reading
}

/// Stand-in: a file over the size limit.
pub fn too_large(file: &std::path::Path, prefix: &[u8]) -> Reading {
    let _ = prefix;
    unreadable(file, "file-too-large", "is too large".to_owned())
}

/// Stand-in: a file that cannot be read.
pub fn unreadable(file: &std::path::Path, code: &'static str, message: String) -> Reading {
    Reading {
        problems: vec![Problem {
            position: Position { file: file.to_owned(), line: 0, column: 0 },
            severity: Severity::Error,
            code,
            pointer: String::new(),
            message,
            hint: None,
            fix: None,
            related: None,
            bytes: 0..0,
            source_line: String::new(),
        }],
        unreadable: Some(code),
        ..Reading::default()
    }
}
