"""Runs of ops that both flows have."""

from collections.abc import Iterable, Sequence

from sdrt.runtime.directory.specs import Op, Ref, Replay, copy, noise, replay, weight


def replays(stages: Iterable[str]) -> tuple[Replay, ...]:
    """Return the ops that run stages in turn."""
    return tuple(replay(stage) for stage in stages)


def denoise_steps(
    steps: int, noisy: Ref, latent: Ref, row: tuple[Ref, Ref, Ref], stages: Sequence[str]
) -> list[Op]:
    """Return all denoise steps of one chunk, one after another, from ``noisy`` to ``latent``.

    Args:
        row: where the stages read a step's timestep, next sigma and noise.
        stages: of one pass of the DiT.
    """
    timestep, sigma, renoise = row
    ops: list[Op] = []
    for step in range(steps):
        if step:
            ops.append(copy(latent, noisy))
        ops += [
            copy(weight("schedule.timesteps", (step, step + 1)), timestep),
            copy(weight("schedule.next_sigmas", (step, step + 1)), sigma),
            noise(renoise),
            *replays(stages),
        ]
    return ops
