//! That a medium is full, told once each time.
//!
//! Lives here: when it is told, and how. Not here: who looks and what follows ([`crate::mirror`], [`crate::shared`]).

use std::path::Path;

use types::block::DiskIndex;

use crate::hooks::DiskEvent;

/// Watches one medium.
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    told: bool,
}

impl Fullness {
    /// A look: whether something waits for space now. `remedy` is what makes room on such a medium. The event for the operator, the first time.
    pub(crate) fn look(&mut self, full: bool, disk: DiskIndex, path: &Path, remedy: &str) -> Option<DiskEvent> {
        let told = std::mem::replace(&mut self.told, full);
        match (told, full) {
            (true, false) => {
                tracing::info!(%disk, "there is space again; what waited for it is carried out");
                None
            }
            (false, true) => {
                let text = format!("{disk}: there is no space left for {}: writes that need more wait; {remedy}", path.display());
                tracing::error!(text);
                Some(DiskEvent::Full { disk, text })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_that_is_full_is_told_once_until_there_was_space_again() {
        let mut fullness = Fullness::default();
        let mut told = |full| fullness.look(full, DiskIndex(1), Path::new("/d"), "make room").is_some();
        assert_eq!([false, true, true, false, false, true].map(&mut told), [false, true, false, false, false, true]);
    }
}
