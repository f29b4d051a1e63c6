//! TAPs for real, each test in a network namespace of its own that vanishes with its thread.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

/// Runs `test` in a fresh network namespace. Skipped, loudly, where that is not permitted, unless LOCKSTEP_REQUIRE_KVM=1 says that this
/// machine must be able to.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let entered = std::thread::spawn(move || {
        let errno = match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            Ok(()) if std::path::Path::new(TUN_DEVICE).exists() => {
                test();
                return Ok(());
            }
            Ok(()) => nix::errno::Errno::ENOENT,
            Err(errno) => errno,
        };
        Err(errno)
    })
    .join();
    match entered {
        Ok(Ok(())) => {}
        Ok(Err(errno)) if std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_some_and(|value| value == "1") => {
            panic!("no network namespace with TAPs here ({errno}), and LOCKSTEP_REQUIRE_KVM=1")
        }
        Ok(Err(errno)) => eprintln!("SKIPPED: no network namespace with TAPs here ({errno}); run as root"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

const CREATE: TapOptions = TapOptions { create: true };

#[test]
fn a_name_that_is_none_is_refused_before_anything_is_opened() {
    for name in ["", "a/b", "0123456789abcdef", "tap 0", "tap%d", "a:b", "..", "t\u{e4}p", "tap\0"] {
        assert!(matches!(Tap::open(name, CREATE), Err(TapError::BadName { .. })), "{name:?}");
    }
}

#[test]
fn an_interface_that_does_not_exist_is_not_made_silently() {
    in_namespace(|| {
        let error = Tap::open("tap7", TapOptions::default()).unwrap_err();
        assert!(matches!(error, TapError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("ip tuntap add dev tap7"));
        assert!(nix::net::if_::if_nametoindex("tap7").is_err());
    });
}

#[test]
fn a_tap_that_another_holds_is_busy_until_it_is_let_go() {
    in_namespace(|| {
        let first = Tap::open("tap7", CREATE).unwrap();
        assert!(matches!(Tap::open("tap7", TapOptions::default()), Err(TapError::Busy { .. })));
        assert!(matches!(Tap::open("tap7", CREATE), Err(TapError::Busy { .. })));
        let writer = first.writer();
        drop(first);
        assert!(matches!(Tap::open("tap7", CREATE), Err(TapError::Busy { .. })), "its writer still holds it");
        drop(writer);
        Tap::open("tap7", CREATE).unwrap();
    });
}

/// Whether the host's stack leaves checksums of what it sends through `name` to whoever reads it (linux/ethtool.h, ETHTOOL_GTXCSUM).
fn leaves_checksums(name: &str) -> bool {
    let mut value = [0x16_u32, 0];
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads one ifreq and writes one ethtool_value, which are two u32, behind its pointer; both outlive the call.
    let answer = unsafe { libc::ioctl(any_socket().unwrap().as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(answer, 0, "{}", io::Error::last_os_error());
    value[1] != 0
}

#[test]
fn what_an_earlier_user_of_the_interface_wanted_left_undone_is_done_again() {
    const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
    const TUN_F_CSUM: libc::c_int = 1;
    in_namespace(|| {
        let earlier = Tap::open("tap7", CREATE).unwrap();
        // SAFETY: both take a number; the descriptor is open.
        let set = |what, value: libc::c_int| unsafe { libc::ioctl(earlier.file.as_raw_fd(), what, value) };
        assert_eq!((set(TUNSETPERSIST, 1), set(TUNSETOFFLOAD, TUN_F_CSUM)), (0, 0));
        drop(earlier);
        assert!(leaves_checksums("tap7"));

        let _tap = Tap::open("tap7", TapOptions::default()).unwrap();

        assert!(!leaves_checksums("tap7"));
    });
}

#[test]
fn an_interface_of_another_kind_is_named_as_such() {
    in_namespace(|| {
        assert!(matches!(Tap::open("lo", CREATE), Err(TapError::NotATap { .. })));
    });
}

#[test]
fn a_user_without_permission_is_told_the_remedy() {
    in_namespace(|| {
        let _held = Tap::open("tap7", CREATE).unwrap();
        // SAFETY: the raw call changes the ids of this thread only, which ends with the test; it takes no pointers.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
        let error = Tap::open("tap8", CREATE).unwrap_err();
        assert!(matches!(error, TapError::Permission { .. }), "{error}");
        assert!(error.to_string().contains("user $USER"));
    });
}

/// Gives the interface an address, so that the kernel answers ARP for it.
fn set_address(name: &str, address: Ipv4Addr) {
    let socket = any_socket().unwrap();
    for (what, address) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))] {
        let mut request = interface_request(name);
        let inet = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: sockaddr and sockaddr_in are plain data of 16 bytes each.
        request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) };
        // SAFETY: both calls read one ifreq, which `request` is.
        assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), what as _, &raw const request) }, 0, "{}", io::Error::last_os_error());
    }
}

#[test]
fn frames_pass_both_ways_one_to_a_read() {
    in_namespace(|| {
        let mut tap = Tap::open("tap7", CREATE).unwrap();
        set_address("tap7", Ipv4Addr::new(10, 9, 8, 1));
        let (own, asked) = ([2, 0, 0, 0, 0, 9], [10, 9, 8, 1]);
        let request = [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own, &[10, 9, 8, 2], &[0; 6], &asked].concat();

        let batch = tap.writer().write_batch([&request[..], &request]);

        assert_eq!(batch, BatchWritten { written: 2, dropped: 0 });
        assert_eq!(tap.writer().written(), 2);
        let mut buffer = [0; 2048];
        let reply = loop {
            match tap.read_frame(&mut buffer).unwrap() {
                Some(length) if buffer[12..14] == [8, 6] && buffer[..6] == own => break &buffer[..length],
                Some(_) => {}
                None => {
                    let mut ready = [PollFd::new(tap.file.as_fd(), PollFlags::POLLIN)];
                    assert_eq!(poll(&mut ready, PollTimeout::from(5000u16)).unwrap(), 1, "no ARP reply came");
                }
            }
        };
        assert_eq!(reply[20..22], [0, 2]);
        assert_eq!(reply[28..32], asked);
    });
}

#[test]
fn a_frame_the_host_does_not_take_is_counted_and_nobody_waits() {
    in_namespace(|| {
        let tap = Tap::open("tap7", CREATE).unwrap();
        let writer = tap.writer();
        let too_short = [0u8; 5];
        let good = [0xffu8; 60];
        assert_eq!(writer.write_batch([&too_short[..], &good]), BatchWritten { written: 1, dropped: 1 });
        assert_eq!((writer.clone().written(), writer.dropped()), (1, 1));
    });
}

#[test]
fn stale_frames_are_drained_up_to_the_bound() {
    let (end, wire) = std::os::unix::net::UnixDatagram::pair().unwrap();
    end.set_nonblocking(true).unwrap();
    let mut tap = Tap::from_fd("pair", end.into()).unwrap();
    for _ in 0..5 {
        wire.send(&[0; 1500]).unwrap();
    }
    assert_eq!(drain(&mut tap, 3).unwrap(), 3);
    assert_eq!(drain(&mut tap, 3).unwrap(), 2);
    assert_eq!(drain(&mut tap, 3).unwrap(), 0);
}
