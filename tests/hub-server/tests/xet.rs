//! Files of Hugging Face's content-addressed store, read back plainly.

use hub_server::{Keep, Options, Server, Transfers};

#[test]
fn kept_in_xet() {
    let bytes: Vec<u8> = (0..40_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let folder = std::env::temp_dir().join(format!("hub-server-{}", std::process::id()));
    for data in [None, Some(folder.clone())] {
        let transfers = Transfers { basic: true, multipart: true, xet: true };
        let server = Server::start(Options { transfers, keep: Keep::Xet, data, ..Options::default() });
        server.put("org/name", "main", &[("model.safetensors", &bytes)]);
        assert!(server.file("org/name", "main", "model.safetensors").is_some_and(|read| read == bytes));
    }
    std::fs::remove_dir_all(folder).expect("the folder goes");
}
