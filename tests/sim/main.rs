//! A simulation of the whole loop: seeded scripts of everything that can happen, rules that are checked at each
//! effect, and convergence at the end. docs/testing.md says how to run, replay and read it.

mod faults;
mod generate;
mod judge;
mod runtime;
mod script;
mod shrink;
mod tree;
mod world;

use std::collections::BTreeMap;

use faults::Fault;
use script::Script;
use world::{play, play_with, replays};

/// Steps of one script.
const LENGTH: usize = 125;

/// Scripts of each of the eight tests that the seeds are dealt to: 100,000 steps in all.
const SCRIPTS: u64 = 100;

fn scripts() -> u64 {
    if std::env::var_os("EVENKEEL_LONG").is_some() { SCRIPTS * 10 } else { SCRIPTS }
}

/// Plays the scripts of a range of seeds and shows the shortest form of the first that breaks a rule.
fn seeds(lot: u64) {
    let first = lot * 1_000_000;
    for seed in first..first + scripts() {
        check(&generate::script(seed, LENGTH));
    }
}

fn check(script: &Script) {
    let played = play(script);
    let Some(verdict) = played.verdict else { return };
    let (script, played) = shrink::shrink(script, &verdict);
    let verdict = played.verdict.unwrap_or(verdict);
    panic!(
        "{verdict}\n\nseed {} as a script for tests/sim/replays:\n\n{script}\nwhat happened (ms):\n{}\n",
        script.seed,
        played.trace.join("\n")
    );
}

macro_rules! lots {
    ($($name:ident: $lot:expr,)*) => {
        $(
            #[test]
            fn $name() {
                seeds($lot);
            }
        )*
    };
}

lots! {
    no_rule_is_broken_by_the_first_lot_of_scripts: 0,
    no_rule_is_broken_by_the_second_lot_of_scripts: 1,
    no_rule_is_broken_by_the_third_lot_of_scripts: 2,
    no_rule_is_broken_by_the_fourth_lot_of_scripts: 3,
    no_rule_is_broken_by_the_fifth_lot_of_scripts: 4,
    no_rule_is_broken_by_the_sixth_lot_of_scripts: 5,
    no_rule_is_broken_by_the_seventh_lot_of_scripts: 6,
    no_rule_is_broken_by_the_eighth_lot_of_scripts: 7,
}

/// The mistake that is asked for by its name in [`Fault`].
fn asked_fault() -> Option<Fault> {
    let asked = std::env::var("EVENKEEL_FAULT").ok()?;
    let of_name = faults::FAULTS.iter().find(|it| format!("{:?}", it.0) == asked);
    Some(of_name.expect("EVENKEEL_FAULT names one of tests/sim/faults.rs").0)
}

/// `EVENKEEL_SEED=17` plays that one and prints what happened; so does `EVENKEEL_REPLAY=path`. With `EVENKEEL_FAULT=…`
/// a mistake is planted.
#[test]
fn a_script_that_is_asked_for_breaks_no_rule() {
    let script = if let Ok(seed) = std::env::var("EVENKEEL_SEED") {
        generate::script(seed.parse().expect("EVENKEEL_SEED is a number"), LENGTH)
    } else if let Ok(path) = std::env::var("EVENKEEL_REPLAY") {
        let text = std::fs::read_to_string(&path).expect("EVENKEEL_REPLAY names a file");
        text.parse().expect("it is a script")
    } else {
        return;
    };
    let fault = asked_fault();
    let played = play_with(&script, fault);
    println!("{}\n{:?}\n{:?}", played.trace.join("\n"), played.checks, played.verdict);
    if fault.is_none() {
        check(&script);
    }
}

#[test]
fn the_same_script_is_played_the_same_way_twice() {
    for seed in 0..8 {
        let script = generate::script(seed, LENGTH);
        let (first, second) = (play(&script), play(&script));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.steps, second.steps);
    }
}

#[test]
fn a_script_is_the_same_after_it_was_written_down() {
    for seed in 0..100 {
        let script = generate::script(seed, LENGTH);
        assert_eq!(script.to_string().parse::<Script>().as_ref(), Ok(&script));
    }
}

#[test]
fn what_once_broke_a_rule_breaks_none_any_more() {
    let mut paths: Vec<_> =
        std::fs::read_dir(replays()).into_iter().flatten().flatten().map(|it| it.path()).collect();
    paths.sort();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("it can be read");
        let script: Script = text.parse().unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        let played = play(&script);
        let verdict = played.verdict;
        assert!(verdict.is_none(), "{}: {verdict:?}\n{}", path.display(), played.trace.join("\n"));
    }
}

/// Seeds of the ordinary run, those of all lots in turn.
fn all_seeds() -> impl Iterator<Item = u64> {
    (0..SCRIPTS / 2).flat_map(|n| (0..8).map(move |lot| lot * 1_000_000 + n))
}

/// The rule that a seed breaks with a fault.
fn broken(seed: u64, fault: Fault) -> Option<String> {
    let verdict = play_with(&generate::script(seed, LENGTH), Some(fault)).verdict?;
    Some(verdict.split(':').next().unwrap_or_default().to_owned())
}

/// Seeds by which each of these rules finds a fault, those that are known first; and how often others found it.
fn find(
    fault: Fault,
    rules: &[&str],
    known: &[(String, u64)],
) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let mut found = BTreeMap::new();
    let mut others = BTreeMap::<String, u64>::new();
    for seed in known.iter().map(|it| it.1).chain(all_seeds()) {
        match broken(seed, fault) {
            Some(rule) if rules.contains(&rule.as_str()) => drop(found.entry(rule).or_insert(seed)),
            Some(rule) => *others.entry(rule).or_default() += 1,
            None => {}
        }
        if found.len() == rules.len() {
            break;
        }
    }
    (found, others)
}

/// The table of docs/testing.md is played. `UPDATE=1` looks for other seeds where those that stand there find nothing.
#[test]
fn each_planted_fault_is_found_with_the_seed_and_by_the_rule_that_the_documentation_names() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/testing.md");
    let read = || std::fs::read_to_string(&path).expect("it can be read");
    let (rows, _) = faults::table(&read());
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    let mut new = Vec::new();
    for (fault, planted, rules) in faults::FAULTS {
        if asked_fault().is_some_and(|it| it != fault) {
            continue;
        }
        let known = rows.iter().find(|it| it.planted == planted);
        let known = known.map(|it| it.found.as_slice()).unwrap_or_default();
        let found: Vec<(String, u64)> = if update {
            let (found, others) = find(fault, rules, known);
            println!("{fault:?}: {found:?}; others: {others:?}");
            rules.iter().filter_map(|it| Some(((*it).to_owned(), *found.get(*it)?))).collect()
        } else {
            let finds = |it: &&(String, u64)| broken(it.1, fault).as_deref() == Some(&it.0);
            known.iter().filter(finds).cloned().collect()
        };
        let names: Vec<&str> = found.iter().map(|it| it.0.as_str()).collect();
        if names != *rules {
            wrong.push(format!("{planted}: found by {names:?} and not by {rules:?}"));
        }
        new.push(faults::Row { planted: planted.to_owned(), found });
    }
    if asked_fault().is_some() {
        println!("{new:?}");
    } else if update {
        let text = read();
        let (_, place) = faults::table(&text);
        let text = [&text[..place.start], &faults::print(&new), &text[place.end..]].concat();
        std::fs::write(&path, text).expect("it can be written");
    } else {
        assert_eq!(new, rows, "the table of docs/testing.md; UPDATE=1 looks for other seeds");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
