//! Network namespaces of a test: one that stands for the host's, and those of containers. Nothing on this machine's own
//! interfaces, routes and rules is touched.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) struct NetworkNamespace {
    /// Keeps it; ended with its input.
    holder: Child,
}

impl NetworkNamespace {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo up && exec cat"]);
        let mut holder =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare");
        let mut said = [0; 3];
        holder.stdout.as_mut().unwrap().read_exact(&mut said).expect("a namespace of its own");
        Self { holder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// Runs a program in it that has to succeed, and returns what it printed.
    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").args(words);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// Runs what starts programs, in a thread that is in it.
    pub(crate) fn within<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(self.path()).unwrap();
        let inside = || {
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(work())
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
