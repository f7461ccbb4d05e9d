//! Any bytes as the documents of an image, and as the words a user says about one: an error in one line, or something
//! that can be asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plyfs::image::config::Config;
use plyfs::image::digest::Digest;
use plyfs::image::directive::Directive;
use plyfs::image::manifest::{Index, Manifest};
use plyfs::image::name::Name;
use plyfs::image::{platform, time};

fn one_line(error: impl std::fmt::Display) {
    let error = error.to_string();
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
}

fn ask_text(text: &str) {
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.to_string().parse::<Name>().ok(), Some(name));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    drop(text.parse::<Directive>().map_err(one_line));
    drop(platform::parse(text).map_err(one_line));
    if let Some(seconds) = time::parse(text) {
        // Fractions and offsets are not written again.
        assert_eq!(time::parse(&time::format(seconds)), Some(seconds));
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes, "").map_err(one_line) {
        assert!(manifest.layers.iter().all(|layer| layer.digest.to_string().len() == 71));
    }
    drop(Index::parse(bytes, "").map_err(one_line));
    if let Ok(config) = Config::parse(bytes).map_err(one_line) {
        // Layers and history may differ in number.
        for layers in [0, 1, config.rootfs.diff_ids.len(), 1000] {
            let steps = config.steps(layers);
            assert_eq!(steps.iter().filter(|step| step.layer.is_some()).count(), layers);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        ask_text(text);
    }
});
