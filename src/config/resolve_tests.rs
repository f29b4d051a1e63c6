//! Each bound and contradiction of [`super`], by its message.

use super::*;
use crate::config::CpuModel;
use crate::config::units::Span;

const HOST: u64 = 8 << 30;

/// The least that a node needs.
fn options() -> NodeOptions {
    NodeOptions { node: Some("a".into()), net: vec!["tap=tap9".into()], ..NodeOptions::default() }
}

fn error(options: NodeOptions, verb: Verb) -> String {
    options.resolve_on(verb, HOST).expect_err("must be refused").to_string()
}

fn with_memory(text: &str) -> NodeOptions {
    NodeOptions { memory: Some(text.parse().expect("a size")), ..options() }
}

fn with_net(nets: &[&str]) -> NodeOptions {
    NodeOptions { net: nets.iter().map(|s| (*s).to_owned()).collect(), ..options() }
}

#[test]
fn nothing_but_a_network_port_runs_alone() {
    let config = options().resolve_on(Verb::Run, HOST).expect("defaults");
    assert_eq!(config.peering, Peering::Alone);
    assert_eq!(config.machine.memory.bytes(), defaults::MEMORY);
    assert_eq!(config.machine.kernel, Kernel::BuiltIn);
    assert_eq!(config.epochs.dirty_budget_pages, 4096);
    assert_eq!(config.console, Console::Stdio);
}

#[test]
fn memory_that_is_zero_tiny_odd_or_more_than_the_host_has_is_refused_with_a_remedy() {
    for (text, remedy) in [
        ("0", "--memory 256M"),
        ("256", "did you forget the M"),
        ("255M", "write 254M or 256M"),
        ("16777217", "whole 2M pieces"),
        ("9G", "this host has only 8192 MiB"),
        ("18446744073709551615", "pieces"),
    ] {
        let message = error(with_memory(text), Verb::Run);
        assert!(message.contains("--memory") && message.contains(remedy), "{text}: {message}");
    }
}

#[test]
fn vcpus_are_bounded() {
    for n in [0, 33, 300, u32::MAX] {
        let message = error(NodeOptions { vcpus: Some(n), ..options() }, Verb::Run);
        assert!(message.contains("--vcpus") && message.contains("1 to 32"), "{message}");
    }
}

#[test]
fn a_net_port_is_read_with_and_without_its_mac() {
    let config = with_net(&["tap=tap0,mac=52:54:00:12:34:56", "tap=tap1"]).resolve_on(Verb::Run, HOST).expect("two ports");
    assert_eq!(config.machine.nets[0], NetConfig { tap: "tap0".into(), mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56] });
    let again = with_net(&["tap=other", "tap=tap1"]).resolve_on(Verb::Run, HOST).expect("two ports");
    assert_eq!(config.machine.nets[1].mac, again.machine.nets[1].mac, "the same VM has the same MAC on every host");
}

#[test]
fn a_net_port_that_makes_no_sense_is_refused() {
    for bad in [
        &["tap0"][..],
        &["mac=52:54:00:12:34:56"],
        &["tap="],
        &["tap=a-name-that-is-too-long"],
        &["tap=t,mac=52:54:00:12:34"],
        &["tap=t,mac=53:54:00:12:34:56"],
        &["tap=t,mac=00:00:00:00:00:00"],
        &["tap=t,mac=+1:54:00:12:34:56"],
        &["tap=t", "tap=t"],
        &["tap=t,mac=52:54:00:12:34:56", "tap=u,mac=52:54:00:12:34:56"],
        &["tap=t,speed=9"],
        &["tap=t,tap=u"],
    ] {
        assert!(error(with_net(bad), Verb::Run).contains("--net"), "{bad:?}");
    }
}

#[test]
fn a_standby_needs_an_arbiter_on_either_side() {
    let run = NodeOptions { standby: Some("127.0.0.1:7300".into()), ..options() };
    assert!(error(run.clone(), Verb::Run).contains("--arbiter is missing"));
    let stand = NodeOptions { listen: Some("127.0.0.1:7300".into()), ..options() };
    assert!(error(stand, Verb::Standby).contains("--arbiter is missing"));
    assert!(error(options(), Verb::Standby).contains("--listen is missing"));

    let config = NodeOptions { arbiter: Some("file:/srv/vm0".into()), ..run }.resolve_on(Verb::Run, HOST).expect("complete");
    let standby = Some("127.0.0.1:7300".parse().expect("an address"));
    assert_eq!(config.peering, Peering::Primary { arbiter: Arbiter::File("/srv/vm0".into()), standby });
}

#[test]
fn run_does_not_listen() {
    let options = NodeOptions { listen: Some("127.0.0.1:7300".into()), ..options() };
    assert!(error(options, Verb::Run).contains("lockstep standby"));
}

#[test]
fn addresses_need_a_port() {
    for address in ["10.0.0.1", "10.0.0.1:0", "10.0.0.1:notaport"] {
        let options = NodeOptions { standby: Some(address.into()), arbiter: Some("file:/x".into()), ..options() };
        assert!(error(options, Verb::Run).contains("--standby"), "{address}");
    }
}

#[test]
fn an_arbiter_of_unknown_kind_is_refused() {
    for given in ["etcd:host", "/srv/vm0", "file:"] {
        let options = NodeOptions { arbiter: Some(given.into()), ..options() };
        assert!(error(options, Verb::Run).contains("write file:PATH"), "{given}");
    }
}

#[test]
fn the_detection_bound_leaves_room_for_a_late_heartbeat() {
    let span = |ms| Some(Span(Duration::from_millis(ms)));
    let tight = NodeOptions { heartbeat_interval: span(20), detection_bound: span(30), ..options() };
    assert!(error(tight, Verb::Run).contains("two heartbeat intervals"));
    let slow = NodeOptions { heartbeat_interval: span(500), ..options() }.resolve_on(Verb::Run, HOST).expect("bound follows");
    assert_eq!(slow.heartbeat.bound, Duration::from_secs(5));
}

#[test]
fn epoch_bounds_are_bounded() {
    assert!(error(NodeOptions { longest_interval_ms: Some(0), ..options() }, Verb::Run).contains("--longest-interval-ms"));
    assert!(error(NodeOptions { dirty_budget: Some(ByteSize(4096)), ..options() }, Verb::Run).contains("--dirty-budget"));
    assert!(error(NodeOptions { max_in_flight: Some(0), ..options() }, Verb::Run).contains("--max-in-flight"));
    assert!(error(NodeOptions { output_wait_us: Some(u64::MAX), ..options() }, Verb::Run).contains("--output-wait-us"));
}

#[test]
fn console_and_events_do_not_share_standard_output() {
    let both = NodeOptions { events: Some("-".into()), console: Some("stdio".into()), ..options() };
    assert!(error(both, Verb::Run).contains("share standard output"));
    let events = NodeOptions { events: Some("-".into()), ..options() }.resolve_on(Verb::Run, HOST).expect("console steps aside");
    assert_eq!(events.console, Console::None);
}

#[test]
fn names_are_short_and_plain() {
    for bad in ["", "a b", "a/b", &"x".repeat(65)] {
        assert!(error(NodeOptions { vm: Some(bad.into()), ..options() }, Verb::Run).contains("--vm"), "{bad:?}");
    }
}

#[test]
fn a_brought_kernel_gets_pci_and_random_numbers_and_the_built_in_guest_neither() {
    let built_in = options().resolve_on(Verb::Run, HOST).expect("defaults").machine;
    assert_eq!((built_in.bus, built_in.rng, built_in.cpu), (Bus::Mmio, false, CpuModel::Host));

    let brought = NodeOptions { kernel: Some("/boot/vmlinuz".into()), ..options() };
    let machine = brought.clone().resolve_on(Verb::Run, HOST).expect("a kernel").machine;
    assert_eq!((machine.bus, machine.rng), (Bus::Pci, true));

    let chosen = NodeOptions { bus: Some(BusOption::Mmio), rng: Some(false), cpu: Some(CpuModel::X8664V3), ..brought };
    let machine = chosen.resolve_on(Verb::Run, HOST).expect("choices").machine;
    assert_eq!((machine.bus, machine.rng, machine.cpu), (Bus::Mmio, false, CpuModel::X8664V3));
}

#[test]
fn the_built_in_guest_is_not_put_on_a_bus_that_it_cannot_drive() {
    let options = NodeOptions { bus: Some(BusOption::Pci), ..options() };
    assert!(error(options, Verb::Run).contains("--bus pci"));
}

#[test]
fn the_mmio_bus_has_as_many_devices_as_interrupt_lines() {
    let disk = |n: usize| format!("path=/disk{n}").parse().expect("a disk");
    let many = NodeOptions {
        kernel: Some("/boot/vmlinuz".into()),
        bus: Some(BusOption::Mmio),
        disk: (0..16).map(disk).collect(),
        net: (0..2).map(|n| format!("tap=t{n}")).collect(),
        ..options()
    };
    let message = error(many.clone(), Verb::Run);
    assert!(message.contains("19 devices") && message.contains("--bus pci"), "{message}");
    NodeOptions { rng: Some(false), ..many }.resolve_on(Verb::Run, HOST).expect("18 devices");
}

#[test]
fn the_built_in_guest_needs_a_network_port_and_takes_no_initramfs() {
    let without = NodeOptions { net: Vec::new(), ..options() };
    let message = error(without.clone(), Verb::Run);
    assert!(message.contains("--net is missing") && message.contains("--net tap=NAME"), "{message}");
    let kernel = NodeOptions { kernel: Some("/boot/vmlinuz".into()), ..without };
    assert_eq!(kernel.clone().resolve_on(Verb::Run, HOST).expect("a kernel may do without").machine.nets, []);

    let initramfs = Some(PathBuf::from("/boot/initrd.img"));
    let message = error(NodeOptions { initramfs: initramfs.clone(), ..options() }, Verb::Run);
    assert!(message.contains("--initramfs is for a --kernel"), "{message}");
    NodeOptions { initramfs, ..kernel }.resolve_on(Verb::Run, HOST).expect("a kernel with its initramfs");
}

#[test]
fn the_console_goes_where_it_is_told() {
    let console = |text: &str| NodeOptions { console: Some(text.into()), ..options() }.resolve_on(Verb::Run, HOST).map(|c| c.console);
    assert_eq!(console("socket:/run/a"), Ok(Console::Socket("/run/a".into())));
    assert_eq!(console("file:/run/a"), Ok(Console::File("/run/a".into())));
    assert_eq!(console("/run/a:b"), Ok(Console::File("/run/a:b".into())));
    assert_eq!(console("./a"), Ok(Console::File("./a".into())));
    for bad in ["", "socket", "socket:", "file:", "file", "sdtio", "bogus", "stdio:", "sokcet:/run/a", ":/run/a"] {
        assert!(console(bad).expect_err(bad).to_string().contains("socket:PATH"), "{bad:?}");
    }
    assert!(console(&format!("socket:/{}", "x".repeat(107))).expect_err("too long").to_string().contains("107"));
}

#[test]
fn a_shared_disk_needs_an_arbiter_and_takes_a_fencing_command() {
    let shared = || NodeOptions { disk: vec!["path=/dev/sda,mode=shared".parse().expect("a disk")], ..options() };
    assert!(error(shared(), Verb::Run).contains("--arbiter is missing"));
    let granted = || NodeOptions { arbiter: Some("file:/srv/vm0".into()), ..shared() };
    assert_eq!(granted().resolve_on(Verb::Run, HOST).expect("an arbiter").fence_command, None);
    let command = |text: &str| NodeOptions { fence_command: Some(text.into()), ..granted() };
    assert_eq!(
        command("off $LOCKSTEP_FENCE_NODE").resolve_on(Verb::Run, HOST).expect("a command").fence_command.as_deref(),
        Some("off $LOCKSTEP_FENCE_NODE")
    );
    for bad in ["", "  ", "a\0b"] {
        assert!(error(command(bad), Verb::Run).contains("--fence-command"), "{bad:?}");
    }
}
