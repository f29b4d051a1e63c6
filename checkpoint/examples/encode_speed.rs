//! How long the encoder and the verifier take for a page, by what the page holds. Run with `cargo run --release -p checkpoint --example encode_speed`.
//!
//! To compare with: a plain loopback TCP send costs 1300-1800 ns a page, a memcpy 260-570 ns.

use std::time::Instant;

use checkpoint::{EncodedPart, Encoder, EncoderConfig, EpochInput, GuestMap, Part};
use rand::{Rng, SeedableRng, rngs::StdRng};
use types::{Epoch, Generation, Gfn, PAGE_SIZE};

const SLOT_BYTES: usize = 1 << 20;

struct Case {
    name: &'static str,
    pages: usize,
    epochs: u64,
    change: fn(&mut [u8], &mut StdRng),
}

fn main() {
    let untouched: fn(&mut [u8], &mut StdRng) = |_, _| {};
    let sparse: fn(&mut [u8], &mut StdRng) = |page, rng| {
        for _ in 0..8 {
            let at = rng.random_range(0..PAGE_SIZE);
            page[at] ^= rng.random_range(1..=255u8);
        }
    };
    let fresh: fn(&mut [u8], &mut StdRng) = |page, rng| rng.fill(page);
    println!("{:<44} {:>9} {:>9} {:>9} {:>10}", "pages", "encode", "parse", "memcpy", "wire");
    println!("{:<44} {:>9} {:>9} {:>9} {:>10}", "", "ns/page", "ns/page", "ns/page", "bytes/page");
    for pages in [256, 4096, 32768] {
        let epochs = ((1 << 17) / pages as u64).max(24);
        run(&Case { name: "zero", pages, epochs, change: untouched }, true);
        run(&Case { name: "random, new each epoch", pages, epochs, change: fresh }, false);
        run(&Case { name: "sparse changes (8 bytes scattered)", pages, epochs, change: sparse }, false);
        run(&Case { name: "rewritten with the same content", pages, epochs, change: untouched }, false);
    }
}

fn run(case: &Case, zero: bool) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut arena = vec![0u8; case.pages * PAGE_SIZE];
    if !zero {
        rng.fill(arena.as_mut_slice());
    }
    let gfns: Vec<Gfn> = (0..case.pages as u64).map(Gfn).collect();
    let map = GuestMap::from_regions([(0, arena.len() as u64)]);
    let mut encoder = Encoder::new(EncoderConfig::new(SLOT_BYTES)).expect("a usable slot size");
    let mut part = encoder.part_buffer();
    let mut received = Vec::with_capacity(SLOT_BYTES);
    let mut copy = vec![0u8; arena.len()];
    let (mut encode_ns, mut parse_ns, mut copy_ns, mut wire, mut parts) = (0u128, 0u128, 0u128, 0usize, 0u32);
    // Two epochs in which the cache learns the pages are not counted.
    for epoch in 1..=case.epochs + 2 {
        for page in arena.chunks_exact_mut(PAGE_SIZE) {
            (case.change)(page, &mut rng);
        }
        let counted = epoch > 2;
        let input = EpochInput { generation: Generation(1), epoch: Epoch(epoch), gfns: &gfns, arena: &arena, tail: &[] };
        let mut epoch_parts = encoder.epoch(input);
        loop {
            let start = Instant::now();
            let more = epoch_parts.next_part(&mut part).expect("a possible part");
            let spent = start.elapsed().as_nanos();
            if !more {
                break;
            }
            gather(&part, &arena, &mut received);
            let start = Instant::now();
            Part::parse(&received, &map).expect("our own part");
            if counted {
                parse_ns += start.elapsed().as_nanos();
                encode_ns += spent;
                wire += part.wire_bytes();
                parts += 1;
            }
        }
        drop(epoch_parts);
        let start = Instant::now();
        copy.copy_from_slice(&arena);
        std::hint::black_box(&copy);
        if counted {
            copy_ns += start.elapsed().as_nanos();
        }
    }
    assert!(parts > 0);
    let pages = u128::from(case.epochs) * case.pages as u128;
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>10}",
        format!("{} of {}", case.pages, case.name),
        encode_ns / pages,
        parse_ns / pages,
        copy_ns / pages,
        wire as u128 / pages
    );
}

fn gather(part: &EncodedPart, arena: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for slice in part.slices(arena) {
        out.extend_from_slice(slice);
    }
}
