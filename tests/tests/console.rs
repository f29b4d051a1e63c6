//! `lockstep console` as people use it: on a terminal, which it leaves as it found it, and at both nodes of a guest.

mod program;

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockstep::demo::world::{GUEST_ADDRESS, Host};
use lockstep_tests::e2e::lab::{self, Guest, Lab, prove_memory};
use lockstep_tests::e2e::{Spec, Watchdog};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(60);
/// Pause between two looks at a terminal, which tells nobody when its mode changes.
const TICK: Duration = Duration::from_millis(5);

fn console(path: &Path, terminal: &OpenptyResult) -> Child {
    let stdin = terminal.slave.try_clone().expect("a descriptor");
    let mut command = Command::new(program::lockstep());
    command.arg("console").arg(path).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program")
}

fn is_raw(terminal: &OpenptyResult) -> bool {
    let mode = tcgetattr(terminal.slave.as_fd()).expect("a terminal");
    !mode.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !met() {
        assert!(start.elapsed() < TEST / 2, "{what} did not come");
        std::thread::sleep(TICK);
    }
}

#[test]
fn the_terminal_is_left_as_it_was_found_however_the_visit_ends() {
    let _watchdog = Watchdog::new(TEST);
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("console");
    let node = UnixListener::bind(&path).expect("a socket");
    let terminal = openpty(None, None).expect("a terminal");
    let before = tcgetattr(terminal.slave.as_fd()).expect("a terminal");

    for way in ["the key", "a signal", "the node"] {
        let mut visitor = console(&path, &terminal);
        let (mut guest, _) = node.accept().expect("a visitor");
        until("raw mode", || is_raw(&terminal));
        // Ctrl-C is the guest's.
        let mut keyboard = std::fs::File::from(terminal.master.try_clone().expect("a descriptor"));
        keyboard.write_all(b"ls\x03").expect("typed");
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).expect("typed");
        assert_eq!(&typed, b"ls\x03");
        guest.write_all(b"answer\r\n").expect("shown");
        let mut shown = [0; 8];
        visitor.stdout.as_mut().expect("a pipe").read_exact(&mut shown).expect("shown");
        assert_eq!(&shown, b"answer\r\n");

        match way {
            "the key" => keyboard.write_all(b"\x1d").expect("typed"),
            "a signal" => kill(Pid::from_raw(visitor.id() as i32), Signal::SIGTERM).expect("sent"),
            _ => drop(guest),
        }

        let status = visitor.wait().expect("an end");
        assert!(status.success(), "{way}: {status}");
        assert_eq!(tcgetattr(terminal.slave.as_fd()).expect("a terminal"), before, "{way}");
    }
}

#[test]
fn a_guest_s_console_is_at_the_node_that_runs_it() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let path = |name: &str| lab.directory().join(name);
    let spec = |spec: Spec, name: &str| spec.with("console", &format!("socket:{}", path(name).display()));
    // Not quiet: it says a line when it is ready.
    let primary = Spec::primary(Host::A, "a").with("cmdline", &format!("lockstep.ip={GUEST_ADDRESS}/24"));
    let (mut a, mut b) = lab.pair(&spec(primary, "a.console"), &spec(Spec::standby(Host::B, "b"), "b.console"));
    let mut guest = lab.connect();
    a.until_protected(0);

    let mut read_only = Command::new(program::lockstep())
        .args(["console", "--read-only"])
        .arg(path("a.console"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program");
    let past = b"lockstep-guest: ready";
    let mut shown = vec![0; past.len()];
    read_only.stdout.as_mut().expect("a pipe").read_exact(&mut shown).expect("the past");
    assert_eq!(shown, past);
    let mut at_standby = UnixStream::connect(path("b.console")).expect("the standby's console");
    at_standby.set_read_timeout(Some(TEST)).expect("a socket");
    at_standby.write_all(b"hello\r").expect("typed");
    let mut note = Vec::new();
    while !String::from_utf8_lossy(&note).contains("does not run on this node") {
        let mut byte = [0];
        at_standby.read_exact(&mut byte).expect("a note");
        note.push(byte[0]);
    }

    a.kill();
    b.until_activated();

    assert!(read_only.wait().expect("an end").success(), "the visit ends with the node");
    at_standby.write_all(b"typed at a guest that does not read\r").expect("the console goes on at the other node");
    prove_memory(&mut guest);
}

#[test]
fn a_guest_of_a_baseline_cpu_fails_over() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest { vcpus: 2, ..Guest::default() });
    let baseline = |spec: Spec| spec.with("cpu", "x86-64-v1");
    let (mut a, mut b) = lab.pair(&baseline(Spec::primary(Host::A, "a")), &baseline(Spec::standby(Host::B, "b")));
    let mut guest = lab.connect();
    a.until_protected(0);
    a.kill();
    b.until_activated();
    prove_memory(&mut guest);
}
