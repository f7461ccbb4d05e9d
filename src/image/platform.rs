//! What an image runs on: `OS/ARCHITECTURE[/VARIANT]`, in Go's words.

use super::digest::plain;
use super::error::{Cause, ImageError, Result};
use super::manifest::Platform;

/// This machine.
pub(super) fn own() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "powerpc64" => ("ppc64le", ""),
        "loongarch64" => ("loong64", ""),
        other => (other, ""),
    };
    Platform {
        architecture: architecture.into(),
        os: "linux".into(),
        variant: variant.into(),
    }
}

/// Reads what `--platform` was given.
pub fn parse(text: &str) -> Result<Platform> {
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts[..] {
        [os, architecture] => (os, architecture, ""),
        [os, architecture, variant] => (os, architecture, variant),
        _ => ("", "", ""),
    };
    if os.is_empty() || architecture.is_empty() {
        return Err(ImageError::new(
            Cause::Usage,
            format!(
                "'{}' is not a platform; say for example linux/arm64",
                plain(text)
            ),
        ));
    }
    // Names that uname(1) has.
    let architecture = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Ok(Platform {
        architecture: architecture.into(),
        os: os.into(),
        variant: variant.into(),
    })
}

/// Whether an image for `platform` is one for `wanted`. Variants count only where both say one.
pub(super) fn fits(platform: &Platform, wanted: &Platform) -> bool {
    let variant = |platform: &Platform| match (&platform.architecture[..], &platform.variant[..]) {
        ("arm64", "") => "v8".to_owned(),
        (_, variant) => variant.to_owned(),
    };
    let variants = [variant(platform), variant(wanted)];
    platform.os == wanted.os
        && platform.architecture == wanted.architecture
        && (variants.contains(&String::new()) || variants[0] == variants[1])
}

/// As `--platform` takes it.
pub(super) fn text(platform: &Platform) -> String {
    let parts = [&platform.os, &platform.architecture, &platform.variant];
    let parts: Vec<&str> = parts
        .into_iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_compared_by_os_architecture_and_known_variants() {
        let fits = |a: &str, b: &str| fits(&parse(a).unwrap(), &parse(b).unwrap());
        assert!(fits("linux/arm64", "linux/arm64/v8") && fits("linux/amd64", "linux/x86_64"));
        assert!(fits("linux/arm/v7", "linux/arm"));
        assert!(!fits("linux/arm/v6", "linux/arm/v7") && !fits("linux/amd64", "windows/amd64"));
        assert!(!fits("linux/amd64", "linux/arm64"));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            parse(text).unwrap_err();
        }
    }
}
