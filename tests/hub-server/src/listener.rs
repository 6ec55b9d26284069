//! The origins of the server: connections in, requests logged, faults in front of the routes.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::faults;
use crate::server::{Hub, lock};

/// One of the server's origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// The Hub itself.
    Hub,
    /// Where large files are downloaded from and, over LFS, uploaded to.
    Cdn,
    /// The content-addressed store of Xet.
    Cas,
}

/// A request that the server saw.
#[derive(Clone, Debug)]
pub struct Request {
    /// The origin that was asked.
    pub listener: Listener,
    /// `GET` and so on.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The status of the answer; 0 before the answer.
    pub status: u16,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The connection ends without an answer.
#[derive(Debug)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// Answers what comes in on `socket`, for ever.
pub(crate) async fn serve(hub: Arc<Hub>, listener: Listener, socket: TcpListener, router: Router) {
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            continue;
        };
        let (hub, router) = (hub.clone(), router.clone());
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                answer(
                    hub.clone(),
                    listener,
                    router.clone(),
                    request.map(Body::new),
                )
            });
            // A client that goes away, or that was cut off, is nothing to report.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    hub: Arc<Hub>,
    listener: Listener,
    router: Router,
    request: http::Request<Body>,
) -> Result<Response, Cut> {
    let target = request
        .uri()
        .path_and_query()
        .map_or_else(String::new, ToString::to_string);
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let place = {
        let mut log = lock(&hub.log);
        log.push(Request {
            listener,
            method: request.method().to_string(),
            target: target.clone(),
            headers: request
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            status: 0,
        });
        log.len() - 1
    };
    let fault = faults::take(&hub, listener, request.method().as_str(), &target);
    let response = faults::answer(&hub, listener, router, request, fault).await?;
    if let Some(logged) = lock(&hub.log).get_mut(place) {
        logged.status = response.status().as_u16();
    }
    Ok(response)
}
