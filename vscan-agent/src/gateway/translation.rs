//! How the network translates our own connections: asked of the supervisor, for conntrack answers to
//! CAP_NET_ADMIN only.
//!
//! An active FTP data connection has to be announced with an address by which the server reaches us; behind masquerade
//! or another SNAT no routing table knows it, but conntrack knows how it has translated the dialogue itself.

use crate::supervisor::channel::ToSupervisor;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Questions that may wait for the supervisor; sessions that ask more wait for their turn.
const WAITING: usize = 256;

/// An answer takes a system call of the supervisor; while it is busy with other things, or gone, nobody waits for it for
/// longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection of ours, and whom the answer goes to.
#[derive(Debug)]
pub(super) struct Question {
    local: SocketAddr,
    peer: SocketAddr,
    answer: oneshot::Sender<Option<IpAddr>>,
}

/// Where sessions ask.
#[derive(Debug, Default)]
pub struct Translation(OnceLock<mpsc::Sender<Question>>);

impl Translation {
    /// The questions, for whoever speaks with the supervisor. Only the first call gives those that are asked.
    pub(super) fn questions(&self) -> mpsc::Receiver<Question> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let _ = self.0.set(sender);
        receiver
    }

    /// The address by which `peer` knows the local end of our connection to it; `None` where that is not known.
    pub async fn known_as(&self, local: SocketAddr, peer: SocketAddr) -> Option<IpAddr> {
        let (answer, known) = oneshot::channel();
        let question = Question { local, peer, answer };
        let asked = async {
            self.0.get()?.send(question).await.ok()?;
            known.await.ok()?
        };
        timeout(PATIENCE, asked).await.ok()?
    }
}

/// The questions that are with the supervisor.
#[derive(Debug, Default)]
pub(super) struct Asked {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Option<IpAddr>>>,
}

impl Asked {
    /// Notes a question; the message that asks it.
    pub(super) fn ask(&mut self, question: Question) -> ToSupervisor {
        // Who has lost patience does not listen any more.
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.last = self.last.wrapping_add(1);
        self.waiting.insert(self.last, question.answer);
        ToSupervisor::KnownAs { question: self.last, local: question.local, peer: question.peer }
    }

    /// Passes an answer on.
    pub(super) fn answered(&mut self, question: u64, address: Option<IpAddr>) {
        if let Some(answer) = self.waiting.remove(&question) {
            let _ = answer.send(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_answer_finds_its_question() {
        let translation = Translation::default();
        let local: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        let peer: SocketAddr = "192.0.2.1:21".parse().unwrap();
        assert_eq!(translation.known_as(local, peer).await, None, "nobody answers");
        let mut questions = translation.questions();
        let (first, second, ()) = tokio::join!(
            translation.known_as(local, peer),
            translation.known_as(peer, local),
            async {
                let mut asked = Asked::default();
                let mut messages = Vec::new();
                for _ in 0..2 {
                    messages.push(asked.ask(questions.recv().await.unwrap()));
                }
                for message in messages.into_iter().rev() {
                    let ToSupervisor::KnownAs { question, local, .. } = message else { panic!() };
                    asked.answered(question, Some(local.ip()));
                    asked.answered(question, None);
                }
            }
        );
        assert_eq!((first, second), (Some(local.ip()), Some(peer.ip())));
    }
}
