"""A firewall side people can trust: what the kernel holds from start to end,
whatever others do to it. Blocks are checked by connecting.

KILLS=50 kills the daemon so often while it blocks; SEED=… repeats a run.
"""

import contextlib
import fcntl
import os
import random
import re
import signal
import threading
import time

import traffic
import pytest

from harness import (BACKENDS, JUMPS, Entry, Firewall, Sets, carries_data, listed_blocks, need,
                     this_boot, wait_for, wrapped_firewall)
from test_blocking import PORTS, Scene
from test_files import fixture, listening, tcp_row
from test_process import states_of_children

OTHER_BOOT = "0badcafe"
CHAINS = ("iptables-nft", "iptables-legacy")
CHAIN_ALONE = Firewall.only  # for tests of what a child does, and of how it fails
CHAINS_AND_V6 = (("iptables-nft", "v4"), ("iptables-nft", "v6"), ("iptables-legacy", "v4"))
BACKENDS_AND_V6 = (*CHAINS_AND_V6, ("nft", "v4"), ("nft", "v6"))
PERIOD = 4  # seconds within which the quick binary has verified and put right


def boot_seconds():
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def entry(source, end, boot=None, strikes=1, since=None, local=False):
    """A block of an earlier run."""
    since = boot_seconds() - 5 if since is None else since
    return Entry(source, local, boot or this_boot(), end, strikes, since, "n", "22,25,80,443")


def feed(scene, *entries, tool=None):
    """Puts them into the kernel, as an earlier run left them."""
    scene.firewall.feed(scene.host, tool or scene.family.tool, *entries)


def quick_scene(t, *arguments, **options):
    t.use_quick_binary()
    return Scene(t, *arguments, **options)


def sources(scene):
    """Who is blocked, with duplicates."""
    return sorted(entry.source for entry in scene.entries())


def is_untouched(scene):
    return scene.firewall.is_untouched(scene.host)


def cidr(scene, address=None):
    return f"{address or scene.family.peer}/{scene.family.single}"


def block(scene, guard, source=None):
    """Blocks the peer, or its other address."""
    address = source or scene.family.peer
    held = scene.scan(source)
    guard.wait_line(rf" Blocked: +{re.escape(address)} ")
    return held


def said_of_tools(guard):
    """Lines about iptables on standard error; on a busy machine there may be
    others."""
    return [line for line in guard.error_output() if re.match("tcpparser: ip6?tables", line)]


def total(guard, name, **labels):
    """A counter's sum over its labels, or over those named."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(value for key, value in guard.scrape().items()
               if key.partition("{")[0] == f"tcpparser_{name}" and all(w in key for w in wanted))


# ------------------------------------------------------------- open connections


class Pump:
    """A service that sends without end to each client it accepts."""

    def __init__(self, listener):
        self.listener = listener
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.send, args=(client,), daemon=True).start()

    @staticmethod
    def send(client):
        with contextlib.suppress(OSError), client:
            while client.send(b"x" * 4096):
                time.sleep(0.01)


def pump(scene, port):
    listener = scene.host.socket(scene.family.wildcard)
    listener.bind((scene.family.wildcard, port))
    listener.listen(8)
    return Pump(listener)


def bytes_until_silence(connection, seconds=1.0):
    """How many bytes still come before a pause of so many seconds."""
    connection.settimeout(seconds)
    count = 0
    with contextlib.suppress(OSError):
        while more := connection.recv(65536):
            count += len(more)
            assert count < 50_000_000, "the service still sends"
    return count


def rows_with(scene, address):
    """Sockets of the host with that peer, as ss shows them, but those that
    only wait for their last segments to die."""
    shown = scene.host.must("ss", "-Htan").splitlines()
    return [line for line in shown if address in line and not line.startswith("TIME-WAIT")]


@pytest.mark.parametrize("backend, family", [
    *BACKENDS_AND_V6, ("iptables-nft", "mapped"), ("nft", "mapped")])
def test_open_connections_are_gone(t, backend, family):
    need("ss")
    scene = Scene(t, backend, family)
    scene.firewall.accept_established(scene.host, scene.family.tool)
    pump(scene, 5000)
    guard = scene.start()
    stream = scene.peer.connect(scene.family.host, 5000)
    friend = scene.peer.connect(scene.family.host, 22, scene.family.friend)
    assert stream.recv(1), "the stream runs"
    held = [scene.peer.connect(scene.family.host, port) for port in PORTS[:3]]
    guard.wait_line(rf" Blocked: +{re.escape(scene.family.peer)} ")
    if any("cannot be destroyed" in line for line in guard.error_output()):
        pytest.skip("this kernel lacks CONFIG_INET_DIAG_DESTROY")
    wait_for(lambda: not rows_with(scene, scene.family.peer), "an empty table", 2)
    bytes_until_silence(stream, 0.2)
    assert bytes_until_silence(stream) == 0, "bytes after the block"
    assert not any(carries_data(one, 0.2) for one in held), "no client gets bytes"
    assert carries_data(friend, 5), "another source's connection goes on"
    assert total(guard, "sockets_destroyed_total") >= 4, "sockets_destroyed_total"


@pytest.mark.parametrize("family", ["v4", "mapped"])
def test_late_ends_of_destroyed_sockets_are_no_connections(t, family):
    scene = Scene(t, "iptables-nft", family)
    scene.host.service.stop()
    scene.host.service = None
    ports = (2022, 2025, 2080, 2443)
    traffic.serve(scene.host, *ports, kind="slow", address=scene.family.wildcard)
    guard = scene.start()
    held = [scene.peer.connect(scene.family.host, port) for port in ports]
    guard.wait_line(" Blocked: ")
    guard.wait_readings(2)
    before = total(guard, "new_connections_total")
    assert before == len(held), "new_connections_total"
    scene.host.service.close_kept()
    guard.wait_readings(4)
    assert total(guard, "new_connections_total") == before, "after the application closed"
    assert len(guard.matching("Port scan")) == 1, "scan lines"


# ----------------------------------------------------------- adoption and expiry


@pytest.mark.idle
@pytest.mark.parametrize("backend, family", BACKENDS_AND_V6)
def test_blocks_end_one_by_one(t, backend, family):
    """A, then B in a later batch; when A ends, exactly B remains."""
    scene = Scene(t, backend, family, "--block-time", "6s")
    guard = scene.start()
    block(scene, guard)
    time.sleep(3)
    block(scene, guard, scene.family.friend)
    assert sources(scene) == sorted([cidr(scene), cidr(scene, scene.family.friend)]), "both"
    wait_for(lambda: scene.reaches(seconds=0.3), "the end of A")
    assert not scene.reaches(scene.family.friend, 0.3), "B is blocked"
    assert sources(scene) == [cidr(scene, scene.family.friend)], "entries"
    wait_for(lambda: scene.reaches(scene.family.friend, 0.3), "the end of B")
    wait_for(lambda: is_untouched(scene), "nothing of ours")
    assert total(guard, "unblocks_total", reason="expired") == 2, "unblocks_total"


LISTED = re.compile(r"^(\S+) +(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) +(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)? +"
                    r"(\d+) +(iptables-\w+|nft) +([\d,+]+)$")


def listed(scene):
    """What --list prints, by source: seconds left, strikes, ports, place."""
    done = scene.firewall.product(scene.host, "--list")
    assert done.returncode == 0, f"--list: {done.stderr!r}; exit status"
    rows = [LISTED.match(line) for line in listed_blocks(done.stdout)]
    assert all(rows), f"--list: {done.stdout!r}"
    found = {}
    for row in rows:
        hours, minutes, seconds = (int(part or 0) for part in row.groups()[2:5])
        found[row[1]] = (hours * 3600 + minutes * 60 + seconds, int(row[6]), row[8], row[7])
    assert len(found) == len(rows), "no source stands twice"
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_restart_adopts_500_blocks(t, backend):
    scene = Scene(t, backend)
    now = boot_seconds()
    ends = {f"198.18.{n // 250}.{1 + n % 250}": now + 300 + n for n in range(480)}
    ends_v6 = {f"2001:db8:{n:x}::/64": now + 300 + n for n in range(1, 21)}
    feed(scene, *(entry(f"{source}/32", end) for source, end in ends.items()))
    feed(scene, *(entry(source, end) for source, end in ends_v6.items()), tool="ip6tables")
    before = scene.firewall.everything(scene.host)
    for how in ("killed", "ended"):
        guard = scene.start()
        wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 500, "500 blocks")
        commands = total(guard, "firewall_commands_total")
        assert commands <= 7, f"{commands} children"
        guard.wait_readings(2)
        assert guard.matching("locked") == [], "lines about blocks"
        assert scene.firewall.everything(scene.host) == before, "rules"
        found = listed(scene)
        assert set(found) == set(ends) | set(ends_v6), "sources"
        assert {row[3] for row in found.values()} == {scene.firewall.name}, "where they stand"
        now = boot_seconds()
        for source, end in {**ends, **ends_v6}.items():
            assert abs(now + found[source][0] - end) <= 1, f"end of {source}: {found[source]}"
        guard.signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        guard.wait_exit()
    assert guard.output()[-1] == "500 blocks stand; to lift all: tcpparser --unblock all", (
        "last line")


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_any_moment(t, backend):
    """Every scanner is blocked in the end, and once."""
    kills = int(os.environ.get("KILLS", "12")) // len(BACKENDS)
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    dice = random.Random(seed)
    scene = Scene(t, backend)
    scanners = [f"10.77.{1 + n // 200}.{1 + n % 200}" for n in range(4 * kills)]
    scene.peer.ip(*(f"address add {scanner}/32 dev lan0" for scanner in scanners))
    scene.host.ip("route add 10.77.0.0/16 dev lan0")
    held, left = [], list(scanners)
    for _ in range(kills):
        guard = scene.start(*scene.firewall.only)
        for scanner in left[:4]:
            for port in PORTS:
                with contextlib.suppress(OSError):
                    held.append(scene.peer.connect(scene.family.host, port, scanner, 1))
        left = left[4:]
        time.sleep(dice.uniform(0, 0.06))
        guard.signal(signal.SIGKILL)
        guard.wait_exit()
    guard = scene.start(*scene.firewall.only)
    wanted = sorted(f"{scanner}/32" for scanner in scanners)
    wait_for(lambda: len(scene.entries()) >= len(wanted), f"every scanner's block (SEED={seed})")
    guard.wait_readings(2)
    assert sources(scene) == wanted, f"sources (SEED={seed})"
    assert scene.is_whole(), f"what leads packets to the entries (SEED={seed})"
    assert not scene.peer.connects(scene.family.host, 22, scanners[0]), "it is blocked"
    assert scene.reaches(seconds=5), "others are not"
    assert guard.matching("Block failed") == [], f"failures (SEED={seed})"


@pytest.mark.parametrize("backend, family", BACKENDS_AND_V6)
def test_entries_of_another_boot_start_anew(t, backend, family):
    scene = Scene(t, backend, family, "--block-time", "5s,1h")
    feed(scene, entry(cidr(scene), 999_999_999, OTHER_BOOT, 2, 1, True))
    assert not scene.reaches(seconds=0.3), "it is blocked from boot on"
    guard = scene.start()
    found = wait_for(lambda: [entry for entry in scene.entries() if entry.boot == this_boot()],
                     "a comment of this boot")[0]
    assert 0 < found.end - boot_seconds() <= 6, f"end {found.end} at {boot_seconds()}"
    assert (found.ports, found.strike, found.local) == ("22,25,80,443", 2, True), "rest"
    assert not scene.reaches(seconds=0.3), "it is still blocked"
    wait_for(lambda: scene.reaches(seconds=0.3), "the end of the block")
    wait_for(lambda: is_untouched(scene), "nothing of ours")
    assert guard.matching(" Blocked:") == [], "Blocked lines"


@pytest.mark.parametrize("backend", BACKENDS)
def test_foreign_entries_stay_and_ended_ones_go(t, backend):
    scene = Scene(t, backend)
    now = boot_seconds()
    feed(scene, *scene.firewall.not_ours, entry(cidr(scene), now - 1, local=True),
         entry("198.51.100.8/32", 0), scene.firewall.newer)

    def standing(words):
        return [line for line in scene.firewall.everything(scene.host) if words in line]

    foreign = standing("192.0.2.")
    assert not scene.reaches(seconds=0.3), "it is blocked at first"
    guard = scene.start()
    wait_for(lambda: scene.reaches(seconds=0.3), "the end of what had ended")
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 2, "two blocks adopted")
    assert scene.is_whole(), "what leads packets to the entries"
    assert standing("192.0.2.") == foreign, "foreign entries"
    assert scene.firewall.product(scene.host, "--unblock", "all").returncode == 0, "--unblock all"
    assert standing("198.51.100.") == [], "ours"
    assert standing("192.0.2.") == foreign, "foreign entries, which keep what holds them"


@pytest.mark.parametrize("backend", CHAINS)
def test_torn_rules_are_mended_at_start(t, backend):
    """One jump is missing, the other stands twice and last; a source too."""
    scene = Scene(t, backend)
    scene.firewall.accept_established(scene.host)
    older, newer = (entry(cidr(scene), boot_seconds() + left, local=True) for left in (300, 600))
    lines = ["*filter", "-N TCPPARSER", "-A INPUT -j TCPPARSER", "-A INPUT -j TCPPARSER",
             *(one.rule() for one in (older, newer, entry("198.51.100.9/32", 0))), "COMMIT"]
    scene.firewall.must(scene.host, "iptables-restore", "-w", "5", "--noflush",
                        input="\n".join(lines) + "\n")
    guard = scene.start()
    wait_for(lambda: scene.firewall.first_rules(scene.host) == JUMPS, "jumps")
    wait_for(lambda: len(scene.entries()) == 2, "no source twice")
    assert sources(scene) == [cidr(scene), "198.51.100.9/32"], "sources"
    assert not scene.reaches(seconds=0.3), "it is blocked"
    assert guard.metric("tcpparser_blocked_sources") == 2, "blocked_sources"
    assert scene.firewall.product(scene.host, "--unblock", "all").returncode == 0, "exit status"
    guard.signal(signal.SIGTERM)
    guard.wait_exit()
    assert guard.error_output() == [], "stderr"


@pytest.mark.parametrize("scanner, neighbour, length, option", [
    ("2001:db8:9::2", "2001:db8:9::3", "/64", ""),
    ("2001:db8:9::2", "2001:db8:9::3", "/128", "--allow=2001:db8:9::3"),
    ("64:ff9b::c000:201", "64:ff9b::c000:202", "/128", ""),
    ("2001:0:c000:201::7", "2001:0:c000:201::8", "/128", "")])
@pytest.mark.parametrize("backend", ["iptables-nft", "nft"])
def test_neighbours_in_a_64(t, backend, scanner, neighbour, length, option):
    """A source is its /64, but where unrelated or protected hosts share it."""
    scene = Scene(t, backend, "v6", *filter(None, [option]))
    scene.peer.ip(*(f"address add {one}/128 dev lan0 nodad" for one in (scanner, neighbour)))
    scene.host.ip(*(f"route add {one}/128 via {scene.family.peer}" for one in (scanner, neighbour)))
    assert scene.reaches(neighbour, 5), "the neighbour reaches us"
    guard = scene.start()
    scene.scan(scanner)
    guard.wait_line(" Blocked: ")
    found = sources(scene)
    assert len(found) == 1 and found[0].endswith(length), f"sources {found}"
    assert not scene.reaches(scanner, 0.3), "it is blocked"
    assert scene.reaches(neighbour, 0.5) == (length == "/128"), "the neighbour reaches us"


def test_cloud_metadata_is_never_blocked(t):
    scene = Scene(t)
    scene.peer.ip("address add 169.254.169.254/32 dev lan0")
    scene.host.ip("route add 169.254.169.254/32 via 10.77.0.2")
    guard = scene.start()
    scene.scan("169.254.169.254")
    guard.wait_line(r" Not blocked: +169\.254\.169\.254 ")
    guard.wait_readings(2)
    assert is_untouched(scene), "a rule was made"


@pytest.mark.parametrize("backend", BACKENDS)
def test_block_that_became_protected_is_lifted(t, backend):
    scene = Scene(t, backend)
    feed(scene, entry(cidr(scene), 0, local=True), entry(cidr(scene, scene.family.friend), 0,
                                                         local=True))
    guard = scene.start()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 2, "adoption")
    scene.host.ip(f"route add default via {scene.family.peer} table 77")
    guard.wait_line(r" Unblocked: +10\.77\.0\.2 it holds a protected address now")
    assert scene.reaches(seconds=5), "the gateway is back"
    assert not scene.reaches(scene.family.friend, 0.5), "the other stays blocked"
    assert total(guard, "unblocks_total", reason="protected") == 1, "unblocks_total"


# ------------------------------------------------------- what others do to it


def is_rebuilt(scene, guard, before, repairs):
    """All is back as it was."""
    wait_for(lambda: scene.is_whole() and scene.entries() == before, "all as before", PERIOD)
    assert not scene.reaches(seconds=0.3), "A is blocked"
    assert not scene.reaches(scene.family.friend, 0.3), "B is blocked"
    assert guard.matching("Unblocked") == [], "Unblocked lines"
    assert len(guard.matching(" Blocked:")) == 2, "Blocked lines: it was put right in silence"
    wait_for(lambda: guard.metric("tcpparser_firewall_repairs_total") == repairs,
             f"firewall_repairs_total {repairs}", 3)
    assert guard.metric("tcpparser_firewall_jump_first") == 1, "firewall_jump_first"


class TamperedScene(Scene):
    """A and B are blocked by the daemon that verifies each second."""

    def __init__(self, t, backend, family, *arguments):
        t.use_quick_binary()
        super().__init__(t, backend, family, *arguments)
        self.saved = {}
        self.save("before")
        self.guard = self.start()
        block(self, self.guard)
        self.save("with A")
        block(self, self.guard, self.family.friend)

    def tamper(self, how, *arguments):
        """By a verb of the firewall."""
        getattr(self.firewall, how)(self.host, self.family.tool, *arguments)

    def save(self, name):
        self.saved[name] = self.firewall.save(self.host, self.family.tool)

    def restore_saved(self, name):
        self.firewall.restore(self.host, self.family.tool, self.saved[name])


@pytest.mark.parametrize("backend, family, how", [
    *[(backend, "v4", how) for backend in CHAINS for how in Firewall.losses],
    *[("nft", "v4", how) for how in Sets.losses],
    ("iptables-nft", "v6", "flush_all"), ("iptables-legacy", "v6", "push_down"),
    ("nft", "v6", "flush_all")])
def test_reload_is_put_right(t, backend, family, how):
    scene = TamperedScene(t, backend, family)
    before = scene.entries()
    if how == "reload_without_us":
        scene.restore_saved("before")
    else:
        scene.tamper(how)
    is_rebuilt(scene, scene.guard, before, 0 if how == "push_down" else 1)


def unblocked_from_outside(scene, *addresses, by=None):
    for address in addresses:
        scene.guard.wait_line(rf" Unblocked: +{re.escape(address)} its rule was removed by "
                              f"{by or scene.firewall.operator}$", PERIOD)
    assert len(scene.guard.matching("Unblocked")) == len(addresses), "Unblocked lines"
    assert total(scene.guard, "unblocks_total", reason="operator") == len(addresses), (
        "unblocks_total")
    assert total(scene.guard, "firewall_repairs_total") == 0, "firewall_repairs_total"


@pytest.mark.parametrize("backend, family", BACKENDS_AND_V6)
def test_one_entry_deleted_is_unblocked(t, backend, family):
    scene = TamperedScene(t, backend, family)
    scene.tamper("delete", cidr(scene))
    unblocked_from_outside(scene, scene.family.peer)
    assert scene.reaches(seconds=5), "A is back"
    assert not scene.reaches(scene.family.friend, 0.3), "B stays blocked"
    assert scene.is_whole(), "what leads packets to the entries"


@pytest.mark.parametrize("backend, family, how", [
    ("iptables-nft", "v4", "flushed"), ("iptables-legacy", "v4", "flushed"),
    ("nft", "v4", "flushed"), ("iptables-nft", "v6", "one by one"),
    ("iptables-legacy", "v4", "one by one"), ("nft", "v6", "one by one")])
def test_all_entries_deleted_are_unblocked(t, backend, family, how):
    scene = TamperedScene(t, backend, family)
    if how == "flushed":
        scene.tamper("delete_all")
    else:
        scene.tamper("delete", cidr(scene))
        scene.tamper("delete", cidr(scene, scene.family.friend))
    unblocked_from_outside(scene, scene.family.peer, scene.family.friend)
    wait_for(lambda: is_untouched(scene), "no chain", PERIOD)
    assert scene.reaches(seconds=5) and scene.reaches(scene.family.friend, 5), "both are back"
    scene.guard.wait_readings(2)
    assert len(scene.guard.matching("Port scan")) == 2, "old connections lead to no block"


@pytest.mark.parametrize("backend", BACKENDS)
def test_old_saved_rules_restore_no_block(t, backend):
    """A was unblocked when rules were loaded that hold A and lack B."""
    scene = TamperedScene(t, backend, "v4")
    assert scene.firewall.product(scene.host, "--unblock", scene.family.peer).returncode == 0, (
        "exit status")
    unblocked_from_outside(scene, scene.family.peer, by=scene.firewall.unblocker)
    with_b = scene.entries()
    scene.restore_saved("with A")
    assert not scene.reaches(seconds=0.3), "A is in the rules loaded"
    wait_for(lambda: scene.entries() == with_b, "B, and B alone", PERIOD)
    assert scene.reaches(seconds=5), "A stays unblocked"
    assert not scene.reaches(scene.family.friend, 0.3), "B stays blocked"
    assert len(scene.guard.matching("Unblocked")) == 1, "Unblocked lines"
    assert total(scene.guard, "firewall_repairs_total") == 1, "firewall_repairs_total"


@pytest.mark.parametrize("backend", CHAINS)
def test_jump_moved_twice_stays(t, backend):
    scene = TamperedScene(t, backend, "v4")
    for count in range(2):
        scene.tamper("change", "-I", "INPUT", "-p", "tcp", "--dport", "1", "-j", "ACCEPT")
        if count == 0:
            wait_for(scene.is_whole, "the jump moved back", PERIOD)
    said = wait_for(lambda: [line for line in scene.guard.error_output() if "moved twice" in line],
                    "a line", PERIOD)
    assert "iptables: the jump in INPUT" in said[0] and "--dport 1 -j ACCEPT" in said[0], said
    time.sleep(2.5)
    assert len(scene.guard.error_output()) == 1, f"lines: {scene.guard.error_output()}"
    assert scene.guard.metric("tcpparser_firewall_jump_first") == 0, "firewall_jump_first"
    rules = [rule for rule in scene.firewall.rules(scene.host) if rule.startswith("-A INPUT")]
    assert rules.index(JUMPS[0]) == 1, f"it stays: {rules}"
    assert not scene.reaches(seconds=0.3), "blocked all the same"
    scene.tamper("change", "-D", "INPUT", "1")
    scene.tamper("change", "-D", "INPUT", "2")
    wait_for(lambda: scene.guard.metric("tcpparser_firewall_jump_first") == 1, "gauge 1", PERIOD)


@pytest.mark.parametrize("backend, family", [*CHAINS_AND_V6, ("iptables-legacy", "mapped")])
def test_lost_rules_are_back_once_the_source_connects(t, backend, family):
    """Long before the minute is over."""
    scene = Scene(t, backend, family)
    guard = scene.start()
    block(scene, guard)
    before = scene.entries()
    time.sleep(0.6)
    scene.firewall.must(scene.host, scene.family.tool, "-w", "5", "-F")
    assert scene.reaches(seconds=5), "nothing keeps it out now"
    wait_for(lambda: scene.entries() == before, "the rule")
    assert not scene.reaches(seconds=0.3), "it is blocked again"
    assert total(guard, "firewall_repairs_total") == 1, "firewall_repairs_total"
    assert len(guard.matching("Port scan")) == 1, "scan lines"


@pytest.mark.idle
def test_lost_rules_are_back_within_the_real_minute(t):
    scene = Scene(t)
    guard = scene.start()
    block(scene, guard)
    before, started = scene.entries(), time.monotonic()
    scene.firewall.must(scene.host, "iptables", "-w", "5", "-F")
    wait_for(lambda: time.sleep(0.5) or scene.entries() == before, "the rule", 65)
    assert time.monotonic() - started > 40, "a minute, not less"
    assert not scene.reaches(seconds=0.3), "it is blocked again"
    assert total(guard, "firewall_repairs_total") == 1, "firewall_repairs_total"


# ------------------------------------------------------------------ the child


class OnTime:
    """Watches readings, HTTP and children of a guard while a test goes on."""

    def __init__(self, guard):
        self.guard, self.slowest, self.most, self.zombies = guard, 0.0, 0, set()
        self.is_over = threading.Event()
        self.started, self.readings = time.monotonic(), guard.readings()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def watch(self):
        while not self.is_over.wait(0.05):
            before = time.monotonic()
            with contextlib.suppress(OSError):
                with self.guard.namespace.connect("127.0.0.1", 3021, seconds=8) as client:
                    client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                    client.recv(100)
            self.slowest = max(self.slowest, time.monotonic() - before)
            states = states_of_children(self.guard.pid)
            self.most = max(self.most, len(states))
            self.zombies = {child for child, state in states.items() if state == "Z"}

    def __exit__(self, kind, *_):
        self.is_over.set()
        self.thread.join(10)
        if kind:
            return
        took = time.monotonic() - self.started
        readings = self.guard.readings() - self.readings
        # One is due each 0.2 s.
        assert readings >= (took - 0.5) / 0.2 * 0.3, f"{readings} readings in {took:.1f} s"
        # Three seconds and more is what the children take.
        assert self.slowest < 2.5, f"HTTP took {self.slowest:.2f} s"
        assert self.most <= 1, f"{self.most} children at a time"
        wait_for(lambda: not self.zombies & set(states_of_children(self.guard.pid)),
                 "no zombie", 3)


@pytest.mark.parametrize("seconds, failures", [(3, 0), (7, 1)])
def test_held_lock_is_waited_for(t, seconds, failures):
    """-w 5 waits for the shorter one, a retry for the longer one."""
    scene = Scene(t, "iptables-legacy", "v4", *CHAIN_ALONE)
    guard = scene.start()
    with OnTime(guard), open(scene.firewall.env["XTABLES_LOCKFILE"], "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scene.scan()
        guard.wait_line("Port scan")
        time.sleep(seconds)
        assert guard.matching(" Blocked:") == [], "blocked behind the lock"
        fcntl.flock(lock, fcntl.LOCK_UN)
        guard.wait_line(" Blocked: ", 8)
    assert len(guard.matching("Block failed: .* lock")) == failures, "Block failed lines"
    assert total(guard, "block_failures_total", reason="lock") == failures, "block_failures_total"
    assert not scene.reaches(seconds=0.3), "it is blocked"


# What iptables-restore does, the words that say it, the reason counted.
FAULTS = {
    "exit 1": ("echo nope >&2; exit 1", "exited with 1: nope;", "refused"),
    "exit 2": ("echo nope >&2; exit 2", "exited with 2: nope;", "refused"),
    "exit 3": ("echo nope >&2; exit 3", "exited with 3: nope;", "refused"),
    "exit 4": ("echo 'Another app is currently holding the xtables lock' >&2; exit 4",
               "exited with 4: Another app is", "lock"),
    "signal": ("kill -9 $$", "was ended by signal 9;", "signal"),
    "loud": ("/usr/bin/yes '' | /usr/bin/head -c 100000000 >&2; printf '\\033[31m' >&2; exit 1",
             "exited with 1: [31m;", "refused"),
    "louder": ("/usr/bin/yes tcpparser | /usr/bin/head -c 100000000 >&2; exit 1",
               "exited with 1: tcpparser tcpparser", "refused"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_restore_is_reported_and_tried_again(t, fault):
    script, words, reason = FAULTS[fault]
    scene = Scene(t)
    flag = os.path.join(t.tmp, "fails")
    env = wrapped_firewall(t, scene.firewall,
                           f'case $name in *-restore) [ ! -e {flag} ] || {{ {script}; }};; esac')
    guard = t.guard(scene.host, *CHAIN_ALONE, env=env).ready()
    with open(flag, "w"), OnTime(guard):
        scene.scan()
        line = guard.wait_line(r" Block failed: +10\.77\.0\.2 iptables-restore ")
        assert words in line and line.endswith("; it is tried again"), line
        assert len(line) < 400 and line.isprintable(), f"printable and short: {line!r}"
        assert (total(guard, "block_failures_total")
                == total(guard, "block_failures_total", reason=reason)), "block_failures_total"
        os.unlink(flag)
        guard.wait_line(" Blocked: ", 10)
    assert len(guard.matching("Block failed")) == 1, "Block failed lines"
    assert not scene.reaches(seconds=0.3), "it is blocked"


HANGS = "trap '' TERM INT; while :; do /bin/sleep 1; done"


def hanging_once(t, scene, pattern):
    """The first tool that matches hangs and ignores SIGTERM. It remembers that in
    the one file that the sandbox lets it write."""
    return wrapped_firewall(
        t, scene.firewall, f'case "$name $*" in {pattern}) [ -s "$XTABLES_LOCKFILE" ] || '
                           f'{{ echo >>"$XTABLES_LOCKFILE"; {HANGS}; }};; esac')


@pytest.mark.idle
def test_hanging_restore_is_ended_and_tried_again(t):
    scene = Scene(t)
    guard = t.guard(scene.host, *CHAIN_ALONE, env=hanging_once(t, scene, "*-restore*")).ready()
    with OnTime(guard):
        scene.scan()
        line = guard.wait_line("Block failed: ", 14)
        assert "iptables-restore did not end in time; it is tried again" in line, line
        guard.wait_line(" Blocked: ", 6)
    assert total(guard, "block_failures_total", reason="timeout") == 1, "block_failures_total"
    assert total(guard, "firewall_commands_total", exit="timeout") == 1, "firewall_commands_total"
    assert not scene.reaches(seconds=0.3), "it is blocked"


@pytest.mark.idle
def test_hanging_listing_is_ended_and_tried_again(t):
    scene = Scene(t)
    guard = t.guard(scene.host, *CHAIN_ALONE, env=hanging_once(t, scene, '"iptables "*-S')).ready()
    with OnTime(guard):
        scene.scan()
        guard.wait_line("Port scan", 4)
        guard.wait_line(" Blocked: ", 16)
    assert guard.error_output() == ["tcpparser: iptables did not end in time; it is tried again"], (
        "stderr")
    assert total(guard, "firewall_commands_total", exit="timeout") == 1, "firewall_commands_total"
    assert not scene.reaches(seconds=0.3), "it is blocked"


# What each tool does, what stands on stderr.
UNUSABLE = {
    "missing": (None, "is not installed: install the package iptables"),
    "not executable": ("#!/bin/sh\n", "could not be started"),
    "garbage": ("\x01\x02\x03\x04 garbage\n" * 20, "could not be started"),
    "exit 1": ("#!/bin/sh\necho no >&2; exit 1\n", "exited with 1: no;"),
    "exit 3": ("#!/bin/sh\necho no >&2; exit 3\n", "exited with 3: no;"),
    "exit 4": ("#!/bin/sh\necho no >&2; exit 4\n", "exited with 4: no;"),
    "signal": ("#!/bin/sh\nkill -9 $$\n", "was ended by signal 9;"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_unusable_iptables_is_reported_and_tried_again(t, fault):
    text, words = UNUSABLE[fault]
    scene = Scene(t)
    folder = t.folder("path-unusable")
    for name in os.listdir(scene.firewall.folder) if text else ():
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o644 if fault == "not executable" else 0o755)
    guard = t.guard(scene.host, *CHAIN_ALONE,
                    env={**scene.firewall.env, "PATH": folder}).ready()
    with OnTime(guard):
        scene.scan()
        guard.wait_line(" Block failed: +10.77.0.2 the firewall cannot be used; it is tried")
        said = wait_for(lambda: len(said_of_tools(guard)) >= 2 and said_of_tools(guard), "stderr")
        assert total(guard, "block_failures_total") == 1, "block_failures_total"
        assert guard.metric("tcpparser_firewall_up") == 0, "firewall_up"
        for name in os.listdir(scene.firewall.folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.symlink(os.path.realpath(os.path.join(scene.firewall.folder, name)), path)
        guard.wait_line(" Blocked: ", 10)
    assert ([line.split(":", 1)[1][:len(f" {tool} {words}")] for tool, line
             in zip(("iptables", "ip6tables"), sorted(said, reverse=True))]
            == [f" {tool} {words}" for tool in ("iptables", "ip6tables")]), "stderr"
    assert len(said_of_tools(guard)) == 2, f"lines on stderr: {guard.error_output()}"
    assert not scene.reaches(seconds=0.3), "it is blocked"


def test_listing_of_10_mb(t):
    scene = Scene(t)
    env = wrapped_firewall(
        t, scene.firewall, 'case "$name $*" in *tables*-S) /usr/bin/yes "-A DOCKER -d 172.17.0.2/32 '
                           '! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT" '
                           "| /usr/bin/head -n 120000;; esac")
    feed(scene, entry("198.51.100.9/32", 0))
    guard = t.guard(scene.host, env=env).ready()
    with OnTime(guard):
        scene.scan()
        guard.wait_line(" Blocked: ")
    assert guard.metric("tcpparser_blocked_sources") == 2, "one adopted, one made"
    assert guard.error_output() == [], "stderr"


@pytest.mark.parametrize("words", ["exited", "unknown"])
def test_old_iptables_without_wait(t, words):
    """Before 1.4.20, restore before 1.6.2: `unknown option '-w'`, exit 2."""
    scene = Scene(t)
    said = {"exited": "unknown option '-w'", "unknown": "unknown option \\\"-w\\\""}[words]
    env = wrapped_firewall(t, scene.firewall,
                           f'for word; do [ "$word" != -w ] || {{ echo "$name v1.4.7: {said}" >&2; '
                           'exit 2; }; done')
    guard = t.guard(scene.host, env=env).ready()
    scene.scan()
    guard.wait_line(" Blocked: ")
    assert (guard.error_output(), guard.matching("failed")) == ([], []), "errors"
    for word, status in (("--list", 0), ("--unblock=10.77.0.2", 0), ("--unblock=10.77.0.2", 1)):
        done = scene.host.run(t.binary, word, env=env)
        assert done.returncode == status, f"{word}: {done.stderr!r}; exit status"
    assert scene.reaches(seconds=5), "it is back"


@pytest.mark.parametrize("match", ["comment", "addrtype"])
def test_kernels_that_refuse_a_match(t, match):
    """Rules go in without it, which is said once, and they end in time."""
    scene = Scene(t)
    env = wrapped_firewall(t, scene.firewall, f"""case $name in *-restore)
        input=$(while IFS= read -r line; do echo "$line"; done)
        case $input in *"-m {match}"*) echo "$name: Couldn't load match \\`{match}'" >&2; exit 1;; esac
        echo "$input" | "$real" "$@"; exit $?;; esac""")
    guard = t.guard(scene.host, *CHAIN_ALONE, "--block-time", "4s", env=env).ready()
    scene.scan()
    guard.wait_line(" Blocked: ")
    rules = [rule for rule in scene.firewall.rules(scene.host) if "-s 10.77.0.2/32" in rule]
    assert len(rules) == 1 and f"-m {match}" not in rules[0], f"{rules}"
    said = [line for line in guard.error_output() if f"the match {match} is refused" in line]
    assert len(said) == 1, f"words about it in {guard.error_output()}"
    guard.wait_line(" Unblocked: ")
    assert scene.reaches(seconds=5), "it is back"


@pytest.mark.alone
@pytest.mark.parametrize("backend", BACKENDS)
def test_thousand_sources_in_one_reading(t, backend):
    """`auto`, which has sixteen in the chain where there is iptables."""
    scene = Scene(t, backend)
    in_sets = scene.firewall if backend == "nft" else Sets(t)

    def blocked():
        chain = [] if backend == "nft" else scene.entries()
        return sorted(one.source for one in chain + in_sets.standing(scene.host))

    peers = [f"198.18.{n // 250}.{1 + n % 250}" for n in range(1000)]
    rows = [tcp_row("198.51.100.7", port, peer, 40000, 1)
            for peer in peers for port in PORTS]
    folder = fixture(t, [listening("0.0.0.0", port) for port in PORTS] + rows)
    started = time.monotonic()
    guard = t.guard(scene.host, "--proc", folder, "--show", "scans", env=scene.firewall.env)
    wait_for(lambda: len(blocked()) == len(peers), "a thousand blocks")
    took = time.monotonic() - started
    print(f"    {took:.2f} s from the start to 1,000 sources listed ({backend})", flush=True)
    assert blocked() == sorted(f"{peer}/32" for peer in peers), "sources"
    # A minute has 300 lines of that; what is left is said at the end.
    wait_for(lambda: guard.metric("tcpparser_blocks_total") == len(peers), "all are counted")
    guard.signal(signal.SIGTERM)
    assert guard.wait_exit() == 0, "exit status"
    labels = guard.matching(" (Port scan detected|Blocked|Not blocked|Block failed): ")
    assert len(labels) == 300, "lines of a minute"
    assert guard.output()[-2:] == [
        "… and 1700 more",
        "1000 blocks stand; to lift all: tcpparser --unblock all"], guard.output()[-4:]


# ------------------------------------------------------------- list and unblock


@pytest.mark.parametrize("backend", BACKENDS)
def test_list_shows_what_stands(t, backend):
    scene = Scene(t, backend)
    empty = scene.firewall.product(scene.host, "--list")
    assert ((empty.returncode, listed_blocks(empty.stdout), empty.stderr)
            == (1, [], "tcpparser: no source is blocked\n")), "--list where no source is blocked"
    now = boot_seconds()
    feed(scene, entry("198.51.100.7/32", now + 3700, strikes=3, since=now - 100),
         entry("198.51.100.8/32", 0), entry("198.51.100.9/32", 77, OTHER_BOOT))
    feed(scene, entry("2001:db8:1:2::/64", now + 90), tool="ip6tables")
    for guard in (None, t.guard(scene.host, "--dry-run", env=scene.firewall.env).ready()):
        done = scene.firewall.product(scene.host, "--list")
        assert (done.returncode, done.stderr) == (0, ""), "exit status and stderr"
        lines = done.stdout.splitlines()
        assert lines[0].split() == "SOURCE SINCE LEFT STRIKES FIREWALL PORTS".split(), "the head"
        blocks = listed_blocks(done.stdout)
        shown = {line.split()[0]: line for line in blocks}
        places = {line.index(f" {backend} ") + 1 for line in blocks}
        assert places == {lines[0].index("FIREWALL")}, "columns"
        assert sorted(shown) == ["198.51.100.7", "198.51.100.8", "198.51.100.9",
                                 "2001:db8:1:2::/64"], "sources"
        ends = rf" {backend} +22,25,80,443$"
        for source, wanted in (("198.51.100.7", r" \d+-\d\d-\d\d \d\d:\d\d:\d\d 1h1m +3 +"),
                               ("198.51.100.8", " for ever +1 +"),
                               ("198.51.100.9", r" before this boot +\? +\? +"),
                               ("2001:db8:1:2::/64", r" 1m(30|2\d)s +1 +")):
            assert re.search(wanted + ends, shown[source]), f"{wanted} in {shown[source]!r}"
        since = time.strptime(shown["198.51.100.7"][44:63], "%Y-%m-%d %H:%M:%S")
        age = time.mktime(time.gmtime()) - time.mktime(since)
        assert 98 <= age <= 115, f"since {age} s"


def test_list_ends_with_what_is_never_blocked(t):
    """And why, below an empty line: no first word there is an address."""
    scene, guard = Scene(t), ("TCPPARSER_ALLOW", "198.51.100.0/24, 2001:db8::/32")
    scene.host.ip(f"route add default via {scene.family.peer}", "address add 10.78.0.1/24 dev lan0",
                  *(f"address add 10.79.0.{last}/32 dev lan0" for last in range(1, 21)))
    feed(scene, entry("203.0.113.7/32", 0))
    env = {**scene.firewall.env, guard[0]: guard[1], "SSH_CONNECTION": "192.0.2.9 5022 10.77.0.1 22"}
    done = scene.host.run(t.binary, "--list", env=env)
    assert (done.returncode, done.stderr) == (0, ""), f"--list: {done}"
    head, block, empty, *lines = done.stdout.splitlines()
    assert (head.split()[0], block.split()[0], empty) == ("SOURCE", "203.0.113.7", ""), "above"
    never = [re.fullmatch(r"never blocked: (.*) \((.*)\)", line).groups() for line in lines]
    reasons = {}
    for address, why in never:
        reasons.setdefault(why, []).append(address)
    own = reasons.pop("own address")
    assert len(own) == 17 and own[-1] == "…", f"sixteen and more: {own}"
    assert "169.254.0.0/16" in reasons.pop("on any host")[0], "what is always protected"
    reasons.pop("nameserver", None)
    assert reasons == {"gateway": [scene.family.peer], "our own SSH session": ["192.0.2.9"],
                       "--allow": ["2001:db8::/32", "198.51.100.0/24"]}, "reasons"
    scene.host.ip(f"route del default via {scene.family.peer}")
    done = scene.host.run(*traffic.deaf("route"), t.binary, "--list", env=scene.firewall.env)
    assert ("never blocked: … (own addresses and gateways not fully known)"
            in done.stdout.splitlines()), f"without netlink: {done}"


@pytest.mark.parametrize("command", ["--list", "--unblock=all"])
def test_commands_without_any_firewall(t, command):
    """What cannot be looked at is not called empty."""
    done = t.namespace("host").run(*traffic.deaf("netfilter"), t.binary, command,
                                   env={"PATH": t.folder("path-empty")})
    assert (done.returncode, done.stdout) == (1, ""), "exit status and output"
    words = "listed" if command == "--list" else "changed"
    assert (done.stderr.splitlines()[0]
            == f"tcpparser: the firewall cannot be {words}: iptables is not installed: "
               "install the package iptables"), "stderr"


@pytest.mark.parametrize("missing, package", [
    ("iptables", "iptables"), ("ip6tables", "iptables or ip6tables")])
def test_commands_without_one_of_the_tools(t, missing, package):
    """And without nf_tables."""
    host, folder = t.namespace("host"), t.folder("tools")
    legacy = t.firewall(host, "legacy").folder
    for name in {"iptables", "ip6tables"} - {missing}:
        for tool in (name, f"{name}-restore"):
            os.symlink(os.path.realpath(f"{legacy}/{tool}"), os.path.join(folder, tool))
    for command, be in (("--list", "listed"), ("--unblock=all", "changed")):
        done = host.run(*traffic.deaf("netfilter"), t.binary, command, env={"PATH": folder})
        assert ((done.returncode, done.stdout, done.stderr.splitlines()[0])
                == (1, "", f"tcpparser: {missing} cannot be {be}: {missing} is not installed: "
                           f"install the package {package}")), command


@pytest.mark.parametrize("backend", BACKENDS)
def test_unblock_without_a_daemon(t, backend):
    scene = Scene(t, backend)
    before = scene.firewall.everything(scene.host)
    feed(scene, entry(cidr(scene), 0, local=True),
         *(entry(f"198.51.{n}.9/32", 0) for n in range(5)))
    feed(scene, entry("2001:db8:1:2::/64", 0), tool="ip6tables")

    def unblock(target, status, words):
        done = scene.firewall.product(scene.host, "--unblock", target)
        assert (done.returncode, done.stdout + done.stderr) == (status, words), (
            f"--unblock {target}")

    unblock("192.0.2.1", 1, "tcpparser: no such block\n")
    assert not scene.reaches(seconds=0.3), "it is blocked"
    unblock("10.77.0.2", 0, "1 block removed\n")
    assert scene.reaches(seconds=5), "it is back"
    unblock("198.51.0.0/23", 0, "2 blocks removed\n")
    unblock("2001:db8:1:2::77", 0, "1 block removed\n")
    assert len(scene.entries()) == 3, "entries left"
    assert scene.firewall.standing(scene.host, "ip6tables") == [], "IPv6 entries left"
    if backend != "nft":
        assert "-N TCPPARSER" not in scene.firewall.rules(scene.host, "ip6tables"), (
            "the empty chain is gone")
    unblock("all", 0, "3 blocks removed\n")
    assert scene.firewall.everything(scene.host) == before, "rules"
    unblock("all", 1, "tcpparser: no such block\n")
    assert scene.firewall.product(scene.host, "--unblock", "everything").returncode == 2, (
        "exit status")


@pytest.mark.parametrize("backend, family, target", [
    ("iptables-nft", "v4", "address"), ("iptables-nft", "v6", "address"),
    ("iptables-legacy", "v4", "network"), ("iptables-nft", "v4", "all"),
    ("nft", "v4", "address"), ("nft", "v6", "address"), ("nft", "v4", "network"),
    ("nft", "v4", "all")])
def test_unblock_beside_a_daemon(t, backend, family, target):
    scene = quick_scene(t, backend, family, "--block-time", "10m,1h")
    scene.guard = scene.start()
    block(scene, scene.guard)
    targets = {"address": scene.family.peer, "network": "10.0.0.0/8", "all": "all"}
    done = scene.firewall.product(scene.host, "--unblock", targets[target])
    assert (done.returncode, done.stdout) == (0, "1 block removed\n"), "--unblock"
    assert scene.reaches(seconds=5), "it is back at once"
    unblocked_from_outside(scene, scene.family.peer, by=scene.firewall.unblocker)
    wait_for(lambda: is_untouched(scene), "the daemon removes what is empty", PERIOD)
    scene.guard.wait_readings(2)
    assert len(scene.guard.matching("Port scan")) == 1, "old connections lead to no block"
    scene.scan()
    wait_for(lambda: len(scene.guard.matching(" Blocked:")) == 2, "the second block")
    assert " for 10m," in scene.guard.matching(" Blocked:")[1], "that strike did not count"
