//! The built-in guest image: a tiny key-value server that speaks RESP2
