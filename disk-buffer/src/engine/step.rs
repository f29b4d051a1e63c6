//! One request, from its first system call to its last: transfers that come up short go on where they stopped, what the medium cannot do is done another way.
//!
//! An image that must never be used through the page cache ([`Image::strict`]) gets nothing but direct requests: what is not aligned reads whole blocks, changes them and writes them back. The queue keeps requests of one
//! block from overtaking each other, so nothing comes in between; that no other node does is the caller's promise.
//!
//! Not here: the ring. [`Step::entry`] says what to ask next, [`Step::took`] what the answer means.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use types_block::REQUEST_BYTES_MAX;

use crate::engine::buffer::Buffer;
use crate::engine::faults::{Asked, Strike};
use crate::engine::{Answer, Job, Op, Reply};
use crate::image::{DIRECT_ALIGN_MAX, Image};
use ::types::block as types_block;

/// What goes over one system call at most when zeros have to be written.
const ZEROS_PIECE: usize = REQUEST_BYTES_MAX;

enum Work {
    /// What is wanted of it: all, unless more had to be read for the alignment.
    Read {
        offset: u64,
        into: Buffer,
        wanted: Range<usize>,
    },
    /// Whole blocks, of which a part becomes something else (zeros without data).
    Change {
        offset: u64,
        blocks: Buffer,
        place: Range<usize>,
        data: Option<Arc<[u8]>>,
        writing: bool,
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
    /// What follows it.
    then: VecDeque<Work>,
    /// Unit of direct requests, where there must not be others.
    strict: Option<u64>,
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
        if let Some(align) = image.strict() {
            let (work, then) = strict(op, align);
            return Step { work, then, strict: Some(align), done: 0, direct: true, reply };
        }
        let (work, direct) = match op {
            Op::Read { offset, len } => (read(offset, len, 1), direct && fits(offset, u64::from(len))),
            Op::Write { offset, data } => {
                let direct = direct && fits(offset, data.len() as u64);
                let data = if direct { Data::Aligned(Buffer::copy_of(&data)) } else { Data::Shared(data) };
                (Work::Write { offset, data }, direct)
            }
            Op::Zero { offset, len, unmap } => (zero_range(offset, len, unmap), false),
            Op::Discard { offset, len } => (discard_range(offset, len), false),
            Op::Flush => (Work::Sync, false),
            Op::Barrier => (Work::Nothing, false),
        };
        Step { work, then: VecDeque::new(), strict: None, done: 0, direct, reply }
    }

    /// Nothing has to be asked of the system.
    pub(super) fn is_nothing(&self) -> bool {
        match &self.work {
            Work::Nothing => true,
            Work::Read { into, .. } => into.is_empty(),
            Work::Change { place, .. } => place.is_empty(),
            Work::Write { data, .. } => data.is_empty(),
            Work::Range { len, .. } | Work::Zeros { len, .. } => *len == 0,
            Work::Sync => false,
        }
    }

    /// What is about to be asked.
    pub(super) fn asked(&self) -> Asked {
        let done = self.done as usize;
        match &self.work {
            Work::Read { offset, into, .. } => Asked::Read(offset + self.done, into.len() - done),
            Work::Change { offset, blocks, writing: false, .. } => Asked::Read(offset + self.done, blocks.len() - done),
            Work::Change { offset, blocks, writing: true, .. } => Asked::Write(offset + self.done, blocks.len() - done),
            Work::Write { offset, data } => Asked::Write(offset + self.done, data.len() - done),
            Work::Range { offset, len, .. } => Asked::Zero(*offset, *len),
            Work::Zeros { offset, len, zeros } => Asked::Write(offset + self.done, (len - self.done).min(zeros.len() as u64) as usize),
            Work::Sync | Work::Nothing => Asked::Sync,
        }
    }

    /// The next thing to ask. What it points to lives in this step and does not move (heap memory), and nothing else touches it until the answer is there.
    pub(super) fn entry(&mut self, image: &Image, strike: Strike) -> squeue::Entry {
        let done = self.done as usize;
        let unit = self.strict.unwrap_or(1) as usize;
        let limit = |len: usize| match strike {
            Strike::Short(short) => len.min((short / unit * unit).max(unit)),
            Strike::Pass | Strike::Fail(_) => len,
        };
        let fd = match image.direct() {
            Some((fd, _)) if self.strict.is_some() => fd,
            Some((fd, align)) if self.direct && self.done.is_multiple_of(align) && !matches!(strike, Strike::Short(_)) => fd,
            _ => image.fd(),
        };
        let fd = types::Fd(fd);
        match &mut self.work {
            Work::Read { offset, into, .. } | Work::Change { offset, blocks: into, writing: false, .. } => {
                let len = limit(into.len() - done) as u32;
                opcode::Read::new(fd, into[done..].as_mut_ptr(), len).offset(*offset + self.done).build()
            }
            Work::Change { offset, blocks, writing: true, .. } => {
                let len = limit(blocks.len() - done) as u32;
                opcode::Write::new(fd, blocks[done..].as_ptr(), len).offset(*offset + self.done).build()
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
            Work::Change { blocks, .. } => blocks.len() as u64,
            Work::Write { data, .. } => data.len() as u64,
            Work::Zeros { len, .. } => *len,
            Work::Range { .. } | Work::Sync | Work::Nothing => return self.next(),
        };
        let unit = self.strict.unwrap_or(1);
        let went = u64::from(result.unsigned_abs());
        // A direct request goes on at a multiple of its unit.
        let went = if self.done + went < len { went / unit * unit } else { went };
        if went == 0 {
            // The image has become shorter behind our back, or the medium takes nothing: neither is a success.
            return Took::Done(Err(libc::EIO));
        }
        self.done += went;
        if self.done < len {
            return Took::More;
        }
        match &mut self.work {
            Work::Read { into, wanted, .. } => Took::Done(Ok(Some(Box::from(&into[wanted.clone()])))),
            Work::Change { blocks, place, data, writing, .. } if !*writing => {
                match data {
                    Some(data) => blocks[place.clone()].copy_from_slice(data),
                    None => blocks[place.clone()].fill(0),
                }
                *writing = true;
                self.done = 0;
                Took::More
            }
            _ => self.next(),
        }
    }

    /// What follows, if anything does.
    fn next(&mut self) -> Took {
        self.done = 0;
        match self.then.pop_front() {
            Some(work) => {
                self.work = work;
                Took::More
            }
            None => Took::Done(Ok(None)),
        }
    }

    fn failed(&mut self, errno: i32) -> Took {
        if matches!(errno, libc::EINTR | libc::EAGAIN) {
            return Took::More;
        }
        if errno == libc::EINVAL && self.direct && self.strict.is_none() {
            // The file system does not do this one directly after all (compressed or inline extents).
            self.direct = false;
            return Took::More;
        }
        if let Work::Range { offset, len, discard, .. } = self.work
            && matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
        {
            // The content of what is discarded does not matter; zeros that were asked for do.
            if discard {
                return self.next();
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

fn zero_range(offset: u64, len: u64, unmap: bool) -> Work {
    let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
    Work::Range { offset, len, mode: mode | libc::FALLOC_FL_KEEP_SIZE, discard: false }
}

fn discard_range(offset: u64, len: u64) -> Work {
    Work::Range { offset, len, mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, discard: true }
}

/// A read of a range in whole units.
fn read(offset: u64, len: u32, unit: u64) -> Work {
    let (start, end) = (offset / unit * unit, (offset + u64::from(len)).next_multiple_of(unit));
    let from = (offset - start) as usize;
    Work::Read { offset: start, into: Buffer::zeroed((end - start) as usize), wanted: from..from + len as usize }
}

/// Changes a range, in whole units: to these bytes, or to zeros.
fn change(range: Range<u64>, data: Option<Arc<[u8]>>, unit: u64) -> Work {
    let (start, end) = (range.start / unit * unit, range.end.next_multiple_of(unit));
    let aligned = start == range.start && end == range.end;
    match data {
        Some(data) if aligned => Work::Write { offset: start, data: Data::Aligned(Buffer::copy_of(&data)) },
        None if aligned => Work::Write { offset: start, data: Data::Aligned(Buffer::zeroed((end - start) as usize)) },
        data => {
            let place = (range.start - start) as usize..(range.end - start) as usize;
            Work::Change { offset: start, blocks: Buffer::zeroed((end - start) as usize), place, data, writing: false }
        }
    }
}

/// A request of nothing but direct calls of this unit.
fn strict(op: Op, unit: u64) -> (Work, VecDeque<Work>) {
    let mut works = VecDeque::new();
    match op {
        Op::Read { offset, len } => works.push_back(read(offset, len, unit)),
        Op::Write { offset, data } => works.push_back(change(offset..offset + data.len() as u64, Some(data), unit)),
        Op::Zero { offset, len, unmap } => {
            // Whole blocks of any file system: where it has to zero a part of one itself, it does so in the page cache.
            let (inner, edges) = whole_blocks(offset, len);
            works.extend(edges.into_iter().filter(|edge| !edge.is_empty()).map(|edge| change(edge, None, unit)));
            if !inner.is_empty() {
                works.push_back(zero_range(inner.start, inner.end - inner.start, unmap));
            }
        }
        Op::Discard { offset, len } => {
            let (inner, _) = whole_blocks(offset, len);
            works.push_back(discard_range(inner.start, inner.end.saturating_sub(inner.start)));
        }
        Op::Flush => works.push_back(Work::Sync),
        Op::Barrier => {}
    }
    let first = works.pop_front().unwrap_or(Work::Nothing);
    (first, works)
}

/// The whole blocks within a range, and what is left of it before and after.
fn whole_blocks(offset: u64, len: u64) -> (Range<u64>, [Range<u64>; 2]) {
    let (end, grain) = (offset + len, DIRECT_ALIGN_MAX);
    let (first, last) = (offset.next_multiple_of(grain), end / grain * grain);
    if first >= last { (first..first, [offset..end, end..end]) } else { (first..last, [offset..first, last..end]) }
}
