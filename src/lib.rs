//! The `lockstep` program as a library, so that tests and benchmarks drive what users drive.
