"""Headless Chromium for tests, driven over its debugging pipe with the standard library alone."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers have little of it
    "--enable-unsafe-swiftshader",  # parallel coordinates are drawn by WebGL
    "--remote-debugging-pipe",
)
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Program that starts the browser with its pipes as descriptors 3 (commands) and 4 (answers).

Its own descriptors can have these numbers, so both are duplicated to higher numbers first.
"""


def find_chromium() -> str | None:
    """Return the path of the browser, or None if it is not installed."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    return None


class Browser:
    """A browser with one page.

    Args:
        program: Path of the browser.
        profile: Folder of its profile.

    Attributes:
        errors: Errors of scripts and of the console, and dialogs, since the page was opened.
        requests: Addresses that were requested since the page was opened.
    """

    def __init__(self, program: str, profile: Path) -> None:
        answers, browser_out = os.pipe()
        browser_in, commands = os.pipe()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                LAUNCH,
                str(browser_in),
                str(browser_out),
                program,
                *FLAGS,
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=(browser_in, browser_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(browser_in)
        os.close(browser_out)
        self._answers = answers
        self._commands = commands
        self._buffer = b""
        self._num_commands = 0
        self._session = ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        self._opened: tuple[Path, int, int] | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._commands)  # Chromium ends when the pipe is closed
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        os.close(self._answers)

    def call(self, method: str, *, seconds: float = 60, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol. Return its result.

        Args:
            method: Name of the command.
            seconds: Time to wait for the answer.
            params: Parameters of the command.
        """
        number = self._send(method, params)
        deadline = time.monotonic() + seconds
        while True:
            message = self._next(deadline, method)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._handle(message)

    def open(self, page: Path, *, width: int, height: int) -> None:
        """Load a file in a window of this size, and wait until its scripts have run.

        Nothing happens if the file was the last one to be opened, in the same size.
        """
        if self._opened == (page, width, height):
            return
        self._opened = (page, width, height)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.errors.clear()
        self.requests.clear()
        self._loaded = False
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + 60
        while not self._loaded:
            self._handle(self._next(deadline, "load"))
        # Libraries draw after the load event.
        self.js("new Promise(done => requestAnimationFrame(() => setTimeout(done, 500)))")

    def js(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page. If it is a promise, wait for it."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def _send(self, method: str, params: dict[str, Any]) -> int:
        """Send a command. Return its number, which the answer repeats."""
        self._num_commands += 1
        message = {"id": self._num_commands, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")  # a zero byte ends each message
        return self._num_commands

    def _next(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        """Return the next message of the browser: an answer or an event."""
        while b"\0" not in self._buffer:
            seconds_left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._answers], [], [], seconds_left)
            assert ready, f"the browser did not answer in time: {waiting_for}"
            piece = os.read(self._answers, 2**20)
            assert piece, f"the browser ended: {waiting_for}"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _handle(self, event: dict[str, Any]) -> None:
        """Record an event of the page. Close a dialog, which would block its scripts."""
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(params["exceptionDetails"])[:2000])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.errors.append(json.dumps(params["args"])[:2000])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(params["entry"]["text"])
            case "Page.javascriptDialogOpening":  # no report opens dialogs, so an injected script has run
                self.errors.append(f"dialog: {params['message']}")
                self._send("Page.handleJavaScriptDialog", {"accept": True})
