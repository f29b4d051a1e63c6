//! The standby: receive, stage, verify, commit, apply, activate

pub mod core;
