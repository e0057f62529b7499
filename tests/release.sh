#!/bin/sh
# Checks of the release files for $ARCHITECTURES, which `make test-dist` sets; the
# Rust tests of bytes the kernel writes run for each of them.
cd "$(dirname "$0")/.." || exit 1
PATH=$PATH:$HOME/.cargo/bin
export ARCHITECTURES="${ARCHITECTURES:-x86_64 i686 aarch64}"

. tests/checks.sh

# Without git, as in a check of a release: the program has its
# revision, its file the time.
same_files_elsewhere() (
    tar --exclude=./target --exclude=./.git -cf "$elsewhere/source.tar" . &&
        mkdir "$elsewhere/another place" &&
        tar -xf "$elsewhere/source.tar" -C "$elsewhere/another place" &&
        tar -xzf target/dist/tcpparser-*-"$(uname -m)"-linux-musl.tar.gz -C "$elsewhere" || return 1
    program=$(echo "$elsewhere"/tcpparser-*/tcpparser)
    TCPPARSER_REVISION=$("$program" --version | cut -d ' ' -f 4) &&
        SOURCE_DATE_EPOCH=$(date -r "$program" +%s) || return 1
    export TCPPARSER_REVISION SOURCE_DATE_EPOCH
    make -s -C "$elsewhere/another place" dist wheel &&
        diff -r target/dist "$elsewhere/another place/target/dist"
)

# What `make dist` sees of a rustc that lacks all targets, where rustup is no help.
without_targets() {
    mkdir -p target/stubs target/refused/dist && touch target/refused/dist/old.tar.gz &&
        printf '#!/bin/sh\ncase $* in *target-libdir*) echo nowhere;; *) exec %s "$@";; esac\n' \
            "$(command -v rustc)" >target/stubs/rustc &&
        printf '#!/bin/sh\nexit 1\n' >target/stubs/rustup &&
        chmod +x target/stubs/* || return 0
    PATH=$PWD/target/stubs:$PATH make -s dist OUT=target/refused
}
is_empty() { [ -z "$(ls -A "$1")" ]; }

if check_made 'the release files are made' 'make dist'; then
    grep '^SKIPPED' "$log" || :
    check_made 'the wheels are made' 'make wheel'
    elsewhere=$(mktemp -d)
    trap 'rm -rf "$elsewhere"' EXIT
    check 'the same bytes come from another folder' same_files_elsewhere
    check_refused 'no release where all targets are missing' 'SKIPPED x86_64: .* is missing' \
        without_targets
    check 'not even an old one' is_empty target/refused/dist
fi

# Each takes minutes: only where all are asked for.
[ -z "${VECTORS:-}" ] || for architecture in $ARCHITECTURES; do
    check "the kernel's bytes in the order of $architecture" env ARCHITECTURES="$architecture" \
        make -s vectors
    grep -E '^SKIPPED|^test result' "$log" || :
done

[ "$failures" = 0 ]
