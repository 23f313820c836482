"""Trying out new packages in a process of their own, where a bad compiler can do no harm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from sdrt.runtime.manifest import TensorSpec


class TrialError(RuntimeError):
    """A freshly built package does not load or run."""


class Trial:
    """A child process that loads each package once and runs it once."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._process: subprocess.Popen[str] | None = None

    def run(self, name: str, path: Path, arguments: tuple[TensorSpec, ...]) -> None:
        """Load and run one package.

        Raises:
            TrialError: it failed, or took the process down; the message names the compiler.
        """
        process = self._start()
        assert process.stdin is not None and process.stdout is not None
        request = {
            "path": str(path),
            "device": self._device,
            "arguments": [spec.model_dump() for spec in arguments],
        }
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = process.wait()
            self._process = None
            compiler = os.environ.get("CXX", "the default C++ compiler (g++)")
            raise TrialError(
                f"package {name} was built but crashes when loaded or run (exit status {code}); "
                f"it was compiled with {compiler}: set CXX to another compiler, "
                "such as CXX=/usr/bin/g++, and build again"
            )
        if error := json.loads(answer)["error"]:
            raise TrialError(f"package {name} was built but does not run: {error}")

    def close(self) -> None:
        """End the child process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sdrt.export.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,  # an interrupt from the terminal is the builder's business
            )
        return self._process
