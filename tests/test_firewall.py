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
import socket
import threading
import time

import traffic
from harness import (FLAVOURS, Skipped, alone, carries_data, cases, check, equal, idle, must,
                     need, wait_for, wrapped_firewall)
from test_blocking import ACCEPT, PORTS, RULE, Scene
from test_files import fixture, listening, tcp_row
from test_process import states_of_children

OTHER_BOOT = "0badcafe"
FLAVOURS_AND_V6 = (("nft", "v4"), ("nft", "v6"), ("legacy", "v4"))
JUMPS = ["-A INPUT -j TCPPARSER", "-A FORWARD -j TCPPARSER"]
PERIOD = 4  # seconds within which the quick binary has verified and put right


def this_boot():
    with open("/proc/sys/kernel/random/boot_id") as boot_id:
        return boot_id.read(8)


def boot_seconds():
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def entry(source, end, boot=None, strikes=1, since=None, local=False):
    """A rule of ours as it stands in a restore file."""
    since = boot_seconds() - 5 if since is None else since
    towards = "-m addrtype --dst-type LOCAL " if local else ""
    return (f'-A TCPPARSER -s {source} {towards}-m comment --comment "tcpparser v1 '
            f'b={boot or this_boot()} e={end} s={strikes} t={since} d=n p=22,25,80,443" -j DROP')


def feed(scene, *rules, tool=None):
    """Puts chain, jumps and rules into the kernel, as an earlier run left them."""
    lines = ["*filter", "-N TCPPARSER", "-I INPUT 1 -j TCPPARSER", "-I FORWARD 1 -j TCPPARSER",
             *rules, "COMMIT"]
    scene.firewall.must(scene.host, f"{tool or scene.family.tool}-restore", "-w", "5",
                        "--noflush", input="\n".join(lines) + "\n")


def quick_scene(t, *arguments, **options):
    t.use_quick_binary()
    return Scene(t, *arguments, **options)


def jumps(scene, tool=None):
    return [rule for rule in scene.firewall.rules(scene.host, tool or scene.family.tool)
            if rule in JUMPS]


def sources(scene):
    """Who stands in the chain, with duplicates."""
    return sorted(RULE.match(rule)["source"] for rule in scene.entries())


def is_untouched(scene):
    return not any("TCPPARSER" in rule for rule in scene.firewall.everything(scene.host))


def cidr(scene, address=None):
    return f"{address or scene.family.peer}/{scene.family.single}"


def block(scene, guard, source=None):
    """Blocks the peer, or its other address."""
    address = source or scene.family.peer
    held = scene.scan(source)
    guard.wait_line(rf" Blocked: +{re.escape(address)} ")
    return held


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
            check(count < 50_000_000, "the service still sends")
    return count


def rows_with(scene, address):
    """Sockets of the host with that peer, as ss shows them, but those that
    only wait for their last segments to die."""
    shown = scene.host.must("ss", "-Htan").splitlines()
    return [line for line in shown if address in line and not line.startswith("TIME-WAIT")]


@cases(("nft", "v4"), ("nft", "v6"), ("nft", "mapped"), ("legacy", "v4"))
def test_open_connections_are_gone(t, flavour, family):
    need("ss")
    scene = Scene(t, flavour, family)
    scene.firewall.must(scene.host, scene.family.tool, *ACCEPT)
    pump(scene, 5000)
    guard = scene.start()
    stream = scene.peer.connect(scene.family.host, 5000)
    friend = scene.peer.connect(scene.family.host, 22, scene.family.friend)
    check(stream.recv(1), "the stream runs")
    held = block(scene, guard)
    if any("cannot be destroyed" in line for line in guard.error_output()):
        raise Skipped("this kernel lacks CONFIG_INET_DIAG_DESTROY")
    wait_for(lambda: not rows_with(scene, scene.family.peer), "an empty table", 2)
    bytes_until_silence(stream, 0.2)
    equal(bytes_until_silence(stream), 0, "bytes after the block")
    check(not any(carries_data(one, 0.2) for one in held), "no client gets bytes")
    check(carries_data(friend, 5), "another source's connection goes on")
    check(total(guard, "sockets_destroyed_total") >= 4, "sockets_destroyed_total")


@cases("v4", "mapped")
def test_late_ends_of_destroyed_sockets_are_no_connections(t, family):
    scene = Scene(t, "nft", family)
    scene.host.service.stop()
    scene.host.service = None
    ports = (2022, 2025, 2080, 2443)
    traffic.serve(scene.host, *ports, kind="slow", address=scene.family.wildcard)
    guard = scene.start()
    held = [scene.peer.connect(scene.family.host, port) for port in ports]
    guard.wait_line(" Blocked: ")
    guard.wait_readings(2)
    before = total(guard, "new_connections_total")
    equal(before, len(held), "new_connections_total")
    scene.host.service.close_kept()
    guard.wait_readings(4)
    equal(total(guard, "new_connections_total"), before, "after the application closed")
    equal(len(guard.matching("Port scan")), 1, "scan lines")


# ----------------------------------------------------------- adoption and expiry


@cases(*FLAVOURS_AND_V6)
def test_blocks_end_one_by_one(t, flavour, family):
    """A, then B in a later batch; when A ends, exactly B remains."""
    scene = Scene(t, flavour, family, "--block-time", "3s")
    guard = scene.start()
    block(scene, guard)
    time.sleep(1.5)
    block(scene, guard, scene.family.friend)
    equal(sources(scene), sorted([cidr(scene), cidr(scene, scene.family.friend)]), "both")
    wait_for(lambda: scene.reaches(seconds=0.3), "the end of A", 8)
    check(not scene.reaches(scene.family.friend, 0.3), "B is blocked")
    equal(sources(scene), [cidr(scene, scene.family.friend)], "entries")
    wait_for(lambda: scene.reaches(scene.family.friend, 0.3), "the end of B", 8)
    wait_for(lambda: is_untouched(scene), "no chain")
    equal(total(guard, "unblocks_total", reason="expired"), 2, "unblocks_total")


LISTED = re.compile(r"^(\S+) +(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) +(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)? +"
                    r"(\d+) +([\d,+]+) +(iptables-\w+)$")


def listed(scene):
    """What --list prints, by source: seconds left, strikes, ports, flavour."""
    done = scene.firewall.product(scene.host, "--list")
    equal(done.returncode, 0, f"--list: {done.stderr!r}; exit status")
    rows = [LISTED.match(line) for line in done.stdout.splitlines()[1:]]
    check(all(rows), f"--list: {done.stdout!r}")
    found = {}
    for row in rows:
        hours, minutes, seconds = (int(part or 0) for part in row.groups()[2:5])
        found[row[1]] = (hours * 3600 + minutes * 60 + seconds, int(row[6]), row[7], row[8])
    equal(len(found), len(rows), "no source stands twice")
    return found


@cases(*FLAVOURS)
def test_restart_adopts_500_blocks(t, flavour):
    scene = Scene(t, flavour)
    now = boot_seconds()
    ends = {f"198.18.{n // 250}.{1 + n % 250}": now + 300 + n for n in range(480)}
    ends_v6 = {f"2001:db8:{n:x}::/64": now + 300 + n for n in range(1, 21)}
    feed(scene, *(entry(f"{source}/32", end) for source, end in ends.items()))
    feed(scene, *(entry(source, end) for source, end in ends_v6.items()), tool="ip6tables")
    before = scene.firewall.everything(scene.host)
    for how in ("killed", "ended"):
        started = time.monotonic()
        guard = scene.start()
        wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 500, "500 blocks", 5)
        took = time.monotonic() - started
        check(took < 1.0, f"adopted after {took:.2f} s")
        commands = total(guard, "firewall_commands_total")
        check(commands <= 3, f"{commands} children")
        guard.wait_readings(2)
        equal(guard.matching("locked"), [], "lines about blocks")
        equal(scene.firewall.everything(scene.host), before, "rules")
        found = listed(scene)
        equal(set(found), set(ends) | set(ends_v6), "sources")
        now = boot_seconds()
        for source, end in {**ends, **ends_v6}.items():
            check(abs(now + found[source][0] - end) <= 1, f"end of {source}: {found[source]}")
        guard.signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        guard.wait_exit()
    equal(guard.output()[-1], "500 blocks stand; to lift all: tcpparser --unblock all", "last line")


@cases(*FLAVOURS)
def test_killed_at_any_moment(t, flavour):
    """Every scanner is blocked in the end, and once."""
    kills = int(os.environ.get("KILLS", "8")) // len(FLAVOURS)
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    dice = random.Random(seed)
    scene = Scene(t, flavour)
    scanners = [f"10.77.{1 + n // 200}.{1 + n % 200}" for n in range(4 * kills)]
    scene.peer.ip(*(f"address add {scanner}/32 dev lan0" for scanner in scanners))
    scene.host.ip("route add 10.77.0.0/16 dev lan0")
    held, left = [], list(scanners)
    for _ in range(kills):
        guard = scene.start()
        for scanner in left[:4]:
            for port in PORTS:
                with contextlib.suppress(OSError):
                    held.append(scene.peer.connect(scene.family.host, port, scanner, 1))
        left = left[4:]
        time.sleep(dice.uniform(0, 0.06))
        guard.signal(signal.SIGKILL)
        guard.wait_exit()
    guard = scene.start()
    wanted = sorted(f"{scanner}/32" for scanner in scanners)
    wait_for(lambda: len(scene.entries()) >= len(wanted), f"every scanner's block (SEED={seed})")
    guard.wait_readings(2)
    equal(sources(scene), wanted, f"sources (SEED={seed})")
    equal(sorted(jumps(scene)), sorted(JUMPS), f"jumps (SEED={seed})")
    check(not scene.peer.connects(scene.family.host, 22, scanners[0]), "it is blocked")
    check(scene.reaches(seconds=5), "others are not")
    equal(guard.matching("Block failed"), [], f"failures (SEED={seed})")


@cases(*FLAVOURS_AND_V6)
def test_rules_of_another_boot_start_anew(t, flavour, family):
    scene = Scene(t, flavour, family, "--block-time", "3s,1h")
    feed(scene, entry(cidr(scene), 999_999_999, OTHER_BOOT, 2, 1, True))
    check(not scene.reaches(seconds=0.3), "it is blocked from boot on")
    guard = scene.start()
    rule = wait_for(lambda: [rule for rule in map(RULE.match, scene.entries())
                             if rule["boot"] == this_boot()], "a comment of this boot")[0]
    check(0 < int(rule["end"]) - boot_seconds() <= 4, f"end {rule['end']} at {boot_seconds()}")
    equal((rule["ports"], rule["strike"], bool(rule["local"])), ("22,25,80,443", "2", True), "rest")
    check(not scene.reaches(seconds=0.3), "it is still blocked")
    wait_for(lambda: scene.reaches(seconds=0.3), "the end of the block", 8)
    wait_for(lambda: is_untouched(scene), "no chain")
    equal(guard.matching(" Blocked:"), [], "Blocked lines")


@cases(*FLAVOURS)
def test_foreign_rules_stay_and_ended_ones_go(t, flavour):
    scene = Scene(t, flavour)
    now = boot_seconds()
    foreign = ["-A TCPPARSER -s 192.0.2.0/24 -j DROP",
               '-A TCPPARSER -s 192.0.2.9/32 -m comment --comment tcpparsers -j DROP',
               '-A TCPPARSER -s 192.0.2.8/32 -p tcp -m comment --comment "tcpparser v1" -j DROP']
    unknown = '-A TCPPARSER -s 198.51.100.9/32 -m comment --comment "tcpparser v9 x=1" -j DROP'
    feed(scene, *foreign, entry(cidr(scene), now - 1, local=True),
         entry("198.51.100.8/32", 0), unknown)
    before = scene.firewall.rules(scene.host)
    guard = scene.start()
    wait_for(lambda: scene.reaches(seconds=0.3), "the end of what had ended")
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 2, "two blocks adopted")
    rules = scene.firewall.rules(scene.host)
    for rule in (*before[:3], *JUMPS):
        check(rule in rules, f"{rule} is gone")
    equal([rule for rule in rules if "192.0.2." in rule],
          [rule for rule in before if "192.0.2." in rule], "foreign rules")
    equal(scene.firewall.product(scene.host, "--unblock", "all").returncode, 0, "--unblock all")
    check(not any("198.51.100." in rule for rule in scene.entries()), "ours are gone")
    check(any("192.0.2.0/24" in rule for rule in scene.entries()), "foreign rules keep the chain")


def test_block_that_became_protected_is_lifted(t):
    scene = Scene(t)
    feed(scene, entry(cidr(scene), 0, local=True), entry(cidr(scene, scene.family.friend), 0,
                                                         local=True))
    guard = scene.start()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == 2, "adoption")
    scene.host.ip(f"route add default via {scene.family.peer} table 77")
    guard.wait_line(r" Unblocked: +10\.77\.0\.2 it holds a protected address now")
    check(scene.reaches(seconds=5), "the gateway is back")
    check(not scene.reaches(scene.family.friend, 0.5), "the other stays blocked")
    equal(total(guard, "unblocks_total", reason="protected"), 1, "unblocks_total")
