"""TAEHV's packages on CUDA with its first and last layers fused, in both phases."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdrt.engine.preset.preset import load
from sdrt.engine.taehv.model import FIRST, FUSED, LAST
from sdrt.export.inductor.package import compile_package
from sdrt.export.plan.plan import PlannedPackage
from sdrt.export.recipe import Recipe
from sdrt.kernels.dispatch import references
from sdrt.runtime.programs.aoti import AotiProgram

CUDA = torch.device("cuda")


def arguments(planned: PlannedPackage) -> list[Tensor]:
    """Return noise for every argument; weights keep the size of what they are applied to."""
    generator = torch.Generator(CUDA).manual_seed(1)
    weights, tensors = len(planned.arguments) - len(planned.module.weight_names), []
    for place, spec in enumerate(planned.arguments):
        dtype = getattr(torch, spec.dtype)
        tensor = torch.empty_strided(spec.shape, spec.stride, dtype=dtype, device=CUDA)
        scale = 0.5
        if place >= weights and tensor.ndim == 4:
            scale = (2 / tensor[0].numel()) ** 0.5
        tensors.append(tensor.normal_(0, scale, generator=generator))
    return tensors


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("phase", ["first", "steady"])
@pytest.mark.parametrize("coder", ["taehv_encoder", "taehv_decoder"])
def test_a_package_is_as_good_as_its_eager_module(
    coder, phase, tmp_path: Path, relative_error, monkeypatch
):
    """Reference: the plain module in float32; at most twice the error that it has in bf16."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    preset = load("tiny", ["precision=bf16"])
    plan = Recipe.of(preset, "cuda", how={FIRST: FUSED, LAST: FUSED}).plan()
    planned = plan.packages[f"{coder}.{phase}"]
    compile_package(planned, tmp_path / "p.pt2", CUDA)
    ours, eager = arguments(planned), arguments(planned)
    exact = [tensor.to(torch.float32, copy=True) for tensor in eager]
    with torch.inference_mode():
        AotiProgram(tmp_path / "p.pt2", 0).run(ours)
        with references():
            planned.module(*eager)
            planned.module(*exact)
    written = slice(planned.module.inputs, len(ours) - len(planned.module.weight_names))
    for got, theirs, reference in zip(ours[written], eager[written], exact[written], strict=True):
        assert relative_error(got, reference) <= 2 * relative_error(theirs, reference)
