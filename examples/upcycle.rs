//! Plans a mixture of a seed and its experts, prints the plan, and executes it.
//!
//! Run it on the fixtures; the last argument is the folder to make:
//!
//! ```text
//! cargo run --example upcycle -- fixtures/llama/seed fixtures/llama/code OUT
//! ```

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bam_convert::surgery::Model;
use bam_convert::surgery::execute::{Target, execute};
use bam_convert::surgery::methods::Method;
use bam_convert::surgery::upcycle::{Expert, SEED, UpcycleSettings, plan};

fn main() -> Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [seed, experts @ .., out] = &paths[..] else {
        bail!("expected folders: SEED EXPERT... OUT");
    };

    let seed = Model::open(SEED, seed)?;
    let experts: Vec<Expert> = experts
        .iter()
        .map(|path| expert(path))
        .collect::<Result<_>>()?;

    // A method's flags, as typed, would be between the brackets.
    let rule = Method::BAM.parsed([])?;
    let settings = UpcycleSettings::new(Method::BAM, rule);
    let upcycling = plan(seed, experts, &settings)?;
    for tensor in &upcycling.plan.tensors {
        let (layout, expression) = (&tensor.layout, &tensor.expression);
        let (name, shape) = (&layout.name, &layout.shape);
        println!("{name} {} {shape:?} = {expression}", layout.dtype);
    }

    let target = Target::new(out);
    let manifest = execute(&upcycling.plan, &upcycling.files, &target)?;
    println!("wrote {} tensors", manifest.tensors.len());
    Ok(())
}

/// The dense model in a folder as an expert with the name of the folder.
fn expert(path: &Path) -> Result<Expert> {
    let name = path.file_name().context("an expert needs a folder name")?;
    let name = name.to_string_lossy().into_owned();
    let model = Some(Model::open(&name, path)?);
    Ok(Expert { name, model })
}
