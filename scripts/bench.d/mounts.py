"""The file systems scripts/bench compares: how each is mounted, watched and unmounted."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MOUNT_SECONDS = 60


@dataclass(frozen=True)
class FileSystem:
    """One column of the comparison."""
    name: str
    kind: str  # plain, kernel, plyfs, debian, crate
    options: tuple = ()
    root_only: bool = False  # needs CAP_SYS_ADMIN outside a user namespace


FILE_SYSTEMS = {fs.name: fs for fs in [
    FileSystem("ext4", "plain"),
    FileSystem("kernel", "kernel"),
    FileSystem("kernel-volatile", "kernel", ("volatile",)),
    FileSystem("plyfs", "plyfs"),
    FileSystem("plyfs-volatile", "plyfs", ("volatile",)),
    FileSystem("plyfs-metacopy", "plyfs", ("metacopy=on",)),
    FileSystem("plyfs-nopoll", "plyfs", ("poll=off",)),
    FileSystem("plyfs-threads2", "plyfs", ("threads=2",)),
    FileSystem("plyfs-passthrough", "plyfs", ("passthrough=all",), root_only=True),
    FileSystem("fuse-overlayfs", "debian"),
    FileSystem("fuse-overlayfs-2", "crate"),
]}


@dataclass(frozen=True)
class Stack:
    """Lower layers, topmost first, named relative to `base` (500 absolute paths do not fit in mount options)."""
    name: str
    base: Path
    lowers: tuple

    def warm(self):
        """Reads every lower once, so that no run measures the disk. Not `tar cf /dev/null`: it would read nothing."""
        subprocess.run(["sh", "-c", 'tar cf - "$@" 2>/dev/null | cat >/dev/null', "sh", *self.lowers], cwd=self.base,
                       check=True)


class Mounted:
    """A file system mounted over `stack`, with upper, work and mnt below `place`; a context manager."""

    def __init__(self, fs, stack, data, as_user, plain="kept", fresh=True, disk=False):
        self.fs, self.stack, self.data, self.as_user = fs, stack, data, as_user
        self.plain, self.fresh = plain, fresh
        self.disk = Disk.of(data.run) if disk else None
        self.mnt = data.run / "mnt"
        self.upper, self.work = ((self.disk.mnt if disk else data.run) / name for name in ("upper", "work"))
        self.daemon = None
        self.seconds = 0.0  # from the call until the mount answered

    def __enter__(self):
        self.mnt.mkdir(parents=True, exist_ok=True)
        if self.disk:
            self.disk.make()
        if self.fresh:
            for directory in (self.upper, self.work):
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
        subprocess.run(["sync", "-f", str(self.data.run)], check=True)
        started = time.perf_counter()
        if self.fs.kind == "plain":
            self._mount_plain()
        elif self.fs.kind == "kernel":
            self._command(["mount", "-t", "overlay", "overlay", "-o", self._options(), str(self.mnt)])
        elif self.fs.kind == "plyfs":
            # In the background, as its users have it.
            self._command([str(self.data.plyfs), "mount", "-o", self._options(), str(self.mnt)])
        else:
            self._start_daemon()
        self.seconds = time.perf_counter() - started
        if self.fs.kind == "plyfs":
            self.daemon = self._background()
        return self

    def _options(self):
        options = [f"lowerdir={':'.join(self.stack.lowers)}", f"upperdir={self.upper}", f"workdir={self.work}"]
        if self.fs.kind == "kernel" and self.as_user:
            options.append("userxattr")
        return ",".join([*options, *self.fs.options])

    def _mount_plain(self):
        """The merged tree as plain files: the kept copy, a copy of its own to be destroyed, or nothing yet."""
        kept = self.data.plain / self.stack.name
        source = kept if self.plain == "kept" else self.upper
        if self.plain == "copy" and self.fresh or self.plain == "kept" and not kept.exists():
            draft = self.upper if self.plain == "copy" else kept.with_name(kept.name + ".draft")
            draft.mkdir(exist_ok=True)
            for lower in reversed(self.stack.lowers):
                subprocess.run(["cp", "-a", f"{self.stack.base / lower}/.", str(draft)], check=True)
            if draft != source:
                draft.rename(kept)
            subprocess.run(["sync", "-f", str(source)], check=True)
            Stack("plain", source, (".",)).warm()
        self._command(["mount", "--bind", str(source), str(self.mnt)])

    def _command(self, argv):
        # The classic mount(2): through fsconfig(2) an option is limited to 255 bytes.
        environment = {**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"}
        done = subprocess.run(argv, cwd=self.stack.base, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise MountError(f"{self.fs.name}: {done.stderr.strip()}")

    def _start_daemon(self):
        program = {"debian": "fuse-overlayfs", "crate": str(self.data.peer)}[self.fs.kind]
        argv = [program, "-f", "-o", self._options(), str(self.mnt)]
        outside = os.stat(self.mnt).st_dev
        with open(self.data.run / "daemon.log", "wb") as log:
            self.daemon = subprocess.Popen(argv, cwd=self.stack.base, stdout=log, stderr=log,
                                           stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + MOUNT_SECONDS
        while os.stat(self.mnt).st_dev == outside:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                self._stop_daemon()
                raise MountError(f"{self.fs.name}: {self._log() or 'did not mount'}")
            time.sleep(0.0002)

    def _background(self):
        listed = subprocess.run([str(self.data.plyfs), "mounts", "--json"], capture_output=True, check=True)
        pids = [mount["pid"] for mount in json.loads(listed.stdout) if mount["mountpoint"] == str(self.mnt)]
        return Background(pids[-1])

    def _log(self):
        return (self.data.run / "daemon.log").read_text(errors="replace").strip()[-300:]

    def cpu(self):
        """CPU seconds of the daemon so far, all its threads, dead ones too."""
        if self.daemon is None:
            return 0.0
        # clock_getcpuclockid(3): the CPU clock of another process.
        return time.clock_gettime((~self.daemon.pid << 3) | 2)

    def requests(self):
        """Requests the kernel has sent so far, by kind, as plyfs counts them; empty for others."""
        if self.fs.kind != "plyfs":
            return Counter()
        kinds = json.loads(os.getxattr(self.mnt, "user.plyfs.stats"))["requests"]
        return Counter({kind: values["count"] for kind, values in kinds.items()})

    def resident_mib(self):
        """Resident memory of the daemon in MiB."""
        for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise MountError(f"{self.fs.name}: the daemon is gone")

    def kill(self):
        """Ends a daemon that does not answer: its clients get ENOTCONN."""
        if self.daemon is not None:
            self.daemon.kill()

    def __exit__(self, *_):
        for _ in range(50):
            if subprocess.run(["umount", str(self.mnt)], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", str(self.mnt)], capture_output=True)
        self._stop_daemon()
        if self.disk:
            self.disk.remove()

    def _stop_daemon(self):
        if self.daemon is None:
            return
        try:
            self.daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()


class Background:
    """A process that is not our child, as far as subprocess.Popen is used here."""

    def __init__(self, pid):
        self.pid = pid

    def kill(self):
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self, timeout=None):
        end = time.monotonic() + (timeout or MOUNT_SECONDS)
        while Path(f"/proc/{self.pid}").exists():
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("plyfs", timeout)
            time.sleep(0.001)


class Disk:
    """A new ext4 in a file, which every run gets for itself. Only root can make one: in the user namespace of an
    ordinary user it is made by who started the benchmark, if that was root."""
    SIZE = 4 << 30
    SERVICE = "PLYFS_BENCH_DISKS"  # in the user namespace: where to ask for one, and where the answer comes from

    def __init__(self, run):
        self.image, self.mnt = run / "disk.img", run / "disk"

    @classmethod
    def of(cls, run):
        return (AskedDisk if cls.SERVICE in os.environ else Disk)(run)

    @classmethod
    def available(cls, as_user):
        """Whether there can be one."""
        return not as_user or cls.SERVICE in os.environ

    def serve(self, owner, orders, answers):
        """Makes and removes it for `owner` as told, until there are no more orders."""
        for order in orders:
            answer = "done"
            try:
                if order.strip() == "make":
                    self.make()
                    os.chown(self.mnt, *owner)
                else:
                    self.remove()
            except (MountError, OSError) as error:
                answer = str(error).replace("\n", " ")
            print(answer, file=answers, flush=True)

    def make(self):
        self.mnt.mkdir(parents=True, exist_ok=True)
        self.image.unlink(missing_ok=True)
        # The directory may be an ordinary user's.
        with open(os.open(self.image, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "wb") as image:
            image.truncate(self.SIZE)
        # Nothing is left to be done in the background.
        options = ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
        for argv in (["mkfs.ext4", "-q", *options, str(self.image)],
                     ["mount", "-o", "loop", str(self.image), str(self.mnt)]):
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode != 0:
                raise MountError(f"a new ext4: {done.stderr.strip()}")

    def remove(self):
        subprocess.run(["umount", "-l", str(self.mnt)], capture_output=True)
        self.image.unlink(missing_ok=True)


class AskedDisk(Disk):
    """One that whoever started the benchmark makes."""

    def make(self):
        self._ask("make")

    def remove(self):
        self._ask("remove")

    def _ask(self, order):
        orders, answers = map(int, os.environ[self.SERVICE].split())
        os.write(orders, f"{order}\n".encode())
        answer = os.read(answers, 1000).decode().strip()
        if answer != "done":
            raise MountError(f"a new ext4: {answer or 'whoever makes them is gone'}")


class MountError(Exception):
    """A file system that could not be mounted here; its column says so."""


def clear(data):
    """Empties upper and work after the last run, and removes what perf(1) sampled."""
    (data.run / "perf.data").unlink(missing_ok=True)
    for name in ("upper", "work"):
        shutil.rmtree(data.run / name, ignore_errors=True)
