//! Strangers, stallers, liars and damaged bytes on the replication port: each ends in a clear error, and the real pair notices nothing (S2, S7).

mod program;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep::demo::world::{Host, Place};
use lockstep_tests::e2e::clients::{Clients, under_load};
use lockstep_tests::e2e::lab::{self, Guest, Lab, dirty, prove_memory};
use lockstep_tests::e2e::node::{BOUND, Verdict, contest};
use lockstep_tests::e2e::proxy::Proxy;
use lockstep_tests::e2e::{Spec, Watchdog};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use types::Generation;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(120);
/// Writes that must be acknowledged to show that things go on.
const SOME: u64 = 50;
/// Pages a second that the guest dirties.
const DIRTY: u32 = 5_000;
/// A port of its own for nodes that are not to disturb the pair's.
const OTHER_TAP: &str = "tap1";

/// A preamble as the first bytes of a link's connection: its version, and which connection it wants to be.
fn preamble(version: u16, kind: u8) -> Vec<u8> {
    let mut bytes = b"LOCKSTEP".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend([kind, 0, 0, 0, 0, 0]);
    bytes.extend([0x5a; 16]);
    bytes
}

/// A control connection's preamble, and a message after it that says it is `length` bytes long.
fn control(length: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = preamble(1, 1);
    bytes.extend(length.to_le_bytes());
    bytes.extend(message);
    bytes
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    bytes
}

/// Connects to the standby on B and says `bytes`. The connection stays open as long as what is returned.
fn say(lab: &Lab, bytes: &[u8]) -> TcpStream {
    let address = Host::B.replication_address();
    let connect = || TcpStream::connect_timeout(&address, BOUND);
    let mut stream = lab.world.run(Place::On(Host::A), connect).expect("a thread").expect("the port is listened on");
    stream.set_read_timeout(Some(BOUND)).expect("an option");
    // It may hang up in the middle: that is its right.
    let _ = stream.write_all(bytes);
    stream
}

/// Everything the standby answers until it hangs up, which it must do.
fn answer(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            panic!("the standby never hung up on a stranger; it said {:?}", bytes.escape_ascii().to_string())
        }
        _ => bytes,
    }
}

/// Everything that is wrong from the first bytes on.
fn strangers() -> Vec<Vec<u8>> {
    let mut wrong_data = preamble(1, 2);
    wrong_data.extend(random_bytes(1 << 16));
    vec![
        random_bytes(1 << 16),
        b"GET / HTTP/1.1\r\nHost: standby\r\n\r\n".to_vec(),
        vec![0; 4096],
        preamble(9, 1),
        preamble(1, 7),
        wrong_data,
        control(u32::MAX, b"LK"),
        control(1 << 20, &random_bytes(1 << 20)),
        control(64, &random_bytes(64)),
        control(5, b"LK\x01\x00\x03"),
        control(0, b""),
    ]
}

/// Everything that stalls in the middle.
fn stallers() -> Vec<Vec<u8>> {
    vec![Vec::new(), preamble(1, 1)[..7].to_vec(), preamble(1, 1), preamble(1, 2), control(100, b"LK\x01\x00")]
}

#[test]
fn strangers_on_the_replication_port_do_not_disturb_a_running_pair() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();

    under_load(&lab, Clients { pipelined: true, ..Clients::default() }, |load| {
        dirty(&mut guest, DIRTY);
        a.until_protected(0);
        let stalled: Vec<TcpStream> = stallers().iter().map(|bytes| say(&lab, bytes)).collect();
        for bytes in strangers() {
            answer(say(&lab, &bytes));
            load.until_more(1);
        }
        let crowd: Vec<TcpStream> = (0..40).map(|_| say(&lab, b"LOCK")).collect();
        load.until_more(SOME);
        crowd.into_iter().chain(stalled).for_each(|stream| drop(answer(stream)));
        assert_eq!((a.peers_gone(), b.peers_gone()), (vec![], vec![]));
        a.kill();
        assert_eq!(b.until_activated().generation, Generation(2));
        load.until_more(SOME);
    });

    prove_memory(&mut guest);
}

#[test]
fn a_standby_that_met_only_strangers_still_takes_the_real_primary() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let mut b = lab.start(&Spec::standby(Host::B, "b"));
    b.until_ready();
    strangers().iter().for_each(|bytes| drop(answer(say(&lab, bytes))));
    let stalled: Vec<TcpStream> = stallers().iter().map(|bytes| say(&lab, bytes)).collect();

    let mut a = lab.start(&Spec::primary(Host::A, "a"));

    a.until_protected(0);
    assert!(b.exited().is_none());
    drop(stalled);
}

#[test]
fn a_peer_of_another_version_is_told_so() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let mut b = lab.start(&Spec::standby(Host::B, "b"));
    b.until_ready();

    let link = answer(say(&lab, &preamble(9, 1)));
    // Status 1 of the preamble: another version.
    assert_eq!((link.get(..8), link.get(11)), (Some(&b"LOCKSTEP"[..]), Some(&1)), "{}", link.escape_ascii());
    let messages = answer(say(&lab, &control(8, b"LK\x09\x00\x00\x00\x00\x00")));
    let said = String::from_utf8_lossy(&messages);
    assert!(said.contains("control protocol 9") && said.contains("same release"), "{said}");
}

/// A second TAP on host A, tied to nothing.
fn other_tap(lab: &Lab) {
    let mut ip = Command::new("ip");
    ip.args(["tuntap", "add", "dev", OTHER_TAP, "mode", "tap"]);
    let status = lab.world.spawn(Place::On(Host::A), &mut ip).expect("ip").wait().expect("ended");
    assert!(status.success(), "{status}");
}

/// A primary on host A beside whatever runs there, which believes that it may run the guest: its arbiter is another.
fn other_primary(lab: &Lab, name: &str) -> Spec {
    let arbiter = format!("file:{}", lab.directory().join(name).display());
    Spec { tap: OTHER_TAP.to_owned(), arbiter: Some(arbiter.into()), ..Spec::primary(Host::A, name) }
}

#[test]
fn a_second_primary_is_refused_by_name_and_the_first_goes_on() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    other_tap(&lab);
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    a.until_protected(0);

    let mut second = lab.start(&other_primary(&lab, "second"));
    lab.until_logged("second", "this standby serves another primary");

    assert!(second.exited().is_none(), "it runs its guest unprotected");
    assert_eq!((a.peers_gone(), b.peers_gone()), (vec![], vec![]));
    a.kill();
    b.until_activated();
}

#[test]
fn a_primary_of_another_guest_is_refused_with_what_differs() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    other_tap(&lab);
    let mut b = lab.start(&Spec::standby(Host::B, "b"));
    b.until_ready();

    for (name, key, value, words) in [
        ("other-vm", "vm", "elsewhere", &["VM lab", "not for elsewhere"][..]),
        ("other-memory", "memory", "66M", &["64 MiB here", "66 MiB at the peer"]),
        ("other-vcpus", "vcpus", "2", &["vCPUs: 1 here and 2 at the peer"]),
        ("other-cpu", "cpu", "x86-64-v1", &["the CPU model is host here and x86-64-v1 at the peer"]),
        ("other-mac", "net", "tap=tap1,mac=52:54:00:00:00:01", &["52:54:00:00:00:01 at the peer"]),
        ("other-name", "node", "b", &["both nodes are named b"]),
    ] {
        let spec = other_primary(&lab, name).with(key, value);
        let primary = lab.start(&spec);
        words.iter().for_each(|words| lab.until_logged(name, words));
        drop(primary);
    }

    let mut right = lab.start(&Spec::primary(Host::A, "a"));
    right.until_protected(0);
}

#[test]
fn a_primary_that_compares_memory_is_refused_by_a_standby_that_does_not() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let mut lab = Lab::new(program::lockstep(), Guest { verify: false, ..Guest::default() });
    let mut b = lab.start(&Spec::standby(Host::B, "b"));
    b.until_ready();
    lab.guest.verify = true;
    let _a = lab.start(&Spec::primary(Host::A, "a"));
    lab.until_logged("a", "--verify-memory is off here and all at the peer");
}

#[test]
fn a_damaged_epoch_is_never_activated_from() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    // Without --verify-memory: the epoch's own digest must do.
    let lab = Lab::new(program::lockstep(), Guest { verify: false, ..Guest::default() });
    let proxy = Proxy::start(&lab.world, Host::A);
    let (mut a, mut b) = lab.pair(&Spec { standby: Some(proxy.address), ..Spec::primary(Host::A, "a") }, &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();

    under_load(&lab, Clients { pipelined: true, ..Clients::default() }, |load| {
        dirty(&mut guest, DIRTY);
        let before = a.until_protected(0);
        load.until_more(SOME);
        proxy.damage_next();
        b.until("refusing the damaged epoch", |e| match &e.what {
            types::event::NodeEventKind::PeerGone { cause } => Some(cause.clone()),
            _ => None,
        });
        assert!(proxy.damaged());
        // Whichever check finds it first: a frame's, the part's digest, the epoch's.
        let cause = &b.peers_gone()[0].1;
        assert!(["damaged", "digest", "protocol"].iter().any(|word| cause.contains(word)), "{cause}");
        let (verdict, generation) = contest(&mut a, &mut b, before);
        assert_eq!(generation, before.next());
        load.until_more(SOME);
        match verdict {
            Verdict::WentOn => assert_eq!(b.activations(), []),
            Verdict::TookOver => a.until_fenced(),
        }
        load.until_more(SOME);
    });

    prove_memory(&mut guest);
}

#[test]
fn a_first_copy_that_is_damaged_is_made_again() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let proxy = Proxy::start(&lab.world, Host::A);
    proxy.damage_next();
    let (mut a, mut b) = lab.pair(&Spec { standby: Some(proxy.address), ..Spec::primary(Host::A, "a") }, &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();

    under_load(&lab, Clients::default(), |load| {
        a.until_protected(0);
        assert!(proxy.damaged());
        assert_eq!(b.peers_gone().len(), 1);
        a.kill();
        b.until_activated();
        load.until_more(SOME);
    });

    prove_memory(&mut guest);
}

#[test]
fn a_peer_that_accepts_and_says_nothing_does_not_hold_the_guest_up() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let address = Host::B.replication_address();
    let listener = lab.world.run(Place::On(Host::B), || std::net::TcpListener::bind(address)).expect("a thread").expect("a listener");
    let mut a = lab.start(&Spec::primary(Host::A, "a"));
    a.until_ready();
    let guest = lab.connect();

    under_load(&lab, Clients::default(), |load| {
        let _silent = listener.accept().expect("the primary looks for its standby");
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            load.until_more(SOME);
        }
    });

    assert!(a.exited().is_none());
    drop(guest);
}
