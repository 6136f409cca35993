//! What this process has of its own and what it shares, as one can see from inside.

use std::ffi::CString;
use std::path::Path;

use crate::{found, mqueue, say};

/// Places where a container may or may not be able to leave something.
const PLACES: [&str; 9] =
    ["/", "/dev", "/dev/shm", "/dev/mqueue", "/dev/pts", "/proc", "/sys", "/sys/fs/cgroup", "/tmp"];

pub(crate) fn report() {
    say("pid", std::process::id());
    found("ipc_namespace", namespace("ipc").as_deref());
    mount("dev", "/dev");
    mount("shm", "/dev/shm");
    found("shm_size", size("/dev/shm").as_deref());
    found("shm_files", names("/dev/shm").as_deref());
    mount("mqueue", "/dev/mqueue");
    found("mqueue_names", mqueue::list().ok().flatten().map(|names| names.join(",")).as_deref());
    say("mqueue_create", create_queue());
    found("sysv_keys", sysv_keys().as_deref());
    let writable: Vec<&str> =
        PLACES.into_iter().filter(|place| is_writable(Path::new(place))).collect();
    say("writable", writable.join(","));
}

/// The inode of one of this process's namespaces: `ipc:[4026531839]` is 4026531839.
fn namespace(kind: &str) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
    let text = link.to_str()?;
    Some(text.split_once('[')?.1.trim_end_matches(']').to_owned())
}

/// Device, file system, source and options of the topmost mount on a path.
fn mount(key: &str, path: &str) {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(path));
    let Some((mount, system)) = line.and_then(|line| line.split_once(" - ")) else {
        say(key, "absent");
        return;
    };
    let field = |part: &str, n: usize| part.split(' ').nth(n).unwrap_or_default().to_owned();
    say(key, field(system, 0));
    say(&format!("{key}_device"), field(mount, 2));
    say(&format!("{key}_source"), field(system, 1));
    say(&format!("{key}_options"), field(mount, 5));
    say(&format!("{key}_super_options"), field(system, 2));
}

/// Bytes of a file system, if there is something at that path.
fn size(path: &str) -> Option<String> {
    let path = CString::new(path).ok()?;
    let mut facts = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with NUL, and the pointer is to memory of the right type.
    let result = unsafe { libc::statvfs(path.as_ptr(), facts.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call succeeded and has filled it.
    let facts = unsafe { facts.assume_init() };
    Some((facts.f_blocks * facts.f_frsize).to_string())
}

fn names(path: &str) -> Option<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .ok()?
        .flatten()
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Some(names.join(","))
}

/// Whether a queue can be made, and the error otherwise.
fn create_queue() -> String {
    let name = format!("ipc-probe-{}", std::process::id());
    match mqueue::create(&name).and_then(|()| mqueue::remove(&name)) {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Keys of all System V shared memory segments of the namespace, in hexadecimal.
fn sysv_keys() -> Option<String> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").ok()?;
    let keys = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next()?.parse::<i32>().ok());
    Some(keys.map(|key| format!("{key:#x}")).collect::<Vec<_>>().join(","))
}

fn is_writable(directory: &Path) -> bool {
    let probe = directory.join(format!(".ipc-probe-{}", std::process::id()));
    let is_made = std::fs::File::create_new(&probe).is_ok();
    is_made && std::fs::remove_file(&probe).is_ok()
}
