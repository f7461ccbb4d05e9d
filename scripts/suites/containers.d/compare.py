"""Compares what two drivers left: usage compare.py KNOWN FIRST OTHER FILE FILE.

KNOWN lists the differences that are meant: RESULT, DRIVER, a regular expression for lines and the reason, by tabs.
"""

import difflib
import re
import sys
from pathlib import Path

known, first, other, ours, theirs = sys.argv[1:]
name = Path(ours).name
meant = [re.compile(pattern) for result, driver, pattern, _ in
         (line.split("\t") for line in Path(known).read_text().splitlines() if line and not line.startswith("#"))
         if re.fullmatch(result, name) and driver in (first, other)]


def lines(path):
    return [line for line in Path(path).read_text().splitlines() if not any(rule.search(line) for rule in meant)]


found = list(difflib.unified_diff(lines(theirs), lines(ours), other, first, lineterm="", n=0))
if found:
    print("\n".join([f"{name}:", *found[:60]]))
sys.exit(bool(found))
