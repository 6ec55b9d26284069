//! `expert`: a mixture's experts added, removed, replaced, extracted; two-expert mixtures put together.

use bam_convert::arguments::{CheckpointPath, MaybeNamed, Named, OutputPath};
use bam_convert::checkpoint::manifest::model_name;
use bam_convert::checkpoint::output::check_target;
use bam_convert::family::{Architecture, Mixture, TopK};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::expert::{self, Addition, Changed, MIXTURE, Routing};
use bam_convert::surgery::router::RouterInit;
use bam_convert::surgery::{Model, concat, extract};
use clap::{Args, Subcommand, ValueEnum};

use super::Outcome;
use super::error::{self, CliError};
use super::printer::Printer;
use super::prompts::ComputedRows;
use super::verb::Verb;
use super::write::{WriteArguments, routers};

/// Change the experts of a mixture one by one: add, remove, replace, extract, concat.
///
/// Every expert that stays keeps its bytes. The output records how each tensor was made, the mixture being one of its
/// sources; `validate --against` replays it. See docs/reference/experts.md.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert expert add bam --expert law=law --out wider\n  \
                        bam-convert expert remove wider law --out narrower\n  \
                        bam-convert expert extract bam code --out code-again"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(Box<Add>),
    Remove(Remove),
    Replace(Replace),
    Extract(Extract),
    Concat(Concat),
}

/// How many experts a token goes to afterwards.
#[derive(Debug, Args)]
struct RoutingArguments {
    /// Feed-forward experts a token goes to, or `soft` for all of them [default: as before; all stay all].
    #[arg(long, value_name = "K")]
    top_k: Option<TopK>,
    /// Attention experts a token goes to, or `soft` for all of them [default: as before; all stay all].
    #[arg(long, value_name = "K")]
    attention_top_k: Option<TopK>,
}

impl RoutingArguments {
    fn routing(&self) -> Routing {
        Routing {
            top_k: self.top_k,
            attention_top_k: self.attention_top_k,
        }
    }
}

/// Add experts to a mixture, each the feed-forward and, beside attention experts, the attention of a dense model.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  bam-convert expert add bam --expert law=law --shared mean --out wider"
)]
struct Add {
    /// Folder of the mixture.
    mixture: CheckpointPath,
    /// A new expert: its name and the folder of its dense model (repeat).
    #[arg(long = "expert", value_name = "NAME=DIR", required = true)]
    experts: Vec<Named<CheckpointPath>>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// What experts share stays as it is, or moves towards the new models as Nexus does: (n · mixture + new) / (n + 1).
    #[arg(long, value_enum, default_value_t = SharedName::Keep)]
    shared: SharedName,
    /// How the new rows of routers start: normal[:STD], uniform[:STD], zeros, orthogonal[:GAIN], file:PATH (safetensors) or
    /// prompts:PATH, rows that the mixture computes from prompts for each new expert (docs/reference/routers.md).
    #[arg(long, value_name = "KIND[:PATH]", default_value = "normal:0.02")]
    router: RouterInit,
    /// How the new rows of attention routers start [default: as --router].
    #[arg(long, value_name = "KIND[:PATH]")]
    attention_router: Option<RouterInit>,
    /// Seed of everything random.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rng_seed: u64,
    #[command(flatten)]
    routing: RoutingArguments,
    #[command(flatten)]
    write: WriteArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SharedName {
    /// The mixture's.
    Keep,
    /// The weighted mean.
    Mean,
}

/// Remove experts from a mixture, with their rows of the routers.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert expert remove bam law --out narrower")]
struct Remove {
    /// Folder of the mixture.
    mixture: CheckpointPath,
    /// Experts to remove, by name or number; a name that several have means all of them.
    #[arg(value_name = "NAME|NUMBER", required = true)]
    experts: Vec<String>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    #[command(flatten)]
    routing: RoutingArguments,
    #[command(flatten)]
    write: WriteArguments,
}

/// Replace the weights of an expert by the weights of a dense model; its rows of the routers stay.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert expert replace bam code=better-code --out renewed")]
struct Replace {
    /// Folder of the mixture.
    mixture: CheckpointPath,
    /// The expert, by name or number, and the folder of the dense model.
    #[arg(value_name = "NAME=DIR")]
    expert: Named<CheckpointPath>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    #[command(flatten)]
    write: WriteArguments,
}

/// Make a dense model of one expert and what all experts share.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert expert extract bam code --out code-again")]
struct Extract {
    /// Folder of the mixture.
    mixture: CheckpointPath,
    /// The expert, by name or number.
    #[arg(value_name = "NAME|NUMBER")]
    expert: String,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    #[command(flatten)]
    write: WriteArguments,
}

/// Put two-expert mixtures that were trained apart together (FlexOlmo): their public expert once, then the own expert of each.
///
/// What they share, the public expert and its rows of the routers included, must be the same bytes in all of them.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  bam-convert expert concat code=pub-code law=pub-law --out together"
)]
struct Concat {
    /// Folders of mixtures, each of the public expert and its own, in this order; NAME= names its own expert.
    #[arg(value_name = "[NAME=]DIR", required = true, num_args = 1..)]
    mixtures: Vec<MaybeNamed<CheckpointPath>>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    /// Average what is shared where it differs, instead of refusing it.
    #[arg(long)]
    average_shared: bool,
    #[command(flatten)]
    routing: RoutingArguments,
    #[command(flatten)]
    write: WriteArguments,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("expert", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let (changed, write, out) = match &self.command {
            Command::Add(add) => (add.plan(printer)?, &add.write, &add.out),
            Command::Remove(remove) => {
                let mixture = Model::open(MIXTURE, &remove.mixture)?;
                let changed = expert::remove(mixture, &remove.experts, remove.routing.routing())?;
                (Planned::from(changed), &remove.write, &remove.out)
            }
            Command::Replace(replace) => {
                let Named {
                    name,
                    value: folder,
                } = &replace.expert;
                let (mixture, dense) = (
                    Model::open(MIXTURE, &replace.mixture)?,
                    Model::open(name, folder)?,
                );
                (
                    Planned::from(expert::replace(mixture, name, dense)?),
                    &replace.write,
                    &replace.out,
                )
            }
            Command::Extract(extract) => {
                let changed =
                    extract::plan(Model::open(MIXTURE, &extract.mixture)?, &extract.expert)?;
                (Planned::from(changed), &extract.write, &extract.out)
            }
            Command::Concat(concat) => (Planned::from(concat.plan()?), &concat.write, &concat.out),
        };
        let Changed {
            plan,
            architecture,
            files,
        } = &changed.changed;
        write.run(plan, Some(architecture), files, out, printer)
    }

    fn computes(&self) -> bool {
        let Command::Add(add) = &self.command else {
            return false;
        };
        let routers = [Some(&add.router), add.attention_router.as_ref()];
        routers.into_iter().flatten().any(RouterInit::computes)
    }
}

/// A plan, and the computed rows that it reads while it is carried out.
struct Planned {
    changed: Changed,
    _rows: Option<ComputedRows>,
}

impl From<Changed> for Planned {
    fn from(changed: Changed) -> Self {
        Self {
            changed,
            _rows: None,
        }
    }
}

impl Add {
    fn plan(&self, printer: &Printer) -> bam_convert::Result<Planned> {
        let mixture = Model::open(MIXTURE, &self.mixture)?;
        let experts = self
            .experts
            .iter()
            .map(|Named { name, value }| Model::open(name, value));
        let experts = experts.collect::<bam_convert::Result<_>>()?;
        let rows = if *self.write.outline {
            None
        } else {
            self.prompt_rows(&mixture.architecture, printer)?
        };
        let asked = [
            &self.router,
            self.attention_router.as_ref().unwrap_or(&self.router),
        ];
        let [router, attention_router] = routers(asked, rows.is_some());
        let settings = Addition {
            mean: self.shared == SharedName::Mean,
            router,
            attention_router,
            prompt_rows: rows.as_ref().map(|computed| computed.rows.clone()),
            rng_seed: self.rng_seed,
            routing: self.routing.routing(),
        };
        Ok(Planned {
            changed: expert::add(mixture, experts, &settings)?,
            _rows: rows,
        })
    }

    /// The rows of new experts that start from prompts, computed by the mixture.
    fn prompt_rows(
        &self,
        mixture: &Architecture,
        printer: &Printer,
    ) -> bam_convert::Result<Option<ComputedRows>> {
        let Some(file) = RouterInit::prompts([Some(&self.router), self.attention_router.as_ref()])?
        else {
            return Ok(None);
        };
        check_target(&self.out, *self.write.force, &[])?;
        let names: Vec<String> = self
            .experts
            .iter()
            .map(|expert| expert.name.clone())
            .collect();
        let sized = mixture.mixture.clone().map(|found| Mixture {
            num_experts: names.len() as u64,
            num_attention_experts: names.len() as u64,
            num_experts_per_tok: 1,
            num_attention_experts_per_tok: 1,
            ..found
        });
        let routers = Architecture {
            mixture: sized,
            ..mixture.clone()
        };
        ComputedRows::new(file, &self.mixture, &routers, &names, printer).map(Some)
    }
}

impl Concat {
    fn plan(&self) -> error::Result<Changed> {
        let mut mixtures: Vec<(Model, bool)> = Vec::with_capacity(self.mixtures.len());
        for MaybeNamed { name, value } in &self.mixtures {
            let own = name.clone().unwrap_or_else(|| model_name(value));
            if mixtures.iter().any(|(other, _)| other.source.name == own) {
                return Err(CliError::RepeatedMixture { name: own });
            }
            mixtures.push((Model::open(&own, value)?, name.is_some()));
        }
        let routing = self.routing.routing();
        Ok(concat::plan(mixtures, self.average_shared, routing)?)
    }
}
