//! Commands beside a workload's program, on a real containerd.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::program::{Site, eventually, sleeper, until_dead};
use crate::rig::{Rig, sweep};

/// A site with `web`, which sleeps.
fn with_web(rig: &Rig) -> Site {
    let site = Site::of(rig);
    site.write("web.yaml", &sleeper("web"));
    site.apply();
    site
}

/// Starts an `exec` with pipes; what stands behind `--` is a script for the container's shell.
fn start(site: &Site, flags: &[&str], script: &str) -> Child {
    let mut arguments = vec!["exec"];
    arguments.extend(flags);
    // The site's own flags come behind, and what is behind `--` is not for us.
    let mut command = site.command(&[]);
    command.args(arguments).args(["web", "--", "sh", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |it: Vec<u8>| String::from_utf8(it).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn run(site: &Site, flags: &[&str], script: &str) -> (Option<i32>, String, String) {
    ended(start(site, flags, script))
}

/// Processes of the container other than its own program, which does not reap those that are left to it.
fn others(pid: u32) -> usize {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(&pid.to_string());
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let is_in = |it: &std::fs::DirEntry| {
        let name = it.file_name().into_string().unwrap_or_default();
        name.parse()
            .is_ok_and(|it: u32| it != pid && namespace(&name) == own && sweep::is_alive(it))
    };
    all.filter(is_in).count()
}

/// Waits until a file is in the container.
fn until_there(pid: u32, path: &str) {
    let path = format!("/proc/{pid}/root{path}");
    eventually("a sign of the process", || std::path::Path::new(&path).exists().then_some(()));
}

/// Waits until a process has printed `up`: that is passed on here, so the command knows that it runs.
fn until_up(child: &mut Child) {
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    assert_eq!(&up, b"up\n");
}

fn no_leftovers(site: &Site, pid: u32) {
    eventually("no other process", || (others(pid) == 0).then_some(()));
    let left = std::fs::read_dir(site.run_dir().join("exec")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn the_code_and_both_outputs_are_those_of_the_process() {
    let rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    for code in [0, 1, 3, 42, 255] {
        let script = format!("echo out; echo err >&2; exit {code}");
        assert_eq!(run(&site, &[], &script), (Some(code), "out\n".to_owned(), "err\n".to_owned()));
    }
    // Nothing is read unless it is asked for.
    assert_eq!(run(&site, &[], "cat; echo end").1, "end\n");
    let (_, out, _) = run(
        &site,
        &["--env", "A=b c", "-e", "B=", "--workdir", "/tmp", "--user", "12:34"],
        "echo \"$A|$B|$(pwd)|$(id -u):$(id -g)\"; grep CapEff /proc/self/status",
    );
    assert!(out.starts_with("b c||/tmp|12:34\n"), "{out}");
    assert!(out.ends_with("0000000000000000\n"), "somebody else has no rights of root: {out}");
    // What is not there has a shell's codes, and says so.
    for (command, code) in [("nonexistent", 127), ("/etc", 126)] {
        let mut direct = site.command(&[]);
        let output = direct.args(["exec", "web", "--", command]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.starts_with("error: failed to start a process in `web-"), "{error}");
    }
    for state in ["running", "stopped"] {
        site.write("idle.yaml", &format!("{}  state: {state}\n", sleeper("idle")));
        site.apply();
    }
    for (name, code) in [("idle", 3), ("nobody", 2)] {
        let mut command = site.command(&[]);
        let output = command.args(["exec", name, "--", "true"]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.starts_with("error: ") && error.contains(name), "{error}");
    }
    no_leftovers(&site, pid);
    assert_eq!(site.pid("web"), pid, "nothing happened to the workload");
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn input_comes_to_its_end_and_output_is_drained_to_the_end() {
    let rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    let mut child = start(&site, &["-i"], "cat; echo; echo end");
    let mut input = child.stdin.take().unwrap();
    let text = "0123456789abcde\n".repeat(1 << 17);
    let writing = {
        let text = text.clone();
        std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap())
    };
    let (code, out, err) = ended(child);
    writing.join().unwrap();
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out == text + "\nend\n", "{} bytes", out.len());
    // The last words of a process that has ended are still read, and a slow reader misses nothing.
    let mut child = start(&site, &[], "yes 0123456789abcde | head -n 100000; exit 9");
    let mut slow = child.stdout.take().unwrap();
    let mut first = [0; 16];
    slow.read_exact(&mut first).unwrap();
    std::thread::park_timeout(std::time::Duration::from_secs(4));
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert_eq!((rest.len(), child.wait().unwrap().code()), (16 * 99_999, Some(9)));
    // A process that it leaves behind and that keeps its output is not waited for.
    let (code, out, _) = run(&site, &[], "sleep 36000 & echo left; exit 5");
    assert_eq!((code, out.as_str()), (Some(5), "left\n"));
    // Nobody reads any more.
    let mut child = start(&site, &[], "yes");
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    eventually("only what was left behind", || (others(pid) == 1).then_some(()));
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_signal_is_passed_on_and_a_killed_command_leaves_nothing_for_long() {
    let rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    let child = start(
        &site,
        &[],
        "trap 'echo caught; exit 33' TERM; : >/dev/a; while :; do sleep 0.02; done",
    );
    until_there(pid, "/dev/a");
    sweep::signal(child.id(), Signal::TERM);
    assert_eq!(ended(child), (Some(33), "caught\n".to_owned(), String::new()));
    // One that does not listen is killed when it is told again.
    let child = start(&site, &[], "trap '' INT; : >/dev/b; while :; do sleep 0.02; done");
    until_there(pid, "/dev/b");
    let start_of_second = child.id();
    sweep::signal(start_of_second, Signal::INT);
    let signalling = std::thread::spawn(move || {
        eventually("the end", || {
            sweep::signal(start_of_second, Signal::INT);
            (!sweep::is_alive(start_of_second)).then_some(())
        });
    });
    assert_eq!(ended(child).0, Some(137));
    signalling.join().unwrap();
    no_leftovers(&site, pid);
    // Killed: its process goes with the next command.
    let mut child = start(&site, &[], ": >/dev/c; exec sleep 36000");
    until_there(pid, "/dev/c");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(others(pid), 1);
    assert_eq!(run(&site, &[], "echo fine"), (Some(0), "fine\n".to_owned(), String::new()));
    no_leftovers(&site, pid);
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

/// While a shim starts a process, it waits for somebody to read what that prints.
#[tokio::test]
async fn a_command_that_is_killed_while_its_process_starts_does_not_silence_the_workload() {
    let rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    for n in 0..5 {
        let mut child = start(&site, &[], &format!(": >/dev/{n}; exec sleep 36000"));
        let path = format!("/proc/{pid}/root/dev/{n}");
        // At once: the shim goes on a moment later.
        while !std::path::Path::new(&path).exists() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(run(&site, &[], "echo fine"), (Some(0), "fine\n".to_owned(), String::new()));
    }
    no_leftovers(&site, pid);
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn input_that_ends_while_containerd_is_away_ends_for_the_process_too() {
    let mut rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    let mut child = start(&site, &["-i"], "echo up; cat >/dev/null; echo all");
    until_up(&mut child);
    rig.kill_containerd();
    drop(child.stdin.take());
    // Long enough for it to be told in vain.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    rig.start_containerd().await;
    let command = child.id();
    eventually("its end", || (!sweep::is_alive(command)).then_some(()));
    assert_eq!(ended(child), (Some(0), "all\n".to_owned(), String::new()));
    no_leftovers(&site, pid);
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_process_that_nobody_can_end_does_not_keep_the_command() {
    let rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    let shim = rig.shim(&site.item("web").unwrap().instance.unwrap().id);
    let mut child = start(&site, &["-i"], "echo up; exec sleep 36000");
    until_up(&mut child);
    sweep::signal(shim, Signal::STOP);
    sweep::signal(child.id(), Signal::TERM);
    // It promises to be gone after about a minute.
    let ended = tokio::task::spawn_blocking(|| ended(child));
    let ended = tokio::time::timeout(std::time::Duration::from_mins(4), ended).await;
    sweep::signal(shim, Signal::CONT);
    let (code, _, told) = ended.unwrap().unwrap();
    assert!(code == Some(3) && told.contains("does not end"), "{code:?} {told}");
    // Its process goes with the next one.
    assert_eq!(run(&site, &[], "echo fine"), (Some(0), "fine\n".to_owned(), String::new()));
    no_leftovers(&site, pid);
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_process_outlives_containerd_and_ends_with_its_workload() {
    let mut rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    let script = "echo up; until [ -e /dev/go ]; do sleep 0.02; done; echo went; exit 4";
    let mut child = start(&site, &[], script);
    until_up(&mut child);
    rig.kill_containerd();
    std::fs::write(format!("/proc/{pid}/root/dev/go"), "").unwrap();
    rig.start_containerd().await;
    assert_eq!(ended(child), (Some(4), "went\n".to_owned(), String::new()));
    let child = start(&site, &[], "exec sleep 36000");
    eventually("the process", || (others(pid) > 0).then_some(()));
    site.run(&["down"]).exits(0);
    let (code, ..) = ended(child);
    // Its code, or that nobody saw it, when all was gone before we could ask.
    assert!(matches!(code, Some(137 | 3)), "{code:?}");
    until_dead(pid);
    rig.assert_clean();
}

#[tokio::test]
async fn a_controller_sweeps_what_a_killed_command_has_left_and_leaves_the_others_alone() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    let controller = site.controller();
    let pid = site.until_running("web");
    let living = start(&site, &[], ": >/dev/a; until [ -e /dev/go ]; do sleep 0.02; done; exit 5");
    let mut killed = start(&site, &[], ": >/dev/b; exec sleep 36000");
    until_there(pid, "/dev/a");
    until_there(pid, "/dev/b");
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Seen at the next look, whatever that is for.
    controller.hang_up();
    eventually("the end of one of two", || {
        let left = std::fs::read_dir(site.run_dir().join("exec")).unwrap().count();
        (left == 1).then_some(())
    });
    controller.until_logged("the `evenkeel exec` that it belongs to was killed", 1);
    std::fs::write(format!("/proc/{pid}/root/dev/go"), "").unwrap();
    assert_eq!(ended(living).0, Some(5));
    no_leftovers(&site, pid);
    // A command that is killed as its process starts keeps the shim from answering until it is swept.
    assert_eq!(site.until_running("web"), pid);
    assert_eq!(controller.terminate(), Some(0));
    site.plan_is_empty();
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}

#[tokio::test]
async fn a_changed_manifest_waits_for_who_works_in_the_workload() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    site.write("web.yaml", &sleeper("web"));
    let _controller = site.controller();
    let pid = site.until_running("web");
    let child = start(&site, &[], ": >/dev/a; until [ -e /dev/go ]; do sleep 0.02; done; exit 5");
    until_there(pid, "/dev/a");
    site.write("web.yaml", &sleeper("web").replace("36000", "36001"));
    site.until("web", |it| it.filter(|it| it.reason == "exec-running").map(|_| ()));
    let command = format!("pid {}", child.id());
    site.run(&["status"]).exits(4).says(&["Held", "exec-running", &command]);
    site.run(&["plan"]).exits(0).says(&["exec-running", &command, "nothing can be done now"]);
    site.run(&["explain", "web"]).exits(4).says(&["exec-running"]);
    assert_eq!(site.pid("web"), pid);
    std::fs::write(format!("/proc/{pid}/root/dev/go"), "").unwrap();
    assert_eq!(ended(child).0, Some(5));
    let next = site.until_running("web");
    assert_ne!(next, pid);
    // Killed, it keeps nobody waiting.
    let mut child = start(&site, &[], ": >/dev/a; exec sleep 36000");
    until_there(next, "/dev/a");
    site.remove("web.yaml");
    site.write("other.yaml", &sleeper("other"));
    site.until("web", |it| it.filter(|it| it.reason == "exec-running").map(|_| ()));
    assert!(sweep::is_alive(next));
    child.kill().unwrap();
    child.wait().unwrap();
    site.until_gone("web");
    eventually("nothing left", || {
        let left = std::fs::read_dir(site.run_dir().join("exec")).unwrap().count();
        (left == 0).then_some(())
    });
}

/// Runs a script for this machine's shell in a terminal of 100 columns and 40 rows.
pub(crate) fn in_terminal(site: &Site, script: &str) -> Child {
    let mut inner = site.command(&[]);
    let environment: Vec<_> =
        inner.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    let program = inner.get_program().to_owned();
    inner.stdin(Stdio::null());
    let mut command = Command::new("script");
    let script = format!("stty rows 40 cols 100; {script}");
    command
        .args(["--quiet", "--return", "--command", &script, "/dev/null"])
        .current_dir(site.dir());
    for (key, value) in environment {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    command.env("EXE", program).env("EVENKEEL_RUN_DIR", site.run_dir()).env("SHELL", "/bin/sh");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[tokio::test]
async fn a_terminal_has_its_size_follows_it_and_is_given_back() {
    let rig = Rig::start().await;
    let site = with_web(&rig);
    let pid = site.pid("web");
    let go = rig.dir().join("go");
    let script = format!(
        "before=$(stty -g); T=$(tty); \
         (until [ -e {} ]; do sleep 0.02; done; stty -F $T rows 50 cols 120) & \
         $EXE exec -it web -- sh -c 'tty; stty size; echo TERM=$TERM; : >/dev/ready; \
         until [ \"$(stty size)\" = \"50 120\" ]; do sleep 0.02; done; echo resized; read line; echo \"got $line\"; exit 6'; \
         echo code $?; [ \"$before\" = \"$(stty -g)\" ] && echo restored",
        go.display()
    );
    let mut child = in_terminal(&site, &script);
    until_there(pid, "/dev/ready");
    std::fs::write(&go, "").unwrap();
    // A terminal's return key.
    child.stdin.as_mut().unwrap().write_all(b"hello\r").unwrap();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    for expected in
        ["/dev/pts/", "\n40 100\n", "resized\n", "got hello\n", "code 6\n", "restored\n"]
    {
        assert!(out.contains(expected), "`{expected}` is not in: {out}");
    }
    no_leftovers(&site, pid);
    // Without a terminal here there is none there.
    let (code, _, error) = run(&site, &["-it"], "true");
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("stdin is no terminal"), "{error}");
    // A process may have one without input.
    assert_eq!(run(&site, &["-t"], "stty size").1, "24 80\r\n");
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}
