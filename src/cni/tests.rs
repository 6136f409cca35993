//! The caller with plugins that are shell scripts, made by each test.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

/// Far more than a script needs, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_mins(1);

/// Directories of a test.
struct Stage {
    directory: tempfile::TempDir,
    caller: Caller,
}

impl Stage {
    fn new() -> Self {
        Self::with_deadline(PATIENCE)
    }

    fn with_deadline(deadline: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("bin")).unwrap();
        let plugins = [at("nowhere"), at("bin")];
        let caller = Caller::new(&plugins, Cache::new(&at("cache")), deadline).unwrap();
        Self { directory, caller }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A plugin that writes down how it was called and goes on as the script says.
    fn plugin(self, name: &str, script: &str) -> Self {
        let to = self.directory.path().display();
        let script = format!(
            "#!/bin/sh\n\
             tr '\\0' '\\n' </proc/$$/environ >{to}/{name}.$CNI_COMMAND.environment\n\
             cat >{to}/{name}.$CNI_COMMAND.input\n\
             echo \"$CNI_COMMAND {name}\" >>{to}/calls\n\
             {script}\n"
        );
        self.program(name, &script)
    }

    /// Nobody here ever has it open for writing: one that has cannot be run, and a thread that starts another program
    /// meanwhile would give it a copy.
    fn program(self, name: &str, content: &str) -> Self {
        let write = r#"printf %s "$1" >"$2" && chmod 755 "$2""#;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", write, "sh", content]).arg(self.path("bin").join(name));
        assert!(command.status().unwrap().success());
        self
    }

    /// What was called, in order, and forgets it.
    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        std::fs::remove_file(self.path("calls")).ok();
        calls.lines().map(str::to_owned).collect()
    }

    fn input_text(&self, call: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{call}.input"))).unwrap()
    }

    /// The configuration that a call was given.
    fn input(&self, call: &str) -> Value {
        serde_json::from_str(&self.input_text(call)).unwrap()
    }

    fn environment(&self, call: &str) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(self.path(&format!("{call}.environment"))).unwrap();
        let pairs = text.lines().map(|it| it.split_once('=').unwrap());
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The entries of the cache, by what they are about.
    fn entries(&self) -> Vec<String> {
        let listing = self.caller.cache().list().unwrap();
        assert_eq!(listing.broken, []);
        listing.entries.iter().map(|it| it.key().to_string()).collect()
    }

    async fn add(&self, network: &Network) -> Result<Allocation, Error> {
        self.caller.add(network, &attachment()).await
    }

    async fn del(&self) -> Result<(), Error> {
        self.caller.del(&key(), None).await
    }

    async fn check(&self) -> Result<Checked, Error> {
        self.caller.check(&key()).await
    }
}

const ENTRY: &str = "`eth0` of `web-1` on network `net`";

/// A result that says who printed it.
fn result(address: &str) -> String {
    format!(r#"{{"cniVersion": "1.0.0", "ips": [{{"address": "{address}"}}]}}"#)
}

/// A script that prints that result on ADD.
fn gives(address: &str) -> String {
    format!("[ $CNI_COMMAND != ADD ] || echo '{}'", result(address))
}

/// A script that fails like this when it is called for that.
fn fails(verb: &str, output: &str) -> String {
    format!("if [ $CNI_COMMAND = {verb} ]; then echo '{output}'; exit 1; fi")
}

fn fault(code: u32, message: &str) -> String {
    format!(r#"{{"code": {code}, "msg": "{message}"}}"#)
}

fn network_of(version: &str, plugins: &Value) -> Network {
    let text = json!({"cniVersion": version, "name": "net", "plugins": plugins}).to_string();
    Network::parse(&text).unwrap()
}

fn network(plugins: &[&str]) -> Network {
    let plugins: Vec<Value> = plugins.iter().map(|it| json!({"type": it})).collect();
    network_of("1.0.0", &json!(plugins))
}

fn attachment() -> Attachment {
    Attachment {
        container: "web-1".to_owned(),
        interface: "eth0".to_owned(),
        namespace: PathBuf::from("/proc/self/ns/net"),
        arguments: Vec::new(),
        capabilities: BTreeMap::new(),
    }
}

fn key() -> Key {
    Key::of("net", &attachment())
}

fn addresses(allocation: &Allocation) -> Vec<String> {
    allocation.addresses().map(|it| it.to_string()).collect()
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|it| !it.1.starts_with(['Z', 'X']))
}

/// Waits for what another process will do.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

/// The number of a process, once it has written it down.
async fn pid_in(path: &Path) -> String {
    let read = || std::fs::read_to_string(path).ok().filter(|it| it.ends_with('\n'));
    until("a process says its number", || read().is_some()).await;
    read().unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_chain_is_added_in_order_and_deleted_in_reverse_with_the_results_before() {
    let stage = Stage::new()
        .plugin("one", &gives("10.0.0.1/8"))
        .plugin("two", &gives("10.0.0.2/8"))
        .plugin("three", &gives("10.0.0.3/8"));
    let network = network(&["one", "two", "three"]);
    let allocation = stage.add(&network).await.unwrap();
    assert_eq!(addresses(&allocation), ["10.0.0.3/8"]);
    assert_eq!(stage.calls(), ["ADD one", "ADD two", "ADD three"]);
    assert_eq!(
        stage.input("one.ADD"),
        json!({"cniVersion": "1.0.0", "name": "net", "type": "one"})
    );
    let result = |address: &str| serde_json::from_str::<Value>(&result(address)).unwrap();
    assert_eq!(stage.input("two.ADD")["prevResult"], result("10.0.0.1/8"));
    assert_eq!(stage.input("three.ADD")["prevResult"], result("10.0.0.2/8"));
    assert_eq!(stage.entries(), [ENTRY]);

    assert_eq!(stage.check().await.unwrap(), Checked::Sound);
    assert_eq!(stage.calls(), ["CHECK one", "CHECK two", "CHECK three"]);
    stage.del().await.unwrap();
    assert_eq!(stage.calls(), ["DEL three", "DEL two", "DEL one"]);
    for plugin in ["one", "two", "three"] {
        for verb in ["CHECK", "DEL"] {
            let previous = &stage.input(&format!("{plugin}.{verb}"))["prevResult"];
            assert_eq!(*previous, result("10.0.0.3/8"), "{plugin} {verb}");
        }
    }
    assert_eq!(stage.entries(), [""; 0]);
    // And again, for who did not see that it was done.
    stage.del().await.unwrap();
    assert_eq!(stage.calls(), [""; 0]);
}

#[tokio::test]
async fn the_environment_is_what_the_protocol_says_and_nothing_of_ours() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    let mut attachment = attachment();
    attachment.arguments =
        vec![("IgnoreUnknown".to_owned(), "1".to_owned()), ("POD".to_owned(), "a=b".to_owned())];
    stage.caller.add(&network(&["one"]), &attachment).await.unwrap();
    stage.check().await.unwrap();
    stage.del().await.unwrap();
    for verb in ["ADD", "CHECK", "DEL"] {
        let mut environment = stage.environment(&format!("one.{verb}"));
        let path = environment.remove("PATH").unwrap();
        let ours = std::env::var("PATH").unwrap();
        assert!(path.starts_with(&ours) && path.ends_with(":/usr/sbin:/usr/bin:/sbin:/bin"));
        let plugins =
            format!("{}:{}", stage.path("nowhere").display(), stage.path("bin").display());
        let expected = [
            ("CNI_ARGS", "IgnoreUnknown=1;POD=a=b"),
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "web-1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_PATH", plugins.as_str()),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(environment, BTreeMap::from(expected));
    }
}

#[tokio::test]
async fn a_plugin_is_told_what_it_declares_and_what_nobody_understands_is_passed_on() {
    let stage =
        Stage::new().plugin("one", &gives("10.0.0.1/8")).plugin("two", &gives("10.0.0.2/8"));
    let text = r#"{"cniVersion": "1.0.0", "name": "net", "other": 1, "plugins": [
        {"zeta": [1.0, 1e400, "\u00e9"], "type": "one", "name": "else", "cniVersion": "0.1.0",
         "capabilities": {"portMappings": true, "mac": false, "ips": true}, "args": {"cni": {}},
         "runtimeConfig": {"mac": "x"}, "prevResult": {"ips": []}, "cni.dev/x": 1, "alpha": {"b":1, "a":2}},
        {"type": "two", "capabilities": {"mac": true}}]}"#;
    let network = Network::parse(text).unwrap();
    assert!(network.declares("portMappings") && network.declares("mac"));
    assert!(!network.declares("bandwidth"));
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let mut attachment = attachment();
    attachment.capabilities = BTreeMap::from([
        ("portMappings".to_owned(), ports),
        ("mac".to_owned(), json!("00:11:22:33:44:66")),
        ("bandwidth".to_owned(), json!({"ingressRate": 1})),
    ]);
    stage.caller.add(&network, &attachment).await.unwrap();
    assert_eq!(
        stage.input_text("one.ADD"),
        r#"{"cniVersion":"1.0.0","name":"net","zeta":[1.0, 1e400, "\u00e9"],"type":"one","args":{"cni": {}},"alpha":{"b":1, "a":2},"runtimeConfig":{"portMappings":[{"containerPort":80,"hostPort":8080,"protocol":"tcp"}]}}"#
    );
    let told = json!({"mac": "00:11:22:33:44:66"});
    assert_eq!(stage.input("two.ADD")["runtimeConfig"], told);
    // As it was told at first, whatever is wanted now.
    stage.check().await.unwrap();
    stage.del().await.unwrap();
    assert_eq!(stage.input("two.CHECK")["runtimeConfig"], told);
    assert_eq!(stage.input("two.DEL")["runtimeConfig"], told);
}

#[tokio::test]
async fn a_chain_that_fails_is_undone_as_a_whole_and_the_first_failure_is_told() {
    let stage = Stage::new()
        .plugin("one", &gives("10.0.0.1/8"))
        .plugin("two", &fails("ADD", &fault(100, "the first")))
        .plugin("three", &gives("10.0.0.3/8"));
    let error = stage.add(&network(&["one", "two", "three"])).await.unwrap_err();
    assert_eq!(error.code(), "cni-failed");
    assert_eq!(
        error.to_string(),
        "the plugin `two` of network `net`, called for ADD, failed: the first"
    );
    assert_eq!(stage.calls(), ["ADD one", "ADD two", "DEL three", "DEL two", "DEL one"]);
    // What was done until then.
    assert_eq!(stage.input("one.DEL")["prevResult"]["ips"][0]["address"], "10.0.0.1/8");
    assert_eq!(stage.entries(), [""; 0]);
}

#[tokio::test]
async fn what_could_not_be_undone_keeps_its_entry_until_it_is_deleted() {
    let both = format!(
        "{}\n[ -e {{}}/mended ] || {}",
        fails("ADD", &fault(100, "the first")),
        fails("DEL", &fault(100, "the second"))
    );
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    let to = stage.directory.path().display().to_string();
    let stage = stage.plugin("two", &both.replace("{}", &to));
    let network = network(&["one", "two"]);
    let error = stage.add(&network).await.unwrap_err();
    assert!(error.to_string().ends_with("the first"), "{error}");
    // The failure of one is no reason to leave what another did.
    assert_eq!(stage.calls(), ["ADD one", "ADD two", "DEL two", "DEL one"]);
    assert_eq!(stage.entries(), [ENTRY]);
    let listing = stage.caller.cache().list().unwrap();
    assert_eq!(listing.entries[0].allocation(), None);

    // It is neither there nor gone.
    assert_eq!(stage.check().await.unwrap_err().code(), "cni-not-added");
    assert_eq!(stage.add(&network).await.unwrap_err().code(), "cni-already-added");
    assert_eq!(stage.calls(), [""; 0]);
    // An address is not given back while anything may still lead to it.
    let error = stage.del().await.unwrap_err();
    assert!(error.to_string().ends_with("called for DEL, failed: the second"), "{error}");
    assert_eq!(stage.calls(), ["DEL two"]);
    assert_eq!(stage.entries(), [ENTRY]);

    std::fs::write(stage.path("mended"), "").unwrap();
    stage.del().await.unwrap();
    assert_eq!(stage.calls(), ["DEL two", "DEL one"]);
    assert_eq!(stage.entries(), [""; 0]);
}

#[tokio::test]
async fn nothing_is_done_when_a_program_of_the_chain_is_missing() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    // There, and no program.
    std::fs::write(stage.path("bin/two"), "").unwrap();
    std::fs::create_dir(stage.path("bin/three")).unwrap();
    for plugins in [
        json!([{"type": "one"}, {"type": "absent"}]),
        json!([{"type": "one"}, {"type": "two"}]),
        json!([{"type": "one"}, {"type": "three"}]),
        json!([{"type": "one", "ipam": {"type": "absent"}}]),
    ] {
        let error = stage.add(&network_of("1.0.0", &plugins)).await.unwrap_err();
        assert_eq!(error.code(), "cni-plugin-missing");
        let (text, bin) = (error.to_string(), stage.path("bin").display().to_string());
        assert!(text.contains(&bin) && text.contains("containernetworking-plugins"), "{text}");
        assert_eq!(stage.calls(), [""; 0]);
        assert_eq!(stage.entries(), [""; 0]);
    }
    let error = stage.add(&network_of("1.0.0", &json!([{"type": "one", "ipam": {}}]))).await;
    error.unwrap();
}

#[tokio::test]
async fn the_first_directory_with_the_program_counts() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    std::fs::rename(stage.path("bin"), stage.path("nowhere")).unwrap();
    std::fs::create_dir(stage.path("bin")).unwrap();
    let stage = stage.plugin("one", &gives("10.0.0.2/8"));
    let allocation = stage.add(&network(&["one"])).await.unwrap();
    assert_eq!(addresses(&allocation), ["10.0.0.1/8"]);
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_all_that_it_started_and_undone() {
    let hangs = async |script: &str| {
        // Long enough for DEL on a busy machine.
        let stage = Stage::with_deadline(Duration::from_secs(3));
        let to = stage.directory.path().display().to_string();
        let script = format!(
            "[ $CNI_COMMAND = ADD ] || exit 0\n\
             sleep 1000 & echo $! >{to}/inner; echo $$ >{to}/outer\n{script}"
        );
        let stage = stage.plugin("one", &script);
        let error = stage.add(&network(&["one"])).await.unwrap_err();
        assert_eq!(error.code(), "cni-plugin-timeout");
        assert!(error.to_string().contains("did not end within 3s and was killed"), "{error}");
        assert_eq!(stage.calls(), ["ADD one", "DEL one"]);
        assert_eq!(stage.entries(), [""; 0]);
        let (outer, inner) =
            (pid_in(&stage.path("outer")).await, pid_in(&stage.path("inner")).await);
        // Waited for, so that not even its number is left.
        assert!(!Path::new(&format!("/proc/{outer}")).exists());
        until("what it started is gone", || !is_alive(&inner)).await;
    };
    // The second ends by itself, and what it started keeps its output open.
    tokio::join!(hangs("trap '' TERM; wait"), hangs("exit 0"));
}

#[tokio::test]
async fn who_stops_waiting_kills_the_plugin_and_leaves_an_entry_that_can_be_deleted() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    let to = stage.directory.path().display().to_string();
    let hangs = format!("[ $CNI_COMMAND = DEL ] || {{ sleep 1000 & echo $! >{to}/inner; wait; }}");
    let stage = stage.plugin("two", &hangs);
    let network = network(&["one", "two"]);
    let path = stage.path("inner");
    let inner = tokio::select! {
        result = stage.add(&network) => panic!("it ended: {result:?}"),
        inner = pid_in(&path) => inner,
    };
    until("the plugin and what it started are gone", || !is_alive(&inner)).await;
    assert_eq!(stage.calls(), ["ADD one", "ADD two"]);
    assert_eq!(stage.entries(), [ENTRY]);
    assert_eq!(stage.check().await.unwrap_err().code(), "cni-not-added");
    // With what was known by then.
    stage.del().await.unwrap();
    assert_eq!(stage.calls(), ["DEL two", "DEL one"]);
    assert_eq!(stage.input("one.DEL")["prevResult"]["ips"][0]["address"], "10.0.0.1/8");
    assert_eq!(stage.entries(), [""; 0]);
}

#[tokio::test]
async fn what_is_no_result_is_told_in_few_words_and_undone() {
    let long = "\\033".repeat(1000);
    for (script, what) in [
        ("echo hello; echo '\"you\"'", "printed `hello\\n\"you\"`"),
        ("", "printed nothing"),
        ("echo '[]'", "printed `[]`"),
        ("echo '{} {}'", "printed `{} {}`"),
        ("printf '\\377'", "printed what is not UTF-8: \u{fffd}"),
        (&format!("printf '{long}'"), &format!("printed `{}…`", "\\u{1b}".repeat(33))),
        ("echo broken; exit 3", "printed `broken`"),
        ("echo '{\"msg\": \"no number\"}'; exit 3", "printed `{\"msg\": \"no number\"}`"),
        (
            "echo '{\"ips\": [{\"address\": \"10.0.0.1\"}]}'",
            "printed no result: `10.0.0.1` is no address with a length at line 1 column 32",
        ),
        ("head -c 1048577 /dev/zero", "printed more than 1048576 bytes"),
        ("exec cat /dev/zero", "printed more than 1048576 bytes"),
    ] {
        let stage =
            Stage::new().plugin("one", &format!("[ $CNI_COMMAND = ADD ] || exit 0\n{script}"));
        let error = stage.add(&network(&["one"])).await.unwrap_err();
        assert_eq!(error.code(), "cni-plugin-garbage", "{script}");
        assert_eq!(
            error.to_string(),
            format!(
                "the plugin `one` of network `net`, called for ADD, does not keep to the protocol: it {what}; replace it or its configuration"
            )
        );
        assert_eq!(stage.calls(), ["ADD one", "DEL one"], "{script}");
        assert_eq!(stage.entries(), [""; 0], "{script}");
    }
}

#[tokio::test]
async fn a_plugin_may_log_a_lot_read_nothing_and_answer_at_length() {
    let filler = "x".repeat(900_000);
    let result = format!(r#"{{"ips": [{{"address": "10.0.0.1/8"}}], "more": "{filler}"}}"#);
    let stage = Stage::new();
    std::fs::write(stage.path("result"), &result).unwrap();
    let to = stage.directory.path().display().to_string();
    let script = format!("#!/bin/sh\nhead -c 3000000 /dev/zero >&2 || exit\ncat {to}/result\n");
    let stage = stage.program("one", &script).plugin("two", &gives("10.0.0.2/8"));
    let network = network_of("1.0.0", &json!([{"type": "one", "filler": filler}, {"type": "two"}]));
    assert_eq!(addresses(&stage.add(&network).await.unwrap()), ["10.0.0.2/8"]);
    assert_eq!(stage.input("two.ADD")["prevResult"]["more"].as_str().unwrap().len(), 900_000);
    stage.del().await.unwrap();
    assert_eq!(stage.entries(), [""; 0]);
}

#[tokio::test]
async fn what_a_plugin_says_has_a_kind_and_an_advice() {
    let exhausted =
        "failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.2";
    let no_iptables = r#"exec: \"iptables\": executable file not found in $PATH"#;
    for (output, code, told) in [
        (fault(999, exhausted), "cni-no-addresses", "widen the range"),
        (fault(999, no_iptables), "cni-tool-missing", "install it (for port mappings: iptables)"),
        (
            fault(999, "neither iptables nor ip6tables usable"),
            "cni-tool-missing",
            "install it (for port mappings: iptables)",
        ),
        (fault(1, "incompatible CNI versions"), "cni-version-refused", "as `cniVersion`"),
        (fault(2, "x"), "cni-config-invalid", "refuses its configuration: change that: x"),
        (fault(7, "x"), "cni-config-invalid", "refuses its configuration: change that: x"),
        (fault(11, "x"), "cni-try-later", "or wait: x"),
        (fault(50, "x"), "cni-try-later", "or wait: x"),
        (fault(100, ""), "cni-failed", "failed: it gives the number 100 and no reason"),
        (
            r#"{"cniVersion": "1.0.0", "code": 5, "msg": "a\nb", "details": "c\u001b[31m"}"#
                .to_owned(),
            "cni-failed",
            "failed: a\\nb; c\\u{1b}[31m",
        ),
    ] {
        let stage = Stage::new();
        std::fs::write(stage.path("fault"), &output).unwrap();
        let to = stage.directory.path().display().to_string();
        let stage = stage
            .plugin("one", &format!("[ $CNI_COMMAND = DEL ] || {{ cat {to}/fault; exit 1; }}"));
        let error = stage.add(&network(&["one"])).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(stage.entries(), [""; 0]);
    }
    // Who says nothing where it should may have said it elsewhere.
    for (script, told) in [
        ("echo oops >&2; exit 3", "failed: exit status: 3, and says `oops` about that"),
        ("kill -9 $$", "failed: signal: 9 (SIGKILL), and says nothing about that"),
    ] {
        let stage = Stage::new();
        let stage = stage.plugin("one", &format!("[ $CNI_COMMAND = DEL ] || {{ {script}; }}"));
        let error = stage.add(&network(&["one"])).await.unwrap_err();
        assert_eq!(error.code(), "cni-failed");
        assert!(error.to_string().ends_with(told), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_program_for_this_machine_is_told() {
    let stage = Stage::new().program("one", "neither one nor the other");
    let error = stage.add(&network(&["one"])).await.unwrap_err();
    assert_eq!(error.code(), "cni-plugin-unusable");
    assert!(error.to_string().contains("bin/one` is a program for this machine"), "{error}");
    // Not even DEL could be called, so it is not known that nothing is left.
    assert_eq!(stage.entries(), [ENTRY]);
}

#[tokio::test]
async fn a_check_is_skipped_where_it_is_not_allowed_and_refused_where_nothing_is() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    assert_eq!(stage.check().await.unwrap_err().code(), "cni-not-added");
    for (version, extra, expected) in [
        ("0.3.0", "", Checked::Skipped),
        ("0.3.1", "", Checked::Skipped),
        ("0.4.0", "", Checked::Sound),
        ("1.0.0", "", Checked::Sound),
        ("1.0.0", r#""disableCheck": true,"#, Checked::Skipped),
        ("1.0.0", r#""disableCheck": "True","#, Checked::Skipped),
        ("1.0.0", r#""disableCheck": false,"#, Checked::Sound),
    ] {
        let text = format!(
            r#"{{"cniVersion": "{version}", "name": "net", {extra} "plugins": [{{"type": "one"}}]}}"#
        );
        stage.add(&Network::parse(&text).unwrap()).await.unwrap();
        stage.calls();
        assert_eq!(stage.check().await.unwrap(), expected, "{text}");
        let calls: &[&str] = if expected == Checked::Sound { &["CHECK one"] } else { &[] };
        assert_eq!(stage.calls(), calls, "{text}");
        stage.del().await.unwrap();
        // It came with CHECK.
        let has_previous = stage.input("one.DEL").get("prevResult").is_some();
        assert_eq!(has_previous, !version.starts_with("0.3"), "{text}");
    }
}

#[tokio::test]
async fn a_check_ends_at_the_first_that_says_no_and_changes_nothing() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    let no = format!("{}\n{}", fails("CHECK", &fault(100, "eth0 is gone")), gives("10.0.0.2/8"));
    let stage = stage.plugin("two", &no).plugin("three", &gives("10.0.0.3/8"));
    stage.add(&network(&["one", "two", "three"])).await.unwrap();
    stage.calls();
    let error = stage.check().await.unwrap_err();
    assert!(error.to_string().ends_with("called for CHECK, failed: eth0 is gone"), "{error}");
    assert_eq!(stage.calls(), ["CHECK one", "CHECK two"]);
    assert_eq!(stage.entries(), [ENTRY]);
}

#[tokio::test]
async fn what_is_there_is_not_added_again() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    let network = network(&["one"]);
    stage.add(&network).await.unwrap();
    stage.calls();
    let error = stage.add(&network).await.unwrap_err();
    assert_eq!(error.code(), "cni-already-added");
    assert!(error.to_string().starts_with(ENTRY), "{error}");
    assert_eq!(stage.calls(), [""; 0]);
    // Another interface of it, and another container, are others.
    let second = Attachment { interface: "eth1".to_owned(), ..attachment() };
    stage.caller.add(&network, &second).await.unwrap();
    let other = Attachment { container: "web-2".to_owned(), ..attachment() };
    stage.caller.add(&network, &other).await.unwrap();
    assert_eq!(stage.entries().len(), 3);
}

#[tokio::test]
async fn what_was_added_is_deleted_as_it_was_added() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8")).plugin("two", "exit 0");
    let mut attachment = attachment();
    attachment.arguments = vec![("a".to_owned(), "b".to_owned())];
    let before = network_of("0.4.0", &json!([{"type": "one", "bridge": "old"}]));
    stage.caller.add(&before, &attachment).await.unwrap();
    stage.calls();
    let after = network_of("1.0.0", &json!([{"type": "two", "bridge": "new"}]));
    attachment.arguments.clear();
    stage.caller.del(&key(), Some((&after, &attachment))).await.unwrap();
    assert_eq!(stage.calls(), ["DEL one"]);
    let input = stage.input("one.DEL");
    assert_eq!((&input["bridge"], &input["cniVersion"]), (&json!("old"), &json!("0.4.0")));
    assert_eq!(stage.environment("one.DEL")["CNI_ARGS"], "a=b");
}

#[tokio::test]
async fn what_has_no_entry_is_deleted_with_the_present_configuration() {
    let stage = Stage::new().plugin("one", "exit 0");
    let present = network(&["one"]);
    stage.caller.del(&key(), Some((&present, &attachment()))).await.unwrap();
    assert_eq!(stage.calls(), ["DEL one"]);
    assert!(stage.input("one.DEL").get("prevResult").is_none());
    // That of another one is no help.
    let other = Attachment { container: "web-2".to_owned(), ..attachment() };
    let error = stage.caller.del(&key(), Some((&present, &other))).await.unwrap_err();
    assert_eq!(error.code(), "cni-attachment-invalid");
    assert_eq!(stage.calls(), [""; 0]);
}

#[tokio::test]
async fn a_broken_entry_is_told_hides_no_other_and_goes_with_the_present_configuration() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    let network = network(&["one"]);
    for container in ["web-1", "web-2", "web-3"] {
        let attachment = Attachment { container: container.to_owned(), ..attachment() };
        stage.caller.add(&network, &attachment).await.unwrap();
    }
    stage.calls();
    let cache = stage.path("cache");
    let of = |container: &str| cache.join(format!("net@{container}@eth0"));
    let whole = std::fs::read_to_string(of("web-2")).unwrap();
    std::fs::write(of("web-1"), &whole[..whole.len() / 2]).unwrap();
    // That of another one, a foreign one, and one that was not written to its end.
    std::fs::copy(of("web-2"), of("web-4")).unwrap();
    std::fs::write(cache.join("foreign"), "").unwrap();
    std::fs::write(cache.join(".net@web-5@eth0.x.new"), "{").unwrap();

    let listing = stage.caller.cache().list().unwrap();
    let keys: Vec<String> = listing.entries.iter().map(|it| it.key().container).collect();
    assert_eq!(keys, ["web-2", "web-3"]);
    let allocation = listing.entries[0].allocation().unwrap();
    assert_eq!(addresses(&allocation), ["10.0.0.1/8"]);
    let broken: Vec<(Option<String>, &str)> = listing
        .broken
        .iter()
        .map(|it| (it.key.as_ref().map(|key| key.container.clone()), it.reason.as_str()))
        .collect();
    assert_eq!(broken[0].0, None);
    assert_eq!(broken[1].0.as_deref(), Some("web-1"));
    assert_eq!(
        broken[2],
        (Some("web-4".to_owned()), "it is about `eth0` of `web-2` on network `net`")
    );
    assert_eq!(broken.len(), 3);

    // It may say that something is there.
    assert_eq!(stage.add(&network).await.unwrap_err().code(), "cni-cache-broken");
    assert_eq!(stage.check().await.unwrap_err().code(), "cni-cache-broken");
    assert_eq!(stage.del().await.unwrap_err().code(), "cni-cache-broken");
    assert_eq!(stage.calls(), [""; 0]);
    stage.caller.del(&key(), Some((&network, &attachment()))).await.unwrap();
    assert_eq!(stage.calls(), ["DEL one"]);
    assert!(!of("web-1").exists());
}

#[tokio::test]
async fn an_entry_that_says_too_little_is_broken() {
    type Change = fn(&mut Value);

    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    stage.add(&network(&["one"])).await.unwrap();
    let path = stage.path("cache").join("net@web-1@eth0");
    let whole: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let changes: [(Change, &str); 6] = [
        (|it| it["kind"] = json!("evenkeel/cni/2"), "it is of another kind: `evenkeel/cni/2`"),
        (|it| it["result"] = Value::Null, "it has no result"),
        (|it| it["result"]["ips"][0]["address"] = json!("x"), "`x` is no address with a length"),
        (|it| it["configuration"]["name"] = json!("other"), "its configuration is that of `other`"),
        (|it| it["configuration"]["plugins"] = json!([]), "`plugins` is empty"),
        (|it| it["attachment"]["namespace"] = json!("n"), "`n` is no path of a network namespace"),
    ];
    for (change, why) in changes {
        let mut it = whole.clone();
        change(&mut it);
        std::fs::write(&path, it.to_string()).unwrap();
        let listing = stage.caller.cache().list().unwrap();
        assert!(listing.entries.is_empty());
        assert!(listing.broken[0].reason.starts_with(why), "{}", listing.broken[0].reason);
    }
}

#[tokio::test]
async fn what_may_be_added_may_be_deleted_however_deep_it_is() {
    let stage = Stage::new();
    // With the object, the list and the object around it.
    let nested = |around: usize| format!("{}{}", "[".repeat(64 - around), "]".repeat(64 - around));
    let result = format!(r#"{{"ips": [], "deep": {}}}"#, nested(1));
    std::fs::write(stage.path("result"), result).unwrap();
    let to = stage.directory.path().display().to_string();
    let stage = stage.plugin("one", &format!("cat {to}/result"));
    let deep = format!(
        r#"{{"cniVersion": "1.0.0", "name": "net", "plugins": [{{"type": "one", "deep": {}}}]}}"#,
        nested(3)
    );
    stage.add(&Network::parse(&deep).unwrap()).await.unwrap();
    assert_eq!(stage.check().await.unwrap(), Checked::Sound);
    stage.del().await.unwrap();
    assert_eq!(stage.entries(), [""; 0]);
    Network::parse(&deep.replace("[[[", "[[[[").replace("]]]", "]]]]")).unwrap_err();
}

#[tokio::test]
async fn an_entry_that_cannot_be_written_keeps_everything_from_being_done() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    // Nobody can make a directory there.
    let cache = Cache::new(Path::new("/proc/absent/cache"));
    let caller = Caller::new(&[stage.path("bin")], cache, PATIENCE).unwrap();
    let error = caller.add(&network(&["one"]), &attachment()).await.unwrap_err();
    assert_eq!(error.code(), "cni-cache-failed", "{error}");
    assert_eq!(stage.calls(), [""; 0]);
    assert!(caller.cache().list().unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_result_that_cannot_be_kept_is_undone() {
    let stage = Stage::new();
    let to = stage.directory.path().display().to_string();
    // The directory becomes a file while the plugin runs.
    let script = format!("[ $CNI_COMMAND = DEL ] || {{ rm -r {to}/cache; touch {to}/cache; }}");
    let stage = stage.plugin("one", &format!("{script}\n{}", gives("10.0.0.1/8")));
    let error = stage.add(&network(&["one"])).await.unwrap_err();
    assert_eq!(error.code(), "cni-cache-failed", "{error}");
    assert_eq!(stage.calls(), ["ADD one", "DEL one"]);
}

#[tokio::test]
async fn the_path_of_a_namespace_that_is_gone_is_told_to_nobody_on_delete() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    let absent = stage.path("absent");
    // What is left when it is unmounted.
    let empty = stage.path("empty");
    std::fs::write(&empty, "").unwrap();
    let there = PathBuf::from("/proc/self/ns/net");
    for (namespace, told) in [(absent, ""), (empty, ""), (there, "/proc/self/ns/net")] {
        let attachment = Attachment { namespace, ..attachment() };
        stage.caller.add(&network(&["one"]), &attachment).await.unwrap();
        stage.del().await.unwrap();
        assert_eq!(stage.environment("one.DEL")["CNI_NETNS"], told);
        assert_eq!(
            Path::new(&stage.environment("one.ADD")["CNI_NETNS"]),
            attachment.namespace.as_path()
        );
    }
}

#[tokio::test]
async fn names_and_directories_that_lead_elsewhere_are_refused_before_anything_is_done() {
    let stage = Stage::new().plugin("one", &gives("10.0.0.1/8"));
    for bad in [
        Attachment { container: "../x".to_owned(), ..attachment() },
        Attachment { interface: "a/b".to_owned(), ..attachment() },
        Attachment { namespace: PathBuf::from("ns"), ..attachment() },
        Attachment { arguments: vec![("a;b".to_owned(), String::new())], ..attachment() },
    ] {
        let error = stage.caller.add(&network(&["one"]), &bad).await.unwrap_err();
        assert_eq!(error.code(), "cni-attachment-invalid", "{error}");
    }
    assert_eq!(stage.calls(), [""; 0]);
    for bad in ["plugins", "/opt/a:b"] {
        let cache = Cache::new(&stage.path("cache"));
        let error = Caller::new(&[PathBuf::from(bad)], cache, DEADLINE).unwrap_err();
        assert_eq!(error.code(), "cni-config-invalid");
        assert!(error.to_string().starts_with(&format!("`{bad}` cannot be used")), "{error}");
    }
}
