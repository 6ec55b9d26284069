//! `merge`: several models of one shape as one.

use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use bam_convert::arguments::{CheckpointPath, InputPath, OutputPath, Weighted};
use bam_convert::checkpoint::Dtype;
use bam_convert::error::InputError;
use bam_convert::mergekit::{Dialect, FileParameter, FileParameters, MergeFile};
use bam_convert::parameter::Parameter;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::Model;
use bam_convert::surgery::merge::{MergeSettings, MergedModel, plan};
use bam_convert::surgery::merge_slices::{MergeSlice, SliceSource};
use bam_convert::surgery::merging::{BaseModel, MergeMethod, Parameters};
use clap::Args;

use super::Outcome;
use super::error::{self, CliError};
use super::printer::Printer;
use super::upcycle::float_dtype;
use super::verb::Verb;
use super::write::WriteArguments;

/// Merge models of one shape: average them, interpolate between two, add what they have learnt to a base, or stack their layers.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bam-convert merge --model a:0.75 --model b:0.25 --out merged\n  bam-convert merge --method slerp --base a --model b --t 0.5 --out merged\n\n  bam-convert merge --method task_arithmetic --base seed --model a --model b --lambda 0.7 --out merged\n  bam-convert merge --method ties --base seed --model a --model b --density 0.5 --out merged\n\n  bam-convert merge --method dare_ties --base seed --model a --model b --density 0.3 --rng-seed 1 --out merged\n\n  bam-convert merge --method della --base seed --model a --model b --density 0.5 --epsilon 0.1 --out merged\n  bam-convert merge --method model_stock --base seed --model a --model b --out merged\n\n  bam-convert merge --method passthrough --model a --model b --slice 1:0-15 --slice 2:8-23 --out merged"
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
    /// Divide by the sum of the weights [default: true for `linear`, `ties` and `della`, otherwise false].
    #[arg(long, value_name = "BOOL")]
    normalize: Option<bool>,
    /// Part of the way from the base to the other model (`slerp`).
    #[arg(long, value_name = "VALUE")]
    t: Option<Parameter>,
    /// Part of each difference from the base that stays (`ties`, `dare_linear`, `dare_ties`, `della`) [default: 1].
    #[arg(long, value_name = "VALUE", value_parser = density)]
    density: Option<Parameter>,
    /// How far the chance of a value to stay is from the density at most, by its rank in its row (`della`) [default: 0.15].
    #[arg(long, value_name = "VALUE")]
    epsilon: Option<Parameter>,
    /// Scale what stays of a difference so that the sum of its magnitudes is kept (as --density) [default: false for
    /// `ties`, otherwise true].
    #[arg(long, value_name = "BOOL")]
    rescale: Option<bool>,
    /// Factor on what is added to the base (`task_arithmetic`, and as --density) [default: 1].
    #[arg(long, value_name = "VALUE")]
    lambda: Option<Parameter>,
    /// Give each row of a tensor an angle of its own (`model_stock`) [default: false].
    #[arg(long, value_name = "BOOL")]
    filter_wise: Option<bool>,
    /// Seed of everything random (`dare_linear`, `dare_ties`, `della`) [default: 0].
    #[arg(long, value_name = "N")]
    rng_seed: Option<u64>,
    /// Factor on the tensors (`passthrough`) [default: 1].
    #[arg(long, value_name = "VALUE")]
    scale: Option<Parameter>,
    /// Layers of the output: the number of a model, counted from 1, and its first and last layer, counted from 0. Repeat
    /// it for the next slice; commas separate several models of one slice.
    #[arg(long = "slice", value_name = "N:FIRST-LAST[,…]")]
    slices: Vec<SliceFlag>,
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

/// What flags and a file say.
struct MergeParameters {
    of_all: Parameters,
    of_models: Vec<Parameters>,
    slices: Vec<MergeSlice>,
    notes: Vec<String>,
}

/// Layers of models that make one slice: the number of each model, counted from 0, and its layers.
#[derive(Clone, Debug)]
struct SliceFlag(Vec<(usize, Range<u64>)>);

impl FromStr for SliceFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let source = |text: &str| {
            let (model, layers) = text.split_once(':')?;
            let (first, last) = layers.split_once('-').unwrap_or((layers, layers));
            let model = model.parse::<usize>().ok()?.checked_sub(1)?;
            let end = last.parse::<u64>().ok()?.checked_add(1)?;
            Some((model, first.parse().ok()?..end))
        };
        let sources: Option<_> = text.split(',').map(source).collect();
        sources
            .map(Self)
            .ok_or_else(|| format!("expected a model and its layers, as in 1:0-7, found `{text}`"))
    }
}

/// A density. Numbers beyond 1 are for lists in files, which may reach 1 before the last layer.
fn density(text: &str) -> Result<Parameter, String> {
    let parameter: Parameter = text.parse()?;
    match parameter.number() {
        Some(number) if !(0.0..=1.0).contains(&number) => {
            Err(format!("expected a number from 0 to 1, found {number}"))
        }
        _ => Ok(parameter),
    }
}

/// The flag of a parameter.
fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
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
        let MergeParameters {
            of_all: parameters,
            of_models,
            slices,
            notes,
        } = self.all_parameters()?;
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
            rng_seed: self.rng_seed.unwrap_or(0),
            slices,
            notes,
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
    fn all_parameters(&self) -> error::Result<MergeParameters> {
        let switch = |switch: Option<bool>| switch.map(Parameter::Switch);
        let flags = [
            ("normalize", switch(self.normalize)),
            ("t", self.t.clone()),
            ("density", self.density.clone()),
            ("epsilon", self.epsilon.clone()),
            ("rescale", switch(self.rescale)),
            ("scale", self.scale.clone()),
            ("filter_wise", switch(self.filter_wise)),
            ("lambda", self.lambda.clone()),
        ];
        let given = flags.into_iter();
        let given = given.filter_map(|(key, parameter)| Some((key.to_owned(), parameter?)));
        let flags: Parameters = given.collect();
        for key in flags.keys() {
            self.refuse_misplaced(&flag(key), key)?;
        }
        if self.rng_seed.is_some() && !self.method.draws() {
            let owners = MergeMethod::all().filter(|method| method.draws());
            let owners: Vec<String> = owners.map(|method| method.to_string()).collect();
            return Err(CliError::WithoutMethod {
                flag: "--rng-seed".to_owned(),
                owners: owners.join(", "),
            });
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
            let of_models: Vec<Parameters> = self.models.iter().map(own).collect();
            return Ok(MergeParameters {
                slices: self.slices(&of_models)?,
                of_all: flags,
                of_models,
                notes: Vec::new(),
            });
        };
        let file_parameters = MergeFile::read(file)?.parameters()?;
        let expected = file_parameters.of_models.len();
        if expected != self.models.len() || has_weights {
            return Err(CliError::OtherModels {
                file: file.to_path_buf(),
                expected,
                found: self.models.len(),
            });
        }
        let notes = self.notes(file, &file_parameters);
        let parameters = self.of_file(file_parameters, &flags)?;
        Ok(MergeParameters {
            notes,
            ..parameters
        })
    }

    /// Where the flags differ from the file, and parameters in it that change nothing.
    fn notes(&self, path: &Path, file: &FileParameters) -> Vec<String> {
        let (path, mut notes) = (path.display(), Vec::new());
        if file.method != self.method.name() {
            let (found, method) = (&file.method, self.method.name());
            notes.push(format!(
                "{path} has the method {found}; --method {method} wins"
            ));
        }
        let is_folder = |name: &str| {
            std::fs::canonicalize(name)
                .ok()
                .filter(|path| path.is_dir())
        };
        for (number, (name, model)) in file.models.iter().zip(&self.models).enumerate() {
            let flag = std::fs::canonicalize(&*model.value).ok();
            // Names of the Hub, and adapters, are no folders.
            if is_folder(name).is_some_and(|folder| Some(folder) != flag) {
                notes.push(format!(
                    "model {} is {name} in {path}, and {} on the command line, which wins",
                    number + 1,
                    model.value.display()
                ));
            }
        }
        let unused = self.method.without_effect().iter();
        let unused: Vec<&str> = unused.copied().filter(|key| file.has(key)).collect();
        if !unused.is_empty() {
            let (method, unused) = (self.method.name(), unused.join(", "));
            notes.push(format!(
                "parameters without effect on the method {method}, as in mergekit: {unused}"
            ));
        }
        notes
    }

    /// The parameters of a file, of which flags replace what has the same name.
    fn of_file(&self, file: FileParameters, flags: &Parameters) -> error::Result<MergeParameters> {
        let (own, all) = (self.method.of_model(), self.method.of_all());
        let unused = self.method.without_effect();
        let known = [own, all, unused].concat();
        let own_known = [own, unused].concat();
        let counts = |key: &String| !flags.contains_key(key) && self.method.has(key);
        let own = |parameters: Vec<FileParameter>| {
            let mut own = checked(parameters, own_known.clone())?;
            own.retain(|key, _| counts(key));
            Ok(own)
        };
        let of_models = file.of_models.into_iter().map(own);
        let of_models = of_models.collect::<error::Result<Vec<Parameters>>>()?;
        let mut slices = Vec::with_capacity(file.slices.len());
        for slice in file.slices {
            let mut sources = Vec::with_capacity(slice.sources.len());
            for source in slice.sources {
                sources.push(SliceSource {
                    model: source.model,
                    layers: source.layers,
                    parameters: own(source.parameters)?,
                });
            }
            let mut parameters = checked(slice.parameters, known.clone())?;
            parameters.retain(|key, _| counts(key));
            slices.push(MergeSlice {
                sources,
                base: slice.base,
                parameters,
            });
        }
        if !self.slices.is_empty() {
            slices = self.slices(&of_models)?;
        }
        let mut of_all = checked(file.of_all, known)?;
        of_all.retain(|key, _| counts(key));
        of_all.extend(flags.clone());
        Ok(MergeParameters {
            of_all,
            of_models,
            slices,
            notes: Vec::new(),
        })
    }

    /// The slices that flags name.
    fn slices(&self, of_models: &[Parameters]) -> error::Result<Vec<MergeSlice>> {
        let mut slices = Vec::with_capacity(self.slices.len());
        for SliceFlag(sources) in &self.slices {
            let mut slice = MergeSlice {
                sources: Vec::with_capacity(sources.len()),
                base: None,
                parameters: Parameters::new(),
            };
            for (model, layers) in sources {
                let Some(parameters) = of_models.get(*model) else {
                    return Err(CliError::SliceModel {
                        found: model + 1,
                        models: of_models.len(),
                    });
                };
                slice.sources.push(SliceSource {
                    model: *model,
                    layers: layers.clone(),
                    parameters: parameters.clone(),
                });
            }
            slices.push(slice);
        }
        Ok(slices)
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
                .any(|argument| argument.get_long() == flag(key).strip_prefix("--"));
            assert!(is_flag || matches!(key, "weight" | "int8_mask"), "{key}");
        }
    }
}
