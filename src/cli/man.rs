//! `man`: manual pages, generated from the flags and from the documentation.

use std::path::Path;

use bam_convert::arguments::OutputPath;
use bam_convert::checkpoint::single;
use bam_convert::pipeline::{Declaration, StageUse};
use bam_convert::{Error, Result};
use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::printer::Printer;
use super::verb::Verb;
use super::{Outcome, Verdict, definition, man_sections};

/// Write a manual page for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bam-convert man --out ~/.local/share/man/man1")]
pub struct Arguments {
    /// Folder to write to, made where absent.
    #[arg(long, value_name = "DIR")]
    out: OutputPath,
}

impl Verb for Arguments {
    fn declaration() -> Declaration {
        Declaration::new("man", StageUse::Never)
    }

    fn has_threads() -> bool {
        false
    }

    fn run(&self, printer: &Printer) -> Outcome {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("create", &self.out, e))?;
        let mut definition = definition().disable_help_subcommand(true);
        definition.build();
        write_pages(&definition, None, &self.out)?;
        printer.note(&format!("wrote manual pages to {}", self.out.display()));
        Ok(Verdict::Yes)
    }
}

/// The page of a command, and the pages of the commands below it. clap's own function would leave half a page on a full disk.
fn write_pages(command: &Command, above: Option<&Command>, folder: &Path) -> Result<()> {
    for below in shown(command) {
        write_pages(below, Some(command), folder)?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let page = Man::new(command.clone())
        // A page without a date needs a blank: an empty one would shift what follows it.
        .date(" ")
        .source(format!("bam-convert {version}"))
        .manual("bam-convert manual");
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    render(&page, command, above, &mut text).map_err(|e| Error::io("write", &path, e))?;
    single::write(&path, &[&text])
}

/// Writes the sections of a page in the usual order.
fn render(
    page: &Man,
    command: &Command,
    above: Option<&Command>,
    text: &mut Vec<u8>,
) -> std::io::Result<()> {
    page.render_title(text)?;
    page.render_name_section(text)?;
    page.render_synopsis_section(text)?;
    page.render_description_section(text)?;
    page.render_options_section(text)?;
    if shown(command).next().is_some() {
        page.render_subcommands_section(text)?;
    }
    let mut roff = Roff::default();
    man_sections::render(&mut roff);
    render_examples(command, &mut roff);
    render_see_also(command, above, &mut roff);
    roff.to_writer(text)
}

/// The commands below a command that its help shows.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    let below = command.get_subcommands();
    below.filter(|below| !below.is_hide_set())
}

/// The command lines at the end of a help text, as they are typed.
fn render_examples(command: &Command, roff: &mut Roff) {
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    let paragraphs = help.split("\n\n");
    let examples = paragraphs.filter(|paragraph| paragraph.starts_with("Example"));
    let lines: Vec<&str> = examples
        .flat_map(|paragraph| paragraph.lines().skip(1))
        .collect();
    if lines.is_empty() {
        return;
    }
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in lines {
        roff.text(vec![roman(line.trim())]);
    }
    roff.control("fi", []);
}

/// The pages of the command above, and of all commands below.
fn render_see_also(command: &Command, above: Option<&Command>, roff: &mut Roff) {
    let mut line: Vec<Inline> = Vec::new();
    for other in above.into_iter().chain(shown(command)) {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        let name = other.get_display_name().unwrap_or(other.get_name());
        line.push(bold(name));
        line.push(roman("(1)"));
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text(line);
}
