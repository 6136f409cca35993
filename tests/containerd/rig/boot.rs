//! One boot of a machine, as far as programs can see: mounts, the kernel's name of the boot and the clock since it are
//! its own.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) struct Boot {
    /// Keeps the namespaces; ended with its input.
    holder: Child,
}

impl Boot {
    /// `id` becomes the name of the boot, which has been going for `up` longer than the machine.
    pub(crate) fn start(directory: &Path, id: &str, up: Duration) -> Self {
        let file = directory.join(format!("boot-{id}"));
        std::fs::write(&file, format!("{id}\n")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--time", "--boottime"]);
        command.arg(up.as_secs().to_string()).args(["sh", "-c"]);
        command.arg("mount --bind \"$1\" /proc/sys/kernel/random/boot_id && echo up && exec cat");
        command.arg("sh").arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let mut said = [0; 3];
        holder.stdout.as_mut().unwrap().read_exact(&mut said).expect("a boot of its own");
        Self { holder }
    }

    /// What runs a program in this boot, before the program's own words.
    pub(crate) fn words(&self) -> Vec<String> {
        let namespace =
            |option: &str, name: &str| format!("--{option}=/proc/{}/ns/{name}", self.holder.id());
        vec![
            "nsenter".to_owned(),
            namespace("mount", "mnt"),
            namespace("time", "time"),
            "--".to_owned(),
        ]
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
