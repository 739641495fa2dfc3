//! Questions to the agent of a cell, passed over the cell's watch.
//!
//! A [`Desk`] takes the questions for one stream, [`Questions`] is the stream's side. Both
//! only pass requests and answers on. At most [`MAX_OPEN`] questions wait for their answer;
//! one whose asker is gone counts no more. When the stream ends, all of them fail.

use std::{collections::BTreeMap, sync::Arc};

use proto::policy_v1::{CellError, CellRequest, CellResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Maximum number of open questions of a stream.
pub const MAX_OPEN: usize = 32;

/// Result of a question, as the agent sent it.
pub type Answer = Result<CellResponse, CellError>;

/// Reason why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The stream has ended, or takes no more questions.
    Ended,
    /// [`MAX_OPEN`] questions are open.
    TooMany,
}

#[derive(Debug)]
struct Asked {
    request: CellRequest,
    reply: oneshot::Sender<Answer>,
}

/// Takes questions for a stream. Clones share it.
#[derive(Debug, Clone)]
pub struct Desk {
    asked: mpsc::Sender<Asked>,
    open: Arc<Semaphore>,
}

/// The stream's side; see the module.
#[derive(Debug)]
pub struct Questions {
    asked: mpsc::Receiver<Asked>,
    open: BTreeMap<u64, oneshot::Sender<Answer>>,
    last: u64,
}

/// A question to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Rises within the stream from 1.
    pub id: u64,
    /// The request.
    pub request: CellRequest,
}

/// Creates the two sides of a stream.
#[must_use]
pub fn desk() -> (Desk, Questions) {
    let (sender, asked) = mpsc::channel(MAX_OPEN);
    let desk = Desk { asked: sender, open: Arc::new(Semaphore::new(MAX_OPEN)) };
    (desk, Questions { asked, open: BTreeMap::new(), last: 0 })
}

/// A question that was taken. Dropping it withdraws the question.
#[derive(Debug)]
pub struct Pending {
    reply: oneshot::Receiver<Answer>,
    _open: OwnedSemaphorePermit,
}

impl Desk {
    /// Asks the agent.
    ///
    /// # Errors
    /// The stream has ended, or too many questions are open.
    pub fn ask(&self, request: CellRequest) -> Result<Pending, Failure> {
        let open = Arc::clone(&self.open).try_acquire_owned().map_err(|_| Failure::TooMany)?;
        let (sender, reply) = oneshot::channel();
        self.asked.try_send(Asked { request, reply: sender }).map_err(|error| match error {
            // Withdrawn questions that a stream that does not send still holds.
            mpsc::error::TrySendError::Full(_) => Failure::TooMany,
            mpsc::error::TrySendError::Closed(_) => Failure::Ended,
        })?;
        Ok(Pending { reply, _open: open })
    }
}

impl Pending {
    /// The answer.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn answer(self) -> Result<Answer, Failure> {
        self.reply.await.map_err(|_| Failure::Ended)
    }
}

impl Questions {
    /// The next question to send; pending after [`Self::close`]. Cancel safe.
    pub async fn next(&mut self) -> Question {
        loop {
            match self.asked.recv().await {
                Some(asked) => {
                    if let Some(question) = self.open(asked) {
                        return question;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    /// As [`Self::next`], without waiting.
    pub fn try_next(&mut self) -> Option<Question> {
        loop {
            let asked = self.asked.try_recv().ok()?;
            if let Some(question) = self.open(asked) {
                return Some(question);
            }
        }
    }

    /// `None`: the question was withdrawn.
    fn open(&mut self, asked: Asked) -> Option<Question> {
        let Asked { request, reply } = asked;
        self.open.retain(|_, reply| !reply.is_closed());
        if reply.is_closed() {
            return None;
        }
        self.last += 1;
        self.open.insert(self.last, reply);
        Some(Question { id: self.last, request })
    }

    /// Passes an answer on. False: nobody waits for it.
    pub fn answer(&mut self, id: u64, answer: Answer) -> bool {
        let reply = self.open.remove(&id);
        reply.is_some_and(|reply| reply.send(answer).is_ok())
    }

    /// Takes no more questions, and fails the open ones: the cell can answer no more.
    pub fn close(&mut self) {
        self.asked.close();
        while self.asked.try_recv().is_ok() {}
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CellRequest {
        CellRequest::default()
    }

    #[tokio::test]
    async fn each_question_gets_its_answer() {
        let (desk, mut questions) = desk();
        let (first, second) = (desk.ask(request()).unwrap(), desk.ask(request()).unwrap());
        assert_eq!((questions.next().await.id, questions.try_next().unwrap().id), (1, 2));
        let error = CellError { code: 5, message: "second".to_owned() };
        assert!(questions.answer(2, Err(error.clone())));
        assert!(questions.answer(1, Ok(CellResponse::default())));
        assert!(!questions.answer(1, Ok(CellResponse::default())), "it was answered");
        assert!(!questions.answer(9, Ok(CellResponse::default())), "it was never asked");
        assert_eq!(first.answer().await, Ok(Ok(CellResponse::default())));
        assert_eq!(second.answer().await, Ok(Err(error)));
    }

    #[tokio::test]
    async fn open_questions_are_bounded_and_withdrawn_ones_do_not_count() {
        let (desk, mut questions) = desk();
        let mut pending: Vec<_> = (0..MAX_OPEN).map(|_| desk.ask(request()).unwrap()).collect();
        assert_eq!(desk.ask(request()).unwrap_err(), Failure::TooMany);
        pending.pop();
        assert_eq!(desk.ask(request()).unwrap_err(), Failure::TooMany, "it is in the queue yet");
        let sent = std::iter::from_fn(|| questions.try_next()).count();
        assert_eq!(sent, MAX_OPEN - 1, "the withdrawn one is not sent");
        pending.clear();
        for _ in 0..MAX_OPEN {
            drop(desk.ask(request()).unwrap());
        }
        assert!(questions.try_next().is_none());
        assert!(questions.open.is_empty());
    }

    #[tokio::test]
    async fn the_end_of_the_stream_fails_the_open_questions() {
        let (desk, mut questions) = desk();
        let (sent, queued) = (desk.ask(request()).unwrap(), desk.ask(request()).unwrap());
        questions.next().await;
        questions.close();
        assert_eq!(sent.answer().await, Err(Failure::Ended));
        assert_eq!(queued.answer().await, Err(Failure::Ended));
        assert_eq!(desk.ask(request()).unwrap_err(), Failure::Ended);
        let (desk, questions) = super::desk();
        let pending = desk.ask(request()).unwrap();
        drop(questions);
        assert_eq!(pending.answer().await, Err(Failure::Ended));
    }
}
