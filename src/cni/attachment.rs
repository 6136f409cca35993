//! One interface of one container on one network, as its plugins are told.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;

/// Longest name of an interface that the kernel takes.
const INTERFACE_LENGTH: usize = 15;

/// Longest container ID and name of a network: together with an interface they are the name of a file.
const NAME_LENGTH: usize = 110;

/// What a plugin is told beside the network's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attachment {
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_IFNAME`: its name inside.
    pub interface: String,
    /// `CNI_NETNS`: an absolute path to the network namespace.
    pub namespace: PathBuf,
    /// `CNI_ARGS`, for all plugins.
    pub arguments: Vec<(String, String)>,
    /// `portMappings`, `ips`, `mac`, `dns`, `bandwidth` and the like, for those plugins whose configuration declares
    /// them. See [`super::Network::declares`].
    pub capabilities: BTreeMap<String, Value>,
}

/// Which attachment: there is one for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub network: String,
    pub container: String,
    pub interface: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, container, interface } = self;
        write!(f, "`{interface}` of `{container}` on network `{network}`")
    }
}

impl Key {
    pub fn of(network: &str, attachment: &Attachment) -> Self {
        Self {
            network: network.to_owned(),
            container: attachment.container.clone(),
            interface: attachment.interface.clone(),
        }
    }

    /// No name has a path or the separator of [`Key::file_name`] in it.
    pub(super) fn check(&self) -> Result<(), Error> {
        for (what, name) in [("network", &self.network), ("container", &self.container)] {
            if !is_name(name) {
                return Err(Error::AttachmentInvalid(format!(
                    "`{}` is no name of a {what}: use at most {NAME_LENGTH} of a-z, A-Z, 0-9, `_`, `.` and `-`, and a letter or digit first",
                    name.escape_debug()
                )));
            }
        }
        let it = self.interface.as_str();
        let is_interface = (1..=INTERFACE_LENGTH).contains(&it.len())
            && it != "."
            && it != ".."
            && !it.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if is_interface {
            return Ok(());
        }
        Err(Error::AttachmentInvalid(format!(
            "`{}` is no name of an interface: use at most {INTERFACE_LENGTH} characters, and neither spaces nor `/` nor `:`",
            it.escape_debug()
        )))
    }

    /// Neither of the first two has an `@`.
    pub(super) fn file_name(&self) -> String {
        let Self { network, container, interface } = self;
        format!("{network}@{container}@{interface}")
    }

    pub(super) fn of_file_name(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '@').map(str::to_owned);
        let key =
            Self { network: parts.next()?, container: parts.next()?, interface: parts.next()? };
        key.check().ok().map(|()| key)
    }
}

impl Attachment {
    /// Nothing of it could be understood otherwise than it is meant.
    pub(super) fn check(&self) -> Result<(), Error> {
        // The entry is text.
        let is_text = self.namespace.to_str().is_some_and(|it| !it.contains('\0'));
        if !is_text || !self.namespace.is_absolute() {
            return Err(Error::AttachmentInvalid(format!(
                "`{}` is no path of a network namespace: name it from the root, in UTF-8",
                self.namespace.display()
            )));
        }
        for (key, value) in &self.arguments {
            if key.is_empty() || key.contains(['=', ';', '\0']) || value.contains([';', '\0']) {
                return Err(Error::AttachmentInvalid(format!(
                    "`{}={}` is no argument for CNI plugins: leave out `;`, and `=` in its name",
                    key.escape_debug(),
                    value.escape_debug()
                )));
            }
        }
        Ok(())
    }

    /// `CNI_ARGS`
    pub(super) fn arguments(&self) -> String {
        let pairs: Vec<String> =
            self.arguments.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(";")
    }
}

/// Names of networks and containers, by the specification.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= NAME_LENGTH
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn key(network: &str, container: &str, interface: &str) -> Key {
        let [network, container, interface] = [network, container, interface].map(str::to_owned);
        Key { network, container, interface }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for good in [key("a", "b", "eth0"), key("A.b-c_d", "0", "a@b"), key("a..", "b", "ä")] {
            good.check().unwrap();
            assert_eq!(Key::of_file_name(&good.file_name()).unwrap(), good);
        }
        let long = "a".repeat(111);
        for bad in [
            key("", "b", "eth0"),
            key(".a", "b", "eth0"),
            key("a/b", "b", "eth0"),
            key("a@b", "b", "eth0"),
            key("a", "", "eth0"),
            key("a", "../b", "eth0"),
            key("a", "b\n", "eth0"),
            key("a", &long, "eth0"),
            key(&long, "b", "eth0"),
            key("a", "b", ""),
            key("a", "b", ".."),
            key("a", "b", "e/0"),
            key("a", "b", "e:0"),
            key("a", "b", "e 0"),
            key("a", "b", "e\0"),
            key("a", "b", "sixteencharacter"),
        ] {
            assert_eq!(bad.check().unwrap_err().code(), "cni-attachment-invalid", "{bad}");
            assert_ne!(Key::of_file_name(&bad.file_name()), Some(bad));
        }
        assert!(key(&long[1..], &long[1..], "fifteen-letters").file_name().len() < 255);
    }

    #[test]
    fn arguments_cannot_become_others() {
        let with = |key: &str, value: &str| Attachment {
            container: "a".to_owned(),
            interface: "eth0".to_owned(),
            namespace: PathBuf::from("/n"),
            arguments: vec![
                ("IgnoreUnknown".to_owned(), "1".to_owned()),
                (key.to_owned(), value.to_owned()),
            ],
            capabilities: BTreeMap::new(),
        };
        let good = with("a", "b=c");
        good.check().unwrap();
        assert_eq!(good.arguments(), "IgnoreUnknown=1;a=b=c");
        for bad in [with("", "b"), with("a=b", "c"), with("a;b", "c"), with("a", "b;c=d")] {
            assert_eq!(bad.check().unwrap_err().code(), "cni-attachment-invalid");
        }
        for namespace in [&b"n"[..], b"", b"/n\xff", b"/n\0"] {
            let namespace = PathBuf::from(OsStr::from_bytes(namespace));
            let bad = Attachment { namespace, ..good.clone() };
            assert_eq!(bad.check().unwrap_err().code(), "cni-attachment-invalid");
        }
    }
}
