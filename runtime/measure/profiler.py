"""Named ranges around what a session does, for Nsight Systems and torch's profiler.

Nothing of it is in the loop: ranges are put around a session's methods when a profiler is there,
and a session without one runs the very same code as if this module did not exist.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sdrt.runtime.session import Session

Emitter = Callable[[str], AbstractContextManager[Any]]
"""Makes the range of a name."""

NVTX_VARIABLE = "SDRT_NVTX"
"""1: emit NVTX ranges, 0: never. Unless set, they are emitted where a tool listens."""
LISTENING_VARIABLE = "NVTX_INJECTION64_PATH"
"""Set by Nsight Systems for the processes that it profiles."""
DOMAIN = "sdrt"

STEP = "AR step"
"""The range of one AR step's submission."""


def nvtx_emitter() -> Emitter | None:
    """Return NVTX ranges, by the package ``nvtx`` or else by torch's own; None without either."""
    try:
        import nvtx  # pyright: ignore[reportMissingImports]
    except ImportError:
        return torch.cuda.nvtx.range if torch.cuda.is_available() else None
    return lambda name: nvtx.annotate(name, domain=DOMAIN)


def _listening() -> Emitter | None:
    wanted = os.environ.get(NVTX_VARIABLE)
    if wanted == "0" or (wanted is None and LISTENING_VARIABLE not in os.environ):
        return None
    return nvtx_emitter()


_emitter: Emitter | None = _listening()


@contextmanager
def emitting(emitter: Emitter) -> Iterator[None]:
    """Give sessions that open inside the ``with`` block ranges of ``emitter``."""
    global _emitter
    before, _emitter = _emitter, emitter
    try:
        yield
    finally:
        _emitter = before


def span(name: str) -> AbstractContextManager[Any]:
    """Return the range of something that happens while a session opens."""
    return nullcontext() if _emitter is None else _emitter(name)


def attach_if_wanted(session: "Session") -> Callable[[], None]:
    """Put ranges around a new session's methods if a profiler is there.

    Returns:
        What takes them away again, so that nothing of the session refers to itself any more.
    """
    return (lambda: None) if _emitter is None else attach(session, _emitter)


def attach(session: "Session", emitter: Emitter) -> Callable[[], None]:
    """Put a range around each part of a session's AR steps.

    The ranges nest: the AR step; its tracks; in a track, the copies of frames and each op.

    Returns:
        What takes them away again.
    """
    replaced: list[tuple[Any, str, Any]] = []

    def wrap(owner: Any, method: str, name: str) -> None:
        function, own = getattr(owner, method), vars(owner).get(method)

        def ranged(*arguments: Any, **keywords: Any) -> Any:
            with emitter(name):
                return function(*arguments, **keywords)

        setattr(owner, method, ranged)
        replaced.append((owner, method, own))

    wrap(session, "submit", STEP)
    wrap(session, "receive", "wait for frames")
    wrap(session.host, "stage_in", "copy in")
    wrap(session.host, "stage_out", "copy out")
    for step in session.steps.steps:
        for track in step.tracks:
            wrap(track, "run", track.spec.name)
            for op in (*track.hand_over, *track.ops):
                wrap(op, "run", session.steps.label(op.spec))

    def detach() -> None:
        for owner, method, own in reversed(replaced):
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)
        replaced.clear()

    return detach
