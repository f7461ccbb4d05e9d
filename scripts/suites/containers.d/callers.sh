# Sourced by scripts/suites/containers: the other programs that call by a name, without those programs.

callers_steps=(callers)

# What Docker and containerd ask first, what containerd's snapshotter runs, and mount(8) by hand and from fstab.
step_callers() {
    [[ $driver == plyfs ]] || return 0
    local names=$work/bin-docker place=$run/tmp/callers
    engine mkdir -p "$place"/{a,b,upper,work,view}
    engine sh -c "echo a >$place/a/f; echo b >$place/b/g"
    mkdir -p "$names"
    ln -sf "$program" "$names/fuse-overlayfs"
    engine "$names/fuse-overlayfs" --version | grep -qE '^fuse-overlayfs: version 1\.[0-9]+' || die "the version is not what callers compare"
    engine "$names/fuse-overlayfs" --help | grep -q lowerdir || die "--help says nothing of lowerdir"
    [[ $who == root ]] || return 0
    local layers=lowerdir=$place/a:$place/b,upperdir=$place/upper,workdir=$place/work
    echo "layers $place/view fuse.plyfs noauto,$layers 0 0" >"$place/fstab"
    # Mount(8) looks in a search path of its own.
    unshare -m --propagation private sh -ec '
        place=$1 layers=$2 names=$3
        view() {
            test "$(findmnt -rno FSTYPE "$place/view")" = fuse.plyfs && test "$(ls "$place/view" | xargs)" = "f g"
            echo more >>"$place/view/g" && umount "$place/view"
        }
        PATH=$names:$PATH mount.fuse3 overlay "$place/view" -o "$layers" -t fuse-overlayfs && view
        mount -t tmpfs -o mode=755 programs /usr/local/bin
        cp "$4" /usr/local/bin/plyfs
        mount -t fuse.plyfs layers "$place/view" -o "$layers" && view
        mount --fstab "$place/fstab" "$place/view" && view
        ' sh "$place" "$layers" "$names" "$program"
    expect "b more more more" xargs -a "$place/upper/g"
}
