"""`make bench`: what one reading costs against `cat` of the same two files,
and how large the program is on disk and in memory.

The rows are real: connections over a veth pair between two namespaces, held
by several processes. CPU time is user + system as the scheduler accounts it:
/proc/PID/schedstat of the running daemon, wait4(2) of each cat; where the
kernel scales both to the same clock they are nanoseconds, not ticks. Absolute
times belong to the machine; the ratios are what counts.

Each cat runs every 0.1 s like the readings, and its start, as measured with a
cat of /dev/null, does not count. Medians are of 21 (cat) and 7 rounds of 10
readings, in turn. The ratio still moves with the machine's caches: 20,000 rows
gave 0.93 to 1.08 in five runs. On 2026-11-29, on a virtual machine with 2 cores,
Linux 6.18: 2,000 rows 1.04 (12.1 ms), 20,000 rows 0.93 (57.5 ms), the same with
a list of 20,000 connections into a pipe 1.09 (67.1 ms).
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time

import harness

ROWS = (2_000, 20_000)
HOLDERS = 4  # processes that hold connections: one may not open 40,000 files
PORT = 8_000  # each holder has one port and one peer: none is a scanner
ROUNDS = 7  # alternations
READINGS = 10  # of one daemon in one round
INTERVAL = 0.1  # seconds between readings
FILES = ["/proc/net/tcp", "/proc/net/tcp6"]
BUDGETS = {"file": 64, "idle": 128, "ratio": 1.10}
DEADLINE = 170  # seconds for everything
PR_SET_PDEATHSIG = 1


# ------------------------------------------------------- connections to see


def hold(lan, number, count):
    """In a child: opens `count` connections from one peer address to one port
    of the host, both ends ours, and keeps them until the parent ends."""
    peer = f"10.77.0.{10 + number}"
    listener = lan.host.listen(PORT + number, address=lan.host_v4)[0]
    listener.setblocking(True)
    held = []
    with lan.peer.entered():
        for _ in range(count):
            client = harness.socket.socket()
            client.bind((peer, 0))
            client.connect((lan.host_v4, PORT + number))
            held += [client, listener.accept()[0]]
    return held


class QuietService:
    """Stands in for the echo service: holders accept by themselves."""

    def add(self, listener):
        pass

    def stop(self):
        pass


def start_holder(lan, number, count):
    """A process that holds connections; its process id, once it has them."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            harness.LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            held = hold(lan, number, count)
            os.write(done, b"+")
            while held:
                signal.pause()
        except BaseException as error:
            print(f"holder {number}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(done)
    with os.fdopen(ready, "rb") as pipe:
        assert pipe.read(1) == b"+" or not reap(pid), "a holder failed"
    return pid


def reap(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(pid, 0)
    return True


@contextlib.contextmanager
def connections(count):
    """Namespaces in which the host has `count` established connections."""
    lan, holders = None, []
    try:
        lan = harness.Lan(harness.Namespace("host"), harness.Namespace("peer"))
        lan.host.service = QuietService()
        lan.peer.ip(*(f"address add 10.77.0.{10 + n}/24 dev lan0" for n in range(HOLDERS)))
        for number in range(HOLDERS if count else 0):
            holders.append(start_holder(lan, number, count // HOLDERS))
        yield lan.host
    finally:
        for pid in holders:
            reap(pid)
        harness.remove_own()


# ---------------------------------------------------------------- measuring


class Daemon:
    """A running tcpparser, stopped but while it is measured."""

    def __init__(self, binary, host, arguments, into):
        self.reader = None
        if into == "pipe":
            self.reader = subprocess.Popen(
                ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        stdout = self.reader.stdin if self.reader else subprocess.DEVNULL
        with host.entered():
            self.process = subprocess.Popen(
                [binary, "--dry-run", *arguments], stdin=subprocess.DEVNULL, stdout=stdout,
                env={"PATH": "/usr/sbin:/usr/bin", "TZ": "UTC0"})
        if self.reader:
            self.reader.stdin.close()
        self.pid = self.process.pid

    def field(self, file, name):
        """A number from a file of `Name: value` lines."""
        with open(f"/proc/{self.pid}/{file}") as lines:
            for line in lines:
                if line.startswith(name + ":"):
                    return int(line.split()[1])
        raise AssertionError(f"{file} has no {name}")

    def cpu(self):
        """Nanoseconds on a CPU so far."""
        with open(f"/proc/{self.pid}/schedstat") as file:
            return int(file.read().split()[0])

    def read_bytes(self):
        return self.field("io", "rchar")

    def settle(self):
        """Waits until a reading is over: asleep, and nothing read meanwhile."""
        def is_asleep():
            before = self.read_bytes()
            time.sleep(0.003)
            with open(f"/proc/{self.pid}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
            return state == "S" and self.read_bytes() == before
        harness.wait_for(is_asleep, "the end of a reading")

    def await_bytes(self, count):
        """Waits until `count` more bytes are read and that reading is over."""
        end = self.read_bytes() + count
        harness.wait_for(lambda: self.read_bytes() >= end, "readings", 60)
        self.settle()

    def reading_cost(self, size):
        """Milliseconds of CPU of one reading of `size` bytes."""
        os.kill(self.pid, signal.SIGCONT)
        self.await_bytes(size)
        cpu, read = self.cpu(), self.read_bytes()
        self.await_bytes(int(size * (READINGS - 0.5)))
        cpu, read = self.cpu() - cpu, self.read_bytes() - read
        os.kill(self.pid, signal.SIGSTOP)
        return cpu / round(read / size) / 1e6

    def memory(self):
        """KiB: resident now and at most, and what it alone has written to. Not
        Private_Dirty: pages of a file just built are dirty until it is on disk."""
        return (self.field("smaps_rollup", "Rss"), self.field("status", "VmHWM"),
                self.field("smaps_rollup", "Anonymous"))

    def end(self):
        self.process.kill()
        self.process.wait()
        if self.reader:
            self.reader.wait(5)


def cat_cost(host, files):
    """Milliseconds of CPU of a real cat of `files` as a whole process."""
    with host.entered():
        process = subprocess.Popen(["cat", *files], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, "cat failed"
    return (used.ru_utime + used.ru_stime) * 1e3


def cat_warm_cost(host):
    """One pass of a cat that makes one after the other: all it reads stays in
    the caches, and its start does not count."""
    return (cat_cost(host, FILES * (READINGS + 1)) - cat_cost(host, FILES)) / READINGS


def cat_paced_cost(host):
    """One cat each interval, as the daemon reads: as a whole process, and
    without its start, which a cat of nothing has as well."""
    whole, start = [], []
    for _ in range(READINGS):
        next_round = time.monotonic() + INTERVAL
        whole.append(cat_cost(host, FILES))
        start.append(cat_cost(host, ["/dev/null"]))
        time.sleep(max(0, next_round - time.monotonic()))
    whole, start = statistics.mean(whole), statistics.mean(start)
    return whole, whole - start


CAT = "cat, without its start"
CAT_WHOLE = "cat, whole process"
CAT_WARM = "cat, pass after pass"
MODES = (
    ("--show scans, to /dev/null", "scans", None),
    ("--show all, to /dev/null", "all", None),
    ("--show all, to a pipe", "all", "pipe"),
)


def measure(binary, host):
    """What each costs, in milliseconds a reading: name -> one value a round;
    and the memory of the first daemon."""
    size = sum(len(host.must("cat", file)) for file in FILES)
    daemons = {}
    try:
        for name, show, into in MODES:
            arguments = ["--show", show, "--interval", f"{INTERVAL * 1000:.0f}ms",
                         "--listen", "none"]
            daemons[name] = Daemon(binary, host, arguments, into)
            daemons[name].reading_cost(size)
        costs = {name: [] for name in (CAT, CAT_WHOLE, CAT_WARM, *daemons)}
        for _ in range(ROUNDS):
            for name, daemon in daemons.items():
                whole, reading = cat_paced_cost(host)
                costs[CAT].append(reading)
                costs[CAT_WHOLE].append(whole)
                costs[CAT_WARM].append(cat_warm_cost(host))
                costs[name].append(daemon.reading_cost(size))
        return costs, daemons[MODES[0][0]].memory()
    finally:
        for daemon in daemons.values():
            daemon.end()


def idle_memory(binary):
    """With every default but blocking, after some readings of no connection."""
    with connections(0) as host:
        daemon = Daemon(binary, host, ["--interval", "100ms"], None)
        try:
            time.sleep(1)
            daemon.settle()
            return daemon.memory()
        finally:
            daemon.end()


# ------------------------------------------------------------------ telling


def verdict(value, budget):
    return f"(aim: at most {budget}{'' if value <= budget else ', MISSED'})"


def tell_costs(rows, costs):
    base = statistics.median(costs[CAT])
    print(f"\n{f'a reading of {rows} rows':32} {'median':>9} {'least':>9} {'most':>9}   to cat")
    for name, values in costs.items():
        middle = statistics.median(values)
        ratio = middle / base
        aim = verdict(ratio, BUDGETS["ratio"]) if name == MODES[0][0] and rows >= 20_000 else ""
        print(f"{name:32} {middle:6.2f} ms {min(values):6.2f} ms {max(values):6.2f} ms"
              f"   {ratio:6.3f} {aim}", flush=True)


def tell_memory(name, memory, aim=""):
    resident, peak, dirty = memory
    print(f"{name:32} {resident} KiB, at most {peak} KiB, written to {dirty} KiB {aim}", flush=True)


def main(binary):
    size = os.path.getsize(binary)
    print(f"{'file':32} {size} bytes, {size / 1024:.1f} KiB "
          f"{verdict(size / 1024, BUDGETS['file'])}")
    memory = idle_memory(binary)
    tell_memory("resident, idle", memory, verdict(memory[0], BUDGETS["idle"]))
    for rows in ROWS:
        with connections(rows) as host:
            costs, memory = measure(binary, host)
        tell_memory(f"resident, {rows} rows", memory)
        tell_costs(rows, costs)
    print(f"\nRatios are to {CAT}: one every {INTERVAL:.1f} s like the readings, less a cat of\n"
          "/dev/null. Pass after pass, without a pause, it finds the kernel's tables in the caches.")


if __name__ == "__main__":
    harness.run_alone(main, DEADLINE)
