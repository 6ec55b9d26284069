//! Experts of a mixture, one by one: added, removed, replaced.
//!
//! The first feed-forward experts of a mixture are those with attention experts. Further copies of the seed's feed-forward
//! network, which an upcycling can add, follow them. All operations keep this order.

use serde_json::{Map, Value, json};

use super::error::SurgeryError;
use super::execute::OutputFile;
use super::expert_name::{ReservedName, check_name};
use super::fit;
use super::fused::as_stored;
use super::mixture_experts::MixtureExperts;
pub use super::mixture_experts::Routing;
use super::model::Model;
use super::neutral::has_neutral_shared_expert;
use super::plan::{Plan, Source};
use super::recompose::{Composition, NewRows, Part, Shared};
use super::router::{self, PromptRows, ROUTER_NAME, RouterInit};
use super::side_files;
use crate::Result;
use crate::card::{CardModel, ModelCard, PromptsOfExpert, Relation, method_tags};
use crate::checkpoint::hash::sha256;
use crate::family::{self, Architecture, AttentionKv, Mixture, Output};
use crate::markdown;

/// What plans call the mixture that is changed.
pub const MIXTURE: &str = "mixture";

/// Settings of [`add`].
#[derive(Clone, Debug)]
pub struct Addition {
    /// Whether shared tensors move to the weighted mean φ ← (1 − λ)φ + λφ_new with λ = 1/(n + 1), n being the number of
    /// experts before (Nexus, Gritsch et al. 2024); else they stay.
    pub mean: bool,
    /// How the new rows of feed-forward routers start.
    pub router: RouterInit,
    /// How the new rows of attention routers start.
    pub attention_router: RouterInit,
    /// The rows of [`RouterInit::Prompts`].
    pub prompt_rows: Option<PromptRows>,
    /// Seed of all random draws.
    pub rng_seed: u64,
    /// How many experts a token goes to.
    pub routing: Routing,
}

/// A planned change of a mixture.
#[derive(Debug)]
pub struct Changed {
    /// The plan of its tensors.
    pub plan: Plan,
    /// What it will be.
    pub architecture: Architecture,
    /// Configuration, tokenizer, model card.
    pub files: Vec<OutputFile>,
}

/// Plans the mixture with further experts after its own. Each is the dense model of its name.
pub fn add(mixture: Model, dense: Vec<Model>, settings: &Addition) -> Result<Changed> {
    let experts = MixtureExperts::of(&mixture)?;
    let notes = check_new(&mixture, &experts, &dense, settings)?;
    let (mut ffn, mut attention) = experts.kept();
    let mut names = experts.names.clone();
    let new = |number: usize| Part::New { model: number + 1 };
    // After the last with attention of its own, and before further copies of the seed's feed-forward.
    let place = if attention.is_empty() {
        ffn.len()
    } else {
        attention.len()
    };
    ffn.splice(place..place, (0..dense.len()).map(new));
    names.splice(
        place..place,
        dense.iter().map(|model| model.source.name.clone()),
    );
    if !attention.is_empty() {
        attention.extend((0..dense.len()).map(new));
    }
    let resized = experts.resized(ffn.len(), attention.len(), settings.routing)?;
    let chooses = resized.num_experts_per_tok < resized.num_experts;
    if settings.router == RouterInit::Zeros && chooses && dense.len() > 1 {
        return Err(SurgeryError::ZeroNewRows.into());
    }
    let composition = Composition {
        shared: settings.shared(experts.mixture.num_experts, dense.len()),
        rows: Some(NewRows {
            ffn: settings.router.clone(),
            attention: settings.attention_router.clone(),
            seed: seed_of_rows(settings.rng_seed, &dense[0].source.name),
        }),
        ffn,
        attention,
    };
    let rows = settings.prompt_rows.as_ref();
    let routers = [&settings.router, &settings.attention_router];
    Making {
        file: router::open_file(routers, rows)?,
        recorded: settings.recorded(&names, &dense, !composition.attention.is_empty()),
        models: [mixture].into_iter().chain(dense).collect(),
        notes,
        names,
        mixture: resized,
        composition,
        method: "expert add",
        prompts: rows.map_or_else(Vec::new, |rows| rows.prompts.clone()),
    }
    .plan()
}

/// Refuses dense models that cannot become experts of the mixture, and returns notes about those that can.
fn check_new(
    mixture: &Model,
    experts: &MixtureExperts,
    dense: &[Model],
    settings: &Addition,
) -> Result<Vec<String>> {
    let mixture_name = ReservedName {
        name: MIXTURE,
        meaning: "the mixture itself",
    };
    let mut taken: Vec<&str> = experts.names.iter().map(String::as_str).collect();
    for model in dense {
        let name = model.source.name.as_str();
        check_name(name, &taken, &[mixture_name, ROUTER_NAME])?;
        taken.push(name);
    }
    if dense.is_empty() {
        return Err(SurgeryError::NoModels {
            action: "add",
            expected: "at least one --expert NAME=DIR",
        }
        .into());
    }

    let feed_forward_only = experts.attention() == 0 && !settings.mean;
    let rows = settings.prompt_rows.as_ref();
    let mut notes = rows.map_or_else(Vec::new, |rows| rows.notes.clone());
    for model in dense {
        notes.extend(fit::check_expert(mixture, model, feed_forward_only)?);
    }
    Ok(notes)
}

impl Addition {
    /// What becomes of shared tensors when `new` experts join `count` others.
    fn shared(&self, count: u64, new: usize) -> Shared {
        if !self.mean {
            return Shared::Kept;
        }
        let weights = [count as f64].into_iter();
        Shared::Averaged(weights.chain(std::iter::repeat_n(1.0, new)).collect())
    }

    /// The settings as the manifest has them.
    fn recorded(
        &self,
        names: &[String],
        dense: &[Model],
        has_attention: bool,
    ) -> Map<String, Value> {
        let mut recorded = Map::new();
        let mut put = |key: &str, value: Value| recorded.insert(key.to_owned(), value);
        let added = dense.iter().map(|model| model.source.name.as_str());
        put("experts", json!(names));
        put("added", added.collect());
        put("shared", json!(if self.mean { "mean" } else { "keep" }));
        put("router", json!(self.router.to_string()));
        if has_attention {
            let router = self.attention_router.to_string();
            put("attention_router", json!(router));
        }
        if let Some(rows) = &self.prompt_rows {
            let prompts = json!({"gate_mode": rows.mode, "sha256": rows.prompts_sha256});
            put("router_prompts", prompts);
        }
        put("rng_seed", json!(self.rng_seed));
        recorded
    }
}

/// A seed of its own for each addition: the rows that a mixture has may have been drawn for the same tensor by the same seed.
fn seed_of_rows(rng_seed: u64, expert: &str) -> u64 {
    let hash = sha256(format!("expert add\0{rng_seed}\0{expert}").as_bytes());
    u64::from_str_radix(&hash[..13], 16).unwrap_or(rng_seed)
}

/// Plans the mixture without the experts of these names or numbers.
pub fn remove(mixture: Model, wanted: &[String], routing: Routing) -> Result<Changed> {
    let experts = MixtureExperts::of(&mixture)?;
    let mut gone = Vec::new();
    for name in wanted {
        gone.extend(experts.find(name)?);
    }
    let stays = |part: &Part| !matches!(part, Part::Of { expert, .. } if gone.contains(&(*expert as usize)));
    let (mut ffn, mut attention) = experts.kept();
    ffn.retain(stays);
    attention.retain(stays);
    let path = &mixture.source.checkpoint.path;
    if ffn.is_empty() || (attention.is_empty() && experts.attention() > 0) {
        let kind = if ffn.is_empty() {
            "feed-forward"
        } else {
            "attention"
        };
        let path = path.clone();
        return Err(SurgeryError::NoExpertLeft { path, kind }.into());
    }
    let removed: Vec<&String> = (0..experts.names.len())
        .filter(|e| gone.contains(e))
        .map(|e| &experts.names[e])
        .collect();
    let removed = json!(removed);
    let names: Vec<String> = (0..experts.names.len())
        .filter(|e| !gone.contains(e))
        .map(|e| experts.names[e].clone())
        .collect();
    let resized = experts.resized(ffn.len(), attention.len(), routing)?;
    let mut recorded = Map::new();
    recorded.insert("experts".to_owned(), json!(names));
    recorded.insert("removed".to_owned(), removed);
    let models = vec![mixture];
    let composition = Composition {
        ffn,
        attention,
        shared: Shared::Kept,
        rows: None,
    };
    Making {
        models,
        file: None,
        notes: Vec::new(),
        names,
        mixture: resized,
        composition,
        recorded,
        method: "expert remove",
        prompts: Vec::new(),
    }
    .plan()
}

/// Plans the mixture in which a dense model's weights replace the weights of one expert, given by name or number. Its router
/// rows and all shared tensors stay.
pub fn replace(mixture: Model, wanted: &str, dense: Model) -> Result<Changed> {
    let experts = MixtureExperts::of(&mixture)?;
    let (number, name) = experts.find_one(wanted)?;
    let notes = fit::check_expert(&mixture, &dense, experts.attention() == 0)?;
    let (mut ffn, mut attention) = experts.kept();
    let replaced = Part::Replaced {
        expert: number as u64,
        model: 1,
    };
    ffn[number] = replaced;
    if let Some(part) = attention.get_mut(number) {
        *part = replaced;
    }
    let names = experts.names.clone();
    let resized = experts.mixture.clone();
    let mut recorded = Map::new();
    recorded.insert("experts".to_owned(), json!(names));
    recorded.insert("replaced".to_owned(), json!(name));
    let models = vec![mixture, dense];
    let composition = Composition {
        ffn,
        attention,
        shared: Shared::Kept,
        rows: None,
    };
    Making {
        models,
        file: None,
        notes,
        names,
        mixture: resized,
        composition,
        recorded,
        method: "expert replace",
        prompts: Vec::new(),
    }
    .plan()
}

/// What all of these have in common: the configuration, the files and the plan.
pub(super) struct Making {
    pub models: Vec<Model>,
    pub file: Option<Source>,
    pub notes: Vec<String>,
    pub names: Vec<String>,
    pub mixture: Mixture,
    pub composition: Composition,
    pub recorded: Map<String, Value>,
    pub method: &'static str,
    /// The prompts that new rows were computed from.
    pub prompts: Vec<PromptsOfExpert>,
}

/// What was done to the mixture, with the names of its experts.
fn about(method: &str, recorded: &Map<String, Value>) -> String {
    let names = |key: &str| match recorded.get(key) {
        Some(Value::Array(names)) => {
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            markdown::text(&names.join(", "))
        }
        Some(Value::String(name)) => markdown::text(name),
        _ => "some".to_owned(),
    };
    match method {
        "expert concat" => {
            "Two-expert mixtures that were trained apart, put together (FlexOlmo, Shi et al. 2025)."
                .to_owned()
        }
        "expert add" => format!(
            "A mixture of experts, with experts added after it was made: {}.",
            names("added")
        ),
        "expert remove" => format!(
            "A mixture of experts, with some of its experts removed: {}.",
            names("removed")
        ),
        _ => format!(
            "A mixture of experts, in which a dense model has replaced the expert {}.",
            names("replaced")
        ),
    }
}

/// Puts the numbers of chosen experts into the settings.
fn record_routing(recorded: &mut Map<String, Value>, mixture: &Mixture) {
    recorded.insert("top_k".to_owned(), json!(mixture.num_experts_per_tok));
    if mixture.attention_kv != AttentionKv::Merged {
        let chosen = json!(mixture.num_attention_experts_per_tok);
        recorded.insert("attention_top_k".to_owned(), chosen);
    }
}

/// Tags of the card, with those that the card of `base` has for its methods.
fn tags(base: &Model, is_merge: bool) -> Vec<String> {
    let own = ["moe"].into_iter().chain(is_merge.then_some("merge"));
    let mut tags: Vec<String> = own.map(str::to_owned).collect();
    let kept = method_tags(&base.source.checkpoint.path);
    tags.extend(
        kept.into_iter()
            .filter(|tag| !is_merge || tag.as_str() != "merge"),
    );
    tags
}

impl Making {
    pub fn plan(self) -> Result<Changed> {
        let Self {
            models,
            file,
            mut notes,
            names,
            mixture,
            composition,
            mut recorded,
            method,
            prompts,
        } = self;
        let base = &models[0];
        record_routing(&mut recorded, &mixture);
        let bam = base.architecture.is_bam();
        let without = Architecture {
            mixture: None,
            ..base.architecture.clone()
        };
        let Output {
            architecture,
            mut config,
            notes: of_config,
        } = family::output(&without, &base.config, mixture, &base.architecture.family)?;
        notes.extend(of_config);
        if bam || config.contains_key("expert_names") {
            config.insert("expert_names".to_owned(), json!(names));
        }

        let mut files = vec![side_files::json_file("config.json", &config)];
        files.extend(bam.then(side_files::model_code).into_iter().flatten());
        files.extend(side_files::copies(base.companions()?));
        files.extend(router::kept_rows(file.as_ref()));

        let tensors = composition.tensors(&architecture, &models, file.as_ref())?;
        let is_merge = models.len() > 1;
        let tags = tags(base, is_merge);
        let card = ModelCard {
            title: "Mixture of experts",
            about: about(method, &recorded),
            tags: &tags.iter().map(String::as_str).collect::<Vec<_>>(),
            relation: is_merge.then_some(Relation::Merge),
            sources: side_files::named(models.iter().map(|model| &model.source)),
            settings: &recorded,
            model: Some(CardModel {
                architecture: &architecture,
                experts: names,
                has_tokenizer: side_files::has_tokenizer(&files),
                has_neutral_shared_expert: has_neutral_shared_expert(
                    &architecture,
                    &tensors,
                    models.iter().map(|model| &model.source),
                )?,
            }),
            training: None,
            copy_of: None,
            notes: &notes,
            prompts: &prompts,
        };
        side_files::add_card(&mut files, &card)?;
        let tensors = as_stored(&architecture, tensors)?;
        let sources = models
            .into_iter()
            .map(|model| model.source)
            .chain(file)
            .collect();
        let plan = Plan {
            method: method.to_owned(),
            settings: recorded,
            sources,
            tensors,
            notes,
            carries_non_finite: false,
        };
        Ok(Changed {
            plan,
            architecture,
            files,
        })
    }
}
