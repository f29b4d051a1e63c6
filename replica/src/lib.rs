//! The standby: receive, stage, verify, commit, apply, activate
