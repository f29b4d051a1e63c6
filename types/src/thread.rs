//! What a thread on the way of every commit asks of the scheduler: to be woken on time, and before threads that only compute.
//!
//! Not here: which threads those are. Without permission (neither root nor RLIMIT_RTPRIO; `lockstep check` says so) everything works, with longer tails when the host is
//! busy: a spinning vCPU keeps a normal thread waiting for its slice, 8 ms at the median on a busy core.

use nix::libc;

/// How urgent a thread is among Lockstep's own: SCHED_FIFO priorities, all low among the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Heartbeats and decisions: short, and their absence is taken for death.
    Pulse,
    /// Commits and the release of output: short.
    Commit,
    /// Captures, and moving frames for the guest: bounded, and the guest waits for them.
    Capture,
}

/// Asks for timers without slack and for real-time scheduling of the calling thread.
pub fn urgent(urgency: Urgency) {
    precise_timers();
    let priority = match urgency {
        Urgency::Pulse => 4,
        Urgency::Commit => 3,
        Urgency::Capture => 2,
    };
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: sched_setscheduler(2) reads one sched_param, which lives for the call; 0 names the calling thread only.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(?urgency, %error, "no real-time scheduling for this thread");
    }
}

/// Asks the kernel to wake the calling thread within a microsecond of its deadlines instead of 50 (prctl(2), PR_SET_TIMERSLACK).
pub fn precise_timers() {
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        tracing::debug!(%error, "timers stay coarse");
    }
}
