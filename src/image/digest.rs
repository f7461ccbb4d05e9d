//! Content addresses: the digest of bytes, and what the bytes are.
//!
//! The same 32 bytes mean different things: of a tar, of a compressed blob, of a manifest. Each has a type of its
//! own, so that one cannot be taken for another. Format: `sha256:` and 64 lower-case hexadecimal digits (OCI image
//! specification, "Digests"). Other algorithms are registered but not in use; they are refused by name.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use super::error::ImageError;

/// SHA-256 of some bytes.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Digest([u8; 32]);

const PREFIX: &str = "sha256:";

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// 64 hexadecimal digits: the only form that becomes part of a file name.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            // Writing to a string cannot fail.
            _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    /// The first 12 digits, as listings show them.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        if hex.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let digest = text.strip_prefix(PREFIX).and_then(Self::from_hex);
        digest.ok_or_else(|| {
            let algorithm = text.split_once(':').map(|(algorithm, _)| algorithm);
            match algorithm {
                Some("sha512" | "sha384" | "blake3") => ImageError::malformed(format!(
                    "digest of an algorithm that is not supported, only sha256 is: '{}'",
                    plain(text)
                )),
                _ => ImageError::malformed(format!("not a digest: '{}'", plain(text))),
            }
        })
    }
}

/// `text` cut to a length and freed of what a terminal would interpret: what comes from an archive is not shown raw.
pub fn plain(text: &str) -> String {
    const SHOWN: usize = 200;
    let mut shown: String = text
        .chars()
        .take(SHOWN)
        .map(|c| if is_hidden(c) { '?' } else { c })
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters, and those that change the direction of text around them.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

macro_rules! kind_of_digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

kind_of_digest! {
    /// Of a layer's uncompressed tar, all bytes of it: what a layer *is*. Layers are stored and shared under it.
    DiffId
}
kind_of_digest! {
    /// Of a stack of layers: see [`ChainId::of`].
    ChainId
}
kind_of_digest! {
    /// Of the bytes of an image manifest: how an image is stored and referred to.
    ManifestDigest
}
kind_of_digest! {
    /// Of the bytes of an image config: what docker calls the image id.
    ImageId
}

impl ChainId {
    /// The id of the stack `layers`, base first; `None` of no layers.
    ///
    /// `C(L0) = diffID(L0)`, `C(L0|…|Ln) = sha256(C(L0|…|Ln-1) + " " + diffID(Ln))` over the texts (OCI image
    /// specification, "Layer `ChainID`").
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        let (base, above) = layers.split_first()?;
        let chain = above.iter().fold(base.0, |below, layer| {
            Digest::of(format!("{below} {layer}").as_bytes())
        });
        Some(Self(chain))
    }
}

/// Hashes and counts what passes through to `inner`, on the way in or out.
pub struct Hashing<T> {
    inner: T,
    hash: Sha256,
    length: u64,
}

impl<T> fmt::Debug for Hashing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hashing")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl<T> Hashing<T> {
    /// Nothing has passed yet.
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            length: 0,
        }
    }

    /// How many bytes have passed.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest of what has passed so far.
    pub fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }

    /// What was written to or read from, the digest, and the number of bytes.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest(self.hash.finalize().into()), self.length)
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.pass(&buffer[..count]);
        Ok(count)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.pass(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY_TAR: &str =
        "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

    #[test]
    fn the_digest_of_an_empty_tar_is_the_well_known_one() {
        let digest = Digest::of(&[0; 1024]);
        assert_eq!(digest.to_string(), EMPTY_TAR);
        assert_eq!(EMPTY_TAR.parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn what_is_no_sha256_digest_is_refused() {
        let hex = "0".repeat(64);
        for text in [
            String::new(),
            hex.clone(),
            format!("sha256:{}", "0".repeat(63)),
            format!("sha256:{}", "A".repeat(64)),
            format!("SHA256:{hex}"),
            "sha256:../../../../etc/passwd".into(),
            format!("md5:{hex}"),
        ] {
            let error = text.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains("not a digest: "), "{error}");
        }
        let error = format!("sha512:{}", "0".repeat(128)).parse::<Digest>();
        assert!(error.unwrap_err().to_string().contains("only sha256 is"));
    }

    #[test]
    fn a_chain_of_one_layer_is_the_layer_and_of_two_the_digest_of_their_texts() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        let two = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(two)));
        let three = Digest::of(format!("{two} {a}").as_bytes());
        assert_eq!(ChainId::of(&[a, b, a]), Some(ChainId(three)));
    }

    #[test]
    fn text_from_outside_loses_what_a_terminal_would_interpret() {
        assert_eq!(plain("a\u{1b}[31mb\nc\u{202e}d"), "a?[31mb?c?d");
        assert_eq!(plain(&"x".repeat(500)).chars().count(), 201);
    }
}
