//! Receiving until a link ends: the loop that every thread behind a receiver runs. Not here: what is done with what comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::TransportError;

/// How often a wait on a link looks whether the link is still wanted.
pub const LINK_POLL: Duration = Duration::from_millis(20);

/// Hands what `receive` yields to `take`, until the link fails, `take` refuses something (the words say why the link must be dropped), or `gone` is set. Returns
/// the cause, for the operator; `None` when the link is not wanted any more.
pub fn receive_until<T>(
    gone: &AtomicBool,
    mut receive: impl FnMut(Duration) -> Result<Option<T>, TransportError>,
    mut take: impl FnMut(T) -> Result<(), String>,
) -> Option<String> {
    while !gone.load(Ordering::Acquire) {
        match receive(LINK_POLL) {
            Ok(None) => {}
            Ok(Some(item)) => {
                if let Err(cause) = take(item) {
                    return Some(cause);
                }
            }
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::GoneCause;

    #[test]
    fn the_loop_ends_with_the_link_with_a_refusal_and_when_it_is_not_wanted() {
        let gone = AtomicBool::new(false);
        let dead = |_| Err::<Option<u32>, _>(TransportError::PeerGone { cause: GoneCause::Closed });
        assert!(receive_until(&gone, dead, |_| Ok(())).is_some_and(|cause| cause.contains("gone")));

        let mut seen = Vec::new();
        let mut items = 1..;
        let refuse_third = |item: u32| {
            seen.push(item);
            if item == 3 { Err("three".to_owned()) } else { Ok(()) }
        };
        assert_eq!(receive_until(&gone, |_| Ok(items.next()), refuse_third), Some("three".to_owned()));
        assert_eq!(seen, [1, 2, 3]);

        let quit = |_: u32| {
            gone.store(true, Ordering::Release);
            Ok(())
        };
        assert_eq!(receive_until(&gone, |_| Ok(Some(1)), quit), None);
    }
}
