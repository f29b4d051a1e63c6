//! Where random bytes come from.

use std::io;

/// A source of random bytes, without blocking for longer than it takes to copy them.
pub trait Entropy: Send {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// The system's answer; nothing in `bytes` may then be used.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

/// The host kernel's generator, getrandom(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct HostEntropy;

impl Entropy for HostEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // SAFETY: the pointer and length are those of a slice that lives for the call; getrandom(2) writes at most that many bytes there.
            let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), libc::GRND_NONBLOCK) };
            match usize::try_from(got) {
                Ok(got) => rest = &mut std::mem::take(&mut rest)[got..],
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
