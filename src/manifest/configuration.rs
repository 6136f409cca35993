//! The configuration file, read by the same composer as manifests: located problems, no silent duplicates.

use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::explain::nearest;
use super::yaml::{self, Flaw, Mark, Node, Parsed};
use super::{Problem, Reader, Severity};
use crate::schema::{self, Rule};

/// Reads one configuration document; an empty file means every default.
///
/// # Errors
/// All problems of the file, each with its place.
pub fn configuration<T: DeserializeOwned + Default + JsonSchema>(
    file: &Path,
    bytes: &[u8],
) -> Result<T, Vec<Problem>> {
    let whole = |message: &str| {
        vec![Problem::of_file(file, Severity::Error, "config-invalid", message.to_owned())]
    };
    let Ok(text) = std::str::from_utf8(bytes) else { return Err(whole("not valid UTF-8")) };
    let base = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let text = &text[base..];
    let mut reader = Reader::new(file, text, base);
    let mut documents = yaml::documents(text, base);
    if documents.len() > 1 {
        return Err(whole("more than one document"));
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

fn explain(root: &Node, schema: &serde_json::Value, violation: &schema::Violation) -> Vec<Flaw> {
    let pointer = violation.pointer.as_str();
    let Some((key, node)) = root.at(pointer) else { return Vec::new() };
    let field = pointer.rsplit('/').next().unwrap_or_default();
    let mark = || {
        if node.mark.bytes.is_empty() {
            key.unwrap_or(&node.mark).clone()
        } else {
            node.mark.clone()
        }
    };
    let flaw =
        |code, mark: Mark, message: String| Flaw::new(code, pointer.to_owned(), mark, message);
    match &violation.rule {
        Rule::Unknown(names) => names
            .iter()
            .map(|name| {
                let at = node.entry(name).map_or_else(mark, |it| it.mark.clone());
                let message = format!("unknown setting `{}`", yaml::shorten(name));
                let pointer = format!("{pointer}/{}", yaml::escape(name));
                let unknown = Flaw::new("unknown-field", pointer, at, message);
                let known = schema["properties"].as_object().into_iter().flat_map(|it| it.keys());
                match nearest(name, known.map(String::as_str)) {
                    Some(near) => unknown.hint(format!("did you mean `{near}`?")).fix(near),
                    None => unknown,
                }
            })
            .collect(),
        Rule::Missing(name) => vec![flaw("missing-field", mark(), format!("`{name}` is missing"))],
        Rule::Type(expected) => {
            let message = format!(
                "`{field}` has to be {}, not {}",
                expected.join(" or "),
                yaml::describe(node)
            );
            vec![flaw("wrong-type", mark(), message)]
        }
        Rule::Choice(words) => {
            let message = format!("{} is none of the words of `{field}`", yaml::describe(node));
            vec![
                flaw("value-invalid", mark(), message)
                    .hint(format!("use one of {}", words.join(", "))),
            ]
        }
        Rule::Value | Rule::Together(_) => {
            vec![flaw(
                "value-invalid",
                mark(),
                format!("{} does not fit `{field}`", yaml::describe(node)),
            )]
        }
    }
}
