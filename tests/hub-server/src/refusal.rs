//! Refusals as the Hub words them: clients branch on the status, `X-Error-Code` and `X-Error-Message`.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A request that is turned down.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: Option<&'static str>,
    message: String,
    commit: Option<String>,
}

pub(crate) type Answer<T = Response> = Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            code: None,
            message: message.into(),
            commit: None,
        }
    }

    pub(crate) fn coded(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            ..Self::new(status, message)
        }
    }

    /// The revision exists, but has no file of this name.
    pub(crate) fn entry(path: &str, commit: &str) -> Self {
        Self {
            commit: Some(commit.to_owned()),
            ..Self::coded(404, "EntryNotFound", format!("Entry not found: {path}"))
        }
    }

    pub(crate) fn revision(name: &str) -> Self {
        Self::coded(404, "RevisionNotFound", format!("Invalid rev id: {name}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({"error": self.message}))).into_response();
        let mut header = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static(name), value);
            }
        };
        header("x-error-message", &self.message);
        self.code.inspect(|code| header("x-error-code", code));
        self.commit
            .inspect(|commit| header("x-repo-commit", commit));
        response
    }
}
