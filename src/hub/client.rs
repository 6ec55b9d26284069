//! The Hub as this process asks it: settings, connections, and the runtime for synchronous callers.

use reqwest::Url;
use tokio::runtime::Runtime;

use super::request_error::HubRequestError;
use super::settings::HubSettings;
use crate::Result;
use crate::printable::printable;

/// The Hub, as this process asks it.
pub struct HubClient {
    /// What the environment says.
    pub settings: HubSettings,
    pub(super) http: reqwest::Client,
    /// For requests that go out slowly or are answered late.
    pub(super) slow: reqwest::Client,
    runtime: Runtime,
}

impl HubClient {
    /// Opens no connection yet.
    pub fn new(settings: HubSettings) -> Result<Self> {
        let failed = |problem: String| HubRequestError::Client {
            to: "the Hub",
            problem,
        };
        // For our clients and for Xet's; an error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let common = || {
            reqwest::Client::builder()
                .user_agent(concat!(
                    env!("CARGO_PKG_NAME"),
                    "/",
                    env!("CARGO_PKG_VERSION")
                ))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(settings.answer_timeout)
                .http1_only()
        };
        let quick = common().read_timeout(settings.transfer_timeout.max(settings.answer_timeout));
        let http = quick.build().map_err(|e| failed(cause(&e)))?;
        let slow = common().build().map_err(|e| failed(cause(&e)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self {
            settings,
            http,
            slow,
            runtime,
        })
    }

    /// Whether requests are made with a token.
    pub fn has_token(&self) -> bool {
        self.settings.token.is_some()
    }

    /// Refuses to continue without a token, for requests that need one.
    pub fn require_token(&self, place: impl ToString) -> Result<()> {
        match &self.settings.token {
            Some(_) => Ok(()),
            None => Err(HubRequestError::NoToken {
                place: place.to_string(),
            }
            .into()),
        }
    }

    /// An address below the Hub's root; each part is one segment, whatever it holds.
    pub fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.settings.endpoint.clone();
        // An http address, which settings require, can have segments.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    /// Runs what libraries offer as futures.
    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// One without a time-out, for what sends large bodies and looks after itself.
    pub(super) fn uploads(&self) -> &reqwest::Client {
        &self.slow
    }

    /// What a server said, as it may be shown: without the token, short, and printable.
    pub(super) fn shown(&self, said: &str) -> String {
        let token = self.settings.token.as_ref();
        let hidden = token.map_or_else(
            || said.to_owned(),
            |token| said.replace(token.secret(), "…"),
        );
        printable(&hidden).chars().take(300).collect()
    }

    /// Whether a token may be sent there.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.settings.endpoint.origin()
    }
}

/// The innermost cause, which says what happened.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
