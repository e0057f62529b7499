#!/bin/sh
# Checks of the build itself. One line a check; fails if any check did.
# Each variant has a folder of its own, so that none rebuilds another's.
cd "$(dirname "$0")/.." || exit 1
PATH=$PATH:$HOME/.cargo/bin

. tests/checks.sh

variant() { make -s build OUT="target/$1" "$2"; }
most=$(sed -n 's/^file //p' tests/budgets)
is_small() { [ "$(wc -c <"$1")" -le "$most" ]; }
file_says() { file "$1" | tee "$log" | grep -q "$2"; }
only_known_crates() {
    known='byteorder hash32 heapless libc stable_deref_trait tcpparser'
    crates=$(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.lock | sort -u | xargs)
    echo "$crates"
    [ "$crates" = "$known" ]
}

# A symbol we know must be seen, or the search below would prove nothing.
no_core_fmt() {
    nm target/symbols/tcpparser >target/symbols.txt || return 1
    grep -q ' main$' target/symbols.txt || return 1
    ! grep 4core3fmt target/symbols.txt
}

# Elsewhere it would stay in the tree, of root where root ran it.
leaves_no_bytecode() {
    make -n test bench detect fleet >"$log.verbs" && grep -q 'python3 -B tests/' "$log.verbs" &&
        ! grep 'python3 tests/' "$log.verbs"
}

check 'no verb leaves bytecode in the tree' leaves_no_bytecode
check 'the program builds' make -s build
if has file && [ -d "target/$(uname -m)-unknown-linux-musl" ]; then
    check 'it is static-pie' file_says target/tcpparser 'static-pie linked'
else
    skipped 'it is static-pie: needs file and the musl target'
fi
check "it has at most $most bytes" is_small target/tcpparser
check 'it runs' target/tcpparser --version

check_refused 'a panic path does not link' a_panic_path_survived \
    variant probe RUSTFLAGS='--cfg panic_probe'
check_refused 'a misspelt override does not build' TCPPARSER_BUILD_SOURCE \
    env TCPPARSER_BUILD_SOURCE=7 make -s build OUT=target/over,ride
check_refused 'an override that is no number does not build' 'whole number' \
    env TCPPARSER_BUILD_SOURCES=many make -s build OUT=target/over,ride
check 'an override builds, in a folder with a comma' env TCPPARSER_BUILD_SOURCES=7 make -s build OUT=target/over,ride

if has nm; then
    check 'it builds with symbols' variant symbols RUSTFLAGS='-C strip=none'
    check 'core::fmt is not in it' no_core_fmt
else
    skipped 'core::fmt is not in it: needs nm (binutils)'
fi

if has musl-gcc; then
    check 'it builds with musl-gcc' variant gcc MUSL=gcc
    check "that one has at most $most bytes" is_small target/gcc/tcpparser
    check 'that one runs' target/gcc/tcpparser --version
    if has file; then
        check 'that one is static' file_says target/gcc/tcpparser 'statically linked'
    else
        skipped 'that one is static: needs file'
    fi
else
    skipped 'it builds with musl-gcc: needs musl-tools'
fi

check 'cargo build by habit' cargo build --target-dir target/habit
check 'cargo build --release by habit' cargo build --release --target-dir target/habit
check 'Cargo.lock holds libc, heapless and what heapless needs' only_known_crates

rm -rf target/root
check 'it installs' make -s install DESTDIR=target/root PREFIX=/usr
check 'what is installed is the program' cmp target/tcpparser target/root/usr/bin/tcpparser

if [ "$(id -u)" = 0 ] && has buildah; then
    mkdir -p target/image-test
    printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' \
        "$PWD/target/image-test/graph" "$PWD/target/image-test/run" >target/image-test/storage.conf
    export ENGINE=buildah CONTAINERS_STORAGE_CONF="$PWD/target/image-test/storage.conf"
    check 'the image builds' typed 'make image'
    unset ENGINE CONTAINERS_STORAGE_CONF
    check 'its archive is there' test -s target/image/tcpparser.tar
    rm -rf target/image-test
else
    skipped 'the image builds: needs root and buildah'
fi

if has shellcheck; then
    check 'shellcheck is content' shellcheck tests/*.sh .ci/run dist/*.sh \
        dist/tcpparser.init dist/tcpparser.openrc dist/tcpparser.procd
else
    skipped 'shellcheck is content: needs shellcheck'
fi

[ "$failures" = 0 ]
