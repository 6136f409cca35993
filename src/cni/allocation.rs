//! What a chain of plugins came to, in one shape whatever version said it.
//!
//! The shape is that of version 1.0.0. 0.3.x and 0.4.0 have the same fields and a `version` (4 or 6) with each
//! address, which the address says as well; 1.1.0 adds to interfaces and routes.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::configuration::Version;
use super::json;

/// Interfaces, addresses, routes and name servers of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allocation {
    /// Those on the host too.
    pub interfaces: Vec<Interface>,
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, deserialize_with = "filled")]
    pub mac: Option<String>,
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The network namespace that it is in; `None`: it is on the host.
    #[serde(default, deserialize_with = "filled")]
    pub sandbox: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ip {
    pub address: Prefix,
    #[serde(default, deserialize_with = "filled")]
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default)]
    pub interface: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Route {
    pub dst: Prefix,
    /// `None`: by the gateway of the address.
    #[serde(default, deserialize_with = "filled")]
    pub gw: Option<IpAddr>,
    #[serde(default)]
    pub mtu: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(deserialize_with = "list")]
    pub nameservers: Vec<String>,
    #[serde(deserialize_with = "filled")]
    pub domain: Option<String>,
    #[serde(deserialize_with = "list")]
    pub search: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub options: Vec<String>,
}

/// An address with the length of its network: `10.1.0.5/16`, `fd00::5/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    // Invariant: not longer than the address.
    length: u8,
}

impl Prefix {
    pub fn length(self) -> u8 {
        self.length
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, length)| {
            let address: IpAddr = address.parse().ok()?;
            let length: u8 = length.parse().ok()?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            (length <= longest).then_some(Self { address, length })
        });
        parsed.ok_or_else(|| format!("`{}` is no address with a length", json::quoted(text, 60)))
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Allocation {
    /// Of what a plugin has printed, or why it is no result.
    pub(super) fn of_result(result: &RawValue) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed {
            cni_version: Option<String>,
            interfaces: Option<Vec<Interface>>,
            ips: Option<Vec<Ip>>,
            routes: Option<Vec<Route>>,
            dns: Option<Dns>,
        }

        let printed: Printed =
            serde_json::from_str(result.get()).map_err(|error| error.to_string())?;
        // Plugins that leave it out mean what they were asked in.
        if let Some(version) = printed.cni_version.filter(|it| it.parse::<Version>().is_err()) {
            return Err(format!("version `{}` was not asked for", json::quoted(&version, 60)));
        }
        let interfaces = printed.interfaces.unwrap_or_default();
        let ips = printed.ips.unwrap_or_default();
        if let Some(at) =
            ips.iter().filter_map(|it| it.interface).find(|at| *at >= interfaces.len())
        {
            return Err(format!("there is no interface {at}"));
        }
        let routes = printed.routes.unwrap_or_default();
        Ok(Self { interfaces, ips, routes, dns: printed.dns.unwrap_or_default() })
    }

    /// Addresses inside: those on the host and beyond are left out.
    pub fn addresses(&self) -> impl Iterator<Item = Prefix> {
        self.ips.iter().filter(|it| self.is_inside(it)).map(|it| it.address)
    }

    fn is_inside(&self, ip: &Ip) -> bool {
        ip.interface
            .and_then(|at| self.interfaces.get(at))
            .is_none_or(|interface| interface.sandbox.is_some())
    }
}

/// Plugins write an empty text for what they do not have.
fn filled<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|it| !it.is_empty());
    text.map(|it| it.parse().map_err(serde::de::Error::custom)).transpose()
}

/// And nothing for an empty list.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Allocation, String> {
        Allocation::of_result(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn every_version_comes_to_the_same() {
        let interfaces = r#""interfaces": [{"name": "cni0", "mac": "00:11:22:33:44:55"},
            {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/blue"}]"#;
        let rest = r#""routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/64", "gw": "fd00::1"}],
            "dns": {"nameservers": ["10.1.0.1"], "search": ["local"]}"#;
        let old = |version: &str| {
            format!(
                r#"{{"cniVersion": "{version}", {interfaces}, "ips": [
                {{"version": "4", "interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"}},
                {{"version": "6", "interface": 1, "address": "fd00::5/64"}}], {rest}}}"#
            )
        };
        let new = |version: &str| {
            format!(
                r#"{{"cniVersion": "{version}", {interfaces}, "ips": [
                {{"interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"}},
                {{"interface": 1, "address": "fd00::5/64"}}], {rest}}}"#
            )
        };
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let expected = Allocation {
            interfaces: vec![
                Interface {
                    name: "cni0".to_owned(),
                    mac: Some("00:11:22:33:44:55".to_owned()),
                    mtu: None,
                    sandbox: None,
                },
                Interface {
                    name: "eth0".to_owned(),
                    mac: Some("99:88:77:66:55:44".to_owned()),
                    mtu: None,
                    sandbox: Some("/run/netns/blue".into()),
                },
            ],
            ips: vec![
                Ip {
                    address: prefix("10.1.0.5/16"),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                    interface: Some(1),
                },
                Ip { address: prefix("fd00::5/64"), gateway: None, interface: Some(1) },
            ],
            routes: vec![
                Route { dst: prefix("0.0.0.0/0"), gw: None, mtu: None },
                Route { dst: prefix("fd01::/64"), gw: Some("fd00::1".parse().unwrap()), mtu: None },
            ],
            dns: Dns {
                nameservers: vec!["10.1.0.1".to_owned()],
                domain: None,
                search: vec!["local".to_owned()],
                options: Vec::new(),
            },
        };
        for text in [old("0.3.0"), old("0.3.1"), old("0.4.0"), new("1.0.0"), new("1.1.0")] {
            assert_eq!(of(&text).unwrap(), expected, "{text}");
        }
        let later = of(r#"{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mtu": 1400,
            "socketPath": "/s", "pciID": "0"}], "routes": [{"dst": "::/0", "mtu": 1300, "table": 7}]}"#);
        let later = later.unwrap();
        assert_eq!((later.interfaces[0].mtu, later.routes[0].mtu), (Some(1400), Some(1300)));
    }

    #[test]
    fn what_a_plugin_does_not_have_may_be_empty_null_or_absent() {
        let empty = Allocation::default();
        assert_eq!(of("{}").unwrap(), empty);
        let nulls = r#"{"interfaces": null, "ips": null, "routes": null, "dns": {"nameservers": null, "domain": ""}}"#;
        assert_eq!(of(nulls).unwrap(), empty);
        let ip = of(r#"{"ips": [{"address": "10.0.0.1/8", "gateway": "", "interface": null}]}"#);
        assert_eq!((ip.unwrap().ips[0].gateway, empty.dns.domain), (None, None));
    }

    #[test]
    fn what_is_no_result_is_told() {
        for (text, why) in [
            ("3", "invalid type: integer `3`"),
            (r#"{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8"}}"#, "version `0.2.0`"),
            (r#"{"ips": [{"address": "10.0.0.1"}]}"#, "`10.0.0.1` is no address with a length"),
            (r#"{"ips": [{"address": "10.0.0.1/33"}]}"#, "`10.0.0.1/33` is no address"),
            (r#"{"ips": [{"address": "10.0.0.1/8", "interface": 0}]}"#, "there is no interface 0"),
            (r#"{"ips": [{"address": "10.0.0.1/8", "interface": -1}]}"#, "invalid value"),
            (r#"{"ips": [{"address": "10.0.0.1/8", "gateway": "x"}]}"#, "invalid IP address"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_of_the_host_are_not_those_inside() {
        let it = of(r#"{"interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.1/8", "interface": 0}, {"address": "10.0.0.2/8", "interface": 1},
                    {"address": "10.0.0.3/8"}]}"#)
        .unwrap();
        let inside: Vec<String> = it.addresses().map(|it| it.to_string()).collect();
        assert_eq!(inside, ["10.0.0.2/8", "10.0.0.3/8"]);
        assert_eq!(it.ips[0].address.length(), 8);
    }
}
