//! Images that nothing needs any more.

use super::*;
use crate::desired::Blocker;
use crate::observed::{Space, StoredImage};
use crate::registry::memory::MemoryRegistry;
use crate::runtime::Mark;

const WEB: &str = "docker.io/library/web:1";
const IMAGE: &str = r#""image": "web:1""#;

/// An image of ours in the store, of a digest of its own.
fn own(it: &Harness, name: &str, size: u64) -> String {
    let digest = crate::content::Digest::of(name.as_bytes()).to_string();
    let name = format!("docker.io/library/{name}");
    let image = Image { digest: digest.clone(), ..image(&name, ImagePlace::Store) };
    it.runtime.add_own_image(image, size);
    digest
}

async fn stored(it: &Harness) -> BTreeMap<String, StoredImage> {
    it.look().await.stored_images
}

/// The images in the store but for the one that is somebody else's, without what all their names begin with.
async fn names(it: &Harness) -> Vec<String> {
    let names = stored(it).await.into_iter().filter(|it| it.1.came.is_some());
    names.map(|it| it.0.trim_start_matches("docker.io/library/").to_owned()).collect()
}

async fn has_mark(it: &Harness, name: &str) -> bool {
    stored(it).await[name].unused.is_some()
}

/// A harness with an image that was used by a workload, which is gone.
async fn unused() -> Harness {
    let mut it = Harness::new();
    own(&it, "web:1", 10);
    it.want("a", IMAGE);
    it.run();
    it.until_running("a").await;
    it.after(1.0).await;
    assert!(!has_mark(&it, WEB).await);
    it.remove("a");
    it.until_gone("a").await;
    it.after(1.0).await;
    assert!(has_mark(&it, WEB).await);
    it.calls();
    it
}

fn hours(n: u64) -> Duration {
    Duration::from_hours(n)
}

async fn pass(it: &Harness, span: Duration) {
    it.after(span.as_secs_f64()).await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_nothing_needs_is_kept_for_a_day_and_then_removed() {
    let mut it = unused().await;
    assert!(it.plan().await.is_empty(), "who waits has nothing to do");
    pass(&it, hours(23)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    // The time of a controller that is gone counts too.
    it.kill().await;
    it.run();
    pass(&it, Duration::from_mins(50)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    assert_eq!(it.calls(), [""; 0]);
    pass(&it, Duration::from_mins(20)).await;
    assert_eq!(names(&it).await, [""; 0]);
    assert_eq!(it.calls(), [format!("remove image {WEB}")]);
    assert!(it.plan().await.is_empty());
    // Somebody else's is still there.
    assert_eq!(stored(&it).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_needed_again_has_its_whole_day_anew() {
    let mut it = unused().await;
    pass(&it, hours(23)).await;
    it.want("a", IMAGE);
    it.until_running("a").await;
    it.after(1.0).await;
    assert!(!has_mark(&it, WEB).await);
    it.remove("a");
    it.until_gone("a").await;
    pass(&it, hours(23)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    pass(&it, hours(2)).await;
    assert_eq!(names(&it).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_begins_the_day_anew() {
    let mut it = unused().await;
    it.want("a", IMAGE);
    it.until_running("a").await;
    pass(&it, hours(30)).await;
    it.remove("a");
    it.until_gone("a").await;
    pass(&it, hours(23)).await;
    it.kill().await;
    it.runtime.reboot();
    it.host.reboot();
    it.run();
    pass(&it, hours(23)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    pass(&it, hours(2)).await;
    assert_eq!(names(&it).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_was_applied_is_pinned_archived_or_somebody_elses_stays_for_ever() {
    let mut it = Harness::new();
    for name in ["stopped:1", "held:1", "waits:1", "applied:1", "goes:1"] {
        own(&it, name, 10);
    }
    let pinned = own(&it, "pinned:1", 10);
    it.runtime.mark_image("docker.io/library/pinned:1", &pinned, &Mark::Pinned).await.unwrap();
    it.want("stopped", r#""image": "stopped:1", "state": "stopped""#);
    it.want("waits", r#""image": "waits:1", "ipcMode": "container:nobody""#);
    it.want("held", r#""image": "held:1""#);
    it.want("applied", r#""image": "applied:1""#);
    it.run();
    it.until_running("held").await;
    it.until_running("applied").await;
    it.want_invalid("held");
    // What it wants now cannot be had; what it runs from is still needed.
    it.want("applied", r#""image": "nowhere:1""#);
    pass(&it, hours(60)).await;
    assert_eq!(names(&it).await, ["applied:1", "held:1", "pinned:1", "stopped:1", "waits:1"]);
    assert_eq!(stored(&it).await.len(), 6, "and the one of somebody else");
    assert!(it.plan().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_an_archive_has_stays_until_the_archive_goes() {
    let mut it = Harness::new();
    it.archive("old:1");
    it.want("a", r#""image": "old:1""#);
    it.run();
    it.until_running("a").await;
    it.remove("a");
    it.until_gone("a").await;
    pass(&it, hours(60)).await;
    assert_eq!(names(&it).await, ["old:1"]);
    std::fs::remove_file(it.directory.path().join("images/image.tar")).unwrap();
    pass(&it, hours(23)).await;
    assert_eq!(names(&it).await, ["old:1"]);
    pass(&it, hours(2)).await;
    assert_eq!(names(&it).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_while_something_may_hide_that_it_is_wanted() {
    let mut it = unused().await;
    let blocker = Blocker {
        code: "file-unreadable",
        path: "x.yaml".into(),
        message: "it cannot be read".to_owned(),
        since: BootTime::default(),
    };
    for source in it.wanted.sources.values_mut() {
        source.blockers.push(blocker.clone());
    }
    it.publish();
    pass(&it, hours(60)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    it.wanted.sources.values_mut().for_each(|it| it.blockers.clear());
    // Nobody knows what it wants.
    it.want_invalid("new");
    pass(&it, hours(1)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    it.remove("new");
    it.after(60.0).await;
    assert_eq!(names(&it).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_too_full_loses_the_oldest_first_and_no_more_than_it_has_to() {
    let mut it = Harness::new();
    let gib = 1 << 30;
    it.run();
    for (name, size) in [("b:1", 3 * gib), ("c:1", 9 * gib), ("a:1", gib), ("d:1", 5 * gib)] {
        own(&it, name, size);
        it.after(3600.0).await;
    }
    own(&it, "new:1", gib);
    it.after(60.0).await;
    it.kill().await;
    let space = |free| Some(Space { total: 100 * gib, free: free * gib });
    let removed = async |it: &Harness| -> Vec<String> {
        let plan = it.plan().await;
        plan.steps.iter().map(|it| format!("{} ({})", it.action.subject(), it.cause)).collect()
    };
    it.host.set_image_space(space(16));
    assert_eq!(removed(&it).await, [""; 0], "84 % are not too much");
    it.host.set_image_space(space(10));
    let full = "unused, and the disk is 90 % full";
    let oldest = ["b:1", "c:1"].map(|it| format!("docker.io/library/{it} ({full})"));
    assert_eq!(removed(&it).await, oldest);
    // All that is old enough: what is unused for a minute may be wanted again in the next.
    it.host.set_image_space(space(1));
    assert_eq!(removed(&it).await.len(), 4);
    it.after(120.0).await;
    assert_eq!(removed(&it).await.len(), 5);
    it.host.set_image_space(None);
    assert_eq!(removed(&it).await, [""; 0], "what is not known is not full");
    it.configure(|it| it.images.high = 100);
    it.host.set_image_space(space(1));
    assert_eq!(removed(&it).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn no_image_goes_while_one_is_pulled() {
    let mut it = unused().await;
    it.kill().await;
    let registry = MemoryRegistry::default();
    registry.put("docker.io/library/slow:1", b"x");
    registry.delay(Duration::from_mins(5));
    it.registry = Some(registry);
    it.want("slow", r#""image": "slow:1""#);
    it.run();
    it.configure(|it| it.images.grace = Duration::from_mins(2));
    it.until_reason("slow", "image-pulling").await;
    pass(&it, Duration::from_mins(9)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    pass(&it, Duration::from_mins(11)).await;
    it.until_running("slow").await;
    it.after(60.0).await;
    assert_eq!(names(&it).await, ["slow:1"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_command_brings_is_left_to_it_with_its_lease() {
    let mut it = unused().await;
    let hold = crate::rundir::ImageHold {
        holder: crate::rundir::Holder::this().unwrap(),
        names: [WEB.to_owned()].into(),
        leases: ["evenkeel-pull-x".to_owned()].into(),
    };
    let held = it.run_directory().hold_images(&hold).unwrap();
    it.runtime.lease("evenkeel-pull-x").await.unwrap();
    pass(&it, hours(60)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    // It is in use meanwhile, and has its whole day afterwards.
    assert!(!has_mark(&it, WEB).await);
    assert_eq!(it.runtime.observe(&BTreeSet::new()).await.unwrap().leases.len(), 1);
    drop(held);
    it.after(60.0).await;
    assert_eq!(it.runtime.observe(&BTreeSet::new()).await.unwrap().leases.len(), 0);
    pass(&it, hours(23)).await;
    assert_eq!(names(&it).await, ["web:1"]);
    pass(&it, hours(2)).await;
    assert_eq!(names(&it).await, [""; 0]);
    // One of a command that was killed counts for nothing, and the next one sweeps it.
    let mut dead = hold;
    dead.holder.start_time += 1;
    std::mem::forget(it.run_directory().hold_images(&dead).unwrap());
    assert_eq!(it.run_directory().image_holds(), []);
    it.calls();
}

#[tokio::test(start_paused = true)]
async fn commands_mark_what_is_unused_and_down_and_hands_leave_images_alone() {
    let mut it = Harness::new();
    own(&it, "web:1", 10);
    own(&it, "old:1", 10);
    it.want("a", IMAGE);
    it.ask("a", HandKind::Restart);
    let hands = Goal::Hands { names: [name("a")].into() };
    assert_eq!(it.once(hands).await, Ended::Converged);
    assert!(!has_mark(&it, "docker.io/library/old:1").await);
    assert_eq!(it.once(Goal::Converge { wait: false }).await, Ended::Converged);
    assert!(has_mark(&it, "docker.io/library/old:1").await);
    pass(&it, hours(48)).await;
    assert_eq!(it.once(Goal::Down { names: None }).await, Ended::Converged);
    assert_eq!(names(&it).await, ["old:1", "web:1"]);
    assert_eq!(it.once(Goal::Converge { wait: false }).await, Ended::Converged);
    assert_eq!(names(&it).await, ["web:1"]);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_removed_is_tried_again_later_and_is_in_nobodys_way() {
    let mut it = unused().await;
    for _ in 0..3 {
        it.runtime.fail_next(verb::REMOVE_IMAGE, crate::runtime::ErrorKind::Refused);
    }
    pass(&it, hours(25)).await;
    assert_eq!(names(&it).await, [""; 0]);
    let tries = it.runtime.timed_calls();
    assert_eq!(tries.len(), 4, "it was tried again: {tries:?}");
    for (before, after) in tries.iter().zip(&tries[1..]) {
        assert!(after.0.duration_since(before.0) >= Duration::from_millis(80), "{tries:?}");
    }
    it.want("b", "");
    it.until_running("b").await;
}

/// What a command does to bring an image, beside whatever else there is.
fn pull_by_hand(it: &Harness) -> impl Future<Output = Vec<Result<(), Error>>> + use<> {
    let hold = crate::rundir::ImageHold {
        holder: crate::rundir::Holder::this().unwrap(),
        names: [WEB.to_owned()].into(),
        leases: [plan::pull_lease(WEB)].into(),
    };
    let held = it.run_directory().hold_images(&hold).unwrap();
    let step = Step {
        name: None,
        action: Action::Pull { image: WEB.to_owned(), known: None },
        cause: Cause::Asked,
        requires: Vec::new(),
        pause: Duration::ZERO,
    };
    let edge = it.edge();
    async move {
        let mut results = Vec::new();
        while results.len() < 5 && !results.last().is_some_and(Result::is_ok) {
            results.push(edge.carry_out_alone(&step).await);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        drop(held);
        results
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_pulls_beside_a_controller_which_leaves_its_lease_alone() {
    let mut it = Harness::with(&[("b", "")]).await;
    let registry = MemoryRegistry::default();
    registry.put(WEB, &vec![b'x'; 50_000]);
    registry.delay(Duration::from_mins(1));
    it.registry = Some(registry);
    let results = pull_by_hand(&it).await;
    assert!(matches!(results[..], [Ok(())]), "{results:?}");
    it.after(60.0).await;
    assert_eq!(names(&it).await, ["web:1"]);
    assert!(it.look().await.leftovers.is_empty());
    assert!(has_mark(&it, WEB).await);
}

/// How often a name was asked for, and a layer.
fn asked_and_streamed(registry: &MemoryRegistry) -> (usize, usize) {
    let calls = registry.calls();
    let count = |verb| calls.iter().filter(|it| it.starts_with(verb)).count();
    (count("resolve"), count("stream"))
}

#[tokio::test(start_paused = true)]
async fn a_command_and_a_controller_that_want_one_image_pull_it_once_and_both_get_it() {
    for is_hand_first in [false, true] {
        let mut it = Harness::new();
        let registry = MemoryRegistry::default();
        registry.put(WEB, &vec![b'x'; 50_000]);
        registry.delay(Duration::from_secs(20));
        it.registry = Some(registry.clone());
        it.run();
        let results = if is_hand_first {
            let hand = tokio::spawn(pull_by_hand(&it));
            it.after(3.0).await;
            it.want("a", IMAGE);
            hand.await.unwrap()
        } else {
            it.want("a", IMAGE);
            it.after(3.0).await;
            pull_by_hand(&it).await
        };
        assert!(matches!(results[..], [Ok(())]), "{results:?}");
        it.until_running("a").await;
        it.after(60.0).await;
        assert_eq!(asked_and_streamed(&registry), (1, 1));
        assert_eq!(names(&it).await, ["web:1"]);
        assert!(!has_mark(&it, WEB).await);
        assert!(it.look().await.leftovers.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_pull_that_fails_pulls_itself() {
    let mut it = Harness::new();
    let registry = MemoryRegistry::default();
    registry.put(WEB, &vec![b'x'; 50_000]);
    registry.delay(Duration::from_secs(20));
    registry.fail_next(
        "resolve",
        crate::registry::Error::new(crate::registry::Reason::Unreachable, "nobody is there"),
    );
    it.registry = Some(registry.clone());
    it.want("a", IMAGE);
    it.run();
    it.after(3.0).await;
    let results = pull_by_hand(&it).await;
    assert!(matches!(results[..], [Ok(())]), "{results:?}");
    it.until_running("a").await;
    assert_eq!(asked_and_streamed(&registry), (2, 1));
}
