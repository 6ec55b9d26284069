//! The families that the program knows: those embedded in it, and one that a user brings with `--format`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};

use super::error::FamilyError;
use super::extends::{self, Parent};
use super::format::Family;
use super::format_error::FormatError;
use crate::checkpoint::yaml;
use crate::{Error, Result};

macro_rules! embedded {
    ($($name:literal),*) => {
        &[$(($name, include_str!(concat!("../../formats/", $name, ".yaml")))),*]
    };
}

/// The family of this program's own mixtures.
pub const BAM: &str = "bam";

/// Names and texts of the embedded files, in the order in which they are listed to users.
pub(super) static EMBEDDED: &[(&str, &str)] = embedded!(
    "llama",
    "mistral",
    "ministral3",
    "qwen2",
    "qwen3",
    "cohere",
    "cohere2",
    "smollm3",
    "seed_oss",
    "olmo2",
    "olmo3",
    "exaone4",
    "exaone",
    "ernie4_5",
    "arcee",
    "hunyuan_v1_dense",
    "helium",
    "cwm",
    "internlm3",
    "iquestcoder",
    "granite",
    "granitemoehybrid",
    "hyperclovax",
    "gemma",
    "gemma2",
    "gemma3_text",
    "vaultgemma",
    "phi3",
    "glm",
    "glm4",
    "gpt_neox",
    "internlm2",
    "starcoder2",
    "jais2",
    "phi",
    "stablelm",
    "nemotron",
    "bam",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "flex_olmo",
    "granitemoe",
    "granitemoeshared",
    "ernie4_5_moe",
    "cohere2_moe",
    "hunyuan_v1_moe"
);

/// The embedded families that can hold a mixture. The command line lists them at each start, and parses no file for that.
pub(super) static MIXTURES: [&str; 11] = [
    "bam",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "flex_olmo",
    "granitemoe",
    "granitemoeshared",
    "ernie4_5_moe",
    "cohere2_moe",
    "hunyuan_v1_moe",
];

/// A family of this program. Its file is parsed when something asks for the family: parsing all of them takes longer than most
/// commands do.
struct Embedded {
    source: Parent<'static>,
    family: OnceLock<std::result::Result<Arc<Family>, String>>,
}

static FAMILIES: LazyLock<Vec<Embedded>> = LazyLock::new(|| {
    let families = EMBEDDED.iter().map(|(name, text)| Embedded {
        source: Parent::new(name, text),
        family: OnceLock::new(),
    });
    families.collect()
});

/// All of them, parsed.
static PARSED: LazyLock<std::result::Result<Vec<Arc<Family>>, String>> = LazyLock::new(|| {
    let families = FAMILIES.iter().map(|one| one.parsed().cloned());
    families.collect::<Result<_>>().map_err(|e| e.to_string())
});

impl Embedded {
    fn parsed(&self) -> Result<&Arc<Family>> {
        let family = self.family.get_or_init(|| {
            let path = PathBuf::from(format!("formats/{}.yaml", self.source.name));
            let own = self.source.parsed(&path).cloned();
            let family = own.and_then(|own| extends::complete(&path, own, &parents()));
            family.map(Arc::new).map_err(|e| e.to_string())
        });
        family.as_ref().map_err(|problem| unreadable(problem))
    }

    /// The names in a list of its file that takes one line, without parsing the file.
    fn listed(&self, key: &str) -> impl Iterator<Item = &'static str> {
        let mut lines = self.source.text.lines();
        let list = lines.find_map(|line| {
            let list = line.strip_prefix(key)?.strip_prefix(": [")?;
            list.strip_suffix(']')
        });
        list.unwrap_or_default().split(", ")
    }
}

/// The families that a format file may extend.
fn parents() -> Vec<&'static Parent<'static>> {
    FAMILIES.iter().map(|one| &one.source).collect()
}

fn unreadable(problem: &str) -> Error {
    FormatError::Embedded {
        problem: problem.to_owned(),
    }
    .into()
}

/// The family that a user brought. A process works for one command line, which has at most one `--format`; every
/// configuration that it reads, however deep, may be of that family.
static BROUGHT: OnceLock<Arc<Family>> = OnceLock::new();

/// The families that the toolkit knows by itself.
pub fn families() -> Result<&'static [Arc<Family>]> {
    PARSED.as_deref().map_err(|problem| unreadable(problem))
}

/// The embedded family that a configuration names, by `model_type`, or by its class where it has no `model_type`.
pub(super) fn embedded(
    model_type: Option<&str>,
    class: Option<&str>,
) -> Result<Option<&'static Arc<Family>>> {
    let (key, found) = match (model_type, class) {
        (None, Some(class)) => ("architectures", class),
        (model_type, _) => ("model_types", model_type.unwrap_or_default()),
    };
    let mut all = FAMILIES.iter();
    let named = all.find(|one| {
        one.listed(key)
            .any(|name| !name.is_empty() && name == found)
    });
    named.map(Embedded::parsed).transpose()
}

/// Whether it is one of the program's own, and not one that a user brought.
pub(super) fn is_embedded(family: &Arc<Family>) -> bool {
    let mut parsed = FAMILIES.iter().filter_map(|one| one.family.get());
    parsed.any(|known| known.as_ref().is_ok_and(|known| Arc::ptr_eq(known, family)))
}

/// The family that a user brought, if any.
pub(super) fn brought() -> Option<&'static Arc<Family>> {
    BROUGHT.get()
}

/// Names of keys of the embedded mixtures that mean nothing in a dense family.
pub(super) fn mixture_names() -> impl Iterator<Item = &'static str> {
    let known = families().unwrap_or_default();
    let of_mixtures = known.iter().filter_map(|family| family.mixture.as_ref());
    let names = of_mixtures.flat_map(|keys| keys.iter().flat_map(|(_, key)| &key.names));
    names
        .map(String::as_str)
        .filter(|name| !known.iter().any(|family| family.keys.names(name)))
}

impl Family {
    /// Makes the family known to everything that this process reads from here on, as `--format` does.
    ///
    /// # Errors
    /// Where the process has brought another family before.
    pub fn bring(self) -> Result<()> {
        let brought = BROUGHT.get_or_init(|| Arc::new(self.clone()));
        if **brought == self {
            return Ok(());
        }
        Err(FormatError::SecondFamily {
            name: brought.name.clone(),
        }
        .into())
    }

    /// Reads a family from the text of a format file; `path` only names the place in errors.
    pub fn from_yaml(path: &Path, text: &str) -> Result<Self> {
        extends::read(path, text, &parents())
    }

    /// Reads a family from a format file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_yaml(path, &yaml::read_text(path)?)
    }

    /// The embedded family of that name.
    pub fn named(name: &str) -> Result<Arc<Self>> {
        let mut all = FAMILIES.iter();
        if let Some(named) = all.find(|one| one.source.name == name) {
            return named.parsed().cloned();
        }
        Err(FamilyError::UnknownName {
            what: "a family",
            found: name.to_owned(),
            known: EMBEDDED.iter().map(|(name, _)| (*name).into()).collect(),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Role;

    #[test]
    fn every_file_is_embedded_under_its_name_and_mixtures_come_last() {
        let families = families().unwrap();
        let mut embedded: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        let names: Vec<_> = families.iter().map(|family| &family.name).collect();
        assert_eq!(names, embedded);
        let dense = families.iter().take_while(|family| !family.is_mixture());
        assert_eq!(dense.count(), EMBEDDED.len() - MIXTURES.len());

        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats");
        let files = std::fs::read_dir(folder).unwrap();
        let mut files: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        embedded.sort();
        let embedded = embedded.iter().map(|name| format!("{name}.yaml"));
        assert_eq!(files, embedded.collect::<Vec<_>>());
    }

    #[test]
    fn lists_in_files_are_found_without_parsing() {
        for (embedded, family) in FAMILIES.iter().zip(families().unwrap()) {
            let listed = |key| Vec::from_iter(embedded.listed(key));
            assert_eq!(listed("model_types"), family.model_types);
            assert_eq!(listed("architectures"), family.architectures);
        }
    }

    #[test]
    fn every_family_of_mixtures_is_listed() {
        let mixtures = families()
            .unwrap()
            .iter()
            .filter(|family| family.is_mixture());
        let names: Vec<_> = mixtures.map(|family| family.name.as_str()).collect();
        assert_eq!(names, MIXTURES);
    }

    fn refused(change: impl Fn(&str) -> String) -> Error {
        Family::from_yaml(Path::new("my.yaml"), &change(EMBEDDED[0].1)).unwrap_err()
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let error = refused(|text| text.replace("  num_heads:", "  nun_heads:"));
        assert!(error.to_string().contains("key `nun_heads`"), "{error}");
        assert!(error.to_string().contains("my.yaml:"), "{error}");
        assert_eq!(
            error.hint().as_deref(),
            Some("the nearest known key is `num_heads`")
        );
        let error = refused(|text| text.replace("block: sequential", "block: sequentail"));
        assert!(error.to_string().contains("sequential"), "{error}");
    }

    #[test]
    fn patterns_are_checked() {
        let error = refused(|text| {
            text.replace("layers.{l}.self_attn.q_proj", "layers.{n}.self_attn.q_proj")
        });
        assert!(
            matches!(&error, Error::Format(FormatError::Pattern { key, expected, .. })
                if key == "tensors.q" && expected == "that ends in .weight with {l} once"),
            "{error}"
        );
        let error = refused(|text| {
            text.replace(
                "block: sequential",
                "block: sequential\nnorm_position: sandwich",
            )
        });
        assert!(error.to_string().contains("norm_position"), "{error}");
        let error = refused(|text| text.replace("norm_position: pre", "norm_position: sandwich"));
        assert!(
            matches!(&error, Error::Format(FormatError::NoTensorName { role: Role::PreFeedforwardNorm, key, .. })
                if key == "tensors.pre_feedforward_norm"),
            "{error}"
        );
    }

    #[test]
    fn keys_that_contradict_a_layout_are_refused() {
        let error =
            refused(|text| text.replace("\nkeys:\n", "\nkeys:\n  parallel_block: parallel\n"));
        assert!(
            matches!(&error, Error::Format(FormatError::SequentialBlock { .. })),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_extends_another_says_only_what_differs() {
        let text = "\
            extends: llama\n\
            name: mine\n\
            model_types: [mine]\n\
            architectures: [MineForCausalLM]\n\
            keys:\n  norm_eps: { names: [epsilon] }\n  head_dim: ~\n\
            tensors:\n  q: h.{l}.query.weight\n";
        let mine = Family::from_yaml(Path::new("my.yaml"), text).unwrap();
        let llama = Family::named("llama").unwrap();
        assert_eq!(mine.layouts, llama.layouts);
        assert_eq!(mine.gguf, llama.gguf);
        assert_ne!(mine.tensors, llama.tensors);

        let refused = |text: &str| Family::from_yaml(Path::new("my.yaml"), text).unwrap_err();
        let error = refused(&text.replace("name: mine\n", "\n"));
        assert!(
            matches!(&error, Error::Format(FormatError::Required { key, .. }) if key == "name"),
            "{error}"
        );
        let error = refused(&text.replace("  head_dim:", "  head_dmi:"));
        assert!(error.to_string().contains("my.yaml:7:"), "{error}");
        assert_eq!(
            error.hint().as_deref(),
            Some("the nearest known key is `head_dim`")
        );

        let plain = format!("{text}norm_type: layer\n");
        let plain = Family::from_yaml(Path::new("my.yaml"), &plain).unwrap();
        assert_eq!(plain.gguf, None);
    }
}
