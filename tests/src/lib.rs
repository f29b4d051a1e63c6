//! End-to-end, fault and simulation tests

pub mod e2e;
pub mod sim;

/// A number that whoever runs a test may set in its environment: how often it does something, or from which seed on.
///
/// # Panics
/// It is set, and to something else.
#[must_use]
pub fn asked_for(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number")))
}
