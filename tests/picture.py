"""`make page` takes the picture of the live page that README.md shows: some scans in
namespaces of its own, seen by a real browser after two minutes."""

import os
import subprocess
import time

import harness
import page
from browser import Browser

PICTURE = os.path.join(page.ROOT, "dist/live.png")
PORTS = (22, 25, 80, 443, 993, 5432)
HOST, GUEST = "192.0.2.1", "192.0.2.2"
SCANNERS = (("198.51.100.23", "22,25,80,443"), ("203.0.113.9", "22,80,443,993,5432"))


def main(binary):
    harness.need("chromium", "nmap")
    t = harness.Case(binary)
    try:
        take(t)
    finally:
        t.close()
    subprocess.run(["zopflipng", "--filters=0me", "--iterations=2", "-y", PICTURE, PICTURE],
                   stdout=subprocess.DEVNULL, check=False)
    print(f"dist/live.png: {os.path.getsize(PICTURE)} bytes")


def take(t):
    host, guest = t.namespace("host"), t.namespace("guest")
    harness.link(host, "lan0", guest, "lan0", (f"{HOST}/24", f"{GUEST}/24"))
    for number, (address, _) in enumerate(SCANNERS):
        guest.ip(f"address add {address}/32 dev lo")
        host.ip(f"route add {address}/32 via {GUEST}")
    host.listen(*PORTS)
    firewall = t.backend(host, "nft")
    guard = t.guard(host, "--show", "scans", env=firewall.env, interval="1s").ready()
    browser = Browser(t, guest)
    browser.look(1280, "light", height=690)
    browser.open(f"http://{HOST}:3021/")
    browser.wait_text("#state", "guarding")
    held = []
    for second in range(120):
        for _ in range(1 + second * 7 % 5):
            held.append(guest.connect(HOST, (22, 443)[second % 2]))
        while len(held) > 24 + second * 5 % 9:
            held.pop(0).close()
        if second in (40, 85):
            address, ports = SCANNERS[second > 40]
            guest.run("nmap", "-sT", "-n", "-Pn", "-S", address, "-e", "lan0", "-p", ports, HOST)
            guard.wait_line(f"Blocked: .* {address} ")
        if second == 60:
            guest.run("nmap", "-sS", "-n", "-Pn", "-p", "1-100", HOST)
        time.sleep(1)
    browser.wait_text("#state", "guarding")
    browser.picture(PICTURE, whole=False)
    assert browser.complaints() == [], "the console"


if __name__ == "__main__":
    harness.run_alone(main, 300)
