//! End-to-end, fault and simulation tests
