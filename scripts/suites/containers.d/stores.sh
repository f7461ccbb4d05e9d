# Sourced by scripts/suites/containers: the store on other file systems, as the ordinary user, on plyfs.

store_steps=(import change committed ids apt killed build save_load prune)
bare_steps=(import bare build prune)

# on_store NAME: a short life of a store there. What it leaves is what a store on the usual file system leaves.
# `bare` is one without extended attributes, as some network file systems are.
on_store() {
    local place=$work/$1 image=$work/$1.img began=$SECONDS list=("${store_steps[@]}") file
    mkdir -p "$place"
    case $1 in
    ext4) ;;
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
    if [[ $1 != ext4 ]]; then umount "$place"; fi
    for file in "$results"/*; do
        [[ -e $work/results/user-plyfs/${file##*/} ]] || continue
        python3 "$here/compare.py" "$here/known" "$1" plyfs "$file" "$work/results/user-plyfs/${file##*/}" ||
            die "${file##*/} of a store on $1 differs"
    done
    echo "store on $1: $((SECONDS - began)) s"
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
