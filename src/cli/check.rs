//! `upcycle --check`: what each source and the fresh mixture are worth on a text, before any training.

use std::path::{Path, PathBuf};

use bam_convert::checkpoint::manifest::model_name;
use bam_convert::evaluate::corpus::{Domain, Window};
use bam_convert::evaluate::perplexity;
use bam_convert::evaluate::report::{Average, EvaluationReport, ModelReport};
use bam_convert::family::{Architecture, Config, Mixture, expert_names};
use bam_convert::model::tokenizer::Tokenizer;
use bam_convert::model::{CausalLm, LoadOptions, Overrides};
use bam_convert::{Result, table};

use super::printer::Printer;

/// Tokens of a window.
const CONTEXT: usize = 512;
/// Most tokens that each model reads: enough to see what is broken, in minutes at most.
const TOKENS: usize = 4096;
/// How many times the perplexity of its worst source a mixture has that the surgery has ruined.
const RUINED: f64 = 2.0;

/// A text cut into tokens, and the models to read it before the mixture does.
#[derive(Debug)]
pub struct Check {
    domain: String,
    windows: Vec<Window>,
    sources: Vec<(String, PathBuf)>,
}

impl Check {
    /// Reads the text and cuts it by the tokenizer of the first source, so that what cannot be read is refused before
    /// anything is written.
    pub fn new(text: &Path, sources: Vec<(String, PathBuf)>, printer: &Printer) -> Result<Self> {
        let domain = text
            .file_stem()
            .unwrap_or(text.as_os_str())
            .to_string_lossy()
            .into_owned();
        let mut windows = Vec::new();
        if let Some((_, seed)) = sources.first() {
            let tokenizer =
                Tokenizer::load(seed, Architecture::of(&Config::read(seed)?)?.vocab_size)?;
            if let Some(note) = tokenizer.note() {
                printer.note(&format!(" note: {note}"));
            }
            windows = Domain::read(&domain, text)?.windows(&tokenizer, CONTEXT, Some(TOKENS))?;
        }
        Ok(Self {
            domain,
            windows,
            sources,
        })
    }

    /// The perplexity of every source and of the mixture in the folder `out`; a note where the mixture is ruined.
    pub fn run(&self, out: &Path, printer: &Printer) -> Result<EvaluationReport> {
        let mixture = (model_name(out), out.to_path_buf());
        let all: Vec<(String, PathBuf)> = self.sources.iter().cloned().chain([mixture]).collect();
        let tokens: usize = self.windows.iter().map(|window| window.ids.len()).sum();
        let bar = printer.tokens_bar((tokens * all.len()) as u64, "checking");
        let mut models = Vec::with_capacity(all.len());
        let mut mixture = None;
        for (name, path) in all {
            let model = CausalLm::load(&path, &LoadOptions::default())?;
            let (unchanged, progress) = (Overrides::default(), |read| bar.inc(read));
            let score = perplexity::score(
                &model,
                &self.domain,
                &self.windows,
                &unchanged,
                None,
                &progress,
            )?;
            let experts = expert_names(&path, model.architecture())?;
            mixture = model.architecture().mixture.clone();
            let (path, average) = (
                path.display().to_string(),
                Average::of(std::slice::from_ref(&score)),
            );
            let (tasks, routing) = (Vec::new(), Vec::new());
            models.push(ModelReport {
                name,
                path,
                experts,
                domains: vec![score],
                average,
                tasks,
                task_average: None,
                routing,
            });
        }
        bar.finish_and_clear();
        let perplexities: Vec<f64> = models
            .iter()
            .map(|model| model.domains[0].perplexity)
            .collect();
        if let Some(note) = ruined(&perplexities, mixture.as_ref()) {
            printer.note(&format!(" note: {note}"));
        }
        Ok(EvaluationReport {
            context: CONTEXT,
            models,
        })
    }
}

/// What to say of a mixture, the last of these, that predicts text far worse than what it was made of.
fn ruined(perplexities: &[f64], mixture: Option<&Mixture>) -> Option<String> {
    let (fresh, sources) = perplexities.split_last()?;
    let worst = sources.iter().copied().fold(0.0, f64::max);
    if *fresh <= RUINED * worst {
        return None;
    }
    let (fresh, times) = (table::number(*fresh), table::number(fresh / worst));
    let raw = mixture.is_some_and(|mixture| {
        !mixture.norm_topk_prob && mixture.num_experts_per_tok < mixture.num_experts
    });
    let advice = if raw {
        "raw gates of the top k sum to less than 1, so feed-forward layers add less than theirs have learned: \
                 --top-k 2 --norm-topk-prob true keeps the sum at 1"
    } else {
        "`inspect --divergence` shows how far the specialists are from their average"
    };
    Some(format!(
        "the mixture's perplexity is {fresh}, {times} times the perplexity of its worst source; {advice}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ruined_mixture_is_told_from_one_that_is_worse() {
        assert_eq!(ruined(&[10.0, 20.0, 39.0], None), None);
        let note = ruined(&[10.0, 20.0, 4000.0], None).unwrap_or_default();
        assert!(
            note.contains("4.00e3, 200 times") && note.contains("--divergence"),
            "{note}"
        );
    }
}
