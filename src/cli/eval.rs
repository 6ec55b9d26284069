//! `eval`: how good models are, side by side.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bam_convert::arguments::{
    CheckpointPath, DryRun, InPlace, InputPath, MaybeNamed, Named, Outline, OutputPath, TextsPath,
};
use bam_convert::checkpoint::manifest::manifest_hash;
use bam_convert::checkpoint::{single, views};
use bam_convert::estimate::Estimate;
use bam_convert::evaluate::corpus::{Domain, Window};
use bam_convert::evaluate::outlook::WeightWidth;
use bam_convert::evaluate::report::{Average, DomainRouting, EvaluationReport, ModelReport};
use bam_convert::evaluate::request::RoutingRequest;
use bam_convert::evaluate::routing::Recorder;
use bam_convert::evaluate::tasks::{Task, TaskScore, TaskSettings};
use bam_convert::evaluate::{EvaluateError, chart, outlook, perplexity, table_file};
use bam_convert::family::{Architecture, Config, TopK, expert_names};
use bam_convert::memory::check_memory;
use bam_convert::model::generate::eos_ids;
use bam_convert::model::tokenizer::Tokenizer;
use bam_convert::model::{CausalLm, LoadOptions, Overrides};
use bam_convert::pipeline::{Declaration, StageUse};
use clap::{ArgAction, Args};

use super::device::{ComputeDtype, DeviceName, load_options};
use super::error::{self, CliError};
use super::estimate::{print, show_evaluation, warn_of_memory};
use super::evaluated;
use super::names::at_least_one;
use super::opened::Opened;
use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict};

/// Measure models side by side: perplexity and bits per byte per domain, tasks, routing.
///
/// Texts are cut into non-overlapping windows; each is read on its own, and all of its tokens but the first are scored.
/// The average is the mean of the columns. Computed in float32 unless --dtype says otherwise.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert eval seed btx bam --data code=code.txt --data law=law/\n  \
                        bam-convert eval bam --data code=code.txt --without law --report-routing\n  \
                        bam-convert eval seed bam --data code=code.txt --table scores.md --table scores.tex"
)]
pub struct Arguments {
    /// Folders of the models, or GGUF files.
    #[arg(value_name = "CKPT", required = true)]
    checkpoints: Vec<CheckpointPath>,
    /// A domain: its name and its texts (repeat). Texts are a file, JSON lines or parquet with a `text` field, or a folder or
    /// pattern of these. Of a token folder, the validation split is read.
    #[arg(
        long = "data",
        value_name = "NAME=PATH",
        required_unless_present = "tasks"
    )]
    data: Vec<Named<TextsPath>>,
    /// Number of tokens in a window [default: 512, or the context of a model where that is shorter].
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// Maximum tokens of a domain.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    max_tokens: Option<u64>,
    /// A task: JSON lines with `prompt` or `question` and `answer`, multiple choice where there are `choices` (repeat).
    #[arg(long = "task", value_name = "[NAME=]FILE")]
    tasks: Vec<MaybeNamed<InputPath>>,
    /// Number of examples with their answers before each question.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "tasks")]
    shots: usize,
    /// Maximum tokens of a generated answer.
    #[arg(long, value_name = "N", default_value_t = 64, requires = "tasks", value_parser = at_least_one())]
    answer_tokens: usize,
    /// Leave an expert of the mixtures out, by name or number (repeat).
    #[arg(long, value_name = "NAME", help_heading = "Routing")]
    without: Vec<String>,
    /// Feed-forward experts a token goes to, or `soft` [default: the checkpoint's].
    #[arg(long, value_name = "K", help_heading = "Routing")]
    top_k: Option<TopK>,
    /// Attention experts a token goes to, or `soft` [default: the checkpoint's].
    #[arg(long, value_name = "K", help_heading = "Routing")]
    attention_top_k: Option<TopK>,
    /// Write the scores as Markdown, CSV or LaTeX, as the name ends (repeat).
    #[arg(long = "table", value_name = "FILE.md|.csv|.tex")]
    tables: Vec<OutputPath>,
    /// Write the scores of each model into its card: `model-index` for the Hub, and a table.
    #[arg(long, action = ArgAction::SetTrue, conflicts_with_all = ["without", "top_k", "attention_top_k"])]
    card: InPlace,
    /// Draw the perplexities as bars.
    #[arg(long, value_name = "FILE.svg", requires = "data")]
    svg: Option<OutputPath>,
    /// Report load, entropy, dead experts and mean gates of each router and domain.
    #[arg(long, help_heading = "Routing", requires = "data")]
    report_routing: bool,
    /// Draw the routing as heat maps.
    #[arg(
        long,
        value_name = "FILE.svg",
        help_heading = "Routing",
        requires = "data"
    )]
    routing_svg: Option<OutputPath>,
    /// Where to compute.
    #[arg(long, default_value_t = DeviceName::Cpu)]
    device: DeviceName,
    /// Dtype to compute in [default: f32, whatever the stored dtype].
    #[arg(long, value_enum)]
    dtype: Option<ComputeDtype>,
    /// Show the memory, compute and time that the evaluation would take; load nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    dry_run: DryRun,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Say what it would take.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    outline: Outline,
}

/// Tokens of a window, unless the user or a model says otherwise.
const CONTEXT: usize = 512;

/// The tokens of a domain, as the first model's tokenizer cuts them.
struct Tokens {
    domain: Domain,
    windows: Vec<Window>,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("eval", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        if *self.outline {
            return print(printer, &self.estimate(&self.outlines(printer)?)?);
        }
        self.check()?;
        if *self.dry_run {
            let outlines = self.outlines(printer)?;
            self.check_models(&outlines)?;
            let (estimate, models) = (self.estimate(&outlines)?, self.checkpoints.len());
            return show_evaluation(&estimate, models, self.json, printer);
        }
        let models = self.models(printer)?;
        self.check_models(&models)?;
        let context = self.context(&models)?;
        if self.device == DeviceName::Cpu {
            self.check_memory(&models, printer)?;
        }
        let report = self.evaluate(&models, context, printer)?;
        self.write_files(&report)?;
        if *self.card {
            let folders = models.iter().map(Opened::typed);
            evaluated::write(folders, &report, printer)?;
        }
        self.show(report, printer)?;
        Ok(Verdict::Yes)
    }

    fn takes_less_memory(&self) -> Option<&'static str> {
        Some("pass --dtype bf16, a smaller --context, or evaluate one model at a time")
    }

    fn computes(&self) -> bool {
        true
    }
}

impl Arguments {
    /// Measures every model.
    fn evaluate(
        &self,
        models: &[Opened],
        context: usize,
        printer: &Printer,
    ) -> error::Result<EvaluationReport> {
        let domains = self.data.iter();
        let domains = domains.map(|Named { name, value }| Domain::read(name, value));
        let domains = domains.collect::<bam_convert::Result<Vec<_>>>()?;
        let tasks = self.tasks()?;
        let tasks = tasks.iter().map(|(name, path)| Task::read(name, path));
        let tasks = tasks.collect::<bam_convert::Result<Vec<_>>>()?;
        let tokens = self.tokenise(models, domains, context, printer)?;

        let windows = tokens.iter().flat_map(|domain| &domain.windows);
        let total: usize = windows.map(|window| window.ids.len()).sum();
        let bar = printer.tokens_bar((total * models.len()) as u64, "scoring");
        let mut reports = Vec::new();
        for (opened, name) in models.iter().zip(evaluated::names(&self.checkpoints)) {
            let model = self.load(opened)?;
            bar.suspend(|| printer.note(&format!("backend of {name}: {}", model.backend())));
            let progress = |tokens| bar.inc(tokens);
            reports.push(self.measure(opened, name, &model, &tokens, &tasks, &progress)?);
        }
        bar.finish_and_clear();
        Ok(EvaluationReport {
            context,
            models: reports,
        })
    }

    fn load(&self, opened: &Opened) -> error::Result<CausalLm> {
        let options = match self.dtype {
            Some(_) => load_options(opened.folder(), self.device, self.dtype)?,
            None => LoadOptions {
                device: self.device.open()?,
                ..LoadOptions::default()
            },
        };
        Ok(CausalLm::load(opened.folder(), &options)?)
    }

    /// Writes the charts and tables that the user asked for.
    fn write_files(&self, report: &EvaluationReport) -> bam_convert::Result<()> {
        if let Some(path) = &self.svg {
            single::write(path, &[chart::perplexities(report).as_bytes()])?;
        }
        if let Some(path) = &self.routing_svg {
            single::write(path, &[chart::routing(report).as_bytes()])?;
        }
        self.tables
            .iter()
            .try_for_each(|path| table_file::write(path, report))
    }

    /// Prints the report, with what routers did only where the user asked for it.
    fn show(&self, mut report: EvaluationReport, printer: &Printer) -> anyhow::Result<()> {
        if !self.report_routing {
            let models = report.models.iter_mut();
            models.for_each(|model| model.routing.clear());
        }
        if self.json {
            printer.json(&report)
        } else {
            Ok(printer.result(&report.table())?)
        }
    }

    /// What a run would take; nothing tells how long answers to tasks are.
    fn estimate(&self, models: &[Opened]) -> bam_convert::Result<Estimate> {
        let folders: Vec<PathBuf> = models.iter().map(|model| model.folder().into()).collect();
        let request = outlook::EvaluationRequest {
            checkpoints: &folders,
            data: &self.domains(),
            context: self.context(models)? as u64,
            max_tokens: self.max_tokens,
            routing: self.report_routing,
            gpu: self.device.gpu(),
            weights: self.dtype.map(|dtype| match dtype {
                ComputeDtype::F32 => WeightWidth::Full,
                ComputeDtype::Bf16 => WeightWidth::Half,
            }),
        };
        let estimate = outlook::estimate(&request)?;
        Ok(Estimate {
            work: estimate.work.filter(|_| self.tasks.is_empty()),
            ..estimate
        })
    }

    /// The models, as far as estimates need them.
    fn outlines(&self, printer: &Printer) -> bam_convert::Result<Vec<Opened>> {
        let models = self.checkpoints.iter();
        models.map(|path| Opened::outline(path, printer)).collect()
    }

    /// Tokens of a window.
    ///
    /// # Errors
    /// More than one of the models reads.
    fn context(&self, models: &[Opened]) -> bam_convert::Result<usize> {
        let mut shortest = CONTEXT;
        for model in models {
            let architecture = Architecture::of(&Config::read(model.folder())?)?;
            let Some(longest) = architecture.max_position_embeddings else {
                continue;
            };
            if let Some(context) = self.context.filter(|context| *context as u64 > longest) {
                let path = model.typed().to_path_buf();
                let error = EvaluateError::LongWindows {
                    path,
                    context,
                    longest,
                };
                return Err(error.into());
            }
            shortest = shortest.min(longest as usize);
        }
        Ok(self.context.unwrap_or(shortest))
    }

    /// Refuses what cannot fit into memory, and warns of what may not.
    fn check_memory(&self, models: &[Opened], printer: &Printer) -> bam_convert::Result<()> {
        let what = "the evaluation";
        let needed = self.estimate(models)?.memory;
        warn_of_memory(what, needed, printer);
        let advice = "pass a smaller --context, or --dtype bf16";
        needed.map_or(Ok(()), |needed| check_memory(what, needed, advice))
    }

    /// Each domain with its texts.
    fn domains(&self) -> Vec<(String, PathBuf)> {
        let domain = |domain: &Named<TextsPath>| (domain.name.clone(), domain.value.to_path_buf());
        self.data.iter().map(domain).collect()
    }

    /// Each task with its file, which lends its name where none was typed.
    fn tasks(&self) -> error::Result<Vec<(String, PathBuf)>> {
        let task = |task: &MaybeNamed<InputPath>| {
            let stem = task.value.file_stem().map(|stem| stem.to_string_lossy());
            let name = task.name.clone().or(stem.map(Into::into));
            let path = task.value.to_path_buf();
            match name {
                Some(name) => Ok((name, path)),
                None => Err(CliError::NotAFile { path }),
            }
        };
        self.tasks.iter().map(task).collect()
    }

    /// Refuses, before anything is loaded, what would be refused after minutes.
    fn check(&self) -> error::Result<()> {
        for named in [self.domains(), self.tasks()?] {
            let mut seen = BTreeSet::new();
            if let Some((name, _)) = named.iter().find(|(name, _)| !seen.insert(name)) {
                let name = name.clone();
                return Err(CliError::RepeatedColumn { name });
            }
        }
        for path in self.svg.iter().chain(&self.routing_svg) {
            single::check_svg(path)?;
        }
        for path in &self.tables {
            table_file::check(path)?;
        }
        if *self.card {
            self.checkpoints
                .iter()
                .try_for_each(|path| evaluated::check(path))?;
        }
        Ok(())
    }

    /// The models; of GGUF files, what they are converted to.
    fn models(&self, printer: &Printer) -> bam_convert::Result<Vec<Opened>> {
        let models = self.checkpoints.iter();
        models.map(|path| Opened::whole(path, printer)).collect()
    }

    /// Refuses requests about routing and windows that a model cannot fulfil.
    fn check_models(&self, models: &[Opened]) -> error::Result<()> {
        self.context(models)?;
        let request = self.request();
        let mut mixtures = 0;
        for path in models.iter().map(Opened::folder) {
            let architecture = Architecture::of(&Config::read(path)?)?;
            request.overrides(path, &architecture)?;
            mixtures += usize::from(architecture.mixture.is_some());
        }
        let routed = !request.is_empty() || self.report_routing || self.routing_svg.is_some();
        if routed && mixtures == 0 {
            return Err(CliError::NoRouting);
        }
        Ok(())
    }

    fn request(&self) -> RoutingRequest {
        RoutingRequest {
            without: self.without.clone(),
            top_k: self.top_k,
            attention_top_k: self.attention_top_k,
        }
    }

    /// Cuts the domains by the first model's tokenizer, and refuses models that read them otherwise.
    fn tokenise(
        &self,
        models: &[Opened],
        domains: Vec<Domain>,
        context: usize,
        printer: &Printer,
    ) -> bam_convert::Result<Vec<Tokens>> {
        let limit = self.max_tokens.map(|tokens| tokens as usize);
        let mut found: Vec<Tokens> = Vec::new();
        let mut bytes: Option<Vec<u8>> = None;
        for path in models.iter().map(Opened::folder) {
            let vocab = Architecture::of(&Config::read(path)?)?.vocab_size;
            let tokenizer = Tokenizer::load(path, vocab)?;
            if let Some(note) = tokenizer.note() {
                printer.note(&format!(" note: {note}"));
            }
            let content = std::fs::read(tokenizer.path()).ok();
            if bytes.is_some() && bytes == content {
                continue;
            }
            if bytes.is_none() {
                for domain in &domains {
                    let windows = domain.windows(&tokenizer, context, limit)?;
                    found.push(Tokens {
                        domain: domain.clone(),
                        windows,
                    });
                }
                bytes = content;
                continue;
            }
            for tokens in &found {
                if tokens.domain.windows(&tokenizer, context, limit)? != tokens.windows {
                    let error = EvaluateError::TokensDiffer {
                        path: tokenizer.path().to_path_buf(),
                        domain: tokens.domain.name.clone(),
                        other: self.checkpoints[0].to_path_buf(),
                    };
                    return Err(error.into());
                }
            }
        }
        Ok(found)
    }

    fn measure(
        &self,
        opened: &Opened,
        name: String,
        model: &CausalLm,
        tokens: &[Tokens],
        tasks: &[Task],
        progress: &dyn Fn(u64),
    ) -> bam_convert::Result<ModelReport> {
        let (path, architecture) = (opened.folder(), model.architecture());
        let overrides = self.request().overrides(path, architecture)?;
        let record =
            (self.report_routing || self.routing_svg.is_some()) && architecture.mixture.is_some();
        let (mut scores, mut routing) = (Vec::new(), Vec::new());
        for Tokens { domain, windows } in tokens {
            let mut recorder = record.then(Recorder::default);
            scores.push(perplexity::score(
                model,
                &domain.name,
                windows,
                &overrides,
                recorder.as_mut(),
                progress,
            )?);
            routing.extend(recorder.map(|recorder| DomainRouting {
                domain: domain.name.clone(),
                routers: recorder.finish(),
            }));
        }

        let results = self.answer(model, path, tasks, &overrides)?;
        let mean = results.iter().map(|result| result.accuracy).sum::<f64>() / results.len() as f64;
        let experts = expert_names(path, architecture)?;
        let left_out = |number: &usize| experts.get(*number).cloned();
        Ok(ModelReport {
            name,
            path: views::shown(opened.typed()).display().to_string(),
            manifest: manifest_hash(opened.typed())?,
            without: overrides.dropped.iter().filter_map(left_out).collect(),
            top_k: overrides.top_k,
            attention_top_k: overrides.attention_top_k,
            experts,
            average: Average::of(&scores),
            domains: scores,
            task_average: (!results.is_empty()).then_some(mean),
            tasks: results,
            routing,
        })
    }

    /// Scores of the tasks.
    fn answer(
        &self,
        model: &CausalLm,
        path: &Path,
        tasks: &[Task],
        overrides: &Overrides,
    ) -> bam_convert::Result<Vec<TaskScore>> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let eos = eos_ids(path)?;
        let settings = TaskSettings {
            shots: self.shots,
            max_tokens: self.answer_tokens,
            eos: &eos,
            overrides,
        };
        let tokenizer = Tokenizer::load(path, model.architecture().vocab_size)?;
        let answered = tasks
            .iter()
            .map(|task| task.run(model, &tokenizer, &settings));
        answered.collect()
    }
}
