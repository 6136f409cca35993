//! A simulation of the whole loop: seeded scripts of everything that can happen, rules that are checked at each
//! effect, and convergence at the end. docs/testing.md says how to run, replay and read it.

mod generate;
mod judge;
mod runtime;
mod script;
mod shrink;
mod tree;
mod world;

use script::Script;
use world::{play, replays};

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

/// `EVENKEEL_SEED=17` plays that one and prints what happened; so does `EVENKEEL_REPLAY=path`.
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
    let played = play(&script);
    println!("{}\n{:?}", played.trace.join("\n"), played.checks);
    check(&script);
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
