//! The Hugging Face Hub: pull and push that can be trusted.
//!
//! Nothing that the Hub says is taken on trust. A revision is resolved to its commit first. A file counts once its size
//! and its hash match the commit's tree. Answers are bounded, and the token goes to the Hub's own origin only.
//!
//! The client is ours, because `hf-hub` checks neither size nor hash, does not resume, and reads answers of any length.
//! Uploads are ours, too. `hf-hub` 1.0 sends large files over Xet only, and puts them into the commit itself where a Hub has
//! no Xet. It repeats a commit whose answer was lost, which can make two, and does not read the commit back. The Xet protocol
//! is the work of `hf-xet`. See `docs/reference/hub.md`.

mod answer;
mod answer_error;
mod cache;
mod client;
mod commit;
mod content;
mod dataset;
mod dataset_files;
mod dataset_names;
mod download;
mod error;
// Development builds have it too, so that the tests compile the fuzz target that calls it.
#[cfg(any(fuzzing, debug_assertions))]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod http;
mod lfs;
mod local_paths;
mod outgoing;
mod parallel;
mod path_pattern;
mod pull;
mod push;
mod ranges;
mod remote_file;
mod repository;
mod request_error;
mod retry;
mod selection;
mod settings;
mod tree;
mod upload;
mod xet;

pub use answer_error::HubAnswerError;
pub use client::HubClient;
pub use dataset::DatasetPull;
pub use error::{ConnectionEvent, HubError, HubFault, HubStep};
pub use headers::headers;
pub use local_paths::LocalPaths;
pub use outgoing::{left_out, length};
pub use pull::{Pull, PullFile, Pulled, cached};
pub use push::{Push, PushOptions, PushState, Pushed, PushedFile};
pub use ranges::ranges;
pub use request_error::HubRequestError;
pub use selection::FileSelection;
pub use settings::HubSettings;
pub use tree::{FileEntry, Snapshot};
