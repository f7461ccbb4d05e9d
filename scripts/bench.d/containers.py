"""Podman on each driver: what an ordinary user with subordinate ids waits for.

The engine, its store and the mounts belong to that user; each driver has a store of its own, filled before it is
measured. Crun and slirp4netns ask for more of a machine than a file system, so the runtime is runc without a network.
"""

import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from measure import RunError
from mounts import FILE_SYSTEMS
from workloads import Phase, PEERS

DRIVERS = ("kernel", "plyfs", *PEERS)
RUNS = 5  # containers in one measurement of `run`
DOCKERFILE = """FROM localhost/base
RUN apt-get install -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 /debs/*.deb
RUN rm -rf /var/log/* && useradd --create-home somebody
"""


@dataclass(frozen=True)
class Engine:
    """Podman with the store of one driver."""
    driver: str
    base: Path
    user: pwd.struct_passwd
    mount_program: str
    # Of its own and short: conmon falls behind by 20 s where its sockets' names do not fit.
    runtime: Path

    def __call__(self, *argv):
        """Runs podman; what it prints on stdout."""
        drop = ["setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups"]
        settings = {"PATH": os.environ["PATH"], "HOME": self.base, "XDG_RUNTIME_DIR": self.runtime,
                    "TMPDIR": self.base / "tmp", "CONTAINERS_CONF": self.base / "containers.conf",
                    "CONTAINERS_STORAGE_CONF": self.base / "storage.conf", "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run([*drop, "env", "-i", *(f"{key}={value}" for key, value in settings.items()), "podman",
                               "--log-level=error", *map(str, argv)], cwd=self.base, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise RunError(f"podman {argv[0]} on {self.driver} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def prepare(self, data):
        """A fresh store with both images."""
        remove(self)
        for directory in (self.base, self.base / "tmp", self.base / "project", self.runtime):
            directory.mkdir(parents=True, exist_ok=True)
            os.chown(directory, self.user.pw_uid, self.user.pw_gid)
        self.runtime.chmod(0o700)
        program = f'[storage.options.overlay]\nmount_program = "{self.mount_program}"\n' if self.mount_program else ""
        (self.base / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{self.runtime}/c"\ngraphroot = "{self.base}/s"\n'
            f'rootless_storage_path = "{self.base}/s"\n{program}')
        (self.base / "containers.conf").write_text(
            '[containers]\nnetns = "host"\n[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\n'
            'events_logger = "file"\n')
        (self.base / "project/Dockerfile").write_text(DOCKERFILE)
        self("import", data.rootfs_tar, "localhost/base")


def remove(engine):
    """Ends what keeps the user's namespaces and removes the store."""
    pause = engine.runtime / "libpod/tmp/pause.pid"
    if pause.exists():
        try:
            os.kill(int(pause.read_text()), 15)
        except (ProcessLookupError, ValueError):
            pass
        pause.unlink()
    shutil.rmtree(engine.base, ignore_errors=True)
    shutil.rmtree(engine.runtime, ignore_errors=True)


def run_many(engine, _data):
    """`podman run --rm IMAGE true`, one after the other."""
    for _ in range(RUNS):
        engine("run", "--rm", "--pull=never", "localhost/base", "true")
    return RUNS


def build(engine, data):
    """A build whose longest step installs packages from files.

    Images stay until the end: ext4 looks long for an inode where many were freed in the last minute.
    """
    engine("build", "--no-cache", "--pull-never", "-q", "-v", f"{data.debs}:/debs:ro", "-t", "localhost/installed",
           engine.base / "project")
    return 1


def keep_id(engine, _data):
    """The first container with the user's own id, of an image that nobody has shifted yet."""
    engine("run", "--rm", "--pull=never", "--userns=keep-id", "localhost/big", "true")
    return 1


def import_big(engine, data):
    """Brings in the image of 1 GB; for the kernel driver anew, which keeps a shifted copy as long as it is there."""
    if engine("images", "-q", "localhost/big").strip():
        if engine.driver != "kernel":
            return
        engine("rmi", "-f", "localhost/big")
    engine("import", data.big_image, "localhost/big")


WORKLOADS = (
    (Phase("container-run", "`podman run --rm IMAGE true`", (), (None, 1.3)), run_many, None),
    (Phase("container-build", "`podman build` that installs 34 packages", (), (None, 1.3)), build, None),
    (Phase("container-keep-id", "first `podman run --userns=keep-id` of an image of 1 GB", (), (None, 1.0)), keep_id,
     import_big),
)


def user_with_subids(name):
    """The ordinary user whose containers these are."""
    entries = {line.split(":")[0] for line in Path("/etc/subuid").read_text().splitlines() if ":" in line}
    users = [pwd.getpwnam(name)] if name else [user for user in pwd.getpwall() if user.pw_uid >= 1000]
    for user in users:
        if user.pw_name in entries and user.pw_uid < 60000:
            return user
    raise SystemExit("bench: containers need an ordinary user with subordinate ids; give one by: "
                     "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER")


def measure(options, data, summary, log):
    """The rows of the group `containers`, one after the other."""
    user = user_with_subids(options.user)
    programs = {"plyfs": data.plyfs, "fuse-overlayfs": shutil.which("fuse-overlayfs"), "fuse-overlayfs-2": data.peer}
    names = [name for name in DRIVERS if name in options.fs and name in FILE_SYSTEMS]
    engines = {name: Engine(name, data.run / name, user, str(programs.get(name) or ""), Path(f"/tmp/ply-{number}"))
               for number, name in enumerate(names)}
    data.run.chmod(0o755)
    try:
        for engine in engines.values():
            log(f"containers: a store for {engine.driver}")
            engine.prepare(data)
        for phase, work, before in WORKLOADS:
            runs = {name: [] for name in names}
            for number in range(options.rounds + 1):
                log(f"{phase.id}, " + (f"round {number} of {options.rounds}" if number else "once unmeasured"))
                for name in names if number % 2 == 0 else reversed(names):
                    measured = timed(engines[name], data, work, before)
                    if number:
                        runs[name].append(measured)
            yield summary(phase, runs, False)
    finally:
        for engine in engines.values():
            remove(engine)


def timed(engine, data, work, before):
    """One measurement, or the sentence that says why there is none."""
    try:
        if before:
            before(engine, data)
        os.sync()
        started, cpu = time.perf_counter(), os.times()
        count = work(engine, data)
        seconds = (time.perf_counter() - started) / count
        spent = os.times()
        client = (spent.children_user + spent.children_system - cpu.children_user - cpu.children_system) / count
        return {"seconds": seconds, "client": client, "daemon": 0.0, "printed": ""}
    except RunError as error:
        return str(error)
