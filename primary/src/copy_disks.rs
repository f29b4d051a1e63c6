//! The first copy of the disks: what the standby's copies lack, in SYNC parts, while the guest runs.
//!
//! Lives here: the passes over each disk, and the way of a piece into parts. Not here: what has to be copied and what is written meanwhile (`disk-buffer`). Guards S4 and
//! S5 for disks: before the last pass begins every write is recorded for epoch 1, so whatever a pass read too early comes again with that epoch.

use checkpoint::DiskBlock;
use disk_buffer::{CopyPiece, DiskCopy};
use types::Generation;
use types::block::DiskIndex;

use crate::error::PrimaryError;
use crate::shared::Shared;
use crate::sync::{Copying, Parts};

/// Passes at most before recording begins: a guest that writes faster than the link carries leaves a large last pass, during which its writes soon wait for room.
const MAX_PASSES: u32 = 8;
/// So little left is the last pass' business: a few regions.
const SMALL_REST: u64 = 32 << 20;

/// The copies of all disks that a standby needs.
pub(crate) struct DiskCopies {
    copies: Vec<(DiskIndex, DiskCopy)>,
    /// In which the guest runs: only its commits release what is recorded.
    generation: Generation,
}

impl DiskCopies {
    /// Begins them: from here on the disks note what is written.
    pub(crate) fn begin(shared: &Shared, copying: &Copying) -> Result<DiskCopies, PrimaryError> {
        let begun = shared.disks.iter().zip(&copying.plans);
        let copies = begun.map(|(disk, (plan, standby))| Ok((disk.index(), disk.begin_copy(plan, standby)?)));
        Ok(DiskCopies { copies: copies.collect::<Result<_, PrimaryError>>()?, generation: copying.generation })
    }

    /// Copies until little is left. `false`: the link is gone.
    pub(crate) fn bulk(&mut self, parts: &mut Parts<'_>) -> Result<bool, PrimaryError> {
        for pass in 1..=MAX_PASSES {
            if !self.pass(parts)? {
                return Ok(false);
            }
            let mut left = 0;
            for (_, copy) in &mut self.copies {
                left += copy.next_pass()?;
            }
            tracing::info!(pass, blocks = parts.blocks(), left, "copied disks to the standby");
            if left <= SMALL_REST {
                break;
            }
        }
        Ok(true)
    }

    /// Has every further write recorded, and copies what was written until then. `false`: the link is gone.
    pub(crate) fn last(&mut self, parts: &mut Parts<'_>) -> Result<bool, PrimaryError> {
        // What gathered while memory was copied.
        if !self.bulk(parts)? {
            return Ok(false);
        }
        for (_, copy) in &mut self.copies {
            copy.record(self.generation)?;
        }
        let all = self.pass(parts)?;
        if !self.copies.is_empty() {
            tracing::info!(blocks = parts.blocks(), "the disks are copied, and their writes recorded");
        }
        Ok(all)
    }

    fn pass(&mut self, parts: &mut Parts<'_>) -> Result<bool, PrimaryError> {
        for (disk, copy) in &mut self.copies {
            while let Some(piece) = copy.next_piece()? {
                if !put(parts, *disk, &piece)? {
                    return Ok(false);
                }
            }
        }
        parts.flush()
    }
}

/// A piece as blocks, into parts.
fn put(parts: &mut Parts<'_>, disk: DiskIndex, piece: &CopyPiece) -> Result<bool, PrimaryError> {
    for (block, content) in piece.blocks() {
        // The disk-buffer takes no disk that is larger than what a record can name.
        let Some(name) = (DiskBlock { disk, block }).name() else { continue };
        if !parts.put(name, content.unwrap_or_default())? {
            return Ok(false);
        }
    }
    Ok(true)
}
