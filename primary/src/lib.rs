//! The epoch loop: run, pause, capture, seal output, resume, send, release

pub mod core;
