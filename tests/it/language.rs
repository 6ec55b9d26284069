//! What people read is plain English: no banned word, no sentence of more than thirty words.
//!
//! The test reads comments, docstrings and texts of the program (help, errors, notes) in the sources.
//! It also reads comments of scripts, recipes and formats, and the pages of the documentation.
//! `language-exceptions.txt` lists what may stay: a path and the first words of the sentence.

use std::fs;
use std::path::{Path, PathBuf};

/// Most words of a sentence. docs/STYLE.md asks for about 25.
const LONGEST: usize = 30;

/// Words and phrases that made readers stop, with what to write.
const BANNED: [(&str, &str); 22] = [
    ("told", "say who says what to whom"),
    ("is stood", "is"),
    ("stands", "is"),
    ("stood", "was"),
    ("lies", "is"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("behind", "after"),
    ("that of", "repeat the noun"),
    ("those of", "repeat the noun"),
    ("such", "name it"),
    ("there is none", "X has no Y"),
    ("there are none", "X has no Y"),
    ("put up with", "accept"),
    ("one another", "each other"),
    ("way back", "backward pass"),
    ("way forward", "forward pass"),
    ("product of matrices", "matmul"),
    ("products of matrices", "matmuls"),
    ("what is made", "the output"),
    ("comes of", "results from"),
    ("come of", "result from"),
];

/// A piece of prose and where it begins.
struct Prose {
    path: PathBuf,
    line: usize,
    text: String,
}

#[test]
fn what_people_read_is_plain_english() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = fs::read_to_string(root.join("tests/it/language-exceptions.txt")).unwrap();
    let mut exceptions: Vec<(&str, bool)> = listed
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| (line, false))
        .collect();
    let mut faults = Vec::new();
    for path in files(root) {
        let content = fs::read_to_string(root.join(&path)).unwrap();
        for prose in prose(&path, &content) {
            for sentence in sentences(&prose.text) {
                let Some(fault) = fault(&sentence) else {
                    continue;
                };
                let entry = format!("{}: {sentence}", prose.path.display());
                match exceptions
                    .iter_mut()
                    .find(|(exception, _)| entry.starts_with(exception))
                {
                    Some((_, used)) => *used = true,
                    None => faults.push(format!(
                        "{}:{}: {fault}: {sentence}",
                        prose.path.display(),
                        prose.line
                    )),
                }
            }
        }
    }
    let unused = exceptions.iter().filter(|(_, used)| !used);
    faults
        .extend(unused.map(|(exception, _)| format!("an exception without a fault: {exception}")));
    assert!(
        faults.is_empty(),
        "{} faults\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn faults_are_found() {
    let text = "The reader refuses `{name}` and others. It stands here.";
    let found: Vec<_> = sentences(text).iter().filter_map(|s| fault(s)).collect();
    assert_eq!(found, ["`stands` (is)"]);
    assert!(fault(&["word"; LONGEST + 1].join(" ")).is_some());
    assert!(fault(&["word"; LONGEST].join(" ")).is_none());
    let source = "//! One.\n//! Two.\nconst A: &str = \"a \\\"b\\\" \\\n   c d\"; // Three.\nlet c = '\"'; let d = r#\"e \" f g h\"#;";
    let found: Vec<String> = prose(Path::new("a.rs"), source)
        .into_iter()
        .map(|prose| prose.text)
        .collect();
    assert_eq!(found, ["One.\nTwo.", "a \"b\" c d", "Three.", "e \" f g h"]);
}

#[test]
fn examples_in_docstrings_and_pages_are_no_prose() {
    let sentences_in = |path: &str, content: &str| -> Vec<String> {
        prose(Path::new(path), content)
            .iter()
            .flat_map(|prose| sentences(&prose.text))
            .collect()
    };
    let docstring =
        "def f():\n    \"\"\"One.\n\n    Two.\n\n        stands here\n    \"\"\"\n    # Three.\n";
    assert_eq!(sentences_in("a.py", docstring), ["One.", "Two.", "Three."]);
    let page = "# One\n\nTwo.\n\n```\nstands here\n```\n\n    stands here\n\n| a | b |\n";
    assert_eq!(sentences_in("a.md", page), ["# One", "Two.", "a", "b"]);
    assert_eq!(sentences_in("STYLE.md", "| stands |\nOne.\n"), ["One."]);
}

/// Folders with prose of ours. Markdown pages at the top of the repository count, too.
const FOLDERS: [&str; 9] = [
    "benches", "docs", "examples", "fixtures", "formats", "fuzz", "recipes", "src", "tests",
];

/// Folders that hold recorded outputs or inputs for tests.
const SKIPPED: [&str; 6] = [
    "target",
    "hostile",
    "golden",
    "corpus",
    "artifacts",
    "snapshots",
];

/// Whether a file may have any words: this one lists the banned ones, and the log is a record of its time.
fn is_exempt(path: &Path) -> bool {
    let files = ["tests/it/language.rs", "docs/design/log.md"];
    files.iter().any(|file| path == Path::new(file))
}

/// The files with prose of ours, as paths inside the repository.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = FOLDERS.iter().map(|name| root.join(name)).collect();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let inside = path.strip_prefix(root).unwrap().to_path_buf();
            if path.is_dir() {
                if !SKIPPED.contains(&name.as_str()) && !name.starts_with("written-by") {
                    open.push(path);
                }
            } else if kind(&inside).is_some() && !is_exempt(&inside) {
                found.push(inside);
            }
        }
    }
    let pages = fs::read_dir(root).unwrap();
    let pages = pages.map(|entry| PathBuf::from(entry.unwrap().file_name()));
    found.extend(pages.filter(|page| kind(page) == Some("md")));
    found.sort();
    found
}

fn kind(path: &Path) -> Option<&str> {
    let extension = path.extension()?.to_str()?;
    ["md", "rs", "py", "sh", "yaml", "toml"]
        .contains(&extension)
        .then_some(extension)
}

fn prose(path: &Path, content: &str) -> Vec<Prose> {
    let found = match kind(path) {
        Some("rs") => rust(content),
        Some("md") => page(path, content),
        _ => script(content),
    };
    found
        .into_iter()
        .map(|(line, text)| Prose {
            path: path.to_path_buf(),
            line,
            text,
        })
        .collect()
}

/// Comments and texts of a Rust file. Neighbouring lines of comment are one text.
fn rust(content: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let bytes = content.as_bytes();
    let (mut at, mut line, mut comment_line) = (0, 1, 0);
    while at < bytes.len() {
        let rest = &content[at..];
        if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            let text = rest[..end].trim_start_matches(['/', '!']);
            let text = text.strip_prefix(' ').unwrap_or(text).to_owned();
            match found.last_mut() {
                Some((_, whole)) if comment_line + 1 == line && comment_line > 0 => {
                    whole.push('\n');
                    whole.push_str(&text);
                }
                _ => found.push((line, text)),
            }
            comment_line = line;
            at += end;
            continue;
        }
        let raw = rest.strip_prefix('r').and_then(|rest| {
            let hashes = rest.len() - rest.trim_start_matches('#').len();
            let body = rest[hashes..].strip_prefix('"')?;
            let close = format!("\"{}", "#".repeat(hashes));
            let length = body.find(&close)?;
            Some((&body[..length], 1 + hashes + 1 + length + close.len()))
        });
        let is_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        if let Some((text, length)) = raw.filter(|_| !is_word) {
            found.push((line, text.to_owned()));
            line += rest[..length].matches('\n').count();
            at += length;
        } else if bytes[at] == b'"' {
            let (text, length) = literal(rest);
            if text.split_whitespace().count() > 3 {
                found.push((line, text));
            }
            line += rest[..length].matches('\n').count();
            at += length;
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            at += if rest.starts_with("'\"'") { 3 } else { 4 };
        } else {
            if bytes[at] == b'\n' {
                line += 1;
            } else if !bytes[at].is_ascii_whitespace() {
                comment_line = 0;
            }
            at += 1;
        }
        while !content.is_char_boundary(at) {
            at += 1;
        }
    }
    found
}

/// The value of the string literal at the start, and its length in the source.
fn literal(source: &str) -> (String, usize) {
    let mut text = String::new();
    let mut characters = source.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match characters.next() {
                Some((_, '\n')) => {
                    while characters.next_if(|(_, c)| c.is_whitespace()).is_some() {}
                }
                Some((_, 'n')) => text.push('\n'),
                Some((_, c)) => text.push(c),
                None => {}
            },
            c => text.push(c),
        }
    }
    (text, source.len())
}

/// The lines of a page outside its code blocks. Each line is one sentence (`docs.rs`).
fn page(path: &Path, content: &str) -> Vec<(usize, String)> {
    // The tables of the style guide show what not to write.
    let shows_faults = path.ends_with("STYLE.md");
    let mut is_code = false;
    let mut found = Vec::new();
    for (number, line) in content.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        let is_skipped = is_code || is_fence || (shows_faults && line.starts_with('|'));
        if !is_skipped {
            found.push((number + 1, line.to_owned()));
        }
    }
    found
}

/// Comments of a script or data file, and docstrings of Python.
fn script(content: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut last_comment = 0;
    let mut docstring: Option<Docstring> = None;
    for (number, line) in (1..).zip(content.lines()) {
        let trimmed = line.trim();
        if let Some(mut open) = docstring.take() {
            let (text, is_last) = until_quotes(open.inside(line));
            open.text.push('\n');
            open.text.push_str(text);
            if is_last {
                found.push((open.line, open.text));
            } else {
                docstring = Some(open);
            }
        } else if let Some(begin) = trimmed.strip_prefix(QUOTES) {
            let (text, is_last) = until_quotes(begin);
            if is_last {
                found.push((number, text.to_owned()));
            } else {
                docstring = Some(Docstring {
                    line: number,
                    indent: line.len() - line.trim_start().len(),
                    text: text.to_owned(),
                });
            }
        } else if let Some(text) = trimmed
            .strip_prefix('#')
            .filter(|text| !text.starts_with('!'))
        {
            let text = text.strip_prefix(' ').unwrap_or(text);
            match found.last_mut() {
                Some((_, whole)) if last_comment > 0 && last_comment + 1 == number => {
                    whole.push('\n');
                    whole.push_str(text);
                }
                _ => found.push((number, text.to_owned())),
            }
            last_comment = number;
        }
    }
    found
}

const QUOTES: &str = "\"\"\"";

/// A docstring whose end is still to come.
struct Docstring {
    line: usize,
    /// Spaces before its first line, which the other lines have, too.
    indent: usize,
    text: String,
}

impl Docstring {
    /// A line without the indentation of the docstring; deeper indentation, as of an example, stays.
    fn inside<'a>(&self, line: &'a str) -> &'a str {
        let is_indented = line.len() - line.trim_start().len() >= self.indent;
        if is_indented {
            &line[self.indent..]
        } else {
            line.trim_start()
        }
    }
}

/// The text before closing quotes, and whether there are any.
fn until_quotes(text: &str) -> (&str, bool) {
    text.split_once(QUOTES)
        .map_or((text, false), |(text, _)| (text, true))
}

/// The sentences of a text of Markdown. Code blocks have none; a code span or a place is one word.
fn sentences(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    let mut is_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let trimmed = line.trim();
        let begins = trimmed.is_empty()
            || ["- ", "* ", "| ", "#", "* `"]
                .iter()
                .any(|mark| trimmed.starts_with(mark));
        // Indented by four: an example.
        if is_code || line.starts_with("    ") {
            blocks.push(String::new());
            continue;
        }
        if begins {
            blocks.push(String::new());
        }
        if let Some(block) = blocks.last_mut() {
            block.push(' ');
            block.push_str(trimmed);
        }
        if trimmed.starts_with('#') {
            blocks.push(String::new());
        }
        if trimmed.starts_with('|') {
            let cells = blocks.pop().unwrap_or_default();
            // A cell may list things, with semicolons between them.
            blocks.extend(cells.split(['|', ';']).map(str::to_owned));
        }
    }
    let mut found = Vec::new();
    for block in blocks {
        let mut sentence = String::new();
        let mut characters = block.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '`' | '{' => {
                    let close = if c == '`' { '`' } else { '}' };
                    sentence.push('`');
                    for inner in characters.by_ref().take_while(|inner| *inner != close) {
                        sentence.push(if inner == ' ' { '_' } else { inner });
                    }
                    sentence.push('`');
                }
                '.' | '!' | '?' if characters.peek().is_none_or(|next| *next == ' ') => {
                    sentence.push(c);
                    found.push(std::mem::take(&mut sentence));
                }
                c => sentence.push(c),
            }
        }
        found.push(sentence);
    }
    found
        .into_iter()
        .map(|sentence| sentence.trim().to_owned())
        .filter(|sentence| !sentence.is_empty())
        .collect()
}

fn fault(sentence: &str) -> Option<String> {
    let words: Vec<String> = sentence
        .split_whitespace()
        .filter(|word| word.chars().any(char::is_alphanumeric))
        .map(|word| {
            let is_edge = |c: char| !c.is_alphanumeric() && c != '`';
            word.trim_matches(is_edge).to_lowercase()
        })
        .collect();
    let line = format!(" {} ", words.join(" ")).replace(" such as ", " as ");
    let banned = BANNED
        .iter()
        .find(|(phrase, _)| line.contains(&format!(" {phrase} ")));
    if let Some((phrase, instead)) = banned {
        return Some(format!("`{phrase}` ({instead})"));
    }
    (words.len() > LONGEST).then(|| format!("{} words", words.len()))
}
