//! Who asks, and what they may do: tokens, private and gated repositories, and signatures of URLs that expire.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use sha1::{Digest, Sha1};

use crate::Listener;
use crate::refusal::{Answer, Refusal};
use crate::repository::{Repository, hex};
use crate::server::Hub;

/// What the token of a request lets it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads and writes everything.
    Write,
    /// Reads everything.
    Read,
    /// A valid account without access to private or gated repositories.
    Outsider,
    /// A token that has expired.
    Expired,
}

impl Role {
    const ALL: [Role; 4] = [Role::Write, Role::Read, Role::Outsider, Role::Expired];

    /// The token of the account with this role.
    pub fn token(self) -> &'static str {
        match self {
            Role::Write => "hf_writewritewritewritewritewritewrit",
            Role::Read => "hf_readreadreadreadreadreadreadreadre",
            Role::Outsider => "hf_outsideroutsideroutsideroutsidero",
            Role::Expired => "hf_expiredexpiredexpiredexpiredexpir",
        }
    }

    /// Its name, as `whoami` tells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Write => "writer",
            Role::Read => "reader",
            Role::Outsider => "outsider",
            Role::Expired => "expired",
        }
    }
}

/// The caller of a request: an account, or nobody.
#[derive(Clone, Copy)]
pub(crate) struct Caller(pub(crate) Option<Role>);

impl FromRequestParts<Arc<Hub>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Hub>) -> Answer<Self> {
        let Some(token) = bearer(parts) else {
            return Ok(Self(None));
        };
        match Role::ALL.into_iter().find(|role| role.token() == token) {
            Some(Role::Expired) => Err(Refusal::new(
                401,
                "User Access Token \"expired\" is expired",
            )),
            Some(role) => Ok(Self(Some(role))),
            None => Err(Refusal::new(
                401,
                "Invalid credentials in Authorization header",
            )),
        }
    }
}

/// The token in the `Authorization` header.
pub(crate) fn bearer(parts: &Parts) -> Option<&str> {
    parts
        .headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

impl Caller {
    /// An account, whichever.
    pub(crate) fn account(self) -> Answer<Role> {
        self.0
            .ok_or_else(|| Refusal::new(401, "Invalid username or password."))
    }

    /// An account that may write.
    pub(crate) fn writer(self) -> Answer<Role> {
        match self.account()? {
            Role::Write => Ok(Role::Write),
            _ => Err(Refusal::new(
                403,
                "Forbidden: you must use a write token to upload to a repository.",
            )),
        }
    }

    /// Whether this caller sees `repository`. A caller who may not see it gets the answer that it does not exist.
    pub(crate) fn sees(self, repository: Option<&mut Repository>) -> Answer<&mut Repository> {
        match (self.0, repository) {
            (None, Some(found)) if !found.private => Ok(found),
            (None, _) => Err(Refusal::new(401, "Invalid username or password.")),
            (Some(role), Some(found)) if role != Role::Outsider || !found.private => Ok(found),
            _ => Err(Refusal::coded(404, "RepoNotFound", "Repository not found")),
        }
    }

    /// Whether this caller may read the files of a repository that it sees.
    pub(crate) fn reads(self, repository: &Repository) -> Answer<()> {
        let id = &repository.id;
        match self.0 {
            None if repository.gated => Err(Refusal::coded(
                401,
                "GatedRepo",
                format!(
                    "Access to model {id} is restricted. You must have access to it and be authenticated to access it. Please log in."
                ),
            )),
            Some(Role::Outsider) if repository.gated => Err(Refusal::coded(
                403,
                "GatedRepo",
                format!(
                    "Access to model {id} is restricted and you are not in the authorized list. Visit the model page to ask for access."
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// Signed URLs and short-lived tokens. Each has a number; those up to one that was revoked are refused.
#[derive(Default)]
pub(crate) struct Signatures {
    issued: AtomicU64,
    revoked: Mutex<HashMap<Listener, u64>>,
}

impl Signatures {
    /// A query that makes `path` good on `listener` for as long as `life`.
    pub(crate) fn query(&self, listener: Listener, path: &str, life: Duration) -> String {
        let (number, until) = (
            self.issued.fetch_add(1, Ordering::Relaxed) + 1,
            now() + life.as_secs(),
        );
        format!(
            "Expires={until}&Key-Pair-Id={number}&Signature={}",
            digest(listener, path, number, until)
        )
    }

    /// Whether `query` holds for `path`, now.
    pub(crate) fn verify(&self, listener: Listener, path: &str, query: &str) -> bool {
        let field = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let number = |name| field(name).and_then(|text| text.parse::<u64>().ok());
        let (Some(until), Some(number), Some(signature)) =
            (number("Expires"), number("Key-Pair-Id"), field("Signature"))
        else {
            return false;
        };
        let revoked = self
            .revoked
            .lock()
            .map(|revoked| revoked.get(&listener).copied().unwrap_or(0));
        now() < until
            && revoked.is_ok_and(|revoked| number > revoked)
            && signature == digest(listener, path, number, until)
    }

    /// Lets everything issued so far for `listener` expire.
    pub(crate) fn revoke(&self, listener: Listener) {
        if let Ok(mut revoked) = self.revoked.lock() {
            revoked.insert(listener, self.issued.load(Ordering::Relaxed));
        }
    }
}

fn digest(listener: Listener, path: &str, number: u64, until: u64) -> String {
    hex(&Sha1::digest(format!(
        "a secret of the test server {listener:?} {path} {number} {until}"
    )))
}

/// Seconds since the epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| age.as_secs())
}
