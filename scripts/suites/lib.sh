# Sourced by every suite: mounts the file system under test, and always unmounts it.
#
# usage of a suite: scripts/suites/NAME [plyfs|kernel]
# PLYFS           the binary to test, target/debug/plyfs otherwise
# PLYFS_TEST_DIR  the directory whose file system holds the layers, /var/tmp otherwise
# PLYFS_LONG      1 for the long form of a suite
# SEED            the seed of the suites that draw random numbers

set -euo pipefail
suites=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$suites/../.." && pwd)
# shellcheck source=../env.sh
source "$root/scripts/env.sh"
plyfs=${PLYFS:-${CARGO_TARGET_DIR:-$root/target}/debug/plyfs}
fs=${1:-plyfs}
long=${PLYFS_LONG:-0}
seed=${SEED:-4711}
# Many programs look for their scratch space in TMPDIR: there, not in the view.
work=$(mktemp -d "${PLYFS_TEST_DIR:-/var/tmp}/ply.XXXXXX")
chmod 755 "$work"
trap cleanup EXIT
trap 'exit 130' INT TERM

die() { echo "$(basename "$0"): $*" >&2; exit 1; }
need_root() { [[ $(id -u) == 0 ]] || die "needs root"; }

# layer NAME...: fresh empty directories below $work.
layer() { local name; for name in "$@"; do mkdir -p -m 755 "$work/$name"; done; }

# mount_union LOWERS UPPER WORK MNT FS: LOWERS is one directory or several joined by ':', topmost first.
mount_union() {
    local lowers=$1 upper=$2 workdir=$3 mnt=$4
    mkdir -p "$upper" "$workdir" "$mnt"
    case $5 in
    kernel)
        mount -t overlay -o "redirect_dir=on,index=on,lowerdir=$lowers,upperdir=$upper,workdir=$workdir" \
            overlay "$mnt" ;;
    plyfs)
        "$plyfs" mount -o "lowerdir=$lowers,upperdir=$upper,workdir=$workdir" --log "$work/plyfs.log" "$mnt" ;;
    *) die "unknown file system '$5': plyfs or kernel" ;;
    esac
    mountpoint -q "$mnt" || die "$5 said it mounted $mnt and did not"
}

# umount_union MNT FS: fails when the mount is busy or when a request panicked on the way.
umount_union() {
    if [[ $2 == plyfs ]]; then "$plyfs" umount "$1"; else umount "$1"; fi
    if grep -qs panicked "$work/plyfs.log"; then
        cat "$work/plyfs.log" >&2
        die "a request panicked"
    fi
}

cleanup() {
    local status=$? mnt
    [[ $status == 0 || ! -s $work/plyfs.log ]] || tail -50 "$work/plyfs.log" >&2
    # What a suite has of its own to end.
    if declare -F leave >/dev/null; then leave || true; fi
    # A daemon that hangs keeps everybody waiting. The name of the work directory is ours alone.
    if [[ $status != 0 ]]; then pkill -KILL -f "^[^ ]*plyfs .*$work/" || true; fi
    # Whatever is mounted below the work directory, the deepest first.
    while read -r mnt; do
        umount "$mnt" 2>/dev/null || umount -l "$mnt" 2>/dev/null || fusermount3 -uz "$mnt" || true
    done < <(findmnt -rno TARGET | grep "^$work/" | sort -r)
    rm -rf --one-file-system "$work"
    exit "$status"
}

# manifest DIR: everything a copy must keep, one line for each object, to be compared by diff.
# Directory sizes and link counts belong to the file system and are left out.
manifest() {
    (
        cd "$1"
        find . \( -type d -printf '%p %y %m %U:%G\n' \) -o \
            \( -type f -printf '%p %y %m %U:%G %s %n %T@\n' \) -o \
            -printf '%p %y %m %U:%G %l\n' | sort
        find . -type f -print0 | sort -z | xargs -0r sha256sum
        find . ! -type l -print0 | sort -z | xargs -0r getfacl -Psn
        find . -print0 | sort -z | xargs -0r getfattr -Pdh -m '^(user|security|trusted)\.' 2>/dev/null
    )
}
