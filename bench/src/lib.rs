//! Benchmarks: what is measured, what it is compared with in the same run, and whether the goal is met.
//!
//! Lives here: the report (rows and pictures) and the measurements, each in a module of its own. Not here: any mechanism that is measured; the
//! benchmarks drive the crates and the program that users drive. Machines are shared and noisy, so every figure stands beside a baseline of the same run.

pub mod chart;
pub mod report;
