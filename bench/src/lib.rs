//! Benchmarks and their report
