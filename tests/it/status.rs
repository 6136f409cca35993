//! What the status costs.

use std::collections::BTreeMap;
use std::time::Duration;

use evenkeel::desired::DesiredState;
use evenkeel::observed::ObservedState;
use evenkeel::plan::{Action, Cause, Phase, Plan, Standing, Step};
use evenkeel::status::{Around, status};
use evenkeel::workload::Name;

/// A plan with three steps for each of so many workloads.
fn plan(workloads: usize) -> Plan {
    let mut plan = Plan::default();
    let mut standings = BTreeMap::new();
    for n in 0..workloads {
        let name: Name = format!("workload-{n}").parse().expect("a name");
        let id: evenkeel::workload::InstanceId =
            format!("workload-{n}-0123456789").parse().expect("a name");
        for pid in 0..3 {
            plan.steps.push(Step {
                name: Some(name.clone()),
                action: Action::Publish { id: id.clone(), pid },
                cause: Cause::PinLost,
                requires: Vec::new(),
                pause: Duration::ZERO,
            });
        }
        let standing = Standing {
            phase: Phase::Running,
            reason: "",
            message: String::new(),
            up_to_date: true,
            instance: Some(id),
            until: None,
        };
        standings.insert(name, standing);
    }
    plan.standings = standings;
    plan
}

/// Time that this thread computes for a status, the least of some tries.
fn cost(plan: &Plan) -> Duration {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let part = |it: i64| u32::try_from(it).expect("a short time");
        Duration::new(part(time.tv_sec).into(), part(time.tv_nsec))
    };
    let (desired, observed) = (DesiredState::default(), ObservedState::default());
    let one = |_| {
        let begun = now();
        let made = status(&desired, &observed, plan, &Around::default());
        assert_eq!(made.items.len(), plan.standings.len());
        now().saturating_sub(begun)
    };
    (0..3).map(one).min().expect("some tries")
}

#[test]
fn eight_times_the_workloads_take_about_eight_times_as_long() {
    let (few, many) = (cost(&plan(500)), cost(&plan(4000)));
    assert!(many < few * 24, "{few:?} and {many:?}");
}
