//! The ways to configuration space agree with each other, and lead nowhere else.

use super::*;

/// A function whose every byte is the lowest byte of its offset.
struct Plain {
    space: ConfigSpace,
    wrote: Vec<(u64, Vec<u8>)>,
}

impl PciFunction for Plain {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.space.read(offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.space.write(offset, data);
    }
    fn memory(&self) -> Option<(u64, u64)> {
        self.space.memory()
    }
    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        self.wrote.push((offset, data.to_vec()));
    }
}

struct Bench {
    root: Arc<PciRoot>,
    functions: Vec<Arc<Mutex<Plain>>>,
    ports: AddressSpace,
    memory: AddressSpace,
}

fn bench() -> Bench {
    let functions: Vec<_> = (0..2u16)
        .map(|index| {
            let mut space = ConfigSpace::new(Identity { id: (0x1234, index), subsystem: (0, 0), class: 0, revision: 0 });
            space.set_memory(PCI_BARS.start as u32 + 0x1000 * u32::from(index), 0x1000);
            Arc::new(Mutex::new(Plain { space, wrote: Vec::new() }))
        })
        .collect();
    let root = Arc::new(PciRoot::new(functions.iter().map(|function| Arc::clone(function) as _).collect()));
    let (mut ports, mut memory) = (AddressSpace::new(), AddressSpace::new());
    root.insert(&mut ports, &mut memory).unwrap();
    Bench { root, functions, ports, memory }
}

impl Bench {
    fn read(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.memory.read(address, &mut data));
        u32::from_le_bytes(data)
    }

    fn port_read(&self, address: u32, offset: u64, len: usize) -> u32 {
        assert!(self.ports.write(0xcf8, &address.to_le_bytes()));
        let mut data = vec![0; len];
        assert!(self.ports.read(0xcfc + offset, &mut data));
        data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn enable(&self, device: u64, bar: Option<u32>) {
        let config = PCI_ECAM.start + (device << 15);
        if let Some(bar) = bar {
            self.memory.write(config + 0x10, &bar.to_le_bytes());
        }
        self.memory.write(config + 4, &[2]);
    }
}

#[test]
fn ecam_and_ports_find_the_same_functions_and_ones_elsewhere() {
    let bench = bench();
    for (device, id) in [(0u64, 0x0008_1b36u32), (1, 0x0000_1234), (2, 0x0001_1234), (3, u32::MAX), (31, u32::MAX)] {
        assert_eq!(bench.read(PCI_ECAM.start + (device << 15)), id);
        let address = 1 << 31 | (device as u32) << 11;
        assert_eq!(bench.port_read(address, 0, 4), id);
        assert_eq!(bench.port_read(address, 2, 2), id >> 16);
        for function in 1..8 {
            assert_eq!(bench.read(PCI_ECAM.start + (device << 15) + (function << 12)), u32::MAX);
            assert_eq!(bench.port_read(address | (function as u32) << 8, 0, 4), u32::MAX);
        }
    }
    assert_eq!(bench.port_read(1 << 31 | 1 << 16 | 1 << 11, 0, 4), u32::MAX, "another bus");
    assert_eq!(bench.port_read(1 << 11, 0, 4), u32::MAX, "not enabled");
    assert_eq!(bench.read(PCI_ECAM.start + (1 << 15) + 256), 0, "no extended capabilities");
}

#[test]
fn the_address_port_reads_back_as_drivers_probe_it() {
    let bench = bench();
    assert!(bench.ports.write(0xcf8, &0xffff_ffffu32.to_le_bytes()));
    let mut data = [0; 4];
    assert!(bench.ports.read(0xcf8, &mut data));
    assert_eq!(u32::from_le_bytes(data), ADDRESS_WRITABLE);
    // Only a whole word is an address: the reset port 0xcf9 and the like lie within it.
    assert!(bench.ports.write(0xcf9, &[6]));
    assert!(bench.ports.read(0xcf8, &mut data));
    assert_eq!(u32::from_le_bytes(data), ADDRESS_WRITABLE);
}

#[test]
fn an_ecam_access_over_a_functions_end_reads_ones_and_writes_nothing() {
    let bench = bench();
    let end = PCI_ECAM.start + (1 << 15) + 4096;
    let mut data = [0; 8];
    assert!(bench.memory.read(end - 4, &mut data));
    assert_eq!(data, [0xff; 8]);
    assert!(bench.memory.write(end - 4, &[0xff; 8]));
}

#[test]
fn memory_answers_where_its_bar_is_while_decoded() {
    let bench = bench();
    let first = PCI_BARS.start;
    assert_eq!(bench.read(first + 0x10), u32::MAX, "not decoded yet");
    bench.enable(1, None);
    bench.enable(2, None);
    assert_eq!(bench.read(first + 0x10), 0x1010_1010);
    assert!(bench.memory.write(first + 0x1020, &[7]));
    assert_eq!(lock(&bench.functions[1]).wrote, [(0x20, vec![7])]);
    let mut data = [0; 8];
    assert!(bench.memory.read(first + 0xffc, &mut data));
    assert_eq!(data, [0xff; 8], "an access over a BAR's end is nobody's");

    bench.enable(1, Some(first as u32 + 0x10_0000));
    assert_eq!(bench.read(first + 0x10), u32::MAX);
    assert_eq!(bench.read(first + 0x10_0010), 0x1010_1010);
}

#[test]
fn a_bar_outside_the_window_answers_nowhere_and_of_two_in_one_place_the_first_does() {
    let bench = bench();
    bench.enable(2, None);
    for place in [0u32, 0xd000_0000, 0xe000_0000, 0xe0ff_f000, 0xf000_0000, 0xfec0_0000, 0xffff_f000] {
        bench.enable(1, Some(place));
        assert!(!is_in_window(&(place.into(), 0x1000)));
        assert_eq!(bench.read(PCI_BARS.start + 0x1010), 0x1010_1010, "the neighbour answers as before");
    }
    bench.enable(1, Some(PCI_BARS.start as u32 + 0x1000));
    assert!(bench.memory.write(PCI_BARS.start + 0x1020, &[7]));
    assert_eq!(lock(&bench.functions[0]).wrote, [(0x20, vec![7])]);
    assert!(lock(&bench.functions[1]).wrote.is_empty());
    bench.enable(1, Some(PCI_BARS.end as u32 - 0x1000));
    assert_eq!(bench.read(PCI_BARS.end - 4), 0xfcfc_fcfc, "the last place in the window");
}

#[test]
fn the_buss_own_state_is_kept() {
    let bench = bench();
    bench.ports.write(0xcf8, &0x8000_0804u32.to_le_bytes());
    bench.memory.write(PCI_ECAM.start + 0x3c, &[9]);
    let state = bench.root.save();
    let other = self::bench();
    other.root.restore(&state).unwrap();
    assert_eq!(other.root.save(), state);
    let foreign = PciRootState { bridge: vec![0xff; 256], ..state };
    assert!(other.root.restore(&foreign).is_err());
}
