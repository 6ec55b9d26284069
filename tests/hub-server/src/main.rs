//! The server as a program, for tests with other clients. Prints its URL and a token that may write, then serves until killed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use hub_server::{Keep, Options, Server, Transfers};

/// A small conforming Hub server for tests
#[derive(Parser)]
struct Arguments {
    /// Port of the Hub's own origin; a free one for 0
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A folder for large objects; they are in memory without one
    #[arg(long)]
    data: Option<PathBuf>,
    /// Ways of uploading: basic, multipart, xet
    #[arg(long, value_delimiter = ',', default_value = "basic,multipart")]
    transfers: Vec<String>,
    /// Keep what `--put` brings in Xet's store
    #[arg(long)]
    keep_in_xet: bool,
    /// Bytes of a part of a multipart upload
    #[arg(long, default_value_t = 8 << 20)]
    part_size: u64,
    /// Entries in a page of a listing
    #[arg(long, default_value_t = 1000)]
    page_size: usize,
    /// Redirect regular files within the Hub first, as huggingface.co does
    #[arg(long)]
    resolve_cache: bool,
    /// Commit the files of a folder to begin with: ORG/NAME=DIR
    #[arg(long, value_name = "ORG/NAME=DIR")]
    put: Vec<String>,
    /// A repository of `--put` whose files need access
    #[arg(long, value_name = "ORG/NAME")]
    gated: Vec<String>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let offers = |name: &str| arguments.transfers.iter().any(|transfer| transfer == name);
    let transfers = Transfers {
        basic: offers("basic"),
        multipart: offers("multipart"),
        xet: offers("xet"),
    };
    let options = Options {
        transfers,
        keep: if arguments.keep_in_xet {
            Keep::Xet
        } else {
            Keep::Lfs
        },
        data: arguments.data,
        page_size: arguments.page_size,
        part_size: arguments.part_size,
        resolve_cache: arguments.resolve_cache,
        ..Options::default()
    };
    let server = Server::try_start(options, arguments.port)?;
    for put in &arguments.put {
        let (id, folder) = put.split_once('=').ok_or("--put takes ORG/NAME=DIR")?;
        let mut files = Vec::new();
        below(Path::new(folder), "", &mut files)?;
        for (path, file) in files {
            server.put(id, "main", &[(&path, &fs::read(file)?)]);
        }
    }
    arguments
        .gated
        .iter()
        .for_each(|id| server.set_gated(id, true));
    writeln!(std::io::stdout(), "{}\n{}", server.url(), server.token())?;
    loop {
        std::thread::park();
    }
}

/// The files below `folder` and what they are called in a repository.
fn below(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = format!(
            "{prefix}{}",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        match path.is_dir() {
            true => below(&path, &format!("{name}/"), files)?,
            false => files.push((name, path)),
        }
    }
    Ok(())
}
