//! Which layers get experts, as the command line says it.

use std::str::FromStr;

use super::error::SurgeryError;
use crate::Result;
use crate::family::Layers;

/// Layers by rule or by number, counted from 0.
///
/// `all`, `every:N` (the last of each N: `every:2` is 1, 3, 5, …), `first:N`, `last:N`, or numbers and ranges: `1,3,5-7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerChoice {
    /// All of them.
    All,
    /// The last of each so many.
    Every(u64),
    /// So many from the beginning.
    First(u64),
    /// So many at the end.
    Last(u64),
    /// These, as `(first, last)` of each range.
    Listed(Vec<(u64, u64)>),
}

impl FromStr for LayerChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "expected all, every:N, first:N, last:N or layers such as 1,3,5-7, found `{text}`"
            )
        };
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| unknown());
        if let Some((rule, count)) = text.split_once(':') {
            let count = number(count)?;
            return match rule {
                "every" | "first" | "last" if count == 0 => {
                    Err(format!("expected a positive number after `{rule}:`"))
                }
                "every" => Ok(Self::Every(count)),
                "first" => Ok(Self::First(count)),
                "last" => Ok(Self::Last(count)),
                _ => Err(unknown()),
            };
        }
        if text == "all" {
            return Ok(Self::All);
        }
        let ranges = text.split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range `{range}` ends before it begins"));
            }
            Ok((first, last))
        });
        Ok(Self::Listed(ranges.collect::<Result<_, _>>()?))
    }
}

impl LayerChoice {
    /// The layers in a model of `num_layers`, in order.
    ///
    /// # Errors
    /// A layer that the model does not have, or one that is listed twice.
    pub fn layers(&self, num_layers: u64) -> Result<Layers> {
        let missing = |layer: u64| {
            let last = num_layers.saturating_sub(1);
            Err(SurgeryError::NoLayer { layer, last }.into())
        };
        let few = |rule, count| {
            if count > num_layers {
                let layers = num_layers;
                Err(SurgeryError::ManyLayers {
                    rule,
                    count,
                    layers,
                })
            } else {
                Ok(())
            }
        };
        let layers: Vec<u64> = match self {
            Self::All => return Ok(Layers::All),
            Self::Every(step) => {
                few("every", *step)?;
                (0..num_layers)
                    .filter(|layer| (layer + 1).is_multiple_of(*step))
                    .collect()
            }
            Self::First(count) => {
                few("first", *count)?;
                (0..*count).collect()
            }
            Self::Last(count) => {
                few("last", *count)?;
                (num_layers - count..num_layers).collect()
            }
            Self::Listed(ranges) => {
                if let Some((_, last)) = ranges.iter().find(|(_, last)| *last >= num_layers) {
                    return missing(*last);
                }
                let mut layers: Vec<u64> = ranges
                    .iter()
                    .flat_map(|(first, last)| *first..=*last)
                    .collect();
                layers.sort_unstable();
                if let Some(twice) = layers.windows(2).find(|pair| pair[0] == pair[1]) {
                    return Err(SurgeryError::NamedTwice {
                        flag: "--layers",
                        named: format!("layer {}", twice[0]),
                        expected: "each layer",
                    }
                    .into());
                }
                layers
            }
        };
        Ok(if layers.len() as u64 == num_layers {
            Layers::All
        } else {
            Layers::List(layers)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn of(text: &str, layers: u64) -> Result<Layers> {
        text.parse::<LayerChoice>().unwrap().layers(layers)
    }

    #[test]
    fn rules_and_lists() {
        let of = |text: &str, layers| of(text, layers).unwrap();
        let list = |layers: &[u64]| Layers::List(layers.to_vec());
        assert_eq!(of("1,3,5-7", 8), list(&[1, 3, 5, 6, 7]));
        assert_eq!(of("5-7,1", 8), list(&[1, 5, 6, 7]));
        assert_eq!(of("every:2", 6), list(&[1, 3, 5]));
        assert_eq!(of("first:2", 6), list(&[0, 1]));
        assert_eq!(of("last:2", 6), list(&[4, 5]));
        for all in ["all", "every:1", "first:6", "0-5"] {
            assert_eq!(of(all, 6), Layers::All, "{all}");
        }
    }

    #[test]
    fn layers_that_the_model_does_not_have_are_refused() {
        for (text, number) in [("6", 6), ("0-18446744073709551615", u64::MAX)] {
            let error = of(text, 6).unwrap_err();
            assert!(
                matches!(error, Error::Surgery(SurgeryError::NoLayer { layer, last: 5 }) if layer == number),
                "{error}"
            );
        }
        let error = of("1,0-2", 6).unwrap_err();
        assert!(
            matches!(&error, Error::Surgery(SurgeryError::NamedTwice { named, .. }) if named == "layer 1"),
            "{error}"
        );
        let error = of("last:7", 6).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Surgery(SurgeryError::ManyLayers {
                    rule: "last",
                    count: 7,
                    layers: 6
                })
            ),
            "{error}"
        );
    }

    /// The command line takes these errors as texts.
    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("3-2", "ends before it begins"),
            ("every:0", "positive number"),
            ("evry:2", "found `evry:2`"),
            ("", "found ``"),
            ("1,", "found `1,`"),
        ] {
            let error = text.parse::<LayerChoice>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
