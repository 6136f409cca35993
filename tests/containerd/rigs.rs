//! Two installations on one machine.

use rustix::process::Signal;

use crate::program::{Site, sleeper, until_dead};
use crate::rig::{Rig, sweep};
use crate::safety::assert_untouched;

#[tokio::test]
async fn what_is_killed_in_one_installation_leaves_the_other_alone() {
    let (mut ours, theirs) = tokio::join!(Rig::start(), Rig::start());
    let (here, there) = (Site::of(&ours), Site::of(&theirs));
    let names = ["private", "donor", "joiner", "host"];
    let modes = ["private", "shareable", "container:donor", "host"];
    for site in [&here, &there] {
        for (name, mode) in names.iter().zip(modes) {
            site.write(&format!("{name}.yaml"), &format!("{}  ipcMode: {mode}\n", sleeper(name)));
        }
    }
    let (controller, other) = (here.controller(), there.controller());
    for site in [&here, &there] {
        for it in &names {
            site.until_running(it);
        }
    }
    let (mine, all) = (here.pids(), there.pids());
    let id = |site: &Site, name: &str| site.item(name).unwrap().instance.unwrap().id;
    assert_eq!(
        id(&here, "donor"),
        id(&there, "donor"),
        "nothing but their directories tells them apart"
    );

    // Their processes; they are started again.
    for (_, pid) in &mine {
        sweep::signal(*pid, Signal::KILL);
    }
    for (name, old) in &mine {
        here.until(name, |item| item?.instance.as_ref()?.pid.filter(|it| it != old));
    }
    for it in &names {
        here.until_running(it);
    }
    assert_untouched(&there, &all);
    // Their shims, for which containerd cleans up.
    let mine = here.pids();
    for (name, _) in &mine {
        sweep::signal(ours.shim(&id(&here, name)), Signal::KILL);
    }
    for (name, old) in &mine {
        until_dead(*old);
        here.until(name, |item| item?.instance.as_ref()?.pid.filter(|it| it != old));
    }
    assert_untouched(&there, &all);
    // All of it, twice: as it should be, and as it should not.
    assert_eq!(controller.terminate(), Some(0));
    here.run(&["down"]).exits(0);
    ours.assert_clean();
    assert_untouched(&there, &all);
    here.apply();
    ours.kill_containerd();
    drop(ours);
    assert_untouched(&there, &all);
    there.plan_is_empty();
    assert!(all.iter().all(|(_, pid)| sweep::is_alive(*pid)));
    assert!(!other.log().contains("step failed"), "{}", other.log());
    assert_eq!(other.terminate(), Some(0));
    there.run(&["down"]).exits(0);
    theirs.assert_clean();
}
