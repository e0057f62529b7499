"""A host that publishes ports of containers as Docker does, and whoever is
outside: far - edge - host - bridge - containers.

The containers are network namespaces with a veth end each on the host's bridge,
nftables leads published ports to them. Strangers are all addresses of documentation
networks, behind the edge; in whose name a container forges is there, or is silent.
"""

import contextlib
import fcntl
import os
import random
import select
import selectors
import socket
import struct
import threading
import time

import harness
from harness import link, wait_for
from traffic import (ACK, ETH_P_ALL, RST, SYN, Attack, Forger, Nmap, has_events, segment,
                     serve)

PUBLISHED = (8001, 8002, 8003, 8004)
INSIDE = (80, 81, 82, 83)  # the ports of each container
STRANGER = {"v4": "198.51.100.7", "v6": "2001:db8:7::7"}
FRIEND = {"v4": "192.0.2.9", "v6": "2001:db8:9::9"}
SILENT = {"v4": "198.51.100.200", "v6": "2001:db8:7:200::7"}  # whom the edge loses packets for
SPARE = (8011, 8012, 8013, 8014)  # published, where the first container has no service
NAMESPACES_UP = 'tcpparser_evidence_source_up{source="namespaces"}'
FOREIGN = "tcpparser_namespace_events_total"
UNSEEN = "no SYN of it was seen to come in by the way back to it"
VXLAN_PORT, VXLAN_NUMBER = 4789, 7


# Until links are known, and in the packet sockets' first second, nothing is blocked.
SETTLING = 1.3


class Docker:
    """The scene. `uplink`: a veth, a tap, which no other namespace holds an end of,
    as a network card's, a tunnel, or the containers' bridge itself."""

    host_v4, edge_v4, relay_v4 = "203.0.113.2", "203.0.113.1", "203.0.113.77"
    host_v6, edge_v6 = "2001:db8:e::2", "2001:db8:e::1"
    gateway_v4, gateway_v6 = "172.17.0.1", "fd00:172::1"

    def __init__(self, t, uplink="veth", apart=False, rp_filter=0, bridged=1):
        self.t = t
        self.far, self.edge, self.host = (t.namespace(role) for role in ("far", "edge", "host"))
        self.containers = []
        self.device = {"bridge": "br0", "tunnel": "vx0"}.get(uplink, "up0")
        self.join_strangers()
        self.host.ip("link add br0 address 02:42:ac:11:00:01 type bridge", "link set br0 up",
                     f"address add {self.gateway_v4}/16 dev br0",
                     f"address add {self.gateway_v6}/64 dev br0 nodad")
        self.join_edge(uplink)
        self.host.ip(f"route add default via {self.edge_v4}",
                     f"route add default via {self.edge_v6}")
        for space in (self.far, self.edge, self.host):
            space.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
                         f"net.ipv4.conf.all.rp_filter={rp_filter if space is self.host else 0}")
        self.host.sysctl(f"net.bridge.bridge-nf-call-iptables={bridged}")
        self.load(self.host, *self.rules())
        self.one = self.add_container("one", PUBLISHED[:2], apart)
        self.two = self.add_container("two", PUBLISHED[2:], apart)
        self.publish(self.one, zip(SPARE, range(91, 95)))

    def add_container(self, role, ports, apart=False):
        """Whose services are published at these ports."""
        space = self.t.namespace(role, apart)
        self.containers.append(space)
        number = 1 + len(self.containers)
        link(self.host, f"port{number}", space, "eth0")
        self.host.ip(f"link set port{number} master br0",
                     f"link set port{number} type bridge_slave hairpin on")
        space.ip(f"address add 172.17.0.{number}/16 dev eth0",
                 f"address add fd00:172::{number}/64 dev eth0 nodad",
                 f"route add default via {self.gateway_v4}",
                 f"route add default via {self.gateway_v6}")
        serve(space, *INSIDE, address="::")
        self.publish(space, zip(ports, INSIDE))
        return space

    def publish(self, space, ports):
        number = 2 + self.containers.index(space)
        rules = []
        for port, inside in ports:
            rules += [f"ip daddr {self.host_v4} tcp dport {port} dnat ip to 172.17.0.{number}:{inside}",
                      f"ip6 daddr {self.host_v6} tcp dport {port} dnat ip6 to "
                      f"[fd00:172::{number}]:{inside}"]
        self.load(self.host, *(f"add rule inet published prerouting {rule}" for rule in rules))

    def join_strangers(self):
        """Addresses of `far` are all those of its networks; where a socket is not
        bound, it is the stranger's."""
        link(self.edge, "far0", self.far, "up0", ("10.9.0.1/24", "10.9.0.2/24"),
             ("fd09::1/64", "fd09::2/64"))
        for network in ("198.51.100.0/24", "192.0.2.0/25", "10.98.0.0/16"):
            self.edge.ip(f"route add {network} via 10.9.0.2")
            self.far.ip(f"route add local {network} dev lo")
        self.edge.ip(*(f"route add blackhole {address}" for address in SILENT.values()))
        for network in ("2001:db8:7::/48", "2001:db8:9::/48", "fd91::/16"):
            self.edge.ip(f"route add {network} via fd09::2")
            self.far.ip(f"route add local {network} dev lo")
        self.far.sysctl("net.ipv6.ip_nonlocal_bind=1")
        self.far.ip(f"address add {STRANGER['v4']}/32 dev lo",
                    f"address add {STRANGER['v6']}/128 dev lo nodad",
                    f"route add default via 10.9.0.1 src {STRANGER['v4']}",
                    f"route add default via fd09::1 src {STRANGER['v6']}")

    def join_edge(self, uplink):
        if uplink == "tap":
            self.keep(Cable(self.host, "up0", self.edge, "host0"))
        else:
            link(self.host, "up0", self.edge, "host0")
        self.edge_device = "host0"
        if uplink == "tunnel":
            self.edge_device = "vx0"
            for space, device, own, other in ((self.host, "up0", 2, 1), (self.edge, "host0", 1, 2)):
                space.ip(f"address add 10.8.0.{own}/24 dev {device}")
                Tunnel.add(space, f"local 10.8.0.{own} remote 10.8.0.{other}", own)
        for space, device, v4, v6 in ((self.host, self.device, self.host_v4, self.host_v6),
                                      (self.edge, self.edge_device, self.edge_v4, self.edge_v6)):
            space.ip(f"address add {v4}/25 dev {device}", f"address add {v6}/64 dev {device} nodad")
        if uplink == "bridge":
            self.host.ip("link set up0 master br0")

    def rules(self):
        return ["table inet published {", "chain prerouting {",
                "type nat hook prerouting priority dstnat;", "}", "chain postrouting {",
                "type nat hook postrouting priority srcnat;",
                f'ip saddr 172.17.0.0/16 oifname "{self.device}" ip daddr != 172.17.0.0/16 masquerade',
                f'ip6 saddr fd00:172::/64 oifname "{self.device}" ip6 daddr != fd00:172::/64 masquerade',
                "ip saddr 172.17.0.0/16 ip daddr 172.17.0.0/16 ct status dnat masquerade",
                "}", "}"]

    def keep(self, made):
        """Closes it when the test ends."""
        self.t.closing.append(made)
        return made

    @staticmethod
    def load(space, *lines):
        harness.need("nft")
        space.must("nft", "-f", "-", input="\n".join(lines) + "\n")

    def relay(self):
        """The edge has a public address of its own and hands its ports on to the
        host, also to who asks from within."""
        self.load(self.edge, "table ip relay {", "chain prerouting {",
                  "type nat hook prerouting priority dstnat;",
                  *(f"ip daddr {self.relay_v4} tcp dport {port} dnat to {self.host_v4}"
                    for port in PUBLISHED), "}", "}")
        self.edge.ip(f"address add {self.relay_v4}/32 dev lo")
        self.host.ip(f"route add {self.relay_v4}/32 via {self.edge_v4}")

    def route_container(self, address):
        """Gives the first container a public address beside."""
        self.one.ip(f"address add {address}/32 dev eth0")
        self.host.ip(f"route add {address}/32 via 172.17.0.2")
        self.edge.ip(f"route add {address}/32 via {self.host_v4}")

    def mute(self, source):
        """Its host loses what it did not ask for, instead of a reset."""
        family = "ip6" if ":" in source else "ip"
        self.load(self.far, f"table {family} mute {{", "chain output {",
                  "type filter hook output priority 0;",
                  f"{family} saddr {source} tcp flags & rst == rst drop", "}", "}")

    def guard(self, *arguments, backend="nft", interval="10s", **options):
        self.firewall = self.t.backend(self.host, backend)
        made = self.t.guard(self.host, *arguments, env=self.firewall.env, interval=interval,
                            **options).ready()
        wait_for(lambda: has_events(made), "destroy events")
        time.sleep(SETTLING)
        return made

    def address(self, family):
        return self.host_v6 if family == "v6" else self.host_v4


class PublishedAttack(Attack):
    """A scan of the four published ports of two containers."""

    device = "up0"

    def prepare(self, case):
        self.scene = Docker(case)
        wait_for(lambda: self.scene.far.connects(Docker.host_v4, PUBLISHED[0], FRIEND["v4"]),
                 "the services")
        return self.scene.host

    def start(self):
        time.sleep(SETTLING)
        ports = ",".join(map(str, PUBLISHED))
        return Nmap(self.scene.far, "-Pn", "-sT", "-p", ports, Docker.host_v4)


class Cable:
    """Two taps and who carries frames from one to the other: to the kernel each is a
    device with no end in another namespace."""

    TUNSETIFF, TUN_WITHOUT_HEAD, TAP_WITHOUT_HEAD = 0x400454ca, 0x1001, 0x1002

    def __init__(self, left, left_device, right, right_device):
        self.ends = [self.tap(left, left_device), self.tap(right, right_device)]
        self.waker, self.wakee = socket.socketpair()
        self.thread = threading.Thread(target=self.carry, daemon=True)
        self.thread.start()

    @classmethod
    def tap(cls, space, device, kind=TAP_WITHOUT_HEAD):
        if not os.path.exists("/dev/net/tun"):
            raise harness.SkipTest("no /dev/net/tun")
        with space.entered():
            made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(made, cls.TUNSETIFF, struct.pack("16sH22x", device.encode(), kind))
        space.ip(f"link set {device} up")
        return made

    def carry(self):
        others = dict(zip(self.ends, reversed(self.ends)))
        with selectors.DefaultSelector() as selector:
            for end in (*self.ends, self.wakee):
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self.wakee:
                        return
                    with contextlib.suppress(OSError):
                        os.write(others[key.fd], os.read(key.fd, 1 << 16))

    def close(self):
        self.waker.close()
        self.thread.join(3)
        for end in self.ends:
            os.close(end)
        self.wakee.close()


class Impostor:
    """Root in a container: it completes handshakes in a stranger's name, since it
    reads the number of the answer. `send` is how a segment gets to the host."""

    def __init__(self, space, watched, send=None):
        """`watched`: in whose namespace the answer passes; by ARP's lies that can
        be any container of the bridge."""
        with watched.entered():
            self.answers = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM,
                                         socket.htons(ETH_P_ALL))
        self.answers.settimeout(2)
        self.forger = Forger(space)
        self.send = send or self.forger.put

    def handshake(self, source, target, port, from_port=None, last=RST | ACK):
        """Whether an answer came; then the handshake is done, and ended."""
        from_port = from_port or random.randint(20_000, 30_000)
        number = random.getrandbits(32)

        def say(flags, sequence, acknowledged=0):
            self.send(segment(source, from_port, target, port, flags, sequence, acknowledged))

        say(SYN, number)
        answer = self.answer(source, from_port)
        if answer is None:
            return False
        say(ACK, number + 1, answer + 1)
        time.sleep(0.005)
        if last:
            say(last, number + 1, answer + 1)
        return True

    def answer(self, source, from_port):
        """The number of the SYN-ACK to that stranger."""
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                flags, address, port, number = read_segment(self.answers.recv(128))
            except TimeoutError:
                return None
            if (flags, address, port) == (SYN | ACK, source, from_port):
                return number
        return None

    def close(self):
        self.answers.close()
        self.forger.close()


def read_segment(packet):
    """Flags, target, its port, and the number of a segment; zeros of what is none."""
    is_v6 = packet[0] >> 4 == 6
    words = packet[40 if is_v6 else (packet[0] & 15) * 4:]
    if packet[6 if is_v6 else 9] != socket.IPPROTO_TCP or len(words) < 14:
        return 0, None, 0, 0
    target = (socket.inet_ntop(socket.AF_INET6, packet[24:40]) if is_v6
              else socket.inet_ntoa(packet[16:20]))
    port, number = struct.unpack("!HI", words[2:8])
    return words[13], target, port, number


class Liar:
    """Root in the first container, where conntrack takes any number (be_liberal): a
    SYN in a stranger's name makes the entry, and a connection of its own to that
    stranger is answered by itself."""

    def __init__(self, scene):
        self.scene, self.inside = scene, dict(zip(SPARE, range(91, 95)))
        scene.host.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal=1")
        scene.load(scene.one, "table ip quiet {", "chain output {",
                   "type filter hook output priority 0;",
                   "ip saddr 172.17.0.0/16 tcp flags & rst == rst drop", "}", "}")
        with scene.one.entered():
            self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM,
                                         socket.htons(ETH_P_ALL))
        self.packets.settimeout(2)
        self.forger = Forger(scene.one)

    def handshake(self, source, port, from_port=None):
        from_port = from_port or random.randint(20_000, 30_000)

        def say(flags, sequence, acknowledged=0):
            self.forger.put(segment(source, from_port, self.scene.host_v4, port, flags, sequence,
                                    acknowledged))

        say(SYN, 1 << 20)
        time.sleep(0.02)
        made = self.scene.one.socket(source)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("172.17.0.2", self.inside[port]))
        made.setblocking(False)
        made.connect_ex((source, from_port))
        number = self.number(source, from_port)
        say(SYN | ACK, 1 << 20, number + 1)
        done = selects(made)
        say(RST | ACK, (1 << 20) + 1, number + 1)
        time.sleep(0.005)
        made.close()
        return done

    def number(self, source, from_port):
        """Of the SYN to that stranger."""
        while True:
            flags, address, port, number = read_segment(self.packets.recv(128))
            if (flags, address, port) == (SYN, source, from_port):
                return number

    def close(self):
        self.packets.close()
        self.forger.close()


def selects(connection):
    """Whether a connection that was begun came about."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_WRITE)
        return bool(selector.select(1)) and not connection.getsockopt(socket.SOL_SOCKET,
                                                                      socket.SO_ERROR)


class Tunnel:
    """A VXLAN of the host, into which whoever knows its number and reaches the
    host puts frames: to the host they come in by that link."""

    mac = "02:00:00:00:00:9"  # and whose end it is

    @classmethod
    def add(cls, space, ends, number):
        space.ip(f"link add vx0 address {cls.mac}{number} type vxlan id {VXLAN_NUMBER} "
                 f"dstport {VXLAN_PORT} {ends}", "link set vx0 up")

    def __init__(self, scene):
        target = "10.8.0.2"
        if scene.device != "vx0":
            target = scene.host_v4
            self.add(scene.host, f"local {target}", 2)
            scene.host.ip("address add 10.244.0.1/16 dev vx0")
        with scene.one.entered():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.target = (target, VXLAN_PORT)

    def send(self, packet):
        mac = bytes.fromhex(f"{self.mac}2".replace(":", ""))
        head = struct.pack("!II", 8 << 24, VXLAN_NUMBER << 8)
        self.socket.sendto(head + mac + b"\2\0\0\0\0\1\x08\0" + packet, self.target)

    def close(self):
        self.socket.close()


class Turner:
    """A router outside, which hands on what comes for its own address from within,
    too, as `relay` does, but puts fragments together and numbers segments anew, as
    firewalls of other makers do."""

    def __init__(self, scene, added=0):
        self.scene, self.added, self.parts = scene, added, {}
        scene.host.ip(f"route add {scene.relay_v4}/32 via {scene.edge_v4}")
        scene.load(scene.edge, "table ip turner {", "chain prerouting {",
                   "type filter hook prerouting priority -500;",  # before fragments are put together
                   f"ip daddr {scene.relay_v4} drop", "}", "}")
        with scene.edge.entered():
            self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self.packets.bind((scene.edge_device, 0x0800))
        self.forger = Forger(scene.edge)
        self.waker, self.wakee = socket.socketpair()
        self.thread = threading.Thread(target=self.turn, daemon=True)
        self.thread.start()

    def turn(self):
        while True:
            found, _, _ = select.select([self.packets, self.wakee], [], [])
            if self.wakee in found:
                return
            packet = self.packets.recv(256)
            if packet[16:20] == socket.inet_aton(self.scene.relay_v4):
                whole = self.whole(packet)
                if whole:
                    self.hand_on(socket.inet_ntoa(packet[12:16]), whole)

    def whole(self, packet):
        """The segment, once all of it is there."""
        place, = struct.unpack("!H", packet[6:8])
        if not place & 0x3fff:
            return packet[20:]
        parts = self.parts.setdefault(packet[4:6], {})
        parts[place & 0x1fff] = packet[20:]
        return b"".join(parts[one] for one in sorted(parts)) if len(parts) == 2 else None

    def hand_on(self, source, words):
        from_port, port, sequence, acknowledged = struct.unpack("!HHII", words[:12])
        self.forger.put(segment(source, from_port, self.scene.host_v4, port, words[13],
                                sequence + self.added, acknowledged))

    def close(self):
        self.waker.close()
        self.thread.join(3)
        self.packets.close()
        self.forger.close()


def in_fragments(forger):
    """Sends SYNs in two pieces, the first of which ends before the flags."""
    def send(packet):
        if packet[33] != SYN:
            return forger.put(packet)
        number = random.getrandbits(16)
        for place, data in ((0x2000, packet[20:28]), (1, packet[28:])):
            forger.put(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), number, place, 64,
                                   socket.IPPROTO_TCP, 0) + packet[12:20] + data)
    return send
