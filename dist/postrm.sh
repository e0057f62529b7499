#!/bin/sh
# What a package runs after its files were removed: its unit is forgotten, and
# with deb's `purge` the logs go, too.
set -eu
case ${1:-} in
    purge) rm -f /var/log/tcpparser.log /var/log/tcpparser.log.1 ;;
    remove | 0) [ ! -d /run/systemd/system ] || systemctl daemon-reload ;;
esac
