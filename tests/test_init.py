"""Where the service is started: dist/ and `make install` under real init systems,
each on a machine of its own (machine.py)."""

import glob
import itertools
import os
import platform
import re
import shutil
import socket
import time
from shlex import quote

import pytest

from harness import FLAVOURS, HOME, IPTABLES_NAMES, must, need, run, wait_for
from machine import BUSYBOX, OPENRC, PACKAGES, ROOT, Machine
from test_dist import tarball
from test_readme import blocks_to_type, typed

DIST = os.path.join(ROOT, "dist")
PORTS = (22, 25, 80, 443)
SETTINGS = "/etc/default/tcpparser"
SCRIPT = "/etc/init.d/tcpparser"
PROGRAM = "/usr/local/bin/tcpparser"

# Process 1 that only reaps, and BusyBox where a small system has it.
IDLE = "echo ::sysinit:/bin/true >/etc/inittab\n"
ASH = 'ln -sf "$(command -v busybox)" /bin/sh\n'
APPLET = 'ln -sf "$(command -v busybox)" "$(command -v {})"\n'


def dist(name):
    with open(os.path.join(DIST, name)) as file:
        return file.read()


def placed(t, *files):
    """Shell lines that copy the program and files of dist/ to their places."""
    pairs = [(t.binary, PROGRAM), *((os.path.join(DIST, name), place) for name, place in files)]
    return "".join(f"mkdir -p {os.path.dirname(place)}\ncp {quote(name)} {place}\n"
                   f"chmod 755 {place}\n" for name, place in pairs)


def fetched(package):
    """What `make tools` fetched of it, in whichever folder."""
    return glob.glob(f"{PACKAGES}/**/{package}_*.deb", recursive=True)


def machine(t):
    return Machine(t, t.namespace("host"))


def guarded_machine(t, flavour="nft"):
    """One with services to scan, and the peer that scans them."""
    lan = t.lan()
    t.firewall(lan.host, flavour)
    lan.host.listen(*PORTS)
    return Machine(t, lan.host), lan


def scan(m, lan):
    for port in PORTS:
        lan.peer.connect(lan.host_v4, port).close()
    wait_for(lambda: blocks(m, lan), "a block")


def blocks(m, lan):
    return f"-s {lan.peer_v4}/32 " in m.run("iptables", "-w", "5", "-S").stdout


def nothing_left(m):
    rules = [m.must(tool, "-w", "5", "-S") for tool in ("iptables", "ip6tables")]
    return not any("TCPPARSER" in text for text in rules)


def make(m, *arguments):
    """`make` in the source tree, as root on that machine."""
    return m.must("make", "-s", "-C", ROOT, *arguments)


# ---------------------------------------------------------------- settings


def uncommented(text):
    return [line[1:] for line in text.splitlines() if re.match(r"#TCPPARSER_[A-Z_]+=", line)]


def test_sample_settings_are_accepted_as_they_are(t):
    """All of them at once, as a shell reads them."""
    lines = uncommented(dist("tcpparser.default").replace("/etc/tcpparser-hook", "/usr/bin/env"))
    assert len(lines) >= 10, f"settings: {lines}"
    path = os.path.join(t.tmp, "settings")
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    done = run("/bin/sh", "-c", f'set -a; . "{path}"; exec "{t.binary}" --check', env={"TZ": "UTC0"})
    assert (done.returncode, done.stderr) == (0, ""), "exit status and errors"


# -------------------------------------------------------------------- SysV


@pytest.mark.parametrize("shell, stopper", [
    ("dash", "dpkg"), ("dash", "busybox"), ("ash", "dpkg"), ("ash", "busybox")])
def test_sysv(t, shell, stopper):
    with machine(t) as m:
        need_busybox()
        prepare = IDLE + placed(t, ("tcpparser.init", SCRIPT))
        prepare += ASH if shell == "ash" else "ln -sf dash /bin/sh\n"
        prepare += APPLET.format("start-stop-daemon") if stopper == "busybox" else ""
        m.boot(prepare, "busybox", "init")
        kind = m.must("/bin/sh", "-c", "type start-stop-daemon; readlink -f /bin/sh; "
                                       "readlink -f $(command -v start-stop-daemon)")
        assert (("busybox" in kind.splitlines()[1], "busybox" in kind.splitlines()[2])
                == (shell == "ash", stopper == "busybox")), f"what is tested: {kind}"
        if stopper == "busybox":
            own_start_stop_daemon(m, FEW_OPTIONS)
        lifecycle(m)
        if (shell, stopper) == ("dash", "dpkg"):
            does_not_stop(m)
        if shell == "dash":
            refusals(m)


# BusyBox without FEATURE_START_STOP_DAEMON_FANCY and without long options.
FEW_OPTIONS = r"""for word; do
    case $word in
        --) break ;;
        -[ovN]* | --*) echo "invalid option $word" >&2 && exit 1 ;;
    esac
done
exec busybox start-stop-daemon "$@"
"""


def own_start_stop_daemon(m, script):
    path = "/usr/local/sbin/start-stop-daemon"
    m.write(path, f"#!/bin/sh\n{script}")
    m.must("chmod", "755", path)


def does_not_stop(m):
    """A process that no signal ends, such as one in a dead disk."""
    service(m, "start")
    number = m.guard()
    own_start_stop_daemon(m, "exit 0\n")
    assert "does not stop" in service(m, "stop", 1).stderr, "it says so"
    assert (m.guards(), m.text("/run/tcpparser.pid").strip()) == ([number], str(number)), "it runs"
    m.must("rm", "/usr/local/sbin/start-stop-daemon")
    service(m, "stop")


def need_busybox():
    if not fetched("busybox"):
        need("busybox")


def service(m, verb, wanted=0):
    done = m.run(SCRIPT, *verb.split())
    assert done.returncode == wanted, f"exit status of {verb}: {done.stdout!r} {done.stderr!r}"
    return done


def lifecycle(m):
    m.write(SETTINGS, 'TCPPARSER_INTERVAL=500ms\nTCPPARSER_ALLOW="192.0.2.0/24, 192.0.2.7"\n')
    service(m, "status", 3)
    service(m, "stop")
    service(m, "start")
    first = m.guard()
    settings = m.environment(first)
    assert ([settings.get(f"TCPPARSER_{name}") for name in ("INTERVAL", "ALLOW", "SHOW")]
            == ["500ms", "192.0.2.0/24, 192.0.2.7", "scans"]), "settings"
    service(m, "status")
    service(m, "start")
    assert m.guards() == [first], "daemons after a second start"
    # An upgrade replaces the file of the running program.
    m.must("sh", "-c", f"cp {PROGRAM} {PROGRAM}.new && mv {PROGRAM}.new {PROGRAM}")
    service(m, "status")
    service(m, "restart")
    second = m.guard()
    assert second != first, "restart left the old one"
    m.kill_guard()
    service(m, "status", 1)
    service(m, "start")
    assert m.guard() != second, "started again after a crash"
    for verb in ("force-reload", "try-restart"):
        before = m.guard()
        service(m, verb)
        assert m.guard() != before, f"{verb} left the old one"
    service(m, "stop")
    for verb in ("force-reload", "try-restart"):
        service(m, verb)
    assert m.guards() == [], "daemons after stop"
    for verb in ("force-reload", "try-restart"):
        service(m, verb)
        assert m.guards() == [], f"daemons after {verb}"
    service(m, "status", 3)
    assert m.text("/var/log/tcpparser.log").count("tcpparser starting...") == 5, "starts in the log"


def refusals(m):
    for verb, wanted in (("bogus", 2), ("start stop", 2), ("status --full", 2), ("reload", 3)):
        assert "usage: " in service(m, verb, wanted).stderr, "usage"
    # Another program's process under a number that was ours once.
    m.write("/run/tcpparser.pid", "1\n")
    service(m, "status", 1)
    service(m, "stop")
    assert m.run("true").returncode == 0, "process 1 was stopped"
    m.write(SETTINGS, "TCPPARSER_PORTS=99\n")
    assert "TCPPARSER_PORTS: '99' is not allowed" in service(m, "start", 6).stderr, "what is wrong"
    m.write(SETTINGS, "")
    service(m, "start")
    before = m.guard()
    m.write(SETTINGS, "TCPPARSER_DRYRUN=yes\n")
    for verb in ("restart", "try-restart", "force-reload"):
        assert "'TCPPARSER_DRYRUN' is not" in service(m, verb, 6).stderr, "what is wrong"
        assert m.guards() == [before], "the one that runs is left alone"
    service(m, "stop")
    m.write(SETTINGS, "TCPPARSER_SHOW=nothing\n")
    assert "TCPPARSER_SHOW: 'nothing' is not" in service(m, "start", 6).stderr, "what is wrong"
    m.write(SETTINGS, "")
    with m.network.entered(), socket.socket(socket.AF_UNIX) as other:
        other.bind("\0tcpparser")
        other.listen()
        assert "did not start" in service(m, "start", 1).stderr, "another tcpparser"
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert m.run(*nobody, SCRIPT, "start").returncode == 4, "start without privilege"
    service(m, "start")
    assert m.run(*nobody, SCRIPT, "status").returncode == 0, "status without privilege"
    m.must("rm", PROGRAM)
    service(m, "restart", 5)


def test_sysv_logs_to_syslog(t):
    """Where there is one, and the daemon is not the logger's parent."""
    with machine(t) as m:
        need_busybox()
        prepare = IDLE + placed(t, ("tcpparser.init", SCRIPT)) + ASH + APPLET.format("logger")
        m.boot(prepare, "busybox", "init")
        m.must("busybox", "syslogd")
        wait_for(lambda: m.exists("/dev/log"), "syslogd")
        service(m, "start")
        number = m.guard()
        assert m.processes("logger"), "a logger runs"
        wait_for(lambda: "tcpparser: tcpparser starting..." in m.text("/var/log/messages"), "a line")
        assert not m.exists("/var/log/tcpparser.log"), "no log file beside it"
        children = m.text(f"/proc/{number}/task/{number}/children")
        assert children.strip() == "", "children of the daemon"
        assert not m.exists("/run/tcpparser.fifo"), "the pipe's name is gone"
        service(m, "stop")
        wait_for(lambda: not m.processes("logger"), "the end of logger")


def test_sysv_log_does_not_grow_for_ever(t):
    with machine(t) as m:
        need_busybox()
        m.boot(IDLE + placed(t, ("tcpparser.init", SCRIPT)), "busybox", "init")
        m.write("/var/log/tcpparser.log", "old\n" * 300_000)
        service(m, "start")
        m.guard()
        assert m.text("/var/log/tcpparser.log").startswith("tcpparser starting"), "a new log"
        assert m.text("/var/log/tcpparser.log.1").startswith("old\n"), "the old one"


# --------------------------------------------------------- BusyBox's init


def test_busybox_init_respawns_it(t):
    with machine(t) as m:
        need_busybox()
        prepare = placed(t, ("tcpparser.init", SCRIPT), ("tcpparser.inittab", "/etc/inittab"))
        # One that was started at boot is stopped.
        m.boot(prepare + ASH + f"{SCRIPT} start\ncp /run/tcpparser.pid /run/before\n",
               "busybox", "init")
        m.write(SETTINGS, "TCPPARSER_INTERVAL=500ms\n")
        before = int(m.text("/run/before"))
        wait_for(lambda: m.guards() not in ([], [before]), "init's own")
        first = m.guard()
        service(m, "status")
        m.kill_guard()
        wait_for(lambda: m.guards() not in ([], [first]), "another one")
        second = m.guard()
        assert m.environment(second).get("TCPPARSER_INTERVAL") == "500ms", "interval"
        assert m.text(f"/proc/{second}/stat").split()[3] == "1", "its parent"
        service(m, "status")


# ------------------------------------------------------------------- OpenRC


# What openrc(8) itself leaves when it has booted.
OPENRC_IS_UP = """mkdir -p /run/openrc /etc/runlevels/default
cd /run/openrc
mkdir daemons exclusive failed hotplugged inactive options scheduled started starting \\
    stopping tmp wasinactive
touch softlevel
cd /
"""


def test_openrc(t):
    """Installed by `make install`, run by openrc-run and supervise-daemon."""
    m, lan = guarded_machine(t)
    with m:
        need_busybox()
        if not fetched("openrc"):
            need("openrc-run")
        m.boot(IDLE + OPENRC_IS_UP, "busybox", "init", packages=BUSYBOX + OPENRC)
        said = make(m, "install")
        assert "(openrc)" in said, f"detected: {said}"
        assert m.exists("/etc/runlevels/default/tcpparser"), "enabled"
        first = m.guard()
        m.must("rc-service", "tcpparser", "status")
        assert m.environment(first).get("TCPPARSER_SHOW") == "scans", "what is shown"
        scan(m, lan)
        m.kill_guard()
        wait_for(lambda: m.guards() not in ([], [first]), "another one")
        m.write("/etc/conf.d/tcpparser", 'TCPPARSER_ALLOW="192.0.2.0/24, 192.0.2.7"\n')
        m.must("rc-service", "tcpparser", "restart")
        assert m.environment(m.guard()).get("TCPPARSER_ALLOW") == "192.0.2.0/24, 192.0.2.7", (
            "settings")
        assert blocks(m, lan), "the block outlives restarts"
        assert "Blocked:" in m.text("/var/log/tcpparser.log"), "the log"
        supervisor = m.must("pgrep", "-af", "^supervise-daemon tcpparser ")
        assert re.search(r" (--respawn-max|-m) 0\b", supervisor), f"it gives up: {supervisor}"
        before = m.guard()
        m.write("/etc/conf.d/tcpparser", "TCPPARSER_SHOW=nothing\n")
        done = m.run("rc-service", "tcpparser", "restart")
        assert done.returncode != 0 and "TCPPARSER_SHOW" in done.stderr, f"refused: {done}"
        assert m.guards() == [before], "the one that runs is left alone"
        m.must("rc-service", "tcpparser", "stop")
        m.write("/etc/conf.d/tcpparser", "TCPPARSER_Dry_Run1=yes\n")
        done = m.run("rc-service", "tcpparser", "start")
        assert done.returncode != 0 and "'TCPPARSER_Dry_Run1' is not" in done.stderr, (
            f"refused: {done}")
        said = make(m, "uninstall")
        assert left_behind(m) == ["/etc/conf.d/tcpparser"], f"left: {said}"
        assert nothing_left(m), "blocks are lifted"


SHARED = ("man/man8/tcpparser.8", "bash-completion/completions/tcpparser")
PLACES = (PROGRAM, "/usr/bin/tcpparser", SCRIPT, "/etc/init.d/S90tcpparser", SETTINGS,
          "/etc/conf.d/tcpparser", "/etc/config/tcpparser", "/etc/runlevels/default/tcpparser",
          "/etc/rc2.d/S01tcpparser", "/etc/systemd/system/tcpparser.service",
          "/etc/systemd/system/multi-user.target.wants/tcpparser.service",
          "/usr/local/lib/systemd/system/tcpparser.service",
          "/usr/lib/systemd/system/tcpparser.service",
          *(f"{prefix}/share/{place}" for prefix in ("/usr/local", "/usr") for place in SHARED))


def left_behind(m):
    """Whatever of an installation is there."""
    return [path for path in PLACES if m.exists(path)]


# -------------------------------------------------------------------- procd

# UCI sections as shell variables, as OpenWrt's functions.sh has them.
UCI = r"""
config_load() { . "/tmp/uci.$1"; }
config_foreach() { for section in $SECTIONS; do "$1" "$section"; done; }
config_get() { eval "$1=\${CONFIG_$2_$3:-\$4}"; }
config_get_bool() {
    config_get "$1" "$2" "$3"
    eval "found=\$$1"
    case $found in
        1 | on | true | yes | enabled) found=1 ;;
        0 | off | false | no | disabled) found=0 ;;
        *) found=$4 ;;
    esac
    eval "$1=\$found"
}
"""

# Enough of OpenWrt's API with a procd that writes down what it receives.
RC_COMMON = "#!/bin/sh" + UCI + r"""
record() {
    for word in "$@"; do printf '%s\t' "$word"; done >>/tmp/procd
    echo >>/tmp/procd
}
procd_open_instance() { record open "$@"; }
procd_set_param() { record set "$@"; }
procd_append_param() { record append "$@"; }
procd_close_instance() { record close; }
procd_add_reload_trigger() { record trigger "$@"; }
enable() { record enable; }
disable() { record disable; }
start() { rm -f /tmp/procd; start_service; service_triggers; }
restart() { start; }
reload() { if type reload_service >/dev/null; then reload_service; else start; fi; }
stop() { record stop; }
. "$1"
"$2"
"""


def uci_as_shell(text):
    """What config_load makes of a UCI file: elements of a list are joined by a
    space."""
    values, sections = {}, []
    for kind, name, value in re.findall(r"^\s*(config|option|list) (\S+)(?: '(.*)')?$", text, re.M):
        if kind == "config":
            sections.append(value)
        else:
            key = f"CONFIG_{sections[-1]}_{name}"
            is_more = kind == "list" and key in values
            values[key] = f"{values[key]} {value}" if is_more else value
    lines = [f"{key}='{value}'" for key, value in values.items()]
    return "\n".join([*lines, f"SECTIONS='{' '.join(sections)}'"]) + "\n"


def sent_to_procd(m):
    """Command, other parameters, and the rest of what procd received."""
    command, parameters, other = [], {}, []
    for line in m.text("/tmp/procd").splitlines():
        verb, *words = line.rstrip("\t").split("\t")
        if verb in ("set", "append") and words[0] == "command":
            command = words[1:] if verb == "set" else command + words[1:]
        elif verb == "set":
            parameters[words[0]] = words[1:]
        else:
            other.append((verb, *words))
    return command, parameters, other


def test_procd(t):
    with machine(t) as m:
        need_busybox()
        m.boot(IDLE + ASH + "mkdir -p /etc/config\ntouch /sbin/procd\n", "busybox", "init")
        m.write("/etc/rc.common", RC_COMMON)
        m.must("chmod", "755", "/etc/rc.common")
        m.write("/tmp/uci.tcpparser", uci_as_shell(dist("tcpparser.uci")))
        said = m.must("sh", f"{DIST}/install.sh", f"BINARY={t.binary}")
        assert "(procd)" in said and m.exists("/usr/bin/tcpparser"), f"installed: {said}"
        command, parameters, other = sent_to_procd(m)
        assert command == ["/usr/bin/tcpparser", "--show=scans"], "command"
        assert parameters == {"respawn": ["60", "5", "0"], "stdout": ["1"], "stderr": ["1"]}, "how"
        assert other == [("open", "main"), ("close",), ("trigger", "tcpparser")], "and"

        every = re.sub(r"^(\s*)#(option|list)", r"\1\2", dist("tcpparser.uci"), flags=re.M)
        every = re.sub(r"'0'", "'on'", every).replace("/etc/tcpparser-hook", "/usr/bin/env")
        m.write("/tmp/uci.tcpparser", uci_as_shell(every))
        m.must(SCRIPT, "reload")
        command, _, _ = sent_to_procd(m)
        names = re.findall(r"^\s*(?:option|list) (\S+)", every, re.M)
        wanted = {f"--{name.replace('_', '-')}" for name in names} - {"--enabled"}
        assert {word.split("=")[0] for word in command[1:]} == wanted, "options that arrive"
        assert "--allow=192.168.1.0/24,2001:db8::/32" in command, f"a list: {command}"
        assert "--block-time=10m,1h,1d,7d" in command, f"a list: {command}"
        m.must(*command, "--once")

        wrong = uci_as_shell(every.replace("option window '60s'", "option window '60h'"))
        m.write("/tmp/uci.tcpparser", wrong)
        for verb in ("reload", "restart"):
            done = m.run(SCRIPT, verb)
            assert done.returncode == 1 and "--window: '60h'" in done.stderr, f"{verb}: {done}"
            assert sent_to_procd(m)[0] == command, f"what runs after {verb}"

        m.write("/tmp/uci.tcpparser", uci_as_shell(every.replace("enabled 'on'", "enabled '0'")
                                                   .replace("enabled '1'", "enabled '0'")))
        m.must(SCRIPT, "start")
        assert sent_to_procd(m) == ([], {}, [("trigger", "tcpparser")]), "where it is not enabled"
        # Where blocks are is what the settings say.
        need("iptables")
        m.must("cp", "/etc/config/tcpparser", "/tmp/settings")
        m.must("sed", "-i", "s/#option exec_root .*/option exec_root '\\/nowhere'/",
               "/etc/config/tcpparser")
        done = m.run("sh", f"{DIST}/install.sh", "uninstall")
        assert done.returncode == 1 and "cannot be changed" in done.stdout, f"unblocked: {done}"
        m.must("mv", "/tmp/settings", "/etc/config/tcpparser")
        m.must("sh", f"{DIST}/install.sh", "uninstall")
        assert left_behind(m) == [], "left"
        assert sent_to_procd(m)[2][-2:] == [("stop",), ("disable",)], "at last"


# ------------------------------------------------------------------ systemd


def need_systemd():
    if not fetched("systemd"):
        need("systemd-analyze")


def test_systemd_finds_the_unit_right_and_tight(t):
    with machine(t) as m:
        need_busybox()
        need_systemd()
        unit = "/etc/systemd/system/tcpparser.service"
        m.boot(IDLE + placed(t, ("tcpparser.service", unit)), "busybox", "init", packages=None)
        m.must("chmod", "644", unit)
        done = m.run("systemd-analyze", "verify", "--man=no", unit)
        assert (done.returncode, done.stderr) == (0, ""), "verify"
        m.must("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", unit)


def boot_systemd(m, prepare):
    need_systemd()
    prepare += "rm -rf /etc/systemd/system/*.wants /etc/machine-id\ntouch /etc/machine-id\n"
    m.boot(prepare, "/lib/systemd/systemd", "--system", "--unit=basic.target",
           "--log-target=console", packages=None)
    try:
        wait_for(lambda: m.run("systemctl", "is-active", "basic.target").returncode == 0,
                 "systemd's start")
    except AssertionError as failure:
        pytest.skip(f"systemd does not boot here: {failure}")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_systemd(t, flavour):
    """The unit under systemd itself, sandbox and all."""
    m, lan = guarded_machine(t, flavour)
    with m:
        boot_systemd(m, "".join(
            f'ln -sf "$(command -v {name.replace("tables", f"tables-{flavour}")})" '
            f'"$(command -v {name})"\n' for name in IPTABLES_NAMES))
        for path in ("/proc/sys/kernel/printk", "/sys/kernel"):
            assert m.run("test", "-w", path).returncode == 1, f"may its units write to {path}"
        said = make(m, "install")
        assert "(systemd)" in said, f"detected: {said}"
        first = m.guard()
        assert (show(m, "ActiveState", "UnitFileState", "Type", "WatchdogUSec")
                == ["active", "enabled", "notify", "1min"]), "unit"
        status = m.text(f"/proc/{first}/status")
        for line in ("Seccomp:\t2", "NoNewPrivs:\t1", "CapBnd:\t0000000000003c00"):
            assert line in status, f"no {line!r} in {status}"
        scan(m, lan)
        m.kill_guard()
        wait_for(lambda: m.guards() not in ([], [first]), "another one")
        m.write(SETTINGS, 'TCPPARSER_ALLOW="192.0.2.0/24, 192.0.2.7"\n')
        m.must("systemctl", "restart", "tcpparser")
        assert m.environment(m.guard()).get("TCPPARSER_ALLOW") == "192.0.2.0/24, 192.0.2.7", (
            "settings")
        assert blocks(m, lan), "the block outlives restarts"
        journal = ("journalctl", "-u", "tcpparser", "--no-pager", "-o", "cat")
        lines = m.must(*journal).splitlines()
        assert any(line.startswith("           Blocked: ") for line in lines), f"journal: {lines}"
        assert "" not in lines, "an empty entry"
        warnings = m.must(*journal, "-p", "warning")
        assert "Port scan detected: " in warnings and " Blocked: " not in warnings, (
            f"warnings: {warnings}")
        assert "sandbox" not in warnings, f"what the unit takes from its own: {warnings}"
        assert "CapEff:\t0000000000003000" in m.text(f"/proc/{m.guard()}/status"), "given up"
        assert m.run("cat", f"/proc/{m.guard()}/root/etc/shadow").stdout == "", "secrets"
        if flavour == "nft":
            watchdog(m)
        said = make(m, "install")
        assert f"kept      {SETTINGS}" in said, f"settings: {said}"
        before = m.guard()
        m.write(SETTINGS, "TCPPARSER_PORTS=99\n")
        for command in (("systemctl", "reload", "tcpparser"),
                        ("make", "-s", "-C", ROOT, "install")):
            assert m.run(*command).returncode != 0, f"{command} with a wrong setting"
            assert m.guards() == [before], "the one that runs is left alone"
        assert "TCPPARSER_PORTS: '99'" in m.must("journalctl", "-u", "tcpparser", "--no-pager"), (
            "what is wrong")
        m.write(SETTINGS, "TCPPARSER_PORTS=9\n")
        m.must("systemctl", "reload", "tcpparser")
        wait_for(lambda: m.guards() not in ([], [before]), "another one")
        assert m.environment(m.guard()).get("TCPPARSER_PORTS") == "9", "settings after a reload"
        m.write(SETTINGS, "TCPPARSER_PORTS=99\n")
        m.run("systemctl", "restart", "tcpparser")
        assert show(m, "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "2", "0"], (
            "with a wrong setting")
        assert "TCPPARSER_PORTS" in m.must(*journal, "-p", "warning"), "what is wrong is a warning"
        m.must("cp", f"{DIST}/tcpparser.default", SETTINGS)
        said = make(m, "uninstall")
        assert left_behind(m) == [], f"left: {said}"
        assert nothing_left(m), "blocks are lifted"


# What the unit's comment says of TCPPARSER_FIREWALL=nft.
ONE_CAPABILITY = """[Service]
CapabilityBoundingSet=
ReadWritePaths=
CapabilityBoundingSet=CAP_NET_ADMIN
"""


@pytest.mark.parametrize("kind", ["as installed", "one capability"])
def test_systemd_without_iptables(t, kind):
    """The kernel's nf_tables take the blocks, and the last of them the table."""
    need("nft")
    lan = t.lan()
    lan.host.listen(*PORTS)
    with Machine(t, lan.host) as m:
        boot_systemd(m, f"rm -f {' '.join(all_iptables())}\n")
        bounds = "0000000000003c00"
        if kind == "one capability":
            bounds = "0000000000001000"
            m.write("/etc/systemd/system/tcpparser.service.d/override.conf", ONE_CAPABILITY)
            m.write(SETTINGS, "TCPPARSER_FIREWALL=nft\n")
        make(m, "install")
        status = m.text(f"/proc/{m.guard()}/status")
        assert f"CapBnd:\t{bounds}\n" in status, f"CapBnd: {bounds} in {status}"
        for port in PORTS:
            lan.peer.connect(lan.host_v4, port).close()
        table = ("nft", "list", "table", "inet", "tcpparser")
        wait_for(lambda: f" {lan.peer_v4} timeout " in lan.host.run(*table).stdout, "a block")
        assert m.must("systemctl", "is-active", "tcpparser") == "active\n", "the service"
        make(m, "uninstall")
        assert lan.host.run(*table).returncode != 0, "the table goes with the last block"


def all_iptables():
    """The names by which any iptables is found, where a shell looks for them."""
    return [f"{folder}/{'-'.join(filter(None, name))}"
            for folder in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin")
            for name in itertools.product(("iptables", "ip6tables"), ("", "nft", "legacy"),
                                          ("", "restore", "save"))]


def watchdog(m):
    """Patience for two seconds, readings each hour, then no life at all."""
    m.write("/run/systemd/system/tcpparser.service.d/short.conf",
            "[Service]\nEnvironment=TCPPARSER_INTERVAL=1h\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    m.must("systemctl", "daemon-reload")
    m.must("systemctl", "restart", "tcpparser")
    since = time.monotonic()
    first = m.guard()
    wait_for(lambda: time.monotonic() > since + 3, "three seconds")
    assert m.guards() == [first], "daemons past the watchdog"
    m.must("sh", "-c", f"kill -STOP {first}")
    wait_for(lambda: m.guards() not in ([], [first]), "another one")
    m.must("rm", "-r", "/run/systemd/system/tcpparser.service.d")
    m.must("systemctl", "daemon-reload")


def show(m, *names):
    text = m.must("systemctl", "show", "tcpparser", *(f"-p{name}" for name in names))
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    return [values.get(name) for name in names]


# --------------------------------------------------------- make install


def test_make_install_and_uninstall(t):
    """Where scripts of /etc/init.d are started: detected, enabled, started."""
    (install,), (uninstall,) = blocks_to_type(t, "Start it at boot")
    m, lan = guarded_machine(t)
    with m:
        need_busybox()
        m.boot(IDLE, "busybox", "init")
        said = typed(t, m.run, install)
        assert "(sysv)" in said and "/var/log/tcpparser.log" in said, f"said: {said}"
        first = m.guard()
        assert glob.glob(m.path("/etc/rc2.d/S*tcpparser")), "enabled"
        scan(m, lan)
        make(m, "install")
        assert m.guard() != first and blocks(m, lan), "installed again, and the block stands"
        break_iptables(m)
        cannot_uninstall(m)
        assert (([path for path in (PROGRAM, SCRIPT, SETTINGS) if not m.exists(path)], m.guards())
                == ([], [])), "missing already"
        break_iptables(m, False)
        assert blocks(m, lan), "the block stands"
        said = typed(t, m.run, uninstall)
        assert (left_behind(m), m.guards()) == ([], []), f"left: {said}"
        assert nothing_left(m), f"blocks are lifted: {said}"
        assert glob.glob(m.path("/etc/rc?.d/*tcpparser")) == [], "links"
        make(m, "uninstall")
        make(m, "install", "INIT=none", "PREFIX=/usr")
        assert ((left_behind(m), m.guards())
                == (["/usr/bin/tcpparser", *(f"/usr/share/{place}" for place in SHARED)], [])), (
            "with INIT=none")
        said = m.must("sh", "-c", f"make -s -C {ROOT} uninstall PREFIX=/usr 2>&1")
        assert {line.split()[0] for line in said.splitlines()} == {"removed"}, "without a block"
        make(m, "install", "INIT=none", "PREFIX=/usr")
        break_iptables(m)
        cannot_uninstall(m, "PREFIX=/usr")
        make(m, "uninstall", "PREFIX=/usr", "UNBLOCK=no")
        assert left_behind(m) == [], "left with UNBLOCK=no"


def test_install_that_cannot_block_says_what_to_do(t):
    """It is installed and runs; the exit status tells scripts."""
    with machine(t) as m:
        need_busybox()
        m.boot(IDLE + f"rm -f {' '.join(all_iptables())}\n", "busybox", "init")
        install = ("sh", f"{DIST}/install.sh", f"BINARY={t.binary}")
        m.must(*install)
        m.write(SETTINGS, "TCPPARSER_FIREWALL=iptables\nTCPPARSER_LISTEN=127.0.0.1:3333\n")
        done = m.run(*install)
        assert done.returncode == 3, f"exit status, {done}"
        assert "is not installed: install the package iptables" in done.stderr, f"why: {done}"
        assert (done.stderr.splitlines()[-1] == "install.sh: tcpparser runs, but cannot block; "
                f"apt-get install iptables, then: {SCRIPT} restart"), f"what to do: {done}"
        assert len(m.guards()) == 1, "it runs"
        break_iptables(m)
        done = m.run(*install)
        assert done.returncode == 3 and "it is broken" in done.stderr, f"why: {done}"
        assert "put that right, then: " in done.stderr.splitlines()[-1], f"what to do: {done}"
        for settings in ("TCPPARSER_FIREWALL=none\n", "TCPPARSER_FIREWALL=nft\n",
                         "TCPPARSER_FIREWALL=iptables\nTCPPARSER_DRY_RUN=yes\n"):
            m.write(SETTINGS, settings)
            m.must(*install)


def break_iptables(m, is_broken=True):
    for tool in itertools.product(("iptables", "ip6tables"), ("", "-nft", "-legacy")):
        path = "/usr/local/sbin/" + "".join(tool)
        if is_broken:
            m.write(path, "#!/bin/sh\necho it is broken >&2\nexit 4\n")
            m.must("chmod", "755", path)
        else:
            m.must("rm", path)


def cannot_uninstall(m, *arguments):
    """And says why, and how to go on."""
    done = m.run("make", "-s", "-C", ROOT, "uninstall", *arguments)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "cannot be changed: " in said and "UNBLOCK=no" in said, said


def test_release_installs_itself(t):
    """Unpacked as README says, where scripts of /etc/init.d are started."""
    lines = next(lines for lines in blocks_to_type(t, "Release files") if len(lines) > 1)
    if platform.machine() != "x86_64":
        pytest.skip(f"another release is for {platform.machine()}")
    release = tarball(t, "x86_64")
    with machine(t) as m:
        need_busybox()
        m.boot(f"{IDLE}cp {quote(release)} /root\n", "busybox", "init")
        said = typed(t, m.run, *lines, folder="/root")
        assert "(sysv)" in said and m.guard(), f"said: {said}"
        m.must("sh", "-c", f"cmp /root/tcpparser-*/tcpparser {PROGRAM}")


# A root with nothing but BusyBox, and the program as a release unpacks it.
SMALL = """mkdir -p /small/bin /small/sbin /small/proc /small/dev /small/root /small/etc/init.d \\
    /small/var/log /small/var/run /small/tmp
mount -t proc proc /small/proc
busybox=$(command -v busybox)
for file in "$busybox" $(ldd "$busybox" 2>/dev/null | grep -o '/[^ ]*'); do
    mkdir -p "/small${{file%/*}}"
    cp -L "$file" "/small$file"
done
for name in $("$busybox" --list); do ln -s "$busybox" "/small/bin/$name"; done
ln -s ../bin/start-stop-daemon /small/sbin/start-stop-daemon
mknod /small/dev/null c 1 3
echo 'for i in /etc/init.d/S??*; do "$i" start; done' >/small/etc/init.d/rcS
cp {dist}/install.sh {dist}/tcpparser.* {binary} /small/root
"""


def test_install_where_busybox_is_all(t):
    with machine(t) as m:
        need_busybox()
        m.boot(IDLE + SMALL.format(dist=quote(DIST), binary=quote(t.binary)), "busybox", "init")
        small = ("chroot", "/small", "/bin/sh")
        said = m.must(*small, "/root/install.sh")
        assert "(sysv)" in said and "iptables" not in said, f"said: {said}"
        first = m.guard()
        m.must(*small, SCRIPT, "stop")
        m.must(*small, "/etc/init.d/rcS")
        assert m.guard() != first, "started as at boot"
        assert "tcpparser starting" in m.text("/small/var/log/tcpparser.log"), "the log"
        m.must(*small, "/root/install.sh", "uninstall")
        assert m.guards() == [], "daemons"
        left = m.must("find", "/small/etc", "/small/usr", "-name", "*tcpparser*").split()
        assert left == [], "files"


FILES = {
    "none": {},
    "sysv": {SCRIPT: 0o755, SETTINGS: 0o644},
    "openrc": {SCRIPT: 0o755, "/etc/conf.d/tcpparser": 0o644},
    "procd": {SCRIPT: 0o755, "/etc/config/tcpparser": 0o644},
    "systemd": {"/usr/lib/systemd/system/tcpparser.service": 0o644, SETTINGS: 0o644},
}
SIGNS = {
    "none": (),
    "sysv": ("etc/init.d/", "sbin/start-stop-daemon"),
    "openrc": ("etc/init.d/", "sbin/openrc-run", "sbin/start-stop-daemon"),
    "procd": ("etc/init.d/", "sbin/procd"),
    "systemd": ("etc/init.d/", "usr/lib/systemd/systemd"),
}


def files_below(folder):
    """Regular files by their path, with their modes."""
    return {path[len(folder):]: os.stat(path).st_mode & 0o7777
            for path in glob.glob(f"{folder}/**", recursive=True) if os.path.isfile(path)}


@pytest.mark.parametrize("init", FILES)
def test_install_into_a_tree(t, init):
    tree = t.folder("tree")
    for sign in SIGNS[init]:
        os.makedirs(os.path.dirname(f"{tree}/{sign}"), exist_ok=True)
        if not sign.endswith("/"):
            open(f"{tree}/{sign}", "w").close()
    before = files_below(tree)
    wanted = {**before, "/usr/bin/tcpparser": 0o755,
              **{f"/usr/share/{place}": 0o644 for place in SHARED}, **FILES[init]}
    install = ("make", "-s", "-C", ROOT, f"DESTDIR={tree}", "PREFIX=/usr")
    must("sh", "-c", 'umask 077 && exec "$@"', "sh", *install, "install")
    assert files_below(tree) == wanted, "files where the tree says what it is"
    for path in wanted:
        mode = os.stat(os.path.dirname(tree + path)).st_mode & 0o7777
        assert oct(mode) == "0o755", f"mode of the folder of {path}"
    must("cmp", t.binary, f"{tree}/usr/bin/tcpparser")
    for path in FILES[init]:
        with open(tree + path) as file:
            assert PROGRAM not in file.read(), f"PREFIX in {path}"
    settings = next((path for path in FILES[init] if not path.endswith(("d/tcpparser", "service"))
                     or "conf" in path), None)
    if settings:
        with open(tree + settings, "a") as file:
            file.write("# mine\n")
        must(*install, "install", f"INIT={init}")
        with open(tree + settings) as file:
            assert "# mine" in file.read(), "settings are kept"
        said = must(*install, "uninstall")
        assert f"left      {tree}{settings}" in said, f"said: {said}"
        os.remove(tree + settings)
    must(*install, "uninstall")
    assert files_below(tree) == before, "files after uninstall"


def test_install_prints_its_help(t):
    for word in ("--help", "-h", "help"):
        said = must("sh", f"{DIST}/install.sh", "uninstall", word)
        assert said.startswith("Installs tcpparser and"), f"said: {said}"
        for name in ("INIT=", "PREFIX=", "DESTDIR=", "BINARY=", "UNBLOCK=", "uninstall"):
            assert name in said, f"{name} in {said}"
        assert "set -eu" not in said and "#" not in said, f"said: {said}"


def test_install_says_what_it_cannot_do(t):
    for arguments, words in ((("INIT=upstart",), "INIT=upstart is not known"),
                             (("PREFIX=local",), "an absolute path"),
                             (("BINARY=/nowhere",), "BINARY=/nowhere is no file"),
                             (("bogus",), "'bogus' is not known: see"),
                             (("UNBLOCK=maybe",), "'UNBLOCK=maybe' or "),
                             (("install", "uninstall"), "'install' or 'uninstall', not both"),
                             (("DESTDIR=/proc", f"BINARY={t.binary}"),
                              "/proc/usr/local/bin cannot be written: use sudo")):
        done = run("sh", f"{DIST}/install.sh", f"DESTDIR={t.folder('tree')}", *arguments)
        assert done.returncode == 1, f"exit status of {arguments}"
        assert words in done.stderr and done.stderr.count("\n") == 1, f"said: {done.stderr}"
    assert files_below(t.folder("tree")) == {}, "files"


def test_install_looks_into_the_environment(t):
    """`DESTDIR=… make install` is what packagers write: nothing may go elsewhere."""
    tree = t.folder("tree")
    env = dict(os.environ, DESTDIR=tree, INIT="none", PREFIX="/opt")
    must("sh", f"{DIST}/install.sh", f"BINARY={t.binary}", env=env)
    assert "/opt/bin/tcpparser" in files_below(tree), "the program"
    must("sh", f"{DIST}/install.sh", "uninstall", env=env)
    assert files_below(tree) == {}, "after uninstall"
    said = must("make", "-n", "-C", ROOT, "install", "uninstall", env=dict(env, UNBLOCK="no"))
    for word in (f"'DESTDIR={tree}'", "'INIT=none'", "'PREFIX=/opt'", "'UNBLOCK=no'"):
        assert word in said, f"{word} in {said}"


def test_make_install_builds_what_is_old(t):
    """With a cargo that cannot build, which is how we see it called."""
    out, stubs, tree = t.folder("out"), t.folder("stubs"), t.folder("tree")
    program = shutil.copy(t.binary, out)
    env = {**HOME, "PATH": f"{stubs}:{HOME['PATH']}"}

    def install(cargo, time_of_program):
        for name, script in (("cargo", cargo), ("rustc", "echo /")):
            with open(f"{stubs}/{name}", "w") as file:
                file.write(f"#!/bin/sh\n{script}\n")
            os.chmod(f"{stubs}/{name}", 0o755)
        os.utime(program, (time_of_program, time_of_program))
        done = run("make", "-s", "-C", ROOT, "install", f"OUT={out}", f"DESTDIR={tree}", env=env)
        return done.returncode == 0, "that is old" in done.stderr

    cargo = '[ "$1" != build ] || { echo "that is old" >&2 && exit 1; }'
    assert install(cargo, time.time()) == (True, False), (
        "a new one: it installs, and does not build")
    assert install(cargo, 0) == (False, True), "an old one: the same"
    assert install("exit 1", 0) == (True, False), "an old one without cargo: the same"
