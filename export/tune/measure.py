"""Which implementation of an op is the fastest here: timed before a build, kept in the manifest."""

import contextlib
import statistics
from collections.abc import Hashable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from sdrt.engine.convs import FUSED
from sdrt.engine.preset.preset import Preset
from sdrt.export.backends import BACKENDS
from sdrt.export.plan.pipeline import DTYPES
from sdrt.export.recipe import Recipe
from sdrt.export.tune.taehv import taehv_questions
from sdrt.export.tune.wan_vae import Candidates, Question, vae_questions
from sdrt.kernels import ring_attention as attention
from sdrt.kernels.measure import capture, replay_ms
from sdrt.runtime.directory.manifest import Choice

OP_MODULES = {
    attention.COMPILED: "sdrt.kernels.ring_attention",
    FUSED: "sdrt.kernels.causal_conv",
}
"""Implementations that are compiled ops -> the module that registers them."""

STAGES = {
    "attention.": "dit",
    "encoder.": "vae_encoder",
    "decoder.": "vae_decoder",
    "taehv.encoder.": "taehv_encoder",
    "taehv.decoder.": "taehv_decoder",
}
"""What a choice's name starts with -> the stage whose backend it depends on."""

CALLS = 4
REPEATS = 15
"""Replays of one captured graph of ``CALLS`` calls; the median counts."""


class ChoiceError(RuntimeError):
    """Nothing can be chosen; the message says why."""


def op_modules(choices: Mapping[str, Choice]) -> tuple[str, ...]:
    """Return the modules that register the ops that packages with these choices call.

    TAEHV's fused layers are Triton kernels, which packages hold themselves.
    """
    compiled = {name: c for name, c in choices.items() if not name.startswith("taehv.")}
    used = {choice.chosen for choice in compiled.values()}
    return tuple(sorted(OP_MODULES[name] for name in used & OP_MODULES.keys()))


@torch.inference_mode()
def choose(recipe: Recipe, device: torch.device) -> dict[str, Choice]:
    """Time every candidate at the preset's shapes on a CUDA device; return the fastest.

    It takes a few seconds; layers that are alike are asked for once. Ops of stages whose backend
    chooses for itself have no choice.
    """
    answers: dict[Hashable, Choice] = {}
    choices = {}
    for name, kind, candidates in questions(recipe.preset, device):
        stage = next(stage for start, stage in STAGES.items() if name.startswith(start))
        if not BACKENDS[recipe.backends[stage]].tunes:
            continue
        if kind not in answers:
            answers[kind] = fastest(candidates())
        choices[name] = answers[kind]
    return choices


def fastest(candidates: Candidates) -> Choice:
    """Return the candidate that takes the least time; they are timed in turn, interleaved.

    Those that need more memory than there is are left out.

    Raises:
        ChoiceError: no candidate is left.
    """
    if len(candidates) == 1:
        return Choice(chosen=next(iter(candidates)), ms={})
    graphs = {}
    for name, run in candidates.items():
        with contextlib.suppress(torch.OutOfMemoryError):
            graphs[name] = capture([run] * CALLS, warm_up=[run] * 2)
    if not graphs:
        names = ", ".join(candidates)
        raise ChoiceError(f"the GPU's memory is too small for any of {names} at this preset's size")
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(REPEATS):
        for name, graph in graphs.items():
            times[name].append(replay_ms(graph) / CALLS)
    ms = {name: round(statistics.median(values), 4) for name, values in times.items()}
    return Choice(chosen=min(ms, key=lambda name: ms[name]), ms=ms)


def questions(preset: Preset, device: torch.device) -> Iterator[Question]:
    """Yield each op and shape of a preset's packages that has a choice."""
    yield from _attention_questions(preset, device)
    yield from vae_questions(preset, device, DTYPES[preset.precision])
    yield from taehv_questions(preset, device, DTYPES[preset.precision])


def _attention_questions(preset: Preset, device: torch.device) -> Iterator[Question]:
    dit, stream, dtype = preset.dit, preset.stream, DTYPES[preset.precision]
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        heads = (dit.num_heads, dit.head_dim)
        return torch.randn(*shape, *heads, generator=generator, device=device, dtype=dtype)

    def ask(place: str, rows: int, frames: int, keys: int, masked: bool) -> Question:
        kind = (rows, frames, keys, masked)
        return f"attention.{place}", kind, partial(candidates, *kind)

    def candidates(rows: int, frames: int, keys: int, masked: bool) -> Candidates:
        q, k, v = (
            noise(rows, frames * stream.tokens_per_frame),
            noise(rows, keys),
            noise(rows, keys),
        )
        valid = torch.full((rows,), keys, device=device) if masked else None
        return {
            name: lambda name=name: attention.ring_attention(q, k, v, valid, name)
            for name in attention.implementations(q, valid)
        }

    batched = preset.flow == "stream-batch"
    rows, chunk = len(preset.schedule.steps) if batched else 1, stream.chunk_latent_frames
    window = stream.window_frames * stream.tokens_per_frame
    first = preset.first_chunk_latent_frames
    if batched:
        yield ask("ring.first", 1, first, window, True)
        yield ask("text.first", 1, first, dit.text_len, False)
    yield ask("ring.filling", rows, chunk, window, True)
    yield ask("ring.steady", rows, chunk, window, False)
    # Every row sees the same text, so the rows are one query sequence.
    yield ask("text.chunk", 1, rows * chunk, dit.text_len, False)
