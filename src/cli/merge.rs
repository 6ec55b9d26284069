//! `merge`: several models of one shape as one.

use bam_convert::arguments::{CheckpointPath, InputPath, OutputPath, Weighted};
use bam_convert::checkpoint::Dtype;
use bam_convert::error::InputError;
use bam_convert::mergekit::{Dialect, FileParameter, FileParameters, MergeFile};
use bam_convert::parameter::Parameter;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::Model;
use bam_convert::surgery::merge::{MergeSettings, MergedModel, plan};
use bam_convert::surgery::merging::{BaseModel, MergeMethod, Parameters};
use clap::Args;

use super::Outcome;
use super::error::{self, CliError};
use super::printer::Printer;
use super::upcycle::float_dtype;
use super::verb::Verb;
use super::write::WriteArguments;

/// Merge models of one shape: average them, interpolate between two, or add what they have learnt to a base.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert merge --model a:0.75 --model b:0.25 --out merged\n  bam-convert merge --method slerp --base a --model b --t 0.5 --out merged\n\n  bam-convert merge --method task_arithmetic --base seed --model a --model b --lambda 0.7 --out merged\n  bam-convert merge --method ties --base seed --model a --model b --density 0.5 --out merged"
)]
pub struct Arguments {
    #[arg(long, value_name = "METHOD", default_value_t = MergeMethod::LINEAR, help = method_help())]
    method: MergeMethod,
    /// A model and its weight [default weight: 1] (repeat).
    #[arg(long = "model", value_name = "DIR[:WEIGHT]", required = true)]
    models: Vec<Weighted<CheckpointPath>>,
    /// The model whose configuration and tokenizer the output has, and that the others are compared with [default for
    /// `linear`: the first].
    #[arg(long, value_name = "DIR")]
    base: Option<CheckpointPath>,
    /// Divide by the sum of the weights [default: true for `linear` and `ties`, otherwise false].
    #[arg(long, value_name = "BOOL")]
    normalize: Option<bool>,
    /// Part of the way from the base to the other model (`slerp`).
    #[arg(long, value_name = "VALUE")]
    t: Option<Parameter>,
    /// Part of each difference from the base that stays (`ties`) [default: 1].
    #[arg(long, value_name = "VALUE")]
    density: Option<Parameter>,
    /// Scale what stays of a difference so that the sum of its magnitudes is kept (`ties`) [default: false].
    #[arg(long, value_name = "BOOL")]
    rescale: Option<bool>,
    /// Factor on what is added to the base (`task_arithmetic`, `ties`) [default: 1].
    #[arg(long, value_name = "VALUE")]
    lambda: Option<Parameter>,
    /// Take parameters from a file of mergekit-yaml, also the parameters of each model; flags win. A VALUE is a number, a list of
    /// numbers from the first layer to the last, or choices by name as in that file.
    #[arg(long, value_name = "FILE")]
    parameters: Option<InputPath>,
    /// Dtype of the output [default: the base's].
    #[arg(long, value_name = "DTYPE", value_parser = float_dtype)]
    dtype: Option<Dtype>,
    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
    #[command(flatten)]
    write: WriteArguments,
}

fn method_help() -> String {
    let names: Vec<String> = MergeMethod::all()
        .map(|method| format!("`{method}`"))
        .collect();
    format!(
        "How models become one: {} (docs/reference/merging.md)",
        names.join(", ")
    )
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("merge", StageUse::Makes).with_settings_file(Dialect::Merge)
    }

    fn opens_models() -> bool {
        true
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let (parameters, of_models) = self.all_parameters()?;
        let mut models = Vec::with_capacity(self.models.len() + 1);
        let open = |number: usize, path: &CheckpointPath| {
            Model::open(&format!("model-{}", number + 1), path)
        };
        for (number, (model, parameters)) in self.models.iter().zip(of_models).enumerate() {
            models.push(MergedModel {
                model: open(number, &model.value)?,
                parameters,
            });
        }
        let base = self.place_of_base()?;
        if let (true, Some(path)) = (base == models.len(), &self.base) {
            models.push(MergedModel {
                model: open(base, path)?,
                parameters: Parameters::new(),
            });
        }
        let settings = MergeSettings {
            method: self.method,
            base,
            parameters,
            dtype: self.dtype,
        };
        let (plan, architecture, files) = plan(models, &settings)?;
        self.write
            .run(&plan, Some(&architecture), &files, &self.out, printer)
    }
}

impl Arguments {
    /// The number of the base among the models; their number where it is none of them.
    fn place_of_base(&self) -> error::Result<usize> {
        let needed = self.method.base() == BaseModel::Needed;
        let Some(base) = &self.base else {
            let method = self.method.name();
            return if needed {
                Err(CliError::NoBase { method })
            } else {
                Ok(0)
            };
        };
        let found = self.models.iter().position(|model| model.value == *base);
        match found {
            Some(place) => Ok(place),
            None if needed => Ok(self.models.len()),
            None => Err(CliError::Base {
                base: base.to_path_buf(),
            }),
        }
    }

    /// The parameters of the merge as a whole, and of each model: the flags, and what the file says beside them.
    fn all_parameters(&self) -> error::Result<(Parameters, Vec<Parameters>)> {
        let switch = |switch: Option<bool>| switch.map(Parameter::Switch);
        let flags = [
            ("normalize", switch(self.normalize)),
            ("t", self.t.clone()),
            ("density", self.density.clone()),
            ("rescale", switch(self.rescale)),
            ("lambda", self.lambda.clone()),
        ];
        let given = flags.into_iter();
        let given = given.filter_map(|(key, parameter)| Some((key.to_owned(), parameter?)));
        let flags: Parameters = given.collect();
        for key in flags.keys() {
            self.refuse_misplaced(&format!("--{key}"), key)?;
        }
        let has_weights = self.models.iter().any(|model| model.weight != 1.0);
        if has_weights {
            self.refuse_misplaced("--model DIR:WEIGHT", "weight")?;
        }
        let Some(file) = &self.parameters else {
            let own = |model: &Weighted<CheckpointPath>| {
                let weight = ("weight".to_owned(), Parameter::Number(model.weight));
                let weight = Some(weight).filter(|(key, _)| self.method.has(key));
                weight.into_iter().collect()
            };
            return Ok((flags, self.models.iter().map(own).collect()));
        };
        let FileParameters { of_all, of_models } = MergeFile::read(file)?.parameters()?;
        if of_models.len() != self.models.len() || has_weights {
            return Err(CliError::OtherModels {
                file: file.to_path_buf(),
                expected: of_models.len(),
                found: self.models.len(),
            });
        }
        let (own, all) = (self.method.of_model(), self.method.of_all());
        let mut parameters = checked(of_all, [own, all].concat())?;
        parameters.extend(flags.clone());
        let mut each = Vec::with_capacity(of_models.len());
        for of_model in of_models {
            let mut own = checked(of_model, own.to_vec())?;
            own.retain(|key, _| !flags.contains_key(key));
            each.push(own);
        }
        Ok((parameters, each))
    }

    /// Refuses a flag of other methods.
    fn refuse_misplaced(&self, flag: &str, key: &str) -> error::Result<()> {
        if self.method.has(key) {
            return Ok(());
        }
        Err(CliError::WithoutMethod {
            flag: flag.to_owned(),
            owners: MergeMethod::with_parameter(key).join(", "),
        })
    }
}

/// The parameters of a file, all of which are known.
fn checked(parameters: Vec<FileParameter>, known: Vec<&'static str>) -> error::Result<Parameters> {
    let mut checked = Parameters::new();
    for FileParameter { key, at, value } in parameters {
        if !known.contains(&key.as_str()) {
            let error = InputError::UnknownKey { at, key, known };
            return Err(bam_convert::Error::from(error).into());
        }
        checked.insert(key, value);
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_methods_of_mergekits_files_are_those_of_the_registry() {
        let names = MergeMethod::all().map(|method| method.name());
        assert!(names.eq(bam_convert::mergekit::METHODS));
    }

    #[test]
    fn every_parameter_has_a_flag_but_for_those_without_effect() {
        let command = Arguments::augment_args(clap::Command::new("merge"));
        for key in MergeMethod::all_parameters() {
            let is_flag = command
                .get_arguments()
                .any(|flag| flag.get_long() == Some(key));
            assert!(is_flag || matches!(key, "weight" | "int8_mask"), "{key}");
        }
    }
}
