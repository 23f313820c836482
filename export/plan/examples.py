"""Arguments that a package is traced with and tried out on."""

import torch
from torch import Tensor

from sdrt.runtime.directory.specs import TensorSpec


def example_arguments(specs: tuple[TensorSpec, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Return one distinct tensor an argument; shared ones would be merged into one input.

    Floating values are small noise, so that the packages can also be run on them; integers are
    zeros, which every index argument accepts.
    """
    generator = torch.Generator(device).manual_seed(0)
    tensors = []
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        tensor = torch.empty_strided(spec.shape, spec.stride, dtype=dtype, device=device)
        if dtype.is_floating_point:
            tensor.normal_(0, 0.02, generator=generator)
        else:
            tensor.zero_()
        tensors.append(tensor)
    return tuple(tensors)
