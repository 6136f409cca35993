//! What a running workload prints, as it comes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::exec::in_terminal;
use crate::program::{Site, eventually, manifest, sleeper};
use crate::rig::{Engine, Rig, sweep};

/// Does what it is told in a file of the site, one command a time.
fn obedient(site: &Site, name: &str, more: &str) -> String {
    let script = "echo begun; while :; do if [ -e /site/told ]; then mv /site/told /site/now; . /site/now; : > /site/done; fi; sleep 0.02; done";
    let mounts =
        format!("mounts: [{{type: bind, source: {}, target: /site}}]", site.dir().display());
    manifest(
        name,
        &format!("command: [sh, -c, \"{script}\"]\n{mounts}\nstop: {{signal: SIGKILL}}\n{more}"),
    )
}

fn tell(site: &Site, command: &str) {
    drop(std::fs::remove_file(site.dir().join("done")));
    std::fs::write(site.dir().join("told.new"), command).unwrap();
    std::fs::rename(site.dir().join("told.new"), site.dir().join("told")).unwrap();
}

/// Tells and waits until it is done.
fn told(site: &Site, command: &str) {
    tell(site, command);
    eventually("an obedient program", || site.dir().join("done").exists().then_some(()));
}

fn attach(site: &Site, more: &[&str]) -> Child {
    let mut arguments = vec!["attach", "web"];
    arguments.extend(more);
    let mut command = site.command(&arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Makes it print until the first line of it comes here: then it is attached.
fn until_attached(site: &Site, child: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (sender, attached) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        sender.send(()).unwrap();
        (line, out)
    });
    eventually("a first line", || {
        told(site, "echo hello");
        attached.try_recv().ok()
    });
    let (line, out) = reading.join().unwrap();
    // A terminal ends its lines in its own way.
    assert_eq!(line.replace('\r', ""), "hello\n", "nothing of before");
    out
}

#[tokio::test]
async fn both_streams_come_as_they_are_printed_and_the_code_is_that_of_the_run() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let quick = "restart: {backoff: {initial: 10ms, max: 10ms}}";
    site.write("web.yaml", &obedient(&site, "web", quick));
    let _controller = site.controller();
    let first = site.until_running("web");
    told(&site, "echo before");
    let mut child = attach(&site, &[]);
    let mut out = until_attached(&site, &mut child);
    // It starts again at once, and its next run says `begun`, which is none of this run's words.
    tell(&site, "echo to you; echo to others >&2; printf last; exit 42");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let rest = rest.replace("hello\n", "");
    assert_eq!(rest, "to you\nlast\n", "nothing of the next run");
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "to others\n");
    assert_eq!(child.wait().unwrap().code(), Some(42));
    let second = site.until_running("web");
    assert_ne!(first, second);

    // As JSON, with the stream; and a stop by hand is an end as any other.
    let mut child = attach(&site, &["--output", "json"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let reading = std::thread::spawn(move || {
        out.read_line(&mut line).unwrap();
        (line, out)
    });
    eventually("a first line", || {
        told(&site, "echo hello >&2");
        reading.is_finished().then_some(())
    });
    // Whose other end stays open: it would end with its last reader.
    let (line, _out) = reading.join().unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["stream"], &value["text"]), (&"stderr".into(), &"hello".into()));
    site.run(&["stop", "web"]).exits(0);
    assert_eq!(child.wait().unwrap().code(), Some(137));
    site.run(&["attach", "web"]).exits(3).says(&["`web` does not run", "evenkeel explain web"]);
    site.run(&["attach", "nobody"]).exits(2).says(&["nobody"]);
    site.write("mute.yaml", &(sleeper("mute") + "  log: {driver: none}\n"));
    site.until_running("mute");
    site.run(&["attach", "mute"]).exits(3).says(&["driver: none"]);
}

#[tokio::test]
async fn who_detaches_does_nothing_to_the_workload_and_containerd_may_go_and_come_back() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &obedient(&site, "web", "restart: {policy: never}"));
    site.apply();
    let pid = site.pid("web");
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut child = attach(&site, &[]);
        let _out = until_attached(&site, &mut child);
        sweep::signal(child.id(), signal);
        assert_eq!(child.wait().unwrap().code(), None);
    }
    // The key of a terminal is for all that is in front there.
    let mut child = in_terminal(&site, "trap : INT; $EXE attach web; echo code $?");
    let mut out = until_attached(&site, &mut child);
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("code 130\r\n"), "{rest:?}");
    child.wait().unwrap();
    // Nobody reads any more.
    let mut child = attach(&site, &[]);
    drop(until_attached(&site, &mut child));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(site.pid("web"), pid);
    assert_eq!(site.item("web").unwrap().instance.unwrap().restarts, 0);
    assert_eq!(rig.log_writers().len(), 1);

    let mut child = attach(&site, &[]);
    let mut out = until_attached(&site, &mut child);
    rig.kill_containerd();
    told(&site, "echo alone");
    let mut line = "hello\n".to_owned();
    while line == "hello\n" {
        line.clear();
        out.read_line(&mut line).unwrap();
    }
    assert_eq!(line, "alone\n");
    tell(&site, "exit 9");
    eventually("its end", || (!sweep::is_alive(pid)).then_some(()));
    rig.start_containerd().await;
    // Newer ones forget how a task ended that ended while they were away.
    let code = if Engine::chosen().forgets_tasks() { 3 } else { 9 };
    assert_eq!(child.wait().unwrap().code(), Some(code));
}
