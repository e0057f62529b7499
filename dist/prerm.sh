#!/bin/sh
# What a package runs before its files are removed: deb and ipk with `remove`,
# rpm with 0, apk with a version; the upgrade of a service does not stop it.
# Where blocks cannot be lifted `UNBLOCK=no dpkg --remove tcpparser` goes on.
set -eu
case ${1:-} in
    remove | 0 | [0-9]*.*) ;;
    *) exit 0 ;;
esac
[ -z "${IPKG_INSTROOT:-}" ] || exit 0
exec sh /usr/share/tcpparser/install.sh stop PREFIX=/usr "UNBLOCK=${UNBLOCK:-yes}"
