//! The configuration file, read by the same composer as manifests: located problems, no silent duplicates.

use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::explain::{Advice, duration, list, nearest, path, size, type_names};
use super::yaml::{self, Flaw, Kind, Mark, Node, Parsed};
use super::{Problem, Reader, Severity};
use crate::schema::{self, Rule};

/// A file that has nothing in it means every default, and is seldom meant.
pub fn empty_configuration(file: &Path) -> Problem {
    let message = "the configuration is empty: every default holds".to_owned();
    let hint = "a power cut or a copy in progress leaves such files: write it again, or `{}` for every default";
    Problem {
        hint: Some(hint.to_owned()),
        ..Problem::of_file(file, Severity::Warning, "empty-file", message)
    }
}

/// Reads one configuration document; an empty file means every default.
///
/// # Errors
/// All problems of the file, each with its place.
pub fn configuration<T: DeserializeOwned + Default + JsonSchema>(
    file: &Path,
    bytes: &[u8],
) -> Result<T, Vec<Problem>> {
    let whole = |code, message: &str| {
        vec![Problem::of_file(file, Severity::Error, code, message.to_owned())]
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(whole("not-utf8", "the file is not valid UTF-8"));
    };
    let base = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let text = &text[base..];
    let mut reader = Reader::new(file, text, base);
    let mut documents = yaml::documents(text, base);
    if documents.len() > 1 {
        let message = "the file has more than one document, and a configuration is one";
        return Err(whole("syntax-error", message));
    }
    let (root, mut flaws) = match documents.pop() {
        None => return Ok(T::default()),
        Some(Parsed::Broken(flaw)) => {
            reader.report(Severity::Error, flaw);
            return Err(reader.finish());
        }
        Some(Parsed::Document { root, flaws }) => (root, flaws),
    };
    let value = root.json();
    let generated = schema::of::<T>("configuration");
    for violation in schema::check_against(&generated, &value) {
        flaws.extend(explain(&root, &generated, &violation));
    }
    if flaws.is_empty() {
        match T::deserialize(&value) {
            Ok(read) => return Ok(read),
            Err(error) => {
                let mark = root.mark.clone();
                flaws.push(Flaw::new("value-invalid", String::new(), mark, error.to_string()));
            }
        }
    }
    flaws.sort_by_key(|it| it.mark.bytes.start);
    for flaw in flaws {
        reader.report(Severity::Error, flaw);
    }
    Err(reader.finish())
}

fn explain(root: &Node, schema: &Value, violation: &schema::Violation) -> Vec<Flaw> {
    let pointer = violation.pointer.as_str();
    let Some((key, node)) = root.at(pointer) else { return Vec::new() };
    let rule = part(schema, pointer);
    let field = match pointer.rsplit('/').find(|it| !it.bytes().all(|c| c.is_ascii_digit())) {
        None | Some("") => "the configuration".to_owned(),
        Some(field) => format!("`{}`", yaml::shorten(field)),
    };
    let mark = || match key {
        Some(key) if node.mark.bytes.is_empty() => key.clone(),
        _ => node.mark.clone(),
    };
    let flaw =
        |code, mark: Mark, message: String| Flaw::new(code, pointer.to_owned(), mark, message);
    match &violation.rule {
        Rule::Unknown(names) => names
            .iter()
            .map(|name| {
                let at = node.entry(name).map_or_else(mark, |it| it.mark.clone());
                let message = format!("there is no setting `{}`", yaml::shorten(name));
                let pointer = format!("{pointer}/{}", yaml::escape(name));
                let unknown = Flaw::new("unknown-field", pointer, at, message);
                let known: Vec<&str> = fields(schema, rule)
                    .into_iter()
                    .flat_map(|it| it.keys())
                    .map(String::as_str)
                    .collect();
                let advice = match nearest(name, known.iter().copied()) {
                    Some(near) => Advice::fix(near),
                    None => Advice::hint(format!("the settings are {}", list(&known))),
                };
                advice.add_to(unknown)
            })
            .collect(),
        Rule::Missing(name) => vec![flaw("missing-field", mark(), format!("`{name}` is missing"))],
        Rule::Type(expected) => {
            let found = match node.kind {
                Kind::Null => "nothing".to_owned(),
                Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) | Kind::List(_) | Kind::Map(_) => {
                    yaml::describe(node)
                }
            };
            let message = format!("{field} has to be {}, not {found}", type_names(expected));
            let advice = match &node.kind {
                Kind::Number(number) if !expected.contains(&"integer") => {
                    advice(rule, &number.to_string(), pointer).1
                }
                Kind::Text(_) if expected.contains(&"array") => {
                    Advice::hint("write a list: `[…]`, or a line with `- ` for each")
                }
                Kind::Text(_) if expected.contains(&"boolean") => {
                    Advice::hint("write `true` or `false`")
                }
                Kind::Null
                | Kind::Bool(_)
                | Kind::Number(_)
                | Kind::Text(_)
                | Kind::List(_)
                | Kind::Map(_) => Advice::default(),
            };
            vec![advice.add_to(flaw("wrong-type", mark(), message))]
        }
        Rule::Choice(_) | Rule::Value | Rule::Together(_) => {
            let raw = match &node.kind {
                Kind::Text(text) => text.to_string(),
                Kind::Number(number) => number.to_string(),
                Kind::Null | Kind::Bool(_) | Kind::List(_) | Kind::Map(_) => String::new(),
            };
            let message = format!("`{}` is not a value of {field}", yaml::shorten(&raw));
            let (code, advice) = advice(rule, &raw, pointer);
            vec![advice.add_to(flaw(code, mark(), message))]
        }
    }
}

/// A code and what to write instead, from what the schema says of the value.
fn advice(rule: &Value, raw: &str, pointer: &str) -> (&'static str, Advice) {
    let words: Vec<&str> = match (rule["enum"].as_array(), rule["oneOf"].as_array()) {
        (Some(words), _) => words.iter().filter_map(Value::as_str).collect(),
        (_, Some(choices)) => choices.iter().filter_map(|it| it["const"].as_str()).collect(),
        (None, None) => Vec::new(),
    };
    let numbers = (rule["minimum"].as_u64(), rule["maximum"].as_u64());
    match rule["$ref"].as_str().and_then(|it| it.rsplit('/').next()) {
        Some("Bytes") => ("size-invalid", size(raw)),
        Some("Span") => ("duration-invalid", duration(raw, pointer)),
        Some("AbsolutePath") => ("path-invalid", path(raw)),
        Some("ContainerdNamespace") => {
            let hint = "use letters and digits, with single `.`, `_` or `-` between them";
            ("value-invalid", Advice::hint(hint))
        }
        _ if !words.is_empty() => match nearest(raw, words.iter().copied()) {
            Some(near) => ("value-invalid", Advice::fix(near)),
            None => {
                let words: Vec<String> = words.iter().map(|it| format!("`{it}`")).collect();
                ("value-invalid", Advice::hint(format!("use {}", words.join(" or "))))
            }
        },
        _ => match numbers {
            (Some(least), Some(most)) => {
                let hint = format!("write a whole number from {least} to {most}");
                ("value-invalid", Advice::hint(hint))
            }
            _ => ("value-invalid", Advice::default()),
        },
    }
}

/// What the schema says of the value at a pointer, but for the last reference on the way, which names its type.
fn part<'a>(schema: &'a Value, pointer: &str) -> &'a Value {
    pointer.split('/').skip(1).fold(schema, |at, token| {
        let at = resolved(schema, at);
        if at["items"].is_object() { &at["items"] } else { &at["properties"][token] }
    })
}

fn resolved<'a>(schema: &'a Value, part: &'a Value) -> &'a Value {
    let reference = part["$ref"].as_str().and_then(|it| it.strip_prefix('#'));
    reference.and_then(|it| schema.pointer(it)).unwrap_or(part)
}

fn fields<'a>(schema: &'a Value, part: &'a Value) -> Option<&'a serde_json::Map<String, Value>> {
    resolved(schema, part)["properties"].as_object()
}
