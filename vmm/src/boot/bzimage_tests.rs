//! Setup headers that are good, hostile and truncated.

use super::{super::places::EXTENDED_START, *};

const MIB: u64 = 1 << 20;

/// A small image with a header of protocol 2.15, as a current kernel has it.
fn image() -> Vec<u8> {
    let mut image = vec![0u8; 2048 + 4096];
    image[HEADER_AT] = 3;
    image[0x1f4..0x1f8].copy_from_slice(&(4096u32 / 16).to_le_bytes());
    image[0x201] = 0x6a;
    image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = LOADED_HIGH;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x230..0x234].copy_from_slice(&(2 * MIB as u32).to_le_bytes());
    image[0x234] = 1;
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&(16 * MIB).to_le_bytes());
    image[0x260..0x264].copy_from_slice(&(40 * MIB as u32).to_le_bytes());
    image
}

fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn a_good_header_is_read() {
    assert!(is_one(&image()));
    let header = Header::parse(&image()).expect("good");
    assert_eq!((header.payload_at, header.preferred, header.init_size), (2048, 16 * MIB, 40 * MIB));
    assert_eq!((header.cmdline_max, header.initrd_end()), (2047, 1 << 31));
}

#[test]
fn headers_that_cannot_be_booted_are_refused_by_what_is_wrong_with_them() {
    let reason = |image: &[u8]| Header::parse(image).expect_err("must be refused");
    assert!(reason(&image()[..0x280]).contains("truncated"));
    assert!(reason(&image()[..4000]).contains("truncated: 4000 of 6144"));
    assert!(reason(&changed(0x206, &0x204u16.to_le_bytes())).contains("2.04"));
    assert!(reason(&changed(0x211, &[0])).contains("zImage"));
    assert!(reason(&changed(0x236, &[0])).contains("64-bit"));
    assert!(reason(&changed(0x1f4, &[0; 4])).contains("nothing to load"));
    assert!(reason(&changed(HEADER_AT, &[255])).contains("nothing to load"));
    assert!(reason(&changed(0x230, &3u32.to_le_bytes())).contains("alignment"));
    assert!(reason(&changed(0x230, &[0; 4])).contains("alignment"));
    assert!(reason(&changed(0x1f4, &[0xff; 4])).contains("truncated"));
}

#[test]
fn a_kernel_goes_where_it_prefers_or_is_refused_with_the_memory_it_needs() {
    let file = image();
    let header = Header::parse(&file).expect("good");
    assert_eq!(header.place(&file, 64 * MIB), Ok(16 * MIB));
    // It would fit at 2 MiB, and move itself up to 16 MiB, where it does not.
    assert!(matches!(header.place(&file, 48 * MIB), Err(Unfit::TooLarge(why)) if why.contains("56 MiB")));
    // Addresses that a hostile header may ask for: the legacy hole, beyond the slots, above 4 GiB, and sums that overflow.
    for preferred in [0, 0x8000, 1 << 40, 5 << 30, u64::MAX] {
        let hostile = Header { preferred, ..header };
        assert!(matches!(hostile.place(&file, 6 << 30), Err(Unfit::Bad(_))), "{preferred:#x}");
    }
}

#[test]
fn whatever_the_header_says_ends_in_an_answer() {
    use proptest::prelude::*;
    proptest!(|(at in HEADER_AT..LOOKED_AT, junk in proptest::collection::vec(any::<u8>(), 1..16), cut in 0usize..6144)| {
        let mut file = image();
        let end = (at + junk.len()).min(file.len());
        file[at..end].copy_from_slice(&junk[..end - at]);
        file.truncate(cut.max(LOOKED_AT - 10));
        if let Ok(header) = Header::parse(&file)
            && let Ok(address) = header.place(&file, 64 * MIB)
        {
            prop_assert!((EXTENDED_START..64 * MIB).contains(&address));
        }
    });
}
