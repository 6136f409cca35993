//! The caller of CNI plugins with the real ones, in network namespaces of the test's own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use evenkeel::cni::{
    Attachment, Cache, Caller, Checked, Configurations, DEADLINE, Error, Key, PLUGIN_DIRECTORIES,
};
use serde_json::json;

use crate::rig::net::NetworkNamespace;

/// Two addresses of each kind, ports, and rules for who goes out.
const BRIDGE: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "bridged",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "ek-test0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "DATA",
        "ranges": [
          [{"subnet": "10.123.0.0/24", "rangeStart": "10.123.0.2", "rangeEnd": "10.123.0.3"}],
          [{"subnet": "fd12:3456::/64", "rangeStart": "fd12:3456::2", "rangeEnd": "fd12:3456::3"}]
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}"#;

struct Site {
    directory: tempfile::TempDir,
    /// Stands for the host's.
    host: NetworkNamespace,
    configurations: Configurations,
    caller: Caller,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("net.d")).unwrap();
        let data = at("data").display().to_string();
        let bridge = BRIDGE.replace("DATA", &data);
        std::fs::write(at("net.d/10-bridge.conflist"), bridge).unwrap();
        let loopback = r#"{"cniVersion": "0.3.1", "name": "lo", "type": "loopback"}"#;
        std::fs::write(at("net.d/20-lo.conf"), loopback).unwrap();
        let configurations = Configurations::read(&[at("net.d")]);
        let plugins = PLUGIN_DIRECTORIES.map(PathBuf::from);
        let caller = Caller::new(&plugins, Cache::new(&at("cache")), DEADLINE).unwrap();
        Self { host: NetworkNamespace::start(), directory, configurations, caller }
    }

    /// Adds a container to a network and returns its addresses.
    fn add(&self, network: &str, attachment: &Attachment) -> Result<Vec<String>, Error> {
        let network = self.configurations.find(network).unwrap();
        let allocation = self.host.within(async || self.caller.add(network, attachment).await)?;
        Ok(allocation.addresses().map(|it| it.to_string()).collect())
    }

    fn check(&self, key: &Key) -> Result<Checked, Error> {
        self.host.within(async || self.caller.check(key).await)
    }

    fn del(&self, key: &Key) {
        self.host.within(async || self.caller.del(key, None).await).unwrap();
    }

    /// Who has addresses, by host-local's files.
    fn reserved(&self) -> Vec<String> {
        let directory = self.directory.path().join("data/bridged");
        let names = directory.read_dir().unwrap().map(|it| it.unwrap().file_name());
        let names = names.map(|it| it.into_string().unwrap());
        // What it gave last, and its lock, are of nobody.
        let mut names: Vec<String> =
            names.filter(|it| !it.starts_with("last_reserved_ip.") && it != "lock").collect();
        names.sort();
        names
    }

    /// Interfaces on the host's side of containers.
    fn pairs(&self) -> usize {
        self.host.run(&["ip", "-o", "link", "show", "type", "veth"]).lines().count()
    }

    /// Rules that name an address or a port of a container.
    fn rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for tables in ["iptables-save", "ip6tables-save"] {
            let saved = self.host.run(&[tables, "-t", "nat"]);
            let about = |it: &&str| {
                ["10.123.0.", "fd12:3456:", "8080", "web-"].iter().any(|word| it.contains(word))
            };
            rules.extend(saved.lines().filter(about).map(str::to_owned));
        }
        rules
    }

    fn entries(&self) -> usize {
        let listing = self.caller.cache().list().unwrap();
        assert_eq!(listing.broken, []);
        listing.entries.len()
    }
}

fn attachment(container: &str, namespace: &Path) -> Attachment {
    Attachment {
        container: container.to_owned(),
        interface: "eth0".to_owned(),
        namespace: namespace.to_owned(),
        arguments: Vec::new(),
        capabilities: BTreeMap::new(),
    }
}

fn with_port(attachment: Attachment) -> Attachment {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let capabilities = BTreeMap::from([("portMappings".to_owned(), ports)]);
    Attachment { capabilities, ..attachment }
}

#[test]
fn containers_get_addresses_of_the_range_and_give_back_all_that_they_had() {
    let site = Site::new();
    let namespaces = [(); 3].map(|()| NetworkNamespace::start());
    let [one, two, three] =
        [0, 1, 2].map(|at| attachment(&format!("web-{at}"), &namespaces[at].path()));
    // Not asked whether it is as it was: portmap before 1.3 looks for rules of IPv4 among those of IPv6.
    let two = with_port(two);
    let keys = [&one, &two, &three].map(|it| Key::of("bridged", it));
    let before = site.rules();
    assert_eq!(before, [""; 0]);

    assert_eq!(site.add("bridged", &one).unwrap(), ["10.123.0.2/24", "fd12:3456::2/64"]);
    assert_eq!(site.check(&keys[0]).unwrap(), Checked::Sound);
    assert_eq!(site.add("bridged", &two).unwrap(), ["10.123.0.3/24", "fd12:3456::3/64"]);
    assert_eq!(site.check(&keys[0]).unwrap(), Checked::Sound);
    for (namespace, address) in namespaces.iter().zip(["10.123.0.2/24", "10.123.0.3/24"]) {
        let shown = namespace.run(&["ip", "-o", "address", "show", "dev", "eth0"]);
        assert!(shown.contains(address), "{shown}");
    }
    assert_eq!((site.pairs(), site.entries()), (2, 2));
    let rules = site.rules();
    assert!(rules.iter().any(|it| it.contains("--to-destination 10.123.0.3:80")), "{rules:#?}");

    // There are no more, and nothing is left of having tried.
    let error = site.add("bridged", &three).unwrap_err();
    assert_eq!(error.code(), "cni-no-addresses", "{error}");
    assert_eq!((site.pairs(), site.entries()), (2, 2));
    assert_eq!(site.reserved(), ["10.123.0.2", "10.123.0.3", "fd12:3456::2", "fd12:3456::3"]);
    assert_eq!(site.rules(), rules);

    // Somebody takes its way out.
    namespaces[0].run(&["ip", "route", "del", "default"]);
    let error = site.check(&keys[0]).unwrap_err();
    assert_eq!(error.code(), "cni-failed", "{error}");
    site.del(&keys[0]);
    assert_eq!(site.reserved(), ["10.123.0.3", "fd12:3456::3"]);
    assert_eq!(site.add("bridged", &three).unwrap(), ["10.123.0.2/24", "fd12:3456::2/64"]);
    assert_eq!(site.check(&keys[2]).unwrap(), Checked::Sound);

    for (key, namespace) in keys.iter().zip(&namespaces) {
        site.del(key);
        // And for who did not see it.
        site.del(key);
        let links = namespace.run(&["ip", "-o", "link"]);
        assert!(!links.contains("eth0"), "{links}");
    }
    assert_eq!((site.pairs(), site.entries()), (0, 0));
    assert_eq!(site.reserved(), [""; 0]);
    assert_eq!(site.rules(), before);
}

#[test]
fn what_a_container_had_is_given_back_when_its_namespace_is_gone() {
    let site = Site::new();
    let namespace = NetworkNamespace::start();
    let web = with_port(attachment("web-1", &namespace.path()));
    site.add("bridged", &web).unwrap();
    drop(namespace);
    let key = Key::of("bridged", &web);
    assert_eq!(site.check(&key).unwrap_err().code(), "cni-failed");
    site.del(&key);
    assert_eq!(site.reserved(), [""; 0]);
    assert_eq!(site.entries(), 0);
    // Nothing leads to it any more. What bridge made for its way out stays: it looks into the namespace for what to undo.
    let ports: Vec<String> = site.rules().into_iter().filter(|it| it.contains("8080")).collect();
    assert_eq!(ports, [""; 0]);
}

#[test]
fn a_loopback_interface_is_brought_up() {
    let site = Site::new();
    let namespace = NetworkNamespace::start();
    let lo = Attachment { interface: "lo".to_owned(), ..attachment("web-1", &namespace.path()) };
    let is_up =
        || namespace.run(&["ip", "-o", "link", "show", "dev", "lo"]).contains("LOOPBACK,UP");
    assert!(!is_up());
    let addresses = site.add("lo", &lo).unwrap();
    assert_eq!(addresses, ["127.0.0.1/8", "::1/128"]);
    assert!(is_up());
    let key = Key::of("lo", &lo);
    // Its version has no CHECK.
    assert_eq!(site.check(&key).unwrap(), Checked::Skipped);
    site.del(&key);
    assert!(!is_up());
    assert_eq!(site.entries(), 0);
}
