//! The value types of arguments that name files, checkpoints or repositories, as a table.
//!
//! A type that is missing here would pass for a plain text: no recipe would see the files that it names. The tests below
//! walk every argument of every command.

use bam_convert::arguments::{
    ArgumentKind, ArgumentKinds, CheckpointPath, CorpusPath, DryRun, Force, InPlace, InputPath,
    MaybeNamed, Named, Outline, OutputPath, Resume, TextsPath, TrustedText, Weighted,
};
use bam_convert::data::vocabulary::Vocabulary;
use bam_convert::surgery::router::RouterInit;

use super::upcycle::ExpertSource;

/// The table.
pub fn kinds() -> ArgumentKinds {
    let mut rows = vec![
        ArgumentKind::of::<InputPath>(),
        ArgumentKind::of::<MaybeNamed<InputPath>>(),
        ArgumentKind::of::<Named<Weighted<InputPath>>>(),
        ArgumentKind::of::<TextsPath>(),
        ArgumentKind::of::<CorpusPath>(),
        ArgumentKind::of::<Named<TextsPath>>(),
        ArgumentKind::of::<CheckpointPath>(),
        ArgumentKind::of::<Named<CheckpointPath>>(),
        ArgumentKind::of::<MaybeNamed<CheckpointPath>>(),
        ArgumentKind::of::<Weighted<CheckpointPath>>(),
        ArgumentKind::of::<Named<ExpertSource>>(),
        ArgumentKind::of::<RouterInit>(),
        ArgumentKind::of::<Vocabulary>(),
        ArgumentKind::of::<OutputPath>(),
        ArgumentKind::of::<TrustedText>(),
        ArgumentKind::of::<Named<f64>>(),
        ArgumentKind::of::<Force>(),
        ArgumentKind::of::<Resume>(),
        ArgumentKind::of::<DryRun>(),
        ArgumentKind::of::<Outline>(),
        ArgumentKind::of::<InPlace>(),
    ];
    #[cfg(feature = "hub")]
    rows.push(ArgumentKind::of::<super::hub::Repository>());
    ArgumentKinds::new(rows)
}

#[cfg(test)]
mod tests {
    use std::any::TypeId;
    use std::ffi::OsString;
    use std::path::PathBuf;

    use bam_convert::arguments::ArgumentRole;
    use clap::{Arg, ArgAction, Command};

    use super::super::program;

    /// Calls `check` with every argument of every command, and the words that name it.
    fn each_argument(check: &mut dyn FnMut(&str, &Arg)) {
        fn walk(command: &Command, name: &str, check: &mut dyn FnMut(&str, &Arg)) {
            for argument in command.get_arguments() {
                check(&format!("{name} {}", argument.get_id()), argument);
            }
            for below in command.get_subcommands() {
                walk(below, &format!("{name} {}", below.get_name()), check);
            }
        }
        let mut definition = program().definition().clone();
        definition.build();
        walk(&definition, "bam-convert", check);
    }

    /// The words of a text, in small letters.
    fn words(text: &str) -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric());
        words.map(str::to_lowercase).collect()
    }

    /// Texts whose help speaks of files, but which name none on this machine.
    const TEXTS: [&str; 5] = [
        "bam-convert pull include",
        "bam-convert pull exclude",
        "bam-convert push message",
        "bam-convert tokenize end_of_text",
        "bam-convert run supervised",
    ];

    /// Whether a value without a role may be a path: by its plain type and its help, else by its name.
    fn may_be_path(argument: &Arg) -> bool {
        let speaks_of_files = |text: &str| {
            let paths = [
                "dir",
                "file",
                "files",
                "folder",
                "folders",
                "path",
                "checkpoint",
            ];
            words(text)
                .iter()
                .any(|word| paths.contains(&word.as_str()))
        };
        let type_id = argument.get_value_parser().type_id();
        let help = argument.get_help().map(ToString::to_string);
        let names = argument.get_value_names().unwrap_or_default().join(" ");
        type_id == TypeId::of::<PathBuf>()
            || type_id == TypeId::of::<OsString>()
            || type_id == TypeId::of::<String>() && speaks_of_files(&help.unwrap_or_default())
            || speaks_of_files(&names)
    }

    #[test]
    fn every_argument_that_names_a_path_has_a_type_that_says_so() {
        let program = program();
        let mut undeclared = Vec::new();
        each_argument(&mut |name, argument| {
            let takes_text =
                argument.get_action().takes_values() && argument.get_possible_values().is_empty();
            if takes_text && program.role(argument).is_none() && may_be_path(argument) {
                undeclared.push(name.to_owned());
            }
        });
        undeclared.sort();
        let mut expected = TEXTS.map(str::to_owned).to_vec();
        expected.sort();
        assert_eq!(
            undeclared, expected,
            "what names files needs a value type of `arguments/` and a row in `values.rs`"
        );
    }

    #[test]
    fn every_switch_that_the_runner_sets_has_a_type_that_says_so() {
        let roles = [
            ("force", ArgumentRole::Force),
            ("resume", ArgumentRole::Resume),
            ("dry-run", ArgumentRole::DryRun),
            ("outline", ArgumentRole::Outline),
            ("card", ArgumentRole::InPlace),
        ];
        let program = program();
        let mut undeclared = Vec::new();
        each_argument(&mut |name, argument| {
            let expected = roles
                .iter()
                .find(|(flag, _)| argument.get_long() == Some(flag));
            let is_switch = matches!(argument.get_action(), ArgAction::SetTrue);
            if let Some((_, role)) = expected
                && is_switch
                && program.role(argument) != Some(*role)
            {
                undeclared.push(name.to_owned());
            }
        });
        assert_eq!(undeclared, [""; 0]);
    }
}
