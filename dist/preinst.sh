#!/bin/sh
# What the deb runs before its files are put there. Where settings were left its
# postinst takes an installation for an upgrade (deb-postinst(5)), else.
set -eu
[ "${1:-}" != install ] || : >/run/tcpparser.new
