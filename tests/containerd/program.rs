//! The program as its users meet it: manifests are dropped, commands are typed, the status is read.
//!
//! Knows nothing of what is inside of the program but the form of its status.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evenkeel::status::{Item, Status};
use rustix::process::Signal;

use crate::rig::{NAMESPACE, Rig, sweep};

/// More than anything here takes on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(90);

/// The directories, the configuration and the containerd namespace of one installation of the program.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    directory: PathBuf,
    path: OsString,
    /// `None`: the program is not told, and decides itself.
    socket: Option<PathBuf>,
    namespace: String,
    program: PathBuf,
    manifests: Vec<PathBuf>,
    environment: Vec<(String, OsString)>,
}

impl Site {
    /// The rig's own.
    pub(crate) fn of(rig: &Rig) -> Self {
        Self::at(rig, rig.dir().to_owned(), NAMESPACE)
    }

    /// Another one on the same containerd, in a namespace of its own.
    pub(crate) fn beside(rig: &Rig, name: &str) -> Self {
        let site = Self::at(rig, rig.dir().join("sites").join(name), name);
        for directory in [site.run_dir(), site.state_dir().join("images"), site.manifests_dir()] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::copy(rig.archive(), site.state_dir().join("images/busybox.tar")).unwrap();
        site
    }

    fn at(rig: &Rig, directory: PathBuf, namespace: &str) -> Self {
        let site = Self {
            manifests: vec![directory.join("manifests")],
            directory,
            path: rig.engine().path(),
            socket: Some(rig.socket()),
            namespace: namespace.to_owned(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_evenkeel")),
            environment: Vec::new(),
        };
        std::fs::create_dir_all(&site.directory).unwrap();
        // Nobody wants to wait for two seconds in each test.
        site.configure("removeAfter: 200ms\n");
        site
    }

    /// Uses another build of the program.
    pub(crate) fn with_program(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// Lets the program look after a containerd of its own.
    pub(crate) fn with_embedded_engine(self) -> Self {
        Self { socket: None, ..self }.with("EVENKEEL_ENGINE", "embedded")
    }

    pub(crate) fn with_namespace(self, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..self }
    }

    pub(crate) fn with_socket(self, socket: &Path) -> Self {
        Self { socket: Some(socket.to_owned()), ..self }
    }

    pub(crate) fn with_manifests(self, directories: &[&Path]) -> Self {
        Self { manifests: directories.iter().map(|it| (*it).to_owned()).collect(), ..self }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.environment.retain(|it| it.0 != key);
        self.environment.push((key.to_owned(), value.into()));
        self
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Of the containerd that it is told of.
    pub(crate) fn socket(&self) -> &Path {
        self.socket.as_ref().expect("it has an engine of its own")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.join("lib")
    }

    pub(crate) fn manifests_dir(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("config.yaml")
    }

    /// Writes the configuration file.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.configuration(), text).unwrap();
    }

    /// Puts a file among the manifests, as a careful writer does: by rename.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let path = self.manifests_dir().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, text);
    }

    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.manifests_dir().join(file)).unwrap();
    }

    /// The program, to be given more and to be run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let manifests: Vec<&str> = self.manifests.iter().map(|it| it.to_str().unwrap()).collect();
        command
            .args(args)
            // In its arguments, so that the rig finds one that a failed test leaves.
            .arg("--run-dir")
            .arg(self.run_dir())
            .current_dir(&self.directory)
            .env("PATH", &self.path)
            .env("EVENKEEL_CONFIG", self.configuration())
            .env("EVENKEEL_STATE_DIR", self.state_dir())
            .env("EVENKEEL_MANIFESTS", manifests.join(","))
            .env("EVENKEEL_CONTAINERD_NAMESPACE", &self.namespace)
            .stdin(Stdio::null());
        if let Some(socket) = &self.socket {
            command.env("EVENKEEL_CONTAINERD_ADDRESS", socket);
        }
        command.envs(self.environment.iter().map(|it| (&it.0, &it.1)));
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        Done::of(self.command(args), args)
    }

    /// Everything is as wanted after it.
    #[track_caller]
    pub(crate) fn apply(&self) -> Done {
        self.apply_exits(0)
    }

    /// Nothing more can be done, and that is what comes of it.
    #[track_caller]
    pub(crate) fn apply_exits(&self, code: i32) -> Done {
        self.run(&["apply"]).exits(code)
    }

    /// There is nothing to do.
    #[track_caller]
    pub(crate) fn plan_is_empty(&self) {
        let done = self.run(&["plan"]).exits(0);
        assert!(done.out.contains("nothing to do"), "{}", done.out);
    }

    /// What the program says now, whatever its exit code.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        let done = self.run(&["status", "--output", "json"]);
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    /// How a workload stands.
    #[track_caller]
    pub(crate) fn item(&self, name: &str) -> Option<Item> {
        self.status().items.into_iter().find(|it| it.name == name)
    }

    /// The process of a workload that runs now.
    #[track_caller]
    pub(crate) fn pid(&self, name: &str) -> u32 {
        let item = self.item(name);
        item.as_ref()
            .and_then(|it| it.instance.as_ref()?.pid)
            .unwrap_or_else(|| panic!("{name} does not run: {item:#?}"))
    }

    /// The processes of all that runs now, by name.
    #[track_caller]
    pub(crate) fn pids(&self) -> Vec<(String, u32)> {
        let items = self.status().items;
        items.iter().filter_map(|it| Some((it.name.clone(), it.instance.as_ref()?.pid?))).collect()
    }

    /// Waits until a workload runs as its manifest says.
    #[track_caller]
    pub(crate) fn until_running(&self, name: &str) -> u32 {
        let is_fine = |it: &Item| it.up_to_date && it.reason.is_empty();
        self.until(name, |item| {
            item.filter(|it| is_fine(it)).and_then(|it| it.instance.as_ref()?.pid)
        })
    }

    /// Waits until there is nothing of a workload any more.
    #[track_caller]
    pub(crate) fn until_gone(&self, name: &str) {
        self.until(name, |item| item.is_none().then_some(()));
    }

    /// Waits for what is looked for in what is said about a workload.
    #[track_caller]
    pub(crate) fn until<T>(&self, name: &str, look: impl Fn(Option<&Item>) -> Option<T>) -> T {
        self.until_status(name, |status| look(status.items.iter().find(|it| it.name == name)))
    }

    /// Waits for what is looked for in the status.
    #[track_caller]
    pub(crate) fn until_status<T>(&self, what: &str, look: impl Fn(&Status) -> Option<T>) -> T {
        let mut last = None;
        let start = now();
        while now() - start < LIMIT {
            let status = self.status();
            if let Some(found) = look(&status) {
                return found;
            }
            last = Some(status);
            pause();
        }
        panic!("not within the deadline: {what}; the last status: {last:#?}");
    }

    /// Starts a controller and waits until it keeps the status.
    #[track_caller]
    pub(crate) fn controller(&self) -> Controller {
        let file = std::fs::File::options().create(true).append(true).open(self.controller_log());
        self.controller_logging_to(file.unwrap())
    }

    fn controller_log(&self) -> PathBuf {
        self.directory.join("controller.log")
    }

    pub(crate) fn controller_logging_to(&self, log: impl Into<Stdio>) -> Controller {
        let mut command = self.command(&["run", "-v"]);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut controller = Controller { child, log: self.controller_log() };
        let pid = controller.pid();
        eventually("a status of the controller", || {
            if let Some(code) = controller.child.try_wait().unwrap() {
                panic!("the controller ended with {code}");
            }
            let text = std::fs::read(self.run_dir().join("status.json")).ok()?;
            let status: Status = serde_json::from_slice(&text).ok()?;
            (status.controller?.pid == pid).then_some(())
        });
        controller
    }
}

/// Writes by rename.
pub(crate) fn write(path: &Path, text: &str) {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap());
    let temporary = path.with_file_name(name);
    std::fs::write(&temporary, text).unwrap();
    std::fs::rename(temporary, path).unwrap();
}

/// A manifest of a container that does what `spec` says.
pub(crate) fn manifest(name: &str, spec: &str) -> String {
    let mut text = format!(
        "apiVersion: evenkeel/v1\nkind: Container\nmetadata:\n  name: {name}\nspec:\n  image: busybox\n"
    );
    for line in spec.lines() {
        text.push_str("  ");
        text.push_str(line.trim_start_matches("| "));
        text.push('\n');
    }
    text
}

/// A manifest of a container that runs for ever, and is killed at once when it is to end.
pub(crate) fn sleeper(name: &str) -> String {
    manifest(name, "command: [sleep, \"36000\"]\nstop: {signal: SIGKILL}")
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    what: String,
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    fn of(mut command: Command, args: &[&str]) -> Self {
        let output = command.output().unwrap();
        Self {
            what: args.join(" "),
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        let Self { what, out, err, .. } = &self;
        assert_eq!(self.code, Some(code), "`{what}`\nstdout: {out}\nstderr: {err}");
        self
    }

    /// All of this is on stdout or stderr.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        let Self { what, out, err, .. } = &self;
        for part in parts {
            assert!(
                out.contains(part) || err.contains(part),
                "`{what}` does not say {part:?}\nstdout: {out}\nstderr: {err}"
            );
        }
        self
    }
}

/// A running controller; killed with the test.
#[derive(Debug)]
pub(crate) struct Controller {
    child: Child,
    log: PathBuf,
}

impl Controller {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it and its predecessors have logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// As a crash would end it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As a service manager would end it; its exit code.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> Option<i32> {
        sweep::signal(self.pid(), Signal::TERM);
        eventually("the end of the controller", || self.child.try_wait().unwrap()).code()
    }

    /// Waits until it ends by itself; its exit code.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> Option<i32> {
        eventually("the end of the controller", || self.child.try_wait().unwrap()).code()
    }

    pub(crate) fn hang_up(&self) {
        sweep::signal(self.pid(), Signal::HUP);
    }

    /// Waits until it has logged this so many times.
    #[track_caller]
    pub(crate) fn until_logged(&self, text: &str, times: usize) {
        eventually(text, || (self.log().matches(text).count() >= times).then_some(()));
    }
}

#[expect(clippy::print_stdout, reason = "the runner shows it when a test fails")]
impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            println!(
                "the controller logged last:\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
        // It may have ended already; there is nothing else to do about it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Looks until there is something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = now();
    while now() - start < LIMIT {
        if let Some(found) = look() {
            return found;
        }
        pause();
    }
    panic!("not within the deadline: {what}");
}

/// Looks until it is as it should be; what was found last, for whoever says what is wrong with it.
pub(crate) fn found_at_last<T>(mut look: impl FnMut() -> T, is_right: impl Fn(&T) -> bool) -> T {
    let start = now();
    loop {
        let found = look();
        if is_right(&found) || now() - start >= LIMIT {
            return found;
        }
        pause();
    }
}

/// Waits until a process is gone, or a zombie.
#[track_caller]
pub(crate) fn until_dead(pid: u32) {
    eventually("the end of a process", || (!sweep::is_alive(pid)).then_some(()));
}

#[expect(clippy::disallowed_methods, reason = "deadlines of waits for other processes")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "between two looks at what another process does")]
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
