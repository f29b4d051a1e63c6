//! `lockstep demo`: a world of namespaces, a primary and a standby as processes, clients, a death in the middle, and the proof that nothing was lost.

pub mod client;
pub mod history;
pub mod namespace;
pub mod resp;
pub mod world;
