//! Who may run: roles, failure detection, arbiters
