//! Which host this is, as the arbiter's record has it beside a node's name.
//!
//! Lives here: where the identity comes from. Not here: what follows when two hosts have one name ([`crate::core`]). Guards S3 and S4 on shared disks: an old owner of this node's own name may be another host, and then its death is
//! not certain only because this process lives.

use std::num::NonZeroU64;
use std::path::Path;

use types::HostId;
use xxhash_rust::xxh3::xxh3_64;

/// Where a host keeps a number of its own, which lasts from its installation to the next (machine-id(5)). The second is where it was before systemd.
const PLACES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// Hexadecimal digits in it.
const DIGITS: usize = 32;

/// This host's identity; none when it has no machine-id.
///
/// It is the same after a reboot and for every process of the host, and another on a host that was installed anew. Hosts that were cloned with their machine-id cannot be told apart, as machine-id(5) warns.
#[must_use]
pub fn this_host() -> Option<HostId> {
    PLACES.iter().find_map(|place| std::fs::read_to_string(Path::new(place)).ok().and_then(|text| identity(&text)))
}

/// From what is in the file. Not the number itself: it is not to be shown to others.
fn identity(machine_id: &str) -> Option<HostId> {
    let digits = machine_id.trim();
    // An image that was never started has "uninitialized" there, or nothing.
    let whole =
        digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) && digits.bytes().any(|digit| digit != b'0');
    whole.then(|| {
        HostId(NonZeroU64::new(xxh3_64(format!("lockstep/{}", digits.to_ascii_lowercase()).as_bytes())).unwrap_or(NonZeroU64::MIN))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_makes_an_identity_that_lasts_and_does_not_tell_it() {
        let one = identity("0123456789abcdef0123456789abcdef\n").expect("a machine-id");
        assert_eq!(identity("0123456789ABCDEF0123456789ABCDEF"), Some(one));
        assert_ne!(identity("0123456789abcdef0123456789abcdee"), Some(one));
        // In records: it must not change from release to release.
        assert_eq!(one.to_string(), "bac15de63a95717c");
    }

    #[test]
    fn what_is_no_machine_id_makes_none() {
        for text in ["", "uninitialized\n", "00000000000000000000000000000000", "0123456789abcdef", "g123456789abcdef0123456789abcdef"] {
            assert_eq!(identity(text), None, "{text:?}");
        }
    }
}
