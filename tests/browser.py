"""A headless Chromium, driven by the DevTools protocol over two pipes: messages in
JSON, a NUL behind each (`chromium --remote-debugging-pipe`)."""

import base64
import collections
import contextlib
import json
import os
import select
import subprocess
import time

from harness import DEADLINE, need, wait_for


class Browser:
    """One process inside a namespace, and one tab of it."""

    def __init__(self, t, namespace):
        need("chromium")
        command, self.commands = os.pipe()
        self.answers, answer = os.pipe()
        # Their ends in Chromium are descriptors 3 and 4.
        script = f'exec 3<&{command} 4>&{answer}; exec chromium "$@"'
        with namespace.entered():
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", "--headless=new", "--remote-debugging-pipe",
                 "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update",
                 "--hide-scrollbars", f"--user-data-dir={t.folder('chromium')}", "about:blank"],
                pass_fds=(command, answer), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env={**os.environ, "TZ": "Pacific/Auckland", "LANG": "C.UTF-8"})
        os.close(command)
        os.close(answer)
        t.closing.append(self)
        self.number, self.input = 0, b""
        self.events = collections.defaultdict(list)
        self.session = None
        self.open_tab()

    def open_tab(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return target

    def call(self, method, **parameters):
        """The result of a command; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + DEADLINE
        while True:
            answer = self.receive(end - time.monotonic())
            assert answer, f"Chromium does not answer {method}"
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.keep(answer)

    def receive(self, seconds):
        """The next message, if one comes in time."""
        while b"\0" not in self.input:
            if seconds < 0 or not select.select([self.answers], [], [], seconds)[0]:
                return None
            more = os.read(self.answers, 1 << 20)
            assert more, "Chromium ended"
            self.input += more
        message, _, self.input = self.input.partition(b"\0")
        return json.loads(message)

    def keep(self, message):
        self.events[message.get("method")].append(message.get("params", {}))

    def happened(self, method):
        """All events of a kind so far."""
        while message := self.receive(0):
            self.keep(message)
        return self.events[method]

    # What a page is asked and told.

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer}"
        return answer["result"].get("value")

    def open(self, url):
        self.call("Page.navigate", url=url)
        wait_for(lambda: self.evaluate("document.readyState") == "complete", f"{url} to load")

    def text(self, selector):
        """What a reader sees of each such element."""
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})]"
                             ".map(node => node.innerText.trim())")

    def wait_text(self, selector, wanted, seconds=DEADLINE):
        return wait_for(lambda: wanted in self.text(selector),
                        f"{wanted!r} in {selector}: {self.text(selector)}", seconds)

    def look(self, width, scheme, height=800, motion="no-preference"):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion}])

    def picture(self, path, whole=True):
        made = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        with open(path, "wb") as file:
            file.write(base64.b64decode(made["data"]))

    def complaints(self):
        """What the console and the policies had to say."""
        said = self.happened("Runtime.consoleAPICalled") + self.happened("Runtime.exceptionThrown")
        logged = [one["entry"] for one in self.happened("Log.entryAdded")]
        return said + [one for one in logged if one["source"] != "network"]

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)
