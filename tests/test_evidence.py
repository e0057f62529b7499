"""What short connections prove: destroy events, early readings, and how much
of what the kernel counted was seen."""

import os
import re
import subprocess
import time

import traffic
from harness import (FAMILIES, STAMP, Family, Skipped, alone, cases, check, endpoint, equal,
                     run, scan_pattern, wait_for)
from traffic import (TEN, Attack, ConnectScan, Forger, Nmap, deaf, end, has_events, helper,
                     serve, touch, until)

PORTS = (22, 25, 80, 443)
NEW_INBOUND = 'tcpparser_new_connections_total{direction="in",family="4"}'
MISSED = "tcpparser_connections_missed_total"
OVERFLOWS = "tcpparser_destroy_event_overflows_total"
EVENTS_UP = 'tcpparser_evidence_source_up{source="destroy_events"}'


class Scene:
    """A guarded host with services, and a peer; blocking unless told."""

    def __init__(self, t, *arguments, ports=PORTS, family="v4", kind="echo", **options):
        self.family, self.lan = Family(family), t.lan()
        self.host, self.peer = self.lan.host, self.lan.peer
        self.firewall = t.firewall(self.host)
        self.listeners = serve(self.host, *ports, kind=kind, address=self.family.wildcard)
        options.setdefault("env", self.firewall.env)
        self.guard = t.guard(self.host, *arguments, **options).ready()

    def hears(self):
        """Lets the self-test of destroy events pass."""
        wait_for(lambda: has_events(self.guard), "destroy events")
        return self

    def touch(self, *ports, **options):
        return touch(self.peer, self.family.host, *ports, **options)

    def entries(self):
        return self.firewall.entries(self.host, self.family.tool)

    def wait_metric(self, name, value, seconds=15):
        wait_for(lambda: self.guard.metric(name) >= value, f"{name} {value}", seconds)
        equal(self.guard.metric(name), value, name)

    def wait_blocked(self, data=None):
        line = self.guard.wait_line(": +Blocked: ")
        rule = wait_for(self.entries, "a rule in TCPPARSER")[0]
        if data:
            words, letter = {"yes": ("yes", "y"), "no": ("no", "n")}[data]
            check(f"data sent: {words}," in line, line)
            check(f" d={letter} " in rule, rule)
        return rule

    def nothing_found(self, readings=2):
        """Neither now nor by the next readings."""
        self.guard.wait_readings(readings)
        equal(self.guard.matching("Port scan|Blocked"), [], "scans")
        equal(self.guard.metric("tcpparser_port_scans_total"), 0, "port_scans_total")
        equal(self.entries(), [], "rules")


# --------------------------------------------------------------------- scans


@cases(*traffic.SCANS)
def test_scans_are_blocked(t, kind):
    """`make detect` measures; here the bounds are those of a busy machine."""
    attack = Attack(t, kind)
    check(attack.is_detected, "not detected")
    after = attack.after()
    check(after is not None, "no DROP in the kernel")
    check(after < (4 if "held" in kind else 1), f"blocked {after:.3f} s after")
    equal(attack.guard.metric("tcpparser_blocks_total"), 1, "blocks_total")
    check(attack.firewall.blocks(attack.lan.host, "10.77.0.2/32"), "the rule")


@cases("nmap -sT", "connect, aborted", "connect, held 15 s")
def test_scans_are_blocked_between_readings_of_an_hour(t, kind):
    attack = Attack(t, kind, interval="1h")
    check(attack.after() is not None, "no DROP in the kernel")
    scheduled = attack.guard.metric("tcpparser_scheduled_readings_total")
    equal(scheduled, 1, "scheduled readings")


@cases(*((family, how) for family in FAMILIES for how in ("fin", "rst")))
def test_short_scans_of_every_family(t, family, how):
    scene = Scene(t, family=family, interval="1h").hears()
    equal(scene.touch(*PORTS, how=how), 4, "connections")
    scene.guard.wait_line(scan_pattern(scene.family.peer, scene.family.host, PORTS))
    check(f"-s {scene.family.peer}/{scene.family.single} " in scene.wait_blocked(), "source")
    equal(len(scene.guard.matching("Port scan")), 1, "scans")


@cases("legacy")
def test_short_scans_with_another_iptables(t, flavour):
    lan = t.lan()
    firewall = t.firewall(lan.host, flavour)
    serve(lan.host, *PORTS)
    guard = t.guard(lan.host, env=firewall.env, interval="1h").ready()
    wait_for(lambda: has_events(guard), "destroy events")
    touch(lan.peer, lan.host_v4, *PORTS)
    wait_for(lambda: firewall.blocks(lan.host, "10.77.0.2/32"), "the block")


def test_scans_of_listeners_that_no_reading_saw_yet(t):
    scene = Scene(t, ports=(), interval="1h").hears()
    serve(scene.host, *PORTS)
    scene.touch(*PORTS)
    scene.wait_blocked()
    equal(scene.guard.metric("tcpparser_scheduled_readings_total"), 1, "scheduled readings")
    check(scene.guard.metric("tcpparser_early_readings_total") >= 1, "an early reading")


# ------------------------------------------------------------ without events


def deaf_scene(t, **options):
    scene = Scene(t, before=deaf(), interval="10s", **options)
    wait_for(scene.guard.error_output, "words about destroy events")
    return scene


def said_once(scene, pattern):
    said = [line for line in scene.guard.error_output() if re.search(pattern, line)]
    equal(len(said), 1, f"{pattern} in {scene.guard.error_output()}")


def test_events_that_never_come(t):
    """What is held open is caught, what is short is not; both is said."""
    scene = deaf_scene(t)
    equal(scene.guard.metric(EVENTS_UP), 0, EVENTS_UP)
    scene.touch(*PORTS, source=scene.family.friend)
    held = ConnectScan(scene.peer, scene.family.host, PORTS, "fin", hold=15)
    scene.wait_blocked("no")
    held.close()
    said_once(scene, "no destroy events: the kernel sends none")
    check(not scene.guard.matching("Port scan.*10.77.0.3 "), "short connections are not seen")


def test_without_loopback_there_is_no_self_test(t):
    lan = t.lan()
    lan.host.ip("link set lo down")
    serve(lan.host, *PORTS)
    guard = t.guard(lan.host, "--dry-run", interval="10s")
    wait_for(guard.error_output, "words about destroy events")
    check("no destroy events: " in guard.error_output()[0], guard.error_output()[0])
    held = [lan.peer.connect(lan.host_v4, port) for port in PORTS]
    guard.wait_line(scan_pattern(lan.peer_v4, lan.host_v4, PORTS))
    equal(len(held), 4, "connections held")
    equal(len(guard.error_output()), 1, f"lines {guard.error_output()}")


def test_another_namespace_has_no_events(t):
    lan = t.lan()
    serve(lan.host, *PORTS)
    with lan.host.entered():
        inside = subprocess.Popen(["sleep", "60"])
    try:
        guard = t.guard(t.namespace("elsewhere"), "--dry-run", "--proc", f"/proc/{inside.pid}",
                        interval="10s").ready()
        wait_for(guard.error_output, "words about destroy events")
        check("another network namespace" in guard.error_output()[0], guard.error_output()[0])
        equal(guard.metric(EVENTS_UP), 0, EVENTS_UP)
        held = [lan.peer.connect(lan.host_v4, port) for port in PORTS]
        guard.wait_line(scan_pattern(lan.peer_v4, lan.host_v4, PORTS))
        equal(len(held), 4, "connections held")
        equal(len(guard.error_output()), 1, f"lines {guard.error_output()}")
    finally:
        inside.kill()
        inside.wait()


# --------------------------------------------------------------- the coverage


@alone
def test_every_connection_of_a_flood_is_counted(t):
    count = 20_000
    lan = t.lan()
    guard = t.guard(lan.host, "--dry-run", "--show", "scans", interval="1s").ready()
    with helper(lan.host, "serve", 8080):
        guard.wait_readings(2)
        wait_for(lambda: has_events(guard), "destroy events")
        with helper(lan.peer, "flood", lan.host_v4, 8080, count) as flood:
            opened = int(flood.stdout.readline())
        equal(opened, count, "connections the test opened")
        descriptors, memory = resources(guard)
        before = guard.scrape()
        wait_for(lambda: guard.metric(NEW_INBOUND) + guard.metric(MISSED) >= count, "all of them")
        with helper(lan.peer, "flood", lan.host_v4, 8080, count) as flood:
            opened += int(flood.stdout.readline())
        guard.wait_readings(3)
        found = guard.scrape()
        if found[OVERFLOWS]:
            print(f"    the kernel dropped events {found[OVERFLOWS]:.0f} times (ENOBUFS)")
            equal(found[NEW_INBOUND] + found[MISSED], opened, "seen and missed")
        else:
            equal((found[NEW_INBOUND], found[MISSED]), (opened, 0), "seen, missed")
        equal(found["tcpparser_port_scans_total"], before["tcpparser_port_scans_total"], "scans")
        now_descriptors, now_memory = resources(guard)
        equal(now_descriptors, descriptors, "descriptors")
        check(now_memory <= memory + 64, f"memory: {memory} KiB, then {now_memory} KiB")


def resources(guard):
    """Open descriptors, and resident memory in KiB."""
    with open(f"/proc/{guard.pid}/status") as status:
        memory = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])
    return sorted(os.listdir(f"/proc/{guard.pid}/fd")), memory


def test_services_that_never_accept_are_missed(t):
    scene = Scene(t, kind="busy").hears()
    Nmap(scene.peer, "-sT", "-p", "22,25,80,443", scene.family.host).wait()
    scene.wait_metric(MISSED, 4)
    equal(scene.guard.metric(NEW_INBOUND), 0, NEW_INBOUND)


def test_resets_before_accept_are_missed(t):
    """And those that come to light late do not hide those missed later."""
    scene = Scene(t, kind="busy").hears()
    listener = scene.listeners[0]
    equal(scene.touch(22, times=100), 100, "connections")
    scene.wait_metric(MISSED, 100)
    scene.guard.wait_readings(3)
    equal(scene.guard.metric(MISSED), 100, "missed, later")
    for _ in range(100):
        listener.accept()[0].close()
    scene.wait_metric(NEW_INBOUND, 100)
    scene.guard.wait_readings(3)
    equal(scene.touch(22, times=50), 50, "connections")
    scene.wait_metric(MISSED, 150)
    scene.nothing_found()


def test_loopback_traffic_is_not_missed(t):
    scene = Scene(t, family="mapped", interval="1s").hears()
    until(lambda: touch(scene.host, "127.0.0.1", 22, how="fin") and
          touch(scene.host, "::1", 25, how="rst") and
          touch(scene.host, scene.lan.host_v4, 80, data=b"x") and None, 8)
    scene.guard.wait_readings(3)
    equal(scene.guard.metric(MISSED), 0, MISSED)
    equal(scene.guard.metric(NEW_INBOUND), 0, NEW_INBOUND)
    scene.nothing_found()


def test_resets_sent_are_counted(t):
    scene = Scene(t, "--dry-run")
    before = scene.guard.metric("tcpparser_resets_sent_total")
    for port in range(1000, 1020):
        check(not scene.peer.connects(scene.family.host, port), f"port {port} is closed")
    scene.wait_metric("tcpparser_resets_sent_total", before + 20)
