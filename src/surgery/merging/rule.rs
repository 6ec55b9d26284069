//! What a merge method is: a rule that makes each tensor of the output of that tensor in each model.

use std::collections::BTreeMap;

use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::parameter::{Parameter, Setting};
use crate::surgery::error::SurgeryError;

/// The parameters of a merge by their names.
pub type Parameters = BTreeMap<String, Parameter>;

/// A merge method.
pub trait MergeRule: Sync {
    /// Its name, as mergekit has it.
    fn name(&self) -> &'static str;

    /// One sentence about what it computes, for help texts and model cards.
    fn about(&self) -> &'static str;

    /// The parameters that a model may have.
    fn of_model(&self) -> &'static [&'static str] {
        &[]
    }

    /// The parameters of the merge as a whole.
    fn of_all(&self) -> &'static [&'static str] {
        &[]
    }

    /// Parameters that its files may have for mergekit, and that change nothing.
    fn without_effect(&self) -> &'static [&'static str] {
        &[]
    }

    /// What it does with a base model.
    fn base(&self) -> BaseModel {
        BaseModel::Needed
    }

    /// Number of models that it takes, the base among them, if it takes a certain number.
    fn models(&self) -> Option<usize> {
        None
    }

    /// The least number of models, the base among them.
    fn least_models(&self) -> usize {
        match self.base() {
            BaseModel::IsModel => 1,
            BaseModel::Needed => 2,
        }
    }

    /// Whether it draws random numbers.
    fn draws(&self) -> bool {
        false
    }

    /// A tensor of the output.
    ///
    /// # Errors
    /// Parameters that are missing, or are no value that the method can use.
    fn expression(&self, tensor: &MergedTensor) -> Result<Expression>;
}

/// What a method does with a base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseModel {
    /// It is one of the models, with a weight like theirs.
    IsModel,
    /// The method starts from it.
    Needed,
}

/// A tensor of the output, and what it is made of.
#[derive(Debug)]
pub struct MergedTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it is: 0 in the first layer, 1 in the last or only one, 0 outside of layers.
    pub position: f64,
    /// The tensor in each model.
    pub parts: Vec<MergedPart<'a>>,
    /// The place of the base among the parts.
    pub base: usize,
    /// The parameters of the slice, and of the merge as a whole.
    pub parameters: [&'a Parameters; 2],
    /// Seed of all random draws.
    pub seed: u64,
}

/// A tensor in one model.
#[derive(Debug)]
pub struct MergedPart<'a> {
    /// The tensor.
    pub expression: Expression,
    /// Its name in the model, which filters of the model's parameters are compared with.
    pub name: &'a str,
    /// The model, as the plan names it.
    pub source: &'a str,
    /// The parameters of the model.
    pub parameters: &'a Parameters,
}

impl MergedTensor<'_> {
    /// The tensor of the base.
    pub fn base(&self) -> Expression {
        self.parts[self.base].expression.clone()
    }

    /// The tensor in each model but the base.
    pub fn others(&self) -> impl Iterator<Item = &MergedPart<'_>> {
        let parts = self.parts.iter().enumerate();
        parts.filter_map(|(place, part)| (place != self.base).then_some(part))
    }

    /// The key of the draws for a model's task vector.
    pub fn key(&self, part: &MergedPart) -> String {
        format!("{}:{}", part.source, self.name)
    }

    /// A number: the model's own, else the merge's; `None` where neither says one for this tensor.
    pub fn number(&self, part: Option<&MergedPart>, key: &'static str) -> Result<Option<f64>> {
        match self.setting(part, key, Parameter::at) {
            None => Ok(None),
            Some(Setting::Number(number)) => Ok(Some(number)),
            Some(Setting::Switch(found)) => Err(self.refused(key, "a number", found.to_string())),
        }
    }

    /// A number that must be there.
    pub fn needed(&self, part: Option<&MergedPart>, key: &'static str) -> Result<f64> {
        let number = self.number(part, key)?;
        Ok(number.ok_or_else(|| SurgeryError::NoParameter {
            key,
            tensor: self.name.to_owned(),
        })?)
    }

    /// A number that is `expected`.
    pub fn within(
        &self,
        part: Option<&MergedPart>,
        key: &'static str,
        default: f64,
        expected: (&'static str, fn(f64) -> bool),
    ) -> Result<f64> {
        let number = self.number(part, key)?.unwrap_or(default);
        if expected.1(number) {
            Ok(number)
        } else {
            Err(self.refused(key, expected.0, number.to_string()))
        }
    }

    /// A switch of all; 0 and 1 are `false` and `true`.
    pub fn switch(&self, key: &'static str, default: bool) -> Result<bool> {
        match self.setting(None, key, Parameter::switch_at) {
            None => Ok(default),
            Some(Setting::Switch(switch)) => Ok(switch),
            Some(Setting::Number(0.0)) => Ok(false),
            Some(Setting::Number(1.0)) => Ok(true),
            Some(Setting::Number(found)) => {
                Err(self.refused(key, "true or false", found.to_string()))
            }
        }
    }

    /// What a parameter says: the model's own, else the slice's, else the merge's. For a model, filters see the name that the
    /// tensor has there.
    fn setting(
        &self,
        part: Option<&MergedPart>,
        key: &str,
        read: impl Fn(&Parameter, &str, f64) -> Option<Setting>,
    ) -> Option<Setting> {
        let name = part.map_or(self.name, |part| part.name);
        let at = |parameters: &Parameters| read(parameters.get(key)?, name, self.position);
        part.and_then(|part| at(part.parameters))
            .or_else(|| self.parameters.into_iter().find_map(at))
    }

    /// The refusal of a parameter's value.
    pub fn refused(
        &self,
        key: &'static str,
        expected: &'static str,
        found: String,
    ) -> crate::Error {
        SurgeryError::Parameter {
            key,
            tensor: self.name.to_owned(),
            expected,
            found,
        }
        .into()
    }
}
