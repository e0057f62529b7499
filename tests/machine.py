"""A machine of its own for what starts services: the files of this one under an
overlay that forgets, private /run, /tmp, /dev and processes, and an init system
as process 1. Whatever is installed there is gone with it.
"""

import glob
import os
import re
import signal
import subprocess
import time
from unittest import SkipTest

from harness import DEADLINE, HOME, need, run, wait_for

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
# What `make tools` fetched because it is not installed here.
PACKAGES = os.path.join(ROOT, "target/tools")
BUSYBOX = ("busybox",)
OPENRC = ("openrc", "librc1", "libeinfo1", "insserv")

# What the log says once the machine stands: all that fails later is no lack here.
STANDS = "the machine stands"

# Makes the root in $1 and becomes process 1; runs in mount, process, host name
# and IPC namespaces that were just made. Then come the folders that must be seen
# of the real machine, --, packages to unpack, --, and the command. Kernel
# settings, modules and the clock are the real machine's: they can be read, no more
# (https://systemd.io/CONTAINER_INTERFACE), and nothing waits for the real disks.
ENTER = r"""
set -e
base=$1
shift
root=$base/root
mount -t tmpfs tmpfs "$base"
mkdir "$base/upper" "$base/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$root"
mount -t proc proc "$root/proc"
for part in sys sysrq-trigger; do
    [ ! -e "$root/proc/$part" ] || mount --bind -o ro "$root/proc/$part" "$root/proc/$part"
done
mount -t sysfs -o ro sysfs "$root/sys"
for folder in run tmp dev var/log; do mount -t tmpfs tmpfs "$root/$folder"; done
chmod 1777 "$root/tmp"
mkdir -p "$root/run/lock" "$root/dev/shm" "$root/dev/pts"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup" 2>/dev/null || :
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for file in fstab crypttab modules; do : >"$root/etc/$file"; done
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    shift
done
shift
while [ "$1" != -- ]; do
    dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$root"
    shift
done
shift
cd "$root"
mkdir -p mnt
pivot_root . mnt
umount -l mnt
echo "$STANDS"
unset STANDS
exec setpriv --bounding-set=-sys_module,-sys_time "$@"
"""

# A control group of its own, which systemd insists on.
IN_CGROUP = r"""
set -e
base=$1 name=$2
shift 2
if mount -t cgroup2 cgroup2 "$base" 2>/dev/null; then
    mkdir "$base/$name"
    echo $$ >"$base/$name/cgroup.procs"
    umount "$base"
fi
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child "$@"
"""

REMOVE_CGROUP = 'mount -t cgroup2 cgroup2 "$1" && find "$1/$2" -depth -type d -exec rmdir {} \\;'


def package_name(path):
    return os.path.basename(path).partition("_")[0]


class Machine:
    """`boot` makes files and names process 1; then `run` runs commands inside,
    in the network namespace `network`."""

    def __init__(self, case, network):
        need("unshare", "nsenter", "setpriv", "tar", "dpkg-deb", "pivot_root")
        self.case, self.network = case, network
        self.base = case.folder("machine")
        self.name = f"tcpp-{os.getpid()}-{os.path.basename(case.tmp)}"
        self.outside = self.pid = None
        self.log = os.path.join(case.tmp, "machine.log")

    def __enter__(self):
        return self

    def boot(self, prepare, *first, packages=BUSYBOX, folder="init"):
        """Runs the shell script `prepare` inside, then becomes `first`. What is
        in `packages` is unpacked inside if it was fetched; all of the folder with
        `None`."""
        packages = [path for path in sorted(glob.glob(f"{PACKAGES}/{folder}/*.deb"))
                    if packages is None or package_name(path) in packages]
        visible = {ROOT, os.path.dirname(self.case.binary)}
        prepare = f"set -e\n{prepare}\ntouch /run/prepared\nexec {' '.join(first)}"
        command = ["unshare", "--mount", "sh", "-c", IN_CGROUP, "cgroup", self.base, self.name,
                   "sh", "-c", ENTER, "enter", self.base, *sorted(visible), "--",
                   *packages, "--", "/bin/sh", "-c", prepare]
        environment = {"PATH": HOME["PATH"] + ":/usr/sbin:/sbin", "LC_ALL": "C",
                       "container": "tcpparser", "STANDS": STANDS}
        with open(self.log, "wb") as log, self.network.entered():
            self.outside = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        end = time.monotonic() + DEADLINE
        while not self.is_prepared(prepare):
            if self.outside.poll() is not None or time.monotonic() > end:
                raise self.did_not_boot()
            time.sleep(0.02)
        return self

    def did_not_boot(self):
        with open(self.log, errors="replace") as log:
            said = log.read()
        if STANDS in said:
            return AssertionError("the machine did not get as far as its own init")
        return SkipTest(f"no machine of its own here: {said[-200:].strip()!r}")

    def is_prepared(self, prepare):
        """Whether process 1 has left the script that we gave it."""
        path = f"/proc/{self.outside.pid}/task/{self.outside.pid}/children"
        try:
            with open(path) as children:
                self.pid = int(children.read().split()[0])
            with open(f"/proc/{self.pid}/cmdline") as command:
                return prepare not in command.read() and os.path.exists(self.path("/run/prepared"))
        except (OSError, IndexError):
            return False

    def path(self, name):
        """Where a file of the machine is seen from outside; no absolute links."""
        return f"/proc/{self.pid}/root{name}"

    def text(self, name):
        try:
            with open(self.path(name), errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def write(self, name, text):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def exists(self, name):
        return os.path.lexists(self.path(name))

    def run(self, *command, env=None, **options):
        environment = env or {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                              "LC_ALL": "C", "TZ": "UTC0", "HOME": "/root"}
        return run("nsenter", "-t", str(self.pid), "-a", "sh", "-c", 'cd / && exec "$@"', "sh",
                   *command, env=environment, **options)

    def must(self, *command, **options):
        done = self.run(*command, **options)
        assert done.returncode == 0, (f"{' '.join(command)}: exit {done.returncode}, "
                                      f"{done.stdout[-600:]!r}, {done.stderr[-600:]!r}")
        return done.stdout

    def guards(self):
        return self.processes("tcpparser")

    def processes(self, wanted):
        """The numbers of all that have this name, as the machine sees them."""
        found = []
        for path in glob.glob(self.path("/proc/[0-9]*/stat")):
            try:
                with open(path) as stat:
                    number, name, state = re.match(r"(\d+) \((.*)\) (\S)", stat.read()).groups()
            except OSError:
                continue
            if name == wanted and state != "Z":
                found.append(int(number))
        return found

    def guard(self):
        """The only daemon, once it serves."""
        def serving():
            found = self.guards()
            done = self.network.run("curl", "-s", "http://127.0.0.1:3021/metrics")
            return done.returncode == 0 and len(found) == 1 and found[0]
        return wait_for(serving, "one tcpparser that serves")

    def environment(self, number):
        with open(self.path(f"/proc/{number}/environ"), "rb") as file:
            entries = file.read().decode().rstrip("\0").split("\0")
        return dict(entry.partition("=")[::2] for entry in entries)

    def kill_guard(self):
        number = self.guard()
        self.must("sh", "-c", f"kill -9 {number}")
        wait_for(lambda: not self.exists(f"/proc/{number}"), "the end of what was killed")
        return number

    def __exit__(self, kind, error, _trace):
        if isinstance(error, AssertionError):
            error.args = (f"{error}\n{self.last_words()}",)
        if self.outside:
            self.outside.send_signal(signal.SIGKILL)
            self.outside.wait(5)
            wait_for(lambda: not os.path.exists(f"/proc/{self.pid}"), "the end of a machine")
            run("unshare", "--mount", "sh", "-c", REMOVE_CGROUP, "cgroup", self.base, self.name)

    def last_words(self):
        parts = [f"    {name}: {self.text(name)[-1500:]}"
                 for name in ("/var/log/tcpparser.log", "/var/log/messages")]
        with open(self.log, errors="replace") as log:
            return "\n".join([*parts, f"    init: {log.read()[-1500:]}"])
