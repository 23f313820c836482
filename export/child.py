"""A child process that answers in lines of JSON: what may crash runs there. Both of its ends."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

from sdrt.kernels.errors import SdrtError

GRACE_S = 10
"""Seconds that a child has to end by itself once it is asked nothing more."""


class ChildCrash(SdrtError):
    """A child process ended without an answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status
        """As Python gives it: negative for a signal."""


class Child:
    """A module run as a process of its own; it starts when asked, and again after a crash."""

    def __init__(self, module: str, setup: object = None) -> None:
        """Name the module.

        Args:
            setup: sent to each new process before the first request, unless None.
        """
        self._module, self._setup = module, setup
        self._process: subprocess.Popen[str] | None = None

    def ask(
        self, request: object, on_progress: Callable[[Any], object] = lambda _: None
    ) -> dict[str, Any]:
        """Send a request and return the answer.

        Args:
            on_progress: called with each ``progress`` that the child reports before it.
        Raises:
            ChildCrash: the process ended; the next request starts another one.
        """
        process = self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            while line := process.stdout.readline():
                answer = json.loads(line)
                if "progress" not in answer:
                    return answer
                on_progress(answer["progress"])
        except BrokenPipeError:
            pass
        self._process = None
        raise ChildCrash(process.wait())

    def close(self) -> None:
        """Ask nothing more: the process ends, or gives up what it is doing and ends."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        for end in (process.terminate, process.kill):
            try:
                process.wait(GRACE_S)
                return
            except subprocess.TimeoutExpired:
                end()
        process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,  # an interrupt from the terminal is the builder's business
            )
            if self._setup is not None:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(self._setup) + "\n")
        return self._process


class Requests:
    """The child's end: what it is asked, and the answers.

    Answers go to the real standard output; what libraries print goes to standard error.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        """Set when nothing more will be asked, also if the parent died: unfinished work is idle."""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._output, sys.stdout = sys.stdout, sys.stderr
        threading.Thread(target=self._read, daemon=True).start()

    def answer(self, message: object) -> None:
        """Send one line to the parent."""
        self._output.write(json.dumps(message) + "\n")
        self._output.flush()

    def __iter__(self) -> Iterator[Any]:
        while (line := self._lines.get()) is not None:
            yield json.loads(line)

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        self.ended.set()
        self._lines.put(None)
