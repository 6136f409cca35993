//! JSON as it was written: what is passed on without being understood keeps its order and its numbers.

use std::fmt;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Deepest nesting of lists and objects. Nobody writes such a configuration, and not every plugin survives it.
const DEPTH: usize = 64;

/// An object whose values nobody has looked into. No key is in it twice, as each reader would take another one.
#[derive(Debug, Clone, Default)]
pub(super) struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// Reads an object, which is all that there is in the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        check_depth(text)?;
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|it| it.0 == key)
    }

    /// What a key says, if it is there.
    pub(super) fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        let Some((_, value)) = self.0.iter().find(|it| it.0 == key) else { return Ok(None) };
        serde_json::from_str(value.get()).map(Some).map_err(|error| format!("`{key}`: {error}"))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, Box<RawValue>)> {
        self.0.iter()
    }

    /// Adds a key that is not there yet.
    pub(super) fn push(&mut self, key: &str, value: Box<RawValue>) {
        self.0.push((key.to_owned(), value));
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if object.has(&key) {
                        return Err(A::Error::custom(format_args!("`{key}` is there twice")));
                    }
                    object.0.push((key, value));
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// A value as JSON text; for values of ours, which always can be.
pub(super) fn raw<T: Serialize>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("keys are strings, and nothing else can fail")
}

/// Values that nobody looks into are skipped without a limit, so that is looked at before.
pub(super) fn check_depth(text: &str) -> Result<(), String> {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return Err(format!("it is nested deeper than {DEPTH}"));
        }
    }
    Ok(())
}

/// What somebody else wrote, on one line and no longer than that.
pub(super) fn quoted(text: &str, limit: usize) -> String {
    let (mut shown, mut length) = (String::new(), 0);
    for c in text.trim().chars() {
        let escaped: String = match c {
            '"' | '\'' => c.to_string(),
            _ => c.escape_debug().collect(),
        };
        length += escaped.chars().count();
        if length > limit {
            shown.push('…');
            break;
        }
        shown.push_str(&escaped);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_understands_stays_as_it_was_written() {
        let text = r#"{"z":1.0,"a":{"y":1e400, "x":18446744073709551616},"m":[ ],"é":"\u00e9"}"#;
        let object = Object::parse(text).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        let error = Object::parse(r#"{"a": 1, "a": 2}"#).unwrap_err();
        assert!(error.starts_with("`a` is there twice"), "{error}");
    }

    #[test]
    fn only_real_nesting_counts_as_depth() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        Object::parse(&nested(DEPTH - 1)).unwrap();
        assert_eq!(Object::parse(&nested(DEPTH)).unwrap_err(), "it is nested deeper than 64");
        // A million would overflow the stack of whoever recurses.
        assert_eq!(Object::parse(&nested(1_000_000)).unwrap_err(), "it is nested deeper than 64");
        Object::parse(&format!(r#"{{"a": "\"{}"}}"#, "[".repeat(DEPTH * 2))).unwrap();
        Object::parse(&format!(r#"{{"a": [{}1]}}"#, "[],".repeat(DEPTH * 2))).unwrap();
    }

    #[test]
    fn what_is_quoted_is_one_short_line() {
        assert_eq!(quoted(" it's \"a\"\nb\u{1b}[31m ", 200), r#"it's "a"\nb\u{1b}[31m"#);
        assert_eq!(quoted(&"x".repeat(200), 200), "x".repeat(200));
        assert_eq!(quoted(&"\n".repeat(200), 200), "");
        assert_eq!(quoted(&format!("a{}a", "\n".repeat(200)), 200).chars().count(), 200);
    }
}
