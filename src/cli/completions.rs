//! `completions`: shell completions, generated from the flags.
//!
//! clap_complete's scripts for bash, zsh and fish are corrected here where they complete less than the shell could. Its
//! completions at run time (`CompleteEnv`) would need fewer corrections. But their protocol is unstable, so that a script
//! in a package would break with the next version.

use std::any::TypeId;

use bam_convert::checkpoint::dtype::{self, Dtype};
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::surgery::methods::Method;
use clap::builder::PossibleValuesParser;
use clap::{Arg, Args, Command, ValueHint};
use clap_complete::Shell;

use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict, definition, values};

/// The program, as scripts know it.
const PROGRAM: &str = "bam-convert";

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  bam-convert completions bash > ~/.local/share/bash-completion/completions/bam-convert"
)]
pub struct Arguments {
    /// The shell.
    shell: Shell,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("completions", StageUse::Never)
    }

    fn has_threads() -> bool {
        false
    }

    fn run(&self, printer: &Printer) -> Outcome {
        let definition = with_values(definition());
        let script = match self.shell {
            Shell::Bash => bash(definition),
            Shell::Zsh => zsh(definition),
            Shell::Fish => fish(definition),
            other => generated(other, definition),
        };
        printer.result(&script)?;
        Ok(Verdict::Yes)
    }
}

fn generated(shell: Shell, mut definition: Command) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut definition, PROGRAM, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The definition with the values of arguments whose own parser lists none, because its errors say more.
fn with_values(definition: Command) -> Command {
    mapped(definition, &|argument| {
        let value = argument.get_value_parser().type_id();
        if value == TypeId::of::<Method>() {
            let names = Method::all().map(|method| method.name());
            argument.value_parser(PossibleValuesParser::new(names))
        } else if value == TypeId::of::<Dtype>() {
            argument.value_parser(PossibleValuesParser::new(dtype::float_names()))
        } else {
            argument
        }
    })
}

/// The script for bash, with three corrections.
fn bash(definition: Command) -> String {
    let words = r#"COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )"#;
    generated(Shell::Bash, definition)
        // clap_complete spells the hyphen of the program's name in two ways, and then finds no command.
        .replace("bam__subcmd__convert", "bam__convert")
        // Flags only after a hyphen: where none is typed, a path may follow.
        .replace(words, r#"_bam__convert_words "${opts}""#)
        // Without an answer, bash completes paths by itself. It then quotes spaces, and adds slashes to folders.
        .replace(r#"COMPREPLY=($(compgen -f "${cur}"))"#, "COMPREPLY=()")
        + r#"
_bam__convert_words() {
    local word
    for word in $1; do
        if [[ "${word}" == "${cur}"* && ( "${word}" != -* || "${cur}" == -* ) ]]; then
            COMPREPLY+=("${word}")
        fi
    done
}
"#
}

/// The script for zsh, which completes the path of `NAME=PATH`, too.
fn zsh(definition: Command) -> String {
    let kinds = values::kinds();
    // No argument is an address, so that the hint for addresses can mark the arguments in question.
    let marked = mapped(definition, &|argument| match kinds.of(&argument) {
        Some(kind) if kind.is_named && kind.role.is_path() => argument.value_hint(ValueHint::Url),
        _ => argument,
    });
    let function = "_bam-convert_named_path() {\n    compset -P '*='\n    _files\n}\n\n";
    let call = "if [ \"$funcstack[1]\" = \"_bam-convert\" ]";
    generated(Shell::Zsh, marked)
        .replace(":_urls'", ":_bam-convert_named_path'")
        .replace(call, &format!("{function}{call}"))
}

/// The script for fish, with the values of positional arguments, which clap_complete leaves out.
fn fish(definition: Command) -> String {
    let mut script = generated(Shell::Fish, definition.clone());
    for command in definition.get_subcommands() {
        let positional = command.get_positionals();
        let values: Vec<String> = positional
            .flat_map(Arg::get_possible_values)
            .map(|value| value.get_name().to_owned())
            .collect();
        if !values.is_empty() {
            script += &format!(
                "complete -c {PROGRAM} -n \"__fish_bam_convert_using_subcommand {}\" -f -a \"{}\"\n",
                command.get_name(),
                values.join(" ")
            );
        }
    }
    script
}

fn mapped(command: Command, map: &dyn Fn(Arg) -> Arg) -> Command {
    command
        .mut_args(map)
        .mut_subcommands(|below| mapped(below, map))
}
