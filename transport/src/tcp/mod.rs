//! The link over TCP with io_uring.
