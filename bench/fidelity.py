"""Fidelity of an engine: replay against direct calls, packages against the eager modules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdrt.bench.eager import eager_session
from sdrt.bench.frames import chunks_for
from sdrt.engine.config import from_dict
from sdrt.runtime.program import load_programs
from sdrt.runtime.session import Session

PROMPT = "neon discs"


@torch.inference_mode()
def measure_fidelity(directory: Path, session: Session, chunks: int) -> dict[str, Any]:
    """Stream the same input and noise through four sessions and compare latents and frames.

    The sessions are the engine (captured graphs), the engine without graphs, the eager modules in
    the same precision, and the eager modules in float32. They run one after another, and all but
    the last share one copy of the weights.

    Returns:
        ``replay_equals_direct``; per AR step the relative errors ``||a - b|| / ||b||`` of the
        latents and the PSNR of the frames, for packages against eager, and for both against
        float32.
    """
    device, preset = session.device, from_dict(session.manifest.preset)
    replayed = _record(session, chunks)
    programs = load_programs(directory, session.manifest, device)
    direct = Session(session.manifest, programs, session.weights, device, directory, capture=False)
    called = _record(direct, chunks)
    direct.close()
    equal = all(
        torch.equal(a, b) and np.array_equal(x, y)
        for (a, x), (b, y) in zip(replayed, called, strict=True)
    )
    eager = eager_session(preset, session.weights, str(device))
    same = _record(eager, chunks)
    eager.close()
    exact_preset = from_dict(session.manifest.preset | {"precision": "fp32"})
    exact = eager_session(exact_preset, _float32(session.weights), str(device))
    reference = _record(exact, chunks)
    exact.close()
    return {
        "replay_equals_direct": equal,
        "packages_vs_eager": _compare(replayed, same),
        "packages_vs_fp32": _compare(replayed, reference),
        "eager_vs_fp32": _compare(same, reference),
    }


def _record(session: Session, chunks: int) -> list[tuple[Tensor, np.ndarray]]:
    """Return latents and frames of each AR step."""
    session.prepare(PROMPT, seed=0)
    records = []
    source = chunks_for(session)
    for index in range(chunks):
        frames = session.step(next(source)).copy()
        names = ["latent"] if "latent" in session.buffers else ["latent.first", "latent.steady"]
        latent = session.buffers[names[min(index, len(names) - 1)]]
        records.append((latent.float().clone(), frames))
    return records


def _compare(
    ours: list[tuple[Tensor, np.ndarray]], reference: list[tuple[Tensor, np.ndarray]]
) -> dict[str, list[float]]:
    latents, psnr = [], []
    for (latent, frames), (expected, expected_frames) in zip(ours, reference, strict=True):
        latents.append(float((latent - expected).norm() / expected.norm()))
        if len(frames):
            difference = frames.astype(np.float64) - expected_frames
            mse = max(float(np.mean(difference**2)), 1e-10)
            psnr.append(10 * float(np.log10(255**2 / mse)))
    return {"latent_error": latents, "frames_psnr_db": psnr}


def _float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with half-precision tensors widened, in the same strides."""
    return {
        name: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
        for name, tensor in weights.items()
    }
