"""What counts as a service: ports that stay open. Listeners that serve one
connection and go, proxies that take what was meant for others, thousands of
listeners, and ourselves."""

import contextlib
import ftplib
import glob
import os
import shutil
import signal
import socket
import subprocess
import time

import traffic
import pytest

from harness import connection_pattern, scan_pattern, wait_for
from test_evidence import MISSED, NEW_INBOUND, PORTS, Scene
from traffic import ConnectScan, end, helper, serve, touch, until

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EARLY = "tcpparser_early_readings_total"
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
IPPROTO_MPTCP = 262


def control(scene, *ports):
    """An ordinary scanner is blocked all the same."""
    scanner = scene.family.friend
    touch(scene.peer, scene.family.host, *(ports or PORTS), source=scanner)
    scene.guard.wait_line(f"Port scan detected: +{scanner} ")
    scene.guard.wait_line(f": +Blocked: +{scanner} ")
    wait_for(lambda: scene.firewall.blocks(scene.host, f"{scanner}/{scene.family.single}",
                                           scene.family.tool), "its rule")


def spared(scene, source):
    assert scene.guard.matching(f"(Port scan detected|Blocked): +{source} ") == [], "scans"


# ----------------------------------------------------------- passive FTP


@contextlib.contextmanager
def ftp_server(t, scene, *settings):
    """A vsftpd with 200 files of 20 kB for anonymous clients."""
    path = f"{os.environ.get('PATH', '')}:{ROOT}/target/tools/usr/sbin"
    binary = shutil.which("vsftpd", path=path)
    if binary is None:
        pytest.skip("vsftpd is not installed")
    folder = t.folder("ftp")
    os.chmod(folder, 0o755)
    with open(f"{folder}/file", "wb") as file:
        file.write(b"x" * 20_000)
    with open(f"{t.tmp}/vsftpd.conf", "w") as file:
        lines = ("listen=YES", "background=NO", "anonymous_enable=YES", f"anon_root={folder}",
                 "no_anon_password=YES", f"secure_chroot_dir={t.folder('empty')}",
                 "ftp_username=daemon", "nopriv_user=nobody", *settings)
        file.write("\n".join(lines) + "\n")
    libraries = ":".join(glob.glob(f"{ROOT}/target/tools/usr/lib/*-linux-*"))
    with scene.host.entered():
        server = subprocess.Popen([binary, f"{t.tmp}/vsftpd.conf"],
                                  env={**os.environ, "LD_LIBRARY_PATH": libraries},
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)
    try:
        yield server
    finally:
        server.kill()
        server.communicate()


class SlowFtp(ftplib.FTP):
    """Takes its time between the server's answer and its connection there."""

    delay = 0.0

    def makepasv(self):
        where = super().makepasv()
        time.sleep(self.delay)
        return where


def download(scene, seconds, delay=0.0):
    """One client, one file after the other; how many."""
    with scene.peer.entered(), SlowFtp() as client:
        client.connect(scene.family.host, 21, timeout=20)
        client.delay = delay
        client.login()
        deadline, count = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            size = 0

            def take(data):
                nonlocal size
                size += len(data)

            client.retrbinary("RETR file", take)
            assert size == 20_000, "bytes of a file"
            spared(scene, scene.family.peer)
            count += 1
    return count


FEW_PORTS = ("pasv_min_port=21100", "pasv_max_port=21110")
FTP = {"any port": ((), "10s", 6, 0), "eleven ports": (FEW_PORTS, "10s", 6, 0),
       "often read": (FEW_PORTS, "300ms", 6, 0),
       "slow client": (FEW_PORTS, "300ms", 20, 1.5), "slow, any port": ((), "1s", 20, 1.5)}


@pytest.mark.parametrize("kind", FTP)
@pytest.mark.idle
def test_ftp_clients_are_no_scanners(t, kind):
    settings, interval, seconds, delay = FTP[kind]
    scene = Scene(t, interval=interval).hears()
    with ftp_server(t, scene, *settings) as server:
        wait_for(lambda: is_up(scene, server), "vsftpd")
        count = download(scene, seconds, delay)
        assert count > (10 if delay else 100), f"{count} files"
        scene.guard.wait_readings(2 if interval != "10s" else 1)
        spared(scene, scene.family.peer)
        if settings:
            assert scene.guard.metric(MISSED) == 0, MISSED
        control(scene)


def is_up(scene, server):
    assert server.poll() is None, "vsftpd ended"
    with contextlib.suppress(OSError):
        end(scene.peer.connect(scene.family.host, 21), "fin")
        return True


@pytest.mark.parametrize("lowest", [21100, 40000])
@pytest.mark.idle
def test_ftp_ports_without_connections(t, lowest):
    """Listened on until the client gives up, and by the next one again."""
    scene = Scene(t, interval="500ms").hears()
    settings = (f"pasv_min_port={lowest}", f"pasv_max_port={lowest + 20}")
    with ftp_server(t, scene, *settings) as server, contextlib.ExitStack() as waiting:
        wait_for(lambda: is_up(scene, server), "vsftpd")
        with scene.peer.entered():
            for _ in range(8):
                client = waiting.enter_context(contextlib.closing(ftplib.FTP()))
                client.connect(scene.family.host, 21, timeout=20)
                client.login()
                client.makepasv()
        time.sleep(12)
        waiting.close()
        scene.guard.wait_readings(2)
        count = download(scene, 6)
        assert count > 100, f"{count} files"
        control(scene)


# ------------------------------------------------------------ new services


@pytest.mark.parametrize("interval", ["10s", "1h"])
def test_services_that_just_started(t, interval):
    """None of them was there at the first reading."""
    scene = Scene(t, ports=(), interval=interval).hears()
    serve(scene.host, *PORTS)
    scene.touch(*PORTS)
    started = time.monotonic()
    scene.wait_blocked()
    took = time.monotonic() - started
    print(f"    blocked {took:.2f} s after the scan of services that had just started")
    assert took < 6, f"{took:.2f} s"


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_new_services_whose_scan_is_held(t, how):
    scene = Scene(t, ports=(), interval="1h").hears()
    serve(scene.host, *PORTS)
    scan = ConnectScan(scene.peer, scene.family.host, PORTS, how, hold=15)
    try:
        scene.wait_blocked()
    finally:
        scan.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "10.77.0.1"])
def test_new_services_beside_a_full_table(t, address):
    """Any user can listen so often; that keeps no service of all addresses out."""
    scene = Scene(t, ports=(), interval="500ms").hears()
    with many(scene, address, 1500):
        scene.guard.wait_readings(2)
        serve(scene.host, *PORTS)
        scene.touch(*PORTS)
        scene.wait_blocked()
        control(scene)


@pytest.mark.parametrize("interval", ["10s", "1h"])
def test_ports_of_services_that_stopped_serve_outgoing_connections(t, interval):
    """The last reading shows listeners where connections go out from by now."""
    scene = Scene(t, ports=range(40001, 40031))
    scene.guard.kill()
    scene.host.must("sysctl", "-qw", "net.ipv4.ip_local_port_range=40001 40060")
    scene.guard = t.guard(scene.host, "--show", "scans", interval=interval,
                          env=scene.firewall.env).ready()
    scene.hears()
    scene.peer.listen(8080)
    for listener in scene.listeners:
        scene.host.service.remove(listener)
    for _ in range(200):
        end(scene.host.connect(scene.family.peer, 8080), "rst")
    time.sleep(2)
    spared(scene, scene.family.peer)
    scene.host.listen(*PORTS)
    control(scene)


def test_a_listener_that_goes_is_no_service(t):
    """Four ports that serve one connection each, over and over."""
    scene = Scene(t, interval="300ms").hears()
    for number in range(40):
        port = 5001 + number % 8
        with scene.host.entered():
            listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", port))
        listener.listen(1)
        client = scene.peer.connect(scene.family.host, port)
        served, _ = listener.accept()
        listener.close()
        time.sleep(0.05)
        end(client, "fin")
        served.close()
    scene.guard.wait_readings(5)
    spared(scene, scene.family.peer)
    assert scene.guard.metric(MISSED) == 0, MISSED
    control(scene)


def test_a_listener_that_another_follows_at_once_is_no_service(t):
    """Six data ports of slow clients, each drawn again for the next transfer."""
    scene = Scene(t, interval="300ms").hears()

    def opened(port):
        with scene.host.entered():
            listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", port))
        listener.listen(1)
        return listener

    listeners = {port: opened(port) for port in range(5001, 5007)}
    for _ in range(3):
        time.sleep(1.5)
        for port, listener in listeners.items():
            client = scene.peer.connect(scene.family.host, port)
            served, _ = listener.accept()
            listener.close()
            end(client, "fin")
            served.close()
            listeners[port] = opened(port)
    time.sleep(1.5)
    for listener in listeners.values():
        listener.close()
    spared(scene, scene.family.peer)
    assert scene.guard.metric(MISSED) == 0, MISSED
    control(scene)


def test_a_service_is_remembered_through_its_restart(t):
    scene = Scene(t, interval="300ms").hears()
    for listener in scene.listeners:
        scene.host.service.remove(listener)
    scene.guard.wait_readings(2)
    scene.listeners = scene.host.listen(*PORTS)
    scene.touch(*PORTS)
    scene.wait_blocked()


# ------------------------------------------------------- thousands of them


def many(scene, kind, count):
    return helper(scene.host, "many", kind, count)


@pytest.mark.parametrize("how", ["short", "held"])
def test_four_thousand_listeners(t, how):
    scene = Scene(t, interval="1s").hears()
    with many(scene, "wildcard", 4000):
        scene.guard.wait_readings(3)
        assert scene.guard.error_output() == [], "words"
        if how == "short":
            scene.touch(*PORTS)
        else:
            scan = ConnectScan(scene.peer, scene.family.host, PORTS, "fin", hold=20)
        scene.wait_blocked()
        if how == "held":
            scan.close()


def test_more_new_listeners_than_the_table_has_places(t):
    """Those of every address need none."""
    scene = Scene(t, interval="1s").hears()
    with many(scene, "wildcard", 1500):
        scene.touch(11496, 11497, 11498, 11499)
        scene.wait_blocked()
        assert scene.guard.error_output() == [], "words"


def test_more_listeners_of_one_address_than_fit(t):
    """The first ones stay, and the others are counted."""
    scene = Scene(t, interval="1s").hears()
    with many(scene, scene.family.host, 1500):
        scene.guard.wait_readings(3)
        said = [line for line in scene.guard.error_output() if "more listeners of one address" in line]
        assert len(said) == 1, f"lines {scene.guard.error_output()}"
        found_metrics = scene.guard.scrape()
        assert found_metrics['tcpparser_table_entries{table="listeners"}'] == 1024, "entries"
        assert found_metrics['tcpparser_table_evictions_total{table="listeners"}'] > 0, "refused"
        scene.touch(*PORTS)
        scene.wait_blocked()


# ----------------------------------------------------------------- TPROXY


TPROXY = """
table {ip} proxy {{
    chain pre {{
        type filter hook prerouting priority mangle
        policy accept
        iif lo accept
        {ip} daddr {lan} accept
        meta l4proto tcp tproxy to {proxy} meta mark set 1 accept
    }}
}}
"""


class Proxied:
    """A router with services, whose clients' connections to elsewhere a proxy
    takes."""

    def __init__(self, t, name, interval="300ms", serves=True):
        self.scene = Scene(t, family=name, interval=interval, ports=PORTS).hears()
        scene, self.is_v6 = self.scene, name == "v6"
        self.ip = "ip6" if self.is_v6 else "ip"
        lan = "fd00:77::/64" if self.is_v6 else "10.77.0.0/24"
        proxy = ":7892"
        rules = TPROXY.format(ip=self.ip, lan=lan, proxy=proxy)
        done = scene.host.run("nft", "-f", "-", input=rules)
        if done.returncode:
            pytest.skip(f"tproxy: {done.stderr.strip().splitlines()[0]}")
        option = "-6 " if self.is_v6 else ""
        net = "::/0" if self.is_v6 else "0.0.0.0/0"
        for words in (f"{option}rule add fwmark 1 lookup 100",
                      f"{option}route add local {net} dev lo table 100"):
            scene.host.must("ip", *words.split())
        scene.peer.must("ip", *f"{option}route add default via {scene.family.host}".split())
        listener = self.listener = scene.host.socket("::" if self.is_v6 else "0.0.0.0")
        level, kind = ((socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if self.is_v6
                       else (socket.IPPROTO_IP, IP_TRANSPARENT))
        listener.setsockopt(level, kind, 1)
        listener.bind(("::" if self.is_v6 else "0.0.0.0", 7892))
        listener.listen(64)
        listener.settimeout(5)
        if serves:
            scene.host.service.add(listener)

    def elsewhere(self, number):
        return f"2001:db8:5::{number}" if self.is_v6 else f"198.51.100.{number}"


@pytest.mark.parametrize("how", ["fin", "rst", "held"])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_proxy_takes_what_was_meant_for_others(t, family, how):
    proxied = Proxied(t, family)
    scene, peer = proxied.scene, proxied.scene.peer
    held = []
    for number, port in enumerate(PORTS, 1):
        connection = peer.connect(proxied.elsewhere(number), port)
        connection.sendall(b"ping")
        assert connection.recv(4) == b"ping", "the proxy's answer"
        if how == "held":
            held.append(connection)
        else:
            end(connection, how)
    scene.guard.wait_readings(5)
    spared(scene, scene.family.peer)
    assert scene.guard.metric(MISSED) == 0, MISSED
    if held:
        name = proxied.elsewhere(1)
        local = f"[{name}]:22" if proxied.is_v6 else f"{name}:22"
        peer_end = held[0].getsockname()[:2]
        peer_name = "[%s]:%d" % peer_end if proxied.is_v6 else "%s:%d" % peer_end
        scene.guard.wait_line(connection_pattern(peer_name, "->", local))
    control(scene)


@pytest.mark.parametrize("how", ["aborts", "ends"])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_proxy_whose_upstream_is_away(t, family, how):
    """What it aborts, or leaves in its queue, no longer names an address."""
    proxied = Proxied(t, family, interval="10s", serves=False)
    scene, held = proxied.scene, []
    for number, port in enumerate(PORTS, 1):
        held.append(scene.peer.connect(proxied.elsewhere(number), port))
        if how == "aborts":
            end(proxied.listener.accept()[0], "rst")
    proxied.listener.close()
    assert len(held) == 4, "connections"
    # The kernel reports the control's connections after those.
    control(scene)
    spared(scene, scene.family.peer)


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_aborted_scans_beside_local_networks(t, family):
    """They are evidence where a local network is the host's own (AnyIP, IPVS)."""
    scene = Scene(t, family=family, interval="10s", kind="abort").hears()
    network = "2001:db8:9::/64" if scene.family.is_v6 else "192.0.2.0/24"
    scene.host.ip(f"route add local {network} dev lo")
    scene.touch(*PORTS)
    scene.wait_blocked()


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_an_address_that_comes_is_own(t, family):
    """A floating address: scanned as soon as it is here."""
    scene = Scene(t, family=family, interval="1s").hears()
    new = "fd00:77::99" if scene.family.is_v6 else "10.77.0.99"
    length = "/64 nodad" if scene.family.is_v6 else "/24"
    scene.guard.wait_readings(2)
    scene.host.ip(f"address add {new}{length} dev lan0")
    touch(scene.peer, new, *PORTS)
    scene.guard.wait_line(scan_pattern(scene.family.peer, new, PORTS), 6)
    scene.wait_blocked()


# --------------------------------------------------------------- ourselves


def test_a_scraper_of_three_exporters_and_us(t):
    """Four kept connections, of which ours is none; a fourth exporter is one."""
    exporters = (9100, 9115, 9187)
    scene = Scene(t, ports=(*exporters, 9256), interval="1s").hears()
    kept = [scene.peer.connect(scene.family.host, port) for port in (*exporters, 3021)]
    for connection in kept:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1 << 16), "an answer"
    for _ in range(3):
        touch(scene.peer, scene.family.host, *exporters, 3021)
    scene.guard.wait_readings(4)
    spared(scene, scene.family.peer)
    kept.append(scene.peer.connect(scene.family.host, 9256))
    ports = (*exporters, 9256)
    scene.guard.wait_line(scan_pattern(scene.family.peer, scene.family.host, ports))
    scene.wait_blocked()


def test_the_port_of_another_listener_is_evidence(t):
    """Where we do not listen there, 3021 is a port like any other."""
    scene = Scene(t, "--listen", "127.0.0.1:3021", ports=PORTS[:3], interval="1s").hears()
    scene.host.listen(3021, address=scene.family.host)
    scene.guard.wait_readings(2)
    scene.touch(*PORTS[:3], 3021)
    scene.guard.wait_line(scan_pattern(scene.family.peer, scene.family.host, (*PORTS[:3], 3021)))


# ---------------------------------------------------------- outgoing traffic


def flood_out(scene, count, peers=1):
    """Short outgoing connections, to one peer or to many."""
    for number in range(count):
        address = f"10.77.1.{1 + number % peers}"
        with contextlib.suppress(OSError):
            end(scene.host.connect(address, 9001), "rst")


@pytest.mark.parametrize("peers", [1, 200])
def test_outgoing_connections_evict_no_service(t, peers):
    """All ports are given to outgoing connections; services just started."""
    lan = t.lan()
    lan.host.sysctl("net.ipv4.ip_local_port_range=1024 65535")
    lan.host.ip("address add 10.77.1.254/24 dev lan0")
    lan.peer.ip(*(f"address add 10.77.1.{number}/24 dev lan0" for number in range(1, peers + 1)))
    firewall = t.firewall(lan.host)
    guard = t.guard(lan.host, env=firewall.env, interval="1h").ready()
    wait_for(lambda: traffic.has_events(guard), "destroy events")
    scene = type("", (), {"host": lan.host, "peer": lan.peer})
    serve(lan.peer, 9001)
    new = range(2001, 2006)
    serve(lan.host, *new)
    flood_out(scene, 400, peers)
    touch(lan.peer, lan.host_v4, *new)
    flood_out(scene, 700, peers)
    guard.wait_line(scan_pattern(lan.peer_v4, lan.host_v4, new))
    wait_for(lambda: firewall.blocks(lan.host, "10.77.0.2/32"), "the block")
    assert len(guard.matching("Port scan")) == 1, "scans"


# -------------------------------------------------------------- source port 0


PORT_ZERO = """
table ip zero {{
    chain out {{
        type filter hook output priority filter
        policy accept
        {out}
    }}
    chain in {{
        type filter hook prerouting priority raw
        policy accept
        {in_}
    }}
}}
"""


def from_port_zero(scene):
    """The peer's packets leave from port 0, whatever port they were sent from
    (stateless: conntrack and sockets do not like it)."""
    out = "\n".join(f"tcp dport {port} tcp sport {10_000 + port} tcp sport set 0" for port in PORTS)
    in_ = "\n".join(f"tcp sport {port} tcp dport 0 tcp dport set {10_000 + port}" for port in PORTS)
    rules = PORT_ZERO.format(out=out, in_=in_)
    done = scene.peer.run("nft", "-f", "-", input=rules)
    if done.returncode:
        pytest.skip(f"nft: {done.stderr.strip()}")


def connect_from_zero(scene, port):
    made = scene.peer.socket(scene.family.host)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((scene.family.peer, 10_000 + port))
    made.settimeout(3)
    made.connect((scene.family.host, port))
    return made


@pytest.mark.parametrize("how", ["held", "rst"])
def test_connections_from_port_0(t, how):
    """A service that asks accept(2) for the address gets an error and closes:
    only where it does not (or accepts later) is such a connection held."""
    scene = Scene(t, interval="1s", kind="busy" if how == "held" else "echo").hears()
    from_port_zero(scene)
    made = [connect_from_zero(scene, port) for port in PORTS]
    if how == "rst":
        for connection in made:
            end(connection, "rst")
    scene.guard.wait_line(scan_pattern(scene.family.peer, scene.family.host, PORTS))
    scene.wait_blocked()


def test_short_connections_from_port_0_after_a_block(t):
    scene = Scene(t, "--block-time", "2s", "--window", "1s", interval="300ms").hears()
    scene.touch(*PORTS)
    scene.wait_blocked()
    scene.guard.wait_line(": +Unblocked: ")
    from_port_zero(scene)
    for connection in [connect_from_zero(scene, port) for port in PORTS]:
        end(connection, "rst")
    wait_for(lambda: len(scene.guard.matching("Port scan")) == 2, "the second scan")


# ------------------------------------------------------------------- MPTCP


def mptcp_socket(space):
    try:
        with space.entered():
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"MPTCP: {error}")


@pytest.mark.idle
@pytest.mark.parametrize("how", ["fin", "rst", "held"])
def test_mptcp_clients(t, how):
    """All four are seen, none is missed, and the line names our address."""
    scene = Scene(t, "--dry-run", ports=(), interval="1s").hears()
    service = scene.host.service = traffic.harness.EchoService()
    for port in PORTS:
        listener = mptcp_socket(scene.host)
        listener.bind(("0.0.0.0", port))
        listener.listen(16)
        scene.host.sockets.append(listener)
        service.add(listener)
    scene.guard.wait_readings(13)
    made = []
    for port in PORTS:
        client = mptcp_socket(scene.peer)
        scene.peer.sockets.append(client)
        client.settimeout(5)
        client.connect((scene.family.host, port))
        if how == "held":
            made.append(client)
        else:
            end(client, how)
    scene.guard.wait_line(scan_pattern(scene.family.peer, scene.family.host, PORTS))
    scene.guard.wait_readings(3)
    assert scene.guard.metric(MISSED) == 0, MISSED
    for client in made:
        client.close()
    scene.guard.wait_readings(3)
    assert scene.guard.metric(MISSED) == 0, MISSED
    assert len(scene.guard.matching("Port scan")) == 1, "scans"
    touch(scene.peer, scene.family.host, *PORTS, source=scene.family.friend)
    scene.guard.wait_line(f"Port scan detected: +{scene.family.friend} ")


# ----------------------------------------------------------------- SIGSTOP


@pytest.mark.parametrize("interval, how", [
    ("100ms", "once"), ("1s", "once"), ("100ms", "again and again")])
def test_what_waited_while_we_were_stopped_is_not_missed(t, interval, how):
    """Less than the kernel's buffer holds, more than one turn takes in."""
    scene = Scene(t, "--show", "scans", interval=interval).hears()
    with helper(scene.host, "serve", 8081):
        scene.guard.wait_readings(3)
        scene.guard.signal(signal.SIGSTOP)
        with helper(scene.peer, "flood", scene.family.host, 8081, 6_000) as flood:
            opened = int(flood.stdout.readline())
        # The service has closed them all, so that their events wait.
        accepting = ("ss", "-Htan", "sport", "=", ":8081")
        wait_for(lambda: [line.split()[:2] for line in scene.host.must(*accepting).splitlines()]
                 == [["LISTEN", "0"]], "the service")
        if how != "once":
            # A processor for some milliseconds now and then.
            for _ in range(10):
                scene.guard.signal(signal.SIGCONT)
                time.sleep(0.002)
                scene.guard.signal(signal.SIGSTOP)
                time.sleep(0.12)
        scene.guard.signal(signal.SIGCONT)
        until(lambda: scene.guard.metric(NEW_INBOUND) >= opened, 15, every=0.5)
        scene.guard.wait_readings(3)
        found = scene.guard.scrape()
        lost = found["tcpparser_destroy_event_overflows_total"]
        assert (found[NEW_INBOUND], found[MISSED], lost) == (opened, 0, 0), (
            "seen, missed, overflows")
    control(scene)
