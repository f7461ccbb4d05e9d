"""Where the CPU time of a run goes, by perf(1): what scripts/bench --perf adds to each row."""

import signal
import subprocess
import time
from collections import Counter
from statistics import median

RATE = 4999  # samples of each CPU in a second; no divisor of the timer's rate
READY_SECONDS = 0.3  # until perf samples
OURS = ("perf", "python3")

PARTS = {
    "client": "the client: its own code and system calls, without the next",
    "asking": "the client: sending a request, going to sleep, waking up",
    "answering": "the daemon: /dev/fuse, going to sleep, waking up",
    "plyfs": "the daemon: its own code",
    "layers": "the daemon: system calls on layers and upper",
    "system": "threads of the kernel: writeback, journal, loop devices",
    "idle": "CPUs with nothing to do",
}
# What is found anywhere in a stack decides.
_ASKING = {"__fuse_simple_request", "fuse_simple_background", "request_wait_answer", "fuse_send_readpages"}
_ANSWERING = {"fuse_dev_read", "fuse_dev_write", "fuse_dev_do_read", "fuse_dev_do_write", "fuse_dev_splice_read",
              "fuse_dev_splice_write", "fuse_dev_poll", "do_sys_poll", "do_sys_ppoll", "__x64_sys_ppoll",
              "do_futex"}
_FAULT = {"asm_exc_page_fault"}


class Recorder:
    """Samples all CPUs into `file` while it is open; `daemon` is a pid or None."""

    def __init__(self, file, daemon):
        self.file, self.daemon = file, daemon

    def __enter__(self):
        self.perf = subprocess.Popen(
            ["perf", "record", "-a", "-q", "-e", "cpu-clock", "-F", str(RATE), "-k", "CLOCK_MONOTONIC", "-g",
             "--kernel-callchains", "-o", str(self.file)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(READY_SECONDS)
        return self

    def __exit__(self, failed, *_):
        running = self.perf.poll() is None
        self.perf.send_signal(signal.SIGINT)
        self.perf.wait()
        if not failed and not running:
            raise OSError("perf record ended by itself: is it of this kernel?")

    def parts(self, began, seconds):
        """CPU seconds by part from a time (CLOCK_MONOTONIC) on, once it is closed."""
        script = subprocess.run(["perf", "script", "-i", str(self.file), "-F", "comm,pid,time,ip,sym"],
                                capture_output=True, text=True, errors="replace", check=True).stdout
        # The next run would keep it under another name.
        self.file.unlink()
        found = Counter()
        for sample in script.split("\n\n"):
            head, *stack = sample.strip("\n").split("\n")
            # A command may have blanks in its name.
            command, _, rest = head.strip().rpartition(":")[0].rpartition(" ")
            if not command:
                continue
            command, _, pid = command.strip().rpartition(" ")
            if began <= float(rest) <= began + seconds and command.strip() not in OURS:
                found[self.part(int(pid), [line.split(None, 1)[-1].strip() for line in stack])] += 1
        return {part: found[part] / RATE for part in PARTS}

    def part(self, pid, stack):
        """The part a sample belongs to."""
        names = set(stack)
        if pid == 0:
            return "idle"
        if pid != self.daemon:
            if "kthread" in names:
                return "system"
            return "asking" if names & _ASKING else "client"
        if names & _ANSWERING:
            return "answering"
        in_kernel = any("entry_SYSCALL" in name or name.startswith("do_syscall") for name in names)
        return "layers" if in_kernel and not names & _FAULT else "plyfs"


def table(rows):
    """The parts of each row and file system, in CPU seconds."""
    out = ["", "CPU seconds by part, of both CPUs together, medians; perf itself makes everything slower:", ""]
    out += [f"- {part}: {meaning}" for part, meaning in PARTS.items()]
    out += ["", "| workload | file system | " + " | ".join(PARTS) + " |", "|---" * (len(PARTS) + 2) + "|"]
    lines = 0
    for row in rows:
        for name, entry in row["file_systems"].items():
            runs = [run["parts"] for run in entry["runs"] if "parts" in run]
            if runs:
                cells = [f"{median(run[part] for run in runs):.3f}" for part in PARTS]
                out.append(f"| {row['title']} | {name} | " + " | ".join(cells) + " |")
                lines += 1
    return out if lines else []
