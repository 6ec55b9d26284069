//! The flags of `upcycle` and `cost` that choose and configure a surgery method. The methods themselves define them.

use std::ffi::OsString;
use std::sync::Arc;

use bam_convert::Result;
use bam_convert::family::{Architecture, Layers};
use bam_convert::surgery::layers::LayerChoice;
use bam_convert::surgery::methods::{self, ExpertRule, Method};
use bam_convert::surgery::scales::{ScaleFlags, Scales};
use bam_convert::surgery::upcycle::SharedExpert;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::error::{self, CliError};

/// Where the help lists the flags of [`MethodArguments`].
const HEADING: &str = "Feed-forward experts";

/// Settings of feed-forward experts (docs/reference/methods.md): those that every method takes, then the methods' own.
#[derive(Clone, Debug)]
pub struct MethodArguments {
    common: CommonArguments,
    own: ArgMatches,
}

#[derive(Clone, Debug, Args)]
struct CommonArguments {
    /// Layers with feed-forward experts, counted from 0: all, every:N, first:N, last:N, or numbers and ranges [default: all].
    #[arg(long, value_name = "1,3,5-7", help_heading = HEADING)]
    layers: Option<LayerChoice>,
    /// Give each layer with experts a shared expert, which every token goes to: the feed-forward network of the seed or of
    /// an expert, weighted by a sigmoid gate or not. The gate is fresh, or a row of --router prompts:PATH.
    #[arg(long, value_name = "seed|NAME[:gated]", value_parser = shared_expert, help_heading = HEADING)]
    shared_expert: Option<SharedExpert>,
}

/// `NAME` or `NAME:gated`.
fn shared_expert(text: &str) -> Result<SharedExpert, String> {
    let (name, gated) = text
        .strip_suffix(":gated")
        .map_or((text, false), |name| (name, true));
    if name.is_empty() || name.contains(':') {
        return Err(format!(
            "expected `seed` or the name of an expert, then `:gated` or nothing, found `{text}`"
        ));
    }
    Ok(SharedExpert {
        of: name.to_owned(),
        gated,
    })
}

impl Args for MethodArguments {
    fn augment_args(command: Command) -> Command {
        let own = methods::all_flags().into_iter();
        CommonArguments::augment_args(command).args(own.map(|flag| flag.help_heading(HEADING)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MethodArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            common: CommonArguments::from_arg_matches(matches)?,
            own: matches.clone(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl MethodArguments {
    /// How feed-forward experts are made.
    pub fn rule(&self, method: Method) -> Result<Arc<dyn ExpertRule>> {
        method.configured(&self.own)
    }

    /// Layers with feed-forward experts.
    pub fn layers(&self, seed: &Architecture) -> Result<Layers> {
        self.common
            .layers
            .as_ref()
            .map_or(Ok(Layers::All), |choice| choice.layers(seed.num_layers))
    }

    /// The shared expert.
    pub fn shared_expert(&self) -> Option<SharedExpert> {
        self.common.shared_expert.clone()
    }

    /// Noise and factors for single experts.
    pub fn scales(&self) -> error::Result<Scales> {
        ScaleFlags::from_arg_matches(&self.own)
            .map(Scales::from)
            .map_err(|error| {
                bam_convert::Error::from(methods::MethodError::Arguments { error }).into()
            })
    }
}

/// The flags of methods that set the number or the width of experts, for `cost`.
#[derive(Clone, Debug)]
pub struct SizeArguments(ArgMatches);

impl Args for SizeArguments {
    fn augment_args(command: Command) -> Command {
        command.args(size_flags())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SizeArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl SizeArguments {
    /// How `experts` experts are made, where the method changes the width of the seed's feed-forward network.
    pub fn rule(
        &self,
        method: Option<Method>,
        experts: Option<u64>,
    ) -> error::Result<Option<Arc<dyn ExpertRule>>> {
        let given: Vec<Arg> = size_flags()
            .into_iter()
            .filter(|flag| self.0.get_raw(flag.get_id().as_str()).is_some())
            .collect();
        if let Some(flag) = given
            .iter()
            .find(|flag| !method.is_some_and(|method| sizes(method, flag)))
        {
            return Err(CliError::WithoutMethod {
                flag: methods::typed(flag),
                owners: methods::alternatives(|method| sizes(*method, flag), ""),
            });
        }

        let Some(method) = method.filter(|method| method.size_flags().is_some()) else {
            return Ok(None);
        };
        let experts = experts.map(|experts| format!("--experts={experts}").into());
        let own = given.iter().flat_map(|flag| self.typed(flag));
        Ok(Some(method.parsed(experts.into_iter().chain(own))?))
    }

    /// The flag with its values, as typed.
    fn typed(&self, flag: &Arg) -> Vec<OsString> {
        let values = self.0.get_raw(flag.get_id().as_str()).into_iter().flatten();
        values
            .map(|value| {
                let mut argument = OsString::from(methods::typed(flag) + "=");
                argument.push(value);
                argument
            })
            .collect()
    }
}

/// Whether a flag sets the number or the width of a method's experts.
fn sizes(method: Method, flag: &Arg) -> bool {
    method
        .size_flags()
        .is_some_and(|ids| ids.contains(&flag.get_id().as_str()))
}

/// The flags that set the number or the width of any method's experts.
fn size_flags() -> Vec<Arg> {
    let mut flags = methods::all_flags();
    flags.retain(|flag| Method::all().any(|method| sizes(method, flag)));
    flags
}
