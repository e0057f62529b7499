"""The packages that `make dist` made: what is in them, file by file, and those
of deb and rpm installed, upgraded and removed by the real dpkg and rpm, on
machines of their own; the completion for bash."""

import glob
import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile

import pytest

from harness import must, need, wait_for
from machine import BUSYBOX, OPENRC
from test_dist import ALWAYS, ARCHITECTURES, VERSION, below, read, released, unpacked
from test_init import (DIST, IDLE, OPENRC_IS_UP, PORTS, SCRIPT, SETTINGS, blocks, boot_systemd,
                       fetched, guarded_machine, machine, need_busybox, nothing_left)
from traffic import touch

UNIT = "usr/lib/systemd/system/tcpparser.service"
# What of dist/ lies where, beside the program, and which of it an administrator changes.
EVERYWHERE = {"usr/share/man/man8/tcpparser.8": "tcpparser.8",
              "usr/share/bash-completion/completions/tcpparser": "tcpparser.bash",
              "usr/share/doc/tcpparser/copyright": "../LICENSE",
              **{f"usr/share/doc/tcpparser/{name}": name
                 for name in ("hook-list.sh", "hook-mail.sh", "hook-webhook.sh")},
              "usr/share/tcpparser/install.sh": "install.sh"}
FILES = {
    "deb": {"etc/init.d/tcpparser": "tcpparser.init", UNIT: "tcpparser.service",
            "etc/default/tcpparser": "tcpparser.default"},
    "rpm": {UNIT: "tcpparser.service", "etc/default/tcpparser": "tcpparser.default"},
    "apk": {"etc/init.d/tcpparser": "tcpparser.openrc",
            "etc/conf.d/tcpparser": "tcpparser.default"},
    "ipk": {"etc/init.d/tcpparser": "tcpparser.procd", "etc/config/tcpparser": "tcpparser.uci"},
}
# OpenWrt's since 25.12.
FILES["openwrt.apk"] = FILES["ipk"]
SETTINGS_OF = {"deb": "etc/default/tcpparser", "rpm": "etc/default/tcpparser",
               "apk": "etc/conf.d/tcpparser", "ipk": "etc/config/tcpparser",
               "openwrt.apk": "etc/config/tcpparser"}
# Each format's names of processors. Alpine knows five of them, OpenWrt many more:
# its packages here are for whatever runs them.
NAMES = {
    "deb": {"x86_64": "amd64", "i686": "i386", "aarch64": "arm64", "armv7": "armhf",
            "armv5te": "armel", "riscv64": "riscv64", "mips": "mips", "mipsel": "mipsel"},
    "rpm": {"x86_64": "x86_64", "i686": "i686", "aarch64": "aarch64", "armv7": "armv7hl",
            "armv5te": "armv5tel", "riscv64": "riscv64", "mips": "mips", "mipsel": "mipsel"},
    "apk": {"x86_64": "x86_64", "i686": "x86", "aarch64": "aarch64", "armv7": "armv7",
            "riscv64": "riscv64"},
    "ipk": dict.fromkeys(ARCHITECTURES, "all"),
    "openwrt.apk": dict.fromkeys(ARCHITECTURES, "noarch"),
}


SCRIPTS = ("preinst", "postinst", "prerm", "postrm")


def package(t, architecture, form):
    mark = "-" if form == "openwrt.apk" else "."
    return released(t, f"tcpparser-{VERSION}-{architecture}{mark}{form}", "dist", architecture)


class Content:
    """A package taken apart: its files below `folder`, what it says of itself,
    and the scripts it runs."""

    def __init__(self, t, architecture, form):
        self.folder = t.folder(f"{form}-files")
        self.about, self.scripts, self.settings = "", {}, []
        getattr(self, form.rpartition(".")[2])(package(t, architecture, form), t)

    def deb(self, path, t):
        need("dpkg-deb")
        control = t.folder("control")
        must("dpkg-deb", "-x", path, self.folder)
        must("dpkg-deb", "-e", path, control)
        self.take(below(control))

    def rpm(self, path, t):
        need("rpm", "rpm2cpio", "cpio")
        must("sh", "-c", 'rpm2cpio "$1" | (cd "$2" && cpio -idm --quiet)', "sh", path, self.folder)
        ask = ("rpm", "-qp", "--nosignature")
        self.about = must(*ask, "--qf", "Version: %{VERSION}\nArchitecture: %{ARCH}\n"
                          "Host: %{BUILDHOST}\nTime: %{BUILDTIME}\n", path)
        self.scripts = {
            name: must(*ask, "--qf", "%{" + tag + "}", path).encode() for name, tag in (
                ("postinst", "POSTIN"), ("prerm", "PREUN"), ("postrm", "POSTUN"))}
        # Of `config` alone rpm puts changed ones aside where a release has others.
        flags = must(*ask, "--qf", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]", path)
        self.settings = re.findall("^cn (.*)$", flags, re.M)

    def ipk(self, path, t):
        with tarfile.open(path) as outer:
            for member in outer.getmembers():
                name = member.name.removeprefix("./")
                if name.endswith(".tar.gz"):
                    with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                        inner.extractall(self.folder if name == "data.tar.gz" else t.folder("control"))
        self.take(below(t.folder("control")))

    def apk(self, path, t):
        """Streams of gzip behind each other are one archive."""
        with gzip.open(path) as file, tarfile.open(fileobj=io.BytesIO(file.read()),
                                                   ignore_zeros=True) as opened:
            opened.extractall(self.folder)
        control = {name: os.path.join(self.folder, name) for name in os.listdir(self.folder)
                   if name.startswith(".")}
        texts = {name: read(path) for name, path in control.items()}
        for path in control.values():
            os.remove(path)
        about = texts.pop(".PKGINFO").decode()
        self.about = about.replace("pkgver = ", "Version: ").replace("arch = ", "Architecture: ")
        names = {".post-install": "postinst", ".pre-deinstall": "prerm",
                 ".post-deinstall": "postrm", ".post-upgrade": "postinst"}
        assert set(texts) == set(names), "scripts"
        assert texts[".post-install"] == texts[".post-upgrade"], "the same for an upgrade"
        self.scripts = {names[name]: text for name, text in texts.items()}
        # apk keeps whatever was changed below /etc (apk-protected_paths).
        self.settings = ["/etc/conf.d/tcpparser", "/etc/config/tcpparser"]

    def take(self, control):
        self.about = control["control"].decode()
        self.settings = control["conffiles"].decode().split()
        self.scripts = {name: control[name] for name in SCRIPTS if name in control}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_package_holds_what_install_sh_installs(t, architecture, form):
    if architecture not in NAMES[form]:
        with pytest.raises((AssertionError, pytest.skip.Exception)):
            package(t, architecture, form)
        return
    content = Content(t, architecture, form)
    found = below(content.folder)
    program = found.pop("usr/bin/tcpparser", None)
    assert program == read(os.path.join(unpacked(t, architecture), "tcpparser")), "the program"
    wanted = {**EVERYWHERE, **FILES[form]}
    assert sorted(found) == sorted(wanted), "files"
    for path, name in wanted.items():
        text = read(os.path.join(DIST, name))
        if name.startswith("tcpparser."):
            text = text.replace(b"/usr/local/bin/tcpparser", b"/usr/bin/tcpparser")
        assert found[path] == text, f"{path} is {name}"
        mode = os.stat(os.path.join(content.folder, path)).st_mode & 0o7777
        runs = path == "etc/init.d/tcpparser" or name.endswith(".sh")
        assert oct(mode) == ("0o755" if runs else "0o644"), f"mode of {path}"
    assert f"/{SETTINGS_OF[form]}" in content.settings, "settings are kept"
    assert f"Version: {VERSION}" in content.about, f"version, {content.about}"
    assert re.search(f"^Architecture: {NAMES[form][architecture]}$", content.about, re.M), (
        f"architecture, {content.about}")
    assert sorted(content.scripts) == sorted(SCRIPTS[form != "deb":]), "scripts"
    for name, text in content.scripts.items():
        assert text.strip() == read(os.path.join(DIST, f"{name}.sh")).strip(), name


# ---------------------------------------------------------------- the real thing


def older(t, path):
    """The same package, as one before it."""
    folder, made = t.folder("older"), os.path.join(t.tmp, "older.deb")
    must("dpkg-deb", "-R", path, folder)
    control = os.path.join(folder, "DEBIAN/control")
    text = read(control).decode().replace(f"Version: {VERSION}", "Version: 0.0.1")
    with open(control, "w") as file:
        file.write(text)
    must("dpkg-deb", "--root-owner-group", "-b", folder, made)
    return made


# Machines that are images forbid their packages to start services.
MAY_START = "rm -f /usr/sbin/policy-rc.d\n"


def put(m, *paths):
    """Their names on that machine."""
    for path in paths:
        shutil.copy(path, m.path("/root"))
    return [f"/root/{os.path.basename(path)}" for path in paths]


def install(m, *command):
    """What the package manager and the scripts of the package say."""
    done = m.run(*command, seconds=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def installed(m):
    found = m.run("find", "/etc", "/usr", "/lib/systemd/system", "/var/log", "-name", "*tcpparser*",
                  "-not", "-path", "/usr/src/*").stdout
    return sorted(set(found.split()))


def upgrades(m, lan, upgrade, settings=SETTINGS):
    """From a first start on: settings and blocks stay, a wrong setting changes
    nothing, and what was stopped stays so."""
    first = m.guard()
    m.write(settings, "TCPPARSER_WINDOW=30s\n")
    touch(lan.peer, lan.host_v4, *PORTS)
    wait_for(lambda: blocks(m, lan), "a block")
    install(m, *upgrade)
    second = m.guard()
    assert second != first, "the upgrade left the old one"
    assert m.environment(second).get("TCPPARSER_WINDOW") == "30s", "settings are kept"
    assert blocks(m, lan), "the block stands"
    m.write(settings, "TCPPARSER_WINDOW=2h\n")
    said = install(m, *upgrade)
    assert "TCPPARSER_WINDOW" in said and "1s..1h" in said, f"the word: {said}"
    assert f"not restarted, the old one runs on; put that right in {settings}" in said, said
    assert m.guards() == [second], "the old one runs on"
    assert blocks(m, lan), "the block stands"
    m.write(settings, "TCPPARSER_WINDOW=40s\n")


@pytest.mark.parametrize("init", ["sysv", "systemd"])
def test_deb(t, init):
    path = package(t, "x86_64", "deb")
    need("dpkg-deb")
    m, lan = guarded_machine(t)
    with m:
        if init == "sysv":
            need_busybox()
            m.boot(IDLE + MAY_START, "busybox", "init")
        else:
            boot_systemd(m, MAY_START)
        before = installed(m)
        old, new = put(m, older(t, path), path)
        said = install(m, "dpkg", "-i", old)
        assert f"tcpparser runs, and does so after each boot ({init})" in said, said
        upgrades(m, lan, ("dpkg", "-i", new))
        m.must(*(("update-rc.d", "tcpparser", "disable") if init == "sysv"
                 else ("systemctl", "disable", "tcpparser")))
        before_upgrade = m.guard()
        install(m, "dpkg", "-i", new)
        assert m.guard() != before_upgrade, "restarted"
        assert glob.glob(m.path("/etc/rc2.d/S*tcpparser")) == [], "enabled against a will"
        service = (SCRIPT,) if init == "sysv" else ("systemctl",)
        stop = ("stop",) if init == "sysv" else ("stop", "tcpparser")
        m.must(*service, *stop)
        install(m, "dpkg", "-i", new)
        assert m.guards() == [], "what was stopped is not started"
        m.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")
        m.must("chmod", "755", "/usr/sbin/policy-rc.d")
        install(m, "dpkg", "-r", "tcpparser")
        assert nothing_left(m), "blocks are lifted"
        kept = {SETTINGS, SCRIPT, "/var/log/tcpparser.log"}
        assert set(installed(m)) - set(before) <= kept, "removed, but for settings"
        assert m.text(SETTINGS) == "TCPPARSER_WINDOW=40s\n", "settings stay"
        said = install(m, "dpkg", "-i", new)
        assert "policy-rc.d" in said and m.guards() == [], f"where it may not start: {said}"
        install(m, "dpkg", "-P", "tcpparser")
        assert installed(m) == before, "purged"


def test_rpm(t):
    path = package(t, "x86_64", "rpm")
    need("rpm")
    m, lan = guarded_machine(t)
    with m:
        boot_systemd(m, MAY_START)
        before = installed(m)
        (new,) = put(m, path)
        said = install(m, "rpm", "-i", "--nodeps", new)
        assert "tcpparser runs, and does so after each boot (systemd)" in said, said
        upgrades(m, lan, ("rpm", "-U", "--force", "--nodeps", new))
        install(m, "rpm", "-e", "tcpparser")
        assert (m.guards(), nothing_left(m)) == ([], True), "stopped, and blocks are lifted"
        # rpm's way to leave changed settings.
        assert [path for path in installed(m) if path not in before] == [f"{SETTINGS}.rpmsave"]


def test_apk_scripts(t):
    """apk itself is not to be had here: its files are put there by hand, and its
    scripts run as it runs them, under OpenRC."""
    content = Content(t, "x86_64", "apk")
    m, lan = guarded_machine(t)
    with m:
        need_busybox()
        if not fetched("openrc"):
            need("openrc-run")
        m.boot(IDLE + MAY_START + OPENRC_IS_UP, "busybox", "init", packages=BUSYBOX + OPENRC)
        subprocess.run(f"tar -C {content.folder} -c . | tar -x --no-same-owner "
                       f"-C {m.path('/')}", shell=True, check=True)
        for name, text in content.scripts.items():
            m.write(f"/root/{name}", text.decode())
        said = install(m, "sh", "/root/postinst", VERSION)
        assert "tcpparser runs, and does so after each boot (openrc)" in said, said
        upgrades(m, lan, ("sh", "/root/postinst", VERSION, "0.0.1"), "/etc/conf.d/tcpparser")
        install(m, "sh", "/root/prerm", VERSION)
        assert (m.guards(), nothing_left(m)) == ([], True), "stopped, and blocks are lifted"
        assert not m.exists("/etc/runlevels/default/tcpparser"), "disabled"


def test_ipk_into_an_image_starts_nothing(t):
    """As OpenWrt's image builder calls it; on a machine without procd neither."""
    content = Content(t, "x86_64", "ipk")
    with machine(t) as m:
        need_busybox()
        m.boot(IDLE, "busybox", "init")
        m.write("/root/postinst", content.scripts["postinst"].decode())
        m.write("/usr/share/tcpparser/install.sh", "echo it is called \"$@\"\n")
        said = [install(m, "env", *instroot, "sh", "/root/postinst", "configure")
                for instroot in (("IPKG_INSTROOT=/build",), ())]
        assert said == ["", "it is called start PREFIX=/usr UPGRADE=no\n"], "what is called"


# ------------------------------------------------------------------- completion


COMPLETE = """
. "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_tcpparser "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(t, *words):
    need("bash")
    said = must("bash", "-c", COMPLETE, "bash", os.path.join(DIST, "tcpparser.bash"), t.binary,
                *words)
    return [line for line in said.splitlines() if line]


def test_completion_knows_the_options(t):
    """Those of --help and no others, whichever that are."""
    options = re.findall(r"^ +(?:-., )?(--[\w-]+)", must(t.binary, "--help"), re.M)
    assert len(options) > 20, f"options: {options}"
    assert completed(t, "") == options, "all"
    assert completed(t, "--fire") == ["--firewall"], "one"
    assert completed(t, "--bogus") == [], "none"


@pytest.mark.parametrize("words, values", [
    (("--show", ""), ["all", "new", "scans"]),
    (("--show", "=", "s"), ["scans"]),
    (("--show", "="), ["all", "new", "scans"]),
    (("--firewall", "n"), ["nft", "none"]),
    (("--widen", ""), ["none"]),
    (("-l", ""), ["none"]),
    (("--unblock", "a"), ["all"]),
    (("--block-time", ""), ["forever"]),
    (("--interval", ""), []),
    (("--proc", "/pro"), ["/proc"]),
    (("--once", "--che"), ["--check"]),
])
def test_completion_knows_values(t, words, values):
    assert completed(t, *words) == values
