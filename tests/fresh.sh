#!/usr/bin/env bash
# The two commands of the README on a machine that has nothing but a Rust toolchain: Debian 12 in a
# directory, with the committed state of this checkout. Run it as `cargo xtask test fresh [--short]`,
# which names the toolchain and the cache; alone it needs root.
#
# Mounts are made in a mount namespace of their own, so that none survives this script however it ends.
set -euo pipefail

suite=bookworm
packages=git,gcc,libc6-dev,make,ca-certificates
base_version=1

say() { echo "fresh: $*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root; run it as: cargo xtask test fresh"
if [ "${GALEN_FRESH_NAMESPACE:-}" != "$$" ]; then
    # exec keeps the process id, so a value left in the environment by another run is not taken.
    GALEN_FRESH_NAMESPACE=$$ exec unshare --mount --propagation private bash "$0" "$@"
fi

short=
[ "${1:-}" = --short ] && short=1
checkout=$(cd "$(dirname "$0")/.." && pwd)
cache=${GALEN_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/galen}
toolchain=${GALEN_TOOLCHAIN:-$(rustc --print sysroot)}
cargo_home=${CARGO_HOME:-$HOME/.cargo}
[ -x "$toolchain/bin/cargo" ] || die "no toolchain at $toolchain; set GALEN_TOOLCHAIN to a directory with bin/cargo"
command -v debootstrap >/dev/null || die "debootstrap is missing; as root: apt-get install debootstrap"

mkdir -p "$cache"
root=$(mktemp -d "$cache/fresh.XXXXXX")
agent=
holder=
mounted() { awk -v root="$root" '$2 == root || index($2, root "/") == 1 { print $2 }' /proc/self/mounts; }
finish() {
    status=$?
    trap - EXIT
    for process in "$agent" "$holder"; do
        if [ -n "$process" ] && kill -0 "$process" 2>/dev/null; then kill -KILL "$process"; fi
    done
    # Only what was mounted at or below this root, innermost first; a lazy unmount would let rm reach the host.
    mounted | sort -r | while read -r place; do umount "$place" || say "still mounted: $place"; done
    if [ -n "$(mounted)" ]; then
        say "$root is left, since something is still mounted in it"
    else
        rm -rf --one-file-system "$root"
    fi
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# The host's own sources of Debian packages reach whatever mirror this network has.
debian_sources() {
    # Either of the two places may be missing, which is no failure.
    { grep -lsE "^[^#]*[ /]debian(-security)?(/| |$)" /etc/apt/sources.list /etc/apt/sources.list.d/* || true; } |
        while read -r file; do
            if grep -q "$suite" "$file"; then echo "$file"; fi
        done
}
mirror() {
    debian_sources | while read -r file; do cat "$file"; done |
        grep -vE '^ *#' | grep -oE '[a-z]+://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' '
}

make_base() {
    local mirror_url
    mirror_url=$(mirror || true)
    say "making the base of Debian $suite, a minute or two"
    # shellcheck disable=SC2086 # an empty mirror is no argument: debootstrap then takes its own
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" $mirror_url >"$cache/debootstrap.log" 2>&1 ||
        { tail -n 20 "$cache/debootstrap.log" >&2; die "debootstrap failed, as said above"; }
    rm -rf "$root"/var/cache/apt/archives/*.deb
    tar -C "$root" -cf "$base.new" . && mv "$base.new" "$base"
}

base=$cache/fresh-base-$suite-$base_version.tar
if [ -f "$base" ]; then
    say "unpacking the base from $base"
    tar -C "$root" -xpf "$base"
else
    make_base
fi

# Package sources, name resolution and certificates are the network's, not the machine's.
if [ -n "$(debian_sources)" ]; then
    rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
    debian_sources | while read -r file; do cp --parents "$file" "$root"; done
else
    own=$(sed -nE 's/^deb ([^ ]+) .*/\1/p' "$root/etc/apt/sources.list" | head -n 1)
    echo "deb ${own%/}-security $suite-security main" >>"$root/etc/apt/sources.list"
fi
for file in $(grep -lsE 'Acquire::' /etc/apt/apt.conf /etc/apt/apt.conf.d/*) /etc/apt/auth.conf.d/* \
    /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    if [ -f "$file" ]; then cp --parents -L "$file" "$root"; fi
done
mkdir -p "$root/root/.cargo"
for file in config.toml config credentials.toml; do
    if [ -f "$cargo_home/$file" ]; then cp "$cargo_home/$file" "$root/root/.cargo/"; fi
done

say "cloning what is committed in $checkout"
git -c safe.directory='*' -C "$checkout" diff --quiet HEAD -- || say "uncommitted changes are not tested"
commit=$(git -c safe.directory='*' -C "$checkout" rev-parse HEAD)
git -c safe.directory='*' clone --quiet --no-local "file://$(git -c safe.directory='*' -C "$checkout" rev-parse \
    --path-format=absolute --git-common-dir)" "$root/root/galen"
git -C "$root/root/galen" checkout --quiet --detach "$commit"

# A machine's root is a mount and open to all, which a folder that was just made is not.
chmod 755 "$root"
mount --bind "$root" "$root"
mkdir -p "$root/opt/rust"
mount --bind -o ro "$toolchain" "$root/opt/rust"
mount -o remount,bind,ro "$root/opt/rust"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"

# On a machine, the first process sees its mounts. Here that is a process of this namespace and root.
chroot "$root" sleep infinity &
holder=$!
until [ "$(readlink "/proc/$holder/root")" = "$root" ]; do
    kill -0 "$holder" || die "no process can be started in $root"
    sleep 0.1
done
mount --bind "$root/proc/$holder" "$root/proc/1"

inside() {
    # `exec` all the way: the process started here is the one that ends up as the agent.
    exec chroot "$root" /usr/bin/env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
        ${SSL_CERT_FILE:+SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt} \
        sh -c 'cd /root/galen && exec "$@"' sh "$@"
}

ready() {
    local line
    exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && IFS= read -r -t 5 line <&3
    exec 3>&-
    [[ ${line:-} == *' 200'* ]]
}

while port=$((20000 + RANDOM % 10000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
say "cargo xtask run -- --listen 127.0.0.1:$port"
inside cargo xtask run -- --listen "127.0.0.1:$port" >"$cache/fresh-agent.log" &
agent=$!
until ready 2>/dev/null; do
    kill -0 "$agent" 2>/dev/null || { tail -n 5 "$cache/fresh-agent.log" >&2; die "the agent ended before it was ready"; }
    [ "$SECONDS" -lt 2400 ] || die "the agent is not ready after 40 minutes"
    sleep 1
done
say "ready after $SECONDS s; stopping it"
kill -TERM "$agent"
wait "$agent" || die "the agent ended with status $? on SIGTERM"
agent=

if [ -n "$short" ]; then
    say "cargo xtask test unit"
    (inside cargo xtask test unit)
else
    say "cargo xtask test"
    (inside cargo xtask test)
fi
say "both commands work on a fresh machine ($SECONDS s)"
