//! The log writer as a real process, started the way containerd's shim starts it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::io::{PipeWriter, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evenkeel::log::{Entry, Place, Reader, Stream};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal};

/// Far more than a slow machine needs.
const DEADLINE: Duration = Duration::from_mins(1);

/// A log writer and the container's ends of its pipes.
struct Writer {
    child: Child,
    stdout: Option<PipeWriter>,
    stderr: Option<PipeWriter>,
}

impl Writer {
    /// Starts one and waits until it lets the container start.
    fn start(place: &Place) -> Self {
        let (stdout_read, stdout) = std::io::pipe().unwrap();
        let (stderr_read, stderr) = std::io::pipe().unwrap();
        let parameter =
            format!("{}:{}:{}", place.directory.display(), place.max_size, place.max_files);
        // A shell puts the descriptors where the shim puts them: output on 3 and 4, and 5 to be closed.
        let script =
            r#"exec 3<&0 4<&2 5>&1 </dev/null >/dev/null 2>/dev/null; exec "$0" log-pipe "$1""#;
        let mut child = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_evenkeel"), &parameter])
            .stdin(stdout_read)
            .stdout(Stdio::piped())
            .stderr(stderr_read)
            .spawn()
            .unwrap();
        let mut ready = child.stdout.take().unwrap();
        let closed = within(DEADLINE, move || ready.read_to_end(&mut Vec::new()).unwrap());
        assert_eq!(closed, 0, "descriptor 5 is closed, and nothing is written to it");
        Self { child, stdout: Some(stdout), stderr: Some(stderr) }
    }

    fn print(&mut self, text: impl AsRef<[u8]>) {
        self.stdout.as_mut().unwrap().write_all(text.as_ref()).unwrap();
    }

    fn complain(&mut self, text: impl AsRef<[u8]>) {
        self.stderr.as_mut().unwrap().write_all(text.as_ref()).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Closes both pipes and waits until everything is written.
    fn end(mut self) {
        self.stdout = None;
        self.stderr = None;
        let status = wait(&mut self.child);
        assert!(status.success(), "{status}");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    eventually("the writer ends", || child.try_wait().unwrap())
}

/// Looks until there is something, at most [`DEADLINE`].
#[expect(clippy::disallowed_methods, reason = "tests wait for another process, with a deadline")]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "not within the deadline: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs something that would wait for ever where the test fails.
fn within<T: Send + 'static>(limit: Duration, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(run()));
    receiver.recv_timeout(limit).expect("it comes back within the deadline")
}

fn place(directory: &Path, max_size: u64, max_files: u32) -> Place {
    Place { directory: directory.join("logs/a-1"), max_size, max_files }
}

fn entries(place: &Place) -> Vec<Entry> {
    let mut reader = Reader::open(&place.directory, None, None).unwrap();
    std::iter::from_fn(|| reader.read().unwrap()).collect()
}

/// The output of one stream as the container wrote it.
fn text(entries: &[Entry], stream: Stream) -> Vec<u8> {
    let mut text = Vec::new();
    for entry in entries.iter().filter(|it| it.stream == stream) {
        text.extend_from_slice(&entry.text);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    text
}

pub(crate) fn size_of(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|it| Some(it.metadata().ok()?.len())).sum()
}

/// A file system of its own that is unmounted with the test.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn new(path: PathBuf, data: &std::ffi::CStr) -> Self {
        fs::create_dir_all(&path).unwrap();
        rustix::mount::mount("evenkeel-test", &path, "tmpfs", MountFlags::empty(), data)
            .expect("this needs root");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

#[test]
fn both_streams_are_written_and_can_be_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 1 << 20, 2);
    let mut writer = Writer::start(&place);
    let mut wanted = Vec::new();
    for n in 0..200 {
        writer.print(format!("out {n}\n"));
        wanted.extend_from_slice(format!("out {n}\n").as_bytes());
        writer.complain(format!("err {n}\n"));
    }
    writer.end();
    let entries = entries(&place);
    assert_eq!(text(&entries, Stream::Stdout), wanted);
    assert_eq!(entries.iter().filter(|it| it.stream == Stream::Stderr).count(), 200);
    assert!(entries.iter().all(|it| it.stamp.len() == "2026-01-01T00:00:00.000000Z".len()));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&place.directory), 0o700);
    assert_eq!(mode(&place.directory.join("output.log")), 0o640);
}

#[test]
fn output_can_be_read_while_the_container_runs() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 1 << 20, 2);
    let mut writer = Writer::start(&place);
    let mut reader = Reader::open(&place.directory, Some(10), None).unwrap();
    for (printed, partial, read) in
        [("one\n", false, "one"), ("> ", true, "> "), ("two\n", false, "two")]
    {
        writer.print(printed);
        let entry = eventually("the record", || reader.read().unwrap());
        assert_eq!((entry.partial, entry.text.as_slice()), (partial, read.as_bytes()));
    }
    writer.end();
}

#[test]
fn eighty_megabytes_at_full_speed_never_exceed_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 1 << 20, 3);
    let mut writer = Writer::start(&place);
    let mut stdout = writer.stdout.take().unwrap();
    let printing = std::thread::spawn(move || {
        let mut n = 0_u64;
        let mut written = 0;
        while written < 80 << 20 {
            let mut block = Vec::with_capacity(70_000);
            while block.len() < 60_000 {
                writeln!(block, "{n:015} {}", "x".repeat(47)).unwrap();
                n += 1;
            }
            stdout.write_all(&block).unwrap();
            written += block.len();
        }
        n
    });
    let mut largest = 0;
    eventually("80 MB are written", || {
        largest = largest.max(size_of(&place.directory));
        printing.is_finished().then_some(())
    });
    let lines = printing.join().unwrap();
    writer.end();
    largest = largest.max(size_of(&place.directory));
    assert!(largest <= 3 << 20, "{largest} bytes at once");
    let numbers: Vec<u64> = entries(&place)
        .iter()
        .map(|it| {
            std::str::from_utf8(&it.text[..15]).unwrap().parse().expect("nothing was dropped")
        })
        .collect();
    assert_eq!(numbers.last(), Some(&(lines - 1)));
    assert!(
        numbers.windows(2).all(|it| it[0] + 1 == it[1]),
        "no line is missing between two files"
    );
    assert!(numbers.len() > 20_000, "older files are kept: {}", numbers.len());
}

#[test]
fn a_long_line_and_binary_output_come_back_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 4 << 20, 2);
    let mut writer = Writer::start(&place);
    let line: Vec<u8> = (b'a'..=b'z').cycle().take(1 << 20).collect();
    writer.print(&line);
    writer.print("\n");
    let mut binary: Vec<u8> =
        (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    binary.push(b'\n');
    writer.complain(&binary);
    writer.end();
    let entries = entries(&place);
    assert_eq!(text(&entries, Stream::Stdout), [&line[..], b"\n"].concat());
    assert_eq!(text(&entries, Stream::Stderr), binary);
    assert!(entries.iter().all(|it| it.text.len() <= evenkeel::log::RECORD_TEXT));
}

#[test]
fn on_a_full_disk_the_container_goes_on_and_logs_again_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Tmpfs::new(directory.path().join("disk"), c"size=128k");
    let place = place(&disk.0, 10 << 20, 2);
    let filler = disk.0.join("filler");
    // Whatever fits.
    File::create(&filler).unwrap().write_all(&vec![0; 1 << 20]).unwrap_err();
    let mut writer = Writer::start(&place);
    // Far more than a pipe and the writer's memory hold: it is drained, or this hangs.
    let mut stdout = writer.stdout.take().unwrap();
    let stdout = within(DEADLINE, move || {
        for _ in 0..1000 {
            stdout.write_all(&[&[b'x'; 8191][..], b"\n"].concat()).unwrap();
        }
        stdout
    });
    writer.stdout = Some(stdout);
    fs::remove_file(&filler).unwrap();
    // Said without further output.
    let notice = eventually("the notice", || {
        let found =
            entries(&place).into_iter().map(|it| String::from_utf8_lossy(&it.text).into_owned());
        found.into_iter().find(|it| it.contains("were dropped here"))
    });
    assert!(notice.contains("No space left on device"), "{notice}");
    writer.print("there is room\n");
    writer.end();
    let entries = entries(&place);
    assert_eq!(entries.last().unwrap().text, b"there is room");
    let dropped: usize = notice.split(' ').nth(1).unwrap().parse().unwrap();
    let kept = entries.iter().filter(|it| it.text.starts_with(b"xxx")).count() * 8192;
    assert_eq!(dropped + kept, 1000 * 8192, "every byte is either there or counted");
}

/// Bytes that a log says were dropped, and those that it has.
fn told_of(log: &str) -> (usize, usize) {
    let (mut dropped, mut kept) = (0, 0);
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if line.contains("were dropped here") {
            dropped += words.get(4).and_then(|it| it.parse::<usize>().ok()).unwrap_or(0);
        } else if let Some((_, text)) = line.split_once(" stdout ") {
            kept += text.len().saturating_sub(2);
        }
    }
    (dropped, kept)
}

#[test]
fn a_disk_that_hangs_does_not_hang_the_container() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 10 << 20, 2);
    fs::create_dir_all(&place.directory).unwrap();
    // A write to a full pipe that nobody reads waits for ever, as one to a dead network disk does.
    let disk = place.directory.join("output.log");
    rustix::fs::mknodat(rustix::fs::CWD, &disk, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let mut writer = Writer::start(&place);
    let mut stdout = writer.stdout.take().unwrap();
    let stdout = within(DEADLINE, move || {
        for _ in 0..1000 {
            stdout.write_all(&[&[b'x'; 8191][..], b"\n"].concat()).unwrap();
        }
        stdout
    });
    writer.stdout = Some(stdout);
    // The disk is back.
    let mut disk = File::options().read(true).write(true).open(&disk).unwrap();
    // What was waiting comes behind the notice, and a slow reader of ours makes for more than one.
    let (told, sum) = within(DEADLINE, move || {
        let (mut text, mut block) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let n = disk.read(&mut block).unwrap();
            text.extend_from_slice(&block[..n]);
            let told = String::from_utf8_lossy(&text);
            let (dropped, kept) = told_of(&told);
            // All but the line ends is either there or counted.
            if told.ends_with('\n') && dropped + kept + 1000 >= 1000 * 8191 {
                return (told.into_owned(), dropped + kept);
            }
        }
    });
    assert!(told.contains("the disk did not keep up"), "nothing was dropped");
    assert!(sum <= 1000 * 8192, "more than was written: {sum}");
}

#[test]
fn a_disk_that_fills_up_keeps_whole_records() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Tmpfs::new(directory.path().join("disk"), c"size=128k");
    let place = place(&disk.0, 10 << 20, 2);
    let mut writer = Writer::start(&place);
    for n in 0..20_000 {
        writer.print(format!("line {n}\n"));
    }
    writer.end();
    let entries = entries(&place);
    assert!(entries.len() > 1000, "{}", entries.len());
    assert!(entries.iter().all(|it| !it.stamp.is_empty()), "no record is torn");
    let content = fs::read(place.directory.join("output.log")).unwrap();
    assert_eq!(content.last(), Some(&b'\n'), "the last one is whole too");
}

#[test]
fn signals_do_not_end_it_before_the_output_ends() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 1 << 20, 2);
    let mut writer = Writer::start(&place);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        rustix::process::kill_process(writer.pid(), signal).unwrap();
    }
    writer.print("still here\n");
    eventually("the record", || (entries(&place).len() == 1).then_some(()));
    writer.stdout = None;
    writer.complain("and here\n");
    writer.end();
    let texts: Vec<_> = entries(&place).into_iter().map(|it| it.text).collect();
    assert_eq!(texts, [&b"still here"[..], b"and here"]);
}

#[test]
fn a_killed_writer_is_followed_by_another_one() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 1 << 20, 2);
    let mut writer = Writer::start(&place);
    writer.print("one\n");
    eventually("the record", || (entries(&place).len() == 1).then_some(()));
    writer.child.kill().unwrap();
    wait(&mut writer.child);
    let mut file = File::options().append(true).open(place.directory.join("output.log")).unwrap();
    file.write_all(b"2026-01-01T00:00:00.0").unwrap();
    let mut writer = Writer::start(&place);
    writer.print("two\n");
    writer.end();
    let texts: Vec<_> = entries(&place).into_iter().map(|it| it.text).collect();
    assert_eq!(texts, [&b"one"[..], b"2026-01-01T00:00:00.0", b"two"]);
}

#[test]
fn a_follower_reads_everything_across_rotations() {
    let directory = tempfile::tempdir().unwrap();
    let place = place(directory.path(), 256 << 10, 20);
    let mut writer = Writer::start(&place);
    let mut reader = Reader::open(&place.directory, None, None).unwrap();
    let mut stdout = writer.stdout.take().unwrap();
    let printing = std::thread::spawn(move || {
        for n in 0..30_000 {
            stdout.write_all(format!("{n}\n").as_bytes()).unwrap();
        }
    });
    let mut read = 0;
    eventually("the last record", || {
        while let Some(entry) = reader.read().unwrap() {
            assert_eq!(entry.text, read.to_string().as_bytes());
            read += 1;
        }
        (read == 30_000).then_some(())
    });
    printing.join().unwrap();
    writer.end();
    assert!(place.directory.join("output.log.3").exists(), "it was rotated");
}

#[test]
fn a_wrong_parameter_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["log-pipe", "nowhere"])
        .output()
        .unwrap();
    assert!(!output.status.success());
}
