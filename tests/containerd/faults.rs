//! Each single effect fails, once and then no more: the same controller gets to where it would have got.
//!
//! A lane is an installation with a controller of its own that walks a circle of changes, again and again; on each
//! round another effect of each change fails. All lanes share one containerd.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use evenkeel::status::Status;
use rustix::process::Signal;

use crate::crash::{
    aborting_program, assert_all_were_walked, difference, inventory, left_after_down,
};
use crate::others;
use crate::program::{Site, eventually, manifest, pause};
use crate::rig::recipe::Recipe;
use crate::rig::registry::{Kind, Registry};
use crate::rig::{Rig, sweep};

/// Far more effects than any of these changes has.
const MOST: usize = 60;

/// How effects fail: not made; made and said to be refused; made, and the answer is lost; not made, and what comes
/// next, which may be what takes it back, is not made either.
const FAULTS: [&str; 4] = ["undone", "done", "lost", "undone undone"];

/// What keeps running all the time.
const BYSTANDERS: [(&str, &str); 3] =
    [("other", "private"), ("giver", "shareable"), ("guest", "container:giver")];

/// One change and what comes of it.
struct Leg {
    name: &'static str,
    change: Box<dyn Fn(&Site) + Send + Sync>,
    /// Those that run with another process afterwards.
    renewed: &'static [&'static str],
    /// At least so many effects, so that none is lost unnoticed.
    effects: usize,
    /// The first effect that fails, and how many further on the next one is.
    first: usize,
    step: usize,
    /// These fail instead, each once.
    at: Option<&'static [&'static str]>,
}

impl Leg {
    fn at(self, effects: &'static [&'static str]) -> Self {
        Self { at: Some(effects), ..self }
    }

    /// The effect that fails in a round, by number or name; `None`: all have.
    fn effect(&self, round: usize) -> Option<String> {
        let named = |at: &[&str]| at.get(round).map(|it| (*it).to_owned());
        self.at.map_or_else(|| Some((self.first + round * self.step).to_string()), named)
    }

    /// Every second effect only: the others fail elsewhere.
    fn every_second(self, first: usize) -> Self {
        Self { first, step: 2, ..self }
    }
}

fn leg(
    name: &'static str,
    renewed: &'static [&'static str],
    effects: usize,
    change: impl Fn(&Site) + Send + Sync + 'static,
) -> Leg {
    Leg { name, change: Box::new(change), renewed, effects, first: 1, step: 1, at: None }
}

/// One that runs for ever, as this mode says, and is tried again soon; `more` lines of its spec.
fn sleeper(name: &str, mode: &str, more: &str) -> String {
    let text = manifest(
        name,
        "command: [sleep, \"36000\"]\nrestart: {backoff: {initial: 10ms, max: 100ms}}",
    );
    let stop = if more.contains("stop:") { "" } else { "  stop: {signal: SIGKILL}\n" };
    format!("{text}  ipcMode: {mode}\n{stop}{more}")
}

const OTHER: &str = "  env: [{name: OTHER, value: \"1\"}]\n";
const OTHER_STOPPED: &str = "  env: [{name: OTHER, value: \"1\"}]\n  state: stopped\n";
/// Its signal is not heard, and it is killed in the end.
const DEAF: &str = "  stop: {timeout: 10ms}\n";
const DEAF_STOPPED: &str = "  stop: {timeout: 10ms}\n  state: stopped\n";

fn put(name: &'static str, mode: &'static str, more: &'static str) -> impl Fn(&Site) + Send + Sync {
    move |site| site.write(&format!("{name}.yaml"), &sleeper(name, mode, more))
}

fn away(names: &'static [&'static str]) -> impl Fn(&Site) + Send + Sync {
    move |site| names.iter().for_each(|it| site.remove(&format!("{it}.yaml")))
}

fn crash(name: &'static str) -> impl Fn(&Site) + Send + Sync {
    move |site| sweep::signal(running(site)[name], Signal::KILL)
}

/// What a person asks for is done in the end, whatever the command says of the first try.
fn by_hand(words: &'static [&'static str]) -> impl Fn(&Site) + Send + Sync {
    move |site| drop(site.run(words))
}

/// Ends with a failure, as this mode says, and leaves nothing.
fn job(mode: &'static str, command: &'static str) -> impl Fn(&Site) + Send + Sync {
    let rest = "restart: {policy: never, backoff: {initial: 10ms, max: 100ms}}\nremoveOnExit: true";
    move |site| {
        let text = manifest("job", &format!("command: {command}\n{rest}\nipcMode: {mode}"));
        site.write("job.yaml", &text);
    }
}

/// What is done after the last run of what is removed on exit.
pub(crate) const FINISH: &[&str] = &[
    "finish/strikes",
    "finish/end",
    "finish/task",
    "finish/unpublish",
    "clear/unpublish",
    "clear/snapshot",
    "clear/logs",
];

/// A run that ends and a start that is refused.
fn ends(mode: &'static str, undo: &'static [&'static str]) -> Vec<Leg> {
    vec![
        leg("end", &[], 0, job(mode, "[sh, -c, exit 3]")).at(FINISH),
        leg("remove", &[], 0, away(&["job"])).at(&[]),
        leg("refused", &[], 0, job(mode, "[/nowhere]")).at(undo),
        leg("remove", &[], 0, away(&["job"])).at(&[]),
    ]
}

/// What somebody else has a hand in, and what is changed where it stands.
fn meddled(mode: &'static str) -> Vec<Leg> {
    vec![
        leg("orphan", &["a"], 0, |site| others::forget_container(site, "a")).at(&[
            "orphan/object",
            "stop/kill",
            "orphan/task",
        ]),
        leg("paused", &[], 0, |site| others::pause(site, "a")).at(&["resume"]),
        leg("update", &[], 0, put("a", mode, "  stop: {timeout: 11ms}\n")).at(&["update"]),
        leg("back", &[], 0, put("a", mode, DEAF)).at(&[]),
    ]
}

/// What needs more than a workload of some mode.
fn others_things(from_registry: String) -> Vec<Leg> {
    let image = |site: &Site| {
        others::forget_images(site);
        put("b", "private", "")(site);
    };
    let pulled = move |site: &Site| {
        others::forget_images(site);
        let text = sleeper("b", "private", "");
        site.write("b.yaml", &text.replace("image: busybox", &format!("image: {from_registry}")));
    };
    let directory = |site: &Site| {
        let made = site.dir().join("made");
        drop(std::fs::remove_dir(&made));
        let mount =
            format!("{{type: bind, source: {}, target: /made, create: true}}", made.display());
        site.write("b.yaml", &sleeper("b", "private", &format!("  mounts: [{mount}]\n")));
    };
    // Nothing tells of these, and the next look that needs no hint is far away.
    let look = |site: &Site| {
        let controller = status(site).unwrap().controller.unwrap();
        sweep::signal(controller.pid, Signal::HUP);
    };
    let unpin = move |site: &Site| {
        others::unpin(site, "giver");
        look(site);
    };
    let leave = move |site: &Site| {
        others::leave_logs(site);
        look(site);
    };
    let unwanted = move |site: &Site| {
        others::bring_unwanted(site);
        look(site);
    };
    vec![
        leg("unpinned", &[], 0, unpin).at(&["publish"]),
        leg("leftover", &[], 0, leave).at(&["sweep"]),
        leg("unwanted", &[], 0, unwanted).at(&["image/mark", "image/remove"]),
        leg("image", &["b"], 0, image).at(&[
            "import/lease",
            "import/blob",
            "import/image",
            "import/release",
        ]),
        leg("remove", &[], 0, away(&["b"])).at(&[]),
        leg("pulled", &["b"], 0, pulled).at(&[
            "pull/lease",
            "pull/blob",
            "pull/unpack",
            "pull/image",
            "pull/release",
        ]),
        leg("remove", &[], 0, away(&["b"])).at(&[]),
        leg("directory", &["b"], 0, directory).at(&["start/directory"]),
        leg("remove", &[], 0, away(&["b"])).at(&[]),
    ]
}

/// The circles: where each begins, and its changes, the last of which leads back there.
fn lanes(from_registry: String) -> Vec<(&'static str, Leg, Vec<Leg>)> {
    let donor = |more| put("donor", "shareable", more);
    let joiner = |more| put("joiner", "container:donor", more);
    let both = |of_donor| {
        move |site: &Site| {
            donor(of_donor)(site);
            joiner("")(site);
        }
    };
    let nothing = || leg("nothing", &[], 0, |_| {});
    let mut lanes = vec![
        (
            "private",
            nothing(),
            vec![
                leg("start", &["a"], 8, put("a", "private", "")),
                leg("replace", &["a"], 13, put("a", "private", OTHER)),
                leg("crash", &["a"], 7, crash("a")),
                leg("stop", &[], 5, put("a", "private", OTHER_STOPPED)),
                leg("run", &["a"], 4, put("a", "private", OTHER)),
                leg("remove", &[], 8, away(&["a"])),
            ],
        ),
        (
            "shared",
            nothing(),
            vec![
                leg("start", &["donor", "joiner"], 18, both("")),
                leg("remove", &[], 16, away(&["donor", "joiner"])),
            ],
        ),
        (
            "run-again",
            leg("start", &["donor", "joiner"], 0, both(DEAF)),
            vec![
                leg("crash", &["donor", "joiner"], 17, crash("donor")),
                leg("stop", &[], 5, donor(DEAF_STOPPED)),
                leg("run", &["donor", "joiner"], 12, donor(DEAF)),
            ],
        ),
        (
            "replaced",
            leg("start", &["donor", "joiner"], 0, both("")),
            vec![
                leg("there", &["donor", "joiner"], 23, donor(OTHER)).every_second(1),
                leg("back", &["donor", "joiner"], 23, donor("")).every_second(2),
            ],
        ),
        (
            "joiner",
            leg("start", &["donor", "joiner"], 0, both("")),
            vec![
                leg("replace", &["joiner"], 12, joiner(OTHER)).every_second(1),
                leg("back", &["joiner"], 12, joiner("")).every_second(2),
                leg("crash", &["joiner"], 7, crash("joiner")),
                leg("remove", &[], 8, away(&["joiner"])),
                leg("start", &["joiner"], 8, joiner("")),
            ],
        ),
        (
            "by-hand",
            leg("start", &["donor"], 0, donor(DEAF)),
            vec![leg("restart", &["donor"], 11, by_hand(&["restart", "donor"]))],
        ),
        (
            "renewed",
            leg("start", &["donor"], 0, donor("")),
            vec![leg("renew", &["donor"], 16, by_hand(&["restart", "--fresh", "donor"]))],
        ),
        ("kept", nothing(), others_things(from_registry)),
    ];
    let modes = [("solo", "private"), ("shown", "shareable"), ("joined", "container:giver")];
    lanes.extend(modes.map(|(name, mode)| {
        let undo: &[_] = if mode == "shareable" {
            &["undo/task", "undo/unpublish", "failed/strikes", "failed/end"]
        } else {
            &["undo/task", "failed/strikes", "failed/end"]
        };
        let legs = ends(mode, undo).into_iter().chain(meddled(mode)).collect();
        (name, leg("start", &["a"], 0, put("a", mode, DEAF)), legs)
    }));
    lanes
}

/// What the controller says: the processes of what runs.
fn running(site: &Site) -> BTreeMap<String, u32> {
    status(site)
        .into_iter()
        .flat_map(|it| it.items)
        .filter_map(|it| Some((it.name.clone(), it.instance.as_ref()?.pid?)))
        .collect()
}

/// What the controller says: how everything stands.
fn said(site: &Site) -> Vec<String> {
    let items = status(site).into_iter().flat_map(|it| it.items);
    items.map(|it| format!("{} {} {} {}", it.name, it.phase, it.up_to_date, it.reason)).collect()
}

fn status(site: &Site) -> Option<Status> {
    let text = std::fs::read(site.run_dir().join("status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Everything of a site, but for strikes, which say that something has failed, and the history of removals.
fn everything(rig: &Rig, site: &Site) -> Vec<String> {
    let mut found = inventory(rig, site);
    found.retain(|it| !it.starts_with("file: run/strikes/") && it != "file: run/removals.json");
    found
}

/// `None`: there is no such process any more.
fn namespace(pid: u32) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Some(std::fs::metadata(format!("/proc/{pid}/ns/ipc")).ok()?.ino())
}

struct Lane<'a> {
    rig: &'a Rig,
    site: Site,
    legs: Vec<Leg>,
    /// What there is after each leg, and what is said of it.
    after: Vec<(Vec<String>, Vec<String>)>,
}

impl Lane<'_> {
    fn fault(&self) -> PathBuf {
        self.site.dir().join("fault")
    }

    /// Makes the change of a leg and waits for what has to come of it. Whether the fault has happened by then.
    fn walk(&self, at: usize, fault: Option<(&str, &str)>) -> Result<bool, String> {
        let wanted = self.after.get(at);
        if let Some((effect, kinds)) = fault {
            crate::program::write(&self.fault(), &format!("{effect} {kinds}"));
        }
        let reached = change(&self.site, &self.legs[at], || {
            let Some((things, words)) = wanted else { return Ok(()) };
            if let Some((effect, kinds)) = fault
                && self.legs[at].at.is_some()
                && std::fs::read_to_string(self.fault())
                    .is_ok_and(|it| it == format!("{effect} {kinds}"))
            {
                return Err(format!("it does not come to {effect}"));
            }
            let found = said(&self.site);
            if found != *words {
                return Err(found.join("\n"));
            }
            let found = everything(self.rig, &self.site);
            if found == *things { Ok(()) } else { Err(difference(things, &found)) }
        });
        let left = std::fs::read_to_string(self.fault()).unwrap_or_default();
        if fault.is_some() {
            drop(std::fs::remove_file(self.fault()));
        }
        reached?;
        Ok(fault.is_some_and(|(_, kinds)| {
            left.split_whitespace().skip(1).count() < kinds.split(' ').count()
        }))
    }

    /// Walks the circle once, to see what comes of each change, and then with a fault after the other. The last
    /// effect of each leg that has failed.
    fn rounds(&mut self) -> Result<Vec<usize>, String> {
        for at in 0..self.legs.len() {
            self.walk(at, None).map_err(|it| format!("{}: {it}", self.legs[at].name))?;
            self.after.push(settled(self.rig, &self.site));
        }
        let mut effects = vec![0; self.legs.len()];
        let mut over = vec![false; self.legs.len()];
        let kinds = if std::env::var_os("EVENKEEL_LONG").is_some() { FAULTS.len() } else { 1 };
        for round in 0..MOST * kinds {
            if over.iter().all(|it| *it) {
                return Ok(effects);
            }
            for (at, leg) in self.legs.iter().enumerate() {
                // What leads back to where it came from need not be walked once it is over.
                let before = at.checked_sub(1).unwrap_or(self.legs.len() - 1);
                if over[at] && self.after[at] == self.after[before] {
                    continue;
                }
                let n = round / kinds;
                let effect = leg.effect(n).filter(|_| !over[at]);
                let fault = FAULTS[(n * leg.step + at + round % kinds) % FAULTS.len()];
                let fault = effect.as_deref().map(|it| (it, fault));
                let happened = self
                    .walk(at, fault)
                    .map_err(|it| format!("{} with {fault:?}: {it}", leg.name))?;
                over[at] |= !happened;
                if happened && leg.at.is_none() {
                    effects[at] = leg.first + n * leg.step;
                }
            }
        }
        Err("it does not come to its end".to_owned())
    }
}

/// What is there and what is said of it once that is the same for a while: what nobody waits for is done as well.
fn settled(rig: &Rig, site: &Site) -> (Vec<String>, Vec<String>) {
    let mut before = Vec::new();
    eventually("the same things three times", || {
        (0..4).for_each(|_| pause());
        let now = (everything(rig, site), said(site));
        before.push(now.clone());
        let same = before.len() > 2 && before[before.len() - 3..].iter().all(|it| *it == now);
        same.then_some(now)
    })
}

/// Makes a change and waits until who has to runs anew, and everything else is as wanted. Others stay untouched.
fn change(
    site: &Site,
    leg: &Leg,
    is_reached: impl Fn() -> Result<(), String>,
) -> Result<(), String> {
    let before = running(site);
    (leg.change)(site);
    let mut why = String::new();
    for _ in 0..4000 {
        pause();
        let now = running(site);
        let is_new = |it: &&str| now.get(*it).is_some_and(|pid| before.get(*it) != Some(pid));
        if !leg.renewed.iter().all(is_new) {
            why = format!("not renewed: {:?}", said(site));
            continue;
        }
        if let Err(it) = is_reached() {
            why = it;
            continue;
        }
        let are_apart = |(joiner, donor): &(&str, &str)| {
            let (Some(joiner), Some(donor)) = (now.get(*joiner), now.get(*donor)) else {
                return false;
            };
            let namespaces = [joiner, donor].map(|it| namespace(*it));
            namespaces.contains(&None) || namespaces[0] != namespaces[1]
        };
        // That of a stopped donor's joiner is nobody's any more.
        if [("joiner", "donor"), ("guest", "giver")].iter().any(are_apart) {
            "a joiner is not with its donor".clone_into(&mut why);
            continue;
        }
        let others = before.iter().filter(|(name, _)| !leg.renewed.contains(&name.as_str()));
        let touched: Vec<_> =
            others.filter(|(name, pid)| now.get(*name).is_some_and(|it| it != *pid)).collect();
        return if touched.is_empty() { Ok(()) } else { Err(format!("touched: {touched:?}")) };
    }
    Err(format!("did not get there: {why}"))
}

/// The effects that a program says it has let fail.
fn failed(log: &str) -> impl Iterator<Item = String> {
    let lines = log.lines().filter(|it| it.contains("failing as asked"));
    lines.filter_map(|it| Some(it.split_once("effect=\"")?.1.split('"').next()?.to_owned()))
}

/// A lane from nothing to nothing. The effects that have failed.
fn lane(
    rig: &Rig,
    program: &Path,
    name: &str,
    begin: &Leg,
    legs: Vec<Leg>,
) -> Result<BTreeSet<String>, String> {
    let site = Site::beside(rig, name).with_program(program);
    site.configure("removeAfter: 10ms\npruneLimit: 100\nimages: {grace: 0s}\n");
    let site = site.clone().with("EVENKEEL_FAIL", site.dir().join("fault"));
    let controller = site.controller();
    for (name, mode) in BYSTANDERS {
        put(name, mode, "")(&site);
    }
    let first = BYSTANDERS.map(|(name, _)| (name, site.until_running(name)));
    change(&site, begin, || Ok(()))?;
    let mut lane = Lane { rig, site, legs, after: Vec::new() };
    let effects = lane.rounds();
    let site = &lane.site;
    let effects = effects.map_err(|it| format!("{it}\n{}", tail(&controller.log())))?;
    if first.iter().any(|(name, pid)| running(site).get(*name) != Some(pid)) {
        return Err("a bystander was touched".to_owned());
    }
    let few: Vec<_> = lane.legs.iter().zip(&effects).filter(|(leg, n)| leg.effects > **n).collect();
    if !few.is_empty() {
        let few: Vec<_> = few.iter().map(|(leg, n)| (leg.name, **n)).collect();
        return Err(format!("few effects: {few:?}"));
    }
    let walked = failed(&controller.log()).collect();
    if controller.terminate() != Some(0) {
        return Err("the controller did not end well".to_owned());
    }
    site.run(&["down"]).exits(0);
    left(rig, site)?;
    Ok(walked)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Nothing but what a site is made of.
fn left(rig: &Rig, site: &Site) -> Result<(), String> {
    let left = left_after_down(rig, site);
    if left.is_empty() { Ok(()) } else { Err(format!("left after down: {left:?}")) }
}

/// Everything goes, although each effect of that fails once. The effects that have failed.
fn downs(rig: &Rig, program: &Path, first: usize) -> Result<BTreeSet<String>, String> {
    let mut walked = BTreeSet::new();
    for n in (first..MOST).step_by(2) {
        let kinds = FAULTS[n % FAULTS.len()];
        let failed = down(rig, program, |_| {}, &n.to_string(), kinds)?;
        let is_over = failed.is_empty();
        walked.extend(failed);
        if is_over {
            return if n > 20 { Ok(walked) } else { Err(format!("down has only {n} effects")) };
        }
    }
    Err("down does not come to its end".to_owned())
}

/// What only the end of something that somebody has had a hand in comes to.
fn meddled_downs(rig: &Rig, program: &Path) -> Result<BTreeSet<String>, String> {
    let meddlings: [(fn(&Site), _); 2] = [
        (|site| others::pause(site, "giver"), "stop/resume"),
        (|site| others::forget_in_runc(site, "giver"), "stop/pid"),
    ];
    let mut walked = BTreeSet::new();
    for (n, (meddling, effect)) in meddlings.into_iter().enumerate() {
        for kinds in [FAULTS[n], FAULTS[n + 2]] {
            let failed = down(rig, program, meddling, effect, kinds)?;
            if !failed.contains(effect) {
                return Err(format!("down does not come to {effect}"));
            }
            walked.extend(failed);
        }
    }
    Ok(walked)
}

/// All of it is meddled with and goes, although an effect of that fails once. The effects that have failed.
fn down(
    rig: &Rig,
    program: &Path,
    meddling: impl Fn(&Site),
    effect: &str,
    kinds: &str,
) -> Result<BTreeSet<String>, String> {
    let what = format!("down with {effect} {kinds}");
    let name = format!("down-{effect}-{kinds}").replace(['/', ' '], "-");
    let site = Site::beside(rig, &name).with_program(program);
    for (name, mode) in BYSTANDERS {
        put(name, mode, "")(&site);
    }
    let controller = site.controller();
    for (name, _) in BYSTANDERS {
        site.until_running(name);
    }
    controller.kill();
    meddling(&site);
    let fault = site.dir().join("fault");
    crate::program::write(&fault, &format!("{effect} {kinds}"));
    let done = site.clone().with("EVENKEEL_FAIL", fault).run(&["down"]);
    if done.code != Some(0) {
        return Err(format!("{what}: {done:?}"));
    }
    if effect == "stop/pid" {
        others::remove_cgroups(&site);
    }
    left(rig, &site).map_err(|it| format!("{what}: {it}"))?;
    Ok(failed(&done.err).collect())
}

#[tokio::test]
async fn an_effect_that_fails_is_taken_back_or_tried_again_by_the_same_controller() {
    let program = aborting_program();
    let rig = Rig::start().await;
    let registry = Registry::start(Kind::Plain);
    let pushed = registry.push("busybox:1", &Recipe::busybox());
    let only = std::env::var("EVENKEEL_LANE").ok();
    let is_meant = |name: &str| only.as_ref().is_none_or(|it| it == name);
    let problems = Mutex::new(Vec::new());
    let walked = Mutex::new(BTreeSet::new());
    let tell = |name: &str, result: Result<BTreeSet<String>, String>| match result {
        Ok(effects) => walked.lock().unwrap().extend(effects),
        Err(problem) => problems.lock().unwrap().push(format!("{name}: {problem}")),
    };
    std::thread::scope(|scope| {
        let (rig, program, tell) = (&rig, &program, &tell);
        for (name, begin, legs) in lanes(pushed.name.clone()) {
            if is_meant(name) {
                scope.spawn(move || tell(name, lane(rig, program, name, &begin, legs)));
            }
        }
        if is_meant("down") {
            for first in [1, 2] {
                scope.spawn(move || tell("down", downs(rig, program, first)));
            }
            scope.spawn(move || tell("down", meddled_downs(rig, program)));
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
    if only.is_none() {
        assert_all_were_walked(&walked.into_inner().unwrap());
    }
    rig.assert_clean();
}
