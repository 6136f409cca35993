//! Scripts from seeds.

use std::collections::BTreeMap;

use evenkeel::observed::HandKind;

use crate::runtime::VERBS;
use crate::script::{Content, Doc, Script, Step, When};

/// The workloads of all scripts. Any of them may join any other.
pub(crate) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// What binds name; the first is there from the beginning.
pub(crate) const MOUNTS: [&str; 2] = ["x", "y"];

/// splitmix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        let at = self.below(from.len() as u64);
        from[usize::try_from(at).expect("an index")]
    }
}

/// The script of a seed: first what is wanted, then everything that can happen.
pub(crate) fn script(seed: u64, length: usize) -> Script {
    let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    // A wild one breaks things; a tame one has nothing but edits, exits and restarts, so that nothing excuses a fault.
    let wild = !dice.one_in(3);
    let mut steps = Vec::new();
    for name in NAMES {
        if !dice.one_in(5) {
            let doc = doc(&mut dice, name);
            steps.push(Step::Write { path: path(name), content: Content::Docs(vec![doc]) });
        }
    }
    while steps.len() < length {
        if dice.one_in(2) {
            steps.push(Step::Wait(span(&mut dice)));
        } else {
            step(&mut dice, wild, &mut steps);
        }
    }
    steps.truncate(length);
    Script { seed, steps }
}

fn path(name: &str) -> String {
    format!("{name}.yaml")
}

fn span(dice: &mut Dice) -> u64 {
    match dice.below(20) {
        0..=3 => 1 + dice.below(10),
        4..=9 => 10 + dice.below(90),
        10..=15 => 100 + dice.below(900),
        16..=18 => 1000 + dice.below(9000),
        _ => 10_000 + dice.below(60_000),
    }
}

fn doc(dice: &mut Dice, name: &str) -> Doc {
    let mut fields = BTreeMap::new();
    let mut set = |key: &str, value: String| fields.insert(key.to_owned(), value);
    if dice.one_in(2) {
        set("args", dice.below(3).to_string());
    }
    match dice.below(24) {
        0..=5 => drop(set("image", "two".to_owned())),
        6 => drop(set("image", "nowhere".to_owned())),
        _ => {}
    }
    // The later ones in the alphabet are donors, mostly.
    match (name, dice.below(8)) {
        ("d" | "e", 0..=5) => drop(set("ipc", "shareable".to_owned())),
        ("a" | "b", 0..=3) => {
            let donor = dice.pick(&["c", "d", "e"]);
            drop(set("ipc", format!("container:{donor}")));
        }
        ("c", 0..=4) => {
            let donor = dice.pick(&["d", "e"]);
            drop(set("ipc", format!("container:{donor}")));
        }
        (_, 6) => drop(set("ipc", dice.pick(&["none", "private", "host"]).to_owned())),
        (_, 7) => drop(set("ipc", format!("container:{}", dice.pick(&NAMES)))),
        _ => {}
    }
    if dice.one_in(8) {
        set("state", dice.pick(&["stopped", "absent"]).to_owned());
    }
    let policy = dice.below(8);
    if policy < 3 {
        set("restart", if policy == 0 { "never" } else { "on-failure" }.to_owned());
        if policy > 0 && dice.one_in(2) {
            set("retries", (1 + dice.below(3)).to_string());
        }
        if dice.one_in(3) {
            set("boot", "true".to_owned());
        }
        if dice.one_in(3) {
            set("clear", "true".to_owned());
        }
    }
    if dice.one_in(6) {
        set("stop", dice.pick(&["0s", "1s", "3s", "never"]).to_owned());
    }
    if dice.one_in(8) {
        set("bind", dice.pick(&MOUNTS).to_owned());
        if dice.one_in(4) {
            set("make", "1".to_owned());
        }
    }
    if dice.one_in(12) {
        set("follow", "keep".to_owned());
    }
    if dice.one_in(10) {
        set("bad", "1".to_owned());
    }
    Doc { name: name.to_owned(), fields }
}

fn content(dice: &mut Dice, name: &str) -> Content {
    if dice.one_in(8) {
        let how = dice.pick(&["syntax", "empty", "comments", "foreign", "nameless"]);
        return Content::Spoilt(how.to_owned());
    }
    let mut docs = vec![doc(dice, name)];
    if dice.one_in(12) {
        let other = dice.pick(&NAMES);
        docs.push(doc(dice, other));
    }
    Content::Docs(docs)
}

/// One thing that happens; some come with what undoes them soon.
fn step(dice: &mut Dice, wild: bool, steps: &mut Vec<Step>) {
    let name = dice.pick(&NAMES).to_owned();
    let file = path(&name);
    let moved = format!("sub/{file}");
    let file = if dice.one_in(6) { moved.clone() } else { file };
    // Those that break nothing are among both.
    let roll = if wild { dice.below(62) } else { dice.below(34) };
    match if !wild && roll >= 30 { roll + 23 } else { roll } {
        0..=7 => {
            let content = Content::Docs(vec![doc(dice, &name)]);
            steps.push(Step::Write { path: file, content });
        }
        8 => {
            let content = content(dice, &name);
            steps.push(Step::Write { path: file, content });
        }
        9 => {
            let content = content(dice, &name);
            steps.push(Step::Begin { path: file.clone(), content });
            if !dice.one_in(3) {
                steps.push(Step::Wait(span(dice)));
                steps.push(Step::Finish { path: file });
            }
        }
        10..=11 => steps.push(Step::Remove { path: file }),
        12 => steps.push(Step::Rename { from: path(&name), to: moved }),
        13..=17 => {
            let code = u32::try_from(dice.below(3)).expect("small");
            steps.push(Step::Exit { name, code });
        }
        18..=19 => {
            let code = Some(u32::try_from(dice.below(2)).expect("small"));
            let off = dice.one_in(2);
            steps.push(Step::Crashing { name: name.clone(), code });
            if off {
                steps.push(Step::Wait(span(dice)));
                steps.push(Step::Crashing { name, code: None });
            }
        }
        20 => {
            steps.push(Step::Kill);
            steps.push(Step::Run);
        }
        21 => {
            steps.push(Step::KillAfterEffects(1 + usize::try_from(dice.below(8)).expect("small")));
            steps.push(Step::Wait(span(dice)));
            steps.push(Step::Run);
        }
        22 => {
            let path = match dice.below(4) {
                0 => ".".to_owned(),
                1 => "sub".to_owned(),
                _ => file,
            };
            steps.push(Step::Access { path: path.clone(), readable: false });
            steps.push(Step::Wait(span(dice)));
            if !dice.one_in(3) {
                steps.push(Step::Access { path, readable: true });
            }
        }
        23 => {
            steps.push(Step::End);
            steps.push(Step::Wait(span(dice)));
            steps.push(Step::Run);
        }
        24 => steps.push(Step::Clear),
        25 => steps.push(Step::Approve),
        26..=29 => by_hand(dice, &name, steps),
        30..=32 => {
            steps.push(Step::KillAtCall(1 + usize::try_from(dice.below(12)).expect("small")));
            steps.push(Step::Wait(span(dice)));
            steps.push(Step::Run);
        }
        33..=36 => {
            let verb = dice.pick(&VERBS).to_owned();
            let (when, refused) = match dice.below(3) {
                0 => (When::Before, true),
                1 => (When::Before, false),
                _ => (When::After, false),
            };
            steps.push(Step::Fail { verb, when, refused });
        }
        37..=38 => {
            let verb = dice.pick(&VERBS).to_owned();
            steps.push(Step::Slow { verb, ms: 100 + dice.below(4000) });
        }
        39 => {
            let verb = dice.pick(&["publish_shm", "publish_namespace", "unpublish", "observe"]);
            steps.push(Step::FailHost { verb: verb.to_owned() });
        }
        40..=41 => {
            steps.push(Step::Unreachable { on: true });
            steps.push(Step::Wait(span(dice)));
            if dice.one_in(2) {
                steps.push(Step::Exit { name, code: 1 });
            }
            if dice.one_in(2) {
                steps.push(Step::Forget);
            }
            steps.push(Step::Unreachable { on: false });
        }
        42..=43 => {
            let code = u32::try_from(dice.below(2)).expect("small");
            steps.push(Step::Exit { name, code });
            steps.push(Step::Forget);
        }
        44 => {
            let how = dice.pick(&["off", "late", "double", "on"]).to_owned();
            steps.push(Step::Hints { how });
        }
        45 => {
            steps.push(Step::Reboot);
            steps.push(Step::Wait(span(dice)));
            steps.push(Step::Run);
        }
        46 => {
            let on = dice.one_in(2);
            steps.push(Step::Watch { on });
        }
        47 => {
            let device = [None, Some(1), Some(1), Some(2)];
            let at = usize::try_from(dice.below(4)).expect("small");
            steps.push(Step::Root { device: device[at] });
        }
        48 => {
            let own = dice.below(1 << 40);
            steps.push(match dice.below(4) {
                0 => Step::Foreign { id: format!("theirs-{own:010x}") },
                1 => {
                    Step::Litter { kind: "directory".to_owned(), id: format!("{name}-{own:010x}") }
                }
                2 => Step::Litter { kind: "shm".to_owned(), id: format!("left-{own:010x}") },
                _ => Step::Litter { kind: "lease".to_owned(), id: format!("{name}-{own:010x}") },
            });
        }
        49 => steps.push(match dice.below(5) {
            0 => Step::Pause { name },
            1 => Step::Stubborn { name },
            2 => Step::LoseContainer { name },
            it => Step::LoseEverything { tasks_only: it == 3 },
        }),
        50 => {
            steps.push(Step::Hang { name: name.clone(), hung: true });
            steps.push(Step::Wait(span(dice)));
            steps.push(Step::Hang { name, hung: false });
        }
        51 => {
            let digest = [None, Some(1), Some(2), Some(3)];
            let at = usize::try_from(dice.below(4)).expect("small");
            let name = dice.pick(&["one", "two", "nowhere"]).to_owned();
            steps.push(Step::Image { name, digest: digest[at] });
        }
        52 => {
            // An image is away for a while, and something is edited meanwhile.
            let image = dice.pick(&["one", "two"]).to_owned();
            steps.push(Step::Image { name: image.clone(), digest: None });
            steps.push(Step::Wait(span(dice)));
            let content = Content::Docs(vec![doc(dice, &name)]);
            steps.push(Step::Write { path: file, content });
            steps.push(Step::Wait(span(dice)));
            let digest = Some(if image == "one" { 1 } else { 2 });
            steps.push(Step::Image { name: image, digest });
        }
        53 => work_in(dice, &name, file, steps),
        54 => {
            steps.push(Step::Shutdown(*[500, 3000, 20_000].get(small(dice, 3)).expect("one")));
            steps.push(Step::Wait(span(dice)));
            if wild && dice.one_in(2) {
                steps.push(Step::Reboot);
            }
            steps.push(Step::Run);
        }
        55 => {
            let mount = dice.pick(&MOUNTS).to_owned();
            let kind = dice.pick(&["gone", "silent", "other", "directory"]).to_owned();
            steps.push(Step::Mount { name: mount.clone(), kind });
            if dice.one_in(2) {
                steps.push(Step::Wait(span(dice)));
                let mut doc = doc(dice, &name);
                doc.fields.insert("bind".to_owned(), mount.clone());
                steps.push(Step::Write { path: file, content: Content::Docs(vec![doc]) });
            }
            steps.push(Step::Wait(span(dice)));
            if !dice.one_in(3) {
                steps.push(Step::Mount { name: mount, kind: "directory".to_owned() });
            }
        }
        56 => job(dice, wild, &name, file, steps),
        57..=59 => end_slowly(dice, &name, file, steps),
        60 => {
            steps.push(Step::Pause { name: name.clone() });
            steps.push(Step::Wait(span(dice).min(200)));
            end(dice, &name, file, steps);
        }
        _ => steps.push(match dice.below(3) {
            0 => Step::Stubborn { name },
            1 => Step::Clinging { name },
            _ => Step::Deaf { name },
        }),
    }
}

fn small(dice: &mut Dice, limit: u64) -> usize {
    usize::try_from(dice.below(limit)).expect("small")
}

/// Something that ends what runs of it: an edit, or a person.
fn end(dice: &mut Dice, name: &str, file: String, steps: &mut Vec<Step>) {
    if dice.one_in(2) {
        let content = Content::Docs(vec![doc(dice, name)]);
        steps.push(Step::Write { path: file, content });
    } else {
        by_hand(dice, name, steps);
    }
}

/// A stop of what does not end by being asked to, or whose shim does not answer from then on.
fn end_slowly(dice: &mut Dice, name: &str, file: String, steps: &mut Vec<Step>) {
    let name = name.to_owned();
    let (before, hangs) = match dice.below(5) {
        0 | 1 => (Step::Stubborn { name: name.clone() }, false),
        2 => (Step::Clinging { name: name.clone() }, false),
        3 => (Step::Deaf { name: name.clone() }, false),
        _ => (Step::Stubborn { name: name.clone() }, true),
    };
    steps.push(before);
    end(dice, &name, file.clone(), steps);
    steps.push(Step::Wait(span(dice)));
    if hangs {
        steps.push(Step::Hang { name: name.clone(), hung: true });
        steps.push(Step::Wait(span(dice)));
        steps.push(Step::Hang { name: name.clone(), hung: false });
    }
    match dice.below(4) {
        // It may be in a hurry now.
        0 => {
            let content = Content::Docs(vec![doc(dice, &name)]);
            steps.push(Step::Write { path: file, content });
        }
        1 => steps.push(Step::Exit { name, code: u32::from(dice.one_in(2)) }),
        _ => {}
    }
}

/// Somebody works in it while its manifest changes.
fn work_in(dice: &mut Dice, name: &str, file: String, steps: &mut Vec<Step>) {
    let exec = |how: &str| Step::Exec { name: name.to_owned(), how: how.to_owned() };
    steps.push(exec("begins"));
    steps.push(Step::Wait(span(dice)));
    match dice.below(4) {
        0 => steps.push(Step::Remove { path: file }),
        1 => end(dice, name, file, steps),
        _ => {
            let content = Content::Docs(vec![doc(dice, name)]);
            steps.push(Step::Write { path: file, content });
        }
    }
    steps.push(Step::Wait(span(dice)));
    match dice.below(4) {
        0 => {}
        1 => steps.push(exec("killed")),
        _ => steps.push(exec("ends")),
    }
}

/// What runs to an end, and what may make somebody forget that.
fn job(dice: &mut Dice, wild: bool, name: &str, file: String, steps: &mut Vec<Step>) {
    let mut doc = doc(dice, name);
    for gone in ["bad", "ipc", "state", "image"] {
        doc.fields.remove(gone);
    }
    let policy = dice.pick(&["never", "on-failure"]).to_owned();
    if policy == "never" {
        doc.fields.remove("retries");
    }
    doc.fields.insert("restart".to_owned(), policy);
    steps.push(Step::Write { path: file, content: Content::Docs(vec![doc]) });
    steps.push(Step::Wait(1000 + span(dice)));
    for _ in 0..=dice.below(3) {
        let code = u32::try_from(dice.below(2)).expect("small");
        steps.push(Step::Exit { name: name.to_owned(), code });
        if dice.one_in(2) {
            steps.push(Step::Wait(span(dice)));
        }
        match dice.below(if wild { 4 } else { 2 }) {
            0 => {}
            1 => {
                steps.push(Step::Kill);
                steps.push(Step::Run);
            }
            2 => steps.push(Step::Forget),
            _ => {
                steps.push(Step::Reboot);
                steps.push(Step::Run);
            }
        }
        steps.push(Step::Wait(span(dice)));
    }
}

/// What a person asks for. What is stopped is started again, mostly, so that something goes on.
fn by_hand(dice: &mut Dice, name: &str, steps: &mut Vec<Step>) {
    let hand = |kind, fresh| Step::Hand { name: name.to_owned(), kind, fresh };
    // A controller that dies on the way to it.
    let dies = dice.one_in(3);
    let effects = 1 + usize::try_from(dice.below(6)).expect("small");
    if dies {
        steps.push(Step::KillAfterEffects(effects));
    }
    match dice.below(12) {
        0..=3 => {
            steps.push(hand(HandKind::Stop, false));
            if !dice.one_in(4) {
                steps.push(Step::Wait(span(dice)));
                if dice.one_in(4) {
                    let content = Content::Docs(vec![doc(dice, name)]);
                    steps.push(Step::Write { path: path(name), content });
                }
                let kind = if dice.one_in(4) { HandKind::Restart } else { HandKind::Start };
                steps.push(hand(kind, false));
            }
        }
        4 => steps.push(hand(HandKind::Start, false)),
        5..=7 => steps.push(hand(HandKind::Restart, false)),
        8 => steps.push(hand(HandKind::Restart, true)),
        9 => steps.push(hand(HandKind::Retry, false)),
        _ => {
            if !dice.one_in(4) {
                steps.push(Step::Remove { path: path(name) });
                steps.push(Step::Wait(span(dice).min(1500)));
            }
            steps.push(hand(HandKind::Down, false));
        }
    }
    if dies {
        steps.push(Step::Wait(1000 + span(dice)));
        steps.push(Step::Run);
    }
}
