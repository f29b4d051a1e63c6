//! What an epoch is: page encoding, the wire format, staging, end-to-end digests; no I/O
