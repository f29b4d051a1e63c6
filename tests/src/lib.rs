//! End-to-end, fault and simulation tests

pub mod e2e;
pub mod sim;
