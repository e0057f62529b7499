#!/bin/sh
# static-iptables.sh FOLDER: builds a small static iptables from the
# distribution's source package. FOLDER gets the program, its licence and its
# source as it was downloaded. The machine's apt is left as it is.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)

# Where configure can live with the path, and apt's own user may read.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$work"

# The machine's own package sources, keys and proxies, read as deb-src.
mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial"
list='' parts=''
eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
for file in "$list" "$parts"/*.list "$parts"/*.sources; do
    [ -r "$file" ] || continue
    sed -e '/^[[:space:]]*deb-src[[:space:]]/d' -e '/cdrom:/d' \
        -e 's/^[[:space:]]*deb[[:space:]]/deb-src /' -e 's/^[Tt]ypes:.*/Types: deb-src/' \
        "$file" >"$work/sources/${file##*/}"
done
cat >"$work/apt.conf" <<EOF
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$work/sources";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
APT::Get::AllowUnauthenticated "false";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF

cd "$work"
# One repository that fails may not be the one that has iptables.
apt-get -c apt.conf -qq update </dev/null || echo 'apt-get update failed in part' >&2
apt-get -c apt.conf -qq source iptables </dev/null >source.log 2>&1 || {
    cat source.log >&2
    echo "no source package of iptables from this machine's package sources" >&2
    exit 1
}
version=$(sed -n 's/^Version: //p' iptables_*.dsc)
source=$(find "$work" -maxdepth 1 -type d -name "iptables-*")

# What the filter table may hold beside what tcpparser writes: all targets, so
# that `iptables -S` goes on at rules of others, and their usual matches.
# Other matches are listed by name (iptables-unknown-match.c).
wanted='standard comment addrtype set conntrack tcp
    udp icmp icmp6 multiport limit mark mac pkttype
    REJECT LOG NFLOG NFQUEUE MARK CONNMARK SET TCPMSS TEE AUDIT SYNPROXY
    CLASSIFY CLUSTERIP IDLETIMER LED RATEEST'
extensions() {
    for name in $wanted; do
        [ ! -e "$source/extensions/lib$1_$name.c" ] || printf '%s ' "$name"
    done
}

# musl-gcc does not look where the kernel's headers are.
mkdir headers build
ln -s /usr/include/linux /usr/include/asm-generic headers/
asm=/usr/include/$(gcc -print-multiarch)/asm
[ -d "$asm" ] || asm=/usr/include/asm
ln -s "$asm" headers/asm

cd build
unset MAKEFLAGS MAKEOVERRIDES
{
    "$source/configure" --prefix=/usr --enable-static --disable-shared --disable-nftables \
        --disable-connlabel --disable-devel CC=musl-gcc PKG_CONFIG=false \
        CPPFLAGS="-I$work/headers" LDFLAGS=-static \
        CFLAGS="-Os -fno-pie -ffunction-sections -fdata-sections -fno-unwind-tables \
            -fno-asynchronous-unwind-tables -ffile-prefix-map=$work=." &&
        musl-gcc -Os -fno-pie -I../headers -Iinclude -I"$source/include" \
            -c "$here/iptables-unknown-match.c" -o unknown-match.o &&
        make -j"$(getconf _NPROCESSORS_ONLN)" \
            LDFLAGS="-all-static -Wl,--gc-sections,--build-id=none,-z,noseparate-code \
                -Wl,--wrap=xtables_find_match,$work/build/unknown-match.o" \
            pfx_build_mod="$(extensions xt)" \
            pf4_build_mod="$(extensions ipt)" pf6_build_mod="$(extensions ip6t)"
} >../build.log 2>&1 || {
    tail -n 30 ../build.log >&2
    exit 1
}
strip -s -R .comment iptables/xtables-legacy-multi
iptables/xtables-legacy-multi iptables -V >/dev/null

cd ..
rm -rf "$folder/source"
mkdir "$folder/source"
cp iptables_*.* "$folder/source"
cp "$source/COPYING" "$folder/COPYING"
echo "$version" >"$folder/version"
mv build/iptables/xtables-legacy-multi "$folder/xtables-legacy-multi"
