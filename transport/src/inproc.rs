//! A link inside one process, over memory and channels (tests of the shells and simulation).
