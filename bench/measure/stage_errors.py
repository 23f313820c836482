"""The error that each stage adds: given the inputs and states of a float32 stream, call by call."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor

from sdrt.kernels.measure import relative_error
from sdrt.runtime.directory.specs import Replay, StageSpec
from sdrt.runtime.session import Session
from sdrt.runtime.step import BoundOp

StageErrors = dict[str, dict[str, list[float]]]
"""Track -> session -> relative error of its result, for each steady call."""


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
    passes = list(_steady_passes(exact))
    before = [(op, op.run) for ops in passes for op in ops]
    for ops in passes:
        _Comparison(exact, others, ops, found).attach()
    try:
        yield found
    finally:
        for op, run in before:
            op.run = run


def _steady_passes(session: Session) -> Iterator[list[BoundOp]]:
    """Yield the stages that are replayed one after another, such as the ranges of the DiT."""
    for step in session.steps.steps:
        for track in step.tracks:
            for is_replay, group in groupby(track.ops, lambda op: isinstance(op.spec, Replay)):
                ops = list(group)
                if is_replay and _stage(session, ops[-1]).phase == "steady":
                    yield ops


def _stage(session: Session, op: BoundOp) -> StageSpec:
    assert isinstance(op.spec, Replay)
    return session.steps.stages[op.spec.stage].spec


class _Comparison:
    """Runs the stages of some ops in other sessions too, before and after ``exact`` has."""

    def __init__(
        self,
        exact: Session,
        others: Mapping[str, Session],
        ops: list[BoundOp],
        found: StageErrors,
    ) -> None:
        self._exact, self._others, self._ops, self._found = exact, others, ops, found
        self._stages = [_stage(exact, op) for op in ops]
        self._made: dict[str, Tensor] = {}

    def attach(self) -> None:
        """Put the comparison around the ops."""
        first, last = self._ops[0], self._ops[-1]
        run_first = first.run
        first.run = lambda: (self._begin(), run_first())
        run_last = last.run
        last.run = lambda: (run_last(), self._end())

    def _begin(self) -> None:
        """Give the others what the exact session has, and let them run."""
        _synchronize(self._exact)
        for name, session in self._others.items():
            for buffer, value in self._exact.buffers.items():
                session.buffers[buffer].copy_(value)
            for stage in self._stages:
                session.steps.stages[stage.name].run()
            self._made[name] = _result(session, self._stages[-1]).float().clone()
        _synchronize(self._exact)

    def _end(self) -> None:
        stage = self._stages[-1]
        expected = _result(self._exact, stage)
        for name, result in self._made.items():
            errors = self._found.setdefault(stage.group, {}).setdefault(name, [])
            errors.append(relative_error(result, expected))


def _result(session: Session, stage: StageSpec) -> Tensor:
    """Return what a stage makes, or the keys and values that it wrote.

    Of rings that are not written by rows, which TensorRT's are not, it is all that they hold.
    """
    if stage.makes is not None:
        return session.buffers[stage.makes.name]
    specs = session.manifest.buffers
    named = {ref.name for call in stage.calls for ref in call.arguments if ref.kind == "buffer"}
    rings = [session.buffers[name] for name in sorted(named) if specs[name].role == "kv"]
    rows = [session.buffers[name] for name in named if specs[name].role == "ring_rows"]
    return torch.stack([(ring[rows[0]] if rows else ring).float() for ring in rings])


def _synchronize(session: Session) -> None:
    """Wait for every stream: the sessions have streams of their own."""
    if session.device.type == "cuda":
        torch.cuda.synchronize(session.device)
