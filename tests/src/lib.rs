//! End-to-end, fault and simulation tests

pub mod sim;
