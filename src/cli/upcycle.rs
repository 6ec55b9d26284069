//! `upcycle`: dense models into a mixture of experts.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use bam_convert::arguments::{
    ArgumentRole, ArgumentValue, CheckpointPath, Named, OutputPath, TextsPath,
};
use bam_convert::checkpoint::dtype::{self, Dtype};
use bam_convert::checkpoint::output::check_target;
use bam_convert::family::{
    self, Architecture, AttentionGate, AttentionKv, BAM, Mixture, RouterBias, RoutingPreset,
    RoutingRequest, TopK,
};
use bam_convert::mergekit::Dialect;
use bam_convert::pipeline::{Declaration, RecordedSettings, StageUse, is_before};
use bam_convert::surgery::Model;
use bam_convert::surgery::methods::{self, ExpertRule, Method};
use bam_convert::surgery::router::RouterInit;
use bam_convert::surgery::upcycle::{Expert, SEED, UpcycleSettings, check_names, plan};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::Outcome;
use super::check::{Check, Untrained};
use super::error::{self, CliError};
use super::methods::MethodArguments;
use super::mixture_values::{AttentionGateName, KvName, MeanOrSeed, RouterBiasName};
use super::printer::Printer;
use super::prompts::ComputedRows;
use super::verb::Verb;
use super::write::{WriteArguments, routers};

/// Make a mixture of experts out of a dense seed and models that were trained from it.
///
/// With `bam` and `btx` experts are copies, byte for byte: of the feed-forward weights and, with `bam`, of the
/// attention weights. `interpolate` puts each expert between the seed and its model. With these three everything else
/// is the average over the dense models, the seed included. The other methods make feed-forward experts of the seed
/// alone and keep the rest of it. Routers start fresh. The output records how each tensor was made; `validate --against` replays it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  bam-convert upcycle --method bam --seed seed --expert code=code --expert law=law --out bam\n  bam-convert upcycle --method drop --seed seed --experts 8 --top-k 2 --out drop"
)]
pub struct Arguments {
    #[arg(long, value_name = "METHOD", help = method_help())]
    method: Method,
    /// Folder of the dense seed: expert 0.
    #[arg(long, value_name = "DIR")]
    seed: CheckpointPath,
    /// An expert: its name and the folder of its dense model, or `random` for a freshly initialised one (repeat).
    #[arg(long = "expert", value_name = "NAME=DIR")]
    experts: Vec<Named<ExpertSource>>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// Whether attention experts have their own keys and values, or share one set (`bam`) [default: expert].
    #[arg(long, value_enum)]
    kv: Option<KvName>,
    /// Shared keys and values: the average of all, or the seed's (`bam` with `--kv shared`) [default: as --rest].
    #[arg(long, value_enum)]
    shared_kv: Option<MeanOrSeed>,
    /// Weights outside the experts: the average of the dense models, or the seed's own [default: mean].
    #[arg(long, value_enum)]
    rest: Option<MeanOrSeed>,
    /// Other defaults of the routing. With `paper` a token goes to one feed-forward expert, whose gate is raw, and to all
    /// attention experts. Flags win.
    #[arg(long, value_enum, value_name = "PRESET")]
    preset: Option<RoutingPreset>,
    /// Feed-forward experts a token goes to, or `soft` for all of them, weighted. [default: 2 with `bam`, `btx` and other
    /// targets than `bam`; with `granular` at least the granularity; otherwise 1].
    #[arg(long, value_name = "K")]
    top_k: Option<TopK>,
    /// Attention experts a token goes to, or `soft` for all of them, weighted (`bam`) [default: soft].
    #[arg(long, value_name = "K")]
    attention_top_k: Option<TopK>,
    /// How attention gates come from logits: a softmax over the experts, or each expert's own sigmoid times 2 / the number
    /// of experts (`bam`, soft attention routing) [default: softmax].
    #[arg(long, value_enum, value_name = "GATE")]
    attention_gate: Option<AttentionGateName>,
    /// Divide the gates of the selected feed-forward experts by their sum [default: true where a token goes to more than
    /// one].
    #[arg(long, value_name = "BOOL")]
    norm_topk_prob: Option<bool>,
    /// Architecture of the output: a BAM, or what other programs read without code beside it (docs/reference/targets.md).
    #[arg(long, value_name = "FAMILY", default_value = BAM, value_parser = PossibleValuesParser::new(targets()))]
    target: String,
    /// Take the seed out of the experts and out of the averages.
    #[arg(long)]
    no_seed_expert: bool,
    /// Further copies of the seed's feed-forward weights as experts; averages do not change.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed_copies: u16,
    /// How routers start: normal[:STD], uniform[:STD], zeros, orthogonal[:GAIN], file:PATH (safetensors) or
    /// prompts:PATH, rows that the seed computes from prompts for each expert (docs/reference/routers.md).
    #[arg(long, value_name = "KIND[:PATH]", default_value = "normal:0.02")]
    router: RouterInit,
    /// How attention routers start (`bam`) [default: as --router].
    #[arg(long, value_name = "KIND[:PATH]")]
    attention_router: Option<RouterInit>,
    /// Dtype of all weights but the routers [default: the models' own].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    dtype: Option<Dtype>,
    /// Dtype of the routers [default: the checkpoint's].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    router_dtype: Option<Dtype>,
    /// Biases of the routers, which start at zero [default: none]. `logits` adds them to the logits. `choice` lets the
    /// biases of feed-forward routers count in the choice of experts alone, to balance their load without a loss.
    #[arg(long, value_enum)]
    router_bias: Option<RouterBiasName>,
    /// Give each expert a square matrix after its output, the identity at first: train only these and the routers.
    #[arg(long)]
    adapters: bool,
    /// Seed of everything random.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rng_seed: u64,
    /// Measure the perplexity of each source and of the mixture on the beginning of this text (as for `eval --data`, 4096
    /// tokens). It shows what the surgery has cost, before any training.
    #[arg(long, value_name = "TEXT")]
    check: Option<TextsPath>,
    #[command(flatten)]
    methods: MethodArguments,
    #[command(flatten)]
    write: WriteArguments,
}

/// The help of `--method`: every method, by what it takes.
fn method_help() -> String {
    let takes_specialists = |method: &Method| method.upcycles().takes_specialists();
    format!(
        "Which surgery: of a seed and specialists {}, of a seed alone {} (docs/reference/methods.md)",
        methods::alternatives(takes_specialists, "`"),
        methods::alternatives(|method| !takes_specialists(method), "`"),
    )
}

/// What an older version left to defaults that have changed since.
///
/// Before 0.2 a token went to one feed-forward expert in a BAM, and no BAM divided gates by their sum. Other targets keep
/// their defaults.
fn former_settings(version: &str, settings: &RecordedSettings) -> Vec<(&'static str, String)> {
    let first = |key: &str| {
        let values = settings.get(key)?;
        values.first().map(String::as_str)
    };
    if !is_before(version, (0, 2)) || first("target").is_some_and(|target| target != BAM) {
        return Vec::new();
    }
    let method = first("method").and_then(|name| name.parse::<Method>().ok());
    let had_one = [Method::BAM, Method::BTX].map(Some).contains(&method);
    let former = [
        ("top-k", had_one.then(|| "1".to_owned())),
        ("norm-topk-prob", Some("false".to_owned())),
    ];
    former
        .into_iter()
        .filter(|(key, _)| first(key).is_none())
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
}

/// Where an expert comes from.
#[derive(Clone, Debug)]
pub enum ExpertSource {
    /// It is freshly initialised.
    Random,
    /// It is this dense model.
    Dense(CheckpointPath),
}

/// The word for an expert that is freshly initialised.
const RANDOM: &str = "random";

impl ArgumentValue for ExpertSource {
    const ROLE: ArgumentRole = ArgumentRole::Checkpoint;

    fn read(text: &OsStr) -> Result<Self, String> {
        if text == RANDOM {
            Ok(Self::Random)
        } else {
            CheckpointPath::read(text).map(Self::Dense)
        }
    }

    fn form() -> String {
        CheckpointPath::form()
    }

    fn places(text: &str) -> Vec<&str> {
        if text == RANDOM {
            Vec::new()
        } else {
            CheckpointPath::places(text)
        }
    }
}

/// The families of mixtures: values of `--target`.
pub fn targets() -> Vec<&'static str> {
    family::targets().to_vec()
}

/// A floating-point dtype by name.
pub fn float_dtype(text: &str) -> Result<Dtype, String> {
    dtype::parse(text)
        .filter(|dtype| dtype::is_float(*dtype))
        .ok_or_else(|| {
            let known = dtype::float_names().join(", ");
            format!("expected one of {known}, found `{text}`")
        })
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration {
            former_settings,
            ..Declaration::new("upcycle", StageUse::Makes).with_settings_file(Dialect::Moe)
        }
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let expert_rule = self.methods.rule(self.method)?;
        self.refuse_misplaced(&*expert_rule)?;
        let seed = Model::open(SEED, &self.seed)?;
        let experts = self.open_experts()?;
        let computed = if *self.write.outline || !self.needs_prompts() {
            None
        } else {
            // What does not fit is refused before a model runs.
            let drawn = self.settings(&seed.architecture, Arc::clone(&expert_rule), None)?;
            plan(Model::open(SEED, &self.seed)?, self.open_experts()?, &drawn)?;
            self.prompt_rows(&seed.architecture, printer)?
        };
        let settings = self.settings(&seed.architecture, expert_rule, computed.as_ref())?;
        let upcycling = plan(seed, experts, &settings)?;
        let check = self
            .check
            .as_deref()
            .filter(|_| !*self.write.outline)
            .map(|text| Check::new(text, self.sources(), printer))
            .transpose()?;
        let (plan, architecture, files) = (
            &upcycling.plan,
            Some(&upcycling.architecture),
            &upcycling.files,
        );
        let untrained = Untrained {
            gates: &upcycling.gates,
            check: check.as_ref(),
        };
        self.write.run_untrained(
            plan,
            architecture,
            files,
            &self.out,
            Some(&untrained),
            printer,
        )
    }

    fn computes(&self) -> bool {
        self.check.is_some() || self.needs_prompts()
    }
}

impl Arguments {
    /// Whether rows of routers are computed from prompts.
    fn needs_prompts(&self) -> bool {
        let routers = [Some(&self.router), self.attention_router.as_ref()];
        routers.into_iter().flatten().any(RouterInit::computes)
    }

    /// The models of the experts, in order; an expert that starts at random has none.
    fn open_experts(&self) -> bam_convert::Result<Vec<Expert>> {
        let mut experts = Vec::with_capacity(self.experts.len());
        for Named { name, value } in &self.experts {
            let model = match value {
                ExpertSource::Random => None,
                ExpertSource::Dense(path) => Some(Model::open(name, path)?),
            };
            experts.push(Expert {
                name: name.clone(),
                model,
            });
        }
        Ok(experts)
    }

    /// The settings of the surgery on `seed`.
    fn settings(
        &self,
        seed: &Architecture,
        expert_rule: Arc<dyn ExpertRule>,
        computed: Option<&ComputedRows>,
    ) -> error::Result<UpcycleSettings> {
        let asked = [
            &self.router,
            self.attention_router.as_ref().unwrap_or(&self.router),
        ];
        let [router, attention_router] = routers(asked, computed.is_some());
        let rest_of_seed = matches!(self.rest, Some(MeanOrSeed::Seed));
        Ok(UpcycleSettings {
            method: self.method,
            layers: self.methods.layers(seed)?,
            shared_expert: self.methods.shared_expert(),
            scales: self.methods.scales()?,
            expert_rule,
            target: self.target.clone(),
            kv: self.kv.map_or(AttentionKv::Expert, KvName::value),
            attention_gate: self
                .attention_gate
                .map_or(AttentionGate::Softmax, AttentionGateName::value),
            shared_kv_of_seed: self
                .shared_kv
                .map_or(rest_of_seed, |of| matches!(of, MeanOrSeed::Seed)),
            rest_of_seed,
            dtype: self.dtype,
            routing: RoutingRequest {
                preset: self.preset,
                top_k: self.top_k,
                attention_top_k: self.attention_top_k,
                norm_topk_prob: self.norm_topk_prob,
            },
            seed_expert: !self.no_seed_expert,
            seed_copies: u64::from(self.seed_copies),
            router,
            attention_router,
            router_dtype: self.router_dtype,
            router_bias: self
                .router_bias
                .map_or(RouterBias::None, RouterBiasName::value),
            adapters: self.adapters,
            prompt_rows: computed.map(|computed| computed.rows.clone()),
            rng_seed: self.rng_seed,
        })
    }

    /// The dense models with their names, the seed first.
    fn sources(&self) -> Vec<(String, PathBuf)> {
        let experts = self
            .experts
            .iter()
            .filter_map(|expert| match &expert.value {
                ExpertSource::Random => None,
                ExpertSource::Dense(path) => Some((expert.name.clone(), path.to_path_buf())),
            });
        std::iter::once((SEED.to_owned(), self.seed.to_path_buf()))
            .chain(experts)
            .collect()
    }

    /// The rows for routers that start from prompts.
    fn prompt_rows(
        &self,
        dense: &Architecture,
        printer: &Printer,
    ) -> error::Result<Option<ComputedRows>> {
        let Some(file) = RouterInit::prompts([Some(&self.router), self.attention_router.as_ref()])?
        else {
            return Ok(None);
        };
        if self.seed_copies > 0 {
            return Err(CliError::CopiesTie);
        }
        check_names(self.experts.iter().map(|expert| expert.name.as_str()))?;
        check_target(&self.out, *self.write.force, &[])?;
        let seed = (!self.no_seed_expert).then(|| SEED.to_owned());
        let names: Vec<String> = seed
            .into_iter()
            .chain(self.experts.iter().map(|expert| expert.name.clone()))
            .collect();
        let mut output = dense.upcycled(Mixture::new(dense, names.len() as u64));
        output.family.clone_from(&self.target);
        if (!self.method.upcycles().makes_attention_experts() || !output.is_bam())
            && let Some(mixture) = &mut output.mixture
        {
            mixture.attention_kv = AttentionKv::Merged;
        }
        if self
            .methods
            .shared_expert()
            .is_some_and(|shared| shared.gated)
            && let Some(mixture) = &mut output.mixture
        {
            mixture.shared_expert_intermediate_size = Some(dense.intermediate_size);
            mixture.shared_expert_gate = true;
        }
        let rows = ComputedRows::new(file, &self.seed, &output, &names, printer)?;
        Ok(Some(rows))
    }

    /// Flags that would be without effect are refused rather than ignored.
    fn refuse_misplaced(&self, expert_rule: &dyn ExpertRule) -> error::Result<()> {
        let shared = matches!(self.kv, Some(KvName::Shared));
        let of_attention = [
            ("--kv", self.kv.is_some()),
            ("--shared-kv", self.shared_kv.is_some()),
            ("--attention-top-k", self.attention_top_k.is_some()),
            ("--attention-gate", self.attention_gate.is_some()),
            ("--attention-router", self.attention_router.is_some()),
        ];
        let of_models = [
            ("--expert", !self.experts.is_empty()),
            ("--no-seed-expert", self.no_seed_expert),
            ("--seed-copies", self.seed_copies > 0),
            ("--rest", self.rest.is_some()),
        ];
        let first = |flags: &[(&'static str, bool)]| {
            flags
                .iter()
                .find(|(_, given)| *given)
                .map(|(flag, _)| *flag)
        };
        let method = self.method.name();
        let upcycles = self.method.upcycles();
        if let Some(flag) = first(&of_attention).filter(|_| !upcycles.makes_attention_experts()) {
            let why = if upcycles.takes_specialists() {
                "averages attention"
            } else {
                "keeps the seed's attention"
            };
            return Err(CliError::WithMethod {
                flag,
                method,
                why,
                owners: methods::alternatives(
                    |method| method.upcycles().makes_attention_experts(),
                    "",
                ),
            });
        }
        if let Some(flag) = first(&of_models).filter(|_| !upcycles.takes_specialists()) {
            return Err(CliError::WithMethod {
                flag,
                method,
                why: "takes all from the seed",
                owners: methods::alternatives(|method| method.upcycles().takes_specialists(), ""),
            });
        }
        if matches!(self.router, RouterInit::Prompts(_)) && !expert_rule.keeps_networks_whole() {
            return Err(CliError::PromptsOfParts);
        }
        if self.shared_kv.is_some() && !shared {
            return Err(CliError::SharedKv);
        }
        Ok(())
    }
}
