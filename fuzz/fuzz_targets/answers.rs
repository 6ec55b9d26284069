//! Answers of a Hub: listings, batches of LFS, commits, what is said before a push, tokens of Xet, refusals, headers.
#![no_main]

use std::sync::LazyLock;

use bam_convert::hub::{HubClient, HubSettings, fuzzing};
use bam_convert_fuzz::bounded;
use libfuzzer_sys::fuzz_target;

static CLIENT: LazyLock<HubClient> = LazyLock::new(|| {
    let settings = HubSettings::from_environment().expect("the environment names a Hub");
    HubClient::new(settings).expect("a client that asks nobody")
});

fuzz_target!(|data: &[u8]| {
    let client = &*CLIENT;
    bounded(data.len(), || match data.split_first() {
        Some((b':', lines)) => fuzzing::headers(client, lines),
        _ => fuzzing::body(client, data),
    });
});
