//! What can go wrong with the Hub: refusals and the network, with rules of answers and of requests in files of their own.
//!
//! `place` is a repository with its revision, and a file of it where the error is about one.

use std::borrow::Cow;
use std::time::Duration;

use super::answer_error::HubAnswerError;
use super::request_error::HubRequestError;
use crate::Error;

/// What the Hub refused, what it answered that cannot be right, or what must not be sent to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The Hub, or a storage that it names, answered without success.
    #[error("{place}: {}", refusal_text(*fault, answer.as_deref()))]
    Refused {
        /// Repository, revision and file.
        place: String,
        /// What the answer means.
        fault: HubFault,
        /// Who answered what; none where the fault says all.
        answer: Option<String>,
        /// What was asked for.
        step: HubStep,
    },
    /// The Hub does not take one of the files of a batch.
    #[error("{place}: the server does not take it: {answer}")]
    ObjectRefused {
        /// Repository, revision and file.
        place: String,
        /// What the answer means.
        fault: HubFault,
        /// Status and words of the server.
        answer: String,
    },
    /// The Xet library reports an error.
    #[error("{place}: Xet: {problem}")]
    Xet {
        /// Repository, revision and file.
        place: String,
        /// What the error means.
        fault: HubFault,
        /// The library's words.
        problem: String,
    },
    /// A connection failed or broke off.
    #[error("{place}: the connection {}: {cause}", event.words())]
    Connection {
        /// Repository, revision and file.
        place: String,
        /// When.
        event: ConnectionEvent,
        /// The innermost cause.
        cause: String,
    },
    /// No authority that this machine trusts vouches for the server.
    #[error("{place}: the certificate of the server is refused: {problem}")]
    Certificate {
        /// Repository, revision and file.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The body of an answer did not end in time.
    #[error("{place}: expected the whole answer within {limit:?}")]
    SlowAnswer {
        /// Repository, revision and file.
        place: String,
        /// The time that it may take.
        limit: Duration,
    },
    /// A download ended before the file did.
    #[error("{place}: expected {size} bytes, found the end after {received}")]
    CutOff {
        /// Repository, revision and file.
        place: String,
        /// Length of the file.
        size: u64,
        /// Bytes that came.
        received: u64,
    },
    /// A download is too slow to ever end.
    #[error("{place}: expected at least {slowest} bytes/s, found {bytes} in {window:?}")]
    SlowDownload {
        /// Repository, revision and file.
        place: String,
        /// The least bytes per second.
        slowest: u64,
        /// Bytes that came in the window.
        bytes: u64,
        /// The time over which the speed is measured.
        window: Duration,
    },
    /// An upload makes no progress.
    #[error("{place}: the connection made no progress after {sent} of {length} bytes")]
    StalledUpload {
        /// Repository, revision and file.
        place: String,
        /// Bytes that were sent.
        sent: u64,
        /// Bytes to send.
        length: u64,
    },
    /// The Xet storage ended a file too early.
    #[error("{place}: expected {missing} more bytes from Xet, found the end")]
    XetCutOff {
        /// Repository, revision and file.
        place: String,
        /// Bytes that did not come.
        missing: u64,
    },
    /// `HF_HUB_OFFLINE` forbids the request.
    #[error("{place}: expected to reach the Hub, found HF_HUB_OFFLINE set")]
    Offline {
        /// Repository, revision and file.
        place: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the cache does not hold the revision.
    #[error(
        "{place}: expected it in the cache, because HF_HUB_OFFLINE is set, but the cache does not hold this revision"
    )]
    NotCached {
        /// Repository and revision.
        place: String,
    },
    /// An answer cannot be right.
    #[error(transparent)]
    Answer(#[from] HubAnswerError),
    /// A request makes no sense, or a folder must not be pushed.
    #[error(transparent)]
    Request(#[from] HubRequestError),
}

/// What was asked for, where a refusal needs other advice than usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubStep {
    /// Anything else.
    Other,
    /// How files are to be sent. The repository has just been read.
    Preupload,
    /// A commit on a branch.
    Commit,
    /// A commit in a pull request.
    PullRequest,
    /// A new repository.
    CreateRepository,
    /// A new branch.
    CreateBranch,
    /// A check of the model card.
    CheckCard,
}

/// Kinds of failure of the Hub. Each needs other advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubFault {
    /// The repository does not exist, or it is private and the token may not see it.
    NoRepository,
    /// The repository is there, but its owner must grant access first.
    Gated,
    /// The repository does not have this branch, tag or commit.
    NoRevision,
    /// The revision does not have this file.
    NoFile,
    /// The token is not accepted.
    BadToken,
    /// The token is accepted, but may not do this.
    Forbidden,
    /// Something else was committed meanwhile, or the name is taken.
    Conflict,
    /// The server lacks this endpoint, as mirrors do.
    NotOffered,
    /// The account has no room left.
    Quota,
    /// Too many requests.
    RateLimited,
    /// `HF_HUB_OFFLINE` forbids the network, and the cache does not hold what was asked for.
    Offline,
    /// The other side could not be reached, was silent or broke off.
    Network,
    /// The certificate of the other side is refused.
    Certificate,
    /// The other side answered what cannot be right: other bytes than promised, or no sense.
    Answer,
}

/// When a connection came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// Before an answer.
    Failed,
    /// In an answer.
    BrokeOff,
}

impl ConnectionEvent {
    fn words(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::BrokeOff => "broke off",
        }
    }
}

impl HubError {
    /// What kind of failure it is; none where the Hub has no part in it.
    pub fn fault(&self) -> Option<HubFault> {
        match self {
            Self::Refused { fault, .. }
            | Self::ObjectRefused { fault, .. }
            | Self::Xet { fault, .. } => Some(*fault),
            Self::Offline { .. } | Self::NotCached { .. } => Some(HubFault::Offline),
            Self::Connection { .. }
            | Self::SlowAnswer { .. }
            | Self::CutOff { .. }
            | Self::SlowDownload { .. }
            | Self::StalledUpload { .. }
            | Self::XetCutOff { .. } => Some(HubFault::Network),
            Self::Certificate { .. } => Some(HubFault::Certificate),
            Self::Answer(_) => Some(HubFault::Answer),
            Self::Request(_) => None,
        }
    }

    /// Whether the request may be right, and the network or the Hub failed.
    pub fn is_outside(&self) -> bool {
        let is_client = matches!(self, Self::Request(HubRequestError::Client { .. }));
        is_client || self.fault().is_some_and(HubFault::is_outside)
    }

    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Refused { fault, step, .. } => fault.advice(*step).map(Cow::Borrowed),
            Self::Answer(error) => error.hint(),
            Self::Request(error) => error.hint(),
            Self::Connection {
                event: ConnectionEvent::Failed,
                ..
            } => Some(Cow::Borrowed(
                "check the network, HF_ENDPOINT and HTTPS_PROXY, then run the command again: what has been transferred is kept",
            )),
            other => other.fault()?.advice(HubStep::Other).map(Cow::Borrowed),
        }
    }
}

impl From<HubAnswerError> for Error {
    fn from(error: HubAnswerError) -> Self {
        Self::Hub(error.into())
    }
}

impl From<HubRequestError> for Error {
    fn from(error: HubRequestError) -> Self {
        Self::Hub(error.into())
    }
}

impl Error {
    /// What kind of failure of the Hub it is, if it is one.
    pub(super) fn hub_fault(&self) -> Option<HubFault> {
        match self {
            Self::Hub(error) => error.fault(),
            _ => None,
        }
    }

    /// The same error with what was asked for, which decides the advice of a refusal.
    pub(super) fn during(mut self, asked: HubStep) -> Self {
        if let Self::Hub(HubError::Refused { step, .. }) = &mut self {
            *step = asked;
        }
        self
    }
}

impl HubFault {
    /// Whether the request may be right, and the network or the Hub failed.
    fn is_outside(self) -> bool {
        matches!(
            self,
            Self::Quota | Self::RateLimited | Self::Network | Self::Certificate | Self::Answer
        )
    }

    fn advice(self, step: HubStep) -> Option<&'static str> {
        Some(match (self, step) {
            (Self::NoRepository, HubStep::Preupload) => {
                "it can be read and takes no pushes: HF_ENDPOINT may name a mirror, or HF_TOKEN may not write"
            }
            (Self::Conflict, HubStep::Commit | HubStep::PullRequest) => {
                "somebody else has committed meanwhile: run the command again, which compares anew and sends only what is missing"
            }
            (Self::NotOffered, HubStep::PullRequest) => {
                "this Hub has no pull requests: push to a branch with --revision"
            }
            (Self::Forbidden, HubStep::CreateRepository) => {
                "the token must be one with write access, and its account the owner or a member of it; or push to a repository of your own"
            }
            (Self::NotOffered, HubStep::CreateBranch) => {
                "this Hub cannot make a branch of this name: try a name without `/`"
            }
            (Self::Answer, HubStep::CheckCard) => "correct the lines between `---` of README.md",
            (Self::NoRepository, _) => {
                "check the spelling; for a private repository set HF_TOKEN to a token that may read it"
            }
            (Self::Gated, _) => {
                "ask for access on the repository's page, then set HF_TOKEN to a token of that account"
            }
            (Self::NoRevision, _) => {
                "name a branch, a tag or a commit that the repository has, as in org/name@main"
            }
            (Self::BadToken, _) => {
                "set HF_TOKEN to a valid token, or unset it where none is needed"
            }
            (Self::Forbidden, _) => "use a token with write access to this repository",
            (Self::Quota, _) => "free some space of the account, or push elsewhere",
            (Self::RateLimited, _) => {
                "wait, then run the command again: what has been transferred is kept"
            }
            (Self::Offline, _) => "unset HF_HUB_OFFLINE, or pull it while the network is there",
            (Self::Network, _) => "run the command again: what has been transferred is kept",
            (Self::Certificate, _) => {
                "let SSL_CERT_FILE name the certificate of your network's authority, or add it to the system's certificates"
            }
            (Self::NotOffered, _) => {
                "HF_ENDPOINT names a Hub that does not offer this, as a mirror that can only be pulled from"
            }
            (Self::NoFile | Self::Conflict | Self::Answer, _) => return None,
        })
    }
}

/// What a refusal says: the fault where it is clear, else the answer.
fn refusal_text(fault: HubFault, answer: Option<&str>) -> &str {
    match (fault, answer) {
        (HubFault::NoRepository, _) => "repository not found, or you have no access to it",
        (HubFault::Gated, _) => "the repository is gated, and you have no access to it",
        (HubFault::NoRevision, _) => "the repository has no revision of this name",
        (HubFault::NoFile, _) => "the revision has no file of this name",
        (_, Some(answer)) => answer,
        (_, None) => "the Hub refused",
    }
}
