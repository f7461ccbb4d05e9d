# Sourced by scripts/suites/containers: the store on other file systems, as the ordinary user, on plyfs.

# on_store NAME: a short life of a store there. `bare` takes neither extended attributes nor, from an ordinary user,
# any device node but a whiteout.
on_store() {
    local place=$work/$1 image=$work/$1.img began=$SECONDS
    mkdir -p "$place"
    case $1 in
    ext4) ;;
    tmpfs) mount -t tmpfs -o size=3G tmpfs "$place" ;;
    bare) mount -t ramfs ramfs "$place" ;;
    xfs | btrfs)
        truncate -s 4G "$image"
        "mkfs.$1" -q "$image"
        mount -o loop "$image" "$place"
        ;;
    esac
    start_engine user plyfs "$place"
    for step in "${store_steps[@]}"; do
        printf '== %s %s\n' "$1" "$step" >>"$log"
        "step_$step"
        steps=$((steps + 1))
    done
    step=
    stop_engine
    if [[ $1 != ext4 ]]; then umount "$place"; fi
    echo "store on $1: $((SECONDS - began)) s"
}
