# Sourced by scripts/suites/containers: what `mountopt` may say, as the engine hands it on.

options_steps=(options)

# with_mountopt OPTIONS COMMAND...: one command in a fresh container, whose mount has these options.
with_mountopt() {
    local status=0
    use_driver "$driver" "$1"
    box localhost/base "${@:2}" || status=$?
    use_driver "$driver"
    return $status
}

# What a program mounts; the kernel driver knows none of these.
step_options() {
    [[ $driver != kernel ]] || return 0
    {
        with_mountopt squash_to_root stat -c '%u:%g' /etc/shadow /etc
        with_mountopt squash_to_uid=5,squash_to_gid=6 sh -c 'touch /srv/new && stat -c "%u:%g" /etc/shadow /srv/new'
        with_mountopt static_nlink stat -c %h /usr
        with_mountopt nodev,nosuid,noatime,fsync=0,timeout=1,threaded=0,max_write=65536 sh -c 'echo x >>/etc/profile && tail -n 1 /etc/profile'
    } >"$work/options"
    # On fuse-overlayfs, too.
    expect "0:0 0:0 5:6 5:6 1 x" xargs -a "$work/options"
    [[ $driver == plyfs ]] || return 0
    local unsupported='Operation not supported'
    expect "$unsupported" with_mountopt noxattr sh -c 'setfattr -n user.a -v b /srv 2>&1 | sed "s/.*: //"'
    expect "$unsupported" with_mountopt noxattrs=1 sh -c 'setfattr -n user.a -v b /srv 2>&1 | sed "s/.*: //"'
    expect "$unsupported" with_mountopt noacl sh -c 'setfacl -m u:5:r /srv 2>&1 | sed "s/.*: //"'
    quietly with_mountopt ino32_t true
    expect "Invalid cross-device link" with_mountopt redirect_dir=off perl -e 'rename "/etc/terminfo", "/srv/t" or print $!'
    expect "12 README" with_mountopt metacopy=on sh -c \
        'chown 12 /usr/bin/perl && mv /etc/terminfo /srv/t && echo $(stat -c %u /usr/bin/perl) $(ls /srv/t) && perl -e 1'
    # An option that nobody knows is no silent nothing.
    refused with_mountopt no_such_option true
    grep -q 'no_such_option' "$log" || die "$who $driver: the sentence about the option is lost"
}
