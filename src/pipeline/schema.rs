//! The JSON schema of recipes, for editors: generated from the definition of the command line.

use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value, json};

use super::lines::{setting, takes_many};
use super::program::Program;
use super::recipe::{FORMAT_VERSION, KEYS, STAGE_KEYS};
use super::shell;
use super::slurm::resources::FLAGS;

/// The schema of recipes for the commands of `program`.
pub fn schema(program: &Program) -> Value {
    let program = program.built();
    let names = program.stage_commands();
    let mut stage = Map::new();
    let [name, for_each, stdout, slurm] = STAGE_KEYS;
    stage.insert(name.to_owned(), text("Its name, which no other stage has."));
    stage.insert(
        for_each.to_owned(),
        json!({"description": "Variables with their values; the stage comes once for each combination.",
               "type": "object", "additionalProperties": {"type": "array", "items": scalar()}}),
    );
    stage.insert(
        stdout.to_owned(),
        text("A file for what the command prints."),
    );
    stage.insert(slurm.to_owned(), resources());
    for name in &names {
        let settings = match program.stage_definition(name) {
            Some(command) => settings(&program, command),
            None => shell_settings(),
        };
        stage.insert(name.clone(), settings);
    }
    let one: Vec<Value> = names
        .iter()
        .map(|name| json!({"required": [name]}))
        .collect();
    let [version, description, work, variables, slurm, stages] = KEYS;
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe",
        "description": "Stages that `bam-convert run` runs.",
        "type": "object",
        "required": [stages],
        "additionalProperties": false,
        "properties": {
            version: {"description": "Version of the format of recipes.", "const": FORMAT_VERSION},
            description: text("What it is for."),
            work: text("The folder to work in; --work replaces it."),
            variables: {"description": "Values of ${name}; --set NAME=VALUE replaces one.",
                        "type": "object", "additionalProperties": scalar()},
            slurm: resources(),
            stages: {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/stage"}},
        },
        "$defs": {"stage": {"type": "object", "required": [name], "additionalProperties": false, "oneOf": one,
                            "properties": stage}},
    })
}

fn text(description: &str) -> Value {
    json!({"description": description, "type": "string"})
}

fn scalar() -> Value {
    json!({"type": ["string", "number", "boolean"]})
}

/// What stages may ask of Slurm.
fn resources() -> Value {
    let keys = FLAGS.iter().map(|(key, flag)| {
        let mut property = scalar();
        property["description"] = format!("`--{flag}` of sbatch.").into();
        ((*key).to_owned(), property)
    });
    json!({"description": "What is asked of Slurm with --executor slurm; a stage's own wins.", "type": "object",
           "additionalProperties": false, "properties": keys.collect::<Map<_, _>>()})
}

fn shell_settings() -> Value {
    let list = json!({"anyOf": [scalar(), {"type": "array", "items": scalar()}]});
    let [command, inputs, outputs] = shell::KEYS;
    json!({"description": "A command of the shell, with the files that it reads and makes.", "type": "object",
           "required": [command], "additionalProperties": false,
           "properties": {command: {"type": "string"}, inputs: list, outputs: list}})
}

/// The settings of a command.
fn settings(program: &Program, command: &Command) -> Value {
    let known = command.get_arguments().filter_map(setting);
    let known = known.filter(|(_, argument)| !program.is_runners(argument));
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (name, argument) in known {
        if argument.is_required_set() {
            required.push(name);
        }
        properties.insert(name.to_owned(), property(program, argument));
    }
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    // Settings may be left out as a whole where nothing is required.
    let kind = if required.is_empty() {
        json!(["object", "null"])
    } else {
        json!("object")
    };
    json!({"description": about, "type": kind, "required": required, "additionalProperties": false,
           "properties": properties})
}

/// What a setting may be given; a name in braces may have any value.
fn property(program: &Program, argument: &Arg) -> Value {
    let values: Vec<String> = argument
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    let takes_values = argument.get_action().takes_values();
    let one = match (takes_values, values.is_empty()) {
        (false, _) => json!({"type": "boolean"}),
        (true, true) => scalar(),
        (true, false) if matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) => {
            // A name that ends with `:N` means every name with a number in its place.
            let numbered: Vec<&str> = values
                .iter()
                .filter_map(|value| value.strip_suffix(":N"))
                .collect();
            let plain: Vec<&String> = values.iter().filter(|name| !name.ends_with(":N")).collect();
            let mut ways = vec![
                json!({"enum": plain}),
                json!({"type": "string", "pattern": "\\$\\{"}),
            ];
            for name in numbered {
                let pattern = format!("^{name}:[0-9]+$");
                ways.push(json!({"type": "string", "pattern": pattern}));
            }
            if values.iter().any(|value| value == "true") {
                ways.push(json!({"type": "boolean"}));
            }
            json!({"anyOf": ways})
        }
        (true, false) => scalar(),
    };
    let mut ways = vec![one.clone()];
    if takes_values && takes_many(argument) {
        ways.push(json!({"type": "array", "items": one}));
    }
    let is_named = program.kind(argument).is_some_and(|kind| kind.is_named);
    if takes_values && is_named {
        ways.push(json!({"type": "object", "additionalProperties": scalar()}));
    }
    if takes_values
        && argument
            .get_num_args()
            .is_some_and(|counts| counts.min_values() == 0)
    {
        ways.push(json!({"type": "boolean"}));
    }
    let mut property = Map::new();
    property.insert(
        "description".to_owned(),
        argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default()
            .into(),
    );
    match ways.len() {
        1 => property.extend(
            ways.pop()
                .and_then(|way| way.as_object().cloned())
                .unwrap_or_default(),
        ),
        _ => drop(property.insert("anyOf".to_owned(), ways.into())),
    }
    property.into()
}
