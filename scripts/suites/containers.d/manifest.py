"""One line for each entry of the tar on stdin: what a container's file system must have in common on every driver.

Times are those of the run; only whole years tell a file of the image from one made now. They are left out.
"""

import hashlib
import sys
import tarfile

lines = []
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
    for entry in archive:
        words = [entry.name.removeprefix("./").rstrip("/") or ".", entry.type.decode(), f"{entry.mode:o}",
                 f"{entry.uid}:{entry.gid}"]
        if entry.isreg():
            words.append(hashlib.sha256(archive.extractfile(entry).read()).hexdigest()[:24])
        elif entry.islnk() or entry.issym():
            words.append(entry.linkname)
        elif entry.ischr() or entry.isblk():
            words.append(f"{entry.devmajor}:{entry.devminor}")
        words += sorted(f"{key}={value!r}" for key, value in entry.pax_headers.items() if "xattr" in key)
        lines.append(" ".join(words))
print("\n".join(sorted(lines)))
