# Sourced by scripts/suites/containers: steps that move images out and in, and the end of the store.

load_steps=(save_load prune)

step_save_load() {
    local format id
    id=$(podman inspect -f '{{.Id}}' localhost/changed)
    for format in docker-archive oci-archive; do
        quietly podman save --format "$format" -o "$run/tmp/$format.tar" localhost/changed
    done
    quietly podman rmi -f localhost/again localhost/changed
    for format in docker-archive oci-archive; do
        quietly podman load -i "$run/tmp/$format.tar"
        expect "$id" podman inspect -f '{{.Id}}' localhost/changed
        quietly podman create --name loaded --pull=never localhost/changed true
        keep_export loaded "export-loaded-$format"
        quietly podman rm loaded
        quietly podman rmi -f localhost/changed
    done
    cmp "$results/export-loaded-docker-archive" "$results/export-committed"
}

# At the end nothing is left: no process, no mount, no layer.
step_prune() {
    quietly podman rm -af -t 0
    expect "" podman ps -aq
    quietly podman system prune -af --volumes
    expect "" podman images -q
    expect "" engine find "$data/s/overlay" -mindepth 1 -maxdepth 1 ! -name l ! -name '.*' ! -name '*.lock'
    local tries
    for tries in {1..50}; do
        [[ -n $(daemons) ]] || break
        sleep 0.1
    done
    expect "" daemons
    expect "" engine find "$data/s/overlay/l" -mindepth 1
}
