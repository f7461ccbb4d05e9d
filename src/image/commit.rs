//! A new image: an old one, and what changed over it as one more layer.
//!
//! The new config and manifest are the old ones' JSON with the fields changed that must be, so that what we do not
//! know survives. The same changes at the same time give the same image, byte for byte.

use std::io::{self, Write};

use flate2::GzBuilder;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use super::config::Config;
use super::digest::DiffId;
use super::directive::{self, Directive};
use super::error::{Cause, ImageError, Result, why};
use super::manifest::{Descriptor, media};
use super::store::{BlobWriter, LayerWriter, Store};
use super::{Image, platform, time};
use crate::changes::layer_tar::{self, LayerOptions, LayerSummary};
use crate::changes::{Comparison, WalkError};

/// How the new layer is kept and passed on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LayerCompression {
    /// As it is: nothing to pack and unpack.
    #[default]
    None,
    /// For every reader there is.
    Gzip,
    /// Smaller and faster, for readers since 2020.
    Zstd,
}

/// What is said of a commit.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// Who.
    pub author: Option<String>,
    /// Why.
    pub message: Option<String>,
    /// The command that made the changes.
    pub created_by: String,
    /// When, in seconds since 1970.
    pub created: i64,
    /// Times of files after this one (seconds since 1970) are recorded as this one.
    pub latest: Option<i64>,
    /// Changes of the configuration.
    pub directives: Vec<Directive>,
    /// How the layer is kept.
    pub compression: LayerCompression,
    /// The comparison is with nothing: the new layer takes the place of all others.
    pub squash: bool,
}

/// A commit that was made.
#[derive(Debug)]
pub struct Committed {
    /// The new image; it has no name yet.
    pub image: Image,
    /// What its new layer holds. An image of equal layers gets no new one.
    pub summary: LayerSummary,
}

/// Compression is single-threaded and at fixed levels: the same bytes each time.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
/// "Unknown" in gzip's header (RFC 1952).
const GZIP_OS: u8 = 255;

/// Makes an image of `base`, or of nothing, and of what `comparison` finds.
pub fn commit(
    store: &Store,
    base: Option<&Image>,
    comparison: &Comparison,
    options: &CommitOptions,
) -> Result<Committed> {
    let docker = base.is_some_and(|base| base.manifest.media_type == media::DOCKER_MANIFEST);
    let (layer, summary) = write_layer(store, comparison, options, (docker, base.is_some()))?;
    let config = config(base, layer.as_ref().map(|(diff_id, _)| *diff_id), options)?;
    let config_json = config.to_string().into_bytes();
    // What is written must be readable.
    Config::parse(&config_json)?;
    let types = if docker {
        (media::DOCKER_MANIFEST, media::DOCKER_CONFIG)
    } else {
        (media::MANIFEST, media::CONFIG)
    };
    let digest = store.put_blob(&config_json)?;
    let below = base.filter(|_| !options.squash).into_iter();
    let below = below.flat_map(|base| base.layers.iter().map(|layer| layer.blob.clone()));
    let layers = below.chain(layer.map(|(_, blob)| blob));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": types.0,
        "config": Descriptor::new(types.1, digest, config_json.len() as u64),
        "layers": layers.collect::<Vec<_>>(),
    });
    let image = store.put_image(manifest.to_string().as_bytes())?;
    Ok(Committed { image, summary })
}

/// Writes the layer into the store; none if it would be empty and there are others.
fn write_layer(
    store: &Store,
    comparison: &Comparison,
    options: &CommitOptions,
    (docker, has_base): (bool, bool),
) -> Result<(Option<(DiffId, Descriptor)>, LayerSummary)> {
    let tar = LayerOptions {
        latest: options.latest,
    };
    let out = Out {
        layer: store.layer_writer()?,
        blob: Packer::new(store, options.compression)?,
    };
    let (out, summary) = layer_tar::write(comparison, tar, out).map_err(|error| cannot(&error))?;
    if summary.is_empty() && has_base && !options.squash {
        return Ok((None, summary));
    }
    let (diff_id, length) = out.layer.finish(None)?;
    let (digest, size) = match out.blob.finish().map_err(|error| system(&error))? {
        Some(blob) => blob.finish_layer(diff_id)?,
        None => (diff_id.0, length),
    };
    let media_type = media_type(options.compression, docker);
    Ok((
        Some((diff_id, Descriptor::new(&media_type, digest, size))),
        summary,
    ))
}

fn cannot(error: &WalkError) -> ImageError {
    let path = error.path.escape_ascii();
    let why = why(&error.error);
    ImageError::new(
        Cause::System,
        format!("cannot record /{path}: {why}{}", error.hint()),
    )
}

fn system(error: &io::Error) -> ImageError {
    ImageError::malformed(format!("cannot compress the layer: {}", why(error)))
}

fn media_type(compression: LayerCompression, docker: bool) -> String {
    let (base, separator) = if docker {
        (media::DOCKER_LAYER, '.')
    } else {
        (media::LAYER, '+')
    };
    match compression {
        LayerCompression::None => base.to_owned(),
        LayerCompression::Gzip => format!("{base}{separator}gzip"),
        LayerCompression::Zstd => format!("{base}{separator}zstd"),
    }
}

/// The bytes of the layer go to the store twice: as they are, and compressed if that is asked for.
struct Out<'a> {
    layer: LayerWriter<'a>,
    blob: Packer<'a>,
}

enum Packer<'a> {
    None,
    Gzip(GzEncoder<BlobWriter<'a>>),
    Zstd(zstd::Encoder<'static, BlobWriter<'a>>),
}

impl<'a> Packer<'a> {
    fn new(store: &'a Store, compression: LayerCompression) -> Result<Self> {
        Ok(match compression {
            LayerCompression::None => Self::None,
            LayerCompression::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                let builder = GzBuilder::new().operating_system(GZIP_OS);
                Self::Gzip(builder.write(store.blob_writer()?, level))
            }
            LayerCompression::Zstd => {
                let encoder = zstd::Encoder::new(store.blob_writer()?, ZSTD_LEVEL);
                let mut encoder = encoder.map_err(|error| system(&error))?;
                encoder
                    .include_checksum(true)
                    .map_err(|error| system(&error))?;
                Self::Zstd(encoder)
            }
        })
    }

    fn finish(self) -> io::Result<Option<BlobWriter<'a>>> {
        match self {
            Self::None => Ok(None),
            Self::Gzip(encoder) => encoder.finish().map(Some),
            Self::Zstd(encoder) => encoder.finish().map(Some),
        }
    }
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.layer.write_all(bytes)?;
        match &mut self.blob {
            Packer::None => {}
            Packer::Gzip(encoder) => encoder.write_all(bytes)?,
            Packer::Zstd(encoder) => encoder.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.layer.flush()
    }
}

/// The config of the new image.
fn config(base: Option<&Image>, layer: Option<DiffId>, options: &CommitOptions) -> Result<Value> {
    let mut config = match base {
        Some(base) => serde_json::from_slice(&base.config_json)
            .map_err(|error| ImageError::malformed(format!("not a valid image config: {error}")))?,
        None => empty_config(),
    };
    let created = time::format(options.created);
    let mut entry = Map::new();
    entry.insert("created".into(), json!(created));
    for (field, value) in [
        ("created_by", Some(&options.created_by)),
        ("author", options.author.as_ref()),
        ("comment", options.message.as_ref()),
    ] {
        entry.extend(value.map(|value| (field.to_owned(), json!(value))));
    }
    if layer.is_none() {
        entry.insert("empty_layer".into(), json!(true));
    }
    let Value::Object(fields) = &mut config else {
        return Err(ImageError::malformed(
            "not a valid image config: not an object",
        ));
    };
    let mut history = base.map(history).transpose()?.unwrap_or_default();
    let mut diff_ids = base.map(Image::diff_ids).unwrap_or_default();
    if options.squash {
        diff_ids.clear();
        for entry in history.iter_mut().filter_map(Value::as_object_mut) {
            entry.insert("empty_layer".into(), json!(true));
        }
    }
    history.push(entry.into());
    diff_ids.extend(layer);
    fields.insert("created".into(), json!(created));
    if let Some(author) = &options.author {
        fields.insert("author".into(), json!(author));
    }
    fields.insert(
        "rootfs".into(),
        json!({"type": "layers", "diff_ids": diff_ids}),
    );
    fields.insert("history".into(), history.into());
    if !options.directives.is_empty() {
        let run = fields.entry("config").or_insert(Value::Null);
        if !run.is_object() {
            *run = Value::Object(Map::new());
        }
        if let Value::Object(run) = run {
            directive::apply(&options.directives, run);
        }
    }
    Ok(config)
}

/// The entries of `base`'s history that belong to its layers: those above are not its own after `IMAGE~N`. Layers
/// without an entry get one, so that the new layer's is not taken for theirs.
fn history(base: &Image) -> Result<Vec<Value>> {
    let config: Value = serde_json::from_slice(&base.config_json)
        .map_err(|error| ImageError::malformed(format!("not a valid image config: {error}")))?;
    let mut entries = match config.get("history") {
        Some(Value::Array(entries)) => entries.clone().into_iter(),
        _ => Vec::new().into_iter(),
    };
    let steps = base.config.steps(base.layers.len());
    let whole = base.is_whole();
    let mut left = base.layers.len();
    let mut kept = Vec::new();
    for step in steps {
        let entry = step.history.is_some().then(|| entries.next()).flatten();
        if step.layer.is_none() && left == 0 && !whole {
            break;
        }
        left -= usize::from(step.layer.is_some());
        kept.push(entry.unwrap_or_else(|| json!({})));
    }
    Ok(kept)
}

fn empty_config() -> Value {
    let platform = platform::own();
    json!({
        "created": "",
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": {},
        "history": [],
    })
}
