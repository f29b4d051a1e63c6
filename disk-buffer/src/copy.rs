//! What a joining standby gets of a disk while the guest runs, piece by piece. Not here: how exactly a mirror is copied ([`crate::mirror`]), and that nothing of a shared disk is ([`crate::shared`]).

use types::{Generation, PAGE_SIZE};

use crate::error::DiskError;
use crate::image::is_zero;
use crate::mirror::copy::MirrorCopy;
use crate::shared::primary::SharedCopy;

/// A copy under way. Dropping it does not end it: [`crate::Disk::unlink`] does.
#[derive(Debug)]
pub struct DiskCopy(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    Mirror(MirrorCopy),
    Shared(SharedCopy),
}

impl DiskCopy {
    /// The next piece of this pass; `None` when the pass is over. Waits for the disk.
    ///
    /// # Errors
    /// When the disk cannot be read, or the link has ended.
    pub fn next_piece(&mut self) -> Result<Option<CopyPiece>, DiskError> {
        match &mut self.0 {
            Kind::Mirror(copy) => copy.next_piece(),
            Kind::Shared(copy) => copy.settle().map(|()| None),
        }
    }

    /// Makes what was written since the regions were last handed out the next pass; how many bytes that are. What is left of this pass stays.
    ///
    /// # Errors
    /// [`DiskError::Phase`] when the link has ended or the recording has begun.
    pub fn next_pass(&mut self) -> Result<u64, DiskError> {
        match &mut self.0 {
            Kind::Mirror(copy) => copy.next_pass(),
            Kind::Shared(copy) => copy.is_current().map(|()| 0),
        }
    }

    /// From now on every write is recorded, for epoch 1; what was written before and is not copied is the last pass, to be taken with [`DiskCopy::next_piece`] before epoch 1 is sealed. Returns its bytes. Only commits of `generation`, in which the guest runs now, release what is recorded.
    ///
    /// # Errors
    /// As [`DiskCopy::next_pass`].
    pub fn record(&mut self, generation: Generation) -> Result<u64, DiskError> {
        match &mut self.0 {
            Kind::Mirror(copy) => copy.record(generation),
            Kind::Shared(copy) => copy.record(generation).map(|()| 0),
        }
    }
}

/// Some bytes of the disk.
#[derive(Debug)]
pub struct CopyPiece {
    /// First byte: a multiple of 4096.
    pub offset: u64,
    /// The bytes: up to 1 MiB, whole blocks of 4096 but at the end of the disk.
    pub data: Box<[u8]>,
    /// Zeros need not be sent.
    pub over_zeros: bool,
}

impl CopyPiece {
    /// The blocks to be sent: number, and content, or `None` for zeros. The disk's last block may be short.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, Option<&[u8]>)> {
        let first = self.offset / PAGE_SIZE as u64;
        self.data.chunks(PAGE_SIZE).enumerate().filter_map(move |(index, block)| {
            let content = (!is_zero(block)).then_some(block);
            (content.is_some() || !self.over_zeros).then_some((first + index as u64, content))
        })
    }
}
