//! Workload → OCI runtime spec. Pure: the same input gives the same spec, and nothing is looked up.
//!
//! The result is what Docker would give such a container, with the differences that are named where they are made:
//! capabilities, masked and read-only paths and devices here, file systems and /dev/shm in `mounts`. Not here:
//! who owns /dev/shm ([`crate::workload::Spec::ipc`] decides that), whether a bind's source exists, and names of
//! users and groups, which only the image's own files could resolve.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxDeviceCgroupBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResourcesBuilder, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, User,
    UserBuilder,
};

use crate::observed::{ImageConfig, PublishedPaths};
use crate::workload::{InstanceId, Ipc, IpcMode, NetworkMode, Propagation, Workload};

mod exec;
mod mounts;
#[cfg(test)]
mod tests;

pub use exec::{Exec, exec};
pub use mounts::HOST_NETWORK_FILES;

/// Everything that a spec is made from.
#[derive(Debug, Clone, Copy)]
pub struct Lowering<'a> {
    pub id: &'a InstanceId,
    pub workload: &'a Workload,
    pub ipc: &'a Ipc,
    pub image: &'a ImageConfig,
    /// `/evenkeel` or `/evenkeel-<8 hex of the run directory>`.
    pub cgroup_parent: &'a str,
    /// Where a published /dev/shm and namespace are: the instance's own with [`crate::workload::Shm::Published`],
    /// the root donor's with [`crate::workload::IpcMode::Container`]; not looked at otherwise.
    pub published: &'a PublishedPaths,
    /// Those of [`HOST_NETWORK_FILES`] that the host has now.
    pub host_files: &'a [&'static str],
    /// See [`crate::observed::ObservedState::oom_score_adj`].
    pub oom_score_adj: Option<i32>,
}

/// What [`lower`] needs, on its own: a plan of many starts keeps this until a start needs the spec, which is far larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blueprint {
    pub workload: Arc<Workload>,
    pub ipc: Ipc,
    pub image: ImageConfig,
    pub cgroup_parent: String,
    pub published: PublishedPaths,
    pub host_files: Vec<&'static str>,
    pub oom_score_adj: Option<i32>,
}

impl Blueprint {
    /// The spec of the instance with this ID.
    pub fn lower(&self, id: &InstanceId) -> Result<Spec, Unlowerable> {
        lower(&Lowering {
            id,
            workload: &self.workload,
            ipc: &self.ipc,
            image: &self.image,
            cgroup_parent: &self.cgroup_parent,
            published: &self.published,
            host_files: &self.host_files,
            oom_score_adj: self.oom_score_adj,
        })
    }
}

/// Why no spec can be made of a workload and this image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unlowerable {
    /// A stable code: `no-command`, `user-not-numeric`.
    pub reason: &'static str,
    pub message: String,
}

/// Makes the spec.
///
/// Sets of capabilities have no order, so two equal specs may be written to different JSON.
pub fn lower(lowering: &Lowering<'_>) -> Result<Spec, Unlowerable> {
    let spec = &lowering.workload.spec;
    let root = RootBuilder::default().path("rootfs").readonly(spec.read_only_rootfs).build();
    let mut lowered = built(
        SpecBuilder::default()
            .version(OCI_VERSION)
            .root(built(root))
            .process(process(lowering)?)
            .hostname(hostname(lowering.workload))
            .mounts(mounts::mounts(lowering))
            .linux(linux(lowering))
            .build(),
    );
    lowered.set_annotations(None);
    Ok(lowered)
}

/// The oldest version of the specification that has everything used here; runc 1.1 implements it.
const OCI_VERSION: &str = "1.0.2";

/// What a shell finds its programs by when the image does not say; Docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's default set. Smaller ones break everyday images: package managers chown, ping needs raw sockets.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Docker's: what tells about, or reaches, the host's hardware, keys and memory; without the processors' throttle
/// counters, whose number would have to be looked up.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's: what would change the whole host.
const READ_ONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Unwraps what a builder of oci-spec made; every field has a default there.
fn built<T>(result: Result<T, OciSpecError>) -> T {
    result.expect("every field of an OCI builder has a default")
}

fn hostname(workload: &Workload) -> &str {
    workload.spec.hostname.as_ref().map_or(workload.name.as_str(), |it| it.as_str())
}

fn process(lowering: &Lowering<'_>) -> Result<Process, Unlowerable> {
    let user = user(lowering.workload, lowering.image)?;
    let mut process = built(
        ProcessBuilder::default()
            .terminal(false)
            .args(arguments(lowering.workload, lowering.image)?)
            .cwd(working_directory(lowering))
            .env(environment(lowering))
            .no_new_privileges(false)
            .capabilities(capabilities(user.uid()))
            .user(user)
            .build(),
    );
    // The builder's default lowers the number of open files, and raising it again may need a right we lack: the
    // container inherits containerd's limits.
    process.set_rlimits(None);
    process.set_oom_score_adj(lowering.oom_score_adj);
    Ok(process)
}

/// Kubernetes' table: `command` replaces the entrypoint and drops the image's cmd, `args` replaces the cmd; an empty
/// list is an absent one.
fn arguments(workload: &Workload, image: &ImageConfig) -> Result<Vec<String>, Unlowerable> {
    let spec = &workload.spec;
    let given = |list: &Option<Vec<String>>| list.clone().filter(|it| !it.is_empty());
    let (first, rest) = match (given(&spec.command), given(&spec.args)) {
        (Some(command), args) => (command, args.unwrap_or_default()),
        (None, Some(args)) => (image.entrypoint.clone(), args),
        (None, None) => (image.entrypoint.clone(), image.cmd.clone()),
    };
    let arguments = [first, rest].concat();
    if arguments.first().is_none_or(String::is_empty) {
        return Err(Unlowerable {
            reason: "no-command",
            message: format!(
                "nothing to run: image `{}` has neither entrypoint nor cmd; set `command` in the manifest",
                spec.image
            ),
        });
    }
    Ok(arguments)
}

/// The manifest's, the image's or `/`. An image may say a relative one, which Docker takes from the root.
fn working_directory(lowering: &Lowering<'_>) -> String {
    match &lowering.workload.spec.working_dir {
        Some(path) => path.to_string(),
        None => format!("/{}", lowering.image.working_dir.trim_start_matches('/')),
    }
}

/// `PATH` and `HOSTNAME`, then the image's, then the manifest's variables; the last value of a name wins and keeps
/// the first one's place.
///
/// The image may set `HOSTNAME`, as with Docker: some servers take it for the address to listen on.
fn environment(lowering: &Lowering<'_>) -> Vec<String> {
    let defaults = [("PATH", DEFAULT_PATH), ("HOSTNAME", hostname(lowering.workload))];
    let image = lowering.image.env.iter().filter_map(|it| it.split_once('='));
    let manifest =
        lowering.workload.spec.env.iter().map(|it| (it.name.as_str(), it.value.as_str()));
    let mut variables: Vec<(&str, &str)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, value) in defaults.into_iter().chain(image).chain(manifest) {
        let place = *places.entry(name).or_insert(variables.len());
        match variables.get_mut(place) {
            Some(variable) => variable.1 = value,
            None => variables.push((name, value)),
        }
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The manifest's user, or the image's if it is a number: names are in files of the image, which nobody reads here.
fn user(workload: &Workload, image: &ImageConfig) -> Result<User, Unlowerable> {
    let (uid, gid, more) = match &workload.spec.user {
        Some(user) => (user.uid, user.gid, user.supplemental_groups.as_slice()),
        None => {
            let (uid, gid) = image_user(&image.user).ok_or_else(|| Unlowerable {
                reason: "user-not-numeric",
                message: format!(
                    "image `{}` runs as user `{}`, which is not a number; \
                     set `user` in the manifest, for example `user: {{uid: 1000, gid: 1000}}`",
                    workload.spec.image, image.user
                ),
            })?;
            (uid, gid, [].as_slice())
        }
    };
    Ok(member(uid, gid, more))
}

/// A user in these groups. A process whose own group is missing from its list of groups could shed a group that is
/// denied something.
fn member(uid: u32, gid: u32, more: &[u32]) -> User {
    let mut groups = vec![gid];
    for group in more {
        if !groups.contains(group) {
            groups.push(*group);
        }
    }
    built(UserBuilder::default().uid(uid).gid(gid).additional_gids(groups).build())
}

/// Reads an image's `uid[:gid]`; `root` is 0 in every image, and no user at all is root.
fn image_user(text: &str) -> Option<(u32, u32)> {
    let number = |part: &str| match part {
        "" | "root" => Some(0),
        // The parser would take a plus sign; ids beyond this are negative numbers to the kernel.
        _ if !part.bytes().all(|c| c.is_ascii_digit()) => None,
        _ => part.parse().ok().filter(|id| i32::try_from(*id).is_ok()),
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    Some((number(user)?, number(group)?))
}

/// Docker's set. A user other than root has them in reach of set-user-ID programs only, as after any exec.
fn capabilities(uid: u32) -> LinuxCapabilities {
    let all = Capabilities::from(CAPABILITIES);
    let own = if uid == 0 { all.clone() } else { Capabilities::new() };
    built(
        LinuxCapabilitiesBuilder::default()
            .bounding(all)
            .effective(own.clone())
            .permitted(own)
            .inheritable(Capabilities::new())
            .ambient(Capabilities::new())
            .build(),
    )
}

fn linux(lowering: &Lowering<'_>) -> Linux {
    // The runtime adds the usual harmless devices (null, zero, random, tty, …) to what is allowed.
    let nothing = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build();
    let resources = LinuxResourcesBuilder::default().devices(vec![built(nothing)]).build();
    let mut linux = built(
        LinuxBuilder::default()
            .cgroups_path(format!("{}/{}", lowering.cgroup_parent, lowering.id))
            .namespaces(namespaces(lowering))
            .resources(built(resources))
            .masked_paths(MASKED_PATHS.map(str::to_owned).to_vec())
            .readonly_paths(READ_ONLY_PATHS.map(str::to_owned).to_vec())
            .build(),
    );
    linux.set_rootfs_propagation(root_propagation(lowering).map(str::to_owned));
    linux
}

fn namespaces(lowering: &Lowering<'_>) -> Vec<LinuxNamespace> {
    let new = |kind| built(LinuxNamespaceBuilder::default().typ(kind).build());
    let mut namespaces = vec![
        new(LinuxNamespaceType::Mount),
        new(LinuxNamespaceType::Uts),
        new(LinuxNamespaceType::Pid),
    ];
    match lowering.ipc.mode {
        IpcMode::None | IpcMode::Private | IpcMode::Shareable => {
            namespaces.push(new(LinuxNamespaceType::Ipc));
        }
        // No entry at all is the runtime's own namespace.
        IpcMode::Host => {}
        IpcMode::Container(_) => namespaces.push(built(
            LinuxNamespaceBuilder::default()
                .typ(LinuxNamespaceType::Ipc)
                .path(&*lowering.published.ns)
                .build(),
        )),
    }
    match lowering.workload.spec.network.mode {
        NetworkMode::None => namespaces.push(new(LinuxNamespaceType::Network)),
        NetworkMode::Host => {}
    }
    namespaces
}

/// What the whole tree has to be so that a bind of the user can pass mounts on; the runtime's default is private
/// enough for all others.
fn root_propagation(lowering: &Lowering<'_>) -> Option<&'static str> {
    let any = |wanted| lowering.workload.spec.mounts.iter().any(|it| it.propagation == wanted);
    if any(Propagation::Rshared) {
        Some("shared")
    } else if any(Propagation::Rslave) {
        Some("rslave")
    } else {
        None
    }
}

/// Whether [`lower`] would succeed, without making the spec.
pub fn check(workload: &Workload, image: &ImageConfig) -> Result<(), Unlowerable> {
    user(workload, image)?;
    arguments(workload, image).map(drop)
}
