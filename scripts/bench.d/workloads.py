"""What scripts/bench runs, and the bars: time divided by kernel overlayfs in the same run."""

from dataclasses import dataclass, field

from data import LAYERS, git_environment, untar_options
from mounts import Stack

PEERS = ("fuse-overlayfs", "fuse-overlayfs-2")
REFERENCE = ("ext4", "kernel", "plyfs")
NAMES = (*REFERENCE, *PEERS)
CONTENT = (*REFERENCE, "plyfs-passthrough", *PEERS)
PACKAGES = ("typescript", "@babel/core", "webpack", "eslint", "jest")


@dataclass(frozen=True)
class Phase:
    """One timed command in the mount; `bar` = (as user, as root), None where the issue sets none."""
    id: str
    title: str
    argv: tuple
    bar: tuple = (None, None)
    bar_volatile: tuple = None  # where `volatile` has a bar of its own
    cwd: str = "."


@dataclass(frozen=True)
class Workload:
    """Phases that share one fresh mount."""
    name: str
    stack: str
    phases: tuple
    file_systems: tuple = NAMES
    prepare: tuple = ()  # commands run untimed in the mount before the phases
    settle: tuple = ()  # a command run in an earlier mount of the same upper, so that "cold" is only cold
    plain: str = "kept"  # what ext4 starts from: the kept copy, a copy to destroy, nothing
    long: bool = False  # left out by --quick
    # Upper and workdir on a new ext4, where root can make one: on another, creating many files measures how long ext4
    # searches for inodes that were not freed lately.
    own_disk: bool = False
    environment: dict = field(default_factory=dict)


def stacks(data):
    """The stacks of lower layers by name."""
    lower, many = data.lower, data.lower / "many"
    layers = [f"{number:03}" for number in reversed(range(LAYERS))]
    return {stack.name: stack for stack in (
        Stack("npm", lower, ("npm", "rootfs")),
        Stack("big", lower, ("big", "rootfs")),
        Stack("cargo", lower, ("cargo", "rootfs")),
        Stack("wide", lower, ("wide", "rootfs")),
        Stack("layers-128", many, tuple(layers[-128:])),
        Stack("layers-500", many, tuple(layers)),
    )}


def shell(command, *arguments):
    """A pipeline; `arguments` are $1 and so on."""
    return ("sh", "-ec", command, "sh", *map(str, arguments))


def workloads(data, as_user, quick):
    """Every workload, in the order of the table."""
    return [*_reading(data), *_programs(data), *_mutating(data, as_user, quick), *_layers(data), *_streams(data, quick),
            *_clients(data), *_builds()]


def _reading(data):
    ops, names = str(data.ops), data.lists
    find = ("find", ".", "-printf", "%s\\n")
    tar = shell("tar cf - . 2>/dev/null | cat >/dev/null")
    return [
        Workload("find", "npm", (
            Phase("find-cold", "`find -printf %s`, cold", find, (2.5, 1.2)),
            Phase("find-warm", "the same, warm", find, (1.3, 1.0)))),
        Workload("tar", "npm", (
            Phase("tar-cold", "`tar cf - . \\| cat`, cold", tar, (2.0, 1.1)),
            Phase("tar-warm", "the same, warm", tar, (0.9, 0.9))), CONTENT),
        Workload("stat", "npm", (
            Phase("stat-warm", "stat of every file, 5 times, warm", (ops, "stat", str(names / "all"), "5"),
                  (0.9, 0.9)),), prepare=((ops, "stat", str(names / "all"), "1"),)),
        Workload("open", "npm", (
            Phase("open-warm", "open-read-close of 20,000 files, 3 times", (ops, "read", str(names / "open"), "3"),
                  (0.9, 0.9)),), CONTENT, prepare=((ops, "read", str(names / "open"), "1"),)),
    ]


def _programs(data):
    status = ("git", "--no-optional-locks", "status", "--porcelain")
    node = ("node", "-e", "".join(f"require('{name}');" for name in PACKAGES))
    return [
        Workload("git", "npm", (
            Phase("git-cold", "`git status`, cold", status, (1.5, 1.3), cwd="app"),
            Phase("git-warm", "the same, warm", status, (1.1, 1.0), cwd="app")),
            settle=shell("cd app && git status --porcelain"), environment=git_environment()),
        Workload("node", "npm", (
            Phase("node-cold", "node: require of 5 big packages, cold", node, (1.2, 1.1), cwd="app"),
            Phase("node-warm", "the same, warm", node, (1.1, 1.05), cwd="app")), CONTENT),
    ]


def _mutating(data, as_user, quick):
    ops, names = str(data.ops), data.lists
    count = 1000 if quick else 10000
    scratch = (("mkdir", "scratch"),)
    untar = ("tar", "xf", str(data.rootfs_tar), *untar_options(as_user))
    return [
        Workload("untar", "npm", (
            Phase("untar", "untar of the rootfs into the mount", untar, (2.5, 1.8), cwd="scratch"),
            Phase("untar-rm", "`rm -rf` of that tree", ("rm", "-rf", "scratch"), (3.0, 1.5))),
            CONTENT, prepare=scratch, plain="empty", own_disk=True),
        Workload("rm-lower", "npm", (
            Phase("rm-lower", "`rm -rf` of the lower npm tree", ("rm", "-rf", "app"), (3.0, 1.5)),), plain="copy",
            own_disk=True),
        Workload("files", "npm", (
            Phase("create", f"create {count:,} files of 4 KiB", (ops, "create", str(count)), (3.0, 1.5), cwd="scratch"),
            Phase("rename", "rename them", (ops, "rename", str(count)), (4.0, 1.8), cwd="scratch"),
            Phase("unlink", "unlink them", (ops, "unlink", str(count)), (5.0, 2.4), cwd="scratch")),
            CONTENT, prepare=scratch, plain="empty", own_disk=True),
        Workload("chmod", "npm", (
            Phase("chmod", "`chmod -R` over the lower npm tree (plyfs: metacopy)", ("chmod", "-R", "g+w", "app"),
                  (0.15, 0.1)),),
            ("ext4", "kernel", "kernel-volatile", "plyfs-metacopy", *PEERS), plain="copy", long=True, own_disk=True),
        Workload("append", "npm", (
            Phase("append", "append a line to 5,000 lower files", (ops, "append", str(names / "append")), (1.2, 1.0),
                  bar_volatile=(0.5, 0.35)),),
            ("ext4", "kernel", "kernel-volatile", "plyfs", "plyfs-volatile", *PEERS), plain="copy", long=True,
            own_disk=True),
        Workload("mv-lower", "npm", (
            Phase("mv-lower", "`mv` of the lower npm tree", ("mv", "app", "moved"), (0.01, 0.01)),), plain="copy",
            long=True),
    ]


def _layers(data):
    find = ("find", ".", "-printf", "%s\\n")
    missing = (str(data.ops), "stat", str(data.lists / "missing"), "3")
    bars = {128: ((0.3, 0.2), (0.4, 0.3)), 500: ((0.05, 0.03), (0.08, 0.05))}
    made = []
    for layers, (find_bar, missing_bar) in bars.items():
        stack, slow = f"layers-{layers}", layers == 500
        made.append(Workload(f"find-{layers}", stack, (
            Phase(f"find-{layers}", f"find over {layers} layers, cold", find, find_bar),), long=slow))
        made.append(Workload(f"missing-{layers}", stack, (
            Phase(f"missing-{layers}", f"20,000 missing names, 3 times, {layers} layers", missing, missing_bar),),
            long=slow))
    return made


def _streams(data, quick):
    ops, reads = str(data.ops), "500000"
    written = (512 << 20) // (8 if quick else 1)
    small = written // 4
    read = (ops, "read-sequential", "big.bin", str(1 << 20))
    return [
        Workload("read", "big", (
            Phase("read-first", "read 1 GiB, 1 MiB blocks: first", read, (2.5, 1.05)),
            Phase("read-again", "again", read, (1.5, 1.05)),
            Phase("rand-psync", "random 4 KiB reads, psync", (ops, "read-random", "big.bin", reads), (1.1, 1.05)),
            Phase("rand-mmap", "random 4 KiB reads, mmap", (ops, "read-mapped", "big.bin", reads), (1.1, 1.05))),
            CONTENT),
        Workload("write", "big", (
            Phase("write-1m", f"write {written >> 20} MiB in 1 MiB blocks",
                  (ops, "write-sequential", "large", str(written), str(1 << 20)), (2.5, 1.1), cwd="scratch"),
            Phase("write-4k", f"write {small >> 20} MiB in 4 KiB blocks",
                  (ops, "write-sequential", "small", str(small), "4096"), (3.0, 1.3), cwd="scratch"),
            Phase("write-rand", "random 4 KiB writes, 64 MiB" if not quick else "random 4 KiB writes, 8 MiB",
                  (ops, "write-random", "large", str(written // 8 // 4096)), (5.0, 1.3), cwd="scratch")),
            CONTENT, prepare=(("mkdir", "scratch"),), plain="empty"),
    ]


def _clients(data):
    lists = (data.lists / "half-a", data.lists / "half-b")
    find = 'find -files0-from "$%d" -printf "%%s\\n" >/dev/null'
    one = shell(f"{find % 1}; {find % 2}", *lists)
    two = shell(f"{find % 1} & first=$!; {find % 2}; wait $first", *lists)
    options = (*REFERENCE, "plyfs-nopoll", "plyfs-threads2", *PEERS)
    return [
        Workload("one-client", "npm",
                 (Phase("one-client", "one client: two halves, one after the other, cold", one),), options),
        Workload("two-clients", "npm", (Phase("two-clients", "two clients: both halves at once, cold", two),), options),
    ]


def _builds():
    build = ("cargo", "build", "-j2", "--offline", "--quiet")
    return [Workload("cargo", "cargo", (
        Phase("cargo", "`cargo build -j2` of ripgrep in the mount", build, (1.1, 1.1), cwd="project"),),
        ("ext4", "kernel", "plyfs", "plyfs-nopoll", *PEERS), plain="copy", long=True)]
