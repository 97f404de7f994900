"""Drives a headless Chromium through its DevTools protocol, over a pipe: no driver, no port.

    with Browser(tmp_path / "profile") as browser:
        page = browser.open("http://127.0.0.1:8501/")
        page.wait_for("document.querySelector('h1')")

Protocol: https://chromedevtools.github.io/devtools-protocol/. Messages are JSON that ends with NUL;
the browser reads them from descriptor 3 and writes to descriptor 4.
"""

import base64
import fcntl
import json
import os
import re
import select
import subprocess
import sys
import time

from pages import BROWSER

_PATIENCE = 30.0  # Seconds; a loaded machine may take long to start a browser.

_LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """A browser with a profile of its own."""

    def __init__(self, profile):
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-background-networking", "--hide-scrollbars", "--no-proxy-server"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Out of the way of descriptors 3 and 4, which they are to become.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, *map(str, theirs), *command],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *theirs):
            os.close(end)
        self._in, self._out, self._read = ours_in, ours_out, b""
        self._number, self.events = 0, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        try:
            self.send("Browser.close")
            self._process.wait(_PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)
            os.close(self._out)

    def send(self, method, session=None, **params):
        """Asks the browser, and returns its answer; events on the way are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self, deadline, method):
        while b"\0" not in self._read:
            readable, _, _ = select.select([self._in], [], [], deadline - time.monotonic())
            assert readable, f"{method}: no answer from the browser"
            chunk = os.read(self._in, 1 << 16)
            assert chunk, f"{method}: the browser has ended"
            self._read += chunk
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def open(self, url, **screen):
        """Opens a tab; see `Tab.screen`."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            tab.send(f"{domain}.enable")
        tab.screen(**screen)
        tab.send("Page.navigate", url=url)
        tab.wait_for(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")
        return tab


class Tab:
    """One page in the browser."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def send(self, method, **params):
        return self._browser.send(method, self._session, **params)

    def screen(self, width=1200, height=900, dark=False):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script):
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script):
        """Waits until a JavaScript expression is true, and returns its value."""
        deadline = time.monotonic() + _PATIENCE
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}\n{self.text()}"
            time.sleep(0.02)
        return found

    def text(self, selector="body"):
        """The words that a reader sees."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText")

    def click(self, selector):
        """Clicks the middle of an element with the mouse."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{where}.scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))"
            f"({where}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def key(self, key):
        """Presses Enter, Tab or Space, for example."""
        code, text = {"Enter": (13, "\r"), "Tab": (9, ""), "Space": (32, " ")}[key]
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                **{"type": kind, "key": text or key, "code": key, "text": text},
                windowsVirtualKeyCode=code,
            )

    def pick(self, selector, *files):
        """Picks files in a file input."""
        found = self.send(
            "Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})"
        )
        self.send(
            "DOM.setFileInputFiles",
            files=[str(file) for file in files],
            objectId=found["result"]["objectId"],
        )

    def drop(self, *files, x=200, y=300):
        """Drags files in from outside and drops them."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path):
        """Writes the whole page as PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def printed(self):
        """How many pages it prints on."""
        found = self.send("Page.printToPDF", printBackground=True)
        return len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(found["data"])))

    def logged(self):
        """Errors and warnings of the page so far."""
        self.run("0")  # What the page logged before comes before this answer.
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session
            and event["method"] in kinds
            and event["params"].get("entry", {}).get("level") != "verbose"
        ]
