# Sourced by scripts/suites/containers: steps that build images.

build_steps=(build buildah)

# A project: its build needs the compiler and packages of the base image, its result only what it copies.
step_build() {
    local context=$run/tmp/project
    engine mkdir -p "$context/src"
    engine sh -c "cat >$context/src/main.c" <<'END'
#include <stdio.h>
#include <zlib.h>
int main(void) { printf("%s %d\n", WORD, (int)(compressBound(100) > 100)); return 0; }
END
    engine sh -c "cat >$context/Dockerfile" <<'END'
FROM localhost/base AS build
RUN apt-config dump >/dev/null && dpkg -s zlib1g-dev >/dev/null && rm -r /usr/share/zoneinfo
WORKDIR /project
COPY src src
RUN gcc -O1 -DWORD='"hello"' -static -o hello src/main.c -lz && mkdir -p root/bin && cp /bin/busybox root/bin/
RUN mv root rooted && chown -R 3:4 rooted/bin && ls -la rooted

FROM scratch
COPY --from=build /project/rooted/ /
COPY --from=build --chown=7:8 /project/hello /bin/hello
RUN ["/bin/busybox", "--install", "/bin"]
RUN mkdir -p /etc/deep /tmp && echo 1 >/etc/deep/one && echo 2 >/etc/two
RUN rm -r /etc/deep && mkdir /etc/deep && mv /etc/two /etc/deep/three
ENTRYPOINT ["/bin/hello"]
END
    podman build --layers -t localhost/hello "$context" >"$work/first"
    expect "hello 1" box localhost/hello
    box --entrypoint /bin/ls localhost/hello /etc/deep | keep ls-hello
    [[ $driver == fuse-overlayfs ]] || expect "three" xargs -a "$results/ls-hello"
    expect "7:8" box --entrypoint /bin/stat localhost/hello -c %u:%g /bin/hello
    podman build --layers -t localhost/hello:again "$context" >"$work/second"
    [[ $(grep -c 'Using cache' "$work/second") == "$(grep -cE '^(\[|STEP).*(RUN|COPY|WORKDIR|ENTRYPOINT)' "$work/second")" ]] ||
        die "the second build did not come from the cache: $(cat "$work/second")"
    engine sed -i 's/%s %d/%s again %d/' "$context/src/main.c"
    podman build --layers -t localhost/hello:changed "$context" >"$work/third"
    grep -q 'Using cache' "$work/third" || die "a change of the sources threw everything away"
    expect "hello again 1" box localhost/hello:changed
    podman history --format '{{.CreatedBy}}' localhost/hello | keep history-hello
    quietly podman create --name hello localhost/hello
    keep_export hello export-hello
    keep_diff localhost/hello diff-hello
    quietly podman rm hello
}

step_buildah() {
    local container
    container=$(buildah from --pull-never localhost/base)
    quietly buildah run "$container" -- sh -c 'echo built >/srv/built && rm -r /etc/apt && mv /etc/skel /srv/skel'
    quietly buildah copy --chown 9:10 "$container" "$run/tmp/project" /srv/project
    quietly buildah config --cmd "cat /srv/built" "$container"
    quietly buildah commit "$container" localhost/built
    expect "built" box localhost/built
    expect "9:10" box localhost/built stat -c %u:%g /srv/project/Dockerfile
    quietly podman create --name built localhost/built
    keep_export built export-built
    keep_diff localhost/built diff-built
    quietly podman rm built
    quietly buildah rm "$container"
}
