//! One page about training runs and what came of them: HTML that needs nothing else, neither network nor other files.
//!
//! Inputs are read ([`Input`]), turned into charts and tables, and laid into one page. Several runs share their
//! charts: a colour is a name, everywhere on the page.

mod axes;
mod charts;
mod colours;
mod divergence;
mod evaluations;
mod found;
mod graph;
mod hashes;
mod input;
mod lineage;
mod page;
mod tables;

pub use divergence::{Means, Work};
pub use input::{Input, read};
pub use page::html;
