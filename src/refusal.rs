//! Starts that failed: exit code, reason and advice, from what the runtime said.
//!
//! Looks at how the text begins once the wrappings of containerd and runc are off, which tells the phase, and at how
//! it ends, which tells the errno. Never at what is between: that is the user's, and may say anything.

/// Why a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// A stable kebab-case code.
    pub name: &'static str,
    /// 126, 127 or 128, as Docker would store it.
    pub code: u32,
    /// What to do about it.
    pub advice: &'static str,
}

/// Every reason of a start that failed, by name.
pub const REASONS: &[Reason] = &[
    reason(
        "cgroup-failed",
        128,
        "look at the free memory and at the cgroups of the host; is the unit's `Delegate` on?",
    ),
    reason("command-failed", 128, "the message says what the kernel has against the program"),
    reason(
        "command-not-executable",
        126,
        "give the program its x bit, or name a program instead of a directory",
    ),
    reason("command-not-found", 127, "correct `command`: there is no such program in the image"),
    reason(
        "donor-vanished",
        128,
        "look at the donor: it ended during the start; this is tried again",
    ),
    reason("host-failed", 128, "look at the run directory: mounts, free space, rights"),
    reason("image-import-failed", 128, "make the archive of the image anew; is the disk full?"),
    reason(
        "instance-missing",
        128,
        "nothing: somebody removed the container by hand, and it is made anew",
    ),
    reason("join-failed", 128, "the message says why the donor's namespace could not be joined"),
    reason(
        "log-failed",
        128,
        "look at the state directory: is the disk full, and is the program of Evenkeel still there?",
    ),
    reason("mount-failed", 128, "the message says which mount failed, and why"),
    reason("mount-source-missing", 128, "make the source of the bind mount, or set `create: true`"),
    reason(
        "mount-type-mismatch",
        127,
        "look at source and target of the mount: one is a directory and the other a file",
    ),
    reason("mounts-not-shared", 128, "let controller and containerd run with the same mounts"),
    reason(
        "namespace-not-host",
        128,
        "let controller and containerd run in the same IPC namespace",
    ),
    reason("namespace-not-own", 128, "let controller and containerd run in the same IPC namespace"),
    reason(
        "process-vanished",
        128,
        "look for what kills processes: the out-of-memory killer, or a person",
    ),
    reason(
        "rootfs-failed",
        128,
        "look at containerd's snapshots and at the free space of its root",
    ),
    reason("runtime-failed", 128, "look at containerd's log: runc ended without saying why"),
    reason(
        "runtime-missing",
        128,
        "install runc, and containerd's shim for it, where containerd finds them",
    ),
    reason("shm-not-host", 128, "let controller and containerd run with the same mounts"),
    reason("shm-not-own", 128, "let controller and containerd run with the same mounts"),
    reason("shm-unexpected", 128, "let controller and containerd run with the same mounts"),
    reason(
        "spec-rejected",
        128,
        "the message says what runc refuses; this kernel or runc may be too old for it",
    ),
    reason("start-failed", 128, "the message says why; it is tried again"),
    reason("working-directory-failed", 128, "correct `workingDir`: the user cannot go there"),
];

const fn reason(name: &'static str, code: u32, advice: &'static str) -> Reason {
    Reason { name, code, advice }
}

/// The reason of that name; [`REASONS`] has all that a start can fail with.
pub fn of(name: &str) -> Reason {
    let other = reason("start-failed", 128, "the message says why; it is tried again");
    REASONS.iter().find(|it| it.name == name).copied().unwrap_or(other)
}

/// What each layer puts in front of the text of the layer below it.
const WRAPPINGS: [&str; 14] = [
    // containerd and its shim
    "failed to create shim task: ",
    "failed to create shim: ",
    "failed to start shim: ",
    "start failed: ",
    "failed to resolve runtime path: ",
    "OCI runtime create failed: ",
    "OCI runtime start failed: ",
    "OCI runtime exec failed: ",
    // runc
    "runc create failed: ",
    "runc start failed: ",
    "exec failed: ",
    "unable to start container process: ",
    "unable to create new parent process: ",
    "error during container init: ",
];

/// What gRPC's status adds at the end.
const CODES: [&str; 5] =
    [": unknown", ": not found", ": failed precondition", ": invalid argument", ": unavailable"];

/// What the runtime was about when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Command,
    Mount,
    Join,
    WorkingDirectory,
    Spec,
    Cgroup,
    RootFs,
    Runtime,
    Log,
}

/// How the text of each phase begins: runc's words, then crun's.
const BEGINNINGS: [(Phase, &[&str]); 9] = [
    (
        Phase::Command,
        &[
            "exec: \"",
            "exec /",
            "executable file `",
            "open executable",
            "exec container process ",
            "cannot find `` in $PATH",
        ],
    ),
    (
        Phase::Mount,
        &[
            "error mounting \"",
            "failed to fulfil mount request: ",
            "failed to request mountfd for \"",
            "mountfd request for \"",
            "mount `",
            "open_tree `",
            "cannot stat `",
            "remount `",
            "move mount ",
        ],
    ),
    (
        Phase::Join,
        &[
            "namespace path: ",
            "failed to join",
            "setns `",
            "cannot setns `",
            "error joining namespace",
        ],
    ),
    (Phase::WorkingDirectory, &["chdir to cwd (", "chdir `", "mkdir /"]),
    (
        Phase::Spec,
        &[
            "unable to init seccomp",
            "seccomp",
            "unknown seccomp ",
            "invalid seccomp ",
            "unable to apply apparmor profile",
            "apparmor",
            "unable to setup user",
            "unable to apply ",
            "unable to set ",
            "can't set process label",
            "selinux ",
            "error setting rlimit",
            "sysctl \"",
            "write sysctl key ",
            "the sysctl `",
            "invalid mount ",
            "invalid namespace ",
            "namespace \"",
            "invalid rootfs",
            "invalid environment variable",
            "environment variable ",
            "invalid config",
            "hostname requires ",
        ],
    ),
    (
        Phase::Cgroup,
        &[
            "unable to apply cgroup configuration",
            "error setting cgroup config for ",
            "cgroup",
            "the requested cgroup controller ",
            "creating cgroup directory ",
            "could not join cgroup",
            "cannot set limits without cgroups",
        ],
    ),
    (
        Phase::RootFs,
        &[
            "failed to mount rootfs component",
            "error preparing rootfs",
            "error jailing process inside rootfs",
            "error creating device nodes",
            "error setting rootfs as readonly",
            "pivot_root",
        ],
    ),
    // runc's own words are missing: whatever follows is about runc, also `exec: "runc": …`.
    (
        Phase::Runtime,
        &[
            "unable to retrieve OCI runtime error ",
            "runtime \"",
            // What the shim printed, which is nothing when it could not be executed, stands before the colon.
            ": fork/exec ",
            "can't get final child's PID from pipe",
        ],
    ),
    (
        Phase::Log,
        &[
            "failed to create init process I/O",
            "failed to start binary process",
            "failed to start logging",
        ],
    ),
];

/// How the last call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errno {
    Missing,
    Denied,
    IsDirectory,
    NotDirectory,
    Other,
}

/// Docker's exit code, our reason and the advice for a start that the runtime refused, from its own text: without
/// anything that we put in front of it.
pub fn classify(text: &str) -> Reason {
    let text = unwrapped(text);
    // The longest beginning counts: `unable to apply cgroup configuration` is no `unable to apply `.
    let phase = BEGINNINGS
        .iter()
        .flat_map(|(phase, beginnings)| beginnings.iter().map(move |it| (it, *phase)))
        .filter(|(beginning, _)| text.starts_with(*beginning))
        .max_by_key(|(beginning, _)| beginning.len())
        .map(|it| it.1);
    of(match (phase, errno(text)) {
        (Some(Phase::Command), Errno::Denied | Errno::IsDirectory) => "command-not-executable",
        (Some(Phase::Command), Errno::Missing | Errno::NotDirectory) => "command-not-found",
        (Some(Phase::Command), Errno::Other) => "command-failed",
        (Some(Phase::Mount), Errno::NotDirectory | Errno::IsDirectory) => "mount-type-mismatch",
        (Some(Phase::Mount), Errno::Missing) if is_about_source(text) => "mount-source-missing",
        (Some(Phase::Mount), _) => "mount-failed",
        (Some(Phase::Join), Errno::Missing) => "donor-vanished",
        (Some(Phase::Join), _) => "join-failed",
        (Some(Phase::WorkingDirectory), _) => "working-directory-failed",
        (Some(Phase::Spec), _) => "spec-rejected",
        (Some(Phase::Cgroup), _) => "cgroup-failed",
        (Some(Phase::RootFs), _) => "rootfs-failed",
        (Some(Phase::Runtime), Errno::Missing) => "runtime-missing",
        (Some(Phase::Runtime), _) => "runtime-failed",
        (Some(Phase::Log), _) => "log-failed",
        (None, _) => "start-failed",
    })
}

fn unwrapped(text: &str) -> &str {
    let mut rest = text.trim();
    while let Some(inner) = WRAPPINGS.iter().find_map(|it| rest.strip_prefix(it)) {
        rest = inner;
    }
    while let Some(inner) = CODES.iter().find_map(|it| rest.strip_suffix(it)) {
        rest = inner;
    }
    rest
}

/// The C library's text behind the last colon; crun's begin with a capital letter.
fn errno(text: &str) -> Errno {
    match text.rsplit(": ").next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "no such file or directory"
        | "file does not exist"
        | "executable file not found in $path" => Errno::Missing,
        "permission denied" | "operation not permitted" => Errno::Denied,
        "is a directory" => Errno::IsDirectory,
        "not a directory" => Errno::NotDirectory,
        _ => Errno::Other,
    }
}

/// Whether the call that failed was one on the source of the mount, and not on the place where it is put.
fn is_about_source(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("error mounting ") else {
        // The others name nothing but the source, or source and target in one call.
        return true;
    };
    // Go's quotes: a quotation mark inside has a backslash in front.
    let end =
        rest.match_indices('"').map(|it| it.0).skip(1).find(|at| !rest[..*at].ends_with('\\'));
    let Some(quoted) = end.and_then(|end| rest.get(1..end)) else { return false };
    let source = &quoted.replace("\\\"", "\"").replace("\\\\", "\\");
    let call = text.rsplit_once(": ").map_or("", |it| it.0);
    let on_source = |verb: &str| {
        call.strip_suffix(source).is_some_and(|it| it.ends_with(&format!(": {verb} ")))
    };
    ["stat", "lstat", "open", "statfs"].into_iter().any(on_source)
        || call.contains(&format!(": mount {source}:"))
        || call.contains(&format!(": mount src={source}, "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_sorted_and_their_advice_is_a_sentence() {
        assert!(REASONS.is_sorted_by(|a, b| a.name < b.name));
        for it in REASONS {
            assert!([126, 127, 128].contains(&it.code) && it.advice.len() > 20, "{it:?}");
            assert_eq!(of(it.name), *it);
        }
        assert_eq!(of("nothing of ours").name, "start-failed");
    }

    /// Each line of the table: where the text is from, the text, and what it means. `UPDATE=1` rewrites the last.
    #[test]
    fn d15_the_texts_of_the_runtimes_are_told_apart_by_phase_and_errno() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refusals.txt");
        let table = include_str!("../tests/refusals.txt");
        let mut found = String::new();
        for line in table.lines() {
            if line.starts_with("12") {
                continue;
            }
            if let Some(text) = line.strip_prefix("    ") {
                let Reason { name, code, .. } = classify(text);
                found.extend([code.to_string().as_str(), " ", name, "\n"]);
            }
            found.extend([line, "\n"]);
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &found).unwrap();
        } else {
            assert_eq!(found, table, "UPDATE=1 rewrites tests/refusals.txt");
        }
    }

    #[test]
    fn nothing_between_the_beginning_and_the_end_of_a_text_counts() {
        let traps = [
            "permission denied",
            "exec: \"x\": not a directory",
            "error mounting",
            "namespace path: gone",
            "executable file not found in $PATH",
            ": no such file or directory",
        ];
        for trap in traps {
            let quoted = trap.replace('"', "\\\"");
            for (text, reason) in [
                (
                    format!("exec: \"/{trap}\": stat /{trap}: no such file or directory"),
                    "command-not-found",
                ),
                (format!("exec: \"/{trap}\": permission denied"), "command-not-executable"),
                (
                    format!(
                        "error mounting \"/{quoted}\" to rootfs at \"/{quoted}\": mount /{trap}:/{trap} (via /proc/self/fd/6), flags: 0x5000: not a directory"
                    ),
                    "mount-type-mismatch",
                ),
                (
                    format!(
                        "error mounting \"/{quoted}\" to rootfs at \"/x\": stat /{trap}: no such file or directory"
                    ),
                    "mount-source-missing",
                ),
                (
                    format!("namespace path: lstat /{trap}: no such file or directory"),
                    "donor-vanished",
                ),
                (format!("something new about {trap}: not a directory"), "start-failed"),
            ] {
                let whole = format!(
                    "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: {text}: unknown"
                );
                assert_eq!(classify(&whole).name, reason, "{whole}");
            }
        }
    }
}
