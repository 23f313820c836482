"""FP8 linears of the DiT: which there are, who can run them, and what quantising does to them."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sdrt.export.errors import BackendError

GROUPS = {
    "qkv": "self_attn.qkv",
    "attn_o": "self_attn.o",
    "cross_q": "cross_attn.q",
    "cross_o": "cross_attn.o",
    "ffn_up": "ffn.0",
    "ffn_down": "ffn.2",
}
"""Group -> linear of a block."""
ARCHITECTURES = ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121")
"""Those with FP8 tensor cores."""
LARGEST = 448.0
"""Of e4m3."""
LEAST_SCALE = 2.0**-14
"""The least normal number of float16; zeros have no scale of their own."""


def choose_groups(text: str | None) -> tuple[str, ...]:
    """Return the groups of ``ffn_up,ffn_down``, of ``all``, or none.

    Raises:
        BackendError: a group does not exist.
    """
    if text is None:
        return ()
    names = list(GROUPS) if text == "all" else text.split(",")
    for name in names:
        if name not in GROUPS:
            known = ", ".join(GROUPS)
            raise BackendError(f"--fp8 {text}: no such group as {name!r}; use all, or of {known}")
    return tuple(group for group in GROUPS if group in names)


def check_fp8(
    precision: str,
    architectures: Sequence[str],
) -> None:
    """Refuse FP8 in full precision, or for cards that have none.

    Args:
        architectures: what is built for, such as ``sm_89``.
    Raises:
        BackendError: it names what stands in the way.
    """
    if precision == "fp32":
        raise BackendError("--fp8: the preset's precision is fp32; use --set precision=bf16")
    if lacking := [name for name in architectures if name not in ARCHITECTURES]:
        raise BackendError(
            f"--fp8: {', '.join(lacking)} has no FP8; it takes one of {', '.join(ARCHITECTURES)}"
        )


def is_quantised(weight: str, groups: Sequence[str]) -> bool:
    """Tell whether the linear of a weight, such as ``block.3.ffn.0.weight``, is in a group."""
    found = re.fullmatch(r"block\.\d+\.(.+)\.weight", weight)
    return found is not None and found[1] in {GROUPS[group] for group in groups}


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight ``[O, C]`` as e4m3 and a scale ``[O]`` an output channel, in its dtype."""
    scale = weight.float().abs().amax(dim=1) / LARGEST
    scale = scale.clamp_min(LEAST_SCALE).to(weight.dtype)
    return _to_e4m3(weight, scale.unsqueeze(1)), scale


def input_scale(largest: float, dtype: torch.dtype) -> Tensor:
    """Return the static scale of a linear's input, 0-D, from the largest value it had."""
    return torch.tensor(max(largest / LARGEST, LEAST_SCALE)).to(dtype)


def through_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """Return what quantising to e4m3 and back leaves of ``x``, in its dtype."""
    return (_to_e4m3(x, scale).float() * scale.float()).to(x.dtype)


def _to_e4m3(x: Tensor, scale: Tensor) -> Tensor:
    # The conversion makes NaN of what is too large; TensorRT saturates.
    return (x.float() / scale.float()).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


class Linears(TorchFunctionMode):
    """Inside this context, a module's linears run as ``rule`` has it, however they are called."""

    def __init__(
        self, module: nn.Module, names: Mapping[str, str], rule: Callable[..., tuple]
    ) -> None:
        """Choose linears.

        Args:
            names: parameter of ``module`` -> the name that ``rule`` knows the weight by.
            rule: ``(name, input, weight)`` -> the input and the weight that are used instead.
        """
        super().__init__()
        parameters = dict(module.named_parameters())
        self._names = {id(parameters[own]): name for own, name in names.items()}
        self._rule = rule

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = self._names.get(id(args[1])) if func is F.linear else None
        if name is not None:
            args = (*self._rule(name, *args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))
