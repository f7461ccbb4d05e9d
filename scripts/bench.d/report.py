"""What scripts/bench prints: the machine, the table of ratios, the times behind it."""

import os
import platform
import subprocess
from pathlib import Path
from statistics import median

import perf

FEW = 100  # requests; of fewer, asking how many there were is a part that shows
RESOURCE_BARS = {"mount of 500 layers, ms": 50, "MiB after find": 60, "CPU of the idle mount": 1}


def machine(data, plyfs_source):
    """Where and with what the numbers were measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    idle = Path("/sys/devices/system/cpu/cpuidle/current_driver")
    return {
        "cpu": f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "virtual": line(["systemd-detect-virt", "--vm"]) or ("yes" if " hypervisor" in cpuinfo else "no"),
        "idle driver": idle.read_text().strip() if idle.exists() else "none",
        "kernel": platform.release(),
        "file system": line(["findmnt", "-no", "FSTYPE", "-T", str(data.base)]),
        "plyfs": " ".join(filter(None, [line([str(data.plyfs), "--version"]), revision(plyfs_source)])),
        "fuse-overlayfs (Debian)": field(["fuse-overlayfs", "--version"], "fuse-overlayfs:"),
        "fuse-overlayfs (crate)": line([str(data.peer), "--version"]),
        "node": line(["node", "--version"]),
        "git": line(["git", "--version"]),
    }


def line(argv):
    """First line a program prints, empty if it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except OSError:
        return ""
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def field(argv, label):
    """The line of a program's output that starts with `label`."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except OSError:
        return ""
    return next((text for text in (done.stdout + done.stderr).splitlines() if text.startswith(label)), "")


def revision(source):
    """The commit measured, marked if the tree differs from it."""
    commit = line(["git", "-C", str(source), "rev-parse", "--short", "HEAD"])
    if not commit or "fatal" in commit:
        return ""
    return commit + ("+changes" if line(["git", "-C", str(source), "status", "--porcelain", "-uno"]) else "")


def summary(phase, runs, as_user):
    """Medians and ratios of one row; `runs` is {file system: [measurement or error sentence]}."""
    row = {"id": phase.id, "title": phase.title, "file_systems": {}, "bars": {}}
    for name, measured in runs.items():
        good = [run for run in measured if isinstance(run, dict)]
        entry = {"runs": good, "errors": sorted({run for run in measured if isinstance(run, str)})}
        if good:
            entry |= {key: median(run[key] for run in good) for key in ("seconds", "client", "daemon")}
            entry["printed"] = sorted({run["printed"] for run in good})
            entry["requests"] = max((run.get("requests", {}) for run in good), key=lambda kinds: sum(kinds.values()))
        row["file_systems"][name] = entry
    ratios(row, "kernel")
    ours = [name for name in runs if name.startswith("plyfs")]
    plain = [name for name in ours if not (phase.bar_volatile and name.endswith("-volatile"))]
    side = 0 if as_user else 1
    row["bars"]["best"] = judged(row, plain, phase.bar[side])
    if phase.bar_volatile:
        row["bars"]["volatile"] = judged(row, [name for name in ours if name not in plain], phase.bar_volatile[side])
    answers = {text for entry in row["file_systems"].values() for text in entry.get("printed", [])}
    row["differs"] = len(answers) > 1
    return row


def ratios(row, reference):
    """Adds to each file system its time divided by the reference's."""
    base = row["file_systems"].get(reference, {}).get("seconds")
    for entry in row["file_systems"].values():
        if base and "seconds" in entry:
            entry["ratio"] = entry["seconds"] / base


def judged(row, names, bar):
    """The best of plyfs's options in this row against the bar."""
    measured = [(row["file_systems"][name]["ratio"], name) for name in names if "ratio" in row["file_systems"][name]]
    if not measured or bar is None:
        return {"bar": bar, "met": None}
    ratio, name = min(measured)
    return {"bar": bar, "with": name, "ratio": ratio, "met": ratio <= bar}


def table(result):
    """The whole report as Markdown."""
    columns = list(dict.fromkeys(family(name) for name in result["settings"]["file_systems"]
                                 if any(name in row["file_systems"] for row in result["rows"])))
    out = heading(result)
    out += ["Time divided by kernel overlayfs (`kernel`: seconds), median of "
            f"{result['settings']['rounds']} rounds. Bar: plyfs at most, with the best of its options shown.", ""]
    out += ["| workload | " + " | ".join(columns) + " | bar | met |", "|---" * (len(columns) + 3) + "|"]
    for row in result["rows"]:
        cells = [cell(row, column, ratio_text) for column in columns]
        out.append(f"| {row['title']} | " + " | ".join(cells) + f" | {verdict(row)} |")
    out += ["", "CPU seconds of client + daemon (medians), and the range of wall seconds:", ""]
    out += ["| workload | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in result["rows"]:
        cells = [cell(row, column, cpu_text) for column in columns]
        out.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    out += requests(result["rows"]) + perf.table(result["rows"]) + resources(result.get("resources", {}))
    out += comparisons(result["rows"]) + complaints(result["rows"])
    return "\n".join(out) + "\n"


def heading(result):
    """The machine and the settings."""
    facts = [f"{name}: {value}" for name, value in result["machine"].items() if value]
    settings = result["settings"]
    who = "as an ordinary user" if settings["as_user"] else "as root"
    return [f"`{settings['command']}`, {settings['date']}, {who}", "", "; ".join(facts) + ".", ""]


def number(value):
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def family(name):
    """The column a file system is shown in: kernel and plyfs with all their options."""
    return next((first for first in ("kernel", "plyfs") if name.startswith(first)), name)


def option(name):
    """The option in the name of a file system."""
    return name.removeprefix(family(name)).removeprefix("-")


def cell(row, column, text):
    """One column of a row: `text(entry, name)` of each file system in it."""
    entries = [(name, entry) for name, entry in row["file_systems"].items() if family(name) == column]
    return "; ".join(f"{option(name)} {text(entry, name)}".strip() for name, entry in entries)


def ratio_text(entry, name):
    """In the table of ratios."""
    if "seconds" not in entry:
        return "failed"
    if name == "kernel" or "ratio" not in entry:
        return f"{number(entry['seconds'])} s"
    return number(entry["ratio"])


def cpu_text(entry, _):
    """In the table of CPU seconds."""
    if "seconds" not in entry:
        return "failed"
    walls = [run["seconds"] for run in entry["runs"]]
    return f"{entry['client']:.2f} + {entry['daemon']:.2f} ({number(min(walls))}-{number(max(walls))})"


def requests(rows):
    """What each row has the kernel ask the daemon, and how long plyfs takes longer than the kernel, for each of them."""
    out = ["", "Requests to plyfs, and what it takes longer than the kernel, in all and divided by their number:", "",
           "| workload | requests | longer | for each |", "|---|---|---|---|"]
    for row in rows:
        base = row["file_systems"].get("kernel", {}).get("seconds")
        for name, entry in row["file_systems"].items():
            kinds = entry.get("requests", {})
            if sum(kinds.values()) < FEW:
                continue
            counts = ", ".join(f"{count:,} {kind.upper()}" for kind, count in
                               sorted(kinds.items(), key=lambda pair: -pair[1]) if count * 100 >= sum(kinds.values()))
            longer = entry["seconds"] - base if base else None
            each = f"{longer / sum(kinds.values()) * 1e6:.1f} us" if longer is not None else ""
            title = " ".join(filter(None, [row["title"], option(name)]))
            out.append(f"| {title} | {counts} | {'' if longer is None else f'{longer:.2f} s'} | {each} |")
    return out if len(out) > 5 else []


def verdict(row):
    """Bar and whether it is met, by which of plyfs's options."""
    judged_bars = {kind: bar for kind, bar in row["bars"].items() if bar["bar"] is not None}
    if not judged_bars:
        return "|"
    bars = "; ".join(f"{kind} {bar['bar']}" if kind != "best" else str(bar["bar"]) for kind, bar in judged_bars.items())
    words = {True: "yes", False: "**no**", None: "?"}
    met = "; ".join(words[bar["met"]] + (f" ({option(bar['with'])})" if option(bar.get("with", "")) else "")
                    for bar in judged_bars.values())
    return f"{bars} | {met}"


def resources(measured):
    """Memory, mount time, idle CPU."""
    names = [name for name, values in measured.items() if isinstance(values, dict)]
    keys = list(dict.fromkeys(key for name in names for key in measured[name]))
    if not keys:
        return []
    out = ["", "| resource | " + " | ".join(names) + " | bar | met |", "|---" * (len(names) + 3) + "|"]
    ours = measured.get("plyfs")
    for key in keys:
        bar = next((value for start, value in RESOURCE_BARS.items() if key.startswith(start)), None)
        if key == "MiB after the second pass" and isinstance(ours, dict):
            bar = next(value for first, value in ours.items() if first.startswith("MiB after find"))
        met = "?"
        if isinstance(ours, dict) and key in ours and bar is not None:
            # A page or two more is not growth.
            met = "yes" if ours[key] <= bar * (1.01 if "second" in key else 1) else "**no**"
        cells = [number(measured[name][key]) if key in measured[name] else "" for name in names]
        shown = "" if bar is None else number(bar) if isinstance(bar, float) else str(bar)
        out.append(f"| {key} | " + " | ".join(cells) + f" | {shown} | {met if shown else ''} |")
    return out


def comparisons(rows):
    """Rows compared with each other: two clients with one, polling with blocking."""
    by_id = {row["id"]: {name: entry["seconds"] for name, entry in row["file_systems"].items() if "seconds" in entry}
             for row in rows}
    out = []
    if {"one-client", "two-clients"} <= by_id.keys():
        one, two = by_id["one-client"], by_id["two-clients"]
        gains = [f"{name} {one[name] / two[name]:.2f}" for name in one if name in two]
        out += ["", "Two clients at once, throughput over one client (bar for plyfs: at least 1.4): "
                + ", ".join(gains) + "."]
    for row, seconds in by_id.items():
        peers = [name for name in ("fuse-overlayfs", "fuse-overlayfs-2") if name in seconds]
        if row.startswith("container-") and "plyfs" in seconds and peers:
            shares = ", ".join(f"{seconds['plyfs'] / seconds[name]:.2f} of {name}" for name in peers)
            out += ["", f"{row}: plyfs takes {shares} (bar: at most 0.7)."]
    if {"plyfs", "plyfs-nopoll"} <= by_id.get("cargo", {}).keys():
        gain = by_id["cargo"]["plyfs"] / by_id["cargo"]["plyfs-nopoll"]
        out += ["", f"`cargo build` with polling over without (bar: at most 1): {gain:.2f}."]
    return out


def complaints(rows):
    """Errors, and rows where the file systems did not show the same."""
    out = []
    for row in rows:
        for name, entry in row["file_systems"].items():
            out += [f"- {row['id']}, {name}: {error}" for error in entry["errors"]]
        if row["differs"]:
            shown = {name: entry["printed"] for name, entry in row["file_systems"].items() if "printed" in entry}
            out.append(f"- {row['id']}: the file systems showed different things: {shown}")
    return ["", "Not as expected:", "", *out] if out else []
