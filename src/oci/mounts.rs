//! The mounts of a container: a template, what the IPC mode makes of /dev/shm, and the user's own.
//!
//! Three rules decide everything. A user's mount takes the place of the template's mounts on and below its target.
//! /dev/shm comes from [`Shm`] alone. The list is sorted by depth, since a mount below another would disappear under
//! it.
//!
//! There is no cgroup mount, as in containerd's own default: on cgroup v1 runc 1.1 leaves the tmpfs that holds the
//! hierarchies writable, also under a read-only root, and on v2 it shows the host's whole tree without a namespace
//! of its own.

use std::path::Path;

use oci_spec::runtime::{Mount, MountBuilder};

use super::{Lowering, built};
use crate::workload::{self, DEV_SHM, IpcMode, MountKind, NetworkMode, Shm};

/// Files of the host that a container on the host's network sees, read-only, unless it mounts its own there: with
/// the host's network go the host's names. One that the host does not have is left out: a box without a network may have
/// no `/etc/resolv.conf`, or one that points to what comes with the first lease.
///
/// A file that the host replaces by another one is seen when the container starts the next time.
pub const HOST_NETWORK_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// All mounts, in the order in which they have to be made.
pub(super) fn mounts(lowering: &Lowering<'_>) -> Vec<Mount> {
    let user = &lowering.workload.spec.mounts;
    let is_covered =
        |it: &Mount| user.iter().any(|own| it.destination().starts_with(own.target.as_path()));
    let mut mounts = template(lowering);
    mounts.retain(|it| !is_covered(it));
    // A joiner's /dev/shm is a promise to its donor: it is bound on top of a /dev of the user's.
    mounts.extend(shared_shm(lowering));
    mounts.extend(user.iter().map(user_mount));
    // Stable: of two mounts of the user's on one target the later one stays on top.
    mounts.sort_by_key(|it| it.destination().components().count());
    mounts
}

/// What every container has: Docker's list with a /dev/shm of the container's own, if that is what its mode says.
///
/// A read-only root leaves /proc, /dev, /dev/pts, /dev/shm and /dev/mqueue writable, as with Docker, but not in mode
/// `none`: there nothing is left that could be written to, which is what the mode is for. (POSIX queues can still be
/// made by system call; they live in kernel memory.)
fn template(lowering: &Lowering<'_>) -> Vec<Mount> {
    let spec = &lowering.workload.spec;
    let is_sealed = lowering.ipc.mode == IpcMode::None && spec.read_only_rootfs;
    let mut device_options = vec!["nosuid", "strictatime", "mode=755", "size=65536k"];
    if is_sealed {
        device_options.push("ro");
    }
    let pts_options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &device_options),
        mount("/dev/pts", "devpts", "devpts", &pts_options),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    if !is_sealed {
        mounts.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    }
    if let Shm::Runtime(size) = lowering.ipc.shm {
        let size = format!("size={}", size.get());
        mounts.push(mount(
            DEV_SHM,
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &size],
        ));
    }
    if spec.network.mode == NetworkMode::Host {
        mounts.extend(
            lowering
                .host_files
                .iter()
                .map(|path| mount(path, "bind", path, &["rbind", "rprivate", "ro"])),
        );
    }
    mounts
}

/// The /dev/shm that lives outside of the container. A bind inherits the options of what it binds, so there are
/// none here: what we publish is `nosuid,nodev,noexec`, and the host's is as the host has it.
fn shared_shm(lowering: &Lowering<'_>) -> Option<Mount> {
    let source = match lowering.ipc.shm {
        Shm::Absent | Shm::Runtime(_) | Shm::User => return None,
        Shm::Host => Path::new(DEV_SHM),
        Shm::Published(_) | Shm::Donor => &lowering.published.shm,
    };
    Some(mount(DEV_SHM, "bind", source, &["rbind", "rprivate"]))
}

/// A mount of the user's: defaults, the fields, the options as written; later ones win, but for `readOnly: true`,
/// which nothing takes back. It covers the mount itself, not file systems mounted below its source.
///
/// runc 1.1 gives a tmpfs the mode of a directory that is there already, whatever the options say: the image's, or
/// the one that it made itself at the first start.
fn user_mount(own: &workload::Mount) -> Mount {
    let propagation = own.propagation.to_string();
    let (kind, source, mut options) = match own.kind {
        MountKind::Bind => {
            let source = own.source.as_ref().map_or(Path::new("/"), |it| it.as_path());
            ("bind", source, vec!["rbind".to_owned(), propagation])
        }
        MountKind::Tmpfs => {
            let mut options: Vec<String> =
                ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
            options.push(propagation);
            options.extend(own.size.map(|size| format!("size={}", size.get())));
            options.push(format!("mode={}", own.mode.as_deref().unwrap_or("1777")));
            ("tmpfs", Path::new("tmpfs"), options)
        }
    };
    options.extend(own.options.iter().cloned());
    if own.read_only {
        options.push("ro".to_owned());
    }
    mount(own.target.as_str(), kind, source, &options)
}

fn mount(target: &str, kind: &str, source: impl AsRef<Path>, options: &[impl AsRef<str>]) -> Mount {
    let options: Vec<String> = options.iter().map(|it| it.as_ref().to_owned()).collect();
    built(
        MountBuilder::default()
            .destination(target)
            .typ(kind)
            .source(source.as_ref())
            .options(options)
            .build(),
    )
}
