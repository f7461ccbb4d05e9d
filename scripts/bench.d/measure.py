"""Runs one workload on one file system and measures it: wall time, CPU of client and daemon, requests, memory."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from mounts import Disk, FILE_SYSTEMS, Mounted, MountError
from perf import Recorder

COMMAND_SECONDS = 900
IDLE_SECONDS = 5
ASKED_SECONDS = 0.05  # after a question a mount waits for more; a run begins with one that does not
RESOURCE_FILE_SYSTEMS = ("kernel", "plyfs", "fuse-overlayfs", "fuse-overlayfs-2")


class RunError(Exception):
    """A command that failed or did not end."""


def run_workload(workload, fs, stack, data, as_user, perf=False):
    """Each phase of `workload` on a fresh mount of `fs`: {phase id: measurement}. `perf` adds where the time goes."""
    environment = {**os.environ, **workload.environment}
    results = {}
    if workload.settle:
        with Mounted(fs, stack, data, as_user, workload.plain) as mount:
            timed(mount, workload.settle, ".", environment)
    disk = workload.own_disk and Disk.available(as_user)
    with Mounted(fs, stack, data, as_user, workload.plain, fresh=not workload.settle, disk=disk) as mount:
        for command in workload.prepare:
            timed(mount, command, ".", environment)
        for phase in workload.phases:
            if perf:
                with Recorder(data.run / "perf.data", mount.daemon and mount.daemon.pid) as recorder:
                    result = timed(mount, phase.argv, phase.cwd, environment)
                result["parts"] = recorder.parts(result["began"], result["seconds"])
            else:
                result = timed(mount, phase.argv, phase.cwd, environment)
            results[phase.id] = result
    return results


def timed(mount, argv, cwd, environment):
    """Runs `argv` in the mount: seconds, CPU seconds of client and daemon, requests, and what it printed, shortened."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        requests = mount.requests()
        if requests:
            time.sleep(ASKED_SECONDS)
        daemon = mount.cpu()
        started = time.perf_counter()
        client = subprocess.Popen(argv, cwd=mount.mnt / cwd, stdout=output, stderr=errors, env=environment,
                                  stdin=subprocess.DEVNULL)
        # A hung mount leaves the client unkillable until its daemon is gone.
        alarm = threading.Timer(COMMAND_SECONDS, lambda: (mount.kill(), client.kill()))
        alarm.start()
        _, status, usage = os.wait4(client.pid, 0)
        seconds = time.perf_counter() - started
        alarm.cancel()
        client.returncode = os.waitstatus_to_exitcode(status)
        result = {"began": started, "seconds": seconds, "client": usage.ru_utime + usage.ru_stime,
                  "printed": printed(output)}
        if client.returncode != 0:
            errors.seek(0)
            first = errors.read(300).decode(errors="replace").strip().partition("\n")[0]
            raise RunError(f"{Path(argv[0]).name} ended with {client.returncode}: {first}")
        result["daemon"] = mount.cpu() - daemon
        result["requests"] = mount.requests() - requests
        return result


def printed(output):
    """What must be equal on every file system: a short output as it is, of a long one the number of lines."""
    output.seek(0, os.SEEK_END)
    if output.tell() <= 200:
        output.seek(0)
        return output.read().decode(errors="replace").strip()
    output.seek(0)
    return f"{sum(block.count(10) for block in iter(lambda: output.read(1 << 20), b''))} lines"


def run_resources(name, stacks, data, as_user, log):
    """Memory, mount time and idle CPU of one file system: {measure: value}."""
    fs = FILE_SYSTEMS[name]
    find = ("find", ".", "-printf", "%s\\n")
    values = {}
    for stack in ("layers-500", "wide"):
        stacks[stack].warm()
    with Mounted(fs, stacks["layers-500"], data, as_user) as mount:
        values["mount of 500 layers, ms"] = mount.seconds * 1000
    if mount.daemon is None:
        return values
    log(f"memory and idle CPU: {name}")
    with Mounted(fs, stacks["wide"], data, as_user) as mount:
        entries = timed(mount, find, ".", os.environ)["printed"]
        values[f"MiB after find over {entries.removesuffix(' lines')} entries"] = mount.resident_mib()
        if not as_user:  # makes the kernel forget its nodes, so that the second pass asks again
            Path("/proc/sys/vm/drop_caches").write_text("2\n")
        timed(mount, find, ".", os.environ)
        values["MiB after the second pass"] = mount.resident_mib()
        time.sleep(1)
        before = mount.cpu()
        time.sleep(IDLE_SECONDS)
        values[f"CPU of the idle mount over {IDLE_SECONDS} s, ms"] = (mount.cpu() - before) * 1000
    return values


def attempt(function, *arguments):
    """A result, or the sentence that says why there is none."""
    try:
        return function(*arguments)
    except (MountError, RunError, subprocess.CalledProcessError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return str(error)
