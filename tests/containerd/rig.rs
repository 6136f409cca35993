//! A private containerd in a temporary directory, with everything that it starts.
//!
//! Rigs do not disturb each other or a containerd of the system: socket, root, state, runc's state and cgroups are
//! their own. Dropping a rig ends every process that mentions its directory, unmounts and removes everything, also
//! after a failed test; what a killed test run left behind goes when the next rig starts.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;
use evenkeel::host::means;
use evenkeel::image::Archives;
use evenkeel::observed::Image;
use evenkeel::runtime::containerd::{Containerd, Settings};
use evenkeel::runtime::{NewImage, Runtime as _};
use tonic::transport::{Channel, Endpoint};

pub(crate) mod boot;
pub(crate) mod busybox;
pub(crate) mod net;
pub(crate) mod proxy;
pub(crate) mod recipe;
pub(crate) mod registry;
pub(crate) mod sweep;
pub(crate) mod usage;

/// The namespace that the program uses unless told.
pub(crate) const NAMESPACE: &str = "evenkeel";

/// See [`Around::SealedCgroups`].
pub(crate) const SEALED: &str = "/sys/fs/cgroup/pids";

/// Generous: with all tests at once on two cores, containerd takes a few seconds to come up.
const START_LIMIT: Duration = Duration::from_mins(1);

/// A containerd to be tested with: a directory with `containerd` and its shim; empty for the installed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Engine(PathBuf);

impl Engine {
    /// The one that `EVENKEEL_TEST_CONTAINERD` names, or the installed one.
    pub(crate) fn chosen() -> Self {
        std::env::var_os("EVENKEEL_TEST_CONTAINERD")
            .map_or_else(Self::installed, |it| Self::at(PathBuf::from(it)))
    }

    /// Those that `EVENKEEL_TEST_ENGINES` names: versions below `target/engines`, directories, or `installed`, with
    /// commas between them. Without it, all below `target/engines`, or the installed one when there are none.
    pub(crate) fn all() -> Vec<Self> {
        let engines = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("engines");
        if let Ok(names) = std::env::var("EVENKEEL_TEST_ENGINES") {
            let engine = |name: &str| {
                if name == "installed" { Self::installed() } else { Self::at(engines.join(name)) }
            };
            return names
                .split(',')
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .map(engine)
                .collect();
        }
        let directories =
            std::fs::read_dir(&engines).into_iter().flatten().map(|entry| entry.unwrap().path());
        // One that begins with a dot is being made.
        let complete =
            directories.filter(|it| !it.file_name().unwrap().as_encoded_bytes().starts_with(b"."));
        let mut found: Vec<Self> = complete.map(Self::at).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        if found.is_empty() { vec![Self::installed()] } else { found }
    }

    fn installed() -> Self {
        Self(PathBuf::new())
    }

    /// Without this check, the installed one would be tested under another name.
    fn at(directory: PathBuf) -> Self {
        let program = directory.join("containerd");
        assert!(program.exists(), "{} is missing; run scripts/engines", program.display());
        Self(directory)
    }

    /// `PATH` with it in front.
    pub(crate) fn path(&self) -> std::ffi::OsString {
        let own = (!self.0.as_os_str().is_empty()).then(|| self.0.clone());
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        std::env::join_paths(own.into_iter().chain(std::env::split_paths(&rest)).chain(usual))
            .unwrap()
    }

    /// One of its programs.
    pub(crate) fn find(&self, program: &str) -> PathBuf {
        let found = means::find(None, std::env::split_paths(&self.path()), program).unwrap();
        found.unwrap_or_else(|| panic!("{program} is missing"))
    }

    /// Whether a restart makes it forget the tasks that have ended: since 1.7.
    pub(crate) fn forgets_tasks(&self) -> bool {
        let version = self.version();
        let mut numbers =
            version.split(['.', '~', '+']).map(|it| it.parse::<u32>().unwrap_or_default());
        (numbers.next(), numbers.next()) >= (Some(1), Some(7))
    }

    /// `1.6.20~ds1`.
    pub(crate) fn version(&self) -> String {
        let mut command = Command::new("containerd");
        let output = command.arg("--version").env("PATH", self.path()).output();
        let output = output.expect("containerd cannot be run; install it, or run scripts/engines");
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace()
            .nth(2)
            .expect("`containerd --version` says no version")
            .trim_start_matches('v')
            .to_owned()
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.file_name() {
            Some(name) => name.display().fmt(f),
            None => f.pad("installed"),
        }
    }
}

/// What a containerd finds around itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Around {
    /// What all of the box find.
    Everything,
    /// Shim and runc as links in [`Rig::programs`], and in no other place where it looks; see [`Rig::more_programs`].
    OwnPrograms,
    /// A mount namespace of its own, in which a hierarchy of cgroups is read-only.
    SealedCgroups,
}

/// A running containerd and the directories of a program that uses it.
pub(crate) struct Rig {
    directory: PathBuf,
    engine: Engine,
    around: Around,
    containerd: Option<Child>,
    boot: Option<boot::Boot>,
}

impl Rig {
    /// On the chosen engine.
    pub(crate) async fn start() -> Self {
        Self::start_on(&Engine::chosen()).await
    }

    pub(crate) async fn start_on(engine: &Engine) -> Self {
        Self::start_around(engine, Around::Everything).await
    }

    pub(crate) async fn start_around(engine: &Engine, around: Around) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "tests with a real containerd have to run as root"
        );
        sweep::stale();
        let directory = tempfile::Builder::new().prefix(sweep::PREFIX).tempdir().unwrap().keep();
        let (containerd, boot) = (None, None);
        let mut rig = Self { directory, engine: engine.clone(), around, containerd, boot };
        sweep::claim(&rig.directory);
        for directory in [rig.run_dir(), rig.state_dir().join("images"), rig.manifests_dir()] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(rig.archive(), busybox::archive()).unwrap();
        std::fs::write(rig.directory.join("config.toml"), rig.configuration()).unwrap();
        if around == Around::OwnPrograms {
            for directory in [rig.programs(), rig.more_programs(), rig.directory.join("own")] {
                std::fs::create_dir(directory).unwrap();
            }
            for program in [means::SHIM, means::RUNC] {
                rig.link(program, &rig.programs());
            }
            // A copy, as it looks beside the file that it is.
            let own = rig.directory.join("own/containerd");
            std::fs::copy(engine.find("containerd"), own).unwrap();
        }
        rig.start_containerd().await;
        rig
    }

    /// Everything of the rig is below it.
    pub(crate) fn dir(&self) -> &Path {
        &self.directory
    }

    /// Before it is started again.
    pub(crate) fn surround(&mut self, around: Around) {
        self.around = around;
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
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

    /// The image archive with busybox, as `busybox`.
    pub(crate) fn archive(&self) -> PathBuf {
        self.state_dir().join("images/busybox.tar")
    }

    /// The first directory of the `PATH` of a containerd [`Around::OwnPrograms`].
    pub(crate) fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }

    /// The second one, which is empty.
    pub(crate) fn more_programs(&self) -> PathBuf {
        self.directory.join("more-programs")
    }

    /// Puts a program of the engine into a directory.
    pub(crate) fn link(&self, program: &str, directory: &Path) {
        std::os::unix::fs::symlink(self.engine.find(program), directory.join(program)).unwrap();
    }

    /// Where the containers' cgroups go in specs that a test writes itself.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/{}", self.directory.file_name().unwrap().to_str().unwrap())
    }

    /// `overlayfs`, unless `EVENKEEL_TEST_SNAPSHOTTER` says otherwise.
    pub(crate) fn snapshotter() -> String {
        std::env::var("EVENKEEL_TEST_SNAPSHOTTER").unwrap_or_else(|_| "overlayfs".to_owned())
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            address: self.socket(),
            namespace: NAMESPACE.to_owned(),
            snapshotter: Self::snapshotter(),
            runc_root: self.run_dir().join("runc"),
            log_program: PathBuf::from(env!("CARGO_BIN_EXE_evenkeel")),
        }
    }

    /// A new client, as the program would make it.
    pub(crate) fn client(&self) -> Containerd {
        Containerd::new(self.settings()).unwrap()
    }

    /// A bare connection, to do behind the program's back what it would not.
    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("unix://{}", self.socket().display())).unwrap().connect_lazy()
    }

    /// A request of our namespace, for clients of [`Rig::channel`].
    pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().unwrap());
        request
    }

    /// The program with this rig's directories and containerd, ready to get more arguments and to be run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        command
            .args(args)
            .current_dir(&self.directory)
            .env("PATH", self.engine.path())
            .env("EVENKEEL_RUN_DIR", self.run_dir())
            .env("EVENKEEL_STATE_DIR", self.state_dir())
            .env("EVENKEEL_MANIFESTS", self.manifests_dir())
            .env("EVENKEEL_CONTAINERD_ADDRESS", self.socket())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn evenkeel(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs containerd's own client in our namespace, and returns what it prints.
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let mut command = Command::new("ctr");
        command.env("PATH", self.engine.path()).arg("--address").arg(self.socket());
        let output = command.args(["--namespace", NAMESPACE]).args(args).output().unwrap();
        assert!(
            output.status.success(),
            "ctr {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Imports busybox under a lease of its own, and says what it is.
    pub(crate) async fn load_image(&self) -> Image {
        let client = self.client();
        let name = busybox::IMAGE.to_owned();
        let archives = Archives::new(vec![self.state_dir().join("images")]);
        let mut archives = archives.with_patience(Duration::from_mins(1));
        let found = archives.find(&[name.clone()].into());
        assert_eq!(found.problems, []);
        let image = found.images[&name].clone();
        let lease = "evenkeel-load-image";
        client.lease(lease).await.unwrap();
        let mut import = archives.import(&image).unwrap();
        let new: NewImage = import.image().clone();
        while let Some(blob) = import.next().unwrap() {
            client.put_blob(lease, blob).await.unwrap();
        }
        client.put_image(lease, &new).await.unwrap();
        client.remove_lease(lease).await.unwrap();
        Image { place: evenkeel::observed::ImagePlace::Store, ..image }
    }

    pub(crate) fn containerd_pid(&self) -> u32 {
        self.containerd.as_ref().expect("containerd runs").id()
    }

    /// Ends containerd at once, as a crash would. What it runs goes on.
    pub(crate) fn kill_containerd(&mut self) {
        if let Some(mut containerd) = self.containerd.take() {
            containerd.kill().unwrap();
            containerd.wait().unwrap();
        }
    }

    /// Ends containerd as its service manager would, and waits for it.
    pub(crate) fn stop_containerd(&mut self) {
        if let Some(mut containerd) = self.containerd.take() {
            sweep::signal(containerd.id(), rustix::process::Signal::TERM);
            containerd.wait().unwrap();
        }
    }

    /// Starts containerd and waits until it answers.
    pub(crate) async fn start_containerd(&mut self) {
        use std::os::unix::process::CommandExt as _;
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut path = self.engine.path();
        let mut words = self.boot.as_ref().map(boot::Boot::words).unwrap_or_default();
        match self.around {
            Around::Everything => words.push("containerd".to_owned()),
            Around::OwnPrograms => {
                path = std::env::join_paths([self.programs(), self.more_programs()]).unwrap();
                words.push(self.directory.join("own/containerd").display().to_string());
            }
            Around::SealedCgroups => {
                let sealed = "mount -o remount,bind,ro \"$0\" && exec containerd \"$@\"";
                let outer = ["unshare", "--mount", "--propagation", "private", "sh", "-c", sealed];
                words.extend(outer.map(str::to_owned));
                words.push(SEALED.to_owned());
            }
        }
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("--config")
            .arg(self.directory.join("config.toml"))
            .env("PATH", path)
            // A Ctrl-C meant for the tests must not end it before the rig does.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child =
            command.spawn().expect("containerd cannot be run; install it, or run scripts/engines");
        self.containerd = Some(child);
        let answers = async {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            loop {
                pause.tick().await;
                if VersionClient::new(self.channel()).version(()).await.is_ok() {
                    return;
                }
            }
        };
        if tokio::time::timeout(START_LIMIT, answers).await.is_err() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            panic!(
                "containerd {} does not answer within {START_LIMIT:?}; its log:\n{log}",
                self.engine
            );
        }
    }

    /// Starts containerd again, with nothing of what it had, and no room for more than so many bytes.
    pub(crate) async fn on_small_disk(&mut self, bytes: u64) {
        self.stop_containerd();
        let root = self.directory.join("containerd-root");
        std::fs::remove_dir_all(&root).unwrap();
        std::fs::create_dir(&root).unwrap();
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &root, "tmpfs", flags, size.as_c_str()).unwrap();
        self.start_containerd().await;
    }

    /// Makes that disk as large.
    pub(crate) fn grow_disk(&self, bytes: u64) {
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let root = self.directory.join("containerd-root");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount_remount(root, flags, size.as_c_str()).unwrap();
    }

    /// From now on containerd, and the program that is returned, run in a boot of their own; what ran before has to be
    /// gone. It is not the first one, but for its clock, if `up` is less than before.
    pub(crate) fn boot(&mut self, id: &str, up: Duration) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let boot = boot::Boot::start(&self.directory, id, up);
        let program = self.directory.join(format!("evenkeel-{id}"));
        let words = boot.words().join(" ");
        let script = format!("#!/bin/sh\nexec {words} {} \"$@\"\n", env!("CARGO_BIN_EXE_evenkeel"));
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.boot = Some(boot);
        program
    }

    /// Ends everything of the rig at once, and takes away what a machine keeps in memory only.
    pub(crate) fn cut_power(&mut self) {
        sweep::remember_sockets(&self.directory);
        sweep::end(&self.directory);
        self.kill_containerd();
        self.boot = None;
        for it in [self.run_dir(), self.directory.join("containerd-state")] {
            std::fs::remove_dir_all(it).unwrap();
        }
        std::fs::remove_file(self.socket()).unwrap();
        std::fs::create_dir(self.run_dir()).unwrap();
    }

    /// What containerd logged.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("containerd.log")
    }

    /// The shim of an instance. Who asks may kill it, so its socket is remembered.
    pub(crate) fn shim(&self, id: &str) -> u32 {
        sweep::remember_sockets(&self.directory);
        let socket = self.socket().into_os_string().into_string().unwrap();
        let is_shim = |args: &[String]| {
            let after = |flag: &str| args.iter().skip_while(|it| *it != flag).nth(1);
            after("-address") == Some(&socket) && after("-id").is_some_and(|it| it == id)
        };
        let mut shims = sweep::processes().into_iter().filter(|it| is_shim(&it.arguments));
        shims.next().unwrap_or_else(|| panic!("no shim of {id}")).pid
    }

    /// The processes that write the containers' logs.
    pub(crate) fn log_writers(&self) -> Vec<u32> {
        let mut all = sweep::processes_of(&self.directory);
        all.retain(|it| it.arguments.get(1).is_some_and(|it| it == evenkeel::log::PIPE_COMMAND));
        all.into_iter().map(|it| it.pid).collect()
    }

    /// What containers have left behind: processes, mounts, and objects of our namespace.
    pub(crate) fn remains(&self) -> Vec<String> {
        let own = self.containerd_pid();
        let mut remains = sweep::processes_of(&self.directory);
        remains.retain(|it| it.pid != own);
        let mut remains: Vec<String> =
            remains.iter().map(|it| format!("process {} {:?}", it.pid, it.arguments)).collect();
        remains.extend(
            sweep::mounts_below(&self.directory).iter().map(|it| format!("mount {}", it.display())),
        );
        let lists: [(&str, &[&str]); 4] = [
            ("container", &["containers", "list", "--quiet"]),
            ("task", &["tasks", "list", "--quiet"]),
            ("lease", &["leases", "list", "--quiet"]),
            ("snapshot", &["snapshots", "--snapshotter", &Self::snapshotter(), "list"]),
        ];
        for (what, args) in lists {
            let lines = self.ctr(args);
            // Committed snapshots belong to images, which stay.
            let lines = lines.lines().filter(|it| what != "snapshot" || it.contains("Active"));
            remains.extend(lines.map(|it| format!("{what} {it}")));
        }
        remains
    }

    /// Nothing is left of any container.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(
            self.remains(),
            Vec::<String>::new(),
            "left behind on containerd {}",
            self.engine
        );
    }

    fn configuration(&self) -> String {
        let directory = self.directory.to_str().unwrap();
        // What more than one containerd of a host would share, and what nobody here needs. Names that a version does
        // not have do no harm.
        let disabled = [
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.runtime",
            "io.containerd.cri.v1.images",
            "io.containerd.nri.v1.nri",
            "io.containerd.internal.v1.opt",
            "io.containerd.internal.v1.restart",
        ];
        format!(
            "version = 2\nroot = \"{directory}/containerd-root\"\nstate = \"{directory}/containerd-state\"\n\
             disabled_plugins = {disabled:?}\n[grpc]\n  address = \"{directory}/containerd.sock\"\n"
        )
    }
}

#[expect(clippy::print_stdout, reason = "shown with the failed test only")]
impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(20)..];
            println!("containerd {} logged last:\n{}", self.engine, tail.join("\n"));
        }
        if let Some(mut containerd) = self.containerd.take() {
            // It may be gone already; there is nothing else to do about it.
            drop(containerd.kill());
            drop(containerd.wait());
        }
        let left = sweep::remove(&self.directory);
        if !std::thread::panicking() {
            assert_eq!(left, Vec::<String>::new(), "the rig could not be removed");
        }
    }
}
