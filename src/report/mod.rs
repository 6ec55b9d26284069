//! One page about training runs and what came of them: HTML that needs nothing else, neither network nor other files.
//!
//! Inputs are read ([`Input`]), turned into charts and tables, and laid into one page. Several runs share their
//! charts: a colour is a run, everywhere on the page.

mod charts;
mod divergence;
mod graph;
mod input;
mod lineage;
mod page;
mod tables;

pub use divergence::{Means, Work};
pub use input::{Input, read};
pub use page::html;
