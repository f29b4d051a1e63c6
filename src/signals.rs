//! Ctrl-C and SIGTERM as a flag that whoever waits looks at.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static SHUTDOWN: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    SHUTDOWN.store(true, Ordering::Relaxed);
}

/// Turns SIGINT and SIGTERM into the returned flag. A second SIGINT ends the process at once, should the first not be heeded; what it leaves
/// behind is then only a directory in TMPDIR, since children and namespaces go with the process.
///
/// # Errors
/// The kernel refuses the handlers.
pub fn shutdown_flag() -> io::Result<&'static AtomicBool> {
    let plain = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    let once = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESETHAND, SigSet::empty());
    // SAFETY: the handler does nothing but store to an atomic, which is async-signal-safe.
    unsafe {
        sigaction(Signal::SIGINT, &once)?;
        sigaction(Signal::SIGTERM, &plain)?;
    }
    Ok(&SHUTDOWN)
}
