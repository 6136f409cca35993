//! What the program does when there is nothing to do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use evenkeel::plan::Phase;

use crate::program::{Site, eventually, manifest, sleeper};
use crate::rig::Rig;
use crate::rig::usage::{Usage, changes, memory};

/// Three times what is promised for twenty workloads and an optimised build.
const CPU: Duration = Duration::from_millis(150);

/// There is a log writer for every container, so its memory counts: what of it is no file.
const WRITER: u64 = 320 << 10;

#[tokio::test]
async fn what_idles_writes_nothing_and_hardly_computes() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let names = ["a", "b", "c"];
    for name in names {
        site.write(&format!("{name}.yaml"), &sleeper(name));
    }
    // Its log would be written to a disk.
    let controller = site.controller_logging_to(Stdio::null());
    for name in names {
        site.until_running(name);
    }
    // What a start leaves to be done.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let writers = rig.log_writers();
    assert_eq!(writers.len(), names.len());
    for pid in &writers {
        let own = memory(*pid, "Anonymous");
        assert!(own < WRITER, "a log writer has {own} bytes of its own");
    }
    let ours: Vec<u32> = writers.into_iter().chain([controller.pid()]).collect();
    let usage = || ours.iter().map(|pid| Usage::of(*pid)).collect::<Vec<_>>();
    let directories = [rig.state_dir(), rig.run_dir()];
    let (files, before) = (changes(&directories), usage());
    // A look without any hint is part of it.
    tokio::time::sleep(evenkeel::controller::RESYNC + Duration::from_secs(5)).await;
    let after = usage();
    assert_eq!(changes(&directories), files, "a file was touched");
    let total = |of: fn(&Usage) -> u64, all: &[Usage]| all.iter().map(of).sum::<u64>();
    assert_eq!(
        total(|it| it.written, &after),
        total(|it| it.written, &before),
        "written to a disk"
    );
    let cpu = |all: &[Usage]| all.iter().map(|it| it.cpu).sum::<Duration>();
    let spent = cpu(&after).saturating_sub(cpu(&before));
    assert!(spent < CPU, "{spent:?}");
}

/// What a container that crashes and waits for its longest delay may cost, of one core, all told.
const WAITING: f64 = 0.01;

/// The longest delay, unless a manifest says otherwise.
const LONGEST: Duration = Duration::from_mins(1);

/// CPU time of containers, containerd, shims, runc, log writers and a controller, those that have ended included.
struct Account(PathBuf);

impl Account {
    /// These processes and all that come from them are counted from now on, with the containers of the site.
    fn open(site: &Site, processes: &[u32]) -> Self {
        let roots = [Path::new("/sys/fs/cgroup/cpuacct"), Path::new("/sys/fs/cgroup")];
        let root = roots.into_iter().find(|it| it.is_dir()).unwrap();
        let parent = evenkeel::config::cgroup_parent(&site.run_dir());
        let parent = root.join(parent.trim_start_matches('/'));
        // Below that of the containers: one number is the sum, and all of it goes with the rig.
        let own = parent.join("account");
        std::fs::create_dir_all(&own).unwrap();
        for pid in processes {
            std::fs::write(own.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        Self(parent)
    }

    fn spent(&self) -> Duration {
        if let Ok(nanos) = std::fs::read_to_string(self.0.join("cpuacct.usage")) {
            return Duration::from_nanos(nanos.trim().parse().unwrap());
        }
        let text = std::fs::read_to_string(self.0.join("cpu.stat")).unwrap();
        let micros = text.lines().find_map(|it| it.strip_prefix("usage_usec ")).unwrap();
        Duration::from_micros(micros.parse().unwrap())
    }
}

#[tokio::test]
async fn a_crash_loop_at_its_longest_delay_costs_next_to_nothing_its_restarts_included() {
    let rig = Rig::start().await;
    let site = Site::of(&rig);
    let out = rig.dir().join("out");
    std::fs::create_dir(&out).unwrap();
    let crash = |name: &str, delay: &str| {
        let script = format!("echo run >> /out/{name}; exit 5");
        let mount = format!("{{type: bind, source: {}, target: /out}}", out.display());
        let backoff = format!("restart: {{backoff: {{initial: {delay}, max: {delay}}}}}");
        manifest(name, &format!("command: [sh, -c, \"{script}\"]\nmounts: [{mount}]\n{backoff}"))
    };
    let runs =
        |name: &str| std::fs::read_to_string(out.join(name)).map_or(0, |it| it.lines().count());
    site.write("crash.yaml", &crash("crash", "1h"));
    site.write("other.yaml", &sleeper("other"));
    let controller = site.controller_logging_to(Stdio::null());
    let account = Account::open(&site, &[rig.containerd_pid(), controller.pid()]);
    site.until_running("other");
    site.until("crash", |it| {
        let item = it.filter(|it| it.phase == Phase::BackingOff && it.next_retry_at.is_some())?;
        (item.last_exit.as_ref()?.code == 5).then_some(())
    });
    // What the start leaves to be done.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let span = Duration::from_secs(5);
    let before = account.spent();
    tokio::time::sleep(span).await;
    let idle = account.spent().saturating_sub(before).as_secs_f64() / span.as_secs_f64();
    assert_eq!(runs("crash"), 1, "its delay is not over");

    // The same restarts as at the longest delay, sooner one after the other.
    site.write("crash.yaml", &(crash("crash", "1s") + "  env: [{name: OTHER, value: \"1\"}]\n"));
    eventually("a crash loop", || (runs("crash") >= 3).then_some(()));
    let (first, before) = (runs("crash"), account.spent());
    eventually("four more restarts", || (runs("crash") >= first + 4).then_some(()));
    let restarts = u32::try_from(runs("crash") - first).unwrap();
    let each = account.spent().saturating_sub(before) / restarts;
    let all = idle + each.as_secs_f64() / LONGEST.as_secs_f64();
    println!("{idle:.5} of a core when idle, {each:?} for each restart: {all:.5} of a core");
    assert!(each > Duration::from_millis(1), "nothing was measured");
    assert!(all < WAITING, "{idle} of a core when idle, {each:?} for each restart");
    assert_eq!(controller.terminate(), Some(0));
}
