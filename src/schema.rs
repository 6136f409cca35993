//! The JSON Schema of manifests, generated from [`crate::workload`]'s types, and its compiled validator.
//!
//! Says which rule a value breaks and where, and nothing about how to tell the user: text is
//! [`crate::manifest`]'s. The one place that names the validating crate.

use std::sync::LazyLock;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{
    Draft, JsonType, PatternOptions, Registry, RegistryBuilder, ValidationError, Validator,
};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::workload::{API_VERSION, KIND, Name, Spec, Workload};

/// A manifest: what a container should be, in one document.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    /// The format of this document.
    #[schemars(extend("const" = API_VERSION))]
    api_version: String,
    /// What this document describes.
    #[schemars(extend("const" = KIND))]
    kind: String,
    /// What the workload is called, and what you note on it.
    metadata: Metadata,
    /// How its container runs.
    spec: Spec,
}

/// What a workload is called, and what you note on it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    /// The workload's name, unique in all manifests: lower-case letters, digits and `-`, at most 63 characters.
    name: Name,
    /// Your own labels, shown and kept, never interpreted.
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
    /// Your own notes; a changed text of `evenkeel/recreate` recreates the container.
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

/// One broken rule of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// JSON pointer of the value; of the object that lacks or has too much for [`Rule::Missing`] and
    /// [`Rule::Unknown`].
    pub pointer: String,
    pub rule: Rule,
}

/// What is wrong with a value, as far as a schema knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// These fields do not exist.
    Unknown(Vec<String>),
    /// This field has to be there.
    Missing(String),
    /// The value has another type; the names are JSON Schema's.
    Type(Vec<&'static str>),
    /// The value is none of these words.
    Choice(Vec<String>),
    /// The text or number is outside of what the field takes.
    Value,
    /// A rule over several fields; the code under which the schema has it.
    Together(String),
}

/// The published schema (draft 2020-12): every rule that concerns a single document, cross-field ones included.
///
/// The one exception is a workload that joins itself, for which standard keywords have no words.
pub fn manifest() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Manifest>().to_value();
    tidy(&mut schema);
    if let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        for (name, rules) in rules() {
            if let Some(definition) = definitions.get_mut(name).and_then(Value::as_object_mut) {
                definition.insert("allOf".to_owned(), rules);
            }
        }
    }
    schema
}

/// Everything that `manifest` breaks; empty when it can be decoded.
pub fn check(manifest: &Value) -> Vec<Violation> {
    VALIDATOR.iter_errors(manifest).map(|error| violation(&error)).collect()
}

/// The schema of any other document of ours: configuration, status, plan.
pub fn of<T: JsonSchema>(title: &str) -> Value {
    let mut schema =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".to_owned(), title.into());
    }
    schema
}

/// Everything of `schema` that `value` breaks. Compiles the schema each time.
pub fn check_against(schema: &Value, value: &Value) -> Vec<Violation> {
    let compiled =
        jsonschema::options().with_pattern_options(PatternOptions::regex()).build(schema);
    let validator = compiled.expect("a test compiles every generated schema");
    validator.iter_errors(value).map(|error| violation(&error)).collect()
}

/// The workload that a manifest without violations means; the text is serde's own and says only what is wrong.
pub fn decode(manifest: &Value) -> Result<Workload, String> {
    let Manifest { api_version: _, kind: _, metadata, spec } =
        Manifest::deserialize(manifest).map_err(|error| error.to_string())?;
    let Metadata { name, labels, annotations } = metadata;
    Ok(Workload { name, labels, annotations, spec })
}

/// The names of the fields that the object at `pointer` may have, in the order of the schema.
pub fn fields(pointer: &str) -> Vec<&'static str> {
    let at = |it: &'static Value| it.get("properties").and_then(Value::as_object);
    node(pointer).and_then(at).map(|it| it.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// The schema as a document, which only wrong manifests need.
static SCHEMA: LazyLock<Value> = LazyLock::new(manifest);

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    // A schema that is compiled is checked by the validator of its dialect, which stays in memory for good; this one's
    // is 0.3 MB. So what is compiled is a reference to it, in the dialect with the smallest.
    let compiled = Registry::new()
        .draft(Draft::Draft202012)
        .add(ADDRESS, manifest())
        .and_then(RegistryBuilder::prepare)
        .map_err(ValidationError::from)
        .and_then(|registry| {
            jsonschema::options()
                .with_registry(&registry)
                .with_draft(Draft::Draft4)
                // An engine without backtracking: the time of a check is linear in the text.
                .with_pattern_options(PatternOptions::regex())
                .build(&json!({ "$ref": ADDRESS }))
        });
    compiled.expect("a test compiles the generated schema")
});

/// What the schema is called among schemas; it is fetched from nowhere.
const ADDRESS: &str = "json-schema:///manifest";

/// The part of the schema that describes the value at `pointer`.
fn node(pointer: &str) -> Option<&'static Value> {
    let root: &Value = &SCHEMA;
    let resolve = |it: &'static Value| match it.get("$ref").and_then(Value::as_str) {
        Some(reference) => root.pointer(reference.strip_prefix('#')?),
        None => Some(it),
    };
    pointer.split('/').skip(1).try_fold(root, |at, token| {
        let below = match at.get("items") {
            Some(items) => items,
            None => at.get("properties")?.get(token).or_else(|| at.get("additionalProperties"))?,
        };
        resolve(below)
    })
}

fn violation(error: &ValidationError<'_>) -> Violation {
    let words = |options: &Value| match options {
        Value::Array(options) => {
            options.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        Value::String(word) => vec![word.clone()],
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the crate's own enum, and all other kinds are plain values"
    )]
    let rule = match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            Rule::Unknown(unexpected.clone())
        }
        ValidationErrorKind::Required { property } => {
            Rule::Missing(property.as_str().unwrap_or_default().to_owned())
        }
        ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => {
            Rule::Type(vec![type_name(*kind)])
        }
        ValidationErrorKind::Type { kind: TypeKind::Multiple(kinds) } => {
            Rule::Type(kinds.iter().map(type_name).collect())
        }
        ValidationErrorKind::Enum { options } => Rule::Choice(words(options)),
        ValidationErrorKind::Constant { expected_value } => Rule::Choice(words(expected_value)),
        ValidationErrorKind::FalseSchema => Rule::Together(together(error.schema_path().as_str())),
        _ => Rule::Value,
    };
    Violation { pointer: error.instance_path().as_str().to_owned(), rule }
}

fn type_name(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Array => "array",
        JsonType::Boolean => "boolean",
        JsonType::Integer => "integer",
        JsonType::Null => "null",
        JsonType::Number => "number",
        JsonType::Object => "object",
        JsonType::String => "string",
    }
}

/// The code beside the `then` in which a field was forbidden.
fn together(path: &str) -> String {
    let code = path
        .rfind("/then/")
        .and_then(|end| SCHEMA.pointer(&path[..end])?.pointer("/then/$comment"));
    code.and_then(Value::as_str).unwrap_or("value-invalid").to_owned()
}

/// Rules over several fields, by the definition that they belong to. The `$comment` is the problem's code.
fn rules() -> [(&'static str, Value); 3] {
    let spec = json!([{
        "if": {
            "required": ["ipcMode"],
            "properties": { "ipcMode": { "type": "string", "pattern": "^(none|host|container:.*)$" } }
        },
        "then": { "$comment": "shm-size-conflict", "properties": { "shmSize": false } }
    }, {
        "if": {
            "required": ["removeOnExit"],
            "properties": { "removeOnExit": { "const": true } },
            "not": {
                "required": ["restart"],
                "properties": {
                    "restart": {
                        "required": ["policy"],
                        "properties": { "policy": { "enum": ["on-failure", "never"] } }
                    }
                }
            }
        },
        "then": { "$comment": "remove-on-exit-conflict", "properties": { "removeOnExit": false } }
    }]);
    let mount = json!([
        { "properties": { "target": { "not": { "pattern": "^/[/.]*$" } } } },
        {
            "if": { "required": ["type"], "properties": { "type": { "const": "bind" } } },
            "then": {
                "$comment": "mount-field-conflict",
                "required": ["source"],
                "properties": { "size": false, "mode": false }
            }
        },
        {
            "if": { "required": ["type"], "properties": { "type": { "const": "tmpfs" } } },
            "then": {
                "$comment": "mount-field-conflict",
                "properties": { "source": false, "propagation": false, "create": false }
            }
        }
    ]);
    let restart = json!([{
        "if": { "not": { "required": ["policy"], "properties": { "policy": { "const": "on-failure" } } } },
        "then": { "$comment": "max-retries-conflict", "properties": { "maxRetries": false } }
    }]);
    [("Spec", spec), ("Mount", mount), ("Restart", restart)]
}

/// Makes the generated schema say what the decoder does.
///
/// An optional field is one that may be left out, never one that may be `null`; the limits of Rust's numbers are
/// spelled out, because their names are no format that a validator knows; defaults that say nothing go.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(object) => {
            drop_null(object);
            if let Some(Value::Array(words)) = object.get_mut("enum") {
                words.retain(|it| !it.is_null());
            }
            // Rustdoc's line breaks mean nothing to an editor.
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace("\n\n", "\0").replace('\n', " ").replace('\0', "\n\n");
            }
            if object.get("format").is_some_and(|it| it == "uint32") {
                object.remove("format");
                object.entry("maximum").or_insert_with(|| u32::MAX.into());
            }
            if object
                .get("default")
                .is_some_and(|it| it.is_null() || it == &json!({}) || it == &json!([]))
            {
                object.remove("default");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn drop_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(names)) = object.get_mut("type") {
        names.retain(|it| it != "null");
        if let [only] = names.as_mut_slice() {
            let only = only.take();
            object.insert("type".to_owned(), only);
        }
    }
    let null = json!({ "type": "null" });
    if object.get("anyOf").and_then(Value::as_array).is_some_and(|it| it.contains(&null)) {
        let Some(Value::Array(choices)) = object.remove("anyOf") else { return };
        let mut rest = choices.into_iter().filter(|it| *it != null);
        if let (Some(Value::Object(only)), None) = (rest.next(), rest.next()) {
            object.extend(only);
        }
    }
}

#[cfg(test)]
mod tests;
