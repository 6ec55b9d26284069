//! A small conforming Hub server for the tests.
//!
//! It answers `pull` and `push` as the Hugging Face Hub does, and as its Python client understands it. Models have commits,
//! branches, tags and pull requests. Files are git blobs, or go over LFS (basic and multipart) or Xet. Downloads have a second
//! origin, as the Hub's CDN is. Faults are injected in front of all of it ([`Fault`]), and every request is logged ([`Request`]).
//!
//! Callers are synchronous: the server has threads of its own and ends when it is dropped.

mod access;
mod api;
mod branches;
mod commit;
mod faults;
mod lfs;
mod listener;
mod listing;
mod refusal;
mod repository;
mod resolve;
mod server;
mod store;
mod xet;

pub use access::Role;
pub use faults::{Fault, FaultKind};
pub use listener::{Listener, Request};
pub use server::{Keep, Options, Server, Transfers};
