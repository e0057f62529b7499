"""Metrics as real scrapers see them."""

import re
import threading
import time

import pytest

from harness import need, run, wait_for
from test_files import fixture, tcp_row

PORTS = (22, 25, 80, 443)
NAMES = """readings_total reading_duration_seconds last_reading_timestamp_seconds connections
new_connections_total port_scans_total blocks_total block_failures_total blocks_refused_total
blocked_sources malformed_rows_total table_entries table_capacity table_evictions_total
http_requests_total build_info""".split()


def curl(guard, *arguments):
    """Headers and body of one request by the real curl."""
    done = guard.namespace.run("curl", "-sS", "-i", "--max-time", "5", *arguments)
    assert done.returncode == 0, f"curl {arguments}: {done.stderr.strip()}"
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    first, *rest = head.split("\n")
    headers = {name.lower(): value.strip()
               for name, _, value in (line.partition(":") for line in rest)}
    return int(first.split()[1]), headers, body


def body_of(guard):
    return curl(guard, "http://127.0.0.1:3021/metrics")[2]


def faults(text):
    """What promtool does not find: duplicates, split families, odd ends."""
    found = []
    if not text.endswith("\n"):
        found.append("no newline at the end")
    seen, families, typed = set(), [], {}
    for line in text.splitlines():
        comment = re.match(r"# (HELP|TYPE) (\S+) (.+)$", line)
        if comment and (comment[1], comment[2]) in typed:
            found.append(f"{comment[1]} of {comment[2]} twice")
        if comment:
            typed[comment[1], comment[2]] = comment[3]
            family = comment[2]
        else:
            sample = re.match(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})? (\S+)$', line)
            if not sample:
                found.append(f"no sample: {line!r}")
                continue
            if sample[1] + (sample[2] or "") in seen:
                found.append(f"{sample[1]}{sample[2] or ''} twice")
            seen.add(sample[1] + (sample[2] or ""))
            base = re.sub("_(bucket|sum|count)$", "", sample[1])
            family = base if ("TYPE", base) in typed else sample[1]
            if ("TYPE", family) not in typed or ("HELP", family) not in typed:
                found.append(f"{family} has no HELP or TYPE before its samples")
            if typed.get(("TYPE", family)) == "counter" and not family.endswith("_total"):
                found.append(f"counter {family} does not end in _total")
            if re.search(r"\d+\.\d+\.\d+\.\d+", sample[2] or ""):
                found.append(f"an address in a label: {line!r}")
            if not family.startswith(("tcpparser_", "process_")):
                found.append(f"{family} without prefix")
        if not families or families[-1] != family:
            families.append(family)
    found += [f"family {name} is split" for name in set(families) if families.count(name) > 1]
    return found


def test_our_own_checks_can_fail(t):
    good = "# HELP tcpparser_a_total A.\n# TYPE tcpparser_a_total counter\n"
    assert faults(good + "tcpparser_a_total 1\n") == [], "faults of a good one"
    for bad in ("tcpparser_a_total 1", "tcpparser_a_total 1\ntcpparser_a_total 1\n", "nonsense\n",
                "other 1\n", 'tcpparser_a_total{ip="10.0.0.1"} 1\n', good + "tcpparser_a_total 1\n",
                'tcpparser_a_total{b="1"} 1\n' + good.replace("_a_", "_b_")
                + 'tcpparser_b_total 1\ntcpparser_a_total{b="2"} 1\n'):
        assert faults(good + bad), f"nothing found in {bad!r}"


def test_scrape_with_curl(t):
    guard = t.guard(t.lan().host).ready()
    for path in ("/metrics", "/", "/metrics?name[]=up"):
        status, headers, body = curl(guard, f"http://127.0.0.1:3021{path}")
        assert status == 200, f"status of {path}"
        assert re.fullmatch(r"text/plain; version=0\.0\.4(; charset=utf-8)?",
                            headers["content-type"]), f"content type {headers['content-type']!r}"
        assert int(headers["content-length"]) == len(body.encode()), "Content-Length"
        assert "tcpparser_readings_total" in body, "no readings_total"


def test_head_has_headers_only(t):
    guard = t.guard(t.lan().host).ready()
    for path in ("/metrics", "/"):
        status, headers, body = curl(guard, "-I", f"http://127.0.0.1:3021{path}")
        assert (status, body) == (200, ""), "status and body"
        assert int(headers["content-length"]) > 0, "Content-Length"


def test_other_requests_are_refused(t):
    guard = t.guard(t.lan().host).ready()
    assert curl(guard, "http://127.0.0.1:3021/nothing")[0] == 404, "status of /nothing"
    assert curl(guard, "-d", "x=1", "http://127.0.0.1:3021/metrics")[0] == 413, "status of a POST"
    status, headers, _ = curl(guard, "-X", "DELETE", "http://127.0.0.1:3021/metrics")
    assert status == 405, "status of a DELETE"
    assert "GET" in headers.get("allow", ""), f"Allow: {headers.get('allow')!r}"


def test_ipv6_and_ipv4_are_served(t):
    lan = t.lan()
    t.guard(lan.host).ready()
    for place, address in ((lan.host, "[::1]"), (lan.peer, f"[{lan.host_v6}]"),
                           (lan.peer, lan.host_v4)):
        url = f"http://{address}:3021/"
        done = place.run("curl", "-sSg", "--max-time", "5", "-o", "/dev/null",
                         "-w", "%{http_code}", url)
        assert done.stdout == "200", f"status of {url}"


def test_host_without_ipv6_is_served(t):
    host = t.namespace("host")
    host.sysctl("net.ipv6.conf.all.disable_ipv6=1")
    t.guard(host).ready()


def test_listen_option(t):
    lan = t.lan()
    guard = t.guard(lan.host, "--listen", "10.77.0.1:8080")
    guard.wait_line("No TCP peer")
    wait_for(lambda: lan.peer.run("curl", "-sSf", "--max-time", "5", "-o", "/dev/null",
                                  "http://10.77.0.1:8080/").returncode == 0, "an answer on 8080")
    assert not lan.host.listens_at("127.0.0.1", 8080), "it listens on loopback too"


def test_listen_none(t):
    lan = t.lan()
    guard = t.guard(lan.host, "--listen", "none")
    guard.wait_line("No TCP peer")
    assert not lan.host.listens_at("127.0.0.1", 3021), "it listens"


def test_promtool_is_silent(t):
    need("promtool")
    guard = t.guard(t.lan().host).ready()
    done = run("promtool", "check", "metrics", input=body_of(guard))
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), "promtool"


def test_exposition_is_well_formed(t):
    guard = t.guard(t.lan().host).ready()
    text = body_of(guard)
    assert faults(text) == [], "faults"
    for name in NAMES:
        assert f"# TYPE tcpparser_{name} " in text, f"tcpparser_{name} is missing"
    for name in ("tcpparser_port_scans_total", "tcpparser_blocks_total",
                 "tcpparser_blocked_sources"):
        assert re.search(f"^{name} 0$", text, re.M), f"{name} does not start at 0"
    for direction in ("in", "out"):
        for family in ("4", "6"):
            label = f'{{direction="{direction}",family="{family}"}}'
            assert f"tcpparser_new_connections_total{label} 0\n" in text, f"no {label}"


def test_counters_match_the_scenario(t):
    lan = t.lan()
    firewall = t.firewall(lan.host)
    lan.host.listen(*PORTS, address="::")
    lan.peer.listen(8080)
    guard = t.guard(lan.host, env=firewall.env).ready()
    held = [lan.peer.connect(lan.host_v6, 22, source=lan.friend_v6) for _ in range(2)]
    held += [lan.host.connect(lan.peer_v4, 8080)]
    guard.wait_line("New connection: .* <- ")  # the block ends it, too
    held += [lan.peer.connect(lan.host_v4, port) for port in PORTS]
    guard.wait_line("Blocked: ")
    guard.wait_readings(2)
    found = guard.scrape()
    expected = {
        "tcpparser_port_scans_total": 1, "tcpparser_blocks_total": 1,
        "tcpparser_blocked_sources": 1,
        'tcpparser_new_connections_total{direction="in",family="4"}': 4,
        'tcpparser_new_connections_total{direction="in",family="6"}': 2,
        'tcpparser_new_connections_total{direction="out",family="4"}': 1,
        'tcpparser_new_connections_total{direction="out",family="6"}': 0}
    assert {name: found.get(name) for name in expected} == expected, "samples"
    assert faults(body_of(guard)) == [], "faults"
    assert len(held) == 7, "connections held"


def test_connections_by_state(t):
    lan = t.lan()
    lan.host.listen(22, address="::")
    guard = t.guard(lan.host).ready()
    held = [lan.peer.connect(lan.host_v4, 22) for _ in range(3)]
    held += [lan.peer.connect(lan.host_v6, 22) for _ in range(2)]

    def established():
        found = guard.scrape()
        names = [name for name in found if name.startswith("tcpparser_connections{")
                 and re.search('state="established"', name, re.I)]
        return {name: found[name] for name in names}

    def counted(family):
        return sum(value for name, value in established().items() if f'family="{family}"' in name)

    wait_for(lambda: (counted(4), counted(6)) == (3, 2), "three and two established connections")
    assert len(held) == 5, "connections held"


def test_malformed_rows_are_counted(t):
    host = t.namespace("host")
    good = tcp_row("192.0.2.1", 22, "198.51.100.7", 4000, 1)
    guard = t.guard(host, "--dry-run", "--proc", fixture(t, [good, "torn\n", good[:30] + "\n"]))
    guard.ready()
    found = guard.scrape()
    assert found["tcpparser_malformed_rows_total"] >= 2, "malformed_rows_total"
    assert found["tcpparser_malformed_rows_total"] % 2 == 0, "two a reading: the rest"


def test_process_metrics_are_true(t):
    guard = t.guard(t.lan().host).ready()
    found = guard.scrape()
    with open(f"/proc/{guard.pid}/status") as status:
        resident = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) * 1024
    reported = found["process_resident_memory_bytes"]
    assert 0.5 * resident <= reported <= 1.5 * resident, f"{reported} reported, {resident} found"
    assert abs(found["process_start_time_seconds"] - time.time()) < 60, "start time"
    assert found["process_open_fds"] >= 3, "open descriptors"


STRANGE = {
    "noise": b"\0\xff\r\n\n\n" * 100,
    "half": b"GET /metrics HTTP/1.1\r\nHost: a\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "long": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_requests_do_no_harm(t, name):
    host = t.lan().host
    guard = t.guard(host).ready()
    for close_at_once in (True, False):
        client = host.connect("127.0.0.1", 3021)
        client.sendall(STRANGE[name])
        if close_at_once:
            client.close()
    assert curl(guard, "http://127.0.0.1:3021/metrics")[0] == 200, "status"


def test_keep_alive_serves_many(t):
    host = t.lan().host
    t.guard(host).ready()
    url = "http://127.0.0.1:3021/metrics"
    done = host.run("curl", "-sS", "--max-time", "10", *["-o", "/dev/null", url] * 10,
                    "-w", "%{http_code} %{num_connects}\n")
    answers = [line.split() for line in done.stdout.splitlines()]
    assert [status for status, _ in answers] == ["200"] * 10, "statuses"
    assert sum(int(made) for _, made in answers) <= 10, "connections"


@pytest.mark.idle
def test_slow_clients_do_not_delay_readings(t):
    """Twenty clients that send one byte a second, over ten seconds."""
    host = t.lan().host
    guard = t.guard(host, interval="500ms").ready()
    stop = threading.Event()
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nUser-Agent: slow\r\n\r\n"

    def dribble():
        place = 0
        client = host.connect("127.0.0.1", 3021)
        while not stop.wait(1):
            try:
                client.send(request[place:place + 1])
                place = (place + 1) % len(request)
            except OSError:
                client, place = host.connect("127.0.0.1", 3021), 0

    threads = [threading.Thread(target=dribble, daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        first = settled(guard)
        time.sleep(10)
        started = time.monotonic()
        last = settled(guard)
        assert time.monotonic() - started < 3, "a scrape had to wait"
    finally:
        stop.set()
        for thread in threads:
            thread.join(3)
    period = (last[1] - first[1]) / (last[0] - first[0])
    assert 0.45 <= period <= 0.55, f"a reading each {period:.3f} s"


def settled(guard):
    """Readings so far and the time of the last one, of one scrape."""
    found = guard.scrape()
    return (found["tcpparser_readings_total"], found["tcpparser_last_reading_timestamp_seconds"])


def test_sixty_five_clients_at_once(t):
    """One more than there is room for: the newest is served."""
    host = t.lan().host
    guard = t.guard(host).ready()
    held = [host.connect("127.0.0.1", 3021) for _ in range(100)]
    for client in held:
        client.setblocking(True)
    assert curl(guard, "http://127.0.0.1:3021/metrics")[0] == 200, "status"
    guard.wait_readings(2)
