//! The thread that asks the arbiter, so that storage that hangs stalls no heartbeat and no release.
//!
//! Lives here: one thread around one [`Arbiter`], questions in, answers out. Not here: what to ask ([`crate::core`]) and time-outs (the core gives a
//! request up by itself; an answer that comes later is known by its id). Guards S3: every outcome that is not certain is reported as [`Answer::Failed`].

use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::arbiter::{Arbiter, Swap};
use crate::core::{Answer, Request, RequestId};

/// Questions that may wait while one is being asked. The core asks one at a time and gives one up before it asks the next; storage that hangs for
/// longer than this many time-outs loses questions, which counts as "no answer".
const MAX_WAITING: usize = 16;

/// Asks the arbiter from a thread of its own.
#[derive(Debug)]
pub struct ArbiterClient {
    questions: Option<Sender<(RequestId, Request)>>,
    answers: Receiver<(RequestId, Answer)>,
    thread: Option<JoinHandle<()>>,
}

impl ArbiterClient {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn spawn(mut arbiter: Box<dyn Arbiter>) -> std::io::Result<ArbiterClient> {
        let (ask, questions) = bounded::<(RequestId, Request)>(MAX_WAITING);
        let (answer, answers) = bounded(MAX_WAITING);
        let thread = std::thread::Builder::new().name("arbiter".to_owned()).spawn(move || {
            for (id, request) in questions {
                if answer.send((id, put(arbiter.as_mut(), &request))).is_err() {
                    break;
                }
            }
        })?;
        Ok(ArbiterClient { questions: Some(ask), answers, thread: Some(thread) })
    }

    /// Hands a question to the thread. When too many wait already it is dropped: the core's time-out treats that as no answer.
    pub fn ask(&self, id: RequestId, request: Request) {
        if let Some(questions) = &self.questions
            && questions.try_send((id, request)).is_err()
        {
            tracing::warn!(id, "the arbiter has not answered earlier questions: this one is dropped");
        }
    }

    /// Where the answers come.
    #[must_use]
    pub fn answers(&self) -> &Receiver<(RequestId, Answer)> {
        &self.answers
    }
}

impl Drop for ArbiterClient {
    fn drop(&mut self) {
        self.questions = None;
        // A thread that hangs in the storage is left behind: waiting for it would keep the process from ending.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

fn put(arbiter: &mut dyn Arbiter, request: &Request) -> Answer {
    let result = match request {
        Request::Read => arbiter.read().map(Answer::Read),
        Request::Swap { expect, new } => arbiter.swap(expect.as_ref(), new).map(|swap| match swap {
            Swap::Done => Answer::Done,
            Swap::Lost(current) => Answer::Lost(current),
        }),
    };
    result.unwrap_or_else(|error| Answer::Failed { why: error.to_string() })
}
