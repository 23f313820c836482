"""Fidelity of an engine: replay against direct calls, packages against the eager modules."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sdrt.bench.measure.eager import eager_session, engine_weights
from sdrt.bench.measure.frames import chunks_for
from sdrt.bench.measure.quality import psnr, ssim
from sdrt.bench.measure.stage_errors import compared_stages
from sdrt.bench.measure.stream import PROMPT
from sdrt.export.recipe import Recipe
from sdrt.kernels.measure import relative_error
from sdrt.runtime.session import Session

Recorded = list[tuple[Tensor, Tensor]]
"""Latents and uint8 frames of each AR step."""


@torch.inference_mode()
def measure_fidelity(session: Session, chunks: int) -> dict[str, Any]:
    """Stream the same input and noise through four sessions and compare latents and frames.

    The sessions are the engine (captured graphs), the engine without graphs, the eager modules in
    the same precision, and the eager modules in float32. They run one after another, and all but
    the last share one copy of the weights, except for those that are part of TensorRT plans: they
    are converted once more. FP8 is not, so that its loss is in the errors. Each streams freely:
    what an early chunk lost is in the later ones, too. Along with the last one, the engine and the
    eager modules run once more, each stage from its inputs and states.

    Returns:
        ``replay_equals_direct``; for packages against eager, and for both against float32, per AR
        step ``latent_error`` ``||a - b|| / ||b||``, and ``psnr_db`` and ``ssim`` of the frames of
        those steps that made any; ``stages_vs_fp32`` as :func:`compared_stages` finds it.
    """
    device = session.device
    recipe = Recipe.model_validate(session.manifest.recipe)
    replayed = _record(session, chunks)
    called = _record_direct(session, chunks)
    equal = all(
        torch.equal(a, b) and torch.equal(x, y)
        for (a, x), (b, y) in zip(replayed, called, strict=True)
    )
    weights = engine_weights(session.engine)
    eager = eager_session(recipe, weights, str(device))
    same = _record(eager, chunks)
    exact = eager_session(recipe.in_precision("fp32"), _float32(weights), str(device))
    with (
        _without_tf32(),
        compared_stages(exact, {"packages": session, "eager": eager}) as stages,
    ):
        reference = _record(exact, chunks)
    exact.close()
    eager.close()
    return {
        "chunks": chunks,
        "replay_equals_direct": equal,
        "packages_vs_eager": _compare(replayed, same),
        "packages_vs_fp32": _compare(replayed, reference),
        "eager_vs_fp32": _compare(same, reference),
        "stages_vs_fp32": stages,
    }


def _record_direct(session: Session, chunks: int) -> Recorded:
    """Record the engine without graphs; its buffers are freed, which a large model needs."""
    with session.engine.session(capture=False) as direct:
        return _record(direct, chunks)


def _record(session: Session, chunks: int) -> Recorded:
    session.prepare(PROMPT, seed=0)
    records = []
    source = chunks_for(session)
    for index in range(chunks):
        frames = torch.from_numpy(session.step(next(source)).copy())
        latent = session.steps.result("diffuse", index)
        records.append((latent.float().clone(), frames.to(session.device)))
    return records


def _compare(ours: Recorded, reference: Recorded) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"latent_error": [], "psnr_db": [], "ssim": []}
    for (latent, frames), (expected, expected_frames) in zip(ours, reference, strict=True):
        found["latent_error"].append(relative_error(latent, expected))
        if len(frames):
            found["psnr_db"].append(psnr(frames, expected_frames))
            found["ssim"].append(ssim(frames, expected_frames))
    return found


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Let cuDNN's convolutions keep all of float32, which they do not by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with half-precision tensors widened, in the same strides."""
    return {
        name: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        for name, tensor in weights.items()
    }
