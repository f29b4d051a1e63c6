//! Which addresses the guest uses, learned from what it sends.
//!
//! Lives here: a small table filled from ARP, neighbour discovery and IPv4 sources. Not here: what is done with it (announce). The table
//! is part of the saved state, so that a standby can announce a guest that it never saw send. Guards S7: the frames are the guest's, so
//! nothing here trusts a length.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::Mac;

/// Addresses remembered of each kind. A guest with more is announced by the eight it used last.
pub const LEARNED_MAX: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERNET_HEADER: usize = 14;
const IPV6_HEADER: usize = 40;
const NEXT_HEADER_ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// What is known of the guest's addresses. Each goes with the MAC it was used with: a guest that bridges for others has several, and to
/// announce an address with the wrong one would cut its owner off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    // Most recently used last, in each.
    macs: Vec<Mac>,
    ipv4: Vec<(Mac, Ipv4Addr)>,
    ipv6: Vec<(Mac, Ipv6Addr)>,
    // Source of an IPv4 packet. It need not be the guest's own (the guest may be a router), so it counts only while ARP told nothing.
    ipv4_source: Option<(Mac, Ipv4Addr)>,
}

impl Learned {
    /// Looks at a frame the guest sent.
    pub fn observe(&mut self, frame: &[u8]) {
        let Some(source) = field::<6>(frame, 6).filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]) else {
            return;
        };
        remember(&mut self.macs, source);
        match field::<2>(frame, 12).map(u16::from_be_bytes) {
            Some(ETHERTYPE_ARP) => self.observe_arp(source, &frame[ETHERNET_HEADER..]),
            Some(ETHERTYPE_IPV4) => self.observe_ipv4(source, &frame[ETHERNET_HEADER..]),
            Some(ETHERTYPE_IPV6) => self.observe_ipv6(source, &frame[ETHERNET_HEADER..]),
            _ => {}
        }
    }

    fn observe_arp(&mut self, source: Mac, packet: &[u8]) {
        // Ethernet and IPv4, and the sender speaks for itself.
        if field(packet, 0) != Some([0, 1, 8, 0, 6, 4]) || field(packet, 8) != Some(source) {
            return;
        }
        if let Some(sender) = field::<4>(packet, 14).map(Ipv4Addr::from).filter(is_host_v4) {
            remember(&mut self.ipv4, (source, sender));
        }
    }

    fn observe_ipv4(&mut self, source: Mac, packet: &[u8]) {
        if packet.first().is_none_or(|first| first >> 4 != 4) {
            return;
        }
        let Some(sender) = field::<4>(packet, 12).map(Ipv4Addr::from).filter(is_host_v4) else {
            return;
        };
        if self.ipv4.contains(&(source, sender)) {
            remember(&mut self.ipv4, (source, sender));
        } else {
            self.ipv4_source = Some((source, sender));
        }
    }

    fn observe_ipv6(&mut self, source: Mac, packet: &[u8]) {
        if packet.first().is_none_or(|first| first >> 4 != 6) || packet.get(6) != Some(&NEXT_HEADER_ICMPV6) {
            return;
        }
        let address = match packet.get(IPV6_HEADER) {
            Some(&NEIGHBOUR_SOLICITATION) => field::<16>(packet, 8),
            Some(&NEIGHBOUR_ADVERTISEMENT) => field::<16>(packet, IPV6_HEADER + 8),
            _ => None,
        };
        if let Some(address) = address.map(Ipv6Addr::from).filter(|it| !it.is_unspecified() && !it.is_multicast() && !it.is_loopback()) {
            remember(&mut self.ipv6, (source, address));
        }
    }

    /// The source addresses of the guest's frames.
    pub fn macs(&self) -> impl Iterator<Item = Mac> + '_ {
        self.macs.iter().copied()
    }

    /// The guest's IPv4 addresses: those it spoke ARP for; or, if there is none, the source of its latest IPv4 packet.
    pub fn ipv4(&self) -> impl Iterator<Item = (Mac, Ipv4Addr)> + '_ {
        let fallback = self.ipv4_source.filter(|_| self.ipv4.is_empty());
        self.ipv4.iter().copied().chain(fallback)
    }

    /// The guest's IPv6 addresses: those it spoke neighbour discovery for.
    pub fn ipv6(&self) -> impl Iterator<Item = (Mac, Ipv6Addr)> + '_ {
        self.ipv6.iter().copied()
    }

    /// The bound holds for a table from another host, too.
    pub(crate) fn is_bounded(&self) -> bool {
        self.macs.len().max(self.ipv4.len()).max(self.ipv6.len()) <= LEARNED_MAX
    }
}

fn is_host_v4(address: &Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_broadcast() || address.is_loopback())
}

/// Moves or adds `address` to the end, at the expense of the one used longest ago.
fn remember<A: PartialEq>(table: &mut Vec<A>, address: A) {
    if table.last() == Some(&address) {
        return;
    }
    table.retain(|known| *known != address);
    if table.len() >= LEARNED_MAX {
        table.remove(0);
    }
    table.push(address);
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &MAC, &kind.to_be_bytes(), payload].concat()
    }

    fn arp(sender: [u8; 4], hardware: Mac) -> Vec<u8> {
        ethernet(ETHERTYPE_ARP, &[&[0, 1, 8, 0, 6, 4, 0, 1][..], &hardware, &sender, &[0; 6], &[10, 0, 0, 1]].concat())
    }

    fn ipv4(sender: [u8; 4]) -> Vec<u8> {
        ethernet(ETHERTYPE_IPV4, &[&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0][..], &sender, &[10, 0, 0, 1]].concat())
    }

    #[test]
    fn an_address_the_guest_speaks_arp_for_is_learned() {
        let mut learned = Learned::default();
        learned.observe(&arp([10, 0, 0, 2], MAC));
        assert_eq!(learned.macs().collect::<Vec<_>>(), [MAC]);
        assert_eq!(learned.ipv4().collect::<Vec<_>>(), [(MAC, Ipv4Addr::new(10, 0, 0, 2))]);
    }

    #[test]
    fn a_probe_and_an_answer_on_behalf_of_another_teach_nothing() {
        let mut learned = Learned::default();
        learned.observe(&arp([0, 0, 0, 0], MAC));
        learned.observe(&arp([10, 0, 0, 3], [2, 0, 0, 0, 0, 1]));
        assert_eq!(learned.ipv4().count(), 0);
    }

    #[test]
    fn a_packet_source_counts_only_while_arp_told_nothing() {
        let mut learned = Learned::default();
        learned.observe(&ipv4([192, 0, 2, 7]));
        assert_eq!(learned.ipv4().collect::<Vec<_>>(), [(MAC, Ipv4Addr::new(192, 0, 2, 7))]);
        learned.observe(&arp([10, 0, 0, 2], MAC));
        assert_eq!(learned.ipv4().collect::<Vec<_>>(), [(MAC, Ipv4Addr::new(10, 0, 0, 2))]);
    }

    #[test]
    fn the_table_keeps_the_addresses_used_last() {
        let mut learned = Learned::default();
        for host in 1..=20 {
            learned.observe(&arp([10, 0, 0, 1], MAC));
            learned.observe(&arp([10, 0, 1, host], MAC));
        }
        let known: Vec<_> = learned.ipv4().collect();
        assert_eq!(known.len(), LEARNED_MAX);
        assert!(known.contains(&(MAC, Ipv4Addr::new(10, 0, 0, 1))));
        assert!(known.contains(&(MAC, Ipv4Addr::new(10, 0, 1, 20))));
        assert!(learned.is_bounded());
    }

    #[test]
    fn neighbour_discovery_teaches_the_ipv6_address() {
        let own: Ipv6Addr = "fe80::9".parse().unwrap();
        let other: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let header = |source: Ipv6Addr| {
            [&[0x60, 0, 0, 0, 0, 24, NEXT_HEADER_ICMPV6, 255][..], &source.octets(), &Ipv6Addr::LOCALHOST.octets()].concat()
        };
        let solicitation = [&header(own)[..], &[NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0], &[0; 16]].concat();
        let advertisement = [&header(own)[..], &[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0], &other.octets()].concat();
        let mut learned = Learned::default();
        learned.observe(&ethernet(ETHERTYPE_IPV6, &solicitation));
        learned.observe(&ethernet(ETHERTYPE_IPV6, &advertisement));
        assert_eq!(learned.ipv6().collect::<Vec<_>>(), [(MAC, own), (MAC, other)]);
    }

    #[test]
    fn any_prefix_of_any_frame_is_survived() {
        for frame in [arp([10, 0, 0, 2], MAC), ipv4([10, 0, 0, 2]), ethernet(ETHERTYPE_IPV6, &[0x60; 90])] {
            for length in 0..frame.len() {
                Learned::default().observe(&frame[..length]);
            }
        }
    }
}
