# Sourced by scripts/suites/containers: the store on other file systems, as the ordinary user, on plyfs.

store_steps=(import change committed ids apt killed build save_load prune)
bare_steps=(import bare build prune)
masked_steps=(import masked build prune)

# on_store NAME: a short life of a store there. What it leaves is what a store on the usual file system leaves.
# `bare` is one without extended attributes, as some network file systems are; `masked` one with force_mask.
on_store() {
    local mask='' place=$work/$1 image=$work/$1.img began=$SECONDS list=("${store_steps[@]}") file
    mkdir -p "$place"
    case $1 in
    ext4) ;;
    masked) list=("${masked_steps[@]}") mask=0700 ;;
    tmpfs) mount -t tmpfs -o size=4G tmpfs "$place" ;;
    bare)
        list=("${bare_steps[@]}")
        mount -t ramfs ramfs "$place"
        ;;
    xfs | btrfs)
        truncate -s 6G "$image"
        "mkfs.$1" -q "$image" >>"$log"
        mount -o loop "$image" "$place"
        ;;
    esac
    start_engine user plyfs "$place"
    for step in "${list[@]}"; do
        printf '== %s %s\n' "$1" "$step" >>"$log"
        "step_$step"
        steps=$((steps + 1))
    done
    step=
    stop_engine
    if mountpoint -q "$place"; then umount "$place"; fi
    for file in "$results"/*; do
        [[ -e $work/results/user-plyfs/${file##*/} ]] || continue
        python3 "$here/compare.py" "$here/known" "$1" plyfs "$file" "$work/results/user-plyfs/${file##*/}" ||
            die "${file##*/} of a store on $1 differs"
    done
    echo "store on $1: $((SECONDS - began)) s"
}

# Owners, modes and types are those in the xattrs; outside every file is the user's own, with the mask for a mode.
step_masked() {
    local file
    quietly podman run --name masked --pull=never localhost/base sh -ec '
        echo appended >>/etc/profile && chown 12:34 /etc/shells && chmod 640 /etc/shells
        rm -r /etc/skel && mkdir /etc/skel && echo again >/etc/skel/again && chmod 750 /etc/skel
        chown 5:6 /srv && ln -s a /srv/symbolic && cp -a /etc/shells /srv/copy && mkfifo /tmp/fifo
        test "$(stat -c "%u:%g %a %F" /tmp/fifo)" = "0:0 644 fifo" && rm /tmp/fifo
        # Of an image the engine (4.3) keeps no such bits in its xattrs.
        mkdir /tmp/s && chown 3:4 /tmp/s && chmod 7711 /tmp/s && test "$(stat -c "%u:%g %a" /tmp/s)" = "3:4 7711" && rmdir /tmp/s
        test -z "$(getfattr -d -m - --absolute-names /etc/shells /etc/skel)"
        ! setfattr -n user.containers.override_stat -v 0:0:0777 /etc/profile 2>/dev/null'
    quietly podman commit -q masked localhost/masked
    expect "12:34 640 regular file 5:6 755 directory 0:0 750 directory 0:0 777 symbolic link" \
        box localhost/masked sh -c 'stat -c "%u:%g %a %F" /srv/copy /srv /etc/skel /srv/symbolic | xargs'
    # The container's, which plyfs wrote, and the image's, which the engine did.
    expect "plyfs-test 700 plyfs-test 700" engine sh -c "stat -c '%U %a' $data/s/overlay/*/diff/srv/copy | xargs"
    for file in "$data"/s/overlay/*/diff/srv/copy; do
        getfattr --only-values --absolute-names -n user.containers.override_stat "$file" && echo
    done | sort | keep masked
    expect "12:34:0640 12:34:0640:file" xargs -a "$results/masked"
}

# What works without attributes, and what the answer is to the rest.
step_bare() {
    quietly podman run --name bare --pull=never localhost/base sh -ec '
        echo appended >>/etc/profile && rm /etc/issue && rm -r /etc/apt
        rm -r /etc/skel && mkdir /etc/skel && echo again >/etc/skel/again
        mv /etc/terminfo /srv/terminfo && test -d /srv/terminfo && test ! -e /etc/terminfo
        chown 12:34 /etc/shells && mkfifo /srv/fifo && ln /etc/skel/again /srv/linked
        setfattr -n user.colour -v green /etc/profile 2>&1 | grep -q "Operation not supported"
        setfacl -m u:12:rw /etc/profile 2>&1 | grep -q "Operation not supported"
        su -s /bin/sh games -c "test -r /etc/profile && ! touch /etc/x 2>/dev/null"'
    expect "again" box_file bare /etc/skel/again
    quietly podman commit -q bare localhost/bare
    expect "12:34 again no no" box localhost/bare sh -c \
        'echo $(stat -c %u:%g /etc/shells) $(ls /etc/skel) $(test ! -e /etc/issue && echo no) $(test ! -e /etc/apt && echo no)'
}
