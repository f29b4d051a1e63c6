//! The PCI bus on real KVM: configuration space, doorbells and message interrupts as a guest's own accesses meet them, and as they are after a restore (S5).
//!
//! The guest is a pair of hands: ring-3 code that carries out one access after the other as the test orders, so every one of them is the guest's own. The device is
//! virtio-rng, which needs nothing from the host. Interrupts stay disabled: a message that arrives is seen in the LAPIC's request register.

mod support;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use dirty_tracking::Choice;
use kvm_bindings::kvm_regs;
use support::{Program, capture, config, image, kvm_is_there, load, sinks};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm::{
    BootConfig, BootImages, Bus, KernelImage, Machine, MachineConfig, MachineEvent, TransportState,
    layout::{PCI_BARS, PCI_ECAM, SCI_GSI},
};

const MEMORY: u64 = 64 << 20;
/// What to do (0: nothing; 1, 2, 4: read; 9, 10, 12: write so many bytes more than 8), where, what, and what was read.
const ORDER: u64 = 0x20_0000;
const DESCRIPTORS: u64 = 0x30_0000;
const AVAILABLE: u64 = 0x30_1000;
const USED: u64 = 0x30_2000;
const BUFFER: u64 = 0x31_0000;
const QUEUE_SIZE: u16 = 8;
const PATIENCE: Duration = Duration::from_secs(20);

const HANDS: &[u8] = &[
    0x48, 0x8b, 0x03, // mov rax, [rbx]
    0x85, 0xc0, // test eax, eax
    0x74, 0xf9, // jz to the start
    0x48, 0x8b, 0x7b, 0x08, // mov rdi, [rbx + 8]
    0x48, 0x8b, 0x53, 0x10, // mov rdx, [rbx + 16]
    0x31, 0xc9, // xor ecx, ecx
    0x83, 0xf8, 0x01, 0x74, 0x18, // cmp eax, 1; je to the read of a byte
    0x83, 0xf8, 0x02, 0x74, 0x17, // cmp eax, 2; je to the read of 2
    0x83, 0xf8, 0x04, 0x74, 0x17, // cmp eax, 4; je to the read of 4
    0x83, 0xf8, 0x09, 0x74, 0x16, // cmp eax, 9; je to the write of a byte
    0x83, 0xf8, 0x0a, 0x74, 0x15, // cmp eax, 10; je to the write of 2
    0x89, 0x17, 0xeb, 0x14, // mov [rdi], edx; jmp to the end
    0x8a, 0x0f, 0xeb, 0x10, // mov cl, [rdi]; jmp to the end
    0x66, 0x8b, 0x0f, 0xeb, 0x0b, // mov cx, [rdi]; jmp to the end
    0x8b, 0x0f, 0xeb, 0x07, // mov ecx, [rdi]; jmp to the end
    0x88, 0x17, 0xeb, 0x03, // mov [rdi], dl; jmp to the end
    0x66, 0x89, 0x17, // mov [rdi], dx
    0x48, 0x89, 0x4b, 0x18, // mov [rbx + 24], rcx
    0x48, 0xc7, 0x03, 0x00, 0x00, 0x00, 0x00, // mov qword [rbx], 0
    0xeb, 0xb1, // jmp to the start
];

/// First address of the LAPIC's registers, and of its interrupt request register.
const LAPIC: u64 = 0xfee0_0000;
const LAPIC_SPURIOUS: u64 = LAPIC + 0xf0;
const LAPIC_REQUESTS: u64 = LAPIC + 0x200;

/// The IOAPIC's index and data registers.
const IOAPIC_INDEX: u64 = 0xfec0_0000;
const IOAPIC_DATA: u64 = 0xfec0_0010;

const CONFIG: u64 = PCI_ECAM.start + (1 << 15);
const MSIX_CAP: u64 = 0x40;
const COMMON: u64 = 0x0000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;

/// A machine with the hands in it, running.
struct Guest {
    machine: Machine,
    bar: u64,
    requests: u16,
    _alone: MutexGuard<'static, ()>,
}

/// The hands spin while they wait for an order, and so does who gives it: more than one such pair at a time would only wait for each other's processor.
static ALONE: Mutex<()> = Mutex::new(());

fn machine_on_pci() -> Machine {
    let config = MachineConfig { rng: true, bus: Bus::Pci, ..config(MEMORY, 1, Choice::Auto) };
    Machine::new(&config, sinks(&std::sync::Arc::default())).expect("a machine")
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::yield_now();
    }
}

impl Guest {
    fn new() -> Guest {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut machine = machine_on_pci();
        load(&mut machine, &[Program { code: HANDS, regs: kvm_regs { rbx: ORDER, ..Default::default() } }]);
        machine.start().unwrap();
        let guest = Guest { machine, bar: PCI_BARS.start + 0x8000, requests: 0, _alone: alone };
        guest.write(LAPIC_SPURIOUS, 4, 0x1ff);
        guest
    }

    fn order(&self, order: u64, address: u64, value: u64) -> u64 {
        let memory = self.machine.memory();
        memory.write_obj(address, GuestAddress(ORDER + 8)).unwrap();
        memory.write_obj(value, GuestAddress(ORDER + 16)).unwrap();
        memory.store(order, GuestAddress(ORDER), std::sync::atomic::Ordering::Release).unwrap();
        let done = || memory.load::<u64>(GuestAddress(ORDER), std::sync::atomic::Ordering::Acquire).unwrap() == 0;
        wait("the guest to do as it is told", done);
        memory.read_obj(GuestAddress(ORDER + 24)).unwrap()
    }

    fn read(&self, address: u64, bytes: u64) -> u64 {
        self.order(bytes, address, 0)
    }

    fn write(&self, address: u64, bytes: u64, value: u64) {
        self.order(8 + bytes, address, value);
    }

    fn common(&self, offset: u64, bytes: u64, value: u64) {
        self.write(self.bar + COMMON + offset, bytes, value);
    }

    fn program(&self, vector: u64, interrupt: u64) {
        for (word, value) in [LAPIC, 0, interrupt, 0].into_iter().enumerate() {
            self.write(self.bar + TABLE + vector * 16 + word as u64 * 4, 4, value);
        }
    }

    /// Sets the entropy device up with MSI-X: interrupt `interrupt` for its configuration, the next for its queue.
    fn set_up(&self, interrupt: u64) {
        self.write(CONFIG + 4, 2, 6);
        for status in [0, 1, 3] {
            self.common(0x14, 1, status);
        }
        self.common(8, 4, 1);
        self.common(0xc, 4, 1);
        self.common(0x14, 1, 11);
        self.write(CONFIG + MSIX_CAP + 2, 2, 0x8000);
        self.program(0, interrupt);
        self.program(1, interrupt + 1);
        self.common(0x10, 2, 0);
        self.common(0x16, 2, 0);
        self.common(0x1a, 2, 1);
        self.common(0x18, 2, QUEUE_SIZE.into());
        for (register, address) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            self.common(register, 4, address);
        }
        self.common(0x1c, 2, 1);
        self.common(0x14, 1, 15);
        assert_eq!(self.read(self.bar + 0x14, 1), 15);
    }

    fn used(&self) -> u16 {
        self.machine.memory().read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Makes one more buffer available; does not kick.
    fn offer(&mut self) {
        let memory = self.machine.memory();
        let descriptor = [&BUFFER.to_le_bytes()[..], &64u32.to_le_bytes(), &2u16.to_le_bytes(), &0u16.to_le_bytes()].concat();
        memory.write_slice(&descriptor, GuestAddress(DESCRIPTORS)).unwrap();
        memory.write_obj(0u16, GuestAddress(AVAILABLE + 4 + 2 * u64::from(self.requests % QUEUE_SIZE))).unwrap();
        self.requests += 1;
        memory.write_obj(self.requests, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    /// Asks for random bytes at the doorbell of the BAR at `bar`.
    fn request(&mut self, bar: u64) {
        self.offer();
        self.write(bar + NOTIFY, 2, 0);
    }

    fn wait_served(&self) {
        wait("the device to use the buffer", || self.used() == self.requests);
    }

    fn interrupted(&self, interrupt: u64) -> bool {
        self.read(LAPIC_REQUESTS + interrupt / 32 * 16, 4) >> (interrupt % 32) & 1 == 1
    }

    fn wait_interrupted(&self, interrupt: u64) {
        wait("the interrupt", || self.interrupted(interrupt));
    }
}

#[test]
fn a_guest_finds_its_devices_sizes_their_memory_and_nothing_else() {
    if !kvm_is_there() {
        return;
    }
    let guest = Guest::new();
    assert_eq!(guest.read(PCI_ECAM.start, 4), 0x0008_1b36);
    assert_eq!(guest.read(CONFIG, 4), 0x1044_1af4, "the entropy device");
    assert_eq!(guest.read(CONFIG + (1 << 15), 4), 0xffff_ffff);
    assert_eq!(guest.read(guest.bar + 0x12, 2), 0xffff, "not decoded yet");
    guest.write(CONFIG + 0x10, 4, 0xffff_ffff);
    assert_eq!(guest.read(CONFIG + 0x10, 4), 0xffff_8000);
    guest.write(CONFIG + 0x10, 4, guest.bar);
    guest.write(CONFIG + 4, 1, 2);
    assert_eq!(guest.read(guest.bar + 0x12, 2), 1, "one queue");
}

#[test]
fn a_kick_is_served_and_answered_by_a_message_wherever_the_memory_was_moved() {
    if !kvm_is_there() {
        return;
    }
    let mut guest = Guest::new();
    guest.set_up(0x41);
    assert!(!guest.interrupted(0x42));
    guest.request(guest.bar);
    guest.wait_served();
    guest.wait_interrupted(0x42);
    assert!(!guest.interrupted(0x41), "nothing happened to the configuration");
    let mut bytes = [0u8; 64];
    guest.machine.memory().read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
    assert_ne!(bytes, [0; 64]);

    // Moved, and back: doorbells follow; a masked interrupt waits for its unmasking; the old place is dead.
    let old = guest.bar;
    guest.bar = PCI_BARS.end - 0x8000;
    guest.write(CONFIG + 0x10, 4, guest.bar);
    guest.program(1, 0x52);
    guest.write(guest.bar + TABLE + 16 + 12, 4, 1);
    guest.request(old);
    guest.write(guest.bar + NOTIFY, 2, 0);
    guest.wait_served();
    wait("the pending bit", || guest.read(guest.bar + 0x5000, 4) == 2);
    assert!(!guest.interrupted(0x52));
    guest.write(guest.bar + TABLE + 16 + 12, 4, 0);
    guest.wait_interrupted(0x52);
    assert_eq!(guest.read(guest.bar + 0x5000, 4), 0);
}

#[test]
fn the_interrupt_chips_pins_go_on_working_beside_messages() {
    if !kvm_is_there() {
        return;
    }
    let mut guest = Guest::new();
    guest.set_up(0x41);
    guest.request(guest.bar);
    guest.wait_interrupted(0x42);
    // The pin of the ACPI events: vector 0x85 to CPU 0, edge-triggered, not masked.
    for (register, value) in [(0x11 + 2 * u64::from(SCI_GSI), 0), (0x10 + 2 * u64::from(SCI_GSI), 0x85)] {
        guest.write(IOAPIC_INDEX, 4, register);
        guest.write(IOAPIC_DATA, 4, value);
    }
    assert!(!guest.interrupted(0x85));
    guest.machine.press_power_button();
    guest.wait_interrupted(0x85);
}

#[test]
fn a_restored_machine_has_its_routes_and_doorbells_and_every_interrupt_is_raised() {
    if !kvm_is_there() {
        return;
    }
    let mut guest = Guest::new();
    guest.bar = PCI_BARS.start + 0x400_0000;
    guest.write(CONFIG + 0x10, 4, guest.bar);
    guest.set_up(0x61);
    guest.request(guest.bar);
    guest.wait_served();
    guest.wait_interrupted(0x62);
    // A request whose kick is lost with the first machine.
    guest.offer();
    let state = capture(&guest.machine);

    let second = machine_on_pci();
    for region in guest.machine.memory().iter() {
        let mut page = [0u8; types::PAGE_SIZE];
        for offset in (0..region.len()).step_by(page.len()) {
            let at = GuestAddress(region.start_addr().0 + offset);
            guest.machine.memory().read_slice(&mut page, at).unwrap();
            second.memory().write_slice(&page, at).unwrap();
        }
    }
    guest.machine.stop();
    guest.machine = second;
    guest.machine.restore(&state).unwrap();
    let restored = capture(&guest.machine);
    assert_eq!((&restored.devices, &restored.pci), (&state.devices, &state.pci));
    guest.machine.start().unwrap();

    guest.wait_served();
    guest.wait_interrupted(0x61);
    guest.program(1, 0x73);
    guest.request(guest.bar);
    guest.wait_served();
    guest.wait_interrupted(0x73);
}

#[test]
fn a_state_from_another_bus_is_refused() {
    if !kvm_is_there() {
        return;
    }
    let state = capture(&machine_on_pci());
    let config = MachineConfig { rng: true, ..config(MEMORY, 1, Choice::Auto) };
    let mut on_mmio = Machine::new(&config, sinks(&std::sync::Arc::default())).unwrap();
    let refusal = on_mmio.restore(&state).expect_err("must be refused").to_string();
    assert!(refusal.contains("PCI bus"), "{refusal}");
}

/// 32-bit code that writes `writes` to memory, addresses configuration space by port 0xcf8, and asks for a reset through ACPI.
fn program_then_reset(writes: &[(u64, u32)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (address, value) in writes {
        code.extend([0xc7, 0x05]); // mov dword [address], value
        code.extend((*address as u32).to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code.extend([0xba, 0xf8, 0x0c, 0x00, 0x00, 0xb8]); // mov edx, 0xcf8; mov eax,
    code.extend(0x8000_083cu32.to_le_bytes()); // device 1, interrupt line
    code.extend([0xef, 0xb2, 0xfc, 0xb0, 0x17, 0xee]); // out dx, eax; mov dl, 0xfc; mov al, 0x17; out dx, al
    code.extend([0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xeb, 0xfe]); // mov dx, 0x602; mov al, 1; out dx, al; jmp here
    code
}

#[test]
fn a_reset_puts_bars_messages_and_the_bus_back_to_where_they_were_at_power_on() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine_on_pci();
    let new = capture(&machine);
    let bar = PCI_BARS.start + 0x100_0000;
    let code = program_then_reset(&[
        (CONFIG + 4, 6),
        (CONFIG + 0x10, bar as u32),
        (CONFIG + MSIX_CAP, 0x8000_0000),
        (bar + TABLE, LAPIC as u32),
        (bar + TABLE + 8, 0x41),
        (bar + TABLE + 12, 0),
        (PCI_ECAM.start + 0x3c, 7),
    ]);
    let kernel = KernelImage::Bytes(image(&code, true).leak());
    let images = BootImages::open(&BootConfig { kernel, initramfs: None, cmdline: String::new() }).unwrap();
    machine.boot_images(&images).unwrap();
    machine.start().unwrap();
    assert_eq!(machine.events().recv_timeout(PATIENCE), Ok(MachineEvent::Reset));

    let mut paused = machine.pause().unwrap();
    let ran = paused.capture().unwrap();
    paused.reset(&images).unwrap();
    let reset = paused.capture().unwrap();

    let TransportState::Pci(function) = &ran.devices[0].transport else { panic!("not on PCI") };
    assert_eq!(function.config[0x10..0x14], (bar as u32).to_le_bytes());
    assert_eq!(function.config[0x3c], 0x17, "written through the ports");
    assert_eq!(function.msix.entries[0], [LAPIC as u32, 0, 0x41, 0]);
    assert_ne!(ran.pci, new.pci);
    assert_eq!((reset.devices, reset.pci), (new.devices, new.pci));
}

/// Whatever a guest writes at random over configuration space, ports aside, and the BAR window, its machine goes on, can be captured and put back.
#[test]
fn a_guest_that_scribbles_over_its_devices_harms_only_itself() {
    if !kvm_is_there() {
        return;
    }
    let guest = Guest::new();
    guest.set_up(0x41);
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..1000 {
        let (address, bytes) = (next(), [1, 2, 4][(next() % 3) as usize]);
        let address = match address % 8 {
            0..4 => CONFIG + address / 8 % 0xb0,
            4..6 => guest.bar + (address / 8 % 6) * 0x1000 + address / 64 % 0x40,
            6 => PCI_ECAM.start + address / 8 % 0x10_0000,
            _ => PCI_BARS.start + address / 8 % (PCI_BARS.end - PCI_BARS.start),
        } & !(bytes - 1);
        let value = [next(), u64::MAX, 0, guest.bar, LAPIC, 2, 0x8000][(next() % 7) as usize];
        guest.write(address, bytes, value);
    }
    assert_eq!(guest.read(CONFIG, 4), 0x1044_1af4);
    let state = capture(&guest.machine);
    let mut second = machine_on_pci();
    second.restore(&state).unwrap();
    assert_eq!(capture(&second).devices, state.devices);
}
