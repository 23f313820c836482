"""The CUDA streams of a session and the events that order what runs on them."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from sdrt.runtime.directory.order import Event

STREAMS = ("encode", "diffuse", "decode")
"""Their names, by what of the AR step runs on them."""


class Streams:
    """Streams by name; on a CPU there are none, and ops run as they are called.

    While the DiT works on one chunk, the next can be encoded and the last decoded: kernels of one
    stream fill multiprocessors that the tail of another stream's kernel leaves idle.
    """

    def __init__(self, device: torch.device, events: Iterable[Event], overlap: bool = True) -> None:
        """Make the streams; without ``overlap`` it is one for all, which needs no events.

        Args:
            events: all that will be recorded.
        """
        self.device = device
        self._streams: dict[str, torch.cuda.Stream] = {}
        self.are_ordered = device.type == "cuda" and overlap
        """Whether there are several, so that events have to be recorded and waited for."""
        if device.type == "cuda" and not overlap:
            self._streams = dict.fromkeys(STREAMS, torch.cuda.Stream(device))
        elif device.type == "cuda":
            # The later the stage, the sooner its kernels run: what was begun first ends first.
            self._streams = {
                name: torch.cuda.Stream(device, priority=-order)
                for order, name in enumerate(STREAMS)
            }
        self._events = {event: torch.cuda.Event() for event in events if self.are_ordered}

    def stream(self, name: str) -> torch.cuda.Stream | None:
        """Return a stream; None on a CPU."""
        return self._streams[name] if self._streams else None

    def on(self, name: str) -> AbstractContextManager[Any]:
        """Make a stream the current one inside a ``with`` block."""
        stream = self.stream(name)
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def record(self, event: Event) -> None:
        """Record that the current stream has come this far.

        Raises:
            KeyError: the event is not one of those that the streams were made for.
        """
        self._events[event].record()

    def wait(self, event: Event) -> None:
        """Let the current stream wait for the last :meth:`record` of ``event``, if there was one.

        Raises:
            KeyError: nobody ever records such an event.
        """
        self._events[event].wait()

    def synchronize(self) -> None:
        """Block the host until everything that was submitted is done."""
        if self._streams:
            torch.cuda.synchronize(self.device)
