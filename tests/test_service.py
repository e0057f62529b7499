"""What containers and init systems ask of it: the tools of another root
directory, a health check, and word about its start, its life and its end."""

import contextlib
import glob
import os
import re
import shutil
import signal
import socket
import time

import pytest

from harness import (DEADLINE, FLAVOURS, HOME, IPTABLES_NAMES, broken_firewall, listed_blocks,
                     must, need, wait_for, wrapped_firewall)
from test_files import fixture

PORTS = (22, 25, 80, 443)
EXTENSIONS = ("standard", "comment", "addrtype")
# Or nf_tables would take the blocks.
IPTABLES_ALONE = ("--firewall", "iptables")
NOTHING = "tcpparser: nothing can be blocked by iptables"
WAY_OUT = (": use the iptables of its host by -v /:/host:ro "
           "--cap-add=NET_RAW --cap-add=SYS_CHROOT -e TCPPARSER_EXEC_ROOT=/host")


# ------------------------------------------------------------- --exec-root


def copy(file, root):
    """Puts a file where it stands, below another root directory."""
    place = root + file
    os.makedirs(os.path.dirname(place), exist_ok=True)
    shutil.copy(file, place)


def small_root(t, firewall, folder="/usr/sbin"):
    """A root directory with one flavour's tools and nothing else."""
    need("ldd")
    root = t.folder("root")
    os.makedirs(root + folder)
    os.makedirs(root + "/run")
    tool = os.path.realpath(os.path.join(firewall.folder, "iptables"))
    files = [file for name in EXTENSIONS for folder in ("/usr/lib*", "/usr/lib/*")
             for file in glob.glob(f"{folder}/xtables/libxt_{name}.so")]
    copy(tool, root)
    for name in IPTABLES_NAMES:
        os.symlink(tool, os.path.join(root + folder, name))
    for file in (tool, *files):
        for library in re.findall(r"(/\S+) \(0x", must("ldd", file)):
            copy(library, root)
    for file in files:
        copy(file, root)
    return root


class Scene:
    """A host whose only iptables stands in another root directory."""

    def __init__(self, t, flavour="nft", folder="/usr/sbin", path="/nowhere"):
        self.t, self.lan = t, t.lan()
        self.lan.host.listen(*PORTS)
        self.firewall = t.firewall(self.lan.host, flavour)
        self.root = small_root(t, self.firewall, folder)
        self.env = {"PATH": path, "TZ": "UTC0", "XTABLES_LOCKFILE": "/run/lock-of-the-root"}

    def scan(self):
        return [self.lan.peer.connect(self.lan.host_v4, port) for port in PORTS]

    def command(self, *arguments, **env):
        return self.lan.host.run(self.t.binary, *arguments, env={**self.env, **env})


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_tools_of_another_root(t, flavour):
    """From the first look to the last unblock, whatever our own PATH says."""
    scene = Scene(t, flavour)
    os.mkdir(f"{scene.root}/dev")
    guard = t.guard(scene.lan.host, "--exec-root", scene.root, env=scene.env).ready()
    scene.scan()
    undo = guard.wait_line(" Blocked: +10.77.0.2 ").partition("undo: tcpparser ")[2].split()
    assert undo == ["--unblock", "10.77.0.2", "--exec-root", scene.root], "the undo command"
    assert scene.firewall.blocks(scene.lan.host, "10.77.0.2/32"), "it stands in the kernel"
    assert guard.error_output() == [], "stderr"
    for command in ("/proc/self", f"/proc/{guard.pid}"):
        assert os.readlink(f"{command}/root") == "/", "only the commands' root is another one"
    if flavour == "legacy":
        assert os.path.exists(f"{scene.root}/run/lock-of-the-root"), "XTABLES_LOCKFILE is in it"
    assert os.listdir(f"{scene.root}/dev") == [], "no file takes the place of a device"
    listed = scene.command("--list", TCPPARSER_EXEC_ROOT=scene.root)
    assert "10.77.0.2" in listed.stdout, f"--list: {listed.stdout!r} {listed.stderr!r}"
    assert scene.command("--list").returncode == 1, "--list without it"
    undone = scene.command(*undo)
    assert (undone.returncode, undone.stdout) == (0, "1 block removed\n"), undone.stderr
    assert not scene.firewall.entries(scene.lan.host), "no entry is left"


def test_our_path_comes_first_in_another_root(t):
    """A host that keeps its tools elsewhere, named by PATH."""
    scene = Scene(t, folder="/tools/bin", path="relative:/tools/bin")
    guard = t.guard(scene.lan.host, env={**scene.env, "TCPPARSER_EXEC_ROOT": scene.root}).ready()
    scene.scan()
    guard.wait_line(" Blocked: ")
    assert guard.error_output() == [], "stderr"


@pytest.mark.parametrize("trouble", ["no capability", "no directory", "no tool", "not executable"])
def test_another_root_that_is_of_no_use(t, trouble):
    """Said once for each family and tried again; the commands say it, too."""
    scene, before = Scene(t), ()
    root, words = scene.root, {
        "no capability": "CAP_SYS_CHROOT is missing for",
        "no directory": "there is no directory",
        "no tool": "it is not in",
        "not executable": "it cannot be run in",
    }[trouble]
    if trouble == "no capability":
        need("setpriv")
        before = ("setpriv", "--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot")
    elif trouble == "no directory":
        os.rename(root, root + "-away")
    elif trouble == "no tool":
        os.rename(root + "/usr/sbin", root + "/usr/away")
    else:
        os.chmod(os.path.realpath(scene.firewall.folder + "/iptables").replace("/", root + "/", 1),
                 0o644)
    words += f" --exec-root {root}"
    failed = "is not installed" if trouble == "no tool" else "could not be started"
    guard = t.guard(scene.lan.host, "--exec-root", root, *IPTABLES_ALONE, env=scene.env,
                    before=before).ready()
    scene.scan()
    guard.wait_line(" Block failed: ")
    said = wait_for(lambda: len(guard.error_output()) >= 3 and guard.error_output(), "stderr")
    assert sorted(said) == sorted([NOTHING, *(
           f"tcpparser: {tool} {failed}: {words}; it is tried again"
           for tool in ("iptables", "ip6tables"))]), "stderr"
    if before:
        return
    for command in ("--list", "--unblock=all"):
        ended = scene.command(command, "--exec-root", root, *IPTABLES_ALONE)
        assert (ended.returncode, ended.stdout) == (1, ""), f"{command}: {ended.stderr}"
        assert words in ended.stderr, f"{command}: {ended.stderr!r}"
    if trouble == "no tool":
        os.rename(root + "/usr/away", root + "/usr/sbin")
        guard.wait_line(" Blocked: ")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_kernels_without_tables_for_iptables(t, flavour):
    """The real tools report a table that really is not there: nf_tables take
    the blocks, and with iptables alone it is a failure."""
    lan = t.lan()
    lan.host.listen(*PORTS)
    env = wrapped_firewall(t, t.firewall(lan.host, flavour),
                           'case $name in *tables) exec "$real" -t nosuch "$@";; esac')
    guard = t.guard(lan.host, *IPTABLES_ALONE, env=env).ready()
    wait_for(lambda: NOTHING in guard.error_output(), "the way out")
    assert "nosuch" in guard.error_output()[0], f"stderr: {guard.error_output()}"
    listed = lan.host.run(t.binary, "--list", env=env)
    assert (listed.returncode, listed_blocks(listed.stdout)) == (1, []), f"--list: {listed.stderr}"
    guard.kill()
    guard = t.guard(lan.host, env=env).ready()
    for port in PORTS:
        lan.peer.connect(lan.host_v4, port)
    guard.wait_line(" Blocked: ")
    listed = lan.host.run(t.binary, "--list", env=env)
    assert re.search(rf"^{lan.peer_v4} .* nft +22,25,80,443$", listed.stdout, re.M), f"--list: {listed}"


@pytest.mark.parametrize("trouble", ["no tool", "it fails", "in another root"])
@pytest.mark.parametrize("place", ["host", "container"])
def test_way_out_is_named_where_it_is_one(t, trouble, place):
    """Once, for both families. On a host it is what each tool's line says."""
    root = ("--exec-root", t.folder("root")) if trouble == "in another root" else ()
    env = (broken_firewall(t, "exit 3\n") if trouble == "it fails"
           else {"PATH": t.folder("empty"), "TZ": "UTC0"})
    if place == "container":
        env["container"] = "podman"
    host = t.namespace("host")
    host.listen(22)
    guard = t.guard(host, *root, *IPTABLES_ALONE, env=env).ready()
    wait_for(lambda: any(NOTHING in line for line in guard.error_output()), "the way out")
    guard.wait_readings(2)
    assert ([line for line in guard.error_output() if not line.endswith("; it is tried again")]
            == [NOTHING + WAY_OUT if place == "container" and not root else NOTHING]), (
        "what is said beside each tool's failure")
    tools = [line for line in guard.error_output() if "install the package" in line]
    assert len(tools) == (2 if trouble == "no tool" else 0), "what is to be installed"


# ----------------------------------------------------------- --healthcheck


def healthcheck(t, host, *arguments, before=(), **env):
    """Its exit status, what it says, and how long it took."""
    started = time.monotonic()
    done = host.run(*before, t.binary, "--healthcheck", *arguments,
                    env={"PATH": HOME["PATH"], **env})
    assert done.stdout == "", "stdout"
    return done.returncode, done.stderr, time.monotonic() - started


@pytest.mark.parametrize("listen", [
    "[::]:3021", "0.0.0.0:3021", "10.77.0.1:80", "[fd00:77::1]:80", "[::1]:80"])
def test_healthcheck_of_a_healthy_daemon(t, listen):
    host = t.lan().host
    guard = t.guard(host, "--listen", listen, "--dry-run")
    guard.wait_line("No TCP peer connection")
    assert healthcheck(t, host, "--listen", listen)[:2] == (0, ""), "by option"
    assert healthcheck(t, host, TCPPARSER_LISTEN=listen)[:2] == (0, ""), "by environment"


def test_healthcheck_needs_no_rights_and_leaves_no_trace(t):
    need("setpriv")
    host = t.lan().host
    guard = t.guard(host).ready()
    before = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")
    for _ in range(20):
        assert healthcheck(t, host, before=before)[:2] == (0, ""), "as nobody"
    guard.wait_readings(3)
    scraped = guard.scrape()
    for name in ("new_connections_total", "connections_missed_total"):
        assert sum(value for key, value in scraped.items() if name in key) == 0, name
    assert guard.matching("New connection") == [], "lines"


def test_healthcheck_without_ipv6(t):
    host = t.namespace("host")
    host.must("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    t.guard(host).ready()
    assert healthcheck(t, host)[:2] == (0, ""), "healthy"


def test_healthcheck_says_what_is_wrong(t):
    host = t.namespace("host")

    def unhealthy(words, *arguments):
        status, said, _ = healthcheck(t, host, *arguments)
        assert (status, said) == (1, f"tcpparser: {words}\n"), "unhealthy"

    unhealthy("127.0.0.1:3021: connection refused")
    unhealthy("192.0.2.1:80: address not there", "--listen", "192.0.2.1:80")
    unhealthy("--listen none leaves no listener to ask", "--listen", "none")
    guard = t.guard(host, *IPTABLES_ALONE, env=broken_firewall(t, "exit 3\n")).ready()
    wait_for(guard.error_output, "words about the firewall")
    unhealthy("127.0.0.1:3021: 503 the firewall cannot be used")
    guard.signal(signal.SIGSTOP)
    status, said, seconds = healthcheck(t, host)
    assert (status, said) == (1, "tcpparser: 127.0.0.1:3021: no answer in time\n"), "unhealthy"
    assert 2.9 < seconds < 10, f"it took {seconds:.1f} s"
    guard.signal(signal.SIGCONT)


def test_healthcheck_without_iptables(t):
    """Nothing is wrong where nf_tables take the blocks."""
    host = t.namespace("host")
    guard = t.guard(host, env={"PATH": t.folder("empty"), "TZ": "UTC0"}).ready()
    wait_for(lambda: guard.metric("tcpparser_firewall_up") == 1, "firewall_up")
    assert guard.metric("tcpparser_firewall_jump_first") == 1, "jump_first, without a chain"
    assert healthcheck(t, host)[:2] == (0, ""), "healthy"
    assert guard.error_output() == [], "stderr"


def test_healthcheck_when_readings_stop(t):
    folder, host = fixture(t, []), t.namespace("host")
    t.guard(host, "--dry-run", "--proc", folder).ready()
    assert healthcheck(t, host)[:2] == (0, ""), "healthy"
    os.rename(f"{folder}/net/tcp", f"{folder}/net/away")
    said = wait_for(lambda: healthcheck(t, host)[1], "trouble", 3)
    assert said == "tcpparser: 127.0.0.1:3021: 503 the last good reading is too old\n", "stderr"


# --------------------------------------------------------------- sd_notify


class Init:
    """An init system's end of NOTIFY_SOCKET, held inside a namespace."""

    def __init__(self, t, host, name=None):
        self.address = name or os.path.join(t.tmp, "notify")
        with host.entered():
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        host.sockets.append(self.socket)
        self.socket.bind(self.address.replace("@", "\0"))
        self.env = {"PATH": t.folder("path-empty"), "NOTIFY_SOCKET": self.address}

    def hears(self):
        self.socket.settimeout(DEADLINE)
        return self.socket.recv(4096).decode()

    def heard(self):
        """All that waits to be heard."""
        said = []
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(self.socket.recv(4096).decode())
        return said


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_init_learns_of_start_life_and_end(t, kind):
    host = t.namespace("host")
    init = Init(t, host, "@tcpparser-test" if kind == "abstract" else None)
    guard = t.guard(host, "--dry-run", env=init.env)
    assert [init.hears() for _ in range(4)] == ["READY=1"] + ["WATCHDOG=1"] * 3, "said"
    guard.wait_line("No TCP peer connection")
    guard.signal(signal.SIGTERM)
    assert guard.wait_exit() == 0, "exit status"
    said = init.heard()
    assert said[-1:] == ["STOPPING=1"], "the last word"
    assert set(said[:-1]) - {"WATCHDOG=1"} == set(), "words before"
    assert guard.error_output() == [], "stderr"


def test_watchdog_of_root_alone_is_fed_from_the_sandbox(t):
    """Whose user could not connect there any more."""
    host = t.namespace("host")
    init = Init(t, host)
    os.chmod(init.address, 0o700)
    guard = t.guard(host, "--dry-run", env=init.env).ready()
    wait_for(lambda: guard.metric('tcpparser_sandbox_info{tier="sealed"}') == 1, "the sandbox")
    guard.wait_readings(3)
    init.heard()
    assert init.hears() == "WATCHDOG=1", "word"
    # One that starts anew is found, too.
    os.unlink(init.address)
    init.socket.close()
    init = Init(t, host)
    os.chmod(init.address, 0o777)
    assert init.hears() == "WATCHDOG=1", "word to another"
    assert guard.error_output() in ([], [
        "tcpparser: NOTIFY_SOCKET cannot be notified: no such file"]), "stderr"


def test_watchdog_is_fed_by_good_readings_alone(t):
    folder, host = fixture(t, []), t.namespace("host")
    init = Init(t, host)
    os.rename(f"{folder}/net/tcp", f"{folder}/net/away")
    guard = t.guard(host, "--dry-run", "--proc", folder, env=init.env)
    assert init.hears() == "READY=1", "a host without rows starts"
    guard.wait_readings(3)
    assert init.heard() == [], "said while nothing can be read"
    os.rename(f"{folder}/net/away", f"{folder}/net/tcp")
    assert init.hears() == "WATCHDOG=1", "said once it can"
    os.rename(f"{folder}/net/tcp", f"{folder}/net/away")
    guard.wait_readings(2)
    init.heard()
    guard.wait_readings(3)
    assert init.heard() == [], "said when it cannot any more"


def test_watchdog_is_fed_in_time_whatever_the_interval(t):
    host = t.namespace("host")
    init = Init(t, host)
    t.guard(host, "--dry-run", env={**init.env, "WATCHDOG_USEC": "3000000"}, interval="1h")
    assert init.hears() == "READY=1", "first word"
    times = []
    for _ in range(4):
        assert init.hears() == "WATCHDOG=1", "word"
        times.append(time.monotonic())
    gaps = [after - before for before, after in zip(times, times[1:])]
    assert max(gaps) < 3, f"seconds between: {gaps}"
    assert sum(gaps) > 3 * 1.25, f"seconds between: {gaps}"


@pytest.mark.parametrize("trouble", ["full", "missing", "path too long"])
def test_deaf_init_delays_nothing(t, trouble):
    host = t.namespace("host")
    init = Init(t, host)
    if trouble == "full":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, \
                contextlib.suppress(BlockingIOError):
            other.setblocking(False)
            for _ in range(100_000):
                other.sendto(b"x", init.address)
    elif trouble == "missing":
        os.unlink(init.address)
    else:
        init.env["NOTIFY_SOCKET"] = "/" + "l" * 300
    guard = t.guard(host, "--dry-run", env=init.env).ready()
    started = time.monotonic()
    guard.wait_readings(5)
    assert time.monotonic() - started < 10, "readings wait"
    said = guard.error_output()
    if trouble == "full":
        assert said == [], "stderr"
        wait_for(lambda: "READY=1" in init.heard(), "READY=1 once there is room")
    else:
        assert len(said) == 1, f"lines on stderr: {said}"
        assert "NOTIFY_SOCKET cannot be notified: " in said[0], said[0]


def test_commands_of_the_firewall_know_nothing_of_it(t):
    host = t.namespace("host")
    firewall, init = t.firewall(host), Init(t, host)
    kept = os.path.join(t.tmp, "environment")
    env = wrapped_firewall(t, firewall, f"/usr/bin/env > {kept}-new; /bin/mv {kept}-new {kept}")
    t.guard(host, env={**env, **init.env, "PATH": env["PATH"], "WATCHDOG_USEC": "9000000"}).ready()
    with open(kept) as file:
        names = {line.partition("=")[0] for line in file} - {"PWD", "OLDPWD", "SHLVL", "_"}
    assert names == {"PATH", "LC_ALL", "XTABLES_LOCKFILE"}, "variables of a command"
