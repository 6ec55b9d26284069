//! The flags of `upcycle` that say what becomes of feed-forward networks, and which method takes which.

use bam_convert::family::{Architecture, Layers, Method};
use bam_convert::surgery::layers::LayerChoice;
use bam_convert::surgery::methods::{
    Drop, DropIndices, FeedForward, Granular, Noise, Shuffle, Split, WeightScaling,
};
use bam_convert::surgery::scales::Scales;
use bam_convert::surgery::upcycle::SharedExpert;
use bam_convert::{Error, Result};
use clap::{Args, ValueEnum};

/// Settings of feed-forward experts (docs/methods.md).
#[derive(Debug, Args)]
#[command(next_help_heading = "Feed-forward experts")]
pub struct MethodArguments {
    /// Number of experts made of the seed; with `granular` the copies that are cut into shards.
    #[arg(long = "experts", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    copies: Option<u64>,
    /// Layers with feed-forward experts, counted from 0: all, every:N, first:N, last:N, or numbers and ranges [default: all].
    #[arg(long, value_name = "1,3,5-7")]
    layers: Option<LayerChoice>,
    /// Give each layer with experts a shared expert, which every token goes to: the feed-forward network of the seed or of
    /// an expert, weighted by a sigmoid gate or not. The gate is fresh, or a row of --router prompts:PATH.
    #[arg(long, value_name = "seed|NAME[:gated]", value_parser = shared_expert)]
    shared_expert: Option<SharedExpert>,
    /// Add noise of this standard deviation to the feed-forward weights of one expert, or of `shared` (`bam`, `btx`; repeat).
    #[arg(long, value_name = "NAME=STD", value_parser = named_number)]
    noise_scale: Vec<(String, f64)>,
    /// Multiply the down projection of one expert, or of `shared`, by a factor (`bam`, `btx`; repeat).
    #[arg(long, value_name = "NAME=FACTOR", value_parser = named_number)]
    residual_scale: Vec<(String, f64)>,
    /// Cut each feed-forward network into C experts (`bam`, `btx`).
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u64).range(1..))]
    split_ffn: Option<u64>,
    /// Make each expert of one chunk of every feed-forward network (`bam`, `btx`).
    #[arg(long)]
    blend: bool,
    /// Standard deviation of the noise (`noise`) [default: 0.02].
    #[arg(long, value_name = "STD")]
    noise_std: Option<f64>,
    /// The part of each expert's neurons that gets noise (`noise`) [default: 1].
    #[arg(long, value_name = "R")]
    noise_ratio: Option<f64>,
    /// The part of each expert's neurons that is drawn again (`drop`) [default: 0.5].
    #[arg(long, value_name = "R")]
    drop_ratio: Option<f64>,
    /// Whether gate, up and down drop the same neurons or each its own (`drop`) [default: shared].
    #[arg(long, value_enum)]
    drop_indices: Option<DropIndicesName>,
    /// Shards that each copy is cut into (`granular`).
    #[arg(long, value_name = "G", value_parser = clap::value_parser!(u64).range(1..))]
    granularity: Option<u64>,
    /// Where the factor that makes up for the gates goes (`granular`) [default: spread].
    #[arg(long, value_enum)]
    weight_scaling: Option<WeightScalingName>,
    /// Inner width of an expert (`shuffle`).
    #[arg(long, value_name = "WIDTH", value_parser = clap::value_parser!(u64).range(1..))]
    expert_width: Option<u64>,
    /// The part of each expert's neurons that is drawn again (`shuffle`) [default: 0.5].
    #[arg(long, value_name = "R")]
    reinit_ratio: Option<f64>,
    /// Factor on the output of experts; 1 leaves the weights as they are (`split`) [default: experts / top-k].
    #[arg(long, value_name = "F")]
    output_scale: Option<f64>,
}

/// `NAME` or `NAME:gated`.
fn shared_expert(text: &str) -> Result<SharedExpert, String> {
    let (name, gated) = text
        .strip_suffix(":gated")
        .map_or((text, false), |name| (name, true));
    match name.is_empty() || name.contains(':') {
        true => Err(format!(
            "expected `seed` or the name of an expert, then `:gated` or nothing, found `{text}`"
        )),
        false => Ok(SharedExpert {
            of: name.to_owned(),
            gated,
        }),
    }
}

/// `NAME=NUMBER`.
fn named_number(text: &str) -> Result<(String, f64), String> {
    match text
        .rsplit_once('=')
        .map(|(name, number)| (name, number.parse()))
    {
        Some((name, Ok(number))) if !name.is_empty() => Ok((name.to_owned(), number)),
        _ => Err(format!("expected NAME=NUMBER, found `{text}`")),
    }
}

/// Values of `--drop-indices`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DropIndicesName {
    /// One set of neurons for the three matrices, as the paper reads.
    Shared,
    /// A set for each matrix, as the released code draws them.
    PerMatrix,
}

/// Values of `--weight-scaling`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum WeightScalingName {
    /// A root of the factor on every matrix, as in the paper.
    Spread,
    /// All of it on the down projections, which is exact for any activation.
    Down,
    /// No scaling.
    Off,
}

impl MethodArguments {
    /// What becomes of feed-forward networks.
    pub fn feed_forward(&self, method: Method) -> Result<FeedForward> {
        self.refuse_misplaced(method)?;
        let experts = || {
            needed(
                self.copies,
                "--experts",
                method,
                "how many experts are made of the seed",
            )
        };
        let part = |ratio: Option<f64>, usual: f64| ratio.unwrap_or(usual);
        Ok(match method {
            Method::Bam | Method::Btx => match (self.split_ffn, self.blend) {
                (Some(_), true) => {
                    return Err(Error::usage("--split-ffn and --blend exclude each other")
                        .with_hint("experts are chunks of one network, or of all"));
                }
                (Some(chunks), false) => FeedForward::Chunks(chunks),
                (None, true) => FeedForward::Blend,
                (None, false) => FeedForward::Networks,
            },
            Method::Sparse => FeedForward::Copies(experts()?),
            Method::Noise => {
                let std = part(self.noise_std, 0.02);
                if !std.is_finite() || std < 0.0 {
                    return Err(Error::usage(format!(
                        "--noise-std {std} is no standard deviation"
                    ))
                    .with_hint("pass a number of 0 or more"));
                }
                FeedForward::Noise(Noise {
                    experts: experts()?,
                    std,
                    ratio: part(self.noise_ratio, 1.0),
                })
            }
            Method::Drop => FeedForward::Drop(Drop {
                experts: experts()?,
                ratio: part(self.drop_ratio, 0.5),
                indices: match self.drop_indices {
                    Some(DropIndicesName::PerMatrix) => DropIndices::PerMatrix,
                    Some(DropIndicesName::Shared) | None => DropIndices::Shared,
                },
            }),
            Method::Granular => FeedForward::Granular(Granular {
                expansion: experts()?,
                granularity: needed(
                    self.granularity,
                    "--granularity",
                    method,
                    "how many shards a copy is cut into",
                )?,
                scaling: match self.weight_scaling {
                    Some(WeightScalingName::Spread) | None => WeightScaling::Spread,
                    Some(WeightScalingName::Down) => WeightScaling::Down,
                    Some(WeightScalingName::Off) => WeightScaling::Off,
                },
            }),
            Method::Shuffle => FeedForward::Shuffle(Shuffle {
                experts: experts()?,
                width: needed(
                    self.expert_width,
                    "--expert-width",
                    method,
                    "how wide an expert is",
                )?,
                reinit_ratio: part(self.reinit_ratio, 0.5),
            }),
            Method::Split => FeedForward::Split(Split {
                experts: experts()?,
                output_scale: self.output_scale,
            }),
        })
    }

    /// Layers with feed-forward experts.
    pub fn layers(&self, seed: &Architecture) -> Result<Layers> {
        self.layers
            .as_ref()
            .map_or(Ok(Layers::All), |choice| choice.layers(seed.num_layers))
    }

    /// The shared expert.
    pub fn shared_expert(&self) -> Option<SharedExpert> {
        self.shared_expert.clone()
    }

    /// What is done to single experts.
    pub fn scales(&self) -> Scales {
        Scales {
            noise: self.noise_scale.clone(),
            residual: self.residual_scale.clone(),
        }
    }

    /// Flags of other methods are refused rather than ignored.
    fn refuse_misplaced(&self, method: Method) -> Result<()> {
        use Method::{Bam, Btx, Drop, Granular, Noise, Shuffle, Sparse, Split};
        let taken: [(&str, bool, &[Method]); 14] = [
            (
                "--experts",
                self.copies.is_some(),
                &[Sparse, Noise, Drop, Granular, Shuffle, Split],
            ),
            ("--split-ffn", self.split_ffn.is_some(), &[Bam, Btx]),
            ("--noise-scale", !self.noise_scale.is_empty(), &[Bam, Btx]),
            (
                "--residual-scale",
                !self.residual_scale.is_empty(),
                &[Bam, Btx],
            ),
            ("--blend", self.blend, &[Bam, Btx]),
            ("--noise-std", self.noise_std.is_some(), &[Noise]),
            ("--noise-ratio", self.noise_ratio.is_some(), &[Noise]),
            ("--drop-ratio", self.drop_ratio.is_some(), &[Drop]),
            ("--drop-indices", self.drop_indices.is_some(), &[Drop]),
            ("--granularity", self.granularity.is_some(), &[Granular]),
            (
                "--weight-scaling",
                self.weight_scaling.is_some(),
                &[Granular],
            ),
            ("--expert-width", self.expert_width.is_some(), &[Shuffle]),
            ("--reinit-ratio", self.reinit_ratio.is_some(), &[Shuffle]),
            ("--output-scale", self.output_scale.is_some(), &[Split]),
        ];
        for (flag, given, by) in taken {
            if given && !by.contains(&method) {
                let names: Vec<&str> = by.iter().map(|method| method.name()).collect();
                let problem = format!("{flag} has no effect with --method {}", method.name());
                return Err(Error::usage(problem)
                    .with_hint(format!("it belongs to --method {}", names.join(", "))));
            }
        }
        Ok(())
    }
}

/// What becomes of the seed's feed-forward network, for its size alone, where a method changes its width.
pub fn cut_feed_forward(
    method: Option<Method>,
    experts: Option<u64>,
    granularity: Option<u64>,
    width: Option<u64>,
) -> Result<Option<FeedForward>> {
    let misplaced = [
        ("--granularity", granularity.is_some(), Method::Granular),
        ("--expert-width", width.is_some(), Method::Shuffle),
    ];
    if let Some((flag, _, by)) = misplaced
        .iter()
        .find(|(_, given, by)| *given && method != Some(*by))
    {
        return Err(Error::usage(format!(
            "{flag} has no effect without --method {}",
            by.name()
        ))
        .with_hint("leave it out, or pass that method"));
    }
    let Some(method) = method else {
        return Ok(None);
    };
    let number = || {
        needed(
            experts,
            "--experts",
            method,
            "how many experts are made of the seed",
        )
    };
    let scaling = WeightScaling::Off;
    Ok(match method {
        Method::Split => Some(FeedForward::Split(Split {
            experts: number()?,
            output_scale: None,
        })),
        Method::Shuffle => {
            let width = needed(width, "--expert-width", method, "how wide an expert is")?;
            Some(FeedForward::Shuffle(Shuffle {
                experts: number()?,
                width,
                reinit_ratio: 0.0,
            }))
        }
        Method::Granular => {
            let granularity = needed(
                granularity,
                "--granularity",
                method,
                "how many shards a copy is cut into",
            )?;
            Some(FeedForward::Granular(Granular {
                expansion: number()?,
                granularity,
                scaling,
            }))
        }
        _ => None,
    })
}

/// A number that a method cannot do without.
fn needed(number: Option<u64>, flag: &str, method: Method, what: &str) -> Result<u64> {
    number.ok_or_else(|| {
        Error::usage(format!("--method {} needs {flag}", method.name()))
            .with_hint(format!("{flag} says {what}"))
    })
}
