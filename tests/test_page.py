"""The live page: what of it is in the program, who is given it, and what a browser
shows. Pictures of all that is shown are left in target/live."""

import gzip
import os
import re
import signal
import time

import pytest

import page
from browser import Browser
from harness import broken_firewall, link, need, run, wait_for
from test_files import fixture
from test_http import FAR, HOME, PORT, PORTS, Response, ask, client, get

BROWSER = ("Accept: text/html,application/xhtml+xml,*/*;q=0.8", "Accept-Encoding: gzip, deflate")
COLUMNS = ["source", "since", "left", "strikes", "ports", "place"]
PICTURES = os.path.join(page.ROOT, "target/live")
SCANNER = "198.51.100.23"
ROUTER = "http://10.77.0.1:3021/"


# ------------------------------------------------------------------- by its bytes


def test_packed_page_is_sound():
    packed = page.content(page.PACKED)
    made = gzip.decompress(packed)
    assert page.content(page.POLICY) == page.policy(made), "its hashes are others: run `make page`"
    assert len(packed) <= 4_096, f"{len(packed)} bytes"
    assert packed[3:8] == bytes(5), "a name or a time in it"


def test_page_is_packed_anew():
    need("node", page.MINIFIER)
    made = page.lean(page.content(page.SOURCE))
    packed = gzip.decompress(page.content(page.PACKED))
    assert packed == made, "dist/live.html is another: run `make page`"


def test_who_is_given_the_page(t):
    host = t.lan().host
    t.guard(host, "--dry-run").ready()
    for name, request, is_page in (
            ("a browser", get("/", *BROWSER), True),
            ("a browser with a query", get("/?a", *BROWSER), True),
            ("head", get("/", *BROWSER, method="HEAD"), True),
            ("HTTP/1.0", get("/", *BROWSER, version="1.0"), True),
            ("no gzip", get("/", BROWSER[0]), False),
            ("gzip refused", get("/", BROWSER[0], "Accept-Encoding: gzip;q=0, *"), False),
            ("curl --compressed", get("/", "Accept: */*", BROWSER[1]), False),
            ("curl", get("/", "Accept: */*"), False),
            ("HTTP/1.0 without fields", get("/", version="1.0"), False),
            ("Prometheus", get("/", "Accept: application/openmetrics-text;version=1.0.0,"
                               "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", BROWSER[1]), False),
            ("a browser at /metrics", get("/metrics", *BROWSER), False)):
        answer = ask(host, request)
        assert answer.status == 200, f"status for {name}"
        fields = answer.headers
        varies = "Accept" if b" /metrics " in request else "Accept, Accept-Encoding"
        assert fields["vary"] == varies, f"Vary for {name}"
        if not is_page:
            assert b"\ntcpparser_readings_total " in answer.body, f"the metrics for {name}"
            assert "content-encoding" not in fields, f"Content-Encoding for {name}"
            continue
        assert {one: fields.get(one) for one in (
            "content-type", "content-encoding", "content-length", "cache-control",
            "x-content-type-options", "referrer-policy", "content-security-policy")} == {
            "content-type": "text/html; charset=utf-8", "content-encoding": "gzip",
            "content-length": str(len(page.content(page.PACKED))), "cache-control": "no-cache",
            "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
            "content-security-policy": page.content(page.POLICY).decode()}, f"head for {name}"
        wanted = b"" if request.startswith(b"HEAD") else page.content(page.PACKED)
        assert answer.body == wanted, f"body for {name}"


def test_no_other_page_reads_it(t):
    """Not by a name of its own that points here for a moment."""
    host = t.lan().host
    t.guard(host, "--dry-run").ready()

    def status(path, name, *fields):
        head = "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {name}", *fields))
        return ask(host, head.encode() + b"\r\n\r\n").status
    for name, expected in (("localhost:3021", 200), ("[::1]:3021", 200), ("page.example", 403),
                           ("10.77.0.1.page.example:3021", 403), ("localhost.page.example", 403)):
        assert status("/", name, *BROWSER) == expected, f"the page at {name}"
        assert status("/blocks", name) == expected, f"/blocks at {name}"
        assert status("/", name) == 200, f"metrics at {name}"
    with client(host) as (sock, stream):
        sock.sendall(get("/", *BROWSER).replace(b"localhost", b"page.example") + get("/blocks"))
        answer = Response(stream)
        assert (answer.status, answer.body) == (403, b"403 Forbidden\n"), "the answer"
        assert answer.headers["vary"] == "Accept, Accept-Encoding", "Vary of a refusal"
        assert Response(stream).status == 200, "what follows"


@pytest.mark.parametrize("backend, arguments", [
    ("iptables-nft", ()), ("nft", ("--firewall=nft", "--block-time=forever", "--exec-root=/"))])
def test_all_that_is_known_of_a_block(t, backend, arguments):
    lan = t.lan()
    firewall = t.backend(lan.host, backend)
    lan.peer.ip(f"address add {FAR}/32 dev lo")
    lan.host.ip(f"route add {FAR}/32 via {lan.peer_v4}")
    lan.host.listen(*PORTS)
    guard = t.guard(lan.host, *arguments, env=firewall.env).ready()
    empty = ask(lan.host, get("/blocks"))
    assert (empty.status, empty.body.decode()) == (200, "\t".join(COLUMNS) + "\n"), "no block"
    before = time.time()
    for port in PORTS:
        lan.peer.connect(lan.host_v4, port, source=lan.friend_v4)
    undo = re.search(r", undo: (.*)$", guard.wait_line("Blocked: "))[1]
    for version in ("1.0", "1.1"):
        answer = ask(lan.host, get("/blocks", version=version))
        assert answer.headers["content-type"] == "text/plain; charset=utf-8", "Content-Type"
        head, line, *rest = answer.body.decode().split("\n")
        assert (head.split("\t"), rest) == (COLUMNS, [""]), "lines"
        source, since, left, strikes, ports, place = line.split("\t")
        assert (source, strikes, ports, place) == (
            lan.friend_v4, "1", ",".join(map(str, PORTS)), backend), "the block"
        assert before - 2 <= int(since) <= time.time() + 2, "since"
        assert int(left) in ([0] if arguments else range(580, 602)), "left"
        assert answer.headers["undo"].replace("SOURCE", source) == undo, "Undo"
    answer = ask(lan.host, get("/blocks", method="HEAD"))
    assert (answer.status, answer.body) == (200, b""), "HEAD"
    far = {"address": lan.host_v4, "source": FAR}
    assert ask(lan.peer, get("/blocks"), **far).status == 403, "a stranger"


# --------------------------------------------------------------------- in a browser


# The lowest contrast of a text to what is behind it (WCAG 2, section 1.4.3).
CONTRAST = """(() => {
const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255).map(c =>
    c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = node => { for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (!color.endsWith(", 0)")) return color; } return "rgb(255, 255, 255)"; };
const texts = [...document.querySelectorAll("body *")].filter(node => node.checkVisibility() &&
    [...node.childNodes].some(child => child.nodeType == 3 && child.data.trim()));
return Math.min(...texts.map(node => { const pair = [getComputedStyle(node).color, behind(node)];
    const [low, high] = pair.map(light).sort((a, b) => a - b);
    return (high + .05) / (low + .05); }));
})()"""


def picture(browser, name):
    os.makedirs(PICTURES, exist_ok=True)
    browser.picture(os.path.join(PICTURES, f"{name}.png"))


def numbers(browser):
    return [int(text) if text.isdigit() else text for text in browser.text(".n p")]


def requests(browser):
    return [one["request"]["url"] for one in browser.happened("Network.requestWillBeSent")]


def check_looks(browser, name):
    """In each width and scheme: nothing beside the screen, all of it readable."""
    pages = set()
    for width in (1280, 390, 320):
        for scheme in ("light", "dark"):
            browser.look(width, scheme)
            picture(browser, f"{name}-{width}-{scheme}")
            assert browser.evaluate("document.documentElement.scrollWidth") == width, "its width"
            assert browser.evaluate(CONTRAST) >= 4.5, f"contrast, {scheme}"
            pages.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(pages) == 2, f"colours of dark and light: {pages}"
    for motion, animation in (("no-preference", "new"), ("reduce", "none")):
        browser.look(1280, "light", motion=motion)
        assert browser.evaluate("getComputedStyle(document.querySelector('tbody tr'))"
                                ".animationName") == animation, f"motion: {motion}"


def check_without_eyes(browser):
    """What a screen reader reads, and where the Tab key leads."""
    found = {}
    for node in browser.call("Accessibility.getFullAXTree")["nodes"]:
        if not node["ignored"]:
            role = node.get("role", {}).get("value")
            found.setdefault(role, []).append(node.get("name", {}).get("value"))
    assert len(found["status"]) == 1, "live regions"
    assert found["table"] == ["Blocks, newest first"], "tables"
    assert len(found["columnheader"]) == 7 and len(found["rowheader"]) == 1, "headers"
    assert len(found["image"]) == 5 and all(
        re.match("Plot: .* since ", name) for name in found["image"]), f"plots: {found['image']}"
    reached = []
    for _ in range(3):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab",
                         windowsVirtualKeyCode=9)
        reached.append(browser.evaluate("document.activeElement.textContent"))
    assert reached == ["copy", "/metrics", "/blocks"], "what Tab reaches"


def test_a_scan_is_seen_on_the_page(t):
    need("nmap")
    lan = t.lan()
    firewall = t.backend(lan.host, "nft")
    scanner = t.namespace("scanner")
    link(lan.host, "wan0", scanner, "wan0", ("198.51.100.1/24", f"{SCANNER}/24"))
    lan.host.listen(*PORTS)
    guard = t.guard(lan.host, env=firewall.env).ready()
    browser = Browser(t, lan.peer)
    browser.look(1280, "light")
    browser.open(ROUTER)
    browser.wait_text("#state", "guarding")
    assert browser.text("#rest") == ["No source is blocked."], "blocks"
    before = numbers(browser)
    assert before[2:] == [0, 0, 0], "numbers at first"

    held = [lan.peer.connect(lan.host_v4, 22) for _ in range(7)]
    scanner.must("nmap", "-sT", "-n", "-Pn", "-p", ",".join(map(str, PORTS)), "198.51.100.1")
    undo = re.search(r", undo: (.*)$", guard.wait_line(f"Blocked: .* {SCANNER} "))[1]
    browser.wait_text("code", undo)
    wait_for(lambda: held and numbers(browser)[0] >= before[0] + 7, "open connections")
    wait_for(lambda: numbers(browser)[1] > 10, "new ones")
    wait_for(lambda: numbers(browser)[2::2] == [1, 1], "a scan and a block")
    cells = browser.text("tbody th, tbody td")
    line = ask(lan.host, get("/blocks")).body.decode().split("\n")[1].split("\t")
    in_zone = run("date", "-d", f"@{line[1]}", "+%-I:%M", env={"TZ": "Pacific/Auckland"}).stdout
    assert in_zone.strip() in cells[1], f"since, in the reader's zone: {cells}"
    assert re.fullmatch(r"00:(0\d|10):\d\d", cells[2]), f"left: {cells}"
    assert (cells[0], cells[3:6]) == (SCANNER, ["1", "22, 25, 80, 443", "nft"]), "the block"

    check_looks(browser, "guarding-with-blocks")
    check_without_eyes(browser)
    browser.evaluate("document.querySelector('button').click()")
    assert browser.evaluate("getSelection().toString()") == undo, "what is copied"
    check_hidden(browser, guard)
    assert undo.split()[0] == "tcpparser", "the command"
    assert firewall.product(lan.host, *undo.split()[1:]).returncode == 0, undo
    browser.wait_text("#rest", "No source is blocked.")

    assert set(requests(browser)) == {ROUTER, ROUTER + "metrics", ROUTER + "blocks"}, "requests"
    kept = browser.evaluate("[document.cookie, localStorage.length, sessionStorage.length]")
    assert kept == ["", 0, 0], "what it keeps"
    assert browser.complaints() == [], "the console"


def check_hidden(browser, guard):
    """Behind another tab nothing is asked, whether an answer is still to come when
    it goes there or not."""
    for is_asking in (True, False):
        if is_asking:
            guard.signal(signal.SIGSTOP)
        wait_for(lambda: bool(browser.evaluate("busy")) == is_asking, f"asking: {is_asking}")
        tab = browser.call("Target.createTarget", url="about:blank")["targetId"]
        wait_for(lambda: browser.evaluate("document.hidden"), "another tab")
        guard.signal(signal.SIGCONT)
        wait_for(lambda: not browser.evaluate("busy"), "the last answer")
        before = requests(browser)
        time.sleep(3)
        assert requests(browser) == before, "requests while hidden"
        browser.call("Target.closeTarget", targetId=tab)
        wait_for(lambda: requests(browser) != before, "a request when seen again")


def test_all_states(t):
    lan = t.lan()
    lan.peer.ip(f"address add {FAR}/32 dev lo")
    lan.host.ip(f"route add {FAR}/32 via {lan.peer_v4}")
    sets = t.backend(lan.host, "nft")
    folder = fixture(t, [])
    browser = Browser(t, lan.peer)
    browser.look(1280, "light")

    def shows(state, why, guard=None):
        browser.wait_text("#state", state)
        assert re.search(why, browser.text("#why")[0]), f"why {state}: {browser.text('#why')}"
        title = browser.evaluate("document.title")
        assert title == f"{state} – tcpparser on {lan.host_v4}", "its title"
        for width, scheme in ((1280, "light"), (390, "dark")):
            browser.look(width, scheme)
            picture(browser, f"{state.replace(' ', '-')}-{width}-{scheme}")
            assert browser.evaluate("document.documentElement.scrollWidth") == width, "its width"
        if guard:
            guard.kill()

    def opened(*arguments, env=None):
        guard = t.guard(lan.host, *arguments, env=env).ready()
        browser.open(ROUTER)
        return guard
    shows("watching only", "--dry-run", opened("--dry-run"))
    shows("nothing can be blocked", "firewall",
          opened("--firewall=iptables", env=broken_firewall(t, "exit 3\n")))
    guard = opened("--dry-run", "--proc", folder)
    shows("short connections are not seen", "between two readings")
    os.rename(os.path.join(folder, "net"), os.path.join(folder, "gone"))
    shows("readings are stale", r"at \d", guard)
    lan.peer.ip(f"route replace {lan.host_v4}/32 dev lan0 src {FAR}")
    shows("not for this client", "guarding", opened(env=sets.env))
    assert browser.text("#rest") == ["Not for this client."], "blocks"
    lan.peer.ip(f"route del {lan.host_v4}/32 dev lan0")
    assert browser.complaints() == [], "the console"

    # Its own clock, a hundred times as fast.
    patched = browser.call("Page.addScriptToEvaluateOnNewDocument", source="""
        const waits = [], later = setTimeout;
        setTimeout = (what, wait) => { waits.push(wait); return later(what, wait / 100); };""")
    guard = opened(env=sets.env)
    shows("guarding", "scans", guard)
    shows("no answer", "last one came at")
    wait_for(lambda: browser.evaluate("waits.at(-1) == 64e3 && waits.at(-2) == 64e3"), "the end")
    waits = browser.evaluate("waits.filter((wait, i) => wait != waits[i - 1])")
    assert waits == [2e3, 4e3, 8e3, 16e3, 32e3, 64e3], "milliseconds between tries"
    guard = t.guard(lan.host, env=sets.env).ready()
    browser.wait_text("#state", "guarding")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=patched["identifier"])
    assert browser.complaints() == [], "the console"
