//! The Hugging Face Hub: pull and push that can be trusted.
//!
//! Nothing that the Hub says is taken on trust: a revision is resolved to its commit first, a file counts once its size
//! and its hash are those of the commit's tree, answers are bounded, and the token goes to the Hub itself and to no other
//! origin. Downloads and their cache are ours, because `hf-hub` checks neither size nor hash and does not resume; making
//! repositories and branches is its work, and the Xet protocol that of `hf-xet`. See `docs/hub.md`.

mod answer;
mod cache;
mod commit;
mod content;
mod download;
mod headers;
mod http;
mod lfs;
mod outgoing;
mod parallel;
mod pull;
mod push;
mod remote_file;
mod repository;
mod selection;
mod settings;
mod tree;
mod upload;
mod xet;

pub use headers::headers;
pub use http::Client;
pub use outgoing::length;
pub use pull::{Pull, Pulled, Wanted, cached};
pub use push::{Push, PushOptions, Pushed, PushedFile, State};
pub use selection::Selection;
pub use settings::Settings;
pub use tree::{Entry, Snapshot};
