"""The images scripts/bench --images works on: real trees as layers, each image in the forms that the tools read.

Written by these lines and not by one of the tools compared, so that none reads its own dialect.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from data import Data, run

ENTRIES = 120_000  # of the large image
LARGEST = 1 << 20  # files above are left out of it: their number counts, not their size
SMALL_LAYERS = 59  # above the root file system
OCI = "application/vnd.oci.image"
# The same bytes each time.
STABLE = ("--sort=name", "--mtime=@1700000000", "--owner=0", "--group=0", "--numeric-owner", "--format=posix",
          "--pax-option=delete=atime,delete=ctime")


class Image:
    """One image in all its forms, below `base`."""

    def __init__(self, base, name, title):
        self.base, self.name, self.title = base, name, title
        self.layers = base / "layers"  # uncompressed tars, 00 is the base
        self.packed = base / "packed"  # the same by gzip
        self.archive = base / f"{name}.tar"  # docker-archive, layers uncompressed
        self.packed_archive = base / f"{name}-gz.tar"  # OCI archive, layers by gzip
        self.layout = base / "oci"
        self.packed_layout = base / "oci-gz"

    def tars(self):
        """Its layers, base first."""
        return sorted(self.layers.iterdir())

    def blobs(self):
        """Its layers by gzip, base first."""
        return sorted(self.packed.iterdir())


class ImageData:
    """The images below the data directory."""

    def __init__(self, base):
        self.data = Data(base)
        self.base = self.data.base / "images"
        titles = {"debian": "Debian, 3 layers", "npm": "Debian and an npm tree",
                  "rust": f"Debian and Rust toolchains, {ENTRIES:,} entries", "many": f"{SMALL_LAYERS + 1} layers"}
        self.images = {name: Image(self.base / name, name, title) for name, title in titles.items()}

    def make(self, log):
        """Makes what is missing. Needs the network the first time only."""
        self.data.make(log, only=(self.data.rootfs_tar, self.data.lower / "npm"))
        makers = {"debian": self._debian, "npm": self._npm, "rust": self._rust, "many": self._many}
        for name, image in self.images.items():
            if image.base.exists():
                continue
            log(f"making: image '{image.title}'")
            draft = Image(self.base / f"{name}.draft", name, image.title)
            shutil.rmtree(draft.base, ignore_errors=True)
            draft.layers.mkdir(parents=True)
            makers[name](draft)
            pack(draft)
            draft.base.rename(image.base)

    def _rootfs(self, image):
        os.link(self.data.rootfs_tar, image.layers / "00")

    def _debian(self, image):
        """The root file system, what a build adds, and what it takes away."""
        self._rootfs(image)
        node = self.data.lower / "npm/app/node_modules/typescript"
        run("tar", *STABLE, "--transform=s,^,opt/,", "-cf", image.layers / "01", "-C", node.parent, node.name)
        with tarfile.open(image.layers / "02", "w") as layer:
            for name in ("usr/share/.wh.doc", "usr/share/.wh.man", "var/cache/.wh.apt"):
                layer.addfile(tarfile.TarInfo(name))

    def _npm(self, image):
        self._rootfs(image)
        run("tar", *STABLE, "--exclude=.git", "-cf", image.layers / "01", "-C", self.data.lower / "npm", "app")

    def _rust(self, image):
        """The toolchain in use, as often as it takes."""
        done = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True)
        sysroot = Path(done.stdout.strip())
        self._rootfs(image)
        files = image.base / "files"
        found = subprocess.run(["find", ".", "(", "-type", "f", "-size", f"-{LARGEST}c", "-o", "!", "-type", "f", ")",
                                "-print0"], cwd=sysroot, capture_output=True, check=True).stdout
        entries = entries_of(self.data.rootfs_tar)
        number = 0
        while entries < ENTRIES:
            number += 1
            paths = found.split(b"\0")[:-1][:ENTRIES - entries]
            files.write_bytes(b"".join(path + b"\0" for path in paths))
            run("tar", *STABLE, "--no-recursion", f"--transform=s,^[.],opt/rust-{number},", "-cf",
                image.layers / f"{number:02}", "-C", sysroot, "--null", "-T", files)
            entries += len(paths)
        files.unlink()

    def _many(self, image):
        self._rootfs(image)
        modules = self.data.lower / "npm/app/node_modules"
        packages = sorted(path.name for path in modules.iterdir() if path.is_dir())
        for number in range(1, SMALL_LAYERS + 1):
            dealt = packages[number - 1::SMALL_LAYERS]
            run("tar", *STABLE, "--transform=s,^,app/,", "-cf", image.layers / f"{number:02}", "-C", modules, *dealt)


def entries_of(tar):
    with tarfile.open(tar) as archive:
        return sum(1 for _ in archive)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(image):
    """All forms of an image from its layers."""
    image.packed.mkdir()
    for tar in image.tars():
        with open(image.packed / tar.name, "wb") as packed:
            subprocess.run(["gzip", "-n", "-c", tar], stdout=packed, check=True)
    diff_ids = [digest(tar) for tar in image.tars()]
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}" for diff_id in diff_ids]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": f"step {number}"}
                    for number in range(len(diff_ids))]}).encode()
    layout(image.layout, image.tars(), diff_ids, "", config)
    layout(image.packed_layout, image.blobs(), [digest(blob) for blob in image.blobs()], "+gzip", config)
    run("tar", *STABLE, "-cf", image.packed_archive, "-C", image.packed_layout, ".")
    docker = image.base / "docker"
    docker.mkdir()
    for tar, diff_id in zip(image.tars(), diff_ids):
        os.link(tar, docker / f"{diff_id}.tar")
    (docker / "config.json").write_bytes(config)
    (docker / "manifest.json").write_text(json.dumps([{
        "Config": "config.json", "RepoTags": [f"localhost/{image.name}:1"],
        "Layers": [f"{diff_id}.tar" for diff_id in diff_ids]}]))
    run("tar", *STABLE, "-cf", image.archive, "-C", docker, *sorted(os.listdir(docker)))
    shutil.rmtree(docker)


def layout(place, files, digests, suffix, config):
    """An OCI layout directory with the tag 1."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(kind, content):
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{name}", "size": len(content)}

    layers = []
    for file, name in zip(files, digests):
        if not (blobs / name).exists():
            os.link(file, blobs / name)
        layers.append({"mediaType": f"{OCI}.layer.v1.tar{suffix}", "digest": f"sha256:{name}",
                       "size": file.stat().st_size})
    manifest = blob("manifest.v1+json", json.dumps({
        "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": blob("config.v1+json", config),
        "layers": layers}).encode())
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
