//! Images: archives and layouts made here in every form, the store, and mounts of images, through the built program.

mod crash;
mod hostile;
mod hostile_layers;
mod law;
mod load;
mod mount;
mod output;
mod save;
mod store;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flate2::write::GzEncoder;
use plyfs::image::digest::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::support::run::base_dir;

const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");
const USAGE: i32 = 2;
const IN_USE: i32 = 5;
const NOT_FOUND: i32 = 9;
const MALFORMED: i32 = 10;

/// A directory with a store in it, which is also the working directory of what is run. Dropping it unmounts what is
/// mounted below it.
struct Place {
    base: TempDir,
}

impl Place {
    fn new() -> Self {
        let base = tempfile::Builder::new()
            .prefix("plyfs-image-")
            .tempdir_in(base_dir())
            .unwrap();
        fs::create_dir(base.path().join("run")).unwrap();
        fs::create_dir(base.path().join("m")).unwrap();
        Self { base }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.base.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.command_of(PLYFS, args)
    }

    /// Another program, with what plyfs gets.
    fn command_of<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.base.path())
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env_remove("SOURCE_DATE_EPOCH")
            .stdin(Stdio::null());
        command
    }

    /// Runs plyfs and expects success and silence on stderr; its stdout.
    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert!(output.status.success(), "{args:?}: {}", output.status);
        text(&output.stdout)
    }

    /// Runs plyfs and expects `code` and one line on stderr; that line.
    #[track_caller]
    fn fails(&self, code: i32, args: &[&str]) -> String {
        sentence(&self.command(args).output().unwrap(), code)
    }

    /// Runs plyfs with `input` on stdin.
    fn piped(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may refuse before it has read all.
        _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    fn store(&self) -> PathBuf {
        self.path("data/plyfs")
    }

    /// Names of the files in a directory of the store, sorted.
    fn stored(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store().join(dir)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The store holds nothing damaged and nothing half-made.
    #[track_caller]
    fn is_sound(&self) {
        self.done(&["fsck"]);
        assert_eq!(self.stored("tmp"), [""; 0]);
    }

    /// Mounts with `args` on `m`, reads `file` there, and unmounts.
    #[track_caller]
    fn read_in_mount(&self, args: &[&str], file: &str) -> String {
        self.done(&[&["mount"], args, &["m"]].concat());
        let content = fs::read_to_string(self.path("m").join(file));
        self.done(&["umount", "m"]);
        content.unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |line: &&str| {
            line.split(' ')
                .nth(4)
                .is_some_and(|place| Path::new(place).starts_with(self.base.path()))
        };
        for line in mounts.lines().filter(below) {
            let place = line.split(' ').nth(4).unwrap_or_default();
            _ = Command::new(PLYFS).args(["umount", "-l", place]).output();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn sentence(output: &Output, code: i32) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr:?}");
    assert!(
        !stderr.trim_end().contains(|c: char| c.is_control()),
        "{stderr:?}"
    );
    stderr
        .trim_end()
        .strip_prefix("plyfs: ")
        .unwrap()
        .to_owned()
}

#[track_caller]
fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in {text:?}");
}

/// An entry of a tar.
enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Dir(&'a str),
    Symlink(&'a str, &'a str),
    Other(&'a str, EntryType),
}

use Entry::{Dir, File, Other, Symlink};

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mode(0o644);
        match entry {
            File(path, content) => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, *content).unwrap();
            }
            Dir(path) => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                tar.append_data(&mut header, path, &[][..]).unwrap();
            }
            Symlink(path, target) => {
                header.set_entry_type(EntryType::Symlink);
                tar.append_link(&mut header, path, target).unwrap();
            }
            Other(path, kind) => {
                header.set_entry_type(*kind);
                tar.append_data(&mut header, path, &[][..]).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// A layer with one file.
fn layer(path: &str, content: &str) -> Vec<u8> {
    tar(&[File(path, content.as_bytes())])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

/// The config of an image of `layers`, which are uncompressed tars.
fn config(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let history: Vec<_> = (1..=layers.len())
        .map(|n| json!({"created": "2024-05-01T12:00:00Z", "created_by": format!("step {n}")}))
        .collect();
    json!({
        "created": "2024-05-01T12:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["A=b"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    })
}

/// A docker-archive as docker 1.10 to 24 wrote them.
fn docker_archive(name: &str, layers: &[&[u8]]) -> Vec<u8> {
    let config = config(layers).to_string();
    let config_path = format!("{}.json", hex(config.as_bytes()));
    let paths: Vec<_> = (0..layers.len())
        .map(|n| format!("layer{n}/layer.tar"))
        .collect();
    let names: Vec<_> = Some(name)
        .filter(|name| !name.is_empty())
        .into_iter()
        .collect();
    let manifest = json!([{"Config": config_path, "RepoTags": names, "Layers": paths}]).to_string();
    let mut entries = vec![File(&config_path, config.as_bytes())];
    entries.extend(
        paths
            .iter()
            .zip(layers)
            .map(|(path, layer)| File(path, layer)),
    );
    entries.push(File("manifest.json", manifest.as_bytes()));
    tar(&entries)
}

/// An OCI layout under construction.
#[derive(Default)]
struct Layout {
    /// Path and content.
    files: Vec<(String, Vec<u8>)>,
    index: Vec<Value>,
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Layout {
    /// Adds a blob; its descriptor.
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        self.files
            .push((format!("blobs/sha256/{}", hex(bytes)), bytes.to_vec()));
        json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
    }

    /// Adds an image; the descriptor of its manifest. `layers` are diff and blob.
    fn image(&mut self, config: &Value, layers: &[(&str, &[u8])]) -> Value {
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        );
        let layers: Vec<_> = layers
            .iter()
            .map(|(suffix, blob)| {
                self.blob(
                    &format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                    blob,
                )
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        self.blob(OCI_MANIFEST, manifest.to_string().as_bytes())
    }

    /// Adds an index of descriptors; its descriptor.
    fn nested(&mut self, descriptors: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors});
        self.blob(OCI_INDEX, index.to_string().as_bytes())
    }

    /// Lists a descriptor in `index.json`.
    fn list(&mut self, mut descriptor: Value, name: &str) {
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.index.push(descriptor);
    }

    fn all(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.index}).to_string();
        let mut files = self.files.clone();
        files.push(("index.json".into(), index.into_bytes()));
        files.push((
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ));
        files
    }

    fn tar(&self) -> Vec<u8> {
        let files = self.all();
        let entries: Vec<_> = files
            .iter()
            .map(|(path, bytes)| File(path, bytes))
            .collect();
        tar(&entries)
    }

    fn write(&self, dir: &Path) {
        for (path, bytes) in self.all() {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}
