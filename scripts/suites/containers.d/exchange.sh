# Sourced by scripts/suites/containers: a store that another driver wrote goes on under plyfs, and back.

# exchange OTHER: containers and images change hands, and show in each what they showed in the one before.
exchange() {
    local other=$1
    start_engine user "$other" "$work/exchange"
    step="exchange with $other"
    podman import "$base_tar" localhost/base >>"$log"
    quietly podman run -d --name passed --pull=never localhost/base sleep 10000
    change_first
    quietly podman commit -q passed localhost/passed
    quietly podman create --name layered --pull=never localhost/passed true
    hand_over plyfs "$other-1"
    quietly podman start passed
    change_more
    quietly podman commit -q passed localhost/passed-on
    quietly podman create --name layered-more --pull=never localhost/passed-on true
    check_uppers
    hand_over "$other" "$other-2"
    quietly podman start passed
    case $other in
    kernel) expect overlay podman exec passed findmnt -rno FSTYPE / ;;
    *) expect "fuse.$other" podman exec passed findmnt -rno FSTYPE / ;;
    esac
    expect "again more" podman exec passed sh -c 'rm -r /srv/moved && mkdir /srv/moved && echo $(cat /etc/skel/again)'
    hand_over plyfs "$other-3"
    steps=$((steps + 3))
    convert_for "$other"
    step=
    stop_engine
}

change_first() {
    quietly podman exec passed sh -ec '
        echo appended >>/etc/profile; rm /etc/issue; rm -r /etc/cron.d /etc/logrotate.d
        rm -r /etc/skel; mkdir /etc/skel; echo again >/etc/skel/again
        mkdir -p /srv/a/b; echo new >/srv/a/b/new; ln /srv/a/b/new /srv/a/linked; ln -s b/new /srv/a/symbolic
        chown 12:34 /srv/a/b/new; chmod 2750 /srv/a/b; chmod 4755 /srv/a/b/new
        chown 5:6 /etc/debian_version; chmod 600 /etc/shells; mkfifo /srv/fifo
        setfattr -n user.colour -v green /srv/a/b; setfacl -m u:12:rw /srv/a/b/new
        mv /etc/terminfo /srv/terminfo; mv /etc/environment /etc/gone; truncate -s 10M /srv/sparse'
}

# What only renames of directories, and marks over marks, leave behind.
change_more() {
    quietly podman exec passed sh -ec '
        test ! -e /etc/issue; test "$(ls /etc/skel)" = again; test "$(getfattr --only-values -n user.colour /srv/a/b)" = green
        echo back >/etc/issue; mkdir /etc/cron.d; echo more >>/etc/skel/again; rm /etc/skel/again.none 2>/dev/null || true
        mv /usr/lib/gcc /srv/moved; rm -r "$(ls -d /srv/moved/*/*/include)"; echo in >/srv/moved/in
        mv /srv/a /srv/renamed; ln /srv/renamed/linked /srv/third; rm /srv/renamed/b/new
        mv /etc/apt /etc/apt.old; mkdir /etc/apt; mv /etc/apt.old/sources.list /etc/apt/
        rm -r /usr/share/zoneinfo; ln -s /nowhere /usr/share/zoneinfo'
}

# hand_over DRIVER NAME: from now on it mounts the store; what it shows of each container is what the last one showed.
hand_over() {
    local from=$driver container all
    results=$work/results/$from
    mkdir -p "$work/results/$from" "$work/results/$1"
    quietly podman stop -t 0 passed
    all=$(podman ps -a --format '{{.Names}}')
    [[ $all == *passed* ]] || die "$step: the containers are gone: $all"
    for container in $all; do keep_export "$container" "export-$container-$2"; done
    [[ $1 != kernel ]] || convert_layers
    use_driver "$1"
    results=$work/results/$1
    expect "$all" podman ps -a --format '{{.Names}}'
    for container in $all; do
        keep_export "$container" "export-$container-$2"
        python3 "$here/compare.py" "$here/known" "$from" "$1" "$work/results/$from/export-$container-$2" \
            "$work/results/$1/export-$container-$2" || die "$step: $container shows something else under $1 than under $from"
    done
}

# Where a program mounts the engine writes whiteouts of images as files, which the kernel shows as such.
convert_layers() {
    local layer
    for layer in "$data"/s/overlay/*/diff; do quietly in_store "$program" convert --to overlay "$layer"; done
    rm -f "$data/s/overlay/.has-mount-program"
}

# upper_of CONTAINER: where its upper is.
upper_of() { podman inspect -f '{{.GraphDriver.Data.UpperDir}}' "$1"; }
# in_store PROGRAM...: where the store's owners have the ids they have in a container.
in_store() { podman unshare "$@"; }

check_uppers() {
    local container all
    quietly podman stop -t 0 passed
    all=$(podman ps -a --format '{{.Names}}')
    [[ $all == *passed* ]] || die "$step: the containers are gone: $all"
    for container in $all; do
        quietly in_store "$program" check "$(upper_of "$container")"
    done
    quietly podman start passed
}

# convert_for OTHER: marks that only plyfs follows are made into what the other reads, and those into files and back.
convert_for() {
    local upper lowers=() lower
    use_driver plyfs redirect_dir=on
    quietly podman run -d --name marked --pull=never localhost/passed sleep 10000
    quietly podman exec marked sh -ec 'mv /usr/lib/gcc /srv/gcc; mv /srv/terminfo /srv/terms; rm /etc/profile; rm -r /etc/apt'
    quietly podman stop -t 0 marked
    keep_export marked "export-marked-$1"
    upper=$(upper_of marked)
    [[ -n $(in_store getfattr -d -m 'overlay.redirect' "$upper/srv/gcc") ]] || die "$step: the directory has no redirect"
    IFS=: read -ra lowers <<<"$(<"$upper/../lower")"
    for lower in "${!lowers[@]}"; do lowers[lower]=--lower=$data/s/overlay/${lowers[lower]}; done
    refused in_store "$program" convert --to aufs "$upper"
    quietly in_store "$program" convert --to overlay "${lowers[@]}" --work "$upper/../work" "$upper"
    quietly in_store "$program" check "$upper"
    same_under "$1"
    if [[ $1 == fuse-overlayfs ]]; then
        quietly in_store "$program" convert --to aufs "$upper"
        [[ -n $(in_store find "$upper/etc" -name '.wh.profile') ]] || die "$step: there is no whiteout file"
        same_under "$1"
    fi
    quietly in_store "$program" convert --to overlay "$upper"
    same_under plyfs
    steps=$((steps + 1))
}

# same_under DRIVER: it shows of the container `marked` what plyfs did.
same_under() {
    [[ $1 != kernel ]] || convert_layers
    use_driver "$1"
    results=$work/results/converted
    mkdir -p "$results"
    keep_export marked export-marked
    python3 "$here/compare.py" "$here/known" plyfs "$1" "$work/results/plyfs/export-marked-$other" "$results/export-marked" ||
        die "$step: after the conversion $1 shows something else"
}
