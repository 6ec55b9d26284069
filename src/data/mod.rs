//! Text in, rows of token ids out.
//!
//! Texts become a **token folder** once ([`header`], [`folder`]; the format is in `docs/reference/token-folder.md`),
//! and training reads rows from a weighted [`mixture`] of them. Which row comes when is a function of the seed and the
//! row's number alone, so that a stopped run can resume anywhere.

mod batches;
mod conversation;
mod dedup;
pub mod documents;
mod encode;
mod error;
pub mod folder;
pub mod header;
pub mod input;
pub mod layout;
mod limits;
pub mod mixture;
mod order;
pub mod outline;
mod shards;
mod split;
mod table;
mod table_chat;
#[cfg(test)]
mod tests;
mod thrift;
mod token_error;
pub mod tokenize;
pub mod vocabulary;

pub use error::{DataError, DocumentPlace};
pub use folder::TokenFolder;
pub use header::TokenHeader;
pub use layout::Split;
pub use mixture::{Mixture, Row};
pub use token_error::TokenError;
