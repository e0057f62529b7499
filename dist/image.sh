#!/bin/sh
# image.sh: builds the image tcpparser:latest, which is target/tcpparser alone,
# with docker, podman or buildah, whichever works (or ENGINE), and saves it as
# target/image/tcpparser.tar. Same file and SOURCE_DATE_EPOCH, same id.
# `make image` runs it.
set -eu
cd "$(dirname "$0")/.."
archive=target/image/tcpparser.tar
root=target/image/built-by-make-image
epoch=${SOURCE_DATE_EPOCH:-0}

engine=
for engine in ${ENGINE:-docker podman buildah} ''; do
    [ -z "$engine" ] || ! "$engine" info >/dev/null 2>&1 || break
done
[ -n "$engine" ] || {
    echo 'neither docker nor podman nor buildah works here: install podman' >&2
    exit 1
}
# The package podman-docker has a docker that is podman.
if [ "$engine" = docker ]; then
    case $(docker --version 2>/dev/null) in *podman*) engine=podman ;; esac
fi

rm -rf "$root" "$archive"
install -D -m 755 target/tcpparser "$root/bin/tcpparser"
find "$root" -type d -exec chmod 755 {} +
find "$root" -exec touch -d "@$epoch" {} +

# As in `tcpparser --version`: name, version, target, revision.
revision=$(target/tcpparser --version | cut -d ' ' -f 4)
set -- build -q -f Dockerfile.scratch --build-arg "REVISION=$revision"
case $engine in
docker)
    docker "$@" -t tcpparser:latest --build-arg "SOURCE_DATE_EPOCH=$epoch" . >/dev/null
    docker save -o "$archive" tcpparser:latest
    ;;
*)
    # OCI's own format has no HEALTHCHECK. Docker's gets two random names from
    # the build: without them the id depends on nothing but the content.
    id=$("$engine" "$@" --layers=false --identity-label=false --format docker \
        --timestamp "$epoch" .)
    "$engine" push -q "$id" "docker-archive:$archive" >/dev/null
    "$engine" rmi "$id" >/dev/null || true
    parts=target/image/parts
    rm -rf "$parts"
    mkdir "$parts"
    tar -xf "$archive" -C "$parts"
    chmod -R u+w "$parts"
    config=$(sed 's/.*"Config":"\([^"]*\)".*/\1/' "$parts/manifest.json")
    layer=$(sed 's/.*"Layers":\["\([^"]*\)"\].*/\1/' "$parts/manifest.json")
    sed -E 's/"(container|Hostname)":"[0-9a-f]*"/"\1":""/g' "$parts/$config" >"$parts/config"
    config=$(sha256sum <"$parts/config" | cut -c 1-64).json
    mv "$parts/config" "$parts/$config"
    printf '[{"Config":"%s","RepoTags":["tcpparser:latest"],"Layers":["%s"]}]\n' \
        "$config" "$layer" >"$parts/manifest.json"
    tar -cf "$archive" -C "$parts" -b 1 --format=ustar --owner=0 --group=0 --numeric-owner \
        --mode=644 --mtime="@$epoch" manifest.json "$config" "$layer"
    rm -rf "$parts"
    "$engine" pull -q "docker-archive:$archive" >/dev/null
    ;;
esac
echo "image tcpparser:latest, built with $engine; $archive has $(wc -c <"$archive") bytes"
