"""Budgets: what tests/budgets allows, measured; and that what measures more
can."""

import lzma
import os
import platform
import re
import shutil

import pytest

from harness import need, run, wait_for
from test_files import fixture, listening, tcp_row
from traffic import Flood

FOLDER = os.path.dirname(os.path.abspath(__file__))
ROWS = 20_000
CLOSE = 0.02  # of a count of instructions


def budgets():
    with open(os.path.join(FOLDER, "budgets")) as file:
        lines = (line.split("#")[0].split() for line in file)
        return {name: value for name, value in filter(None, lines)}


def test_size_of_the_file(t):
    size, most = os.path.getsize(t.binary), int(budgets()["file"])
    assert size <= most, f"{size} bytes, at most {most}"


def test_size_of_the_packed_file(t):
    with open(t.binary, "rb") as file:
        packed = lzma.compress(file.read(), preset=9 | lzma.PRESET_EXTREME)
    most = int(budgets()["xz"])
    assert len(packed) <= most, f"{len(packed)} bytes, at most {most}"


def test_memory_of_an_idle_daemon(t):
    """What it alone has written to, and what is resident, on a host where nothing
    happens and before metrics are asked for; the rest is pages of the file.
    Where the stack begins is random, which is a page or two."""
    guard = t.guard(t.lan().host, "--dry-run")
    wait_for(lambda: len(guard.matching("^No TCP peer connection")) >= 5, "five readings")
    with open(f"/proc/{guard.pid}/smaps_rollup") as lines:
        found = dict(re.findall(r"^(Rss|Anonymous): +(\d+) kB$", lines.read(), re.M))
    most = budgets()
    assert (int(found["Anonymous"]) <= int(most["dirty"])
            and int(found["Rss"]) <= int(most["resident"])), f"KiB: {found}"


def instructions(t, folder):
    """Of one reading and the end, as callgrind counts them."""
    out = os.path.join(t.tmp, "callgrind.out")
    done = run("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", t.binary,
               "--once", "--show", "scans", "--proc", folder, seconds=100)
    assert done.returncode == 0, f"valgrind: {done.stderr[-300:]}"
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def peers(name, count):
    """Rows of connections, each of a peer and a port of its own."""
    for n in range(count):
        if name == "reading_v4" or name == "reading_both" and n % 2:
            yield tcp_row("192.0.2.1", 443, f"198.18.{n // 250}.{1 + n % 250}", 30_000, 1, n, n + 1)
        else:
            yield tcp_row("2001:db8::1", 443, f"2001:db8:{n // 9999 + 1:x}:{n % 9999:x}::7", 30_000,
                          1, n, n + 1)


@pytest.mark.parametrize("name", ["reading_v4", "reading_v6", "reading_both"])
def test_instructions_of_a_reading(t, name):
    """Less those of a reading of one row. Another compiler makes other code."""
    need("valgrind")
    wanted = budgets()
    version = run("rustc", "--version").stdout if shutil.which("rustc") else ""
    if platform.machine() != "x86_64" or wanted["rustc"] not in version.split():
        pytest.skip(f"the figure is of rustc {wanted['rustc']} on x86_64")
    counts = []
    for rows in (1, ROWS):
        v6, v4 = [], [listening("0.0.0.0", 443)]
        for row in peers(name, rows):
            (v6 if len(row.split()[1]) > 20 else v4).append(row)
        counts.append(instructions(t, fixture(t, v4, v6, name=f"proc-{rows}")))
    count, figure = counts[1] - counts[0], int(wanted[name])
    assert abs(count - figure) <= CLOSE * figure, (
        f"{count} instructions for {ROWS} rows, {figure} committed")


def memory(guard):
    with open(f"/proc/{guard.pid}/smaps_rollup") as lines:
        return int(re.search(r"^Anonymous: +(\d+) kB$", lines.read(), re.M)[1])


@pytest.mark.alone
def test_memory_of_thousands_of_scanners(t):
    """An hour's hostile sources in some seconds, three times: what a source
    leaves behind is its place among the blocks and those of its connections."""
    wave = 2_000
    flood = Flood(t, "--show=scans", "--block-time=1s", "--max-blocks-per-minute=100000",
                  interval="200ms")
    sizes = [memory(flood.guard)]
    for _ in range(3):
        flood.wait_scans(flood.scan(wave))
        wait_for(lambda: flood.guard.metric("tcpparser_blocked_sources") == 0, "the blocks' end")
        sizes.append(memory(flood.guard))
    grown, most = sizes[-1] - sizes[0], 3 * int(budgets()["scanners"])
    assert grown <= most, f"KiB before and after each {wave}: {sizes}"


def test_programs_beside_the_tests_compile():
    """`make test` runs none of `make bench`, `make detect` and `make fleet`."""
    names = [name for name in os.listdir(FOLDER) if name.endswith(".py")]
    assert "bench.py" in names and "detect.py" in names, names
    for name in names:
        with open(os.path.join(FOLDER, name)) as file:
            compile(file.read(), name, "exec")
