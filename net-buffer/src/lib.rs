//! Output held back until its epoch commits, released in order and in batches
