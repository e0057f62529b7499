"""Readings of files: `--once --proc FOLDER` over what no kernel would write."""

import glob
import ipaddress
import os
import random
import re
import struct
import sys

import pytest

from harness import STAMP, canonical, endpoint

HEADER = ("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when "
          "retrnsmt   uid  timeout inode\n")
NO_PEER = "No TCP peer connection established yet"
MEMORY_KIB = 48 * 1024
# Rows recorded on other machines, all of this byte order, are an extra: where
# they lie beside the clone each folder is a test, elsewhere there is none.
SAMPLES = os.environ.get("TCPPARSER_SAMPLES", os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "../../shared/samples"))
RECORDED = sorted(path.split(os.sep)[-2] for path in glob.glob(os.path.join(SAMPLES, "*", "net"))
                  if sys.byteorder == "little")


def words_in_hex(address, byte_order=sys.byteorder):
    """An address as the kernel prints it: 32-bit words in host byte order."""
    packed = ipaddress.ip_address(address).packed
    order = ">" if byte_order == "big" else "<"
    words = struct.unpack(f"{order}{len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words)


def tcp_row(local, local_port, peer, peer_port, state, index=0, inode=1000,
            byte_order=sys.byteorder):
    """One row as tcp4_seq_show() and tcp6_seq_show() print it."""
    row = (f"{index:4}: {words_in_hex(local, byte_order)}:{local_port:04X} "
           f"{words_in_hex(peer, byte_order)}:{peer_port:04X} {state:02X} 00000000:00000000 "
           f"00:00000000 00000000     0        0 {inode} 1 0000000000000000 20 4 30 10 -1")
    return (row if ":" in local else f"{row:<149}") + "\n"


def listening(address, port, **options):
    return tcp_row(address, port, "::" if ":" in address else "0.0.0.0", 0, 10, **options)


def fixture(t, rows, rows6=None, name="proc"):
    """A folder for --proc; `rows` are strings or bytes."""
    net = t.folder(os.path.join(name, "net"))
    for file_name, content in (("tcp", rows), ("tcp6", rows6)):
        if content is None:
            continue
        if not isinstance(content, bytes):
            content = (HEADER + "".join(content)).encode()
        with open(os.path.join(net, file_name), "wb") as file:
            file.write(content)
    return os.path.dirname(net)


# ------------------------------------------------------------------ an oracle


# A row is valid whose index, both ends and state are whole.
ROW = re.compile(rb"^ *\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})"
                 rb" ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{2})(?: |$)")


def address_of(hexadecimal):
    words = [int(hexadecimal[i:i + 8], 16) for i in range(0, len(hexadecimal), 8)]
    order = ">" if sys.byteorder == "big" else "<"
    address = ipaddress.ip_address(struct.pack(f"{order}{len(words)}I", *words))
    return getattr(address, "ipv4_mapped", None) or address


def is_ephemeral(port):
    """Without a listener the arrow is a guess by the port."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        low, high = map(int, file.read().split())
    return low <= port <= high


def oracle(folder):
    """The list's text that a folder's valid rows make: peer, arrow, local."""
    rows = []
    for name in ("tcp", "tcp6"):
        path = os.path.join(folder, "net", name)
        if os.path.exists(path):
            with open(path, "rb") as file:
                rows += [m.groups() for m in map(ROW.match, file.read().split(b"\n")) if m]
    sockets = [(address_of(a), int(b, 16), address_of(c), int(d, 16), int(e, 16))
               for a, b, c, d, e in rows]
    listeners = {(str(a), p) for a, p, _, _, state in sockets if state == 10}
    listed = set()
    for local, local_port, peer, peer_port, state in sockets:
        if state != 1 or peer.is_loopback or peer.is_unspecified:
            continue
        inbound = any((a, local_port) in listeners for a in (str(local), "0.0.0.0", "::"))
        inbound = inbound or not is_ephemeral(local_port)
        listed.add((endpoint(str(peer), peer_port), "->" if inbound else "<-",
                    endpoint(str(local), local_port)))
    return listed


LISTED = re.compile(rf"^{STAMP}:     New connection: +(\S+) (->|<-) (\S+)$")


def listed_by(ended):
    """What the product listed, each line checked and none twice."""
    assert ended.lines[:2] == ["tcpparser starting...", ""], "start lines"
    found = []
    for line in ended.lines[2:]:
        if line != NO_PEER and "Port scan detected:" not in line:
            match = LISTED.match(line)
            assert match, f"a strange line: {line!r}"
            found.append(match.groups())
    assert len(found) == len(set(found)), "a connection is listed twice: lines"
    assert (NO_PEER in ended.lines) == (not found), f"`{NO_PEER}` with {len(found)} lines"
    return set(found)


def agrees(t, folder):
    """Reads the folder once and compares with the oracle."""
    ended = t.once("--once", "--proc", folder)
    assert ended.status == 0, f"exit status, {ended}"
    found, wanted = listed_by(ended), oracle(folder)
    assert found == wanted, (f"missing {sorted(wanted - found)[:3]}, "
                             f"invented {sorted(found - wanted)[:3]}")
    assert ended.peak_kib < MEMORY_KIB, f"{ended.peak_kib} KiB resident"
    return found


GOOD = [tcp_row("192.0.2.1", 22, f"198.51.100.{n}", 40000 + n, 1, n) for n in (1, 2, 3)]


# ---------------------------------------------------------------------- tests


def test_list_is_what_the_rows_say(t):
    folder = fixture(
        t,
        [listening("0.0.0.0", 22), tcp_row("192.0.2.1", 22, "198.51.100.7", 52239, 1),
         tcp_row("192.0.2.1", 37474, "198.51.100.8", 443, 1),
         tcp_row("127.0.0.1", 37474, "127.0.0.1", 22, 1),
         tcp_row("192.0.2.1", 22, "198.51.100.9", 52240, 6)],
        [listening("::", 443), tcp_row("2001:db8::1", 443, "2001:db8:5::7", 1, 1),
         tcp_row("::ffff:192.0.2.1", 443, "::ffff:198.51.100.7", 65535, 1)])
    assert agrees(t, folder) == {
           ("198.51.100.7:52239", "->", "192.0.2.1:22"),
           ("198.51.100.8:443", "<-", "192.0.2.1:37474"),
           ("[2001:db8:5::7]:1", "->", "[2001:db8::1]:443"),
           ("198.51.100.7:65535", "->", "192.0.2.1:443")}, "list"


def test_lines_are_aligned_to_the_letter(t):
    folder = fixture(t, [
        listening("0.0.0.0", 22), tcp_row("172.31.59.87", 22, "206.11.237.209", 52239, 1),
        tcp_row("172.31.59.87", 37474, "99.84.191.103", 443, 1)])
    ended = t.once("--once", "--proc", folder)
    texts = sorted(re.sub(STAMP, "", line, count=1) for line in ended.lines[2:])
    assert texts == [":     New connection:     99.84.191.103:443 <- 172.31.59.87:37474",
                     ":     New connection:  206.11.237.209:52239 -> 172.31.59.87:22"], "lines"


def test_scan_line_is_to_the_letter(t):
    ports = (445, 22, 80, 25)
    folder = fixture(t, [listening("0.0.0.0", port) for port in ports] + [
        tcp_row("172.31.59.87", port, "172.31.63.176", 40000, 1) for port in ports])
    ended = t.once("--once", "--proc", folder)
    lines = [line for line in ended.lines if "Port scan" in line]
    assert len(lines) == 1, "scan lines"
    assert (re.sub(STAMP, "", lines[0], count=1)
            == ": Port scan detected:         172.31.63.176"
" -> 172.31.59.87 on ports 22,25,80,445"), "scan line"


def test_half_open_rows_are_no_evidence(t):
    ports = (22, 25, 80, 443)
    folder = fixture(t, [listening("0.0.0.0", port) for port in ports] + [
        tcp_row("192.0.2.1", port, "198.51.100.7", 40000, 3) for port in ports])
    ended = t.once("--once", "--proc", folder)
    assert [line for line in ended.lines if "Port scan" in line] == [], "scan lines"


@pytest.mark.parametrize("state", [1, 4, 5, 6, 8, 9, 11])
def test_rows_past_the_handshake_are_evidence(t, state):
    ports = (22, 25, 80, 443)
    folder = fixture(t, [listening("0.0.0.0", port) for port in ports] + [
        tcp_row("192.0.2.1", port, "198.51.100.7", 40000, state) for port in ports])
    ended = t.once("--once", "--proc", folder)
    assert len([line for line in ended.lines if "Port scan" in line]) == 1, f"scans, {ended}"


def test_empty_file(t):
    assert agrees(t, fixture(t, b"", b"")) == set(), "list"


def test_header_only(t):
    assert agrees(t, fixture(t, HEADER.encode(), HEADER.encode())) == set(), "list"


def test_tcp6_absent_is_no_error(t):
    ended = t.once("--once", "--proc", fixture(t, GOOD))
    assert (ended.status, ended.stderr) == (0, ""), "status and stderr"


def test_random_bytes(t):
    noise = random.Random(1).randbytes(1 << 20)
    agrees(t, fixture(t, noise, noise))
    good = "".join(GOOD).encode()
    found = agrees(t, fixture(t, noise + b"\n" + good + noise + b"\n" + good))
    assert len(found) == 3, "connections among the noise"


def test_text_of_the_right_letters(t):
    chance = random.Random(2)
    noise = "".join(chance.choice("0123456789ABCDEF: \n") for _ in range(1 << 19))
    found = agrees(t, fixture(t, [noise, "\n", *GOOD]))
    assert len(found) == 3, "connections among the noise"


def test_nul_bytes(t):
    found = agrees(t, fixture(t, bytes(1 << 20) + b"\n" + "".join(GOOD).encode()))
    assert len(found) == 3, "connections after the NULs"


def test_nul_inside_rows(t):
    header, first, second = HEADER.encode(), GOOD[0].encode(), GOOD[1].encode()
    for place in (6, 13, 14, 19, 20, 29, 33, 34, 36):
        torn = first[:place] + b"\0" + first[place + 1:]
        agrees(t, fixture(t, header + torn + second))


def test_megabyte_lines(t):
    long_line = "7" * (1 << 20) + "\n"
    torn_and_long = GOOD[0][:20] + "7" * (1 << 20) + "\n"
    rows = [long_line, GOOD[1], torn_and_long, GOOD[2], long_line.rstrip()]
    assert len(agrees(t, fixture(t, rows))) == 2, "connections between long lines"


def test_five_digit_ports(t):
    bad = [GOOD[0].replace(":0016", ":00016"), GOOD[1].replace(":9C42", ":19C42")]
    assert bad[0] != GOOD[0] and bad[1] != GOOD[1], "the test's own rows"
    assert len(agrees(t, fixture(t, [*bad, GOOD[2]]))) == 1, "connections"


def test_unknown_states(t):
    rows = [GOOD[0].replace(" 01 ", f" {state} ") for state in ("00", "0C", "0D", "7F", "FF", "G1")]
    assert len(agrees(t, fixture(t, [*rows, GOOD[2]]))) == 1, "connections"


def test_torn_rows(t):
    """A row cut at every point, each time followed by a whole one."""
    torn = tcp_row("192.0.2.1", 22, "198.51.100.1", 40001, 1, inode=7).rstrip()
    rows = []
    for cut in range(len(torn)):
        rows += [torn[:cut] + "\n", tcp_row("192.0.2.1", 22, "198.51.100.9", 50000 + cut, 1)]
    assert len(agrees(t, fixture(t, rows))) == len(torn) + 1, "connections"


def test_torn_ipv6_rows(t):
    torn = tcp_row("2001:db8::1", 22, "2001:db8::2", 40000, 1, inode=7).rstrip()
    rows = []
    for cut in range(len(torn)):
        rows += [torn[:cut] + "\n", tcp_row("2001:db8::1", 22, "2001:db8::9", 50000 + cut, 1)]
    assert len(agrees(t, fixture(t, [], rows))) == len(torn) + 1, "connections"


def test_repeated_rows_are_one_connection(t):
    assert len(agrees(t, fixture(t, GOOD * 100))) == 3, "connections"


def test_same_row_in_both_files_is_one_connection(t):
    """A fixture taken while an IPv4 connection moved between the tables."""
    mapped = tcp_row("::ffff:192.0.2.1", 22, "::ffff:198.51.100.1", 40001, 1)
    assert len(agrees(t, fixture(t, GOOD, [mapped]))) == 3, "connections"


def test_suspect_survives_a_flood_of_sources(t):
    """Three ports, ten times the table's capacity of others, the fourth."""
    ports = (22, 25, 80, 443)
    suspect = [tcp_row("192.0.2.1", port, "198.51.100.7", 40000, 1) for port in ports]
    flood = [tcp_row("192.0.2.1", 80, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 40000, 6)
             for n in range(81_920)]
    folder = fixture(t, [listening("0.0.0.0", port) for port in ports]
                     + suspect[:3] + flood + suspect[3:])
    ended = t.once("--once", "--proc", folder)
    assert len([line for line in ended.lines if "Port scan" in line]) == 1, f"scans, {ended}"


def test_million_rows(t):
    """One row in fifty is established; all indices shift their columns."""
    net = t.folder("proc/net")
    with open(os.path.join(net, "tcp"), "w") as file:
        file.write(HEADER)
        for index in range(1_000_000):
            words = f"{index & 255:02X}{index >> 8 & 255:02X}{index >> 16 & 255:02X}0A"
            state = "01" if index % 50 == 0 else "06"
            file.write(f"{index:4}: 010200C0:C350 {words}:01BB {state} 00000000:00000000 "
                       f"00:00000000 00000000     0        0 {index + 1} 1 "
                       "0000000000000000 20 4 30 10 -1\n")
            if index % 100_000 == 77:
                file.write(f"{index}: torn\n")
    ended = t.once("--once", "--proc", t.folder("proc"), seconds=60)
    assert ended.status == 0, f"exit status, {ended}"
    found = listed_by(ended)
    wanted = {(f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}:443", "<-", "192.0.2.1:50000")
              for n in range(0, 1_000_000, 50)}
    assert found == wanted, f"{len(found)} connections, {len(wanted)} wanted"
    assert ended.peak_kib < MEMORY_KIB, f"{ended.peak_kib} KiB resident"


@pytest.mark.parametrize("kind", ["fifo", "folder", "endless"])
def test_strange_tcp_is_refused(t, kind):
    folder = fixture(t, GOOD, GOOD)
    put_in_place(kind, os.path.join(folder, "net", "tcp"))
    ended = t.once("--once", "--proc", folder, seconds=10)
    assert ended.status == 1, f"exit status, {ended}"
    assert len(ended.errors) == 1, f"lines on stderr: {ended.stderr!r}"


@pytest.mark.parametrize("kind", ["fifo", "folder", "endless"])
def test_strange_tcp6_leaves_tcp_readable(t, kind):
    folder = fixture(t, GOOD, GOOD)
    put_in_place(kind, os.path.join(folder, "net", "tcp6"))
    ended = t.once("--once", "--proc", folder, seconds=10)
    assert len([line for line in ended.lines if "New connection" in line]) == 3, f"lines, {ended}"


def put_in_place(kind, path):
    os.remove(path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    else:
        os.symlink("/dev/zero", path)


def test_peers_without_address_are_not_listed(t):
    rows = [tcp_row("0.0.0.0", 111, "0.0.0.0", 0, 1), tcp_row("192.0.2.1", 22, "0.0.0.0", 0, 1)]
    rows6 = [tcp_row("::", 6600, "::", 0, 1)]
    assert agrees(t, fixture(t, rows, rows6)) == set(), "list"


@pytest.mark.parametrize("name", RECORDED)
def test_rows_recorded_on_another_machine(t, name):
    agrees(t, os.path.join(SAMPLES, name))


def test_canonical_ipv6_text(t):
    addresses = ("2001:db8::1", "2001:db8:0:0:1::1", "2001:0:0:1::1", "2001:db8:1:1:1:1:0:1",
                 "fe80::ff", "2001:db8::1:0:0:1")
    folder = fixture(t, [], [tcp_row("2001:db8::99", 50000, peer, 443, 1) for peer in addresses])
    wanted = {(f"[{canonical(peer)}]:443", "<-", "[2001:db8::99]:50000") for peer in addresses}
    assert agrees(t, folder) == wanted, "list"
