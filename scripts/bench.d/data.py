"""The trees scripts/bench works on, made once and kept in the data directory.

Everything is made beside its place and renamed into it, so an interrupted run leaves no half-made tree.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUITE = "bookworm"
PACKAGES = ["typescript@5.9.3", "react@19.3.1", "react-dom@19.3.1", "webpack@5.112.2", "eslint@10.15.0",
            "next@16.4.6", "@babel/core@7.29.13", "jest@30.5.2"]
PEER_CRATE = "fuse-overlayfs@2.0.0"
# With what they need that a minimal system lacks, about 30.
DEBS = ("git", "python3")
CARGO_CRATE, CARGO_VERSION = "ripgrep", "15.2.0"
LAYERS, SHARED_DIRS, FILES_PER_DIR = 500, 10, 3
WIDE_COPIES = 6
BIG_BYTES = 1 << 30


def run(*argv, **kwargs):
    """Runs a preparation step; its output is shown only if it fails."""
    try:
        done = subprocess.run([str(arg) for arg in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
    except FileNotFoundError:
        raise SystemExit(f"bench: {argv[0]} is not installed; see --help") from None
    if done.returncode != 0:
        raise SystemExit(f"bench: {argv[0]} failed ({done.returncode}):\n{done.stdout.decode(errors='replace')}")


class Data:
    """Paths inside the data directory, and how each of them is made."""

    def __init__(self, base):
        self.base = Path(base)
        self.ops = self.base / "tools/ops"
        self.peer = self.base / "tools/fuse-overlayfs-2/bin/fuse-overlayfs"
        self.plyfs = self.base / "tools/plyfs"
        self.rootfs_tar = self.base / "rootfs.tar"
        self.debs = self.base / "debs"
        self.big_image = self.base / "big-image.tar"
        self.lower = self.base / "lower"
        self.lists = self.base / "lists"
        self.plain = self.base / "plain"
        self.run = self.base / "run"
        self.result = self.base / "result.json"

    def make(self, log, only=None):
        """Makes what is missing, or only these places of it. Needs the network the first time only."""
        for directory in ("tools", "lower", "plain"):
            (self.base / directory).mkdir(parents=True, exist_ok=True)
        steps = [("clients", self.ops, self._ops), ("fuse-overlayfs 2.0", self.peer.parent.parent, self._peer),
                 ("Debian root file system", self.rootfs_tar, self._rootfs_tar),
                 ("Debian packages", self.debs, self._debs),
                 ("tree of it", self.lower / "rootfs", self._rootfs),
                 ("npm tree with a git repository", self.lower / "npm", self._npm),
                 ("1 GiB file", self.lower / "big", self._big),
                 (f"{LAYERS} layers", self.lower / "many", self._many),
                 ("wide tree", self.lower / "wide", self._wide),
                 ("cargo project", self.lower / "cargo", self._cargo),
                 ("image of 1 GB", self.big_image, self._big_image),
                 ("lists of names", self.lists, self._lists)]
        for title, place, make in steps:
            source = HERE / "ops.c"
            stale = place == self.ops and place.exists() and place.stat().st_mtime < source.stat().st_mtime
            if place.exists() and not stale or only and place not in only:
                continue
            log(f"making: {title}")
            draft = place.with_name(place.name + ".draft")
            if draft.is_dir():
                shutil.rmtree(draft)
            make(draft)
            draft.rename(place)

    def _ops(self, draft):
        run("cc", "-O2", "-Wall", "-static", "-o", draft, HERE / "ops.c")

    def _peer(self, draft):
        run("cargo", "install", "--locked", "--quiet", "--root", draft, PEER_CRATE,
            env={**os.environ, "CARGO_TARGET_DIR": str(self.base / "build")})
        shutil.rmtree(self.base / "build", ignore_errors=True)

    def _rootfs_tar(self, draft):
        run("mmdebstrap", "--variant=minbase", "--quiet", "--format=tar", SUITE, draft)

    def _debs(self, draft):
        draft.mkdir()
        install = f"rm -f \"$1\"/var/cache/apt/archives/*.deb; chroot \"$1\" apt-get -qq -y --download-only --no-install-recommends install {' '.join(DEBS)}"
        run("mmdebstrap", "--variant=minbase", "--quiet", "--format=null", f"--customize-hook={install}",
            f"--customize-hook=cp \"$1\"/var/cache/apt/archives/*.deb {draft}/", SUITE, "-")

    def _big_image(self, draft):
        rest = (1 << 30) - self.rootfs_tar.stat().st_size - tree_bytes(self.lower / "npm")
        filler = self.base / "filler"
        with open(filler, "wb") as file, open(self.lower / "big/big.bin", "rb") as source:
            file.write(source.read(max(rest, 0)))
        run("cp", self.rootfs_tar, draft)
        run("tar", "rf", draft, "-C", self.base, "--owner=0", "--group=0", "filler", "-C", self.lower, "npm")
        filler.unlink()

    def _rootfs(self, draft):
        draft.mkdir()
        run("tar", "xf", self.rootfs_tar, "-C", draft, *untar_options(os.geteuid() != 0))

    def _npm(self, draft):
        app = draft / "app"
        app.mkdir(parents=True)
        run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES, cwd=app)
        git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]
        env = git_environment()
        run(*git, "init", "-q", cwd=app, env=env)
        run(*git, "add", "-A", "-f", cwd=app, env=env)
        run(*git, "commit", "-q", "-m", "tree", cwd=app, env=env)
        run(*git, "gc", "-q", cwd=app, env=env)

    def _big(self, draft):
        draft.mkdir()
        block = random.Random(1).randbytes(1 << 20)
        with open(draft / "big.bin", "wb") as file:
            for number in range(BIG_BYTES >> 20):
                file.write(number.to_bytes(8, "little") + block[8:])

    def _many(self, draft):
        for layer in range(LAYERS):
            for directory in range(SHARED_DIRS):
                place = draft / f"{layer:03}" / f"d{directory:02}"
                place.mkdir(parents=True)
                for number in range(FILES_PER_DIR):
                    (place / f"layer-{layer:03}-{number}").write_text("small\n")

    def _wide(self, draft):
        draft.mkdir()
        for copy in range(WIDE_COPIES):
            run("cp", "-a", "--attributes-only", self.lower / "npm/app", draft / f"copy-{copy}")

    def _cargo(self, draft):
        fetch = draft / "fetch"
        (fetch / "src").mkdir(parents=True)
        (fetch / "src/lib.rs").write_text("")
        (fetch / "Cargo.toml").write_text(
            f'[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n'
            f'[dependencies]\n{CARGO_CRATE} = "={CARGO_VERSION}"\n')
        run("cargo", "vendor", "--quiet", "vendor", cwd=fetch)
        shutil.copytree(fetch / "vendor" / CARGO_CRATE, draft / "project", symlinks=True)
        shutil.rmtree(fetch)
        project = draft / "project"
        with open(project / "Cargo.toml", "a") as manifest:
            manifest.write("\n[workspace]\n")
        (project / ".cargo-checksum.json").unlink()
        run("cargo", "vendor", "--quiet", "--locked", "vendor", cwd=project)
        (project / ".cargo").mkdir(exist_ok=True)
        (project / ".cargo/config.toml").write_text(
            '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "vendor"\n')

    def _lists(self, draft):
        draft.mkdir()
        npm, rootfs = self.lower / "npm", self.lower / "rootfs"
        tree, system = paths_below(npm), paths_below(rootfs)
        files = [path for path in tree if is_plain(npm / path) and not path.startswith("app/.git/")]
        more = [path for path in system if is_plain(rootfs / path)]
        step = len(files) / 5000
        numbers = range(20000)
        lists = {
            "all": tree + system,
            "open": (files + more)[:20000],
            "append": [files[int(i * step)] for i in range(5000)],
            "missing": [f"d{i % SHARED_DIRS:02}/missing-{i}" for i in numbers],
        }
        lists["half-a"], lists["half-b"] = halves(npm / "app/node_modules", "app/node_modules")
        for name, paths in lists.items():
            (draft / name).write_bytes(b"".join(os.fsencode(path) + b"\0" for path in paths))

    def for_user(self, uid, gid, log):
        """A copy of everything owned by an ordinary user, made by root."""
        copy = Data(self.base / "as-user")
        copy.base.mkdir(exist_ok=True)
        os.chown(copy.base, uid, gid)
        for name in ("tools", "rootfs.tar", "lower", "lists"):
            if not (copy.base / name).exists():
                log(f"copying: {name}, for the ordinary user")
                draft = copy.base / (name + ".draft")
                run("cp", "-a", self.base / name, draft)
                for node in draft.glob("rootfs/dev/*"):
                    node.unlink() if not node.is_dir() or node.is_symlink() else shutil.rmtree(node)
                run("chown", "-hR", f"{uid}:{gid}", draft)
                draft.rename(copy.base / name)
        if self.plyfs.exists():
            shutil.copy2(self.plyfs, copy.plyfs)
        for name in ("plain", "run"):
            (copy.base / name).mkdir(exist_ok=True)
            os.chown(copy.base / name, uid, gid)
        return copy


def untar_options(as_user):
    """An ordinary user owns what he unpacks and makes no device nodes."""
    return ["--no-same-owner", "--exclude=./dev/*"] if as_user else []


def git_environment():
    """No configuration but the repository's own."""
    return {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}


def paths_below(root):
    """Every path below `root`, relative, in a fixed order."""
    found = []
    for directory, subdirs, files in os.walk(root):
        subdirs.sort()
        relative = os.path.relpath(directory, root)
        prefix = "" if relative == "." else relative + "/"
        found += [prefix + name for name in sorted(subdirs + files)]
    return found


def tree_bytes(root):
    """The bytes of all files below `root`."""
    return sum(os.lstat(os.path.join(directory, name)).st_size for directory, _, files in os.walk(root) for name in files)


def is_plain(path):
    return path.is_file() and not path.is_symlink()


def halves(root, prefix):
    """The subdirectories of `root` dealt into two lists of about the same number of entries."""
    sizes = sorted(((len(paths_below(root / name)), name) for name in os.listdir(root) if (root / name).is_dir()),
                   reverse=True)
    totals, lists = [0, 0], ([], [])
    for size, name in sizes:
        smaller = totals.index(min(totals))
        totals[smaller] += size
        lists[smaller].append(f"{prefix}/{name}")
    return lists
