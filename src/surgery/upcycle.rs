//! From dense models to a mixture: what every upcycling method shares.
//!
//! A method decides which parts become experts; the mapping is then the same for all (BAM, §4.1): an expert's tensor is a copy of its model's, everything else is the uniform
//! average over the dense models, routers start fresh.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::card::{self, Card};
use super::execute::{Content, OutputFile};
use super::fit;
use super::model::Model;
use super::plan::{Plan, PlannedTensor, Source, as_dtype};
use super::router::{self, PROMPT_ROWS, PromptRows, ROUTER_SOURCE, RouterInit};
use crate::checkpoint::dtype::{self, Dtype};
use crate::checkpoint::expression::Expression;
use crate::family::{self, Architecture, AttentionKv, Method, Mixture, Output, Role, RouterBias, TensorSpec, TopK};
use crate::{Error, Result};

/// Settings of an upcycling, defaults resolved.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which method.
    pub method: Method,
    /// The family of the output.
    pub target: String,
    /// Whether keys and values are experts too (`bam`).
    pub kv: AttentionKv,
    /// Shared keys and values are the seed's instead of the mean.
    pub shared_kv_of_seed: bool,
    /// Routing of the feed-forward experts.
    pub top_k: TopK,
    /// Routing of the attention experts.
    pub attention_top_k: TopK,
    /// Whether the selected gates are renormalised.
    pub norm_topk_prob: bool,
    /// Whether the seed is an expert, and part of the averages.
    pub seed_expert: bool,
    /// Further copies of the seed among the feed-forward experts.
    pub seed_copies: u64,
    /// How feed-forward routers start.
    pub router: RouterInit,
    /// How attention routers start.
    pub attention_router: RouterInit,
    /// Dtype of routers; the checkpoint's where absent.
    pub router_dtype: Option<Dtype>,
    /// Biases of the routers, which start at zero.
    pub router_bias: RouterBias,
    /// Whether each expert gets an adapter on its output, which starts as the identity (BTS, Zhang et al. 2025).
    pub adapters: bool,
    /// What [`RouterInit::Prompts`] stands for, where a router starts so.
    pub prompt_rows: Option<PromptRows>,
    /// What is no expert is the seed's instead of the mean.
    pub rest_of_seed: bool,
    /// Dtype of all weights but the routers; the models' own where absent.
    pub dtype: Option<Dtype>,
    /// Seed of all random draws.
    pub rng_seed: u64,
}

/// An expert: its name, and its model unless it is `random`.
#[derive(Debug)]
pub struct Expert {
    /// Name in the mixture.
    pub name: String,
    /// The dense model; `None` for one that is freshly initialised.
    pub model: Option<Model>,
}

/// The seed's name in plans.
pub const SEED: &str = "seed";

/// A planned mixture.
#[derive(Debug)]
pub struct Upcycling {
    /// The plan of its tensors.
    pub plan: Plan,
    /// What it will be.
    pub architecture: Architecture,
    /// Configuration, tokenizer, model card.
    pub files: Vec<OutputFile>,
}

/// Where an expert's tensors come from.
#[derive(Clone, Copy)]
enum Origin {
    /// Model number, the seed being 0.
    Model(usize),
    Random,
}

impl Origin {
    fn model(self) -> Option<usize> {
        match self {
            Self::Model(model) => Some(model),
            Self::Random => None,
        }
    }
}

/// Plans the mixture of a seed and its experts.
pub fn plan(seed: Model, experts: Vec<Expert>, settings: &Settings) -> Result<Upcycling> {
    check_names(experts.iter().map(|expert| expert.name.as_str()))?;
    if seed.architecture.mixture.is_some() {
        return Err(Error::file(&seed.config.path, "is a mixture already, expected a dense seed"));
    }
    // The average and attention experts take all of a model; where the rest is the seed's, btx takes its feed-forward alone.
    let feed_forward_only = settings.rest_of_seed && settings.method == Method::Btx;
    let mut notes = Vec::new();
    for expert in experts.iter().filter_map(|expert| expert.model.as_ref()) {
        match feed_forward_only {
            true => notes.extend(fit::check_feed_forward(&seed, expert)?),
            false => fit::check(&seed, expert)?,
        }
    }
    let names = expert_names(&experts, settings);
    let mut models = vec![seed];
    let mut origins = Vec::new();
    if settings.seed_expert {
        origins.push(Origin::Model(0));
    }
    for expert in experts {
        origins.push(match expert.model {
            Some(model) => match models.iter().position(|earlier| same_folder(earlier, &model)) {
                Some(earlier) => Origin::Model(earlier),
                None => {
                    models.push(model);
                    Origin::Model(models.len() - 1)
                }
            },
            None => Origin::Random,
        });
    }
    // One part for each expert: a folder that is two experts counts twice.
    let averaged: Vec<usize> = origins.iter().filter_map(|origin| origin.model()).collect();
    let attention_origins = origins.clone();
    origins.extend((0..settings.seed_copies).map(|_| Origin::Model(0)));
    if averaged.is_empty() && !settings.rest_of_seed {
        return Err(Error::usage("no dense model is left to average: --no-seed-expert without an expert")
            .with_hint("pass --expert NAME=DIR, or keep the seed as an expert"));
    }
    let mixture = mixture(&models[0].architecture, origins.len() as u64, attention_origins.len() as u64, settings)?;
    let seed = &models[0].architecture;
    let dense = Architecture { dtype: settings.dtype.or(seed.dtype), ..seed.clone() };
    let Output { architecture, config } = family::output(&dense, &models[0].config, mixture, &settings.target)?;
    let router_file = router::open_file([&settings.router, &settings.attention_router], settings.prompt_rows.as_ref())?;
    let work = Work {
        models: &models,
        averaged: &averaged,
        origins: &origins,
        attention_origins: &attention_origins,
        settings,
    };
    let tensors = work.tensors(&architecture, router_file.as_ref())?;
    let recorded = recorded(settings, &names, &architecture);
    let mut files = output_files(&models, &names, config, &architecture, &recorded, settings.method)?;
    if let Some(rows) = router_file.as_ref().filter(|file| file.kept) {
        let content = Content::CopyOf(rows.checkpoint.path.clone());
        files.push(OutputFile { name: PROMPT_ROWS.to_owned(), content });
    }
    notes.extend(notes_about(&models, settings.dtype));
    let used = |name: &str| tensors.iter().any(|tensor| reads(&tensor.expression, name));
    let sources: Vec<Source> =
        models.into_iter().map(|model| model.source).chain(router_file).filter(|source| used(&source.name)).collect();
    let plan = Plan {
        method: settings.method.name().to_owned(),
        settings: recorded,
        sources,
        tensors,
        notes,
        carries_non_finite: false,
    };
    Ok(Upcycling { plan, architecture, files })
}

/// Whether two models are one folder, which is then read and hashed once.
fn same_folder(a: &Model, b: &Model) -> bool {
    let [a, b] = [a, b].map(|model| std::fs::canonicalize(&model.source.checkpoint.path));
    matches!((a, b), (Ok(a), Ok(b)) if a == b)
}

fn reads(expression: &Expression, source: &str) -> bool {
    let mut found = false;
    expression.for_each_copy(&mut |name, _| found |= name == source);
    found
}

/// Refuses names of experts that are empty, taken or reserved.
pub fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut seen = vec![SEED, ROUTER_SOURCE];
    for name in names {
        if name.is_empty() || seen.contains(&name) {
            let problem = format!("the expert name `{name}` is empty, taken or reserved; expected each name once");
            return Err(Error::usage(problem).with_hint("`seed` is the seed itself; name each --expert differently"));
        }
        seen.push(name);
    }
    Ok(())
}

/// Names of the feed-forward experts in order.
fn expert_names(experts: &[Expert], settings: &Settings) -> Vec<String> {
    let seed = settings.seed_expert.then(|| SEED.to_owned());
    let copies = (0..settings.seed_copies).map(|_| SEED.to_owned());
    seed.into_iter().chain(experts.iter().map(|expert| expert.name.clone())).chain(copies).collect()
}

/// The mixture of the settings; combinations that cannot be trained are refused.
fn mixture(dense: &Architecture, experts: u64, attention_experts: u64, settings: &Settings) -> Result<Mixture> {
    let merged = settings.method == Method::Btx;
    let top_k = routed(settings.top_k, experts, "--top-k")?;
    let attention_top_k =
        if merged { 1 } else { routed(settings.attention_top_k, attention_experts, "--attention-top-k")? };
    if settings.norm_topk_prob && top_k == 1 && experts > 1 {
        return Err(Error::usage(
            "--norm-topk-prob true with --top-k 1 makes every gate 1, so the router gets no gradient",
        )
        .with_hint("pass --top-k 2 or more, or --norm-topk-prob false"));
    }
    if settings.router == RouterInit::Zeros && top_k < experts {
        return Err(Error::usage(
            "--router zeros makes every token tie, and a top-k router then sends all to one expert",
        )
        .with_hint("pass --router normal, or --top-k soft; --attention-router zeros is harmless"));
    }
    Ok(Mixture {
        num_attention_experts: if merged { 1 } else { attention_experts },
        attention_kv: if merged { AttentionKv::Merged } else { settings.kv },
        num_experts_per_tok: top_k,
        num_attention_experts_per_tok: attention_top_k,
        norm_topk_prob: settings.norm_topk_prob,
        expert_adapters: settings.adapters,
        router_bias: settings.router_bias,
        ..Mixture::new(dense, experts)
    })
}

/// The number of experts a token goes to; more than there are is refused.
fn routed(top_k: TopK, experts: u64, flag: &str) -> Result<u64> {
    match top_k.of(experts) {
        count if count <= experts => Ok(count),
        count => Err(Error::usage(format!("{flag} {count} asks for more than the {experts} experts"))
            .with_hint(format!("pass {flag} {experts} or less"))),
    }
}

/// What the tensors of the mixture are made of.
struct Work<'a> {
    models: &'a [Model],
    averaged: &'a [usize],
    origins: &'a [Origin],
    attention_origins: &'a [Origin],
    settings: &'a Settings,
}

type ByRole<'a> = BTreeMap<(Role, bool, Option<u64>), &'a TensorSpec>;

impl Work<'_> {
    fn tensors(&self, target: &Architecture, router_file: Option<&Source>) -> Result<Vec<PlannedTensor>> {
        let dense: Vec<ByRole> = self.models.iter().map(Model::by_role).collect();
        let mut tensors = Vec::new();
        for spec in target.tensors()? {
            let (dtype, expression) = self.tensor(&spec, &dense, router_file)?;
            tensors.push(PlannedTensor::new(spec.name, dtype, spec.shape, expression));
        }
        Ok(tensors)
    }

    fn tensor(&self, spec: &TensorSpec, dense: &[ByRole], router_file: Option<&Source>) -> Result<(Dtype, Expression)> {
        let settings = self.settings;
        let init = match spec.role {
            Role::FfnRouter => Some(&settings.router),
            Role::AttentionRouter => Some(&settings.attention_router),
            _ => None,
        };
        if let Some(init) = init {
            let dtype = settings.router_dtype.unwrap_or_else(|| self.main_dtype());
            if spec.bias {
                return Ok((dtype, self.fresh(spec)));
            }
            return Ok((dtype, init.expression(&spec.name, dtype, &spec.shape, settings.rng_seed, router_file)?));
        }
        if let Some(neutral) = neutral(spec, &self.models[0].architecture) {
            return Ok((self.main_dtype(), neutral));
        }
        if spec.role.only_in_mixtures() {
            return Ok((self.main_dtype(), self.fresh(spec)));
        }
        let of_model = |model: usize| -> Result<(&Model, &TensorSpec, Dtype)> {
            let found = dense[model].get(&(spec.role, spec.bias, spec.layer)).ok_or_else(|| {
                Error::tensor(
                    &self.models[model].source.checkpoint.path,
                    &spec.name,
                    "has no counterpart in this model",
                )
            })?;
            Ok((&self.models[model], found, self.models[model].dtype(found)?))
        };
        let copy_of = |model: usize| -> Result<(Dtype, Expression)> {
            let (model, found, stored) = of_model(model)?;
            let dtype = settings.dtype.unwrap_or(stored);
            Ok((dtype, as_dtype(&model.source, &found.name, dtype)?))
        };
        if let Some(expert) = spec.expert {
            let origins = if spec.role.of_attention() { self.attention_origins } else { self.origins };
            return match origins[expert as usize] {
                Origin::Model(model) => copy_of(model),
                Origin::Random => Ok((settings.dtype.unwrap_or(of_model(0)?.2), self.fresh(spec))),
            };
        }
        let shared_kv = matches!(spec.role, Role::K | Role::V | Role::KNorm) && settings.method == Method::Bam;
        if shared_kv && settings.shared_kv_of_seed {
            return copy_of(0);
        }
        if settings.rest_of_seed {
            return copy_of(0);
        }
        // The seed's dtype is the mixture's, also where the seed itself takes no part in the average.
        let dtype = settings.dtype.unwrap_or(of_model(0)?.2);
        if let [one] = self.averaged
            && (settings.dtype.is_some() || of_model(*one)?.2 == dtype)
        {
            return copy_of(*one);
        }
        let mut parts = Vec::with_capacity(self.averaged.len());
        for model in self.averaged {
            let (source, found, stored) = of_model(*model)?;
            if !dtype::is_float(stored) {
                let path = &source.source.checkpoint.path;
                return Err(Error::tensor(path, &found.name, format!("cannot be averaged: it is stored as {stored}"))
                    .with_hint("average models with floating-point weights"));
            }
            parts.push(Expression::copy(&source.source.name, &found.name));
        }
        Ok((dtype, Expression::Mean { of: parts }))
    }

    /// The dtype of tensors that no model has.
    fn main_dtype(&self) -> Dtype {
        self.settings.dtype.unwrap_or_else(|| self.models[0].main_dtype())
    }

    /// A tensor that no model has, or of a freshly initialised expert: as the family's own models start.
    fn fresh(&self, spec: &TensorSpec) -> Expression {
        let std = self.models[0].architecture.initializer_range;
        super::init::fresh(spec, std, self.settings.rng_seed)
    }
}

/// A parameter that changes nothing, which the family of the output has and the dense models do not.
fn neutral(spec: &TensorSpec, dense: &Architecture) -> Option<Expression> {
    let missing = match spec.role {
        Role::SharedDown | Role::SharedExpertGate => true,
        Role::Q | Role::K | Role::V => spec.bias && !dense.attention_bias,
        Role::O => spec.bias && !dense.attention_output_bias,
        _ => false,
    };
    missing.then_some(Expression::Constant { value: 0.0 })
}

/// The settings as the manifest, the card and the configuration record them.
fn recorded(settings: &Settings, names: &[String], architecture: &Architecture) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("method", json!(settings.method.name()));
    put("target", json!(settings.target));
    put("experts", json!(names));
    if let Some(mixture) = &architecture.mixture {
        if settings.method == Method::Bam {
            put("kv", json!(mixture.attention_kv));
            if mixture.attention_kv == AttentionKv::Shared {
                put("shared_kv", json!(if settings.shared_kv_of_seed { "seed" } else { "mean" }));
            }
            let soft = mixture.num_attention_experts_per_tok == mixture.num_attention_experts;
            let top_k = mixture.num_attention_experts_per_tok;
            put("attention_top_k", if soft { json!("soft") } else { json!(top_k) });
            put("attention_router", json!(settings.attention_router.to_string()));
        }
        put("top_k", json!(mixture.num_experts_per_tok));
        put("norm_topk_prob", json!(mixture.norm_topk_prob));
    }
    put("rest", json!(if settings.rest_of_seed { "seed" } else { "mean" }));
    put("no_seed_expert", json!(!settings.seed_expert));
    put("seed_copies", json!(settings.seed_copies));
    put("router", json!(settings.router.to_string()));
    if let Some(rows) = &settings.prompt_rows {
        put("router_prompts", json!({"gate_mode": rows.mode, "sha256": rows.prompts_sha256}));
    }
    put("router_bias", json!(settings.router_bias));
    put("adapters", json!(settings.adapters));
    put("dtype", json!(settings.dtype.map(dtype::name)));
    put("router_dtype", json!(settings.router_dtype.map(dtype::name)));
    put("rng_seed", json!(settings.rng_seed));
    map
}

fn output_files(
    models: &[Model],
    names: &[String],
    mut config: Map<String, Value>,
    architecture: &Architecture,
    settings: &Map<String, Value>,
    method: Method,
) -> Result<Vec<OutputFile>> {
    let seed = &models[0];
    config.insert("expert_names".to_owned(), json!(names));
    let mut files = vec![card::json_file("config.json", &config)];
    if architecture.is_bam() {
        files.extend(card::model_code());
    }
    files.extend(card::copies(seed.companions()));
    let about = match method {
        Method::Bam => {
            "A BAM mixture (Branch-Attend-Mix, Zhang et al. 2024, arXiv 2408.08274): attention and feed-forward experts upcycled from dense models."
        }
        Method::Btx => {
            "A BTX mixture (Branch-Train-MiX, Sukhbaatar et al. 2024, arXiv 2403.07816): feed-forward experts upcycled from dense models, everything else averaged."
        }
    };
    let tags = ["moe", "merge", method.name()];
    let paths =
        models.iter().map(|model| (model.source.name.as_str(), model.source.checkpoint.path.as_path())).collect();
    let text = Card {
        title: &format!("{} mixture", method.name().to_uppercase()),
        about,
        tags: &tags,
        sources: paths,
        settings,
    }
    .text();
    files.push(OutputFile { name: "README.md".to_owned(), content: Content::Editable(text.into_bytes()) });
    Ok(files)
}

/// What a user should know before the surgery runs.
fn notes_about(models: &[Model], dtype: Option<Dtype>) -> Vec<String> {
    let mut notes = Vec::new();
    for model in models {
        let name = &model.source.name;
        if let Some(first) = model.unused.first() {
            let count = model.unused.len();
            notes.push(format!(
                "{name}: {count} stored tensor(s) that models compute or tie are left out, such as `{first}`"
            ));
        }
        let differing = model.specs.iter().zip(&models[0].specs).find_map(|(spec, of_seed)| {
            let (found, expected) = (model.dtype(spec).ok()?, models[0].dtype(of_seed).ok()?);
            (found != expected).then_some((spec, found, expected))
        });
        if let Some((spec, found, expected)) = differing.filter(|_| dtype.is_none()) {
            notes.push(format!(
                "{name}: stored in another dtype than the seed (`{}` is {found}, the seed's {expected}); experts keep their bytes, averages take the seed's dtype",
                spec.name
            ));
        }
    }
    notes
}
