//! The first bytes on every connection: who is there, which version, which of a link's two connections, which session.
//!
//! 32 bytes, little endian, sent by the connecting end and answered by the listening end with the same layout:
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic `LOCKSTEP` |
//! | 8..10 | version of the link protocol |
//! | 10 | kind: 1 control, 2 data |
//! | 11 | status: 0 from the connecting end and in an acceptance, else the reason of a refusal |
//! | 12..16 | zero |
//! | 16..32 | session id: random, made by the connecting end for its control connection; the data connection presents the same |
//!
//! Not here: sockets. Guards S7: nothing behind these bytes is looked at before they are right.

/// Version of everything the link itself puts on the wire: preamble, frames, credits.
pub const LINK_VERSION: u16 = 1;

/// Length of a preamble, bytes.
pub(crate) const PREAMBLE_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"LOCKSTEP";

/// Random number that ties a link's two connections together.
pub(crate) type SessionId = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Control = 1,
    Data = 2,
}

/// Why a listener refuses, or that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Accepted = 0,
    OtherVersion = 1,
    UnknownSession = 2,
    Busy = 3,
}

impl Status {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Status::Accepted => "accepted",
            Status::OtherVersion => "it speaks another version",
            Status::UnknownSession => "it knows no link with this session; the link was closed or refused meanwhile",
            Status::Busy => "too many links wait to be accepted there; try again",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub kind: Kind,
    pub status: Status,
    pub session: SessionId,
}

impl Preamble {
    pub(crate) fn encode(self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&LINK_VERSION.to_le_bytes());
        bytes[10] = self.kind as u8;
        bytes[11] = self.status as u8;
        bytes[16..32].copy_from_slice(&self.session);
        bytes
    }
}

/// What the bytes received so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Right so far, and not complete.
    NeedMore,
    /// Complete and right.
    Good(Preamble),
    /// Another version of this protocol.
    OtherVersion(u16),
    /// Not this protocol; what was seen.
    Foreign(String),
}

/// Judges the first bytes of a connection, as early as they can be judged.
pub(crate) fn judge(bytes: &[u8]) -> Verdict {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        return Verdict::Foreign(format!("it starts with \"{}\"", bytes[..seen].escape_ascii()));
    }
    if bytes.len() < 10 {
        return Verdict::NeedMore;
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != LINK_VERSION {
        return Verdict::OtherVersion(version);
    }
    if bytes.len() < PREAMBLE_BYTES {
        return Verdict::NeedMore;
    }
    let kind = match bytes[10] {
        1 => Kind::Control,
        2 => Kind::Data,
        other => return Verdict::Foreign(format!("connection kind {other} does not exist")),
    };
    let status = match bytes[11] {
        0 => Status::Accepted,
        1 => Status::OtherVersion,
        2 => Status::UnknownSession,
        3 => Status::Busy,
        other => return Verdict::Foreign(format!("status {other} does not exist")),
    };
    if bytes[12..16] != [0; 4] {
        return Verdict::Foreign("reserved bytes are not zero".into());
    }
    let mut session = [0; 16];
    session.copy_from_slice(&bytes[16..32]);
    Verdict::Good(Preamble { kind, status, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_as_documented() {
        let session = *b"0123456789abcdef";
        let bytes = Preamble { kind: Kind::Data, status: Status::Busy, session }.encode();
        assert_eq!(&bytes, b"LOCKSTEP\x01\x00\x02\x03\0\0\0\x000123456789abcdef");
        assert_eq!(judge(&bytes), Verdict::Good(Preamble { kind: Kind::Data, status: Status::Busy, session }));
    }

    #[test]
    fn every_prefix_is_judged_as_early_as_possible() {
        let bytes = Preamble { kind: Kind::Control, status: Status::Accepted, session: [7; 16] }.encode();
        for end in 0..bytes.len() {
            assert_eq!(judge(&bytes[..end]), Verdict::NeedMore, "{end}");
        }
        assert!(matches!(judge(b"G"), Verdict::Foreign(_)));
        assert!(matches!(judge(b"LOCKSTER"), Verdict::Foreign(_)));
        assert_eq!(judge(b"LOCKSTEP\x02\x01"), Verdict::OtherVersion(258));
    }

    #[test]
    fn no_single_flipped_bit_before_the_session_is_taken_for_good_control() {
        let good = Preamble { kind: Kind::Control, status: Status::Accepted, session: [7; 16] };
        for bit in 0..16 * 8 {
            let mut bytes = good.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(judge(&bytes), Verdict::Good(good));
        }
    }
}
