//! Engines that run a model beside transformers and this program, with the commands for each.

use std::path::Path;

use crate::family::{Architecture, AttentionKv, Mixture, QkNorm, gguf_bam};

/// An engine, and the models that it runs.
pub(super) struct Engine {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether it runs a model of the architecture.
    runs: fn(&Architecture) -> bool,
    /// Commands in the folder of the model.
    pub(super) commands: &'static str,
}

/// Every engine, in the order of a card.
pub(super) const ENGINES: [Engine; 1] = [Engine {
    name: "llama.cpp",
    runs: fits_gguf,
    commands: "bam-convert convert . ../model.gguf --dtype f16\nllama-server -m ../model.gguf\n",
}];

/// The engines that run a model.
pub(super) fn of(architecture: &Architecture) -> impl Iterator<Item = &'static Engine> {
    ENGINES
        .iter()
        .filter(move |engine| (engine.runs)(architecture))
}

/// Whether `convert` writes a BAM as a GGUF file. Folders of other families may have a layout that it does not take. Norms of queries and keys may differ between attention experts, which
/// the architecture does not say, so a mixture with them does not count.
fn fits_gguf(architecture: &Architecture) -> bool {
    let has_experts = |mixture: &Mixture| mixture.attention_kv != AttentionKv::Merged;
    let has_experts = architecture.mixture.as_ref().is_some_and(has_experts);
    let differs = has_experts && architecture.qk_norm != QkNorm::None;
    let fits = || gguf_bam::check(Path::new("."), architecture).is_ok();
    architecture.is_bam() && !differs && fits()
}
