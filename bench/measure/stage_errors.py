"""The error that each stage adds: given the inputs and states of a float32 stream, call by call."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sdrt.kernels.measure import relative_error
from sdrt.runtime.measure.profiler import STAGES
from sdrt.runtime.session import Session

StageErrors = dict[str, dict[str, list[float]]]
"""Stage -> session -> relative error of its result, for each steady call."""


@contextmanager
def compared_stages(exact: Session, others: Mapping[str, Session]) -> Iterator[StageErrors]:
    """Let ``others`` run along: before a steady stage of ``exact``, they get all of its buffers.

    So nothing accumulates: a stage's error is what it makes of the same inputs and states, once
    rounded to its precision. Compared are the encoder's latents, the latents at the next noise
    level, the decoder's pixels and, of a clean pass, the K and V that it writes.

    Args:
        others: sessions with the buffers of ``exact``, in any precision; their streams are lost.
    Yields:
        The errors found so far.
    """
    found: StageErrors = {}
    run = exact.stages.run

    def compared(group: str, phase: str) -> None:
        if group not in STAGES or phase != "steady":
            return run(group, phase)
        made: dict[str, Tensor] = {}
        _synchronize(exact)
        for name, session in others.items():
            for buffer, value in exact.buffers.items():
                session.buffers[buffer].copy_(value)
            session.stages.run(group, phase)
            made[name] = _result(session, group, phase).float().clone()
        _synchronize(exact)
        run(group, phase)
        expected = _result(exact, group, phase)
        for name, result in made.items():
            errors = found.setdefault(group, {}).setdefault(name, [])
            errors.append(relative_error(result, expected))

    owner: Any = exact.stages
    owner.run = compared
    try:
        yield found
    finally:
        del owner.run


def _result(session: Session, group: str, phase: str) -> Tensor:
    buffers = session.buffers
    if group == "finalize":
        rows = buffers["ring_rows.chunk"]
        rings = [
            ring for name, ring in buffers.items() if name.startswith("ring.") and ring.ndim == 4
        ]
        return torch.stack([ring[rows].float() for ring in rings])
    if group == "diffuse":
        return buffers["latent" if "latent" in buffers else "latent.steady"]
    return buffers[f"{'latents_in' if group == 'encode' else 'pixels_out'}.{phase}"]


def _synchronize(session: Session) -> None:
    """Wait for every stream: the sessions have streams of their own."""
    if session.device.type == "cuda":
        torch.cuda.synchronize(session.device)
