# Sourced by scripts/suites/containers: the store on other file systems.
on_store() { die "not yet: $1"; }
