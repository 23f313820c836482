"""Runs of ops that both flows have."""

from collections.abc import Iterable, Sequence

from sdrt.export.plan.draft import Draft, table
from sdrt.runtime.directory.specs import Op, Ref, Replay, copy, noise, replay, weight


def replays(stages: Iterable[str]) -> tuple[Replay, ...]:
    """Return the ops that run stages in turn."""
    return tuple(replay(stage) for stage in stages)


def noises(targets: Iterable[Ref]) -> tuple[Op, ...]:
    """Return the ops that fill buffers with noise."""
    return tuple(noise(target) for target in targets)


def denoise_steps(
    draft: Draft,
    noisy: Ref,
    latent: Ref,
    row: Sequence[Ref],
    drawn: Sequence[Ref],
    stages: Sequence[str],
) -> list[Op]:
    """Return all denoise steps of one chunk, one after another, from ``noisy`` to ``latent``.

    Args:
        row: where the stages read a step's row of the solver's columns.
        drawn: the noise that the solver takes, if it draws any.
        stages: of one pass of the DiT.
    """
    ops: list[Op] = []
    for step in range(draft.steps):
        if step:
            ops.append(copy(latent, noisy))
        rows = (weight(table(column), (step, step + 1)) for column in draft.columns)
        ops += [copy(source, target) for source, target in zip(rows, row, strict=True)]
        ops += [*noises(drawn), *replays(stages)]
    return ops
