//! Licences by their texts: which one a licence file holds, in the Hub's spelling.

use std::sync::LazyLock;

use spdx::detection::{Store, TextData};

/// What the Hub calls a licence that is not known, and one that is none of its list.
pub(super) const UNKNOWN: &str = "unknown";
pub(super) const OTHER: &str = "other";

/// Words near the beginning of licences of model makers, which SPDX does not have; the first that fit count.
const MAKERS: [(&str, &str); 6] = [
    ("llama 2 community license", "llama2"),
    ("llama 3.1 community license", "llama3.1"),
    ("llama 3.2 community license", "llama3.2"),
    ("llama 3.3 community license", "llama3.3"),
    ("meta llama 3 community license", "llama3"),
    ("gemma terms of use", "gemma"),
];

/// Licences whose texts are recognised, as SPDX names them: those that models on the Hub have.
const RECOGNISED: [&str; 28] = [
    "AGPL-3.0",
    "Apache-2.0",
    "Artistic-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSD-3-Clause-Clear",
    "BSL-1.0",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-ND-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-ND-4.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "EPL-2.0",
    "EUPL-1.2",
    "GPL-2.0",
    "GPL-3.0",
    "ISC",
    "LGPL-2.1",
    "LGPL-3.0",
    "MIT",
    "MPL-2.0",
    "OFL-1.1",
    "OpenMDW-1.0",
    "Unlicense",
    "Zlib",
];

/// The least likeness, from 0 to 1, at which a text counts as a licence's text: the default of the crate's own scanner.
const LIKENESS: f32 = 0.9;
/// Characters at the beginning of a text in which a short notice names its licence.
const NOTICE: usize = 200;

/// The Hub's identifier of the licence with this text, or [`OTHER`].
pub(super) fn identified(text: &str) -> String {
    let words = words_of(text);
    if let Some((_, id)) = MAKERS.iter().find(|(title, _)| words.contains(title)) {
        return (*id).to_owned();
    }

    let text = TextData::new(text);
    let best = STORE.analyze(&text);
    if best.score >= LIKENESS {
        return best.name.to_lowercase();
    }

    // A notice names its licence alone, in SPDX's words but for `version`.
    let beginning: String = words.chars().take(NOTICE).collect();
    let named = RECOGNISED.iter().find(|name| {
        spdx::license_id(name).is_some_and(|id| beginning.contains(&words_of(id.full_name)))
    });
    named.map_or_else(|| OTHER.to_owned(), |name| name.to_lowercase())
}

/// The texts of [`RECOGNISED`]: preparing every text that SPDX has would delay each surgery.
static STORE: LazyLock<Store> = LazyLock::new(|| {
    let mut store = Store::new();
    for (name, text) in RECOGNISED.iter().zip(TEXTS) {
        store.add_license((*name).to_owned(), TextData::new(text));
    }
    store
});

/// The texts themselves. The compiler finds them, so that the binary holds these alone, and not five megabytes of others.
static TEXTS: [&str; RECOGNISED.len()] = {
    let mut texts = [""; RECOGNISED.len()];
    let mut number = 0;
    while number < texts.len() {
        texts[number] = text_of(RECOGNISED[number]);
        number += 1;
    }
    texts
};

/// The text of a licence. A name that SPDX lacks fails to compile.
const fn text_of(name: &str) -> &'static str {
    let known = spdx::text::LICENSE_TEXTS;
    let mut number = 0;
    while !is_equal(known[number].0, name) {
        number += 1;
    }
    known[number].1
}

const fn is_equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut number = 0;
    while number < a.len() {
        if a[number] != b[number] {
            return false;
        }
        number += 1;
    }
    true
}

/// The words of a text in lower case, one space between them, without `version`.
fn words_of(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split_whitespace().filter(|word| *word != "version");
    words.collect::<Vec<_>>().join(" ")
}

/// The Hub's spelling of an identifier, or [`OTHER`] where it is no plain word.
pub(super) fn plain(id: &str) -> String {
    let id = id.trim().to_lowercase();
    let id = id
        .strip_suffix("-only")
        .or_else(|| id.strip_suffix("-or-later"))
        .unwrap_or(&id);
    if is_plain(id) {
        id.to_owned()
    } else {
        OTHER.to_owned()
    }
}

/// Whether a word has only letters, digits and signs of identifiers.
pub(super) fn is_plain(word: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    (1..=64).contains(&word.len()) && word.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_the_list_is_identified_as_itself() {
        for name in RECOGNISED {
            let found = spdx::text::LICENSE_TEXTS
                .iter()
                .find(|(known, _)| *known == name);
            let (_, text) = found.unwrap_or_else(|| panic!("SPDX has no text of {name}"));
            assert_eq!(identified(text), name.to_lowercase());
        }
    }

    #[test]
    fn texts_that_only_resemble_a_licence_are_other() {
        let mit = "Permission is hereby granted, free of charge, to any person, for research only.";
        assert_eq!(identified(mit), OTHER);
        assert_eq!(identified(""), OTHER);
        assert_eq!(
            identified("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta"),
            "llama3"
        );
        assert_eq!(identified("MIT License\n\nCopyright 2024 A"), "mit");
    }
}
