//! The two sides of a comparison, and which tensors are compared.

use std::path::Path;

use super::expert_pairs::{self, ExpertPair};
use super::pairs::{self, Pairing, Side};
use crate::Result;

/// Two checkpoints, and what of them is compared with what.
pub(super) struct Sides {
    /// What changes are relative to.
    pub a: Side,
    pub b: Side,
    /// Whether b is a mixture and a is dense.
    pub mixture: bool,
    /// The experts, where their names pair them.
    pub experts: Vec<ExpertPair>,
    pub pairing: Pairing,
}

impl Sides {
    /// Opens both. The dense one of a dense model and a mixture comes first.
    pub fn open(a: &Path, b: &Path) -> Result<Self> {
        let (mut a, mut b) = (Side::open(a)?, Side::open(b)?);
        // A change is relative to the seed, whichever was named first.
        if pairs::is_mixture_of(&b, &a) {
            std::mem::swap(&mut a, &mut b);
        }
        let mixture = pairs::is_mixture_of(&a, &b);
        let experts = expert_pairs::by_name(&a, &b).unwrap_or_default();
        let pairing = if mixture {
            pairs::by_role(&a, &b)
        } else if experts.is_empty() && pairs::are_of_two_families(&a, &b) {
            expert_pairs::pairing(&a, &b, &experts)
        } else if experts.is_empty() {
            pairs::by_name(&a, &b)
        } else {
            expert_pairs::split_routers(&mut a);
            expert_pairs::split_routers(&mut b);
            expert_pairs::pairing(&a, &b, &experts)
        };
        Ok(Self {
            a,
            b,
            mixture,
            experts,
            pairing,
        })
    }
}
