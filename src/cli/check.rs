//! What a mixture is before any training: what its gates sum to, and with `upcycle --check` what it and each of its sources
//! are worth on a text.

use std::path::{Path, PathBuf};

use bam_convert::checkpoint::manifest::{manifest_hash, model_name};
use bam_convert::evaluate::corpus::{Domain, Window};
use bam_convert::evaluate::outlook::model_memory;
use bam_convert::evaluate::perplexity;
use bam_convert::evaluate::report::{Average, EvaluationReport, ModelReport};
use bam_convert::evaluate::routing::{Recorder, RouterKind, RouterReport};
use bam_convert::family::{Architecture, Config, Mixture, expert_names};
use bam_convert::model::tokenizer::Tokenizer;
use bam_convert::model::{CausalLm, LoadOptions, Overrides};
use bam_convert::surgery::gates::FreshGates;
use bam_convert::{Result, table};
use serde_json::{Value, json};

use super::printer::Printer;

/// Tokens of a window.
const CONTEXT: usize = 512;
/// Most tokens that each model reads: enough to see what is broken, in minutes at most.
const TOKENS: usize = 4096;
/// How many times the perplexity of its worst source a mixture has that the surgery has ruined.
const RUINED: f64 = 2.0;

/// A mixture that no training has changed.
#[derive(Debug)]
pub struct Untrained<'a> {
    /// What the gates of a token sum to.
    pub gates: &'a FreshGates,
    /// What to measure once the mixture is written.
    pub check: Option<&'a Check>,
}

impl Untrained<'_> {
    /// Prints the sum of the gates and what the check of the mixture in `out` finds.
    pub fn print(&self, out: &Path, printer: &Printer) -> anyhow::Result<()> {
        printer.note(&format!("gates at step 0: {}", self.gates));
        if let Some(check) = self.check {
            let (report, routers) = check.run(out, printer)?;
            let sums: Vec<String> = measured(&routers)
                .map(|(kind, sum)| format!("{} sum {}", kind.name(), table::number(sum)))
                .collect();
            printer.note(&format!("gates on this text: {}", sums.join("; ")));
            printer.result(&report.table())?;
        }
        Ok(())
    }

    /// Adds the same to a result in JSON.
    pub fn add_to(&self, result: &mut Value, out: &Path, printer: &Printer) -> anyhow::Result<()> {
        result["gates"] = serde_json::to_value(self.gates)?;
        if let Some(check) = self.check {
            let (report, routers) = check.run(out, printer)?;
            for (kind, sum) in measured(&routers) {
                let key = serde_json::to_value(kind)?;
                result["gates"][key.as_str().unwrap_or_default()]["measured"] = json!(sum);
            }
            result["check"] = serde_json::to_value(report)?;
        }
        Ok(())
    }
}

/// The mean sum of a token's gates over the layers, of each kind of routers that the mixture has.
fn measured(routers: &[RouterReport]) -> impl Iterator<Item = (RouterKind, f64)> {
    [RouterKind::FeedForward, RouterKind::Attention]
        .into_iter()
        .filter_map(|kind| {
            let sums: Vec<f64> = routers
                .iter()
                .filter(|report| report.router == kind)
                .map(|report| report.mean_gate.iter().sum())
                .collect();
            let mean = sums.iter().sum::<f64>() / sums.len() as f64;
            (!sums.is_empty()).then_some((kind, mean))
        })
}

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

    /// Peak of the memory of the check, in bytes; models are loaded one after the other.
    pub fn memory(&self, mixture: &Architecture) -> Result<u64> {
        let mut memory = model_memory(mixture, CONTEXT as u64, None)?;
        for (_, path) in &self.sources {
            let source = Architecture::of(&Config::read(path)?)?;
            memory = memory.max(model_memory(&source, CONTEXT as u64, None)?);
        }
        Ok(memory)
    }

    /// The perplexity of every source and of the mixture in the folder `out`, and what its routers do; a note where the
    /// mixture is ruined.
    fn run(&self, out: &Path, printer: &Printer) -> Result<(EvaluationReport, Vec<RouterReport>)> {
        let mixture = (model_name(out), out.to_path_buf());
        let all: Vec<(String, PathBuf)> = self.sources.iter().cloned().chain([mixture]).collect();
        let tokens: usize = self.windows.iter().map(|window| window.ids.len()).sum();
        let bar = printer.tokens_bar((tokens * all.len()) as u64, "checking");
        let mut models = Vec::with_capacity(all.len());
        let mut mixture = None;
        let mut routers = Vec::new();
        for (name, path) in all {
            let model = CausalLm::load(&path, &LoadOptions::default())?;
            let (unchanged, progress) = (Overrides::default(), |read| bar.inc(read));
            let mut recorder = Recorder::default();
            let score = perplexity::score(
                &model,
                &self.domain,
                &self.windows,
                &unchanged,
                Some(&mut recorder),
                &progress,
            )?;
            // The mixture is the last; sources have no routers.
            routers = recorder.finish();
            let experts = expert_names(&path, model.architecture())?;
            mixture = model.architecture().mixture.clone();
            let manifest = manifest_hash(&path)?;
            let (path, average) = (
                path.display().to_string(),
                Average::of(std::slice::from_ref(&score)),
            );
            let (tasks, routing) = (Vec::new(), Vec::new());
            models.push(ModelReport {
                manifest,
                name,
                path,
                without: Vec::new(),
                top_k: None,
                attention_top_k: None,
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
        let report = EvaluationReport {
            context: CONTEXT,
            models,
        };
        Ok((report, routers))
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
        "its gates sum to less than 1: --top-k 2 --norm-topk-prob true makes the sum 1"
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
