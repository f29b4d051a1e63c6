//! Requests of the guest, checked, and as the engine and the epochs take them. Pure.

use std::sync::Arc;

use types::block::{
    BlockError, BlockInfo, BlockOp, DISCARD_BYTES_MAX, DiskChange, DiskIndex, DiskWrite, REQUEST_BYTES_MAX, SECTOR, ZEROES_BYTES_MAX,
};

use crate::engine::Op;

/// What the device has checked already, checked again: the engine and the log rely on it.
pub(crate) fn check(op: &BlockOp, info: &BlockInfo) -> Result<(), BlockError> {
    let (offset, len, most, writes) = match op {
        BlockOp::Read { offset, len } => (*offset, u64::from(*len), REQUEST_BYTES_MAX as u64, false),
        BlockOp::Write { offset, data } => (*offset, data.len() as u64, REQUEST_BYTES_MAX as u64, true),
        BlockOp::Discard { offset, len } => (*offset, *len, DISCARD_BYTES_MAX, true),
        BlockOp::WriteZeroes { offset, len, .. } => (*offset, *len, ZEROES_BYTES_MAX, true),
        BlockOp::Flush => return Ok(()),
    };
    if writes && info.read_only {
        return Err(BlockError::ReadOnly);
    }
    let inside = offset.checked_add(len).is_some_and(|end| end <= info.bytes);
    if !inside || len > most || !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
        return Err(BlockError::OutOfRange);
    }
    Ok(())
}

pub(crate) fn as_write(disk: DiskIndex, op: &BlockOp) -> Option<DiskWrite> {
    let (offset, change) = match op {
        BlockOp::Write { offset, data } => (*offset, DiskChange::Data(Arc::clone(data))),
        BlockOp::WriteZeroes { offset, len, may_unmap } => (*offset, DiskChange::Zeroes { len: *len, may_unmap: *may_unmap }),
        BlockOp::Discard { offset, len } => (*offset, DiskChange::Discard { len: *len }),
        BlockOp::Read { .. } | BlockOp::Flush => return None,
    };
    Some(DiskWrite { disk, offset, change })
}

pub(crate) fn as_op(op: BlockOp) -> Op {
    match op {
        BlockOp::Read { offset, len } => Op::Read { offset, len },
        BlockOp::Write { offset, data } => Op::Write { offset, data },
        BlockOp::Flush => Op::Flush,
        BlockOp::Discard { offset, len } => Op::Discard { offset, len },
        BlockOp::WriteZeroes { offset, len, may_unmap } => Op::Zero { offset, len, unmap: may_unmap },
    }
}

/// A recorded write, to be carried out.
pub(crate) fn change_as_op(write: DiskWrite) -> Op {
    let offset = write.offset;
    match write.change {
        DiskChange::Data(data) => Op::Write { offset, data },
        DiskChange::Zeroes { len, may_unmap } => Op::Zero { offset, len, unmap: may_unmap },
        DiskChange::Discard { len } => Op::Discard { offset, len },
    }
}
