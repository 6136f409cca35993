//! What containers print, as users meet it: limits of a manifest's `log` that hold whoever is alive, and full disks.

use std::fs;
use std::path::{Path, PathBuf};

use crate::log::{Tmpfs, size_of};
use crate::program::{Site, eventually, manifest};
use crate::rig::{Rig, sweep};

/// Waits for each file `go-<n>`, prints 80 MB at full speed and a last line, makes `done-<n>`, and goes on.
fn printer(name: &str, signals: &Path, log: &str) -> String {
    let script = "for n in 1 2 3; do \
                  until [ -e /signals/go-$n ]; do sleep 0.05; done; \
                  yes 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde \
                  | head -c 83886080; \
                  echo round $n is over; touch /signals/done-$n; done; \
                  exec sleep 36000";
    let spec = format!(
        "command: [sh, -c, \"{script}\"]\n\
         stop: {{signal: SIGKILL}}\n\
         mounts: [{{type: bind, source: {}, target: /signals}}]\n\
         log: {log}",
        signals.display()
    );
    manifest(name, &spec)
}

/// Lets the printer print, and returns the most that its logs took meanwhile.
fn round(n: u32, signals: &Path, logs: &Path) -> u64 {
    let mut largest = 0;
    fs::write(signals.join(format!("go-{n}")), "").unwrap();
    eventually("80 MB are printed", || {
        largest = largest.max(size_of(logs));
        signals.join(format!("done-{n}")).exists().then_some(())
    });
    let last = format!("stdout F round {n} is over");
    let file = logs.join("output.log");
    eventually("the last line", || fs::read_to_string(&file).ok()?.contains(&last).then_some(()));
    largest.max(size_of(logs))
}

fn files(logs: &Path) -> Vec<String> {
    let names = fs::read_dir(logs).unwrap().map(|it| it.unwrap().file_name());
    let mut names: Vec<String> = names.map(|it| it.into_string().unwrap()).collect();
    names.sort();
    names
}

fn logs_of(site: &Site, name: &str) -> PathBuf {
    let instance = site.item(name).unwrap().instance.unwrap().id;
    site.state_dir().join("logs").join(instance)
}

#[tokio::test]
async fn a_log_never_exceeds_its_limit_with_the_controller_dead_too_and_an_edit_counts_from_the_next_start()
 {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let signals = rig.dir().join("signals");
    fs::create_dir(&signals).unwrap();
    site.write("p.yaml", &printer("p", &signals, "{maxSize: 64Ki, maxFiles: 3}"));
    let controller = site.controller();
    let pid = site.until_running("p");
    let logs = logs_of(&site, "p");

    let three = ["output.log", "output.log.1", "output.log.2"];
    let largest = round(1, &signals, &logs);
    assert!(largest <= 3 * (64 << 10), "{largest} bytes at once");
    assert!(largest > 2 * (64 << 10), "all three files are used: {largest}");
    assert_eq!(files(&logs), three);

    // Nobody but the writer is left.
    controller.kill();
    let largest = round(2, &signals, &logs);
    assert!(largest <= 3 * (64 << 10), "{largest} bytes at once without a controller");
    assert_eq!(files(&logs), three);
    site.run(&["logs", "p", "--tail", "1"]).exits(0).says(&["round 2 is over\n"]);

    // Written into the container while it runs, and used from its next start.
    site.write("p.yaml", &printer("p", &signals, "{maxSize: 16Ki, maxFiles: 2}"));
    let _controller = site.controller();
    eventually("nothing to do", || (site.run(&["plan"]).code == Some(0)).then_some(()));
    assert_eq!(site.pid("p"), pid, "a change of its log is nothing to the process");
    let largest = round(3, &signals, &logs);
    assert!(largest > 2 * (64 << 10), "the writer of this run has the limit of its start");
    for n in 1..=3 {
        fs::remove_file(signals.join(format!("go-{n}"))).unwrap();
        fs::remove_file(signals.join(format!("done-{n}"))).unwrap();
    }
    site.run(&["restart", "p"]).exits(0);
    let next = site.until_running("p");
    assert_ne!(next, pid);
    assert_eq!(logs_of(&site, "p"), logs, "it is the same instance");
    let largest = round(1, &signals, &logs);
    assert!(largest <= 2 * (16 << 10), "{largest} bytes at once after a start with less");
    assert_eq!(files(&logs), three[..2]);
}

#[tokio::test]
async fn where_a_full_disk_keeps_a_log_from_being_written_the_container_runs_on_and_logs_again_later()
 {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let signals = rig.dir().join("signals");
    fs::create_dir(&signals).unwrap();
    let disk = Tmpfs::new(site.state_dir().join("logs"), c"size=128k");
    let filler = disk.path().join("filler");
    let script = "yes 0123456789abcde | head -c 4194304; touch /signals/printed; \
                  until [ -e /signals/go ]; do sleep 0.05; done; \
                  echo there is room; echo at last >&2; exec sleep 36000";
    let spec = format!(
        "command: [sh, -c, \"{script}\"]\nstop: {{signal: SIGKILL}}\n\
         mounts: [{{type: bind, source: {}, target: /signals}}]",
        signals.display()
    );
    // Whatever fits; not even a directory does after it.
    fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    site.write("a.yaml", &manifest("a", &spec));
    site.apply();
    let pid = site.pid("a");
    eventually("far more than a pipe holds", || signals.join("printed").exists().then_some(()));
    assert!(sweep::is_alive(pid));
    assert_eq!(site.pid("a"), pid, "it runs on, and is the same");
    site.plan_is_empty();

    fs::remove_file(filler).unwrap();
    // Told without another line of the container.
    let told = eventually("what was dropped", || {
        let out = site.run(&["logs", "a"]).exits(0).out;
        out.lines().find(|it| it.contains("were dropped here")).map(str::to_owned)
    });
    assert!(told.contains("No space left on device"), "{told}");
    let number = |text: &str| text.split(' ').find_map(|it| it.parse::<usize>().ok());
    let dropped = number(&told).unwrap();
    fs::write(signals.join("go"), "").unwrap();
    let printed = eventually("the next lines", || {
        let out = site.run(&["logs", "a"]).exits(0).out;
        (out.contains("there is room\n") && out.contains("at last\n")).then_some(out)
    });
    let kept = printed.lines().filter(|it| *it == "0123456789abcde").count() * 16;
    assert_eq!(dropped + kept, 4 << 20, "every byte is there or counted: {told}");
    // Each record says when it came and from where.
    let records = fs::read_to_string(logs_of(&site, "a").join("output.log")).unwrap();
    for end in [" stdout F there is room", " stderr F at last"] {
        let record = records.lines().find(|it| it.ends_with(end)).unwrap();
        let stamp: jiff::Timestamp = record.strip_suffix(end).unwrap().parse().unwrap();
        let age = jiff::Timestamp::now().duration_since(stamp).as_secs();
        assert!((0..120).contains(&age), "{record} was stamped {age} s ago");
    }
    assert_eq!(site.pid("a"), pid);
    site.run(&["down"]).exits(0);
    drop(disk);
    rig.assert_clean();
}
