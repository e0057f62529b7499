#!/bin/sh
# package.sh tarball|wheel: makes the release files of one kind in $OUT/dist,
# for all of $ARCHITECTURES or none. `make dist` and `make wheel` run it.
#
# Their bytes depend on the source, its revision, the time of its commit and the
# version of rustc, not on the folder or the machine: rust-lld, which comes with
# rustc, links them all, so that no architecture is a foreign one. Wheels also
# need python3 with pip.
#
# To check a release without git, set TCPPARSER_REVISION to the last word of
# `tcpparser --version` and SOURCE_DATE_EPOCH to what `date -r tcpparser +%s`
# prints in the unpacked tarball. ARCHITECTURES='x86_64 aarch64' leaves out what
# rustup does not have.
set -eu
umask 022
export LC_ALL=C
cd "$(dirname "$0")/.."

kind=${1:-}
: "${SOURCE_DATE_EPOCH:?is set by make}"
architectures=${ARCHITECTURES:-x86_64 i686 aarch64}
out=${OUT:-target}
work=$out/package
new=$work/$kind

fail() {
    echo "$*" >&2
    exit 1
}

of_cargo_toml() { sed -n "s/^$1 = \"\(.*\)\"\$/\1/p" Cargo.toml | head -n 1; }

# As build.rs finds the revision, and whether that is all there is to it.
describe_source() {
    if [ -e .git ] && command -v git >/dev/null; then
        head=$(git rev-parse --short=12 HEAD)
        changes=$(git status --porcelain)
        [ -z "$changes" ] || head=$head-dirty
    else
        head=unknown
    fi
    export TCPPARSER_REVISION="${TCPPARSER_REVISION:-$head}"
    version=$(of_cargo_toml version)
    echo "tcpparser $version, revision $TCPPARSER_REVISION"
}

program() { echo "$work/build/$1-unknown-linux-musl/release/tcpparser"; }

has_target() { [ -d "$(rustc --print target-libdir --target "$1")" ]; }

without() { echo "$architectures" | tr ' ' '\n' | grep -vx "$1" | xargs; }

build() {
    bin=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
    [ -x "$bin/rust-lld" ] || command -v rust-lld >/dev/null ||
        fail 'rust-lld is missing: install Rust from https://rustup.rs'
    set --
    for architecture in $architectures; do
        target=$architecture-unknown-linux-musl
        has_target "$target" || rustup target add "$target" || true
        has_target "$target" ||
            fail "Rust's target $target is missing: rustup target add $target (https://rustup.rs)," \
                "or leave it out: ARCHITECTURES='$(without "$architecture")'"
        set -- "$@" --target "$target" --config "target.$target.linker = 'rust-lld'"
    done
    cargo build --release --locked --target-dir "$work/build" "$@"
}

# What a user of the program needs of dist/: not what takes the source.
pack_tarball() {
    name=tcpparser-$version-$1-linux-musl
    mkdir "$new/$name"
    cp -R "$(program "$1")" LICENSE README.md dist/* "$new/$name"
    (cd "$new/$name" && rm package.sh image.sh ./*.test.yml)
    tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        --mtime="@$SOURCE_DATE_EPOCH" -C "$new" -cf "$new/$name.tar" "$name"
    gzip -9n "$new/$name.tar"
    rm -r "${new:?}/$name"
}

# https://packaging.python.org/specifications/binary-distribution-format
# A static program runs with any libc: manylinux2014 (PEP 599) is the older name
# of manylinux_2_17 (PEP 600), musllinux (PEP 656) is Alpine and the like.
# `wheel pack` adds RECORD and names the file after the tags.
pack_wheel() {
    tree=$new/$1
    name=tcpparser-$version
    info=$tree/$name.dist-info
    mkdir -p "$tree/$name.data/scripts" "$info/licenses"
    install -m 755 "$(program "$1")" "$tree/$name.data/scripts/tcpparser"
    install -m 644 LICENSE "$info/licenses/LICENSE"
    {
        printf '%s\n' 'Wheel-Version: 1.0' 'Generator: tcpparser' 'Root-Is-Purelib: false'
        printf "Tag: py3-none-%s_$1\n" manylinux_2_17 manylinux2014 musllinux_1_1
    } >"$info/WHEEL"
    {
        printf '%s\n' 'Metadata-Version: 2.4' 'Name: tcpparser' "Version: $version" \
            "Summary: $(of_cargo_toml description)" \
            "License-Expression: $(of_cargo_toml license)" 'License-File: LICENSE' \
            'Classifier: Environment :: No Input/Output (Daemon)' \
            'Classifier: Operating System :: POSIX :: Linux' \
            'Classifier: Programming Language :: Rust' \
            'Classifier: Topic :: System :: Networking :: Firewalls' \
            'Classifier: Topic :: System :: Networking :: Monitoring' \
            'Description-Content-Type: text/markdown; charset=UTF-8; variant=GFM' ''
        cat README.md
    } >"$info/METADATA"
    wheel pack "$tree" --dest-dir "$new" >/dev/null
    rm -r "$tree"
}

case $kind in
tarball) finished='*.tar.gz SHA256SUMS' ;;
wheel) finished='*.whl' ;;
*) fail 'usage: package.sh tarball|wheel' ;;
esac

# Nothing old may pass for the work of a run that failed.
rm -rf "$new"
mkdir -p "$new" "$out/dist"
# shellcheck disable=SC2086 # one word a pattern
(cd "$out/dist" && rm -f $finished)
describe_source
build
for architecture in $architectures; do
    "pack_$kind" "$architecture"
done
[ "$kind" = wheel ] || (cd "$new" && sha256sum -- *.tar.gz >SHA256SUMS)
mv "$new"/* "$out/dist"
# shellcheck disable=SC2086
(cd "$out/dist" && wc -c $finished)
