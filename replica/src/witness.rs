//! The standby's own look at the record, before it lets a primary in.
//!
//! Lives here: asking, for a bounded time. Not here: what is right ([`failover::record::agrees`]), nor what becomes of a standby that loses sight of the record later
//! (`failover::core`). Guards no safety property: it keeps a pair from being made that could never fail over, because its nodes were given different arbiters or one
//! does not reach it.

use std::time::{Duration, Instant};

use failover::client::ArbiterClient;
use failover::record::{self, Record};
use failover::{Answer, Request, RequestId};
use types::{Generation, NodeId};

/// For so long a primary waits at the door until the record is seen. Well within its patience ([`super::greet`]), and enough for storage under load; what takes longer is tried again with its
/// next Hello.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before another look at a record that does not agree: a file system's caches may be behind the primary's grant for a moment.
const AGAIN: Duration = Duration::from_millis(100);

/// Reads the record for the greeter.
pub(crate) struct Witness {
    arbiter: ArbiterClient,
    asked: RequestId,
    /// The newest question has no answer yet: storage that hangs is not asked again meanwhile.
    open: bool,
}

impl Witness {
    pub(crate) fn new(arbiter: ArbiterClient) -> Witness {
        Witness { arbiter, asked: 0, open: false }
    }

    /// Whether the record, read here and now, says that `owner` runs the guest in `generation`.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(crate) fn vouches(&mut self, owner: &NodeId, generation: Generation) -> Result<(), String> {
        let until = Instant::now() + LOOK;
        loop {
            let found = match self.look(until) {
                Ok(record) => record::agrees(record.as_ref(), owner, generation).map_err(|why| {
                    format!("the arbiter's record is another here: {why}; give both nodes the same --arbiter, on storage that both see")
                }),
                Err(why) => return Err(format!("this standby cannot read the arbiter's record, so it could never take over: {why}")),
            };
            if found.is_ok() || Instant::now() + AGAIN >= until {
                return found;
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// The record as it is after this call began.
    fn look(&mut self, until: Instant) -> Result<Option<Record>, String> {
        if self.open {
            // Of an earlier call: it may speak of a time before this primary's grant.
            self.answer(until)?;
        }
        self.asked += 1;
        self.open = true;
        self.arbiter.ask(self.asked, Request::Read);
        match self.answer(until)? {
            Answer::Read(record) => Ok(record),
            Answer::Failed { why } => Err(why),
            other => Err(format!("the answer {other:?} does not fit the question")),
        }
    }

    fn answer(&mut self, until: Instant) -> Result<Answer, String> {
        let (_, answer) = self
            .arbiter
            .answers()
            .recv_deadline(until)
            .map_err(|_| format!("no answer within {} ms; see whether the storage of --arbiter hangs", LOOK.as_millis()))?;
        self.open = false;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::{Receiver, unbounded};
    use failover::{Arbiter, ArbiterError, Swap};

    use super::*;

    /// Answers reads with what it is given, and hangs until it is.
    struct Given(Receiver<Result<Option<Record>, ArbiterError>>);

    impl Arbiter for Given {
        fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
            self.0.recv().expect("a test that gives")
        }

        fn swap(&mut self, _: Option<&Record>, _: &Record) -> Result<Swap, ArbiterError> {
            unreachable!("a witness changes nothing")
        }
    }

    fn a() -> NodeId {
        NodeId("a".to_owned())
    }

    fn record(generation: u64) -> Option<Record> {
        Some(Record { generation: Generation(generation), owner: a(), host: None, instance: 1, standby: None, unfenced: Vec::new() })
    }

    #[test]
    fn a_primary_is_vouched_for_by_the_record_as_it_is_now_and_by_nothing_else() {
        let (give, given) = unbounded();
        let mut witness = Witness::new(ArbiterClient::spawn(Box::new(Given(given))).unwrap());

        // The cache is behind once.
        give.send(Ok(None)).unwrap();
        give.send(Ok(record(3))).unwrap();
        assert_eq!(witness.vouches(&a(), Generation(3)), Ok(()));

        (0..20).for_each(|_| give.send(Ok(record(2))).unwrap());
        let told = witness.vouches(&a(), Generation(3)).unwrap_err();
        assert!(told.contains("finds that a owns the guest in generation 2") && told.contains("--arbiter"), "{told}");
    }

    #[test]
    fn storage_that_fails_or_hangs_is_named_and_what_it_says_late_does_not_count() {
        let (give, given) = unbounded();
        let mut witness = Witness::new(ArbiterClient::spawn(Box::new(Given(given))).unwrap());

        give.send(Err(ArbiterError::NoDirectory { path: "/there".into() })).unwrap();
        let told = witness.vouches(&a(), Generation(3)).unwrap_err();
        assert!(told.contains("directory /there of the arbiter"), "{told}");
        for _ in 0..2 {
            let told = witness.vouches(&a(), Generation(3)).unwrap_err();
            assert!(told.contains("no answer within"), "{told}");
        }

        // To the question before, from when the generation was not granted yet; then to this one.
        give.send(Ok(record(2))).unwrap();
        give.send(Ok(record(3))).unwrap();
        assert_eq!(witness.vouches(&a(), Generation(3)), Ok(()));
    }
}
