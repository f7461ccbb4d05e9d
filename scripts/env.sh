# Sourced by the scripts: where tools and images are cached, and a PATH that finds them.

# Outside the repository, so that a fresh clone need not build and download them again.
if [[ $(id -u) == 0 ]]; then
    cache=${PLYFS_TEST_CACHE:-/var/cache/plyfs-test}
else
    cache=${PLYFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/plyfs-test}
fi
export PLYFS_TEST_CACHE=$cache
# An ordinary user's PATH on Debian lacks mkfs, unshare's neighbours and newuidmap's needs.
PATH=$cache/tools/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH LC_ALL=C.UTF-8
