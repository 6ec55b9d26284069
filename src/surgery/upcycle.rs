//! From dense models to a mixture: the part that every upcycling method shares.
//!
//! A method decides how experts are made ([`methods`](super::methods)); the mapping of all other tensors is then the same for all.

use super::error::SurgeryError;
use super::execute::OutputFile;
use super::expert_name::{ReservedName, check_name};
use super::fit;
use super::fit_error::FitError;
use super::fit_tokenizer::ids_beyond;
use super::fused::as_stored;
use super::gates::FreshGates;
use super::mapping::{Origin, Work};
use super::methods::{Roster, RuleContext};
use super::model::Model;
use super::plan::{Plan, PlannedTensor, Source};
use super::record;
use super::router::{self, ROUTER_NAME, RouterInit};
use super::twins;
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::family::{
    self, Architecture, AttentionGate, AttentionKv, Mixture, MlpType, TopK, usual_gate_scale,
};

pub use super::names::SEED;
pub use super::settings::{Expert, SharedExpert, UpcycleSettings};

/// A planned mixture.
#[derive(Debug)]
pub struct Upcycling {
    /// The plan of its tensors.
    pub plan: Plan,
    /// What it will be.
    pub architecture: Architecture,
    /// What the gates of a token sum to before any training.
    pub gates: FreshGates,
    /// Configuration, tokenizer, model card.
    pub files: Vec<OutputFile>,
}

/// Experts of a layer, at most: far more than any router chooses from.
const MOST_EXPERTS: u64 = 1 << 16;

/// Plans the mixture of a seed and its experts; no tensor data is read.
///
/// ```
/// use bam_convert::surgery::Model;
/// use bam_convert::surgery::execute::{Target, execute};
/// use bam_convert::surgery::methods::Method;
/// use bam_convert::surgery::upcycle::{Expert, SEED, UpcycleSettings, plan};
///
/// let seed = Model::open(SEED, "fixtures/llama/seed".as_ref())?;
/// let code = Expert {
///     name: "code".to_owned(),
///     model: Some(Model::open("code", "fixtures/llama/code".as_ref())?),
/// };
/// let settings = UpcycleSettings::new(Method::BAM, Method::BAM.parsed([])?);
/// let upcycling = plan(seed, vec![code], &settings)?;
/// let embedding = &upcycling.plan.tensors[0];
/// assert_eq!(embedding.expression.to_string(), "mean(seed, code)");
///
/// // Nothing is written before the plan is executed.
/// let work = tempfile::tempdir().expect("a temporary folder");
/// let out = work.path().join("bam");
/// let manifest = execute(&upcycling.plan, &upcycling.files, &Target::new(&out))?;
/// assert_eq!(manifest.tensors.len(), upcycling.plan.tensors.len());
/// # Ok::<(), bam_convert::Error>(())
/// ```
pub fn plan(seed: Model, experts: Vec<Expert>, settings: &UpcycleSettings) -> Result<Upcycling> {
    check_names(experts.iter().map(|expert| expert.name.as_str()))?;
    if seed.architecture.mixture.is_some() {
        let path = seed.config.path.clone();
        return Err(FitError::MixtureAsSeed { path }.into());
    }
    let mut notes = fit_notes(&seed, &experts, settings)?;
    settings.expert_rule.check(Roster {
        seed_is_expert: settings.seed_expert,
        has_random: experts.iter().any(|expert| expert.model.is_none()),
    })?;

    let lineup = Lineup::of(seed, experts, settings)?;
    let seed = &lineup.models[0].architecture;
    let mixture = lineup.mixture(settings)?;
    let names = settings
        .expert_rule
        .names(&lineup.names, mixture.num_experts);
    let context = context(seed, &mixture, settings);
    let dense = Architecture {
        dtype: settings.dtype.or(seed.dtype),
        ..seed.clone()
    };
    let config = &lineup.models[0].config;
    let output = family::output(&dense, config, mixture, &settings.target)?;
    notes.extend(output.notes);

    let router_file = router::open_file(
        [&settings.router, &settings.attention_router],
        settings.prompt_rows.as_ref(),
    )?;
    let tensors = lineup.tensors(
        &output.architecture,
        router_file.as_ref(),
        context,
        settings,
    )?;

    notes.extend(record::notes(&lineup.models, settings.dtype));
    notes.extend(twins::notes(&lineup.models, &lineup.members())?);
    let gates = FreshGates::of(&output.architecture, settings, &context);
    notes.extend(gates.warnings());
    let rows = settings.prompt_rows.as_ref();
    notes.extend(rows.map_or(&[][..], |rows| &rows.notes).iter().cloned());

    let recorded = record::settings(settings, &names, &output.architecture, &context);
    let described = record::Described {
        models: &lineup.models,
        names: &names,
        architecture: &output.architecture,
        tensors: &tensors,
        settings: &recorded,
        method: settings.method,
        notes: &notes,
        prompts: rows.map_or(&[], |rows| &rows.prompts),
    };
    let mut files = record::files(&described, output.config)?;
    files.extend(router::kept_rows(router_file.as_ref()));

    let used = |name: &str| tensors.iter().any(|tensor| reads(&tensor.expression, name));
    let sources: Vec<Source> = lineup
        .models
        .into_iter()
        .map(|model| model.source)
        .chain(router_file)
        .filter(|source| used(&source.name))
        .collect();
    let plan = Plan {
        method: settings.method.name().to_owned(),
        settings: recorded,
        sources,
        tensors,
        notes,
        carries_non_finite: false,
    };
    Ok(Upcycling {
        plan,
        architecture: output.architecture,
        gates,
        files,
    })
}

/// Refuses experts that do not fit the seed; returns what the user should know of those that do.
fn fit_notes(seed: &Model, experts: &[Expert], settings: &UpcycleSettings) -> Result<Vec<String>> {
    // The average and attention experts take all of a model. Where the rest is the seed's, and attention too, only the
    // feed-forward network must fit.
    let upcycles = settings.method.upcycles();
    let feed_forward_only = settings.rest_of_seed && !upcycles.makes_attention_experts();

    let mut notes: Vec<String> = ids_beyond(seed)?.into_iter().collect();
    for expert in experts.iter().filter_map(|expert| expert.model.as_ref()) {
        if feed_forward_only {
            notes.extend(fit::check_feed_forward(seed, expert)?);
        } else {
            notes.extend(fit::check(seed, expert)?);
        }
    }
    Ok(notes)
}

/// The models of an upcycling, and where its experts come from.
struct Lineup {
    /// Each folder once, the seed first.
    models: Vec<Model>,
    /// Names of the feed-forward networks.
    names: Vec<String>,
    /// Where each feed-forward network comes from.
    origins: Vec<Origin>,
    /// Where each attention expert comes from.
    attention_origins: Vec<Origin>,
    /// The models that are averaged, one entry per expert: a folder that is two experts counts twice.
    averaged: Vec<usize>,
}

impl Lineup {
    fn of(seed: Model, experts: Vec<Expert>, settings: &UpcycleSettings) -> Result<Self> {
        let names = expert_names(&experts, settings);
        let mut models = vec![seed];
        let mut attention_origins = Vec::new();
        if settings.seed_expert {
            attention_origins.push(Origin::Model(0));
        }
        for expert in experts {
            let Some(model) = expert.model else {
                attention_origins.push(Origin::Random);
                continue;
            };
            let known = models
                .iter()
                .position(|earlier| same_folder(earlier, &model));
            let number = known.unwrap_or_else(|| {
                models.push(model);
                models.len() - 1
            });
            attention_origins.push(Origin::Model(number));
        }

        let averaged: Vec<usize> = attention_origins
            .iter()
            .filter_map(|origin| origin.model())
            .collect();
        if averaged.is_empty() && !settings.rest_of_seed {
            return Err(SurgeryError::NoDenseModel.into());
        }

        let mut origins = attention_origins.clone();
        origins.extend((0..settings.seed_copies).map(|_| Origin::Model(0)));
        Ok(Self {
            models,
            names,
            origins,
            attention_origins,
            averaged,
        })
    }

    /// The names of the seed and of the experts with the numbers of their models.
    fn members(&self) -> Vec<(&str, usize)> {
        let names = self.names.iter().map(String::as_str);
        let experts = names.zip(&self.attention_origins);
        let experts = experts.filter_map(|(name, origin)| Some((name, origin.model()?)));
        let others = experts.filter(|(name, _)| *name != SEED);
        std::iter::once((SEED, 0)).chain(others).collect()
    }

    /// The mixture of these experts.
    fn mixture(&self, settings: &UpcycleSettings) -> Result<Mixture> {
        let seed = &self.models[0].architecture;
        let (experts, width) = settings
            .expert_rule
            .size(self.origins.len() as u64, seed.intermediate_size)?;
        if experts > MOST_EXPERTS {
            let most = MOST_EXPERTS;
            return Err(SurgeryError::ManyExperts { experts, most }.into());
        }

        let attention_experts = self.attention_origins.len() as u64;
        Ok(Mixture {
            moe_intermediate_size: width,
            ..mixture(seed, experts, attention_experts, settings)?
        })
    }

    /// Every tensor of the mixture.
    fn tensors(
        &self,
        architecture: &Architecture,
        router_file: Option<&Source>,
        context: RuleContext,
        settings: &UpcycleSettings,
    ) -> Result<Vec<PlannedTensor>> {
        settings
            .scales
            .check(&self.names, settings.shared_expert.is_some())?;
        let shared = settings
            .shared_expert
            .as_ref()
            .map(|shared| shared_model(shared, &self.names, &self.origins))
            .transpose()?;

        let work = Work {
            models: &self.models,
            names: &self.names,
            shared,
            averaged: &self.averaged,
            origins: &self.origins,
            attention_origins: &self.attention_origins,
            settings,
            context,
        };
        as_stored(architecture, work.tensors(architecture, router_file)?)
    }
}

/// What the rule for experts needs to know of the mixture.
fn context(seed: &Architecture, mixture: &Mixture, settings: &UpcycleSettings) -> RuleContext {
    RuleContext {
        width: seed.intermediate_size,
        experts: mixture.num_experts,
        top_k: mixture.num_experts_per_tok,
        norm_topk_prob: mixture.norm_topk_prob,
        cubic: seed.mlp_type == MlpType::Gated || seed.hidden_act == "relu2",
        initializer_range: seed.initializer_range,
        rng_seed: settings.rng_seed,
    }
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
    let seed = ReservedName {
        name: SEED,
        meaning: "the seed itself",
    };
    let mut taken = Vec::new();
    for name in names {
        check_name(name, &taken, &[seed, ROUTER_NAME])?;
        taken.push(name);
    }
    Ok(())
}

/// Names of the feed-forward networks in order.
fn expert_names(experts: &[Expert], settings: &UpcycleSettings) -> Vec<String> {
    let seed = settings.seed_expert.then(|| SEED.to_owned());
    let copies = (0..settings.seed_copies).map(|_| SEED.to_owned());
    seed.into_iter()
        .chain(experts.iter().map(|expert| expert.name.clone()))
        .chain(copies)
        .collect()
}

/// The number of the model that the shared expert is of.
fn shared_model(shared: &SharedExpert, names: &[String], origins: &[Origin]) -> Result<usize> {
    if shared.of == SEED {
        return Ok(0);
    }
    match names
        .iter()
        .position(|name| *name == shared.of)
        .map(|number| origins[number])
    {
        Some(Origin::Model(model)) => Ok(model),
        Some(Origin::Random) => {
            let name = shared.of.clone();
            Err(SurgeryError::RandomSharedExpert { name }.into())
        }
        None => Err(SurgeryError::UnknownExpert {
            argument: format!("--shared-expert {}", shared.of),
            name: shared.of.clone(),
            known: names.iter().cloned().chain([SEED.to_owned()]).collect(),
        }
        .into()),
    }
}

/// The mixture of the settings; combinations that cannot be trained are refused.
fn mixture(
    dense: &Architecture,
    experts: u64,
    attention_experts: u64,
    settings: &UpcycleSettings,
) -> Result<Mixture> {
    let merged = !settings.method.upcycles().makes_attention_experts();
    let usual = settings
        .method
        .default_top_k(Some(&*settings.expert_rule), &settings.target);
    let routing = settings.routing.resolve(usual, experts);
    let top_k = routed(routing.top_k, experts, "--top-k")?;
    let attention_top_k = if merged {
        1
    } else {
        routed(
            routing.attention_top_k,
            attention_experts,
            "--attention-top-k",
        )?
    };
    let (attention_gate, attention_gate_scale) = if merged {
        (AttentionGate::Softmax, None)
    } else {
        gate_and_scale(settings.attention_gate, attention_experts, attention_top_k)?
    };
    if routing.norm_topk_prob && top_k == 1 && experts > 1 {
        return Err(SurgeryError::OneGate.into());
    }
    if settings.router == RouterInit::Zeros && top_k < experts {
        return Err(SurgeryError::ZeroRouter.into());
    }
    Ok(Mixture {
        num_attention_experts: if merged { 1 } else { attention_experts },
        attention_kv: if merged {
            AttentionKv::Merged
        } else {
            settings.kv
        },
        num_experts_per_tok: top_k,
        num_attention_experts_per_tok: attention_top_k,
        norm_topk_prob: routing.norm_topk_prob,
        attention_gate,
        attention_gate_scale,
        moe_layers: settings.layers.clone(),
        shared_expert_intermediate_size: settings
            .shared_expert
            .as_ref()
            .map(|_| dense.intermediate_size),
        shared_expert_gate: settings
            .shared_expert
            .as_ref()
            .is_some_and(|shared| shared.gated),
        expert_adapters: settings.adapters,
        router_bias: settings.router_bias,
        ..Mixture::new(dense, experts)
    })
}

/// How attention is gated, and the factor on the gates where that is not 1.
fn gate_and_scale(
    gate: AttentionGate,
    experts: u64,
    top_k: u64,
) -> Result<(AttentionGate, Option<f64>)> {
    match gate {
        AttentionGate::Softmax => Ok((gate, None)),
        AttentionGate::Sigmoid if top_k == experts => {
            let scale = Some(usual_gate_scale(experts));
            Ok((gate, scale.filter(|scale| *scale != 1.0)))
        }
        AttentionGate::Sigmoid => {
            let found = top_k;
            Err(SurgeryError::SigmoidTopK { found, experts }.into())
        }
    }
}

/// The number of experts a token goes to; more than there are is refused.
pub(super) fn routed(top_k: TopK, experts: u64, flag: &'static str) -> Result<u64> {
    match top_k.of(experts) {
        count if count <= experts => Ok(count),
        found => Err(SurgeryError::ManyPerToken {
            flag,
            found,
            experts,
        }
        .into()),
    }
}
