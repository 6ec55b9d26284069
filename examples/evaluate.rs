//! Loads a model, and prints its perplexity on a text.
//!
//! Run it on a fixture and a text of this repository:
//!
//! ```text
//! cargo run --example evaluate -- fixtures/llama/seed README.md
//! ```

#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use anyhow::{Result, bail};
use bam_convert::evaluate::corpus::Domain;
use bam_convert::evaluate::perplexity;
use bam_convert::model::tokenizer::Tokenizer;
use bam_convert::model::{CausalLm, LoadOptions, Overrides};

/// Tokens that the model reads at once, as in `bam-convert eval`.
const CONTEXT: usize = 512;

fn main() -> Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, text] = &paths[..] else {
        bail!("expected two paths: MODEL TEXT");
    };

    let model = CausalLm::load(folder, &LoadOptions::default())?;
    let tokenizer = Tokenizer::load(folder, model.architecture().vocab_size)?;

    let domain = Domain::read("text", text)?;
    let windows = domain.windows(&tokenizer, CONTEXT, None)?;
    let score = perplexity::score(
        &model,
        &domain.name,
        &windows,
        &Overrides::default(),
        None,
        &|_| {},
    )?;
    println!(
        "perplexity {} over {} tokens",
        score.perplexity, score.tokens
    );
    Ok(())
}
