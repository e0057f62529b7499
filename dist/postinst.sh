#!/bin/sh
# What a package runs after its files were put there. deb: `configure`, and the
# version before an upgrade; ipk: `configure`; rpm: 1, or 2 for an upgrade; apk:
# a version, and that before. Into an image nothing is started.
set -eu
case ${1:-} in
    configure | [0-9]*) ;;
    *) exit 0 ;;
esac
[ -z "${IPKG_INSTROOT:-}" ] || exit 0
upgrade=no
[ "$1" != 2 ] && [ -z "${2:-}" ] || upgrade=yes
[ ! -e /run/tcpparser.new ] || upgrade=no
rm -f /run/tcpparser.new
exec sh /usr/share/tcpparser/install.sh start PREFIX=/usr "UPGRADE=$upgrade"
