//! Frames that tell the network where the guest is now.
//!
//! Lives here: building them. Not here: sending; whoever activates a guest writes them to its TAP, as the guest's own frames would be.
//! Switches learn the MAC's new port from any of them; hosts refresh their neighbour tables.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Learned, Mac};

const BROADCAST: Mac = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// Shortest Ethernet frame without its checksum; shorter ones are padded, since the frame may meet a real wire.
const FRAME_LEAST: usize = 60;

/// The frames to send when a guest with card address `mac` has begun to run here: a reverse-ARP broadcast for each MAC the guest used (or
/// for the card's, if it has sent nothing), a gratuitous ARP for each IPv4 address, an unsolicited neighbour advertisement for each IPv6
/// address.
#[must_use]
pub fn announcements(mac: Mac, learned: &Learned) -> Vec<Vec<u8>> {
    let mut frames: Vec<_> = learned.macs().map(reverse_arp).collect();
    if frames.is_empty() {
        frames.push(reverse_arp(mac));
    }
    frames.extend(learned.ipv4().map(|(mac, address)| gratuitous_arp(mac, address)));
    frames.extend(learned.ipv6().map(|(mac, address)| neighbour_advertisement(mac, address)));
    frames
}

fn frame(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&destination[..], &source, &ethertype.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(FRAME_LEAST), 0);
    frame
}

/// Ethernet and IPv4, as ARP and reverse ARP write it.
fn arp_payload(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &sender.0, &sender.1.octets(), &target.0, &target.1.octets()].concat()
}

/// RFC 903 request "who am I": nobody answers, every switch on the way learns.
fn reverse_arp(mac: Mac) -> Vec<u8> {
    let nobody = Ipv4Addr::UNSPECIFIED;
    frame(BROADCAST, mac, 0x8035, &arp_payload(3, (mac, nobody), (mac, nobody)))
}

/// RFC 5227 announcement: a request in which sender and target are the same address.
fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    frame(BROADCAST, mac, 0x0806, &arp_payload(1, (mac, address), ([0; 6], address)))
}

/// RFC 4861, 7.2.6: override flag set, target link-layer address given, to all nodes.
fn neighbour_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    let mut message = [&[136, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &address.octets(), &[TARGET_LINK_LAYER_ADDRESS, 1], &mac].concat();
    let sum = icmpv6_checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    // Hop limit 255: a receiver discards any other.
    let header = [&[0x60, 0, 0, 0, 0, message.len() as u8, 58, 255][..], &address.octets(), &ALL_NODES.octets()].concat();
    frame(ALL_NODES_MAC, mac, 0x86dd, &[header, message].concat())
}

fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let covered = [&source.octets()[..], &destination.octets(), &length, &[0, 0, 0, 58], message].concat();
    let mut sum: u32 = covered.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_guest_of_which_nothing_is_known_is_announced_by_its_mac() {
        let frames = announcements(MAC, &Learned::default());
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][..6], BROADCAST);
        assert_eq!(frames[0][6..12], MAC);
        assert_eq!(frames[0][12..14], [0x80, 0x35]);
        assert_eq!(frames[0].len(), FRAME_LEAST);
    }

    #[test]
    fn the_gratuitous_arp_teaches_what_it_announces() {
        let address = Ipv4Addr::new(10, 0, 0, 2);
        let mut learned = Learned::default();
        learned.observe(&gratuitous_arp(MAC, address));
        assert_eq!(learned.ipv4().collect::<Vec<_>>(), [(MAC, address)]);
        assert_eq!(announcements([2, 9, 9, 9, 9, 9], &learned), [reverse_arp(MAC), gratuitous_arp(MAC, address)]);
    }

    #[test]
    fn an_address_behind_the_guest_is_announced_with_its_own_mac() {
        const OTHER: Mac = [2, 0, 0, 0, 0, 0x77];
        let (own, behind) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3));
        let mut learned = Learned::default();
        learned.observe(&gratuitous_arp(OTHER, behind));
        learned.observe(&gratuitous_arp(MAC, own));
        assert_eq!(
            announcements(MAC, &learned),
            [reverse_arp(OTHER), reverse_arp(MAC), gratuitous_arp(OTHER, behind), gratuitous_arp(MAC, own)]
        );
    }

    #[test]
    fn the_neighbour_advertisement_has_a_checksum_that_sums_to_zero() {
        let address: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let advertisement = neighbour_advertisement(MAC, address);
        assert_eq!(advertisement.len(), 14 + 40 + 32);
        assert_eq!(icmpv6_checksum(address, ALL_NODES, &advertisement[54..]), 0);
        let mut learned = Learned::default();
        learned.observe(&advertisement);
        assert_eq!(learned.ipv6().collect::<Vec<_>>(), [(MAC, address)]);
    }
}
