//! One request, from its first system call to its last: transfers that come up short go on where they stopped, what the medium cannot do is done another way.
//!
//! Not here: the ring. [`Step::entry`] says what to ask next, [`Step::took`] what the answer means.

use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use types_block::REQUEST_BYTES_MAX;

use crate::engine::buffer::Buffer;
use crate::engine::faults::{Asked, Strike};
use crate::engine::{Answer, Job, Op, Reply};
use crate::image::Image;
use ::types::block as types_block;

/// What goes over one system call at most when zeros have to be written.
const ZEROS_PIECE: usize = REQUEST_BYTES_MAX;

enum Work {
    Read {
        offset: u64,
        into: Buffer,
    },
    Write {
        offset: u64,
        data: Data,
    },
    /// fallocate(2) with this mode.
    Range {
        offset: u64,
        len: u64,
        mode: i32,
        discard: bool,
    },
    /// Zeros by hand.
    Zeros {
        offset: u64,
        len: u64,
        zeros: Buffer,
    },
    Sync,
    Nothing,
}

enum Data {
    Shared(Arc<[u8]>),
    Aligned(Buffer),
}

impl std::ops::Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Data::Shared(bytes) => bytes,
            Data::Aligned(buffer) => buffer,
        }
    }
}

/// A request being carried out.
pub(super) struct Step {
    work: Work,
    /// Bytes done.
    done: u64,
    direct: bool,
    reply: Reply,
}

/// What the answer of the system means for the request.
pub(super) enum Took {
    /// There is more to ask: [`Step::entry`] again.
    More,
    /// It is finished.
    Done(Answer),
}

impl Step {
    pub(super) fn new(job: Job, image: &Image) -> Step {
        let Job { op, direct, reply } = job;
        let fits =
            |offset: u64, len: u64| image.direct().is_some_and(|(_, align)| offset.is_multiple_of(align) && len.is_multiple_of(align));
        let (work, direct) = match op {
            Op::Read { offset, len } => (Work::Read { offset, into: Buffer::zeroed(len as usize) }, direct && fits(offset, u64::from(len))),
            Op::Write { offset, data } => {
                let direct = direct && fits(offset, data.len() as u64);
                let data = if direct { Data::Aligned(Buffer::copy_of(&data)) } else { Data::Shared(data) };
                (Work::Write { offset, data }, direct)
            }
            Op::Zero { offset, len, unmap } => {
                let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
                (Work::Range { offset, len, mode: mode | libc::FALLOC_FL_KEEP_SIZE, discard: false }, false)
            }
            Op::Discard { offset, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                (Work::Range { offset, len, mode, discard: true }, false)
            }
            Op::Flush => (Work::Sync, false),
            Op::Barrier => (Work::Nothing, false),
        };
        Step { work, done: 0, direct, reply }
    }

    /// Nothing has to be asked of the system.
    pub(super) fn is_nothing(&self) -> bool {
        match &self.work {
            Work::Nothing => true,
            Work::Read { into, .. } => into.is_empty(),
            Work::Write { data, .. } => data.is_empty(),
            Work::Range { len, .. } | Work::Zeros { len, .. } => *len == 0,
            Work::Sync => false,
        }
    }

    /// What is about to be asked.
    pub(super) fn asked(&self) -> Asked {
        let done = self.done as usize;
        match &self.work {
            Work::Read { offset, into } => Asked::Read(offset + self.done, into.len() - done),
            Work::Write { offset, data } => Asked::Write(offset + self.done, data.len() - done),
            Work::Range { offset, len, .. } => Asked::Zero(*offset, *len),
            Work::Zeros { offset, len, zeros } => Asked::Write(offset + self.done, (len - self.done).min(zeros.len() as u64) as usize),
            Work::Sync | Work::Nothing => Asked::Sync,
        }
    }

    /// The next thing to ask. What it points to lives in this step and does not move (heap memory), and nothing else touches it until the answer is there.
    pub(super) fn entry(&mut self, image: &Image, strike: Strike) -> squeue::Entry {
        let done = self.done as usize;
        let limit = |len: usize| match strike {
            Strike::Short(short) => len.min(short.max(1)),
            Strike::Pass | Strike::Fail(_) => len,
        };
        let fd = match image.direct() {
            Some((fd, align)) if self.direct && self.done.is_multiple_of(align) && !matches!(strike, Strike::Short(_)) => fd,
            _ => image.fd(),
        };
        let fd = types::Fd(fd);
        match &mut self.work {
            Work::Read { offset, into } => {
                let len = limit(into.len() - done) as u32;
                opcode::Read::new(fd, into[done..].as_mut_ptr(), len).offset(*offset + self.done).build()
            }
            Work::Write { offset, data } => {
                let len = limit(data.len() - done) as u32;
                opcode::Write::new(fd, data[done..].as_ptr(), len).offset(*offset + self.done).build()
            }
            Work::Range { offset, len, mode, .. } => {
                opcode::Fallocate::new(types::Fd(image.fd()), *len).offset(*offset).mode(*mode).build()
            }
            Work::Zeros { offset, len, zeros } => {
                let len = limit((*len - self.done).min(zeros.len() as u64) as usize) as u32;
                opcode::Write::new(fd, zeros.as_ptr(), len).offset(*offset + self.done).build()
            }
            Work::Sync | Work::Nothing => opcode::Fsync::new(types::Fd(image.fd())).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    /// Takes the system's answer: bytes, or a negative error number.
    pub(super) fn took(&mut self, result: i32) -> Took {
        if result < 0 {
            return self.failed(-result);
        }
        let len = match &self.work {
            Work::Read { into, .. } => into.len() as u64,
            Work::Write { data, .. } => data.len() as u64,
            Work::Zeros { len, .. } => *len,
            Work::Range { .. } | Work::Sync | Work::Nothing => return Took::Done(Ok(None)),
        };
        if result == 0 {
            // The image has become shorter behind our back, or the medium takes nothing: neither is a success.
            return Took::Done(Err(libc::EIO));
        }
        self.done += u64::from(result.unsigned_abs());
        if self.done < len {
            return Took::More;
        }
        Took::Done(Ok(match &self.work {
            Work::Read { into, .. } => Some(Box::from(&into[..])),
            _ => None,
        }))
    }

    fn failed(&mut self, errno: i32) -> Took {
        if matches!(errno, libc::EINTR | libc::EAGAIN) {
            return Took::More;
        }
        if errno == libc::EINVAL && self.direct {
            // The file system does not do this one directly after all (compressed or inline extents).
            self.direct = false;
            return Took::More;
        }
        if let Work::Range { offset, len, discard, .. } = self.work
            && matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
        {
            // The content of what is discarded does not matter; zeros that were asked for do.
            if discard {
                return Took::Done(Ok(None));
            }
            self.work = Work::Zeros { offset, len, zeros: Buffer::zeroed(len.min(ZEROS_PIECE as u64) as usize) };
            return Took::More;
        }
        Took::Done(Err(errno))
    }

    pub(super) fn is_sync(&self) -> bool {
        matches!(self.work, Work::Sync)
    }

    pub(super) fn into_reply(self) -> Reply {
        self.reply
    }

    /// The reply of a step that the kernel may still be at: its memory is never freed.
    pub(super) fn give_up(self) -> Reply {
        std::mem::forget(self.work);
        self.reply
    }
}
