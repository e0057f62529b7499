#!/usr/bin/env python3
"""`make detect`: what scans leave behind, with destroy events and without.

Runs real scans of ten accepting services in network namespaces of their own,
and of four published ports of containers, a few times each, and prints a table:
how many were detected, and how long after the fourth connection ended (where they
are held: was opened) the DROP stood in the kernel. Then the chain and the sets side
by side, what a flood of scans costs, and what must not be taken for a scan, for as
long as it takes.

The milliseconds, median and (longest), on 2026-11-30, Linux 6.18.44, 2 processors:

| scan | events | ms | --interval 1h | ms | no events | ms |
|---|---|---|---|---|---|---|
| `nmap -sT -T4`, its 1000 ports | 5 of 5 | 3.4 (12.1) | 5 of 5 | 3.0 (6.9) | 0 of 3 | - |
| `nmap -sT` of the ten | 5 of 5 | 3.0 (3.8) | 5 of 5 | 2.9 (3.5) | 0 of 3 | - |
| `nmap -sT -T2` of the ten | 5 of 5 | 2.7 (4.1) | 5 of 5 | 2.6 (6.1) | 1 of 3 | 2403.3 |
| connect, closed by FIN | 5 of 5 | 3.2 (4.4) | 5 of 5 | 2.5 (6.4) | 0 of 3 | - |
| connect, closed by RST | 5 of 5 | 2.8 (3.7) | 5 of 5 | 2.8 (4.1) | 0 of 3 | - |
| connect, aborted by the service (SO_LINGER 0) | 5 of 5 | 1.9 (2.6) | 5 of 5 | 2.8 (5.2) | 0 of 3 | - |
| connect, held one second, without a witness | 5 of 5 | 167.7 (274.2) | 5 of 5 | 168.0 (268.2) | 3 of 3 | 81.5 (93.6) |
| connect, held 15 seconds, without a witness | 5 of 5 | 166.1 (268.1) | 5 of 5 | 221.1 (297.3) | 3 of 3 | 82.5 (96.0) |
| connect, held one second, with the witness | 5 of 5 | 7.5 (7.6) | 5 of 5 | 8.0 (9.9) | 3 of 3 | 7.9 (8.3) |
| connect, held 15 seconds, with the witness | 5 of 5 | 7.6 (8.8) | 5 of 5 | 7.8 (9.9) | 3 of 3 | 4.7 (8.9) |
| `nmap -sT` of four published ports of two namespaces | 5 of 5 | 7.1 (15.1) | 5 of 5 | 6.8 (8.0) | 0 of 3 | - |

Without events, what resets its connections at once, as nmap does, leaves nothing to
read. Of those ports that other namespaces serve only events tell.

Of `nmap -sT`, blocked by the chain 3.1 (4.8), in the sets 1.2 (7.3); the block stands
again 13.4 (16.5) after a flushed ruleset. 100 scans a second cost 5.9 % of a processor
where connections are reset, 9.8 % else.

Each probe of 21, 22, 23, 25 and 80 was told with these ports and its kind, nobody
blocked: nmap -sS SYN after 1.2 s, -sN NULL 1.1, -sF FIN 1.1, -sX XMAS 1.1, masscan SYN
2.2, zmap SYN 1.3. A million forged SYNs with as many guessed acknowledgements had
nobody blocked; a held scan was 998 ms after its fourth handshake during the flood, and
5 ms after it once the witness was back. All of this took 8.5 minutes.
"""

import os
import re
import statistics
import sys
import time

sys.dont_write_bytecode = True  # the source tree stays as it is

import containers
import harness
import test_blocking
import test_evidence
import test_firewall
import test_probes
import test_sets
import test_witness
import traffic

RUNS = 5
PUBLISHED = "published"
DEADLINE = 600  # seconds for everything
# Each with its number of runs: without events, a run waits for the self-test's end.
SETTINGS = [("events", "10s", False, RUNS), ("--interval 1h", "1h", False, RUNS),
            ("no events", "10s", True, 3)]
BLIND = ("--witness", "none")
ROWS = [("`nmap -sT -T4`, its 1000 ports", "nmap -sT -T4", ()),
        ("`nmap -sT` of the ten", "nmap -sT", ()),
        ("`nmap -sT -T2` of the ten", "nmap -sT -T2", ()),
        ("connect, closed by FIN", "connect, FIN", ()),
        ("connect, closed by RST", "connect, RST", ()),
        ("connect, aborted by the service (SO_LINGER 0)", "connect, aborted", ()),
        ("connect, held one second, without a witness", "connect, held 1 s", BLIND),
        ("connect, held 15 seconds, without a witness", "connect, held 15 s", BLIND),
        ("connect, held one second, with the witness", "connect, held 1 s", ()),
        ("connect, held 15 seconds, with the witness", "connect, held 15 s", ()),
        ("`nmap -sT` of four published ports of two namespaces", PUBLISHED, ())]
SECONDS_IDLE, SECONDS_LATE = 30, 20
SYNS = 1_000_000
FLOOD_RATE, FLOOD_SECONDS, FLOOD_MOST = 100, 30, 0.1


def attack(binary, kind, interval, is_deaf, delay, backend="iptables-nft", arguments=()):
    """Whether it was detected, and after how many milliseconds blocked. The
    delay puts it elsewhere between two looks at /proc/net/snmp."""
    case = harness.Case(binary)
    try:
        before = traffic.deaf() if is_deaf else ()
        scan = containers.PublishedAttack if kind == PUBLISHED else traffic.Attack
        done = scan(case, kind, interval, before, delay, backend=backend, arguments=arguments)
        assert traffic.has_events(done.guard) != is_deaf, "evidence_source_up"
        after = done.after()
        return done.is_detected, after and after * 1000
    finally:
        case.close()


def cell(results):
    """How many of the runs were detected, and their median and longest."""
    times = [after for _, after in results if after is not None]
    found = f"{sum(is_detected for is_detected, _ in results)} of {len(results)}"
    if not times:
        return f"{found} | -"
    return f"{found} | {statistics.median(times):.1f} ({max(times):.1f})"


def table(binary):
    heads = [f"{name} | ms" for name, *_ in SETTINGS]
    print("| scan | " + " | ".join(heads) + " |")
    print("|---" * (1 + 2 * len(SETTINGS)) + "|")
    for label, kind, arguments in ROWS:
        cells = []
        for _, interval, is_deaf, runs in SETTINGS:
            cells.append(cell([attack(binary, kind, interval, is_deaf, run / runs, arguments=arguments)
                               for run in range(runs)]))
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def places(binary):
    """In turns, so that both meet the same machine."""
    found = {"iptables-nft": [], "nft": []}
    for run in range(2 * RUNS):
        for backend, results in found.items():
            results.append(attack(binary, "nmap -sT", "10s", False, run / RUNS / 2, backend))
    print("| `nmap -sT` of the ten, blocked by | detected | ms |\n|---|---|---|")
    for backend, results in found.items():
        print(f"| {backend} | {cell(results)} |", flush=True)
    print(f"\nThe block stands again {repairs(binary)} ms after `nft flush ruleset`.")


def repairs(binary):
    case = harness.Case(binary)
    try:
        scene, took = test_blocking.Scene(case, "nft"), []
        test_firewall.block(scene, scene.start())
        for _ in range(RUNS):
            time.sleep(1.1)  # at most one look a second
            took.append(1000 * test_sets.seconds_to_repair(scene))
        return f"{statistics.median(took):.1f} ({max(took):.1f})"
    finally:
        case.close()


def flood(binary, how):
    """What 100 scans a second from successive sources cost, each blocked: which
    share of a processor, and milliseconds a scan."""
    case = harness.Case(binary)
    try:
        scene = traffic.Flood(case, "--show=scans", "--max-blocks-per-minute=10000")
        before, began = cpu(scene.guard.pid), time.monotonic()
        count = scene.scan(FLOOD_RATE * FLOOD_SECONDS, how, FLOOD_RATE)
        scene.wait_scans(count)
        used, took = cpu(scene.guard.pid) - before, time.monotonic() - began
        return used / took, 1000 * used / count
    finally:
        case.close()


def cpu(pid):
    """Seconds of processor time so far, its own and the kernel's for it."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def floods(binary):
    print(f"| {FLOOD_RATE} scans a second, connections end by | of a processor | ms a scan |\n|---|---|---|")
    all_good = True
    for how in ("rst", "fin"):
        share, each = flood(binary, how)
        all_good &= share < FLOOD_MOST
        missed = "" if share < FLOOD_MOST else ", WRONG: too much"
        print(f"| {how.upper()} | {share:.1%} | {each:.2f}{missed} |", flush=True)
    return all_good


def probes(binary):
    """What is said of those who complete no handshake: kinds and ports, and after how many seconds."""
    print("| probes of 21,22,23,25,80 | told | s |\n|---|---|---|")
    for name in (*test_probes.KINDS, "masscan", "zmap"):
        case = harness.Case(binary)
        try:
            scene = test_probes.Scene(case)
            began = time.monotonic()
            scene.probe(name, "198.51.100.60", (21, 22, 23, 25, 80))
            line = scene.guard.wait_line("Ports probed")
            took = time.monotonic() - began
            told = re.search(r"on ports (\S+) \((.*);", line)
            scene.nobody_is_blocked()
            print(f"| {'nmap ' if name.startswith('-') else ''}{name} | {told[2]} on {told[1]} | {took:.1f} |", flush=True)
        finally:
            case.close()


def say(what, function, binary):
    case = harness.Case(binary)
    started = time.monotonic()
    try:
        function(case)
        verdict = "as it must be"
    except AssertionError as failure:
        verdict = f"WRONG: {failure}"
    finally:
        case.close()
    print(f"{what}: {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    return not verdict.startswith("WRONG")


def long_ones(binary):
    """Those that need more time than `make test` has."""
    return all([
        say(f"{SYNS} forged SYNs with guessed acknowledgements, nobody blocked",
            lambda case: test_witness.flood(case, 2 * SYNS), binary),
        say(f"{SECONDS_IDLE} s of loopback traffic, nothing missed",
            lambda case: test_evidence.loopback_traffic(case, SECONDS_IDLE), binary),
        say(f"reset by the peer, closed {SECONDS_LATE} s later, one connection",
            lambda case: test_evidence.late_close(case, SECONDS_LATE), binary)])


def main(binary):
    release = os.uname().release.split("-")[0]
    print(f"{time.strftime('%Y-%m-%d')}, Linux {release}, {os.cpu_count()} processors; "
          "ms: median (longest)\n")
    table(binary)
    print()
    places(binary)
    print()
    is_cheap = floods(binary)
    print()
    probes(binary)
    print()
    return 0 if long_ones(binary) and is_cheap else 1


if __name__ == "__main__":
    harness.run_alone(main, DEADLINE)
