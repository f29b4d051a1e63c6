//! The standby's image equals the primary's at each epoch's end, whatever the guest writes at whatever moment of the copy.

mod common;

use common::*;
use rand::Rng;
use types::Epoch;

/// Not a multiple of a block, nor of a region.
const BYTES: u64 = 20 * MIB + 3 * 512;

fn differ(ours: &[u8], theirs: &[u8]) -> Option<usize> {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).position(|(a, b)| a != b)
}

/// One life: a guest runs alone, a standby joins in the middle of it, epochs, and then the standby is activated or the link is lost and it joins again.
fn life(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let primary_path = image(directory.path(), "primary", BYTES);
    let standby_path = image(directory.path(), "standby", BYTES);
    let mut guest = Guest::new(vec![0; BYTES as usize], seed);
    let mut standby_options = options(&standby_path);
    if guest.random.random_bool(0.5) {
        // Something old is on it, and may be overwritten.
        std::fs::write(&standby_path, vec![0xa5; BYTES as usize]).unwrap();
        standby_options.overwrite = true;
    }
    let primary = Host::open(&options(&primary_path));
    let standby = Host::open(&standby_options);
    primary.disk.start_primary().unwrap();
    for _ in 0..guest.random.random_range(0..60) {
        guest.act(&primary);
    }
    for link in 0..3 {
        let (_, mut copy) = join(&primary, &standby);
        let mut passes = 0;
        loop {
            for _ in 0..guest.random.random_range(0..4) {
                guest.act(&primary);
            }
            match copy.next_piece().unwrap() {
                Some(piece) => {
                    piece.blocks().for_each(|(number, content)| standby.disk.sync_block(number * 4096, content).unwrap());
                }
                None if passes < 3 => {
                    copy.next_pass().unwrap();
                    passes += 1;
                }
                None => break,
            }
        }
        copy.record(types::Generation(1)).unwrap();
        while let Some(piece) = copy.next_piece().unwrap() {
            piece.blocks().for_each(|(number, content)| standby.disk.sync_block(number * 4096, content).unwrap());
            for _ in 0..guest.random.random_range(0..3) {
                guest.act(&primary);
            }
        }
        for number in 1..=guest.random.random_range(2..6) {
            epoch(&primary, &standby, number);
            let now = guest.model.clone();
            // The guest runs on while the standby applies.
            for _ in 0..guest.random.random_range(0..40) {
                guest.act(&primary);
            }
            assert_eq!(standby.disk.wait_applied(BOUND).unwrap(), Epoch(number));
            assert_eq!(differ(&now, &standby.content()), None, "seed {seed}, link {link}, epoch {number}");
        }
        // The link is lost; what was not committed stays at the primary.
        standby.disk.discard_uncommitted();
        primary.disk.struck_out().unwrap();
        for _ in 0..guest.random.random_range(0..40) {
            guest.act(&primary);
        }
    }
    guest.finish(&primary);
    assert_eq!(differ(&guest.model, &primary.content()), None, "seed {seed}: the primary's own image");
}

#[test]
fn the_standbys_image_equals_the_primarys_at_each_epochs_end() {
    for seed in 0..5 {
        life(seed);
    }
}
