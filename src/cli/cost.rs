//! `cost`: parameters, FLOPs and cache of a configuration, without weights.

use bam_convert::arguments::CheckpointPath;
use bam_convert::family::cost::{CostedMethod, PAPER_CONTEXT, Report, Request, table};
use bam_convert::family::{BAM, Config, RoutingPreset, RoutingRequest, TopK};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::methods::Method;
use clap::Args;

use super::error::CliError;
use super::methods::SizeArguments;
use super::mixture_values::KvName;
use super::printer::Printer;
use super::verb::{HubUse, Verb};
use super::{Outcome, Verdict};

/// Count the parameters, FLOPs and cache of a model or of the mixture it would become.
///
/// Reads only a configuration. FLOPs are counted as in the BAM paper (Tables 7 and 10), per token and
/// layer. Without --method, --kv, --experts, --preset, --top-k or --attention-top-k the model is costed as it is.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  bam-convert cost seed --method bam --kv shared --experts 4 --context 256"
)]
pub struct Arguments {
    /// A config.json, or a folder that holds one.
    config: CheckpointPath,
    /// Cost the mixture that this method makes.
    #[arg(long, value_name = "METHOD")]
    method: Option<Method>,
    /// Keys and values per expert or shared.
    #[arg(long, value_enum)]
    kv: Option<KvName>,
    /// Experts, the seed counted; with `granular` before they are cut [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    experts: Option<u64>,
    #[command(flatten)]
    size: SizeArguments,
    /// Other defaults of the routing. With `paper` a token goes to one feed-forward expert and all attention experts.
    #[arg(long, value_enum, value_name = "PRESET")]
    preset: Option<RoutingPreset>,
    /// Feed-forward experts a token goes to, or `soft` [default: the config's, else as `upcycle` has it].
    #[arg(long, value_name = "K")]
    top_k: Option<TopK>,
    /// Attention experts a token goes to, or `soft` [default: soft].
    #[arg(long, value_name = "K")]
    attention_top_k: Option<TopK>,
    /// Tokens of context for the FLOPs of attention.
    #[arg(long, value_name = "TOKENS", default_value_t = PAPER_CONTEXT)]
    context: u64,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("cost", StageUse::Makes)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let config = Config::read(&self.config)?;
        let rule = self.size.rule(self.method, self.experts)?;
        let mut request = Request {
            method: self.method.map(|method| CostedMethod {
                name: method.name(),
                attention_experts: method.upcycles().makes_attention_experts(),
                usual_top_k: method.default_top_k(rule.as_deref(), BAM),
            }),
            kv: self.kv.map(KvName::value),
            experts: self.experts,
            expert_width: None,
            routing: RoutingRequest {
                preset: self.preset,
                top_k: self.top_k,
                attention_top_k: self.attention_top_k,
                norm_topk_prob: None,
            },
        };
        if let Some(rule) = rule {
            let dense = Request::default().architecture(&config)?;
            let (experts, width) = rule.size(1, dense.intermediate_size)?;
            (request.experts, request.expert_width) = (Some(experts), Some(width));
        }
        let report =
            Report::new(&request.architecture(&config)?, self.context).map_err(|error| {
                CliError::Cost {
                    path: config.path.clone(),
                    error: Box::new(error),
                }
            })?;
        if self.json {
            printer.json(&report)?;
        } else {
            printer.result(&table(&report))?;
        }
        Ok(Verdict::Yes)
    }

    fn hub_use(&self) -> HubUse {
        HubUse::Headers
    }
}
