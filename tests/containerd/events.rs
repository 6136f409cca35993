//! What happened, as `evenkeel events` tells it: of a controller and of commands.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use evenkeel::status::{Event, EventKind, EventType};

use crate::program::{Site, manifest, sleeper};
use crate::rig::Rig;

fn events(site: &Site, more: &[&str]) -> Vec<Event> {
    let mut arguments = vec!["events", "--output", "json"];
    arguments.extend(more);
    let done = site.run(&arguments).exits(0);
    done.out.lines().map(|it| serde_json::from_str(it).unwrap()).collect()
}

/// Each as `reason: cause`.
fn told(events: &[Event]) -> Vec<String> {
    events.iter().map(|it| format!("{}: {}", it.reason, it.cause)).collect()
}

#[tokio::test]
async fn what_a_controller_and_commands_do_is_told_with_its_cause_to_those_who_follow_too() {
    let mut rig = Rig::start().await;
    let site = Site::of(&rig);
    site.run(&["events"]).exits(0).says(&["no events"]);
    assert!(!site.run_dir().join("events").exists(), "looking makes nothing");
    site.write("web.yaml", &sleeper("web"));
    site.apply();
    let mut follower = site
        .command(&["events", "--follow", "--output", "json", "web", "job"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // Waits for what comes, and skips what comes before.
    let mut follow = |reason: &str| loop {
        let event: Event = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if event.reason == reason {
            return event;
        }
    };
    assert_eq!(follow("started").name.as_deref(), Some("web"));
    let controller = site.controller();
    site.write(
        "job.yaml",
        &manifest("job", "command: [sh, -c, \"exit 3\"]\nrestart: {policy: never}"),
    );
    let exit = follow("exited");
    assert_eq!((exit.kind, exit.r#type), (EventKind::Exit, EventType::Warning));
    assert_eq!((exit.cause.as_str(), exit.pid), ("exited with code 3", controller.pid()));
    site.run(&["stop", "web"]).exits(0);
    let asked = follow("stop-asked");
    assert!(asked.kind == EventKind::Hand && asked.pid != controller.pid());
    assert_eq!(follow("stopped").cause, "stopped by hand");
    site.run(&["start", "web"]).exits(0);
    assert_eq!(follow("started").cause, "started by hand");
    site.write("bad.yaml", &manifest("bad", "command: [/nowhere]"));
    rig.kill_containerd();
    controller.until_logged("cannot be observed", 1);
    rig.start_containerd().await;
    site.until("bad", |it| it.filter(|it| it.start_failure.is_some()).map(|_| ()));
    site.remove("web.yaml");
    assert_eq!(follow("removed").name.as_deref(), Some("web"));
    follower.kill().unwrap();
    follower.wait().unwrap();

    let all = events(&site, &[]);
    assert!(all.iter().any(|it| it.reason == "runtime-away" && it.name.is_none()));
    assert!(all.iter().any(|it| it.reason == "runtime-back"));
    let failed = all.iter().find(|it| it.reason == "command-not-found").unwrap();
    assert!(failed.message.contains("/nowhere") && failed.name.as_deref() == Some("bad"));
    let schema = serde_json::from_str(&site.run(&["schema", "event"]).out).unwrap();
    for event in &all {
        let value = serde_json::to_value(event).unwrap();
        assert_eq!(evenkeel::schema::check_against(&schema, &value), []);
        event.time.parse::<jiff::Timestamp>().unwrap();
        let is_ours = matches!(event.reason.as_str(), "started" | "stopped" | "removed");
        assert!(!is_ours || !event.cause.is_empty(), "{event:?}");
    }
    // Only what is asked for.
    let web = events(&site, &["web"]);
    assert!(web.iter().all(|it| it.name.as_deref() == Some("web")));
    let first = ["imported", "prepared", "started"].map(|it| format!("{it}: new manifest"));
    assert_eq!(told(&web)[..3], first);
    assert_eq!(events(&site, &["--since", "1h"]).len(), events(&site, &[]).len());
    assert_eq!(events(&site, &["--since", "2100-01-01T00:00:00Z"]), []);
    site.run(&["events", "job"]).exits(0).says(&["Warning", "exited with code 3"]);
    site.run(&["events", "--since", "yesterday"]).exits(2);
    assert_eq!(controller.terminate(), Some(0));
    assert_eq!(events(&site, &[]).last().unwrap().reason, "controller-ended");
    site.run(&["down", "bad"]).exits(0);
    assert!(told(&events(&site, &["bad"])).contains(&"removed: taken down".to_owned()));
    site.run(&["down"]).exits(0);
    rig.assert_clean();
}
