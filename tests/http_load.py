"""Hostile clients, for a test: http_load.py ADDRESS PORT KIND COUNT

idle     connect and say nothing
slow     send a request byte by byte (slowloris)
deaf     ask for much and never read
flood    one request after the other, each on a new connection

Runs until it is killed. Prints one line once COUNT clients have connected.
"""

import contextlib
import selectors
import socket
import sys
import time

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: load\r\nUser-Agent: slow\r\n"
TICK = 0.05  # seconds


class Client:
    """One connection that is made again whenever it ends."""

    def __init__(self, address, kind):
        self.address, self.kind = address, kind
        self.sock, self.place = None, 0

    def connect(self):
        self.sock = socket.socket()
        if self.kind == "deaf":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(5)
        self.sock.connect(self.address)
        self.sock.setblocking(False)
        self.place = 0

    def tick(self):
        """Does its mischief once."""
        try:
            if self.kind == "slow":
                self.sock.send(REQUEST[self.place % len(REQUEST):][:1])
                self.place += 1
            elif self.kind == "deaf":
                self.sock.send((REQUEST + b"\r\n") * 10)
        except BlockingIOError:
            pass
        except OSError:
            self.sock.close()
            with contextlib.suppress(OSError):
                self.connect()


def hold(address, kind, count):
    clients = [Client(address, kind) for _ in range(count)]
    for client in clients:
        client.connect()
    print("ready", flush=True)
    while True:
        time.sleep(TICK)
        for client in clients:
            client.tick()


def flood(address, count):
    """`count` connections at once, each replaced as soon as it is answered."""
    selector = selectors.DefaultSelector()

    def begin():
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        selector.register(sock, selectors.EVENT_WRITE)

    def go_on(key):
        sock = key.fileobj
        if key.events == selectors.EVENT_WRITE:
            sock.send(REQUEST + b"Connection: close\r\n\r\n")
            selector.modify(sock, selectors.EVENT_READ)
            return True
        return bool(sock.recv(65536))

    for _ in range(count):
        begin()
    print("ready", flush=True)
    while True:
        for key, _ in selector.select(1):
            try:
                goes_on = go_on(key)
            except OSError:
                goes_on = False
            if not goes_on:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                with contextlib.suppress(OSError):
                    begin()


if __name__ == "__main__":
    target = (sys.argv[1], int(sys.argv[2]))
    if sys.argv[3] == "flood":
        flood(target, int(sys.argv[4]))
    else:
        hold(target, sys.argv[3], int(sys.argv[4]))
