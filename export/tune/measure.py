"""Which implementation of an op is the fastest here: timed before a build, kept in the manifest."""

import contextlib
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping

import torch

from sdrt.engine.convs import FUSED
from sdrt.engine.preset.preset import Preset
from sdrt.export.backends import BACKENDS
from sdrt.export.plan.draft import DTYPES
from sdrt.export.recipe import Recipe
from sdrt.export.tune.attention import attention_tunables
from sdrt.export.tune.taehv import taehv_tunables
from sdrt.export.tune.tunable import Candidates, Tunable
from sdrt.export.tune.wan_vae import wan_vae_tunables
from sdrt.kernels.errors import SdrtError
from sdrt.kernels.measure import capture, replay_ms
from sdrt.kernels.ring_attention import COMPILED
from sdrt.runtime.directory.contents import Choice

OP_MODULES = {COMPILED: "sdrt.kernels.ring_attention", FUSED: "sdrt.kernels.causal_conv"}
"""Implementations that are compiled ops -> the module that registers them."""

CODER_TUNABLES: dict[str, Callable[[Preset, torch.device, torch.dtype], Iterator[Tunable]]] = {
    "wan-vae": wan_vae_tunables,
    "taehv": taehv_tunables,
}
"""Autoencoder -> what yields its tunables, of those directions that the preset has."""

CALLS = 4
REPEATS = 15
"""Replays of one captured graph of ``CALLS`` calls; the median counts."""


class TuneError(SdrtError):
    """No implementation can be chosen; the message says why."""


def op_modules(choices: Mapping[str, Choice]) -> tuple[str, ...]:
    """Return the modules that register the ops that packages with these choices call."""
    used = {choice.chosen for choice in choices.values()}
    return tuple(sorted(OP_MODULES[name] for name in used & OP_MODULES.keys()))


@torch.inference_mode()
def tune(recipe: Recipe, device: torch.device) -> dict[str, Choice]:
    """Time every candidate at the preset's shapes on a CUDA device; return the fastest by place.

    It takes a few seconds; places of the same kind are timed once. Those in stages whose backend
    chooses for itself have no choice.
    """
    fastest_of: dict[Hashable, Choice] = {}
    choices = {}
    for place, stage, kind, candidates in tunables(recipe.preset, device):
        if not BACKENDS[recipe.backends[stage]].tunes:
            continue
        if kind not in fastest_of:
            fastest_of[kind] = fastest(candidates())
        choices[place] = fastest_of[kind]
    return choices


def fastest(candidates: Candidates) -> Choice:
    """Return the candidate that takes the least time; they are timed in turn, interleaved.

    Those that need more memory than there is are left out.

    Raises:
        TuneError: no candidate is left.
    """
    if len(candidates) == 1:
        return Choice(chosen=next(iter(candidates)), ms={})
    graphs = {}
    for name, run in candidates.items():
        with contextlib.suppress(torch.OutOfMemoryError):
            graphs[name] = capture([run] * CALLS, warm_up=[run] * 2)
    if not graphs:
        names = ", ".join(candidates)
        raise TuneError(f"the GPU's memory is too small for any of {names} at this preset's size")
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(REPEATS):
        for name, graph in graphs.items():
            times[name].append(replay_ms(graph) / CALLS)
    ms = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return Choice(chosen=min(ms, key=lambda name: ms[name]), ms=ms)


def tunables(preset: Preset, device: torch.device) -> Iterator[Tunable]:
    """Yield each place of a preset's packages that has a choice of implementations."""
    dtype = DTYPES[preset.precision]
    yield from attention_tunables(preset, device, dtype)
    for coder in preset.coders:
        yield from CODER_TUNABLES[coder.name](preset, device, dtype)
