//! The layout never overlaps, never leaves RAM, and uses what there is.

use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const MIB: u64 = 1 << 20;

fn parts(layout: &Layout) -> Vec<Range> {
    let mut parts = vec![layout.sockets, layout.heap, layout.ledger];
    parts.extend(layout.region.iter().filter(|range| !range.is_empty()));
    parts
}

proptest! {
    #[test]
    fn parts_are_disjoint_aligned_and_in_ram_above_the_image(low_mib in 24u64..3072, high_mib in 0u64..20_000, slack in 0u64..5000) {
        let image_end = 6 * MIB + slack / 4096 * 4096;
        let ram = [
            Range { start: 0, end: 0x9fc00 },
            Range { start: MIB, end: low_mib * MIB + slack },
            Range { start: 4096 * MIB, end: 4096 * MIB + high_mib * MIB },
        ];
        let layout = Layout::plan(&ram, image_end).expect("a plan");
        let parts = parts(&layout);
        for part in &parts {
            prop_assert!(part.start % PAGE == 0 && part.end % PAGE == 0 && part.start >= image_end);
            prop_assert!(ram.iter().any(|range| range.start <= part.start && part.end <= range.end));
        }
        for pair in parts.windows(2) {
            prop_assert!(pair[0].end <= pair[1].start);
        }
        prop_assert!(layout.ledger.len() >= layout.region_pages() * 4);
        let pages = layout.region_pages();
        prop_assert!(layout.page_address(pages).is_none());
        let last = layout.page_address(pages - 1).expect("the last page");
        prop_assert!(ram.iter().any(|range| range.start <= last && last + PAGE <= range.end));
    }
}

#[test]
fn a_guest_of_256_mib_has_all_connections_and_half_its_memory_to_dirty() {
    let layout = Layout::plan(&[Range { start: MIB, end: 256 * MIB }], 6 * MIB).expect("a plan");
    assert_eq!(layout.connections, MOST_CONNECTIONS);
    assert!(layout.region_pages() > 30_000);
    assert!(layout.heap.len() > 64 * MIB);
}

#[test]
fn a_guest_of_16_gib_can_dirty_nearly_all_of_it() {
    let ram = [Range { start: MIB, end: 3072 * MIB }, Range { start: 4096 * MIB, end: (4096 + 13 * 1024) * MIB }];
    let layout = Layout::plan(&ram, 6 * MIB).expect("a plan");
    assert!(layout.region_pages() * PAGE > 15 * 1024 * MIB);
}

#[test]
fn too_little_memory_is_no_plan() {
    assert_eq!(Layout::plan(&[Range { start: MIB, end: 10 * MIB }], 6 * MIB), None);
    assert_eq!(Layout::plan(&[], 6 * MIB), None);
}
