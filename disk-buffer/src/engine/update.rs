//! An update of the change log on its way to the medium: its sectors are written, then made durable.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use crate::changes::SectorWrite;
use crate::changes::format::{BITMAP_AT, SECTOR_BYTES};

/// Bytes in one write of neighbouring sectors at most.
const WRITE_BYTES: usize = 64 << 10;

/// An update under way. One call of the system at a time: most updates are one sector, and large ones are one run.
pub(super) struct Update {
    fd: RawFd,
    writes: VecDeque<(u64, Vec<u8>)>,
    done: usize,
    pub(super) in_flight: bool,
}

/// What the system's answer means.
pub(super) enum Went {
    /// There is more to ask.
    More,
    /// It is durable.
    Durable,
    /// It is not, and never will be.
    Failed(i32),
}

impl Update {
    pub(super) fn new(fd: RawFd, sectors: Vec<SectorWrite>) -> Update {
        let mut writes: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        for SectorWrite { number, sector } in sectors {
            let at = BITMAP_AT + u64::from(number) * SECTOR_BYTES as u64;
            match writes.back_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == at && bytes.len() < WRITE_BYTES => {
                    bytes.extend_from_slice(&sector[..])
                }
                _ => writes.push_back((at, sector.to_vec())),
            }
        }
        Update { fd, writes, done: 0, in_flight: false }
    }

    pub(super) fn is_sync(&self) -> bool {
        self.writes.is_empty()
    }

    /// The next thing to ask. What it points to is heap memory of this update that nothing touches until the answer is there.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        self.in_flight = true;
        match self.writes.front() {
            Some((at, bytes)) => {
                let rest = &bytes[self.done..];
                opcode::Write::new(types::Fd(self.fd), rest.as_ptr(), rest.len() as u32).offset(at + self.done as u64).build()
            }
            None => opcode::Fsync::new(types::Fd(self.fd)).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    pub(super) fn took(&mut self, result: i32) -> Went {
        self.in_flight = false;
        if matches!(-result, libc::EINTR | libc::EAGAIN) {
            return Went::More;
        }
        if result < 0 {
            return Went::Failed(-result);
        }
        let Some((_, bytes)) = self.writes.front() else { return Went::Durable };
        if result == 0 {
            return Went::Failed(libc::EIO);
        }
        self.done += result as usize;
        if self.done >= bytes.len() {
            self.writes.pop_front();
            self.done = 0;
        }
        Went::More
    }
}
