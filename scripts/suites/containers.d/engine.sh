# Sourced by scripts/suites/containers: images to start from, and an engine with a store of its own.

# What the base image has on top of Debian's smallest, and what is installed in containers, from files.
base_packages=gcc,libc6-dev,zlib1g-dev,sqlite3,busybox-static,attr,acl
installed_packages=(cron rsync)

# make_base: a root file system with a compiler as $base_tar, and packages to install in $debs. Made once.
make_base() {
    local release place
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    place=$cache/containers-2-$release
    base_tar=$place/base.tar debs=$place/debs
    [[ ! -e $place ]] || return 0
    rm -rf "$place.new"
    mkdir -p "$place.new/debs"
    # mmdebstrap knows the mirrors of the running distribution.
    mmdebstrap --quiet --variant=minbase --include="$base_packages" --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="rm -f \"\$1\"/var/cache/apt/archives/*.deb; chroot \"\$1\" apt-get -qq -y --download-only --no-install-recommends install ${installed_packages[*]}" \
        --customize-hook="cp \"\$1\"/var/cache/apt/archives/*.deb $place.new/debs/" \
        "$release" "$place.new/base.tar" >>"$log" 2>&1
    chmod -R a+rX "$place.new"
    mv "$place.new" "$place"
}

# start_engine WHO DRIVER [DIR]: a fresh store, below DIR or $work; sets $results, where steps leave what is compared.
# With $mask owners and modes are kept in xattrs, and the files themselves have that mode.
start_engine() {
    who=$1
    local place=${3:-$work}
    results=$work/results/$who-$2${3:+-${3##*/}}
    # Podman wants a short path for its sockets.
    run=$work/r data=$place/d
    rm -rf --one-file-system "$run" "$data"
    mkdir -p "$results" "$run/tmp" "$data" "$work/in"
    chmod 700 "$run"
    use_driver "$2"
    # Podman's own limits are more than root may set where root is in a container himself.
    # Crun and slirp4netns ask for more than the file system: a unified cgroup hierarchy, a network device.
    printf '[containers]\nnetns = "host"\nlog_driver = "k8s-file"\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n' \
        >"$work/in/containers.conf"
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/in/policy.json"
    chmod -R a+rX "$work/in"
    if [[ $who == user ]]; then chown -R plyfs-test: "$run" "$data"; fi
}

# use_driver DRIVER [MOUNTOPT]: what mounts the store from now on.
use_driver() {
    driver=$1
    {
        printf '[storage]\ndriver = "overlay"\nrunroot = "%s"\ngraphroot = "%s"\nrootless_storage_path = "%s"\n' \
            "$run/c" "$data/s" "$data/s"
        printf '[storage.options.overlay]\n'
        case $driver in
        plyfs) printf 'mount_program = "%s"\n%s\n' "$program" "${mask:+force_mask = \"$mask\"}" ;;
        fuse-overlayfs) printf 'mount_program = "%s"\n' "$(command -v fuse-overlayfs)" ;;
        esac
        [[ -z ${2:-} ]] || printf 'mountopt = "%s"\n' "$2"
    } >"$work/in/storage.conf"
    chmod a+r "$work/in/storage.conf"
}

# A copy where everybody may run it: below the sources an ordinary user may not.
program=$work/bin/plyfs
install -D -m 755 "$plyfs" "$program"

# engine COMMAND...: as the user or as root, with the engine's configuration and nothing else from outside.
engine() {
    local drop=() name=${http_proxy+http_proxy} settings=()
    if [[ $who == user ]]; then drop=(setpriv --reuid plyfs-test --regid plyfs-test --clear-groups); fi
    for name in http_proxy https_proxy no_proxy; do
        if [[ -n ${!name:-} ]]; then settings+=("$name=${!name}"); fi
    done
    (cd "$run" && "${drop[@]}" env -i PATH="$PATH" HOME="$run" XDG_RUNTIME_DIR="$run" TMPDIR="$run/tmp" LC_ALL=C.UTF-8 \
        CONTAINERS_CONF="$work/in/containers.conf" CONTAINERS_STORAGE_CONF="$work/in/storage.conf" \
        BUILDAH_ISOLATION=chroot "${settings[@]}" "$@" 2>>"$log")
}
podman() { engine podman --log-level=error "$@"; }
buildah() { engine buildah --log-level=error "$@"; }
quietly() { "$@" >>"$log"; }

# expect WANTED COMMAND...: what the command prints.
expect() {
    local wanted=$1 got status=0
    shift
    got=$("$@") || status=$?
    [[ $status == 0 && $got == "$wanted" ]] || die "$who $driver $step: '$*' ended with $status and printed '$got', not '$wanted'"
}
# refused COMMAND...: it fails.
refused() { ! quietly "$@" || die "$who $driver $step: '$*' must fail"; }

# keep NAME: stdin becomes a result that is compared between drivers.
keep() { cat >"$results/$1"; }
# keep_tar NAME: of a tar on stdin, one line for each entry.
keep_tar() { python3 "$here/manifest.py" >"$results/$1"; }
# keep_export CONTAINER NAME, keep_diff CONTAINER|IMAGE NAME: all its files; what it changes.
keep_export() {
    podman export -o "$run/tmp/export.tar" "$1"
    keep_tar "$2" <"$run/tmp/export.tar"
    rm "$run/tmp/export.tar"
}
keep_diff() { podman diff "$1" | sort | keep "$2"; }

# daemons: the processes that serve mounts of this store. Their command lines name it or its layers.
daemons() { pgrep -f "^[^ ]*(plyfs|fuse-overlayfs) .*-o .*$data/(s|docker)/" || true; }

stop_engine() {
    quietly podman rm -af -t 0
    leave
}
# leave: ends the process that keeps an ordinary user's namespaces, and with them the mounts. On the way out of a run
# that failed it shows what the programs said.
leave() {
    [[ ${status:-0} == 0 ]] || tail -30 "$log" >&2
    [[ -z ${docker_job:-} ]] || stop_docker
    local pause=${run:-/nonexistent}/libpod/tmp/pause.pid
    if [[ -s $pause ]]; then kill "$(cat "$pause")" && rm "$pause"; fi
    # Root's podman makes its store a mount.
    while mountpoint -q "${data:-/nonexistent}/s/overlay"; do umount -R "$data/s/overlay" || umount -lR "$data/s/overlay"; done
}

# compare_results WHO DRIVER...: what the first left against each of the others, but for what is known to differ.
compare_results() {
    local who=$1 first=$2 other file differs=0
    for other in "${@:3}"; do
        for file in "$work/results/$who-$first"/*; do
            python3 "$here/compare.py" "$here/known" "$first" "$other" "$file" "$work/results/$who-$other/${file##*/}" ||
                differs=$((differs + 1))
        done
    done
    [[ $differs == 0 ]] || die "$who: $differs results differ from those of $first"
}
