"""Compares what two drivers left: usage compare.py KNOWN FIRST OTHER FILE FILE.

KNOWN lists the differences that are meant: RESULT, DRIVER, a regular expression for lines and the reason, by tabs.
"""

import difflib
import re
import sys
from pathlib import Path


def split(lines):
    """Of a list as `podman diff` prints it, the paths by letter; a changed directory only if nothing in it changed."""
    kinds = {"A": set(), "C": set(), "D": set()}
    for line in lines:
        kinds[line[0]].add(line[2:])
    parents = {parent for paths in kinds.values() for path in paths for parent in above(path)}
    kinds["C"] -= parents
    return kinds


def above(path):
    """The directories that a path is in."""
    parts = path.split("/")
    return {"/".join(parts[:end]) for end in range(1, len(parts))}


def contradictions(walked, upper):
    """What the two ways of podman to find changes do not agree about.

    With a mount program it walks both trees. With the kernel driver it lists the upper: there a directory that was
    made again is "deleted" instead of all that was in it, and what was copied up and not changed is "changed".
    """
    walked, upper = split(walked), split(upper)
    found = [f"A {path}" for path in walked["A"] ^ upper["A"]]
    found += [f"C {path}" for path in walked["C"] - upper["C"] - upper["D"]]
    found += [f"D {path}" for path in walked["D"] if not ({path} | above(path)) & upper["D"]]
    found += [f"D {path}" for path in upper["D"] - walked["D"] if not any(path in above(each) for each in walked["D"])]
    return sorted(found)


def main():
    known, first, other, ours, theirs = sys.argv[1:]
    name = Path(ours).name
    meant = [re.compile(pattern) for result, driver, pattern, _ in
             (line.split("\t") for line in Path(known).read_text().splitlines() if line and not line.startswith("#"))
             if re.fullmatch(result, name) and driver in (first, other)]
    here, there = ([line for line in Path(path).read_text().splitlines() if not any(rule.search(line) for rule in meant)]
                   for path in (ours, theirs))
    if name.startswith("diff-") and (first == "kernel") != (other == "kernel"):
        found = contradictions(there, here) if first == "kernel" else contradictions(here, there)
    else:
        found = list(difflib.unified_diff(there, here, other, first, lineterm="", n=0))
    if found:
        print("\n".join([f"{name}: {first} beside {other}", *found[:60]]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
