# Sourced by scripts/test: each part is a function that prints its log and fails when the part fails.

# Ends every daemon and program that works below $scratch, whose name is ours alone, then unmounts. A
# program that waits for a hung daemon cannot be killed before the daemon.
stop_all() {
    local mnt
    pkill -KILL -f "$scratch/" || true
    while read -r mnt; do umount "$mnt" || umount -l "$mnt" || true; done \
        < <(findmnt -rno TARGET | grep "^$scratch/" | sort -r)
}

part_fmt() { cargo fmt --check; }
part_clippy() { cargo clippy --all-targets -- -D warnings; }
part_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items; }
part_unit() { cargo test --lib --bins && cargo test --doc; }

# build: the path of the integration test binary.
build() {
    local path
    cargo test --no-run --test main >&2
    path=$(cargo test --no-run --test main 2>&1 | sed -n 's/.*Executable tests\/main.rs (\(.*\))$/\1/p')
    realpath "$path"
}

# Variables for the integration tests; their scratch space is $1.
environment() {
    export PLYFS_TEST_DIR=$1 PLYFS_TEST_SKIPS=$scratch/skips TMPDIR=$1
    if [[ $PLYFS_LONG == 1 ]]; then
        export PLYFS_MODEL_RUNS=${PLYFS_MODEL_RUNS:-100} PLYFS_MODEL_STEPS=${PLYFS_MODEL_STEPS:-1000} PLYFS_CRASH_LONG=1
    fi
}

# as_user COMMAND...: as plyfs-test when we are root, with an environment of its own.
as_user() {
    local home
    home=$(mktemp -d "$scratch/home.XXXXXX")
    if [[ $uid == 0 ]]; then
        mkdir "$home/run"
        chown -R "$test_uid:$test_gid" "$home"
        chmod 700 "$home/run"
        environment "$home"
        (cd "$home" && HOME=$home XDG_RUNTIME_DIR=$home/run USER=plyfs-test LOGNAME=plyfs-test \
            setpriv --reuid "$test_uid" --regid "$test_gid" --clear-groups "$@")
    else
        environment "$home"
        (cd "$home" && "$@")
    fi
}

# Sources are checked once, as root; a user may not be able to read them.
part_root() { local tests; tests=$(build); environment "$scratch"; "$tests"; }
part_user() { local tests; tests=$(build); as_user "$tests" --skip tidy::; }
part_userns() { local tests; tests=$(build); as_user unshare -Urm "$tests" --skip tidy::; }
part_kernel() { local tests; tests=$(build); environment "$scratch"; PLYFS_TEST_FS=kernel "$tests" posix::; }
part_kernel-userns() { local tests; tests=$(build); export PLYFS_TEST_FS=kernel; as_user unshare -Urm "$tests" posix::; }

# on_filesystem NAME MOUNT-ARGUMENTS...: the tests with all layers on it.
on_filesystem() {
    local tests mnt=$scratch/fs-$1 selection=(posix::) status=0
    tests=$(build)
    mkdir -p "$mnt"
    mount "${@:2}" "$mnt"
    chmod 1777 "$mnt"
    environment "$mnt"
    if [[ $PLYFS_LONG == 1 ]]; then selection=(--skip tidy::); fi
    "$tests" "${selection[@]}" || status=$?
    umount "$mnt"
    return $status
}
image() { truncate -s 2G "$scratch/$1.img"; echo "$scratch/$1.img"; }
part_tmpfs() { on_filesystem tmpfs -t tmpfs -o size=2G tmpfs; }
part_xfs() { mkfs.xfs -q "$(image xfs)" && on_filesystem xfs -o loop "$scratch/xfs.img"; }
part_btrfs() { mkfs.btrfs -q "$(image btrfs)" && on_filesystem btrfs -o loop "$scratch/btrfs.img"; }

# with_options OPTIONS: the tests with them on every mount.
with_options() {
    local tests
    tests=$(build)
    environment "$scratch"
    PLYFS_TEST_OPTIONS=$1 PLYFS_MODEL_OPTIONS=$1 "$tests" posix:: model::
}
part_threads() { with_options threads=4; }
part_tiny() { with_options cache_nodes=8,cache_dirs=8,cache_files=8; }
part_passthrough() { with_options passthrough=on; }
part_overrides() {
    local tests
    tests=$(build)
    environment "$scratch"
    PLYFS_TEST_OPTIONS=xattr_permissions=2 "$tests" posix::
}
part_overrides-user() {
    local tests
    tests=$(build)
    export PLYFS_TEST_OPTIONS=xattr_permissions=2
    as_user "$tests" posix::
    as_user unshare -Urm "$tests" posix::
}
part_peers() {
    local tests peer=$cache/tools/fuse-overlayfs@2.0.0/bin/fuse-overlayfs
    tests=$(build)
    # An ordinary user must reach it.
    install -m 755 "$peer" "$scratch/fuse-overlayfs-2"
    export PLYFS_TEST_PEERS=fuse-overlayfs:$scratch/fuse-overlayfs-2
    environment "$scratch"
    "$tests" interop::
    as_user "$tests" interop::
    as_user unshare -Urm "$tests" interop::
}

part_requests() {
    cargo build --quiet
    TMPDIR=$scratch scripts/requests --check --plyfs "$target/debug/plyfs"
}

suite() {
    cargo build --quiet
    PLYFS=$target/debug/plyfs PLYFS_TEST_DIR=$scratch "scripts/suites/$1" plyfs
}
part_pjdfstest() { suite pjdfstest; }
part_fsx() { suite fsx; }
part_stress() { suite stress; }
part_fio() { suite fio; }
part_apps() { suite apps; }
part_debian() { suite debian; }
part_images() { suite images; }
# Without a word it runs all drivers, to compare them.
part_containers() {
    cargo build --quiet
    PLYFS=$target/debug/plyfs PLYFS_TEST_DIR=$scratch scripts/suites/containers
}
part_fuzz() { suite fuzz; }

# summary LOG: one line about a part that passed.
summary() {
    local counts
    counts=$(awk '/^test result:/ { p += $4; i += $8 } END { if (NR && p) print p " tests" (i ? ", " i " ignored" : "") }' "$1")
    echo "${counts:-$(tail -n 1 "$1")}"
}
