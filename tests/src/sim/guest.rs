//! The model guest: a machine of a few pages, one for each client and one with a counter, so that both a lost and a doubled operation show.

/// Clients of the guest.
pub const CLIENTS: usize = 3;
/// Pages of the guest: one for each client, and the counter.
pub const PAGES: usize = CLIENTS + 1;

/// All of the guest's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// Page c: the number of client c's last operation, and what it was answered. The last page: the counter.
    pub pages: [u64; PAGES],
    /// Which pages were written since the last capture, one bit each.
    pub dirty: u8,
}

/// An answer to a client: operation `seq` of `client` got the counter's `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whose operation.
    pub client: usize,
    /// Which.
    pub seq: u32,
    /// The counter after it.
    pub value: u32,
}

impl Guest {
    /// A client's last operation.
    #[must_use]
    pub fn last(&self, client: usize) -> Answer {
        let page = self.pages[client];
        Answer { client, seq: (page >> 32) as u32, value: page as u32 }
    }

    /// Carries out operation `seq` of `client`: once, however often it is sent. `None`: the one before it is not known here, so state was lost.
    pub fn serve(&mut self, client: usize, seq: u32) -> Option<Answer> {
        let last = self.last(client);
        if seq == last.seq {
            return Some(last);
        }
        if seq != last.seq.wrapping_add(1) {
            return None;
        }
        self.pages[CLIENTS] += 1;
        let value = self.pages[CLIENTS] as u32;
        self.pages[client] = u64::from(seq) << 32 | u64::from(value);
        self.dirty |= 1 << client | 1 << CLIENTS;
        Some(Answer { client, seq, value })
    }
}

impl Answer {
    /// As output bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 9] {
        let mut bytes = [0; 9];
        bytes[0] = self.client as u8;
        bytes[1..5].copy_from_slice(&self.seq.to_le_bytes());
        bytes[5..9].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    /// From output bytes made by [`Answer::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Answer {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Answer { client: usize::from(bytes[0]), seq: word(1), value: word(5) }
    }
}
