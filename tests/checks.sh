# What tests/build.sh and tests/release.sh stand on: each check is a line.
# shellcheck shell=sh

failures=0
log=target/$(basename "$0").log
mkdir -p target

ok() { echo "ok $1"; }
skipped() { echo "SKIPPED $1"; }
failed() {
    echo "FAILED $1"
    failures=$((failures + 1))
}

# check NAME COMMAND...: the command must succeed.
check() {
    name=$1
    shift
    if "$@" >"$log" 2>&1; then ok "$name"; else
        failed "$name"
        tail -n 20 "$log"
    fi
}

# check_refused NAME WORDS COMMAND...: the command must fail and say WORDS.
check_refused() {
    name=$1 words=$2
    shift 2
    if "$@" >"$log" 2>&1; then
        failed "$name: it was accepted"
    elif ! grep -q -- "$words" "$log"; then
        failed "$name: it does not say $words"
        tail -n 20 "$log"
    else
        ok "$name"
    fi
}

# typed LINE: a command of README.md, noted for tests/test_readme.py.
typed() { sh -c "$1" && echo "$1" >>target/typed-in-build; }

# check_made NAME LINE: it must succeed, or say what is missing here.
check_made() {
    if typed "$2" >"$log" 2>&1; then ok "$1"
    elif grep -q ' is missing: ' "$log"; then
        skipped "$1: $(grep -m 1 ' is missing: ' "$log")"
        return 1
    else
        failed "$1"
        tail -n 20 "$log"
        return 1
    fi
}

has() { command -v "$1" >/dev/null; }
