//! The model in memory, as the contract sees it.

use std::collections::BTreeSet;

use evenkeel::content::Digest;
use evenkeel::observed::{Image, ImageConfig, Task};
use evenkeel::runtime::Exec;
use evenkeel::runtime::memory::MemoryRuntime;
use evenkeel::workload::InstanceId;
use oci_spec::runtime::Spec;

use super::{Harness, in_store};

pub(super) struct Memory {
    runtime: MemoryRuntime,
}

impl Default for Memory {
    fn default() -> Self {
        let runtime = MemoryRuntime::default();
        runtime.add_own_image(image(), 7);
        Self { runtime }
    }
}

fn image() -> Image {
    in_store(Image {
        name: "docker.io/library/busybox:latest".to_owned(),
        digest: Digest::of(b"image").to_string(),
        config: ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() },
        place: evenkeel::observed::ImagePlace::default(),
    })
}

impl Harness for Memory {
    type Runtime = MemoryRuntime;

    fn runtime(&self) -> &MemoryRuntime {
        &self.runtime
    }

    fn image(&self) -> Image {
        image()
    }

    fn spec(&self, id: &InstanceId) -> Spec {
        let mut spec = Spec::default();
        spec.set_hostname(Some(id.to_string()));
        spec
    }

    async fn listens(&self, _: u32) {}

    async fn exit(&self, id: &InstanceId, code: u32) {
        self.runtime.exit(id, code);
    }

    fn exec(&self) -> Exec {
        Exec { args: vec!["sh".to_owned()], ..Exec::default() }
    }

    async fn exit_exec(&self, id: &InstanceId, key: &str, code: u32) {
        self.runtime.exit_exec(id, key, code);
    }

    fn is_alive(&self, pid: u32) -> bool {
        let process = self.runtime.process(pid);
        if let Some(process) = &process {
            assert_eq!(
                process.spec,
                self.spec(&process.id),
                "it was created from the spec that was written last"
            );
        }
        process.is_some()
    }

    async fn stop(&mut self) {
        self.runtime.set_unreachable(true);
    }

    async fn start(&mut self) {
        self.runtime.forget_tasks();
        self.runtime.set_unreachable(false);
    }

    fn forgets_tasks(&self) -> bool {
        true
    }

    async fn collect(&self) {}

    async fn add_foreign_image(&self, name: &str) {
        self.runtime.add_image(Image { name: name.to_owned(), ..image() });
    }

    async fn pause(&self, id: &InstanceId) {
        self.runtime.pause(id);
    }

    async fn hang(&self, id: &InstanceId, hung: bool) {
        self.runtime.hang(id, hung);
    }

    async fn lose_container(&self, id: &InstanceId) {
        self.runtime.lose_container(id);
    }

    async fn add_foreign(&self, id: &InstanceId) {
        self.runtime.add_foreign(id);
    }

    async fn has_foreign(&self, id: &InstanceId) -> bool {
        self.runtime.has_foreign(id)
    }

    async fn labels(&self, _: &InstanceId) -> BTreeSet<String> {
        BTreeSet::new()
    }

    async fn soil(&self, id: &InstanceId) {
        self.runtime.soil(id);
    }

    async fn is_soiled(&self, id: &InstanceId) -> bool {
        self.runtime.is_soiled(id)
    }
}

#[tokio::test]
async fn a_failure_that_a_test_wants_comes_once_and_has_no_effect() {
    use evenkeel::runtime::{ErrorKind, Runtime as _, verb};
    let memory = Memory::default();
    memory.runtime.fail_next(verb::LEASE, ErrorKind::Refused);
    assert_eq!(super::kind(memory.runtime.lease("evenkeel-a").await), ErrorKind::Refused);
    assert!(super::observe(&memory).await.leases.is_empty());
    memory.runtime.lease("evenkeel-a").await.unwrap();
    assert_eq!(memory.runtime.calls(), ["make lease evenkeel-a", "make lease evenkeel-a"]);
    assert!(memory.runtime.calls().is_empty());
}

#[tokio::test]
async fn a_program_can_be_told_to_end_as_soon_as_it_starts() {
    use evenkeel::runtime::Runtime as _;
    let memory = Memory::default();
    memory.runtime.exit_on_start(&"job".parse().unwrap(), Some(4));
    let (job, _) = super::run(&memory, "job").await;
    let ended = memory.runtime.wait(&job.id, super::SOON).await.unwrap();
    assert!(matches!(ended, Some(Task::Stopped { code: 4, .. })), "{ended:?}");
}

#[tokio::test]
async fn a_program_that_ignores_signals_ends_by_the_last_one_only() {
    use evenkeel::runtime::Runtime as _;
    use evenkeel::workload::Signal;
    let memory = Memory::default();
    let (web, pid) = super::run(&memory, "web").await;
    memory.runtime.ignore_signals(&web.id);
    memory.runtime.kill(&web.id, Signal::TERM, false).await.unwrap();
    assert_eq!(super::container(&memory).await.task, Task::Running { pid });
    memory.runtime.kill(&web.id, Signal::KILL, false).await.unwrap();
    assert!(matches!(super::container(&memory).await.task, Task::Stopped { code: 137, .. }));
}
