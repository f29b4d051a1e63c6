//! The marks: nothing counts as durable before it is, and what is marked during an update goes with the next.

use proptest::prelude::*;

use super::*;
use crate::changes::format::decode_bitmap;
use crate::regions::REGION_BYTES;

const BYTES: u64 = 5000 * REGION_BYTES;

#[test]
fn a_first_write_waits_for_an_update_and_a_second_does_not() {
    let mut marks = Marks::new(RegionSet::new(BYTES));
    assert_eq!(marks.mark(0, 512), Some(1));
    assert_eq!(marks.begin_update().unwrap().len(), 1);
    assert_eq!(marks.mark(512, 512), Some(1), "the same region waits for the update under way");
    assert_eq!(marks.update_durable(), 1);
    assert_eq!(marks.mark(1024, 512), None);
}

#[test]
fn what_is_marked_during_an_update_waits_for_the_next() {
    let mut marks = Marks::new(RegionSet::new(BYTES));
    marks.mark(0, 512);
    marks.begin_update().unwrap();
    assert_eq!(marks.mark(REGION_BYTES, 512), Some(2));
    assert_eq!(marks.begin_update(), None, "one at a time");
    marks.update_durable();
    assert_eq!(marks.mark(REGION_BYTES, 512), Some(2));
    marks.begin_update().unwrap();
    marks.update_durable();
    assert_eq!(marks.mark(REGION_BYTES, 512), None);
}

#[test]
fn a_region_cleared_and_written_again_waits_again() {
    let mut marks = Marks::new(RegionSet::new(BYTES));
    marks.mark(0, 512);
    marks.begin_update().unwrap();
    marks.update_durable();
    marks.clear(0);
    marks.begin_update().unwrap();
    assert_eq!(marks.mark(0, 512), Some(3), "the sector under way says that it is clear");
}

proptest! {
    /// A model of the file: each sector holds what the newest durable update wrote, or, while one is under way, perhaps the new content.
    #[test]
    fn a_write_that_may_go_is_marked_in_the_file_whatever_of_an_update_got_there(steps in prop::collection::vec((0u8..5, 0u64..5000), 1..200)) {
        let mut marks = Marks::new(RegionSet::new(BYTES));
        let mut file: BTreeMap<u32, Sector> = BTreeMap::new();
        let mut under_way: Vec<SectorWrite> = Vec::new();
        for (what, region) in steps {
            match what {
                0 | 1 => {
                    if marks.mark(region * REGION_BYTES, 512).is_none() {
                        // The write goes now: power fails now, with the update under way or without.
                        let number = region as u32 / SECTOR_REGIONS;
                        let old = file.get(&number).copied().unwrap_or(encode_bitmap(&RegionSet::new(BYTES), number));
                        let new = under_way.iter().find(|write| write.number == number).map_or(old, |write| *write.sector);
                        for sector in [old, new] {
                            let mut set = RegionSet::new(BYTES);
                            decode_bitmap(&sector, number, &mut set);
                            prop_assert!(set.contains(region as u32));
                        }
                    }
                }
                2 => marks.clear(region as u32),
                3 => if let Some(writes) = marks.begin_update() {
                    under_way = writes;
                },
                _ => if !under_way.is_empty() {
                    for write in under_way.drain(..) {
                        file.insert(write.number, *write.sector);
                    }
                    marks.update_durable();
                },
            }
        }
    }
}
