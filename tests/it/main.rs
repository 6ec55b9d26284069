//! Every test of the built binary, a module for each capability, as one program: one program links once.
//!
//! `cargo test --test it train::` runs the tests of one module.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs
)]
#![allow(clippy::type_complexity)]

mod adapters;
mod beside;
mod bounds;
mod cards;
mod certificates;
mod chat;
mod chat_tables;
mod commands;
mod common;
mod compatibility;
mod completions;
mod configs;
mod convert;
mod datasets;
mod dependencies;
mod determinism;
mod diff;
mod docs;
mod engine;
mod evaluate;
mod every_command;
mod examples;
mod experts;
mod extend;
mod families;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod faults;
mod forecast;
mod foreign;
mod format;
mod fused;
mod generate;
mod gguf;
mod gguf_bam;
mod gguf_families;
mod golden;
mod guides;
mod hostile;
mod hub;
mod language;
mod limits;
mod logits;
mod memory;
mod methods;
mod model;
mod npz;
mod odd_files;
mod progress;
mod prompts;
mod properties;
mod prune;
mod push;
mod pytorch;
mod query_scale;
mod quickstart;
mod qwen3_next;
mod ranges;
mod rebuild;
mod refusals;
mod regressions;
mod report;
mod run;
mod schema;
mod scores;
mod sigmoid_gates;
mod signals;
mod slurm;
mod stage_files;
mod stock_experts;
mod surface;
mod targets;
mod templates;
mod terminal;
mod tokenize;
mod train;
mod upcycle;
mod versions;
