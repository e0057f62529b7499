"""Where blocks stand: what a router's neighbours keep, both flavours of
iptables on one host, jumps that others push down, tools that are missing, and
what is left at the end.
"""

import contextlib
import os
import re
import resource
import signal
import socket
import threading
import time

import traffic
import pytest

from harness import (BACKENDS, IPTABLES_NAMES, TO_HOST, Firewall, link, listed_blocks, need,
                     real_tool, wait_for, wrapped_firewall)
from test_blocking import PORTS, Scene
from test_firewall import (CHAINS, block, boot_seconds, cidr, entry, feed, is_untouched,
                           quick_scene, rows_with, said_of_tools, sources, total)

SPARED = "! -p ipv6-icmp " + TO_HOST


def is_blocked_by(scene, guard):
    """The control: an ordinary scanner is blocked as ever."""
    block(scene, guard, scene.family.friend)
    assert not scene.reaches(scene.family.friend, 0.3), "the scanner is blocked"


# ------------------------------------------------------------------ neighbours


class UdpEcho:
    """Answers datagrams."""

    def __init__(self, namespace, address, port=7777):
        self.socket = datagrams(namespace, address)
        self.socket.bind((address, port))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                data, peer = self.socket.recvfrom(100)
                if peer:  # None where the socket was closed meanwhile
                    self.socket.sendto(data, peer)


def datagrams(namespace, address):
    with namespace.entered():
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET,
                             socket.SOCK_DGRAM)
    namespace.sockets.append(made)
    return made


def exchanges_lost(namespace, address, count, port=7777):
    """So many questions, two each second; how many stay without an answer."""
    client, lost = datagrams(namespace, address), 0
    client.settimeout(0.5)
    for number in range(count):
        started = time.monotonic()
        client.sendto(b"%d" % number, (address, port))
        try:
            while client.recv(100) != b"%d" % number:
                pass
        except OSError:
            lost += 1
        time.sleep(max(0, started + 0.5 - time.monotonic()))
    return lost


class Routed:
    """near -- router -- inner, and the router's neighbour entries get old soon.
    TCP would hide what the firewall does to neighbour discovery: an answer of
    the far end shows the router that its neighbour is alive."""

    def __init__(self, t, backend):
        self.near, self.router, self.inner = (t.namespace(role)
                                              for role in ("near", "router", "inner"))
        link(self.router, "near0", self.near, "up0", ("fd00:1::1/64", "fd00:1::2/64"),
             ("10.1.0.1/24", "10.1.0.2/24"))
        link(self.router, "inner0", self.inner, "up0", ("fd00:3::1/64", "fd00:3::2/64"),
             ("10.3.0.1/24", "10.3.0.2/24"))
        self.near.ip("route add default via fd00:1::1", "route add default via 10.1.0.1")
        self.inner.ip("route add default via fd00:3::1", "route add default via 10.3.0.1")
        self.router.sysctl("net.ipv6.conf.all.forwarding=1", "net.ipv4.ip_forward=1")
        for namespace, device in ((self.router, "near0"), (self.near, "up0")):
            namespace.sysctl(f"net.ipv6.neigh.{device}.base_reachable_time_ms=1000",
                             f"net.ipv6.neigh.{device}.delay_first_probe_time=1",
                             f"net.ipv6.neigh.{device}.retrans_time_ms=300")
        self.router.listen(*PORTS, address="::")
        self.firewall = t.backend(self.router, backend)
        self.echoes = [UdpEcho(namespace, address) for namespace, address in (
            (self.router, "fd00:1::1"), (self.inner, "fd00:3::2"), (self.inner, "10.3.0.2"))]
        self.guard = lambda: t.guard(self.router, env=self.firewall.env).ready()

    def is_shut(self, scanner="fd00:1::2", router="fd00:1::1"):
        return not self.near.connects(router, 22, scanner, 0.3)


# The scanner, the router, a host behind it, and how many exchanges with that.
NEIGHBOURS = {"IPv4": ("10.1.0.2", "10.1.0.1", "10.3.0.2", 6),
              "IPv6": ("fd00:1::2", "fd00:1::1", "fd00:3::2", 24)}


@pytest.mark.idle
@pytest.mark.parametrize("family", NEIGHBOURS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbour_keeps_what_lies_behind_the_router(t, backend, family):
    scanner, router, far, count = NEIGHBOURS[family]
    scene = Routed(t, backend)
    wait_for(lambda: exchanges_lost(scene.near, far, 2) == 0, "the way through")
    guard = scene.guard()
    held = [scene.near.connect(router, port) for port in PORTS]
    guard.wait_line(f" Blocked: +{re.escape(scanner)} ")
    lost = exchanges_lost(scene.near, far, count)
    assert lost <= 1, f"{lost} of {count} exchanges lost behind the router"
    assert scene.is_shut(scanner, router), "the router is shut to it"
    if ":" in router:
        assert exchanges_lost(scene.near, router, 2) == 2, "lost to the router itself"
    del held


@pytest.mark.parametrize("backend", CHAINS)
def test_rule_of_the_older_shape_is_renewed(t, backend):
    """With its end and its strikes, and without a word."""
    scene, end = Scene(t, backend, "v6"), boot_seconds() + 300
    feed(scene, entry(cidr(scene), end, strikes=3, local=TO_HOST),
         entry("2001:db8:7::/64", end))
    guard = scene.start()
    wait_for(lambda: [rule for rule in scene.firewall.entries(scene.host, scene.family.tool)
                      if SPARED in rule], "the new shape")
    assert sources(scene) == ["2001:db8:7::/64", cidr(scene)], "sources"
    renewed = next(one for one in scene.entries() if one.local)
    assert (renewed.end, renewed.strike, renewed.ports) == (end, 3, "22,25,80,443"), "comment"
    assert not scene.reaches(seconds=0.3), "it is still blocked"
    guard.wait_readings(2)
    assert (guard.matching("locked"), said_of_tools(guard)) == ([], []), "words"
    is_blocked_by(scene, guard)
    assert guard.metric("tcpparser_blocked_sources") == 3, "blocked_sources"


@pytest.mark.parametrize("backend", CHAINS)
def test_both_shapes_are_listed_and_lifted(t, backend):
    scene = Scene(t, backend, "v6")
    before = scene.firewall.everything(scene.host)
    feed(scene, entry("fd00:77::8/128", 0, local=TO_HOST), entry("fd00:77::9/128", 0, local=True))
    shown = scene.firewall.product(scene.host, "--list").stdout
    assert [line.split()[0] for line in listed_blocks(shown)] == ["fd00:77::8", "fd00:77::9"], (
        "--list")
    for target in ("fd00:77::8", "fd00:77::9"):
        done = scene.firewall.product(scene.host, "--unblock", target)
        assert (done.returncode, done.stdout) == (0, "1 block removed\n"), f"--unblock {target}"
    assert scene.firewall.everything(scene.host) == before, "rules"
    is_blocked_by(scene, scene.start())


# ----------------------------------------------------------------------- jumps


@pytest.mark.idle
@pytest.mark.parametrize("backend, family, hook", [
    ("iptables-nft", "v4", "INPUT"), ("iptables-legacy", "v4", "FORWARD"),
    ("iptables-nft", "v6", "both")])
def test_two_deploys_do_not_open_the_host_for_good(t, backend, family, hook):
    """Another tool puts its rules first, twice in a few seconds; the quick
    binary tries again after ten seconds instead of ten minutes."""
    scene = quick_scene(t, backend, family)
    hooks = ("INPUT", "FORWARD") if hook == "both" else (hook,)
    guard = scene.start()
    block(scene, guard)

    def deploy():
        for chain in hooks:
            scene.firewall.must(scene.host, scene.family.tool, "-w", "5", "-I", chain,
                                "-p", "tcp", "--dport", "9", "-j", "ACCEPT")

    def said():
        return [line for line in guard.error_output() if "was moved twice" in line]

    deploy()
    wait_for(scene.is_whole, "the jumps moved back")
    deploy()
    wait_for(lambda: len(said()) == len(hooks), "a word for each jump left behind")
    assert guard.metric("tcpparser_firewall_jump_first") == 0, "firewall_jump_first"
    wait_for(scene.is_whole, "one more try", 60)
    wait_for(lambda: guard.metric("tcpparser_firewall_jump_first") == 1, "firewall_jump_first")
    assert len(said()) == len(hooks), f"lines: {guard.error_output()}"
    is_blocked_by(scene, guard)


# ------------------------------------------------------------ a tool is missing


def without(t, scene, missing):
    """The environment of a host without these tools."""
    folder = t.folder("path-without")
    for name in os.listdir(scene.firewall.folder):
        if not re.match(rf"({missing})(-|$)", name):
            os.symlink(os.path.realpath(os.path.join(scene.firewall.folder, name)),
                       os.path.join(folder, name))
    return {**scene.firewall.env, "PATH": folder}


@pytest.mark.parametrize("missing, package, works, fails", [
    ("ip6tables", "iptables or ip6tables", "v4", "v6"), ("iptables", "iptables", "v6", "v4")])
def test_the_tool_that_is_missing_is_named(t, missing, package, works, fails):
    """The other family's blocks work all the same."""
    scene = Scene(t, "iptables-nft", "mapped")
    env = without(t, scene, missing)
    guard = t.guard(scene.host, "--firewall=iptables", env=env).ready()
    wait_for(lambda: said_of_tools(guard), "a line")
    assert said_of_tools(guard) == [f"tcpparser: {missing} is not installed: install the package {package}; it is tried again"], (
        "stderr")
    address = {"v4": ("10.77.0.1", "10.77.0.2"), "v6": ("fd00:77::1", "fd00:77::2")}
    held = [scene.peer.connect(address[family][0], port)
            for family in (works, fails) for port in PORTS]
    guard.wait_line(rf" Blocked: +{re.escape(address[works][1])} ")
    line = guard.wait_line(rf" Block failed: +{re.escape(address[fails][1])} ")
    assert line.endswith(f" {missing} cannot be used; it is tried again"), line
    health = scene.host.run("curl", "-sS", "http://127.0.0.1:3021/healthz").stdout
    assert health == f"{missing} cannot be used\n", "/healthz"
    done = scene.host.run(t.binary, "--healthcheck", env=env)
    assert ((done.returncode, done.stderr)
            == (1, f"tcpparser: 127.0.0.1:3021: 503 {missing} cannot be used\n")), "--healthcheck"
    # Nothing can stand where there is no tool; they look at nf_tables, too.
    done = scene.host.run(t.binary, "--list", env=env)
    assert ((done.returncode, [line.split()[0] for line in listed_blocks(done.stdout)])
            == (0, [address[works][1]])), "--list"
    done = scene.host.run(t.binary, "--unblock=192.0.2.9", env=env)
    assert (done.returncode, done.stderr) == (1, "tcpparser: no such block\n"), "--unblock"
    del held


@pytest.mark.parametrize("command", ["--list", "--unblock=all"])
def test_without_any_tool_it_is_the_firewall(t, command):
    scene = Scene(t)
    env = without(t, scene, "iptables|ip6tables")
    deaf = traffic.deaf("netfilter")
    guard = t.guard(scene.host, env=env, before=deaf).ready()
    wait_for(lambda: len(said_of_tools(guard)) == 2, "two lines")
    health = scene.host.run("curl", "-sS", "http://127.0.0.1:3021/healthz").stdout
    assert health == "the firewall cannot be used\n", "/healthz"
    done = scene.host.run(*deaf, t.binary, command, env=env)
    assert done.stderr.startswith("tcpparser: the firewall cannot be "), done.stderr


# --------------------------------------------------------------------- the end


def ends(guard):
    started = time.monotonic()
    guard.signal(signal.SIGTERM)
    assert guard.wait_exit() == 0, "exit status"
    return time.monotonic() - started


@pytest.mark.parametrize("backend, family, how", [
    ("iptables-nft", "v4", "all"), ("iptables-legacy", "v4", "all"), ("nft", "v4", "all"),
    ("iptables-nft", "v6", "address"), ("nft", "v6", "address"),
    ("iptables-legacy", "v6", "by hand"), ("nft", "v6", "by hand")])
def test_lifted_and_then_stopped_leaves_nothing(t, backend, family, how):
    scene = Scene(t, backend, family)
    guard = scene.start()
    before = scene.firewall.everything(scene.host)
    block(scene, guard)
    if how == "by hand":
        scene.firewall.delete(scene.host, scene.family.tool, cidr(scene))
    else:
        target = scene.family.peer if how == "address" else "all"
        done = scene.firewall.product(scene.host, "--unblock", target)
        assert (done.returncode, done.stdout) == (0, "1 block removed\n"), "--unblock"
    took = ends(guard)
    assert took < 3, f"it took {took:.1f} s to end"
    assert guard.matching("to lift all") == [], "blocks said to stand"
    by = scene.firewall.operator if how == "by hand" else scene.firewall.unblocker
    assert len(guard.matching(f"its rule was removed by {by}$")) == 1, "Unblocked lines"
    assert scene.firewall.everything(scene.host) == before, "rules"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_end_says_how_many_stand(t, backend):
    scene = Scene(t, backend)
    guard = scene.start()
    block(scene, guard)
    block(scene, guard, scene.family.friend)
    assert scene.firewall.product(scene.host, "--unblock", scene.family.peer).returncode == 0, (
        "--unblock")
    ends(guard)
    assert guard.output()[-1] == "1 block stands; to lift all: tcpparser --unblock all", "last line"
    assert sources(scene) == [cidr(scene, scene.family.friend)], "entries"
    assert scene.is_whole(), "what leads packets to the entry"


@pytest.mark.alone
@pytest.mark.parametrize("backend", CHAINS)
def test_lifted_and_stopped_while_a_child_runs(t, backend):
    """It listed before the block was lifted, and has not ended yet."""
    t.use_quick_binary()
    scene, flag = Scene(t, backend), os.path.join(t.tmp, "slow")
    env = wrapped_firewall(t, scene.firewall, f"""case "$name $*" in "iptables "*-S)
        [ ! -e {flag} ] || {{ "$real" "$@"; echo >>"$XTABLES_LOCKFILE"
        /bin/sleep 0.2; exit 0; }};; esac""")
    guard = t.guard(scene.host, env=env).ready()
    before = scene.firewall.everything(scene.host)
    block(scene, guard)
    open(flag, "w").close()
    # The one file that the sandbox lets it write.
    wait_for(lambda: os.path.getsize(env["XTABLES_LOCKFILE"]) > 0, "a listing")
    os.unlink(flag)
    assert scene.firewall.product(scene.host, "--unblock", "all").returncode == 0, "--unblock"
    ends(guard)
    assert guard.matching("to lift all") == [], "blocks said to stand"
    assert scene.firewall.everything(scene.host) == before, "rules"


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_leaves_its_blocks(t, backend):
    scene = Scene(t, backend)
    guard = scene.start()
    block(scene, guard)
    guard.signal(signal.SIGKILL)
    guard.wait_exit()
    assert sources(scene) == [cidr(scene)], "entries"
    is_blocked_by(scene, scene.start())


# --------------------------------------------------------------------- sockets


@pytest.mark.parametrize("family", ["v4", "mapped"])
def test_thousands_of_sockets_are_destroyed(t, family):
    need("ss")
    count = 3000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * count:
        pytest.skip(f"at most {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * count), hard))
    scene = Scene(t, "iptables-nft", family)
    held = [scene.peer.connect(scene.family.host, 22) for _ in range(count)]
    friend = scene.peer.connect(scene.family.host, 22, scene.family.friend)
    guard = scene.start()
    block(scene, guard)
    if any("cannot be destroyed" in line for line in guard.error_output()):
        pytest.skip("this kernel lacks CONFIG_INET_DIAG_DESTROY")
    wait_for(lambda: not rows_with(scene, scene.family.peer), "an empty table", 30)
    assert total(guard, "sockets_destroyed_total") >= count, "sockets_destroyed_total"
    assert rows_with(scene, scene.family.friend), "another source's connection stays"
    guard.wait_readings(2)
    del held, friend


# ------------------------------------------------------------------ two flavours


class BothFlavours(Firewall):
    """A PATH folder like Debian's: `iptables` is of one flavour, and both have
    names of their own."""

    def __init__(self, case, preferred):
        super().__init__(case, preferred)
        names = [f"{family}-{flavour}{verb}" for family in ("iptables", "ip6tables")
                 for flavour in ("nft", "legacy") for verb in ("", "-restore", "-save")]
        for name in names:
            if not os.path.lexists(os.path.join(self.folder, name)):
                os.symlink(real_tool(name), os.path.join(self.folder, name))


def scene_of_both(t, preferred, family="v4", *arguments):
    scene = Scene(t, f"iptables-{preferred}", family, *arguments)
    scene.firewall = BothFlavours(t, preferred)
    scene.other = "legacy" if preferred == "nft" else "nft"
    scene.other_tool = f"{scene.family.tool}-{scene.other}"
    return scene


def shows(scene):
    """Sources and flavours as --list prints them."""
    shown = listed_blocks(scene.firewall.product(scene.host, "--list").stdout)
    return sorted((line.split()[0], line.split()[-2]) for line in shown)


def other_sources(scene):
    return sorted(one.source for one in scene.firewall.standing(scene.host, scene.other_tool))


def has_chain(scene, tool):
    return any("TCPPARSER" in rule for rule in scene.firewall.rules(scene.host, tool))


BOTH_WAYS = (("nft", "v4"), ("legacy", "v4"), ("nft", "v6"), ("legacy", "v6"))


@pytest.mark.idle
@pytest.mark.parametrize("preferred, family, tools", [
    *[case + ("PATH",) for case in BOTH_WAYS], ("nft", "v4", "exec-root"),
    ("legacy", "v6", "exec-root")])
def test_block_of_the_other_flavour_is_found(t, preferred, family, tools):
    t.use_quick_binary()
    root = ("--exec-root=/",) if tools == "exec-root" else ()
    scene = scene_of_both(t, preferred, family)
    fed = boot_seconds() + 9
    feed(scene, entry(cidr(scene), fed, local=True), tool=scene.other_tool)
    assert not scene.reaches(seconds=0.3), "it is blocked"
    guard = t.guard(scene.host, *root, env=scene.firewall.env).ready()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 1, "its adoption")
    is_blocked_by(scene, guard)
    assert other_sources(scene) == sorted([cidr(scene), cidr(scene, scene.family.friend)]), (
        "the flavour in use goes on")
    assert not has_chain(scene, scene.family.tool), "nothing stands in the other one"
    flavour = f"iptables-{scene.other}"
    assert shows(scene) == sorted([(scene.family.peer, flavour), (scene.family.friend, flavour)]), (
        "--list")
    guard.wait_line(rf" Unblocked: +{re.escape(scene.family.peer)} its time is over", 20)
    assert boot_seconds() >= fed, "not before its time"
    assert scene.reaches(seconds=5), "it is back"
    assert len(guard.matching(" Blocked:")) == 1, "no source is blocked twice"
    done = scene.firewall.product(scene.host, "--unblock", scene.family.friend)
    assert (done.returncode, done.stdout) == (0, "1 block removed\n"), "--unblock"
    guard.wait_line("its rule was removed by somebody")
    wait_for(lambda: not has_chain(scene, scene.other_tool), "no chain")
    block(scene, guard)
    assert (sources(scene), other_sources(scene)) == ([cidr(scene)], []), (
        "the next one goes to iptables itself")
    assert said_of_tools(guard) == [], "stderr"


@pytest.mark.parametrize("preferred, family", BOTH_WAYS)
def test_other_flavour_after_kill_and_change(t, preferred, family):
    """Blocked in one flavour, killed, `iptables` becomes the other: the block
    goes on where it stands, once."""
    scene = scene_of_both(t, preferred, family)
    before = BothFlavours(t, scene.other)
    guard = t.guard(scene.host, env=before.env).ready()
    block(scene, guard)
    guard.signal(signal.SIGKILL)
    guard.wait_exit()
    assert other_sources(scene) == [cidr(scene)], "entries"
    guard = t.guard(scene.host, env=scene.firewall.env).ready()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 1, "its adoption")
    guard.wait_readings(2)
    assert guard.matching(" Blocked:") == [], "no source is blocked twice"
    is_blocked_by(scene, guard)
    assert not has_chain(scene, scene.family.tool), "one flavour is in use"
    assert scene.firewall.product(scene.host, "--unblock", "all").stdout == "2 blocks removed\n", (
        "--unblock all")
    ends(guard)
    assert not has_chain(scene, scene.other_tool), "the chain is gone"


@pytest.mark.parametrize("preferred, family", BOTH_WAYS)
def test_source_in_both_flavours_is_blocked_once(t, preferred, family):
    """Rules that were copied, as by `iptables-save | iptables-legacy-restore`."""
    scene, rule = scene_of_both(t, preferred, family), entry("198.51.100.9/32", 0)
    rule = rule if family == "v4" else entry("2001:db8:9::/64", 0)
    feed(scene, rule)
    feed(scene, rule, tool=scene.other_tool)
    guard = t.guard(scene.host, env=scene.firewall.env).ready()
    wait_for(lambda: not has_chain(scene, scene.other_tool), "one chain")
    assert len(scene.entries()) == 1, "entries"
    assert guard.metric("tcpparser_blocked_sources") == 1, "blocked_sources"
    assert (guard.matching("locked"), said_of_tools(guard)) == ([], []), "words"
    is_blocked_by(scene, guard)
    assert len(scene.entries()) == 2, "entries"


@pytest.mark.parametrize("preferred, family", BOTH_WAYS)
def test_both_flavours_are_listed_and_lifted(t, preferred, family):
    scene = scene_of_both(t, preferred, family)
    before = [scene.firewall.rules(scene.host, tool)
              for tool in (scene.family.tool, scene.other_tool)]
    here, there = (("198.51.100.8", "198.51.100.9") if family == "v4"
                   else ("2001:db8:8::/64", "2001:db8:9::/64"))
    suffix = "/32" if family == "v4" else ""
    feed(scene, entry(here + suffix, 0))
    feed(scene, entry(there + suffix, 0), tool=scene.other_tool)
    assert shows(scene) == [(here, f"iptables-{preferred}"), (there, f"iptables-{scene.other}")], (
        "--list")
    for target in (there, here):
        done = scene.firewall.product(scene.host, "--unblock", target)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 block removed\n", ""), target
    assert [scene.firewall.rules(scene.host, tool)
            for tool in (scene.family.tool, scene.other_tool)] == before, "rules"
    done = scene.firewall.product(scene.host, "--unblock", "all")
    assert (done.returncode, done.stderr) == (1, "tcpparser: no such block\n"), "--unblock all"
    is_blocked_by(scene, t.guard(scene.host, env=scene.firewall.env).ready())


@pytest.mark.parametrize("how", ["daemon", "--list", "--unblock=all"])
def test_a_look_makes_no_tables(t, how):
    """The legacy tool would load and make them, where it is only asked."""
    need("nft")
    host, peer = (lan := t.lan()).host, lan.peer
    host.listen(*PORTS)
    firewall = BothFlavours(t, "nft")

    def tables():
        names = [host.must("cat", f"/proc/self/net/{name}_tables_names") for name in ("ip", "ip6")]
        return names + [host.must("nft", "list", "tables")]

    if how == "daemon":
        guard = t.guard(host, env=firewall.env).ready()
        guard.wait_readings(2)
        assert tables() == ["", "", ""], "tables"
        held = [peer.connect(lan.host_v4, port) for port in PORTS]
        guard.wait_line(" Blocked: ")
        assert tables()[:2] == ["", ""], "legacy tables"
        del held
    else:
        done = firewall.product(host, how)
        assert done.returncode == 1, f"{done.stderr!r}; exit status"
        assert tables() == ["", "", ""], "tables"


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_a_flavour_that_is_alone_is_used(t, flavour):
    """There is no `iptables`, as on hosts whose alternatives were taken away."""
    scene = Scene(t, f"iptables-{flavour}")
    folder = t.folder("path-alone")
    for name in IPTABLES_NAMES:
        family, _, verb = name.partition("-")
        real = "-".join(filter(None, (family, flavour, verb)))
        os.symlink(os.path.realpath(os.path.join(scene.firewall.folder, name)),
                   os.path.join(folder, real))
    env = {**scene.firewall.env, "PATH": folder}
    guard = t.guard(scene.host, env=env).ready()
    block(scene, guard)
    assert not scene.reaches(seconds=0.3), "it is blocked"
    assert said_of_tools(guard) == [], "stderr"
    for command, words in (("--list", "22,25,80,443"), ("--unblock=all", "1 block removed")):
        done = scene.host.run(t.binary, command, env=env)
        assert done.returncode == 0 and words in done.stdout, f"{command}: {done}"
    ends(guard)
    assert is_untouched(scene), "nothing is left"
