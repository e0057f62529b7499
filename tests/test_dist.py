"""What `make dist` and `make wheel` made, as those who get it use it, and the
man page."""

import datetime
import email
import functools
import glob
import hashlib
import io
import json
import os
import platform
import re
import sys
import tarfile
import typing
import zipfile

import pytest

from harness import HOME, STAMP, must, need, run, wait_for
from test_files import fixture, listening, tcp_row
from test_readme import ROOT, blocks_to_type, text_of, typed



class Processor(typing.NamedTuple):
    target: str  # rustc's name of it, up to the C library
    kind: str  # what `file` calls a program for it
    emulator: str  # who runs that elsewhere
    kib_max: int  # its program at most
    byte_order: str = "little"


ARCHITECTURES = {
    "x86_64": Processor("x86_64-unknown-linux-musl", r"ELF 64-bit LSB .*, x86-64, ",
                        "qemu-x86_64", 180),
    "i686": Processor("i686-unknown-linux-musl", r"ELF 32-bit LSB .*, Intel (i386|80386), ",
                      "qemu-i386", 200),
    "aarch64": Processor("aarch64-unknown-linux-musl", r"ELF 64-bit LSB .*, ARM aarch64, ",
                         "qemu-aarch64", 192),
    "armv7": Processor("armv7-unknown-linux-musleabi", r"ELF 32-bit LSB .*, ARM, EABI5 ",
                       "qemu-arm", 220),
    "armv5te": Processor("armv5te-unknown-linux-musleabi", r"ELF 32-bit LSB .*, ARM, EABI5 ",
                         "qemu-arm", 232),
    "riscv64": Processor("riscv64gc-unknown-linux-musl", r"ELF 64-bit LSB .*, UCB RISC-V, ",
                         "qemu-riscv64", 184),
    "mips": Processor("mips-unknown-linux-musl", r"ELF 32-bit MSB .*, MIPS, MIPS32 rel2 ",
                      "qemu-mips", 264, "big"),
    "mipsel": Processor("mipsel-unknown-linux-musl", r"ELF 32-bit LSB .*, MIPS, MIPS32 rel2 ",
                        "qemu-mipsel", 264),
}
# What `make test` makes. `make test-dist` makes all that can be built here.
ALWAYS = ("x86_64", "i686", "aarch64")
NOT_PACKED = ("package.sh", "image.sh", "nfpm.yaml", "preinst.sh", "postinst.sh", "prerm.sh",
              "postrm.sh", "tcpparser.rules.test.yml", "live.csp", "live.html", "live.html.gz",
              "live.png", "openwrt/tcpparser/Makefile")
VERSION = re.search(r'^version = "(.+)"$', text_of("Cargo.toml"), re.M)[1]
OUTPUT = """\
tcpparser starting...

:     New connection:     192.0.2.200:50000 -> 192.0.2.1:22
:     New connection:      198.51.100.8:443 <- 192.0.2.1:37474
:     New connection: [2001:db8:5::7]:50001 -> [2001:db8::1]:443
:     New connection:     203.0.113.9:40022 -> 192.0.2.1:22
:     New connection:     203.0.113.9:40025 -> 192.0.2.1:25
:     New connection:     203.0.113.9:40080 -> 192.0.2.1:80
:     New connection:     203.0.113.9:40445 -> 192.0.2.1:445
: Port scan detected:           203.0.113.9 -> 192.0.2.1 on ports 22,25,80,445
"""


def released(t, name, verb, architecture):
    """A file in target/dist. Where there is none of its kind, none was made."""
    folder = os.path.join(os.path.dirname(t.binary), "dist")
    made = glob.glob(os.path.join(folder, "*" + os.path.splitext(name)[1]))
    if not made:
        pytest.skip(f"`make {verb}` makes {name}")
    path = os.path.join(folder, name)
    if path not in made and architecture not in ALWAYS:
        pytest.skip(f"`make test-dist` makes {name}, where it can")
    assert path in made, f"no {name}, but {made}"
    return path


def tarball(t, architecture):
    return released(t, f"tcpparser-{VERSION}-{architecture}-linux-musl.tar.gz", "dist",
                    architecture)


def wheel(t, architecture):
    tags = "py3-none-manylinux2014_{0}.manylinux_2_17_{0}.musllinux_1_1_{0}".format(architecture)
    return released(t, f"tcpparser-{VERSION}-{tags}.whl", "wheel", architecture)


def unpacked(t, architecture):
    """The folder that a tarball holds."""
    folder = t.folder(architecture)
    must("tar", "-xzf", tarball(t, architecture), "-C", folder)
    assert os.listdir(folder) == [f"tcpparser-{VERSION}-{architecture}-linux-musl"], "what it holds"
    return os.path.join(folder, os.listdir(folder)[0])


def read(path):
    with open(path, "rb") as file:
        return file.read()


def below(folder):
    """All files below a folder, with the bytes in them."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return {os.path.relpath(path, folder): read(path) for path in paths}


def foreign(program, architecture):
    """The command that runs a program which this machine does not."""
    try:
        must(program, "--version")
        return ()
    except OSError:
        emulator = ARCHITECTURES[architecture].emulator
        need(emulator)
        return (emulator,)


def check_output(t, before=(), byte_order=sys.byteorder):
    """One reading of rows, to the letter; the time is now."""
    ports = (22, 25, 80, 445)
    listens, row = (functools.partial(make, byte_order=byte_order)
                    for make in (listening, tcp_row))
    folder = fixture(
        t,
        [listens("0.0.0.0", port) for port in ports]
        + [row("192.0.2.1", port, "203.0.113.9", 40000 + port, 1) for port in ports]
        + [row("192.0.2.1", 22, "192.0.2.200", 50000, 1),
           row("192.0.2.1", 37474, "198.51.100.8", 443, 1)],
        [listens("::", 443), row("2001:db8::1", 443, "2001:db8:5::7", 50001, 1)])
    ended = t.once("--once", "--proc", folder, before=before)
    assert ended.status == 0, f"exit status, {ended}"
    lines = [re.sub(f"^{STAMP}", "", line) for line in ended.lines]
    assert sorted(lines) == sorted(OUTPUT.splitlines()), "lines"
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    for stamp in re.findall(f"^{STAMP}", ended.stdout, re.M):
        late = now - datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S")
        assert -5 < late.total_seconds() < 60, f"printed {stamp}, it is {now}"


# ------------------------------------------------------------------- tarballs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tarball_holds_what_a_user_needs(t, architecture):
    found = below(unpacked(t, architecture))
    wanted = below(os.path.join(ROOT, "dist"))
    for name in NOT_PACKED:
        del wanted[name]
    for name in ("README.md", "LICENSE"):
        wanted[name] = read(os.path.join(ROOT, name))
    program = found.pop("tcpparser")
    most = ARCHITECTURES[architecture].kib_max * 1024
    assert len(program) <= most, f"the program has {len(program)} bytes"
    assert sorted(found) == sorted(wanted), "files"
    assert [name for name in wanted if found[name] != wanted[name]] == [], "files that differ"


@pytest.mark.parametrize("init", ["none", "sysv", "openrc", "procd", "systemd"])
def test_tarball_installs(t, init):
    folder = unpacked(t, "x86_64")
    script, tree = os.path.join(folder, "install.sh"), t.folder("tree")
    prefix = "usr" if init == "procd" else "usr/local"
    must(script, f"INIT={init}", f"DESTDIR={tree}")
    found = below(tree)
    for name, place in (("tcpparser", "bin/tcpparser"),
                        ("tcpparser.8", "share/man/man8/tcpparser.8"),
                        ("tcpparser.bash", "share/bash-completion/completions/tcpparser")):
        packed = read(os.path.join(folder, name))
        assert found.pop(f"{prefix}/{place}", None) == packed, f"no {place}, but {list(found)}"
    assert os.access(os.path.join(tree, prefix, "bin/tcpparser"), os.X_OK), "not to be started"
    assert len(found) == (0 if init == "none" else 2), f"a service and its settings: {list(found)}"
    must(script, "uninstall", f"DESTDIR={tree}")
    assert list(below(tree)) == [], "what is left"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tarball_holds_nothing_of_its_maker(t, architecture):
    with tarfile.open(tarball(t, architecture)) as opened:
        members = opened.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names), "order"
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}, "owners"
    assert len({member.mtime for member in members}) == 1, "times"
    modes = {member.name: oct(member.mode) for member in members}
    assert set(modes.values()) <= {"0o755", "0o644"}, f"modes: {modes}"
    assert modes[f"{names[0]}/tcpparser"] == "0o755", "mode of the program"


def test_all_files_have_their_sums(t):
    folder = os.path.dirname(tarball(t, "x86_64"))
    checked = must("sh", "-c", 'cd "$1" && sha256sum --strict -c SHA256SUMS', "sh", folder)
    names = [name for name in os.listdir(folder) if name != "SHA256SUMS"]
    assert sorted(checked.splitlines()) == sorted(f"{name}: OK" for name in names), "sums"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_program_is_static_and_for_its_machine(t, architecture):
    need("file")
    kind = must("file", "-b", os.path.join(unpacked(t, architecture), "tcpparser"))
    assert re.match(ARCHITECTURES[architecture].kind, kind), f"it is {kind!r}"
    assert re.search(r"\b(statically|static-pie) linked\b", kind), f"it is {kind!r}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_program_reads_rows(t, architecture):
    t.binary = os.path.join(unpacked(t, architecture), "tcpparser")
    before = foreign(t.binary, architecture)
    words = must(*before, t.binary, "--version").split()
    assert words[:3] == ["tcpparser", VERSION, ARCHITECTURES[architecture].target], "version"
    must(*before, t.binary, "--check")
    done = run(*before, t.binary, "--check", "--window", "2h")
    assert (done.returncode, done.stderr.count("1s..1h")) == (2, 1), f"a bad command line: {done}"
    check_output(t, before, ARCHITECTURES[architecture].byte_order)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_daemon_runs(t, architecture):
    """Clocks, polls, signals and stat(2), whose structs hold times, are right: it
    knows its output for the journal, reads, serves and ends."""
    t.binary = os.path.join(unpacked(t, architecture), "tcpparser")
    before = foreign(t.binary, architecture)
    path = os.path.join(t.tmp, "journal")
    host = t.namespace("host")
    with open(path, "w") as journal:
        status = os.fstat(journal.fileno())
        guard = t.guard(host, "--dry-run", before=before, stdout=journal, env={
            **HOME, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    wait_for(lambda: host.run("curl", "-s", "127.0.0.1:3021/healthz").stdout == "ok\n",
             "an answer")
    assert guard.metric("tcpparser_readings_total") >= 1, "readings"
    guard.process.terminate()
    assert guard.wait_exit() == 0, "exit status"
    assert read(path).startswith(b"<6>tcpparser starting...\n"), "the journal's lines"


# ---------------------------------------------------------------------- image


PLATFORMS = {"x86_64": "amd64", "i686": "386", "aarch64": "arm64", "armv7": "arm/v7",
             "armv5te": "arm/v5", "riscv64": "riscv64", "mips": "mips", "mipsel": "mipsle"}


def image(t):
    return released(t, f"tcpparser-{VERSION}.oci.tar", "dist", "x86_64")


def image_parts(path):
    """Each platform's configuration and layer (opencontainers/image-spec)."""
    with tarfile.open(path) as opened:
        def part(name):
            return opened.extractfile(name).read()

        def blob(about):
            kind, digest = about["digest"].split(":")
            found = part(f"blobs/{kind}/{digest}")
            assert hashlib.new(kind, found).hexdigest() == digest, "digest"
            return found

        (index,) = json.loads(part("index.json"))["manifests"]
        for one in json.loads(blob(index))["manifests"]:
            platform = one["platform"]
            name = "/".join(filter(None, (platform["architecture"], platform.get("variant"))))
            manifest = json.loads(blob(one))
            (layer,) = map(blob, manifest["layers"])
            yield name, json.loads(blob(manifest["config"])), layer


def test_image_holds_each_program(t):
    found = {name: (config, layer) for name, config, layer in image_parts(image(t))}
    folder = os.path.dirname(image(t))
    made = [name for name in ARCHITECTURES
            if glob.glob(f"{folder}/tcpparser-{VERSION}-{name}-*.tar.gz")]
    assert sorted(found) == sorted(PLATFORMS[name] for name in made), "platforms"
    for name in made:
        config, layer = found[PLATFORMS[name]]
        assert config["config"]["Entrypoint"] == ["/bin/tcpparser"], "what it starts"
        with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
            files = {member.name: opened.extractfile(member).read()
                     for member in opened.getmembers() if member.isfile()}
        with tarfile.open(tarball(t, name)) as opened:
            program = opened.extractfile(f"tcpparser-{VERSION}-{name}-linux-musl/tcpparser").read()
        assert files == {"bin/tcpparser": program}, f"what it holds for {name}"


# --------------------------------------------------------------------- wheels


@pytest.mark.parametrize("architecture", ALWAYS)
def test_wheel_is_the_program_and_words_about_it(t, architecture):
    name = f"tcpparser-{VERSION}"
    with zipfile.ZipFile(wheel(t, architecture)) as opened:
        found = {info.filename: opened.read(info) for info in opened.infolist()}
        mode = opened.getinfo(f"{name}.data/scripts/tcpparser").external_attr >> 16
    info = [f"{name}.dist-info/{file}"
            for file in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")]
    assert sorted(found) == sorted([f"{name}.data/scripts/tcpparser", *info]), "files"
    assert oct(mode) == "0o100755", "mode of the program"
    assert (found[f"{name}.data/scripts/tcpparser"]
            == read(os.path.join(unpacked(t, architecture), "tcpparser"))), "the program"
    assert found[f"{name}.dist-info/licenses/LICENSE"].decode() == text_of("LICENSE"), "licence"
    words = email.message_from_bytes(found[f"{name}.dist-info/METADATA"])
    assert (words["Name"], words["Version"]) == ("tcpparser", VERSION), "whose words they are"
    assert words["Summary"] in text_of("Cargo.toml"), f"summary: {words['Summary']}"
    assert words.get_payload(decode=True).decode() == text_of("README.md"), "long description"


@pytest.mark.parametrize("architecture", ALWAYS)
def test_wheel_has_its_sums(t, architecture):
    """`wheel unpack` compares each file with RECORD."""
    need("wheel")
    must("wheel", "unpack", "--dest", t.tmp, wheel(t, architecture))


def test_wheels_please_the_index(t):
    need("twine")
    files = [wheel(t, architecture) for architecture in ALWAYS]
    done = run("twine", "check", "--strict", *files, seconds=60)
    assert done.returncode == 0, f"twine check: {done.stdout}{done.stderr}"
    assert done.stdout.count("PASSED") == len(files), f"passed, {done.stdout}"


def test_pip_installs_a_command_and_takes_it_away(t):
    install = blocks_to_type(t, "Release files")[-1]
    architecture = platform.machine()
    if architecture not in ALWAYS:
        pytest.skip(f"no wheel for {architecture}")
    if run(sys.executable, "-c", "import ensurepip").returncode != 0:
        pytest.skip("python3-venv is not installed")
    packed = os.path.join(unpacked(t, architecture), "tcpparser")
    links = os.path.dirname(wheel(t, architecture))
    folder = os.path.join(t.tmp, "virtual")
    pip = os.path.join(folder, "bin", "pip")
    must(sys.executable, "-m", "venv", folder, seconds=60)
    env = {**HOME, "PATH": f"{folder}/bin:{HOME['PATH']}"}
    typed(t, run, *install, folder=os.path.join(links, "../.."), env=env, seconds=60)
    t.binary = os.path.join(folder, "bin", "tcpparser")
    assert read(t.binary) == read(packed), "the program"
    assert must(t.binary, "--version") == must(packed, "--version"), "version"
    check_output(t)
    must(pip, "check")
    must(pip, "uninstall", "--yes", "tcpparser")
    assert not os.path.exists(t.binary), "the program is still there"


@pytest.mark.parametrize("kind, architecture", [
    ("manylinux2014", "x86_64"), ("manylinux_2_17", "i686"), ("musllinux_1_1", "aarch64")])
def test_pip_finds_the_wheel(t, kind, architecture):
    need("pip")
    made = wheel(t, architecture)
    must("pip", "download", "--no-index", "--no-deps", "--only-binary", ":all:", "--dest", t.tmp,
         "--platform", f"{kind}_{architecture}", "--find-links", os.path.dirname(made),
         "tcpparser", seconds=60)
    assert os.listdir(t.tmp) == [os.path.basename(made)], "what it finds"


# ------------------------------------------------------------------- man page


PAGE = os.path.join(ROOT, "dist", "tcpparser.8")


def test_man_page_is_clean():
    """Which other pages are installed here says nothing about ours."""
    need("mandoc")
    done = run("mandoc", "-T", "lint", "-W", "all", PAGE)
    about_others = ("referenced manual not found", "outdated mandoc.db")
    found = [line for line in (done.stdout + done.stderr).splitlines()
             if not any(words in line for words in about_others)]
    assert found == [], "what mandoc says"


def test_man_page_is_readable():
    need("mandoc")
    page = re.sub(".\b", "", must("mandoc", "-T", "ascii", PAGE))
    sections = re.findall(r"^([A-Z][A-Z ]+)$", page, re.M)
    assert (sections
            == ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "METRICS", "ENVIRONMENT",
                "SIGNALS", "FILES", "EXIT STATUS", "EXAMPLES", "DIAGNOSTICS", "COMPATIBILITY",
                "SEE ALSO", "STANDARDS", "HISTORY", "CAVEATS", "SECURITY CONSIDERATIONS"]), (
        "sections")
    assert "-i, --interval DUR" in page, "no --interval"
    wide = [line for line in page.splitlines() if len(line) > 80]
    assert wide == [], "lines over 80 columns"
