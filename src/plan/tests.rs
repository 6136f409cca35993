use std::fmt::Write as _;

use super::*;

const WANTS: [Want; 6] =
    [Want::Running, Want::Stopped, Want::Absent, Want::HeldRunning, Want::HeldStopped, Want::Unclaimed];
const HAVES: [Have; 9] = [
    Have::Nothing,
    Have::Unstarted,
    Have::Created,
    Have::Running,
    Have::Paused,
    Have::Exited,
    Have::Lost,
    Have::Ended,
    Have::Unknown,
];
const FITS: [Fit; 3] = [Fit::Current, Fit::Outdated, Fit::Changed];
const AGAINS: [Again; 4] = [Again::Now, Again::Later, Again::Completed, Again::Failed];

/// Every combination; runs of equal decisions share a line, `*` stands for what makes no difference.
#[test]
fn the_decision_table_is_the_committed_one() {
    let mut table = String::from("# want × have × fit × ready × again → decision; UPDATE=1 rewrites this file\n");
    for want in WANTS {
        for have in HAVES {
            let every = |fit: Fit| {
                let mut all = Vec::new();
                for ready in [true, false] {
                    for again in AGAINS {
                        all.push((ready, again, decide(want, have, fit, ready, again)));
                    }
                }
                all
            };
            let decisions = |fit| every(fit).into_iter().map(|it| it.2).collect::<Vec<_>>();
            let same = FITS.iter().all(|fit| decisions(*fit) == decisions(Fit::Current));
            for fit in if same { &FITS[..1] } else { &FITS[..] } {
                let fit_text = if same { "*".to_owned() } else { format!("{fit:?}") };
                let rows = every(*fit);
                let first = rows[0].2;
                if rows.iter().all(|it| it.2 == first) {
                    writeln!(table, "{:<12} {:<10} {fit_text:<9} *         *          → {first:?}", format!("{want:?}"), format!("{have:?}")).unwrap();
                    continue;
                }
                for (ready, again, decision) in rows {
                    let ready = if ready { "ready" } else { "not ready" };
                    writeln!(
                        table,
                        "{:<12} {:<10} {fit_text:<9} {ready:<9} {:<10} → {decision:?}",
                        format!("{want:?}"),
                        format!("{have:?}"),
                        format!("{again:?}"),
                    )
                    .unwrap();
                }
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/decisions.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == table, "tests/decisions.txt differs; read it again after UPDATE=1\n{table}");
}
