"""scripts/bench --images: loading, mounting, reading and committing images, beside podman, umoci and plain hashing.

In each round every program takes its turn, on images whose files are in the page cache; what one has written reaches
the disk before the next begins. The images (a Debian root file system in 3 layers, one with an npm tree, one with
120,000 entries of Rust toolchains, one of 60 layers) are made once, below the data directory: that needs the network and
`apt-get install mmdebstrap npm gcc fuse3 podman umoci isal`. Needs root, for kernel overlayfs.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from statistics import median

import report
from images_data import ImageData

INSIDE = "PLYFS_BENCH_INSIDE"
PARTS = ("load", "mount", "index", "find", "commit")
FIND = ("find", ".", "-printf", "%s\\n")


class Bench:
    """Where one run works, and how its commands are timed."""

    def __init__(self, data, rounds, chosen):
        self.data, self.rounds, self.chosen = data, rounds, chosen
        self.plyfs = str(data.data.plyfs)
        self.run = data.data.run / "images"
        self.mnt = self.run / "mnt"
        self.environment = {**os.environ, "XDG_DATA_HOME": str(self.run / "data")}

    def fresh(self):
        """Nothing of the run before, neither in files nor on its way to the disk."""
        subprocess.run(["sh", "-c", 'chmod -R u+rwx "$0" 2>/dev/null; rm -rf "$0"', self.run], check=True)
        self.mnt.mkdir(parents=True)
        self.settle()

    def settle(self):
        subprocess.run(["sync", "-f", str(self.data.base)], check=True)

    def timed(self, argv, **options):
        """Runs a command: seconds."""
        started = time.perf_counter()
        done = subprocess.run([str(word) for word in argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, env=self.environment, **options)
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"bench: {argv[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
        return seconds

    def peak(self, argv):
        """Runs a command: the peak of its resident memory in MiB, not counting what it has before it begins."""
        child = subprocess.Popen([str(word) for word in argv], stdout=subprocess.DEVNULL, env=self.environment)
        status, peak = Path(f"/proc/{child.pid}/status"), 0
        while child.poll() is None:
            lines = status.read_text().splitlines()
            peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
            time.sleep(0.002)
        return peak / 1024

    def done(self, *words):
        """Runs plyfs and returns what it prints."""
        argv = [self.plyfs, *map(str, words)]
        return subprocess.run(argv, check=True, capture_output=True, text=True, env=self.environment).stdout

    def alternate(self, contenders):
        """Each of {name: function that returns seconds} once in every round: the medians."""
        seconds = {name: [] for name in contenders}
        for number in range(self.rounds):
            for name in contenders if number % 2 == 0 else reversed(contenders):
                seconds[name].append(contenders[name]())
        return {name: median(values) for name, values in seconds.items()}


def warm(files):
    for file in files:
        with open(file, "rb") as opened:
            while opened.read(1 << 20):
                pass


def loads(bench, image, packed):
    """One row: an archive brought in by each program, against reading and hashing it."""
    archive, layout = (image.packed_archive, image.packed_layout) if packed else (image.archive, image.layout)
    sources = image.blobs() if packed else [image.archive]
    decoder = "igzip" if shutil.which("igzip") else "gzip"
    hashing = f'for file; do {decoder} -dc "$file" | sha256sum; done' if packed else 'cat "$1" | sha256sum'
    podman = ["podman", "--root", bench.run / "podman", "--runroot", bench.run / "podman-run", "--storage-driver",
              "overlay", "load", "-q", "-i", archive]
    umoci = ["umoci", "unpack", "--image", f"{layout}:1", bench.run / "bundle"]
    load = [bench.plyfs, "load", "-q", archive]

    def contender(argv):
        def once():
            bench.fresh()
            return bench.timed(argv)
        return once

    warm([archive, *(layout / "blobs/sha256").iterdir()])
    seconds = bench.alternate({
        "hash": contender(["sh", "-ec", hashing, "sh", *sources]),
        "plyfs": contender(load),
        "podman": contender(podman),
        "umoci": contender(umoci),
    })
    bench.fresh()
    return {"image": image.title, "packed": packed, "bytes": sum(tar.stat().st_size for tar in image.tars()),
            "seconds": seconds, "peak_mib": bench.peak(load), "decoder": decoder if packed else ""}


def all_loads(bench, log):
    """Rows of `loads`, plain ones first."""
    rows = []
    for packed in (False, True):
        for name in bench.chosen:
            image = bench.data.images[name]
            log(f"load: {image.title}{', gzip' if packed else ''}")
            rows.append(loads(bench, image, packed))
    return rows


def loaded(bench, image):
    bench.fresh()
    bench.done("load", "-q", image.archive)
    bench.settle()
    return f"localhost/{image.name}:1"


def mounts(bench, image):
    """Milliseconds until a loaded image is mounted, and an archive for the first and the second time."""
    name = loaded(bench, image)
    values = {}

    def mount(what):
        seconds = bench.timed([bench.plyfs, "mount", what, bench.mnt])
        bench.done("umount", bench.mnt)
        return seconds * 1000
    values["loaded"] = median(mount(name) for _ in range(4 * bench.rounds + 1))
    bench.fresh()
    values["archive, first"] = mount(image.archive)
    values["archive, again"] = median(mount(image.archive) for _ in range(4 * bench.rounds + 1))
    return values


def index(bench, image):
    """Size of the index of an image, for each entry and without the names."""
    loaded(bench, image)
    size = sum(file.stat().st_size for file in (bench.run / "data/plyfs/layers").rglob("index"))
    entries, names = 0, 0
    for tar in image.tars():
        with tarfile.open(tar) as archive:
            for entry in archive:
                entries += 1
                names += len(os.fsencode(os.path.basename(entry.name)))
    return {"entries": entries, "MiB": size / (1 << 20), "bytes per entry besides names": (size - names) / entries}


def finds(bench, image):
    """`find` over the mounted image and over the same layers unpacked, merged by kernel overlayfs."""
    name = loaded(bench, image)
    unpacked = bench.data.base / f"{image.name}/unpacked"
    for tar in image.tars():
        if not (unpacked / tar.name).exists():
            (unpacked / "draft").mkdir(parents=True)
            subprocess.run(["tar", "xf", tar, "-C", unpacked / "draft"], check=True)
            (unpacked / "draft").rename(unpacked / tar.name)
    lowers = [tar.name for tar in reversed(image.tars())]
    subprocess.run(["sh", "-c", 'find "$0" -printf %s >/dev/null', unpacked], check=True)
    bench.settle()
    warmed = {}

    def over(name, mount, unmount):
        def once():
            subprocess.run([str(word) for word in mount], check=True, cwd=unpacked, env=bench.environment)
            cold = bench.timed(FIND, cwd=bench.mnt)
            warmed.setdefault(name, []).append(bench.timed(FIND, cwd=bench.mnt))
            subprocess.run([*unmount, str(bench.mnt)], check=True)
            return cold
        return once
    cold = bench.alternate({
        "kernel": over("kernel", ["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={':'.join(lowers)}",
                                  bench.mnt], ["umount"]),
        "plyfs": over("plyfs", [bench.plyfs, "mount", name, bench.mnt], [bench.plyfs, "umount"]),
    })
    return {"cold": cold, "warm": {name: median(values) for name, values in warmed.items()}}


def commits(bench, image):
    """Seconds to commit ten changed files."""
    name = loaded(bench, image)
    changed = files_of(image)[:10]
    bench.done("mount", "--rw", name, bench.mnt)
    for path in changed:
        with open(bench.mnt / path, "a") as file:
            file.write("changed\n")
    seconds = []
    for number in range(2 * bench.rounds + 1):
        seconds.append(bench.timed([bench.plyfs, "commit", bench.mnt, f"localhost/new:{number}"]))
    bench.done("umount", bench.mnt)
    return median(seconds)


def files_of(image):
    """Plain files of the second layer, one of each directory."""
    with tarfile.open(image.tars()[1]) as archive:
        found = {os.path.dirname(entry.name): entry.name for entry in archive if entry.isreg()}
    return sorted(found.values())


def measure(bench, log, only):
    result = {"machine": report.machine(bench.data.data, Path(__file__).resolve().parents[2]), "loads": []}
    for program in ("podman", "umoci", "igzip"):
        result["machine"][program] = report.line([program, "--version"])
    images = bench.data.images
    chosen = [images[name] for name in bench.chosen]
    sections = {
        "load": lambda: result.update(loads=all_loads(bench, log)),
        "mount": lambda: result.update(mounts={image.title: mounts(bench, image) for image in chosen}),
        "index": lambda: result.update(index=index(bench, images["rust"])),
        "find": lambda: result.update(find=finds(bench, images["rust"])),
        "commit": lambda: result.update(commit={image.title: commits(bench, image)
                                                for image in (images["debian"], images["rust"])}),
    }
    try:
        for name, section in sections.items():
            if not only or name in only:
                log(name)
                section()
    finally:
        subprocess.run(["umount", "-l", bench.mnt], stderr=subprocess.DEVNULL)
    bench.fresh()
    return result


def table(result, command, rounds):
    """The report as Markdown."""
    facts = [f"{name}: {value}" for name, value in result["machine"].items() if value]
    out = [f"`{command}`, {time.strftime('%Y-%m-%d')}, as root, medians of {rounds} rounds", "", "; ".join(facts) + ".",
           ""]
    if result["loads"]:
        out += ["| load of | size | hashing alone | plyfs | of that rate (bar) | podman load | umoci unpack | peak memory |",
                "|---|---|---|---|---|---|---|---|"]
    for row in result["loads"]:
        seconds, rate = row["seconds"], row["seconds"]["hash"] / row["seconds"]["plyfs"]
        bar = 0.8 if row["packed"] else 0.5
        peers = [f"{seconds[name]:.2f} s ({seconds[name] / seconds['plyfs']:.1f}x)" for name in ("podman", "umoci")]
        out.append(f"| {row['image']}, {'gzip' if row['packed'] else 'plain'} | {row['bytes'] / 1e6:.0f} MB "
                   f"| {seconds['hash']:.2f} s | {seconds['plyfs']:.2f} s | {rate:.2f} ({bar}) | {' | '.join(peers)} "
                   f"| {row['peak_mib']:.0f} MiB |")
    if "mounts" in result:
        out += ["", "| mount of | loaded, ms | archive first, ms | archive again, ms |", "|---|---|---|---|"]
        out += [f"| {title} | {' | '.join(f'{value:.0f}' for value in values.values())} |"
                for title, values in result["mounts"].items()]
    if "index" in result:
        out += ["", "Index: " + ", ".join(f"{value:,.1f} {name}" for name, value in result["index"].items()) + "."]
    if "find" in result:
        text = [f"{kind} {values['plyfs']:.2f} s, kernel {values['kernel']:.2f} s, ratio "
                f"{values['plyfs'] / values['kernel']:.2f}" for kind, values in result["find"].items()]
        out += ["", f"`find -printf %s` over the image of Rust toolchains: {'; '.join(text)}."]
    if "commit" in result:
        text = [f"{title} {seconds * 1000:.0f} ms" for title, seconds in result["commit"].items()]
        out += ["", f"Commit of ten changed files: {'; '.join(text)}."]
    return "\n".join(out) + "\n"


def main(install, log):
    """`install(data, binary)` puts the binary to measure where it stays the same."""
    parser = argparse.ArgumentParser(prog="bench --images", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program (default 3)")
    parser.add_argument("--only", metavar="PART,..", type=lambda text: text.split(","),
                        help=f"of {', '.join(PARTS)}")
    parser.add_argument("--image", metavar="NAME,..", type=lambda text: text.split(","),
                        help="to load and mount, of debian, npm, rust, many")
    parser.add_argument("--json", metavar="FILE", help="also write every number here")
    parser.add_argument("--data", metavar="DIR", default=os.environ.get("PLYFS_BENCH_DIR", "/var/cache/plyfs-bench"),
                        help="where the data is kept")
    parser.add_argument("--plyfs", metavar="FILE", help="this binary (default: cargo build --release)")
    parser.add_argument("--make-data", action="store_true", help="make the images and stop")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: kernel overlayfs and umoci are part of the comparison")
    data = ImageData(options.data)
    for given, known in ((options.image, data.images), (options.only, PARTS)):
        unknown = set(given or ()) - set(known)
        if unknown:
            parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if INSIDE not in os.environ:
        data.make(log)
        if options.make_data:
            return 0
        install(data.data, options.plyfs)
        environment = {**os.environ, INSIDE: str(data.base)}
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        command = ["unshare", "-m", "--propagation", "slave", sys.executable, *sys.argv]
        return subprocess.run(command, env=environment).returncode
    bench = Bench(data, options.rounds, options.image or list(data.images))
    result = measure(bench, log, options.only)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    print(table(result, shlex.join(["scripts/bench", *sys.argv[1:]]), options.rounds), end="")
    return 0
