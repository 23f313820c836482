"""The CUDA streams of a session: one each for encoder, DiT and decoder, and their order."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

LANES = ("encode", "diffuse", "decode")
"""Groups of stages that run beside each other; the prompt's and the clean pass are the DiT's."""


class Lanes:
    """Streams by group, and events that order what runs on them; on a CPU all of it is empty.

    While the DiT works on one chunk, the next can be encoded and the last decoded: kernels of one
    stream fill multiprocessors that the tail of another stream's kernel leaves idle.
    """

    def __init__(self, device: torch.device, overlap: bool = True) -> None:
        """Make the streams; without ``overlap`` it is one for all, and stages run in turn."""
        self.device = device
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._events: dict[str, torch.cuda.Event] = {}
        if device.type == "cuda" and not overlap:
            self._streams = dict.fromkeys(LANES, torch.cuda.Stream(device))
        elif device.type == "cuda":
            # The later the stage, the sooner its kernels run: what was begun first ends first.
            self._streams = {
                lane: torch.cuda.Stream(device, priority=-order) for order, lane in enumerate(LANES)
            }

    def stream(self, group: str) -> torch.cuda.Stream | None:
        """Return the stream of a group of stages; None on a CPU."""
        return self._streams.get(group, self._streams.get("diffuse"))

    def on(self, group: str) -> AbstractContextManager[Any]:
        """Make a group's stream the current one inside a ``with`` block."""
        stream = self.stream(group)
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def record(self, name: str) -> None:
        """Record that the current stream has come this far."""
        if self._streams:
            event = self._events.setdefault(name, torch.cuda.Event())
            event.record()

    def wait(self, name: str) -> None:
        """Let the current stream wait for the last :meth:`record` of ``name``, if there was one."""
        event = self._events.get(name)
        if event is not None:
            event.wait()

    def synchronize(self) -> None:
        """Block the host until everything that was submitted is done."""
        if self._streams:
            torch.cuda.synchronize(self.device)
