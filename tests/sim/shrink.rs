//! The shortest form of a script that still breaks the same rule.

use std::time::Duration;

use tokio::time::Instant;

use crate::script::{Script, Step};
use crate::world::{Played, play};

/// Scripts that are tried at most, and for how long at most: each takes milliseconds, if nothing is wrong with that.
const TRIES: usize = 1_000;
const PATIENCE: Duration = Duration::from_mins(2);

/// Leaves out steps, many at a time and then one by one, as long as the same rule is broken; then shortens waits.
pub(crate) fn shrink(script: &Script, verdict: &str) -> (Script, Played) {
    let rule = rule_of(verdict);
    let mut best = (script.clone(), play(script));
    best.0.steps.truncate(best.1.steps);
    let mut tries = 0;
    let begun = Instant::now();
    let mut attempt = |steps: Vec<Step>, best: &mut (Script, Played)| {
        tries += 1;
        if tries > TRIES || begun.elapsed() > PATIENCE {
            return false;
        }
        let script = Script { seed: best.0.seed, steps };
        let played = play(&script);
        let same = played.verdict.as_deref().is_some_and(|it| rule_of(it) == rule);
        if same {
            *best = (script, played);
        }
        same
    };
    let mut size = best.0.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut better = false;
        while at < best.0.steps.len() {
            let end = (at + size).min(best.0.steps.len());
            let mut steps = best.0.steps.clone();
            steps.drain(at..end);
            if attempt(steps, &mut best) {
                better = true;
            } else {
                at = end;
            }
        }
        if size == 1 && !better {
            break;
        }
        size = (size / 2).max(1);
    }
    for at in 0..best.0.steps.len() {
        if let Step::Wait(ms) = best.0.steps[at] {
            for shorter in [10, 100, 1000, 10_000].into_iter().filter(|it| *it < ms) {
                let mut steps = best.0.steps.clone();
                steps[at] = Step::Wait(shorter);
                if attempt(steps, &mut best) {
                    break;
                }
            }
        }
    }
    best
}

fn rule_of(verdict: &str) -> &str {
    verdict.split_once(':').map_or(verdict, |it| it.0)
}
