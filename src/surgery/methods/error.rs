//! Why a method cannot make experts: one variant per broken rule, and what to do next.

use std::borrow::Cow;

/// A rule about the flags of a method, which a request breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// Flags that clap refuses.
    #[error("{error}")]
    Arguments {
        /// The answer of clap.
        error: clap::Error,
    },
    /// A flag of another method.
    #[error("{flag} has no effect with --method {method}")]
    Misplaced {
        /// The flag.
        flag: String,
        /// The method.
        method: &'static str,
        /// Methods that have the flag.
        owners: Vec<&'static str>,
    },
    /// A method without a number that it requires.
    #[error("--method {method} needs {flag}")]
    Needed {
        /// The method.
        method: &'static str,
        /// The flag.
        flag: &'static str,
        /// The meaning of the flag.
        meaning: &'static str,
    },
    /// Two ways to put experts together.
    #[error("--split-ffn and --blend exclude each other")]
    SplitAndBlend,
    /// Chunks of a model that does not exist.
    #[error("--blend puts chunks of all models together, and a `random` expert has none")]
    BlendRandom,
    /// A width that cannot be cut into equal parts.
    #[error("the feed-forward width {width} does not fall into {parts} equal parts ({flag})")]
    UnequalParts {
        /// The inner width of the network.
        width: u64,
        /// Number of parts.
        parts: u64,
        /// The flag that says the number.
        flag: &'static str,
    },
    /// A ratio outside of 0 to 1.
    #[error("{flag} must be from 0 to 1, but is {found}")]
    Ratio {
        /// The flag.
        flag: &'static str,
        /// Its value.
        found: f64,
    },
    /// A standard deviation that is negative, NaN or infinite.
    #[error("--noise-std must be a non-negative number, but is {found}")]
    NoiseStd {
        /// The value.
        found: f64,
    },
    /// A weight of specialists that is 0, or outside of 0 to 1.
    #[error("--expert-weight must be above 0 and at most 1, but is {found}")]
    ExpertWeight {
        /// The value.
        found: f64,
    },
    /// An interpolation without one of its ends.
    #[error("--method interpolate needs the seed as an expert, to interpolate with it")]
    NoSeed,
    /// Experts without neurons, or more neurons than can be counted.
    #[error("{experts} experts of width {width} cannot be cut")]
    NoCuts {
        /// Number of experts.
        experts: u64,
        /// Inner width of an expert.
        width: u64,
    },
    /// An expert of many copies of the network.
    #[error(
        "an expert of width {width} spans more than {most} copies of a network of width {network}"
    )]
    ManyCopies {
        /// Inner width of an expert.
        width: u64,
        /// The most copies.
        most: u64,
        /// Inner width of the network.
        network: u64,
    },
    /// A factor that is not positive.
    #[error("--output-scale expects a positive number")]
    OutputScale,
}

impl MethodError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Arguments { .. } => return None,
            Self::Misplaced { owners, .. } => {
                return Some(format!("it belongs to --method {}", owners.join(", ")).into());
            }
            Self::Needed { flag, meaning, .. } => {
                return Some(format!("{flag} says {meaning}").into());
            }
            Self::SplitAndBlend => "experts are chunks of one network, or of all",
            Self::BlendRandom => "leave the random expert out, or leave out --blend",
            Self::UnequalParts { width, flag, .. } => {
                return Some(format!("pass {flag} with a divisor of {width}").into());
            }
            Self::Ratio { flag, .. } => return Some(format!("pass {flag} from 0 to 1").into()),
            Self::NoiseStd { .. } => "pass a number of 0 or more",
            Self::ExpertWeight { .. } => {
                "1 keeps the specialists as they are, as `--method btx` does"
            }
            Self::NoSeed => "leave out --no-seed-expert, or pass --method btx",
            Self::NoCuts { .. } => "pass --expert-width with the inner width of one expert",
            Self::ManyCopies { .. } => "pass a smaller --expert-width",
            Self::OutputScale => "1 leaves weights as they are",
        }))
    }
}
