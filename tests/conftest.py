"""How pytest runs the end-to-end tests: what each is given, which share the
machine, and what the reader of a failure is shown.

As root, `make build build-quick tools` and `pytest tests -k threshold` run those
whose names hold that; `-n 0` runs them in this process.
"""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True  # the source tree stays as it is

import pytest

import harness

TESTS = os.path.dirname(os.path.abspath(__file__))
SUITE_DEADLINE = 1500  # seconds after which the whole run gives up
OTHERS_DEADLINE = 300  # for those that still run when the last is due
TOGETHER = 3  # tests at a time, beside those that mostly wait
WAITING = 2  # of which so many run at a time


# ------------------------------------------------------------------- the run


def pytest_addoption(parser):
    parser.addoption("--binary", default=os.path.join(TESTS, "../target/tcpparser"),
                     help="the program to test")


def is_worker(config):
    return hasattr(config, "workerinput")


def pytest_configure(config):
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_early)
    if is_worker(config):
        config.binary, config.folder = config.workerinput["product"]
        return
    config.binary = os.path.realpath(config.option.binary)
    if not os.access(config.binary, os.X_OK):
        raise pytest.UsageError(f"{config.binary} is missing: `make build build-quick`")
    remove_left()
    config.folder = tempfile.mkdtemp(prefix=f"{harness.FOLDER}{os.getpid()}-")
    clock = threading.Timer(SUITE_DEADLINE, os.kill, (os.getpid(), signal.SIGTERM))
    clock.daemon = True
    clock.start()


def pytest_configure_node(node):
    node.workerinput["product"] = node.config.binary, node.config.folder


def end_early(number, _frame):
    """As after Ctrl-C: what tests made is taken away first."""
    pytest.exit(f"ended by {signal.Signals(number).name}", 1)


def remove_left():
    """What runs that were killed have left."""
    if os.geteuid() == 0 and shutil.which("ip"):
        harness.remove_of(lambda number: not harness.is_alive(number))


def pytest_unconfigure(config):
    if hasattr(config, "folder"):
        harness.remove_own()
        if not is_worker(config):
            remove_left()


# ------------------------------------------------------- who shares the machine


def marks(item):
    return {name for name in ("alone", "idle", "last") if item.get_closest_marker(name)}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Two workers have what mostly waits, first; one has what runs alone, last.
    Whether all tests run is noted, too: README's commands are counted then."""
    ranks = {"idle": 0, "alone": 2, "last": 3}
    items.sort(key=lambda item: max((ranks[mark] for mark in marks(item)), default=1))
    for number, item in enumerate(items):
        if marks(item):
            group = f"idle-{number % WAITING}" if marks(item) == {"idle"} else "alone"
            item.add_marker(pytest.mark.xdist_group(group))
    option = config.option
    is_cut = option.keyword or option.markexpr or any("::" in one for one in config.args)
    modules = {str(item.path) for item in items}
    config.is_whole = not is_cut and modules == set(glob.glob(f"{TESTS}/test_*.py"))


@contextlib.contextmanager
def locked(path, how):
    with open(path, "a") as file:
        fcntl.flock(file, how)
        yield


@contextlib.contextmanager
def one_of(paths):
    """Locks the first of the files that is free."""
    with contextlib.ExitStack() as files:
        opened = [files.enter_context(open(path, "a")) for path in paths]
        while True:
            for file in opened:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield
                    return
            time.sleep(0.01)


@contextlib.contextmanager
def turn(item):
    """While it is this test's turn."""
    folder = item.config.folder
    if "last" in marks(item):
        others = sum("last" not in marks(other) for other in item.session.items)
        end = time.monotonic() + OTHERS_DEADLINE
        while len(Ledger(item.config).notes) < others and time.monotonic() < end:
            time.sleep(0.1)
    by_itself = marks(item) & {"alone", "last"}
    with contextlib.ExitStack() as held:
        held.enter_context(locked(f"{folder}/machine",
                                  fcntl.LOCK_EX if by_itself else fcntl.LOCK_SH))
        if not marks(item):
            held.enter_context(one_of([f"{folder}/place-{n}" for n in range(TOGETHER)]))
        yield


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    with turn(item):
        yield
    Ledger.note(item)


# ------------------------------------------------------------ what a test is given


@pytest.fixture
def t(request):
    """What the test makes, and takes away again."""
    request.node.case = case = harness.Case(request.config.binary)
    yield case
    case.close()


@pytest.fixture
def ledger(request):
    return Ledger(request.config)


class Ledger:
    """What became of the command lines of README.md: typed by some test, or not
    typed since the tests that would have were skipped or failed. Each test's note
    is a line of a file that all workers write."""

    def __init__(self, config):
        self.is_whole = config.is_whole  # no test was left out by name
        with open(f"{config.folder}/ledger", "a+") as file:
            file.seek(0)
            self.notes = [json.loads(line) for line in file.read().splitlines()]
        self.typed = {line for note in self.notes for line in note["typed"]}
        self.untyped = {line for note in self.notes for line in note["untyped"]}

    @staticmethod
    def note(item):
        case = getattr(item, "case", None)
        note = {"typed": sorted(case.typed) if case else [],
                "untyped": sorted(case.to_type) if case and not case.has_passed else []}
        with locked(f"{item.config.folder}/ledger-lock", fcntl.LOCK_EX), \
                open(f"{item.config.folder}/ledger", "a") as file:
            file.write(json.dumps(note) + "\n")


# ----------------------------------------------------------- what a reader is shown


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.when == "call" and hasattr(item, "case"):
        item.case.has_passed = report.passed
        if report.failed:
            report.sections.append(("tcpparser", "\n".join(item.case.report())))
    if report.skipped:
        # The test, not the line that found out.
        report.longrepr = (str(item.path), item.location[1] + 1, report.longrepr[2])
