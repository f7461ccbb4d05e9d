# Sourced by scripts/suites/containers: steps that run containers.

run_steps=(import change committed copy_files exec ids read_only volumes overlay_volumes image_mount apt sqlite many killed
    daemon_killed)

# box WORDS...: one command in a fresh container.
box() { podman run --rm --pull=never "$@"; }
# box_file CONTAINER PATH: the content of a file in a container, which need not run.
box_file() { podman cp "$1:$2" - | tar -xO; }
# code COMMAND...: its exit code.
code() { local status=0; "$@" >>"$log" || status=$?; echo "$status"; }

step_import() {
    podman import "$base_tar" localhost/base | keep base-id
    local uses
    uses=$(podman info -f '{{.Store.GraphDriverName}} {{.Store.GraphOptions}}')
    case $driver in
    plyfs) [[ $uses == *"$program"* ]] ;;
    fuse-overlayfs) [[ $uses == *fuse-overlayfs* ]] ;;
    kernel) [[ $uses == overlay* && $uses != *mount_program* ]] ;;
    esac || die "the engine does not use $driver: $uses"
    expect "0:0 755" box localhost/base stat -c '%u:%g %a' /etc
    expect 37 code box localhost/base sh -c 'exit 37'
    expect 127 code box localhost/base /no/such/program
    box localhost/base findmnt -rno FSTYPE / >"$work/type" || true
    case $driver in
    kernel) grep -qx overlay "$work/type" ;;
    *) grep -qx "fuse.$driver" "$work/type" ;;
    esac || die "the container's root is on $(cat "$work/type"), not on $driver"
}

# Everything a program may do to an image's files, by one container that is kept.
step_change() {
    quietly podman run --name changed --pull=never localhost/base sh -ec '
        echo appended >>/etc/profile
        rm /etc/issue && rm -r /etc/cron.d /usr/share/bash-completion 2>/dev/null || true
        rm -r /etc/skel && mkdir /etc/skel && echo again >/etc/skel/again
        mkdir -p /srv/a/b && echo new >/srv/a/b/new && ln /srv/a/b/new /srv/a/linked && ln -s b/new /srv/a/symbolic
        chown 12:34 /srv/a/b/new && chmod 2750 /srv/a/b && chmod 4755 /srv/a/b/new
        chown 5:6 /etc/debian_version && chmod 600 /etc/shells
        mkfifo /srv/fifo
        setfattr -n user.colour -v green /srv/a/b && setfattr -n user.shape -v round /etc/passwd
        setfacl -m u:12:rw /srv/a/b/new
        mv /etc/hosts.allow /etc/gone 2>/dev/null || mv /etc/environment /etc/gone
        mv /etc/terminfo /srv/terminfo && echo in >/srv/terminfo/in
        mv /srv/terminfo /srv/moved
        truncate -s 10M /srv/sparse
        touch "/srv/a name with \"quotes\" and	tab"
        exec 3<>/srv/unlinked && rm /srv/unlinked && echo unlinked >&3
        test "$(cat /srv/moved/in)" = in && test ! -e /etc/terminfo'
    keep_diff changed diff-changed
    keep_export changed export-changed
}

step_committed() {
    quietly podman commit -q changed localhost/changed
    keep_diff localhost/changed diff-committed
    quietly podman create --name from-committed --pull=never localhost/changed true
    keep_export from-committed export-committed
    expect "again" box localhost/changed ls /etc/skel
    expect "green" box localhost/changed getfattr --only-values -n user.colour /srv/a/b
    expect "12:34 4775" box localhost/changed stat -c '%u:%g %a' /srv/a/linked
    # A second layer on the first, which takes back what that did.
    quietly podman run --name again --pull=never localhost/changed sh -ec \
        'rm -r /srv/a /srv/moved && mkdir /srv/a && echo "second" >/etc/issue && rm -r /etc/skel'
    quietly podman commit -q again localhost/again
    keep_diff localhost/again diff-again
    expect "/srv/a
/srv/fifo
/srv/sparse" box localhost/again sh -c 'ls -d /srv/[a-l]* /srv/moved /srv/s* 2>/dev/null | grep -v quotes'
    quietly podman rm -f again from-committed
}

step_copy_files() {
    local into=$run/tmp/into out=$run/tmp/out
    engine mkdir -p "$into/deep/er" "$out"
    engine sh -c "echo copied >$into/deep/er/file && ln -s er/file $into/deep/symbolic"
    # Into and out of a container that does not run, which the engine mounts for it, and one that does.
    quietly podman create --name copies --pull=never localhost/base sleep 1000
    quietly podman cp "$into/deep" copies:/srv/deep
    quietly podman start copies
    quietly podman cp "$into/deep/er/file" copies:/etc/copied
    expect "copied" podman exec copies cat /srv/deep/symbolic
    expect "0:0" podman exec copies stat -c %u:%g /etc/copied
    quietly podman cp copies:/etc/apt "$out/apt"
    podman cp copies:/srv/deep - | keep_tar copied-out
    [[ -s $out/apt/sources.list ]] || die "cp: no /etc/apt/sources.list came out"
    keep_diff copies diff-copies
    quietly podman rm -f -t 0 copies
}

step_exec() {
    quietly podman run -d --name runs --pull=never localhost/base sleep 1000
    expect "" podman exec runs sh -c 'echo from exec >/srv/exec; useradd -u 1234 somebody'
    expect "from exec" podman exec runs cat /srv/exec
    expect 1234 podman exec -u somebody runs id -u
    expect 2 code podman exec -u somebody runs sh -c 'echo x >>/srv/exec'
    expect 5 code podman exec runs sh -c 'exit 5'
    quietly podman stop -t 0 runs
    # What it wrote is there when it is started again.
    quietly podman start runs
    expect "from exec" podman exec runs cat /srv/exec
    keep_diff runs diff-runs
    quietly podman rm -f -t 0 runs
}

# Ids inside that are not those outside: the user's own kept, or all of them shifted.
step_ids() {
    # Runc in Debian's podman of root cannot open the container's files through any mount program, fuse-overlayfs
    # included, once ids are shifted: "permission denied" for /etc/hosts.
    [[ $who == user ]] || return 0
    expect "$(id -u plyfs-test)" box --userns=keep-id localhost/base id -u
    engine mkdir -p "$run/tmp/mine"
    quietly box --userns=keep-id -v "$run/tmp/mine:/mine" localhost/base sh -c 'echo >/mine/file'
    expect plyfs-test stat -c %U "$run/tmp/mine/file"
    quietly podman run --name kept --userns=keep-id --user 0 --pull=never localhost/base sh -ec \
        'test "$(stat -c %u:%g /etc/passwd /etc/shadow | xargs)" = "0:0 0:42"
        echo x >>/etc/profile; chown 7:8 /etc/shells; su -s /bin/sh games -c "touch /tmp/games"'
    keep_diff kept diff-kept
    keep_export kept export-kept
    local shift=(--uidmap 0:1:5000 --gidmap 0:1:5000)
    quietly podman run --name shifted "${shift[@]}" --pull=never localhost/base sh -ec \
        'test "$(stat -c %u:%g /etc/passwd /etc/shadow | xargs)" = "0:0 0:42"
        echo x >>/etc/profile; chown 7:8 /etc/shells; touch /srv/new; chown 4000:4001 /srv/new
        ! chown 6000 /srv/new'
    keep_diff shifted diff-shifted
    keep_export shifted export-shifted
    # The image made of it has the ids of the inside.
    quietly podman commit -q shifted localhost/shifted
    expect "4000:4001 7:8" box localhost/shifted sh -c 'echo $(stat -c %u:%g /srv/new /etc/shells)'
}

step_read_only() {
    expect "no yes" box --read-only localhost/base sh -c \
        'touch /etc/x 2>/dev/null && echo written; (: >>/etc/passwd) 2>/dev/null && echo written
        ! rm /etc/issue 2>/dev/null && touch /tmp/x && echo no yes'
    expect "Read-only file system" box --read-only localhost/base sh -c 'touch /etc/x 2>&1 | sed "s/.*: //"'
    expect "Debian" box --read-only --read-only-tmpfs=false localhost/base sed -n 's/^NAME="\([A-Za-z]*\).*/\1/p' /etc/os-release
}

# Mounts inside the merged view.
step_volumes() {
    local host=$run/tmp/volume
    engine mkdir -p "$host/dir"
    engine sh -c "echo outside >$host/dir/file; echo one >$host/single"
    quietly podman volume create named
    # A new volume receives what the image has there; a bind mount hides it; files can be mounted, too.
    quietly podman run --name volumes --pull=never -v named:/etc/apt -v "$host/dir:/usr/share/base-files" \
        -v "$host/single:/etc/issue" -v "$host/dir:/made/for/it:ro" --tmpfs /var/log localhost/base sh -ec \
        'test -s /etc/apt/sources.list && echo changed >/etc/apt/new
        test "$(ls /usr/share/base-files)" = file && echo inside >>/usr/share/base-files/file
        test "$(cat /etc/issue)" = one && echo two >>/etc/issue
        ! mv /usr/share/base-files /srv 2>/dev/null && ! mv /etc/issue /etc/moved 2>/dev/null
        test -z "$(ls /var/log)" && test ! -w /made/for/it/file || ! touch /made/for/it/x 2>/dev/null'
    expect "outside inside" xargs -a "$host/dir/file"
    expect "two" engine sed -n 2p "$host/single"
    expect "changed" box -v named:/v localhost/base cat /v/new
    keep_diff volumes diff-volumes
    quietly podman rm -v volumes
    quietly podman volume rm named
}

# Volumes that are overlays: the engine mounts them by itself, with options of its own.
step_overlay_volumes() {
    local host=$run/tmp/overlaid
    engine mkdir -p "$host/dir" "$host.upper" "$host.work"
    engine sh -c "echo outside >$host/file"
    expect "outside inside" box -v "$host:/vol:O" localhost/base sh -ec \
        'echo inside >>/vol/file && touch /vol/new && rm -r /vol/dir && xargs </vol/file'
    expect "dir file" xargs <<<"$(ls "$host")"
    expect "outside" cat "$host/file"
    quietly box -v "$host:/vol:O,upperdir=$host.upper,workdir=$host.work" localhost/base sh -c 'echo kept >/vol/kept'
    expect "kept" cat "$host.upper/kept"
    printf 'FROM localhost/base\nRUN echo built >>/vol/file && cp /vol/file /srv/file\n' >"$work/in/overlaid"
    quietly podman build -v "$host:/vol:O" -t localhost/overlaid -f "$work/in/overlaid" "$host"
    expect "outside built" box localhost/overlaid xargs -a /srv/file
    expect "outside" cat "$host/file"
    quietly podman rmi -f localhost/overlaid
}

step_image_mount() {
    local namespace=()
    if [[ $who == user ]]; then namespace=(podman unshare); fi
    [[ $who == user ]] || namespace=(engine)
    "${namespace[@]}" sh -ec '
        m=$(podman image mount localhost/changed)
        test "$(cat $m/etc/skel/again)" = again && test ! -e $m/etc/issue && test "$(stat -c %u $m/etc/debian_version)" = 5
        ! touch $m/x 2>/dev/null
        cd $m && find . -mindepth 1 -printf "%p %y %m %U:%G %l\n" | sort
        cd / && podman image unmount localhost/changed >/dev/null' | keep image-mount
    # A container that does not run.
    "${namespace[@]}" sh -ec '
        m=$(podman mount changed)
        echo "by hand" >$m/srv/by-hand && test "$(stat -c %a $m/srv/a/b)" = 2750
        podman umount changed >/dev/null'
    expect "by hand" box_file changed /srv/by-hand
}

# Packages with conffiles, maintainer scripts and a setgid program, from files: the network is nobody's subject here.
step_apt() {
    quietly podman run --name apt --pull=never -v "$debs:/debs:ro" -e DEBIAN_FRONTEND=noninteractive localhost/base sh -ec \
        'apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends /debs/*.deb
        dpkg --audit && test "$(stat -c "%a %G" /usr/bin/crontab)" = "2755 crontab"
        apt-get purge -qq -y cron && test ! -e /etc/default/cron
        # What holds the time of the run.
        rm -r /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache /var/log/apt /var/log/dpkg.log'
    keep_diff apt diff-apt
    keep_export apt export-apt
    if [[ $long == 1 ]]; then
        quietly box --network=host -e DEBIAN_FRONTEND=noninteractive -v /etc/apt/apt.conf.d:/host:ro localhost/base sh -ec \
            'cat /host/*proxy* >/etc/apt/apt.conf.d/99proxy 2>/dev/null || true
            apt-get update -q && apt-get install -q -y --no-install-recommends less && dpkg --verify less'
    fi
}

step_sqlite() {
    local rows
    rows=$(box localhost/base sh -ec '
        cd /srv && sqlite3 data.db "PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER PRIMARY KEY, text)" >/dev/null
        for writer in 1 2 3; do
            for i in $(seq 100); do echo "PRAGMA busy_timeout=60000; INSERT INTO t(text) VALUES (\"$writer-$i\");"; done |
                sqlite3 data.db >/dev/null &
        done
        wait
        sqlite3 data.db "SELECT count(*), count(DISTINCT text) FROM t; PRAGMA integrity_check"' | xargs)
    [[ $rows == "300|300 ok" ]] || die "sqlite: $rows"
}

step_many() {
    local i got
    for i in {1..20}; do
        box localhost/base sh -c "echo $i >>/etc/profile && rm -r /etc/apt && tail -n 1 /etc/profile" >"$run/tmp/many.$i" &
    done
    wait
    got=$(sort -n "$run"/tmp/many.* | xargs)
    [[ $got == "$(seq 20 | xargs)" ]] || die "20 at once printed: $got"
}

# Killed while it writes: what it wrote is a beginning of what it meant to write, and the container starts again.
step_killed() {
    local writes='i=$(wc -l </srv/log 2>/dev/null || echo 0); while :; do i=$((i + 1)); echo $i >>/srv/log; cp /etc/passwd /etc/p.new; mv /etc/p.new /etc/passwd; done'
    quietly podman run -d --name writes --pull=never localhost/base sh -c "$writes"
    sleep 1
    quietly podman kill -s KILL writes
    quietly podman wait writes
    quietly podman start writes
    sleep 0.5
    expect "root:x:0:0:root:/root:/bin/bash" podman exec writes head -n 1 /etc/passwd
    kill -KILL "$(podman inspect -f '{{.State.Pid}}' writes)"
    quietly podman wait writes
    box_file writes /srv/log >"$work/lines"
    [[ -s $work/lines ]] && seq "$(wc -l <"$work/lines")" | cmp - "$work/lines" || die "lines are missing or torn"
    quietly podman rm -f -t 0 writes
}

# The daemon of a mount is killed: the container fails, the engine can remove it, and the upper is whole.
step_daemon_killed() {
    [[ $driver == plyfs ]] || return 0
    local pid before
    before=$(daemons)
    quietly podman run -d --name orphan --pull=never localhost/base sh -c 'echo before >/srv/before; sleep 1000'
    until podman exec orphan test -s /srv/before; do sleep 0.1; done
    pid=$(comm -13 <(sort <<<"$before") <(daemons | sort))
    [[ -n $pid ]] || die "no process serves the container"
    # shellcheck disable=SC2086
    kill -KILL $pid
    refused podman exec orphan cat /srv/before
    quietly podman kill orphan || true
    quietly podman stop -t 0 orphan || true
    quietly podman start orphan
    expect "before" podman exec orphan cat /srv/before
    quietly podman rm -f -t 0 orphan
}
