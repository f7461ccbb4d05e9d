# Sourced by scripts/suites/containers: Docker, with its own daemon as root and rootless. It looks for fuse-overlayfs by
# that name.

docker_packages=(docker.io containerd rootlesskit)

# make_docker: Docker's programs in $docker_programs, unpacked and not installed, so that no service starts. Made once.
make_docker() {
    local place deb
    place=$cache/docker-$(. /etc/os-release && echo "$VERSION_CODENAME")
    docker_programs=$place/usr/sbin:$place/usr/bin
    [[ ! -e $place ]] || return 0
    rm -rf "$place.new"
    mkdir -p "$place.new/debs"
    (cd "$place.new/debs" && { apt-get -q download "${docker_packages[@]}" ||
        { apt-get -q update && apt-get -q download "${docker_packages[@]}"; }; }) >>"$log" 2>&1
    for deb in "$place.new"/debs/*.deb; do dpkg-deb -x "$deb" "$place.new"; done
    rm -r "$place.new/debs"
    chmod -R a+rX "$place.new"
    mv "$place.new" "$place"
}

docker() { engine docker -H "unix://$run/docker.sock" "$@"; }
# vessel WORDS...: one command in a fresh container.
vessel() { docker run --rm --network none "$@"; }

# start_docker WHO DRIVER: a daemon with an empty store.
start_docker() {
    local storage=fuse-overlayfs outside=() try
    # The directories of a store of podman's.
    start_engine "$1" "$2"
    results=$work/results/docker-$who-$driver
    mkdir -p "$results" "$work/bin-docker"
    ln -sf "$program" "$work/bin-docker/fuse-overlayfs"
    PATH=$docker_programs:$PATH
    case $driver in
    plyfs) PATH=$work/bin-docker:$PATH ;;
    kernel) storage=overlay2 ;;
    esac
    local daemon=(dockerd "--storage-driver=$storage" "--data-root=$data/docker" "--exec-root=$run/exec" "--pidfile=$run/docker.pid"
        "--host=unix://$run/docker.sock" --iptables=false --bridge=none --ip-forward=false --ip-masq=false)
    if [[ $who == user ]]; then
        # As Docker's own script for rootless mode does; the network is nobody's subject here.
        outside=(rootlesskit --net=host --copy-up=/etc --copy-up=/run --propagation=rslave "--state-dir=$run/rootlesskit"
            sh -c 'rm -f /run/docker /run/containerd /run/xtables.lock; exec "$@"' sh)
        daemon+=(--rootless)
    fi
    engine "${outside[@]}" "${daemon[@]}" >>"$log" &
    docker_job=$!
    for try in {1..150}; do
        docker info >/dev/null 2>&1 && break
        [[ $try != 150 ]] || die "$who $driver: the Docker daemon does not answer: $(tail -3 "$log")"
        sleep 0.2
    done
    [[ $(docker info -f '{{.Driver}}') == "$storage" ]] || die "Docker uses $(docker info -f '{{.Driver}}')"
}

stop_docker() {
    local pid=$run/docker.pid try
    [[ $who != user ]] || pid=$run/rootlesskit/child_pid
    [[ ! -s $pid ]] || kill "$(cat "$pid")" || true
    for try in {1..100}; do
        kill -0 "$docker_job" 2>/dev/null || break
        sleep 0.2
    done
    # The directory's name is in the command lines of all that is left.
    if kill -0 "$docker_job" 2>/dev/null; then pkill -KILL -f "$work/" || true; fi
    wait "$docker_job" || true
    docker_job=
}

docker_steps=(docker_change docker_build docker_many docker_prune)

step_docker_change() {
    docker import "$base_tar" base >>"$log"
    expect "0:0 755" vessel base stat -c '%u:%g %a' /etc
    expect 37 code vessel base sh -c 'exit 37'
    local type
    type=$(vessel base findmnt -rno FSTYPE /)
    [[ $driver == kernel && $type == overlay || $type == "fuse.$driver" ]] || die "$who $driver: the root is on $type"
    quietly docker run --name changed --network none base sh -ec '
        echo appended >>/etc/profile; rm /etc/issue; rm -r /etc/cron.d
        rm -r /etc/skel; mkdir /etc/skel; echo again >/etc/skel/again
        mkdir -p /srv/a/b; echo new >/srv/a/b/new; ln /srv/a/b/new /srv/a/linked; ln -s b/new /srv/a/symbolic
        chown 12:34 /srv/a/b/new; chmod 4755 /srv/a/b/new; chown 5:6 /etc/debian_version; mkfifo /srv/fifo
        mv /etc/terminfo /srv/terminfo; echo in >/srv/terminfo/in'
    docker diff changed | sort | keep diff-changed
    docker export changed | keep_tar export-changed
    quietly docker commit changed changed
    docker diff changed >>"$log"
    expect "again 12:34 in" vessel changed sh -c 'echo $(cat /etc/skel/again) $(stat -c %u:%g /srv/a/linked) $(cat /srv/terminfo/in)'
    quietly docker save -o "$run/tmp/changed.tar" changed
    quietly docker rm changed
    quietly docker rmi changed
    quietly docker load -i "$run/tmp/changed.tar"
    quietly docker create --name loaded --network none changed true
    docker export loaded | keep_tar export-loaded
    engine sh -c "echo copied >$run/tmp/copied"
    quietly docker cp "$run/tmp/copied" loaded:/etc/copied
    expect copied engine sh -c "docker -H unix://$run/docker.sock cp loaded:/etc/copied - | tar -xO"
    quietly docker rm loaded
}

step_docker_build() {
    local context=$run/tmp/docker
    engine mkdir -p "$context"
    engine sh -c "cat >$context/main.c && cat >$context/Dockerfile <<'END'
FROM base AS build
WORKDIR /project
COPY main.c .
RUN gcc -O1 -static -o hello main.c && rm -r /usr/share/zoneinfo && mv /usr/lib/gcc /srv/gcc
FROM scratch
COPY --from=build --chown=7:8 /project/hello /bin/hello
ENTRYPOINT [\"/bin/hello\"]
END
" <<'END'
#include <stdio.h>
int main(void) { puts("hello"); return 0; }
END
    local build=(engine env DOCKER_BUILDKIT=0 docker -H "unix://$run/docker.sock" build --network none -t hello "$context")
    quietly "${build[@]}"
    expect hello vessel hello
    "${build[@]}" >"$work/again"
    [[ $(grep -c 'Using cache' "$work/again") == 5 ]] || die "$who $driver: the cache was not used: $(cat "$work/again")"
    quietly docker create --name hello --network none hello
    docker export hello | keep_tar export-hello
    quietly docker rm hello
}

step_docker_many() {
    local i got jobs=()
    for i in {1..10}; do
        vessel base sh -c "echo $i >>/etc/profile && rm -r /etc/apt && tail -n 1 /etc/profile" >"$run/tmp/many.$i" &
        jobs[i]=$!
    done
    wait "${jobs[@]}"
    got=$(sort -n "$run"/tmp/many.* | xargs)
    [[ $got == "$(seq 10 | xargs)" ]] || die "10 at once printed: $got"
    quietly docker run -d --name runs --network none base sleep 1000
    expect "" docker exec runs sh -c 'echo from exec >/srv/exec'
    quietly docker kill runs
    quietly docker start runs
    expect "from exec" docker exec runs cat /srv/exec
    [[ $driver == kernel || -n $(daemons) ]] || die "no process serves the container"
    quietly docker rm -f runs
}

step_docker_prune() {
    quietly docker system prune -af
    quietly docker rmi base || true
    expect "" docker images -q
    expect "" docker ps -aq
    expect "" daemons
}

# docker_scenario WHO DRIVER: every step.
docker_scenario() {
    local path=$PATH started=$SECONDS
    start_docker "$1" "$2"
    for step in "${docker_steps[@]}"; do
        printf '== docker %s %s %s\n' "$1" "$2" "$step" >>"$log"
        "step_$step"
        steps=$((steps + 1))
    done
    step=
    stop_docker
    PATH=$path
    echo "Docker of $1, $2: $((SECONDS - started)) s"
}
