"""The command line: version, help, refusals, environment, exit statuses."""

import os
import re

import pytest

from harness import need
from test_files import fixture, listening, tcp_row

DROPPED = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")


def refused(t, arguments, env=None):
    """A usage error: one line on stderr, nothing on stdout, status 2."""
    ended = t.once(*arguments, env=env)
    assert ended.status == 2, f"exit status of {arguments} {env or ''}, {ended}"
    assert ended.stdout == "", f"stdout of {arguments}"
    assert len(ended.errors) == 1, f"lines on stderr of {arguments}: {ended.stderr!r}"
    return ended.errors[0]


def test_version_is_one_line(t):
    for option in ("--version", "-V"):
        ended = t.once(option)
        assert ended.status == 0, "exit status"
        assert len(ended.lines) == 1, "lines"
        words = ended.lines[0].split()
        assert words[0] == "tcpparser", "name"
        assert words[1][:1].isdigit(), f"no version in {ended.lines[0]!r}"
        assert "linux" in ended.stdout, f"no target in {ended.lines[0]!r}"
        assert len(words) >= 4, f"no revision in {ended.lines[0]!r}"


def test_help_fits_a_console(t):
    for option in ("--help", "-h"):
        ended = t.once(option)
        assert ended.status == 0, "exit status"
        assert len(ended.lines) <= 25, f"{len(ended.lines)} lines"
        wide = [line for line in ended.lines if len(line) > 80]
        assert not wide, f"lines over 80 columns: {wide}"
        for name in ("interval", "window", "ports", "show", "allow", "block-time",
                     "firewall", "dry-run", "listen", "proc", "once", "help", "version"):
            assert f"--{name}" in ended.stdout, f"--{name} is not in the help"


BAD = [
    ["--interval", "50ms"], ["--interval", "2h"], ["--interval", "ten"], ["--interval="],
    ["-i", "-1"], ["--interval", "99999999999999999999s"],
    ["--window", "500ms"], ["--window=2h"],
    ["--ports", "0"], ["--ports", "64"], ["-p", "three"],
    ["--show", "some"],
    ["--allow", "10.0.0.0/33"], ["--allow", "host.example"], ["-a", "2001:db8::/129"],
    ["--block-time", "500ms"], ["--block-time", "25d"], ["--block-time", "1s,"],
    ["--block-time", "1s,2s,3s,4s,5s,6s,7s,8s,9s"],
    ["--firewall", "ufw"],
    ["--listen", "3021"], ["--listen", "127.0.0.1:99999"], ["-l", "host.example:80"],
    ["--max-blocks-per-minute", "0"], ["--max-blocks-per-minute", "100001"],
]


def test_bad_values_name_option_and_value(t):
    for arguments in BAD:
        line = refused(t, arguments)
        option = arguments[0].split("=")[0].lstrip("-")
        if len(option) > 1:
            assert option in line, f"{option} is not named in {line!r}"
        if len(arguments) > 1:
            assert any(value in line for value in arguments[1].split(",")), (
                f"{arguments[1]} is not named in {line!r}")


def test_unknown_words_are_refused(t):
    for arguments in (["--nonsense"], ["-x"], ["stray"], ["--once=perhaps"], [""]):
        refused(t, arguments)


def test_the_nearest_known_word_is_named(t):
    assert "'--port' is not an option, the nearest is --ports: see" in refused(t, ["--port", "5"])
    line = refused(t, [], env={"TCPPARSER_DRYRUN": "yes"})
    assert "'TCPPARSER_DRYRUN' is not an option, the nearest is TCPPARSER_DRY_RUN: see" in line
    # Also where that decides nothing: it was meant for the daemon.
    assert refused(t, ["--list"], env={"TCPPARSER_DRYRUN": "yes"}) == line


# Kubernetes, of services named tcpparser and tcpparser-http; Docker, of a link.
INJECTED = {
    "TCPPARSER_SERVICE_HOST": "10.96.3.7", "TCPPARSER_SERVICE_PORT": "3021",
    "TCPPARSER_SERVICE_PORT_METRICS": "3021", "TCPPARSER_PORT": "tcp://10.96.3.7:3021",
    "TCPPARSER_PORT_3021_TCP": "tcp://10.96.3.7:3021", "TCPPARSER_PORT_3021_TCP_PORT": "3021",
    "TCPPARSER_PORT_3021_TCP_PROTO": "tcp", "TCPPARSER_PORT_3021_TCP_ADDR": "10.96.3.7",
    "TCPPARSER_HTTP_SERVICE_HOST": "10.96.3.8", "TCPPARSER_HTTP_PORT": "tcp://10.96.3.8:80",
    "TCPPARSER_HTTP_PORT_80_TCP_ADDR": "10.96.3.8",
    "TCPPARSER_NAME": "/web/tcpparser", "TCPPARSER_ENV_HOME": "/",
}


def test_what_orchestrators_inject_is_passed_over(t):
    ended = t.once("--check", env=INJECTED)
    assert (ended.status, ended.stdout, ended.stderr) == (0, "", ""), f"{ended}"
    assert "'TCPPARSER_PORT'" in refused(t, [], env={**INJECTED, "TCPPARSER_PORT": "3021"})


def test_check_does_nothing_else(t):
    ended = t.once("--check", "--once", env={"TCPPARSER_PORTS": "9"})
    assert (ended.status, ended.stdout, ended.stderr) == (0, "", ""), f"{ended}"
    assert "--ports: '99'" in refused(t, ["--check", "--ports", "99"])
    assert "TCPPARSER_PORTS: 'x'" in refused(t, ["--check"], env={"TCPPARSER_PORTS": "x"})
    assert "'TCPPARSER_PROT' is not" in refused(t, ["--check"], env={"TCPPARSER_PROT": "5"})


def test_missing_values_are_refused(t):
    for option in ("--interval", "--ports", "--allow", "--listen", "--proc", "-i", "-a"):
        refused(t, [option])


def test_terminal_escapes_are_not_echoed(t):
    for arguments in (["--show", "\x1b[31mred"], ["\x1b]0;title\x07"], ["--interval=\n\n5"]):
        ended = t.once(*arguments)
        assert ended.status == 2, "exit status"
        assert "\x1b" not in ended.stderr and "\x07" not in ended.stderr, (
            f"control bytes on stderr: {ended.stderr!r}")
        assert len(ended.errors) == 1, f"lines on stderr: {ended.stderr!r}"


def test_overlong_arguments_are_refused(t):
    refused(t, ["--proc", "/" + "a" * 100_000])
    refused(t, ["--show", "a" * 100_000])


def test_too_many_allowed_networks_are_refused(t):
    networks = [f"10.{n // 256}.{n % 256}.0/24" for n in range(257)]
    refused(t, [f"--allow={network}" for network in networks] + ["--once"])


def test_environment_is_read(t):
    line = refused(t, [], env={"TCPPARSER_INTERVAL": "50ms"})
    assert "50ms" in line and "interval" in line.lower(), line
    refused(t, [], env={"TCPPARSER_BLOCK_TIME": "25d"})
    refused(t, [], env={"TCPPARSER_ALLOW": "10.0.0.0/8,nonsense"})


def two_ports_fixture(t):
    """A peer with connections to two ports."""
    return fixture(t, [listening("0.0.0.0", 22), listening("0.0.0.0", 80)] + [
        tcp_row("192.0.2.1", port, "198.51.100.7", 40000 + port, 1) for port in (22, 80)])


def scans(ended):
    assert ended.status == 0, f"exit status, {ended}"
    return [line for line in ended.lines if "Port scan detected" in line]


def test_options_come_in_every_spelling(t):
    once = ["--once", "--proc", two_ports_fixture(t)]
    assert len(scans(t.once(*once))) == 0, "scans with the default"
    assert len(scans(t.once(*once, "--ports", "1"))) == 1, "scans with --ports 1"
    assert len(scans(t.once(*once, "--ports=1"))) == 1, "scans with --ports=1"
    assert len(scans(t.once(*once, "-p", "1"))) == 1, "scans with -p 1"
    assert len(scans(t.once(*once, env={"TCPPARSER_PORTS": "1"}))) == 1, "scans by environment"


def test_command_line_beats_environment(t):
    ended = t.once("--once", "--proc", two_ports_fixture(t), "--ports", "3",
                   env={"TCPPARSER_PORTS": "1"})
    assert len(scans(ended)) == 0, "scans"


def test_ipset_is_read_as_auto(t):
    """It was an option of earlier versions."""
    guard = t.guard(t.lan().host, "--firewall", "ipset").ready()
    assert len(guard.error_output()) == 1, f"lines on stderr: {guard.error_output()}"
    assert re.search("--firewall ipset.* auto", guard.error_output()[0]), guard.error_output()[0]


def test_without_net_admin_the_way_out_is_named(t):
    need("setpriv")
    host = t.namespace("host")
    guard = t.guard(host, before=DROPPED)
    assert guard.wait_exit() == 1, "exit status"
    errors = "\n".join(guard.error_output())
    assert len(guard.error_output()) == 1, f"lines on stderr: {errors!r}"
    assert "sudo" in errors and "--dry-run" in errors, f"no way out in {errors!r}"


def test_without_net_admin_a_container_is_told_its_option(t):
    need("setpriv")
    guard = t.guard(t.namespace("host"), before=DROPPED, env={"container": "oci"})
    assert guard.wait_exit() == 1, "exit status"
    assert guard.error_output() == ["tcpparser: blocking needs CAP_NET_ADMIN: start it with "
                                    "--cap-add=NET_ADMIN, or only watch with --dry-run"], "stderr"


@pytest.mark.parametrize("option", ["--dry-run", "--firewall=none"])
def test_without_net_admin_it_still_watches(t, option):
    need("setpriv")
    host = t.namespace("host")
    t.guard(host, option, before=DROPPED).ready()


def test_second_watching_daemon_is_welcome(t):
    host = t.namespace("host")
    t.guard(host).ready()
    second = t.guard(host, "--listen", "none", "--dry-run")
    second.wait_line("No TCP peer connection established yet")
    assert second.process.poll() is None, "exit status"


def test_once_needs_no_rights_and_no_port(t):
    if os.geteuid() != 0:
        pytest.skip("needs root to give up its rights")
    need("setpriv")
    host = t.namespace("host")
    host.listen(3021)
    with host.entered():
        ended = t.once("--once", before=("setpriv", "--reuid=65534", "--regid=65534",
                                         "--clear-groups", "--bounding-set=-all"))
    assert ended.status == 0, f"exit status, {ended}"
    assert ended.lines == ["tcpparser starting...", "", "No TCP peer connection established yet"], (
        "output")


def test_once_fails_where_tcp_cannot_be_read(t):
    ended = t.once("--once", "--proc", t.folder("nothing-here"))
    assert ended.status == 1, f"exit status, {ended}"
    assert len(ended.errors) == 1, f"lines on stderr: {ended.stderr!r}"
