//! What the host's KVM offers, capability by capability.

use kvm_bindings as caps;
use kvm_ioctls::Kvm;

use super::Item;
use crate::config::defaults;

/// The only version of the KVM interface there has been since 2007.
const API_VERSION: i32 = 12;

/// How much a capability matters.
enum Need {
    /// Without it no guest can be protected.
    Must,
    /// Without it something is slower or less exact; what.
    Should(&'static str),
}

/// Capability, its name, its meaning and how much it matters.
const CAPABILITIES: &[(u32, &str, Need)] = &[
    (caps::KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", Need::Must),
    (caps::KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", Need::Must),
    (caps::KVM_CAP_PIT2, "KVM_CAP_PIT2", Need::Must),
    (caps::KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2", Need::Must),
    (caps::KVM_CAP_IRQFD, "KVM_CAP_IRQFD", Need::Must),
    (caps::KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", Need::Must),
    (caps::KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", Need::Must),
    (caps::KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", Need::Must),
    (caps::KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", Need::Must),
    (caps::KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", Need::Must),
    (caps::KVM_CAP_XSAVE, "KVM_CAP_XSAVE", Need::Must),
    (caps::KVM_CAP_XCRS, "KVM_CAP_XCRS", Need::Must),
    (caps::KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK", Need::Must),
    (caps::KVM_CAP_XSAVE2, "KVM_CAP_XSAVE2", Need::Should("large vector state (AMX) is not carried over; use a kernel of at least 5.17")),
    (caps::KVM_CAP_SYNC_REGS, "KVM_CAP_SYNC_REGS", Need::Should("each capture takes more system calls; use a kernel of at least 4.17")),
    (
        caps::KVM_CAP_KVMCLOCK_CTRL,
        "KVM_CAP_KVMCLOCK_CTRL",
        Need::Should("a Linux guest may report a soft lockup after a failover; use a kernel of at least 3.5"),
    ),
    (
        caps::KVM_CAP_IRQ_ROUTING,
        "KVM_CAP_IRQ_ROUTING",
        Need::Should(
            "no --bus pci (message-signalled interrupts), which stock kernels need; use a kernel with in-kernel interrupt routing",
        ),
    ),
    (
        caps::KVM_CAP_TSC_DEADLINE_TIMER,
        "KVM_CAP_TSC_DEADLINE_TIMER",
        Need::Should("guest timers are coarser; nothing to do but use a newer processor or kernel"),
    ),
];

/// Looks at KVM; the name of the dirty tracking that `auto` stands for, too.
pub(super) fn look() -> (Vec<Item>, Option<&'static str>) {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return (vec![no_kvm(error.errno())], None),
    };
    let mut items = vec![Item::ok("/dev/kvm", "can be opened")];
    let version = kvm.get_api_version();
    items.push(if version == API_VERSION {
        Item::ok("KVM interface", format!("version {version}"))
    } else {
        Item::fail("KVM interface", format!("version {version}, not {API_VERSION}"), "use a kernel of at least 2.6.22")
    });
    items.push(virtual_machine(&kvm));
    for (capability, name, need) in CAPABILITIES {
        items.push(match (kvm.check_extension_raw(u64::from(*capability)) > 0, need) {
            (true, _) => Item::ok(name, "there"),
            (false, Need::Must) => Item::fail(name, "missing", "use a newer kernel, or one with in-kernel interrupt chips for x86-64"),
            (false, Need::Should(remedy)) => Item::warn(name, "missing", remedy),
        });
    }
    let (item, chosen) = dirty_tracking(&kvm);
    items.push(item);
    items.extend(cpu_models(&kvm));
    items.push(tsc(&kvm));
    (items, chosen)
}

fn no_kvm(errno: i32) -> Item {
    let found = std::io::Error::from_raw_os_error(errno).to_string();
    let remedy = match errno {
        libc::EACCES | libc::EPERM => "run as root, or join the group that owns /dev/kvm (usermod -aG kvm USER) and log in again",
        libc::ENOENT => {
            "switch on VT-x or AMD-V in the firmware and load the module (modprobe kvm_intel or kvm_amd); in a VM, allow nesting"
        }
        _ => "load the module (modprobe kvm_intel or kvm_amd) and look at the kernel's log for why it refuses",
    };
    Item::fail("/dev/kvm", found, remedy)
}

fn virtual_machine(kvm: &Kvm) -> Item {
    let made = kvm.create_vm().and_then(|vm| vm.create_irq_chip().and_then(|()| vm.create_vcpu(0).map(drop)));
    match made {
        Ok(()) => Item::ok("a virtual machine", format!("can be made, with up to {} vCPUs", kvm.get_max_vcpus())),
        Err(error) => {
            Item::fail("a virtual machine", format!("cannot be made: {error}"), "another hypervisor may hold VT-x or AMD-V: stop it")
        }
    }
}

/// Which `--cpu` this host can carry.
fn cpu_models(kvm: &Kvm) -> Vec<Item> {
    let support = match vmm::cpu::support(kvm) {
        Ok(support) => support,
        Err(error) => return vec![Item::fail("--cpu", error.to_string(), "use a newer kernel")],
    };
    let item = |(model, missing): (vmm::CpuModel, Vec<String>)| {
        let name = match model {
            vmm::CpuModel::Host => "--cpu host",
            vmm::CpuModel::Level(vmm::CpuLevel::V1) => "--cpu x86-64-v1",
            vmm::CpuModel::Level(vmm::CpuLevel::V2) => "--cpu x86-64-v2",
            vmm::CpuModel::Level(vmm::CpuLevel::V3) => "--cpu x86-64-v3",
        };
        match missing.as_slice() {
            [] => Item::ok(name, "can be carried"),
            missing => Item::warn(
                name,
                format!("this host lacks {}", missing.join(", ")),
                "choose a --cpu that both hosts can carry; host needs the same processor on both",
            ),
        }
    };
    support.into_iter().map(item).collect()
}

/// The TSC's frequency, by a virtual CPU, and whether a guest's may differ from it.
fn tsc(kvm: &Kvm) -> Item {
    let khz = kvm.create_vm().and_then(|vm| vm.create_irq_chip().and_then(|()| vm.create_vcpu(0))).and_then(|vcpu| vcpu.get_tsc_khz());
    match (khz, kvm.check_extension(kvm_ioctls::Cap::TscControl)) {
        (Ok(khz), true) => Item::ok("TSC", format!("{khz} kHz, and can be scaled to another host's")),
        (Ok(khz), false) => Item::warn(
            "TSC",
            format!("{khz} kHz, and cannot be scaled"),
            "the other host's TSC must run at the same frequency, to 250 millionths (its lockstep check tells it), or be able to scale",
        ),
        (Err(error), _) => Item::warn("TSC", format!("its frequency cannot be told: {error}"), "use a kernel of at least 2.6.38"),
    }
}

fn dirty_tracking(kvm: &Kvm) -> (Item, Option<&'static str>) {
    let support = dirty_tracking::probe(kvm);
    let offers = match (support.bitmap, support.ring_entries) {
        (true, 0) => "bitmap with manual protection".to_owned(),
        (true, n) => format!("bitmap with manual protection, ring of {n} entries"),
        (false, n) => format!("ring of {n} entries"),
    };
    let pages = defaults::MEMORY / types::PAGE_SIZE as u64;
    match support.choose(dirty_tracking::Choice::Auto, pages) {
        Ok(kind) => {
            let name = if kind == dirty_tracking::Kind::Ring { "ring" } else { "bitmap" };
            (Item::ok("dirty tracking", format!("{offers}; auto means {name} for a guest of {} MiB", defaults::MEMORY >> 20)), Some(name))
        }
        Err(error) => (Item::fail("dirty tracking", error.to_string(), "use a kernel of at least 5.3"), None),
    }
}
