//! An arbiter on storage that both hosts see: one JSON file, replaced atomically under a lock.

use std::path::PathBuf;

use types::VmId;

/// The arbiter of one VM, in one file. Placeholder of the fields; the operations follow.
#[derive(Debug)]
pub struct FileArbiter {
    #[allow(dead_code)]
    path: PathBuf,
    #[allow(dead_code)]
    vm: VmId,
}
