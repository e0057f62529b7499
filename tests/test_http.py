"""HTTP with raw sockets against the real binary: what RFC 9110 and 9112 ask,
and hostile clients."""

import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import time

import pytest

from harness import broken_firewall, need, samples, wait_for
from test_files import fixture
from test_firewall import entry

HOME = "127.0.0.1"
PORT = 3021
HOST = b"Host: localhost\r\n"
PORTS = (22, 25, 80, 443)


class Response:
    """One answer, read from a socket's file."""

    def __init__(self, stream, is_head=False):
        line = stream.readline().decode()
        if not line:
            raise ConnectionError("the connection ended before an answer")
        self.version, self.status = line.split()[0], int(line.split()[1])
        self.headers = {}
        for line in iter(lambda: stream.readline().decode().rstrip("\r\n"), ""):
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        self.body = b"" if is_head else self.read_body(stream)

    def read_body(self, stream):
        if "content-length" not in self.headers:
            return stream.read()
        length = int(self.headers["content-length"])
        body = stream.read(length)
        assert len(body) == length, "bytes of body"
        return body


@contextlib.contextmanager
def client(place, address=HOME, source=None):
    """A connection and its reading end."""
    with place.connect(address, PORT, source) as sock, sock.makefile("rb") as stream:
        yield sock, stream


def get(path, *fields, method="GET", version="1.1"):
    head = f"{method} {path} HTTP/{version}\r\n" + "".join(f"{field}\r\n" for field in fields)
    return head.encode() + (HOST if version == "1.1" else b"") + b"\r\n"


def ask(place, request, **options):
    with client(place, **options) as (sock, stream):
        sock.sendall(request)
        return Response(stream, request.startswith(b"HEAD"))


GOES_ON, ENDS = True, False
PLAIN = b"GET /healthz HTTP/1.1\r\n"
TABLE = {
    "plain": (get("/metrics"), 200, GOES_ON),
    "root": (get("/"), 200, GOES_ON),
    "query": (get("/metrics?name[]=up"), 200, GOES_ON),
    "absolute form": (get("http://localhost:3021/metrics?a"), 200, GOES_ON),
    "later minor version": (PLAIN.replace(b"1.1", b"1.2") + HOST + b"\r\n", 200, GOES_ON),
    "close": (get("/healthz", "Connection: close"), 200, ENDS),
    "close in a list": (get("/healthz", "Connection: foo, CLOSE"), 200, ENDS),
    "1.0": (get("/healthz", version="1.0"), 200, ENDS),
    "1.0 keep-alive": (get("/healthz", "Connection: keep-alive", version="1.0"), 200, GOES_ON),
    "empty lines first": (b"\r\n\r\n" + get("/healthz"), 200, GOES_ON),
    "head": (get("/metrics", method="HEAD"), 200, GOES_ON),
    "body of a get": (get("/healthz", "Content-Length: 5") + b"hello", 413, ENDS),
    "chunked body": (get("/healthz", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 413, ENDS),
    "expectation": (get("/healthz", "Content-Length: 5", "Expect: 100-continue"), 413, ENDS),
    "unknown path": (get("/nothing"), 404, GOES_ON),
    "post": (get("/metrics", "Content-Length: 3", method="POST") + b"x=1", 413, ENDS),
    "post without a body": (get("/metrics", method="POST"), 405, GOES_ON),
    "options": (get("*", method="OPTIONS"), 405, GOES_ON),
    "no host": (PLAIN + b"\r\n", 400, ENDS),
    "two hosts": (PLAIN + HOST + HOST + b"\r\n", 400, ENDS),
    "bare line feeds": (b"GET /healthz HTTP/1.1\nHost: a\n\n", 400, ENDS),
    "nul": (PLAIN + b"Host: a\0b\r\n\r\n", 400, ENDS),
    "folded field": (PLAIN + HOST + b"A: b\r\n c\r\n\r\n", 400, ENDS),
    "blank before colon": (PLAIN + b"Host : a\r\n\r\n", 400, ENDS),
    "two lengths": (get("/healthz", "Content-Length: 5", "Content-Length: 6"), 400, ENDS),
    "length and chunks": (get("/healthz", "Content-Length: 5", "Transfer-Encoding: chunked"),
                          400, ENDS),
    "unknown coding": (get("/healthz", "Transfer-Encoding: gzip, chunked"), 413, ENDS),
    "long line": (b"GET /" + b"a" * 9_000, 414, ENDS),
    "long field": (PLAIN + b"A: " + b"a" * 9_000, 431, ENDS),
    "many fields": (PLAIN + b"A: b\r\n" * 2_000, 431, ENDS),
    "tls hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, ENDS),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, ENDS),
    "http/0.9": (b"GET /\r\n", 400, ENDS),
}


def check_row(host, name, request, status, goes_on):
    with client(host) as (sock, stream):
        sock.sendall(request)
        answer = Response(stream, request.startswith(b"HEAD"))
        assert (answer.status, answer.version) == (status, "HTTP/1.1"), f"answer to {name}"
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"]), (
            f"Date of {name}: {answer.headers['date']!r}")
        assert ("allow" in answer.headers) == (status == 405), f"Allow in the answer to {name}"
        if goes_on:
            assert answer.headers.get("connection") != "close", f"{name} is answered with close"
            sock.sendall(get("/healthz"))
            assert Response(stream).status == 200, f"what follows {name}"
        else:
            assert answer.headers.get("connection") == "close", f"Connection of {name}"
            assert stream.read() == b"", f"what follows {name}"


def test_every_kind_of_request(t):
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    for name, row in TABLE.items():
        check_row(host, name, *row)


def test_request_in_single_bytes(t):
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    with client(host) as (sock, stream):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in get("/healthz"):
            sock.sendall(bytes([byte]))
        assert Response(stream).status == 200, "status"


def test_pipelined_requests_are_answered_in_order(t):
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    wanted = [("/healthz", 200), ("/metrics", 200), ("/nothing", 404)] * 70
    with client(host) as (sock, stream):
        sock.sendall(b"".join(get(path) for path, _ in wanted))
        statuses = [Response(stream).status for _ in wanted]
        assert statuses == [status for _, status in wanted], "statuses"


def test_half_closed_client_gets_its_answers(t):
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    with client(host) as (sock, stream):
        sock.sendall(get("/metrics") * 3)
        sock.shutdown(socket.SHUT_WR)
        for _ in range(3):
            assert Response(stream).body.endswith(b"\n"), "an answer was cut"
        assert stream.read() == b"", "what follows"


@pytest.mark.parametrize("name", ["long line", "two lengths", "chunked body", "nul"])
def test_no_reset_eats_an_answer(t, name):
    """The client goes on sending before it reads: with a plain close its
    kernel would get a reset and drop the answer."""
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    request, status, _ = TABLE[name]
    with client(host) as (sock, stream):
        sock.sendall(request)
        for _ in range(20):
            sock.sendall(b"x" * 1_000)
            time.sleep(0.01)
        assert Response(stream).status == status, "status"
        assert stream.read() == b"", "what follows"


def test_no_reset_eats_an_answer_that_is_taken_slowly(t):
    """The last answer is on its way still when the client sends once more."""
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    sock = host.socket(HOME)
    sock.settimeout(8)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect((HOME, PORT))
    with sock.makefile("rb") as stream:
        sock.sendall(get("/metrics", "Connection: close"))
        time.sleep(0.2)
        sock.sendall(b"\r\n")
        time.sleep(0.2)
        answer = Response(stream)
        assert answer.status == 200, "status"
        assert answer.body.endswith(b"\n") and len(answer.body) > 10_000, (
            f"{len(answer.body)} bytes")
        assert stream.read() == b"", "what follows"


def test_slow_head_is_answered_408(t):
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    with client(host) as (sock, stream), client(host) as (_, silent):
        started = time.monotonic()
        sock.sendall(b"GET / HT")
        sock.settimeout(15)
        assert Response(stream).status == 408, "status"
        took = time.monotonic() - started
        assert 4.5 <= took <= 9, f"after {took:.1f} s"
        assert silent.read() == b"", "words to a client that asked nothing"


# ------------------------------------------------------- healthz and blocked


def test_healthz_shows_the_firewall(t):
    host = t.lan().host
    t.guard(host, "--firewall=iptables", env=broken_firewall(t, "exit 3\n"))
    wait_for(lambda: host.listens_at(HOME, PORT), "a listener")
    wait_for(lambda: b"firewall" in ask(host, get("/healthz")).body, "the reason")
    assert ask(host, get("/healthz")).status == 503, "status"


def test_healthz_shows_readings(t):
    host = t.lan().host
    folder = fixture(t, [])
    t.guard(host, "--dry-run", "--proc", folder).ready()
    answer = ask(host, get("/healthz"))
    assert (answer.status, answer.body) == (200, b"ok\n"), "healthz"
    os.rename(os.path.join(folder, "net"), os.path.join(folder, "gone"))
    wait_for(lambda: ask(host, get("/healthz")).status == 503, "503")
    assert b"reading" in ask(host, get("/healthz")).body, "it does not say why"
    os.rename(os.path.join(folder, "gone"), os.path.join(folder, "net"))
    wait_for(lambda: ask(host, get("/healthz")).status == 200, "200 again")


BLOCKS = 3_000
FAR = "10.51.100.1"


def test_blocked_is_streamed_and_for_neighbours_only(t):
    lan = t.lan()
    firewall = t.backend(lan.host, "nft")
    lan.peer.ip(f"address add {FAR}/32 dev lo")
    lan.host.ip(f"route add {FAR}/32 via {lan.peer_v4}")
    sources = [f"203.0.{number // 250}.{number % 250 + 1}/32" for number in range(BLOCKS)]
    firewall.feed(lan.host, "iptables", *(entry(source, 0) for source in sources))
    guard = t.guard(lan.host, env=firewall.env).ready()
    wait_for(lambda: guard.metric("tcpparser_blocked_sources") == BLOCKS, "all adopted")
    for place, address in ((lan.host, HOME), (lan.peer, lan.host_v4), (lan.peer, lan.host_v6)):
        for version in ("1.1", "1.0"):
            answer = ask(place, get("/blocked", version=version), address=address)
            assert answer.status == 200, f"status at {address}"
            lines = answer.body.decode().split("\n")
            assert (len(lines), lines[-1]) == (BLOCKS + 1, ""), f"lines in HTTP/{version}"
            assert ({line.removesuffix("/32") for line in lines[:-1]}
                    == {source.removesuffix("/32") for source in sources}), "sources"
            answer = ask(place, get("/blocks", version=version), address=address)
            lines = answer.body.decode().split("\n")
            assert (len(lines), lines[-1]) == (BLOCKS + 2, ""), f"blocks in HTTP/{version}"
            assert ({line.split("\t")[0] for line in lines[1:-1]}
                    == {source.removesuffix("/32") for source in sources}), "sources of blocks"
    far = {"address": lan.host_v4, "source": FAR}
    assert ask(lan.peer, get("/blocked"), **far).status == 403, "status for a stranger"
    assert ask(lan.peer, get("/metrics"), **far).status == 200, "metrics for a stranger"
    with client(lan.host) as (sock, stream):
        sock.sendall(get("/healthz") + get("/blocked", method="HEAD") + get("/healthz"))
        assert Response(stream).body == b"ok\n", "what comes first"
        assert Response(stream, is_head=True).headers["connection"] == "close", (
            "HEAD of a long list")
        assert stream.read() == b"", "what follows"


def test_blocked_is_for_allowed_clients(t):
    lan = t.lan()
    lan.peer.ip(f"address add {FAR}/32 dev lo")
    lan.host.ip(f"route add {FAR}/32 via {lan.peer_v4}")
    t.guard(lan.host, "--dry-run", "--allow", "10.51.100.0/24").ready()
    answer = ask(lan.peer, get("/blocked"), address=lan.host_v4, source=FAR)
    assert (answer.status, answer.body) == (200, b""), "an allowed stranger"


def test_blocked_is_for_no_web_page(t):
    """Whose name points to this host for a moment."""
    host = t.namespace("host")
    t.guard(host, "--dry-run").ready()

    def status(name, path="/blocked"):
        done = host.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5",
                        "--resolve", f"{name}:{PORT}:{HOME}", f"http://{name}:{PORT}{path}")
        return done.stdout
    own = socket.gethostname().lower()
    for name in (HOME, "localhost", own, f"{own.partition('.')[0]}.lan"):
        assert status(name) == "200", name
    for name in ("page.example", f"{own}.page.example", f"{own}.com"):
        assert status(name) == "403", name
        assert status(name, "/metrics") == "200", f"metrics of {name}"


# ------------------------------------------------------------------- hostile


def cpu(pid):
    """Seconds of CPU so far."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


@pytest.mark.parametrize("limit", [20, 40])
def test_few_descriptors_starve_no_client(t, limit):
    """Idle clients take every descriptor there is; the newest is served all
    the same, and so is the firewall."""
    need("prlimit")
    lan = t.lan()
    firewall = t.firewall(lan.host)
    lan.host.listen(*PORTS)
    guard = t.guard(lan.host, env=firewall.env, before=("prlimit", f"--nofile={limit}")).ready()
    idle = [lan.host.connect(HOME, PORT) for _ in range(100)]
    for _ in range(5):
        started = time.monotonic()
        assert ask(lan.host, get("/metrics")).status == 200, "status"
        assert time.monotonic() - started < 3, "a scrape had to wait"
    before = cpu(guard.pid)
    time.sleep(1)
    assert cpu(guard.pid) - before < 0.3, "it spins"
    held = [lan.peer.connect(lan.host_v4, port) for port in PORTS]
    guard.wait_line("Blocked: ")
    assert (len(idle), len(held)) == (100, len(PORTS)), "connections held"


class Load:
    """Processes full of unwanted clients."""

    def __init__(self, place, *kinds):
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "http_load.py")
        self.processes = []
        with place.entered():
            for kind, count in kinds:
                self.processes.append(subprocess.Popen(
                    [sys.executable, script, HOME, str(PORT), kind, str(count)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))

    def __enter__(self):
        for process in self.processes:
            assert process.stdout.readline() == "ready\n", "the load"
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()


def scrape(host):
    """The samples of one scrape, and what it took. Where a busy machine lets this
    process wait between connect(2) and send(2), the flood's clients push it out
    meanwhile; who has not asked is closed first. So it asks again (RFC 9110
    section 9.2.2), and the time goes on."""
    started = time.monotonic()
    for tries in range(3, 0, -1):
        try:
            answer = ask(host, get("/metrics", "Connection: close"))
            break
        except ConnectionError:
            if tries == 1:
                raise
    return samples(answer.body.decode()), time.monotonic() - started


def watch(host, seconds):
    """Scrapes for a while: how long each took, and when the count of readings
    was seen to change."""
    took, beats, last = [], [], None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, seconds_taken = scrape(host)
        took.append(seconds_taken)
        count = found["tcpparser_scheduled_readings_total"]
        if last is not None and count != last:
            beats.append((time.monotonic(), count))
        last = count
        time.sleep(0.03)
    return took, beats


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


def settled(host, pid):
    """Memory once it grew no more for two seconds: soon, if ever."""
    sizes = [0]
    while len(sizes) < 2 or sizes[-1] != sizes[-2]:
        assert len(sizes) <= 20, f"KiB resident each two seconds: {sizes}"
        watch(host, 2)
        sizes.append(resident(pid))
    return sizes[-1]


def touch_all_places(host):
    """Fills the buffers of every client the server has room for."""
    long = get("/metrics", "A: " + "a" * 8_000)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(host)) for _ in range(64)]
        for sock, stream in clients:
            sock.sendall(long)
            assert Response(stream).status == 200, "status of a long request"


@pytest.mark.alone
def test_hostile_clients_delay_no_answer(t):
    """5,000 idle clients, 200 slow ones, 50 that never read and a flood of
    connections, all at once. There are only 8,000 different connections, so
    that memory stands still once those and all places were seen."""
    host = t.lan().host
    host.sysctl("net.ipv4.ip_local_port_range=1024 8999")
    guard = t.guard(host, "--dry-run", "--show", "scans", interval="500ms").ready()
    kinds = (("idle", 5_000), ("slow", 200), ("deaf", 50), ("flood", 16))
    touch_all_places(host)
    with Load(host, *kinds):
        before = settled(host, guard.pid)
        took, beats = watch(host, 6)
        during = resident(guard.pid)
        accepted = guard.metric("tcpparser_http_clients_accepted_total")
    after = resident(guard.pid)
    assert accepted > 5_250, f"only {accepted} clients came"
    assert len(took) > 5, f"only {len(took)} scrapes"
    # A SYN that finds the queue full is sent again a second later; Prometheus
    # waits for ten.
    assert statistics.median(took) < 1 and max(took) < 5, (
        f"scrapes took {statistics.median(took):.3f} s, at most {max(took):.3f} s")
    period = (beats[-1][0] - beats[0][0]) / (beats[-1][1] - beats[0][1])
    print(f"    a scrape took {statistics.median(took) * 1e3:.1f} ms in the median, at most "
          f"{max(took) * 1e3:.0f} ms; {accepted:.0f} clients; a reading each {period:.3f} s",
          flush=True)
    assert 0.45 <= period <= 0.55, f"a reading each {period:.3f} s"
    # A stack page or two is no growth.
    sizes = (before, during, after)
    assert max(sizes) - min(sizes) <= 16, f"KiB resident before, during and after: {sizes}"
