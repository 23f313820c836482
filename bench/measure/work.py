"""The arithmetic that each stage of a preset cannot do without: matrix products, attention,
convolutions, with their shapes."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdrt.bench.baseline.coder import BASELINES
from sdrt.engine.coder import Coder
from sdrt.engine.preset.preset import Preset


@dataclass(frozen=True)
class Gemm:
    """``[m, k] @ [k, n]``."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def weight_elements(self) -> int:
        return self.n * self.k

    def __str__(self) -> str:
        return f"gemm {self.m}x{self.n}x{self.k}"


@dataclass(frozen=True)
class Attention:
    """Softmax attention of ``batch`` rows."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int

    @property
    def flops(self) -> float:
        return 4.0 * self.batch * self.heads * self.queries * self.keys * self.width

    @property
    def weight_elements(self) -> int:
        """Keys and values: read from memory as weights are."""
        return 2 * self.batch * self.heads * self.keys * self.width

    def __str__(self) -> str:
        return (
            f"attention {self.batch}x{self.heads} heads, {self.queries} x {self.keys}, "
            f"width {self.width}"
        )


@dataclass(frozen=True)
class Conv:
    """A convolution of padded input ``[N, C, (T,) H, W]`` with weight ``[O, C, (t,) h, w]``."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def out(self) -> tuple[int, ...]:
        sizes = zip(self.x[2:], self.weight[2:], self.stride, strict=True)
        return (self.x[0], self.weight[0], *((x - w) // s + 1 for x, w, s in sizes))

    @property
    def flops(self) -> float:
        return 2.0 * math.prod(self.out) * math.prod(self.weight[1:])

    @property
    def weight_elements(self) -> int:
        return math.prod(self.weight)

    def __str__(self) -> str:
        x, weight = ("x".join(map(str, shape)) for shape in (self.x, self.weight))
        return f"conv {x} * {weight}"


Op = Gemm | Attention | Conv


def stage_work(preset: Preset) -> dict[str, Counter[Op]]:
    """Return how often each operation runs in a steady AR step, by stage (``encode``, …).

    Element-wise work is left out: at best it is fused and free. The text side runs once a prompt.
    """
    steps = len(preset.schedule.steps)
    work: dict[str, Counter[Op]] = {}
    if preset.input_coder is not None:
        work["encode"] = _coder_work(preset, preset.input_coder, encode=True)
    if preset.flow == "stream-batch":
        work["diffuse"] = _dit_pass(preset, rows=steps)
    else:
        once = _dit_pass(preset, rows=1)
        work["diffuse"] = Counter({op: count * steps for op, count in once.items()})
        if preset.schedule.clean_pass:
            work["finalize"] = once
    work["decode"] = _coder_work(preset, preset.output_coder, encode=False)
    return work


def _dit_pass(preset: Preset, rows: int) -> Counter[Op]:
    dit, stream = preset.dit, preset.stream
    per_row = stream.chunk_latent_frames * preset.tokens_per_frame
    tokens, dim, layers = rows * per_row, dit.dim, dit.num_layers
    patch = dit.in_dim * math.prod(dit.patch_size)
    heads, width = dit.num_heads, dit.head_dim
    keys = stream.window_frames * preset.tokens_per_frame
    return Counter(
        {
            Gemm(tokens, dim, patch): 1,
            Gemm(tokens, patch, dim): 1,
            Gemm(rows, 6 * dim, dim): 1,
            Gemm(tokens, 3 * dim, dim): layers,  # q, k and v
            Gemm(tokens, dim, dim): 3 * layers,  # o; the cross-attention's q and o
            Gemm(tokens, dit.ffn_dim, dim): layers,
            Gemm(tokens, dim, dit.ffn_dim): layers,
            Attention(rows, heads, per_row, keys, width): layers,
            Attention(1, heads, tokens, dit.text_len, width): layers,
        }
    )


def _coder_work(preset: Preset, coder: Coder, encode: bool) -> Counter[Op]:
    """Return a steady call's operations, recorded from the plain model without data."""
    caches: dict[str, Tensor] = {}
    with torch.device("meta"), torch.no_grad():
        call, start, x = BASELINES[coder.name].steady_call(preset, encode)
        call(start, caches)  # a stream's first frame differs
        with _Recording() as recording:
            call(x, caches)
    return recording.found


class _Recording(TorchFunctionMode):
    """Counts convolutions and attention as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Op] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("conv2d", "conv3d"):
            self._conv(*args, **kwargs)
        elif name == "scaled_dot_product_attention":
            q, k = args[:2]
            self.found[Attention(q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3])] += 1
        return func(*args, **kwargs)

    def _conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        *_: Any,
    ) -> None:
        dims = weight.ndim - 2
        strides = tuple(stride) if isinstance(stride, (tuple, list)) else (stride,) * dims
        pads = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * dims
        space = (size + 2 * pad for size, pad in zip(x.shape[2:], pads, strict=True))
        self.found[Conv((*x.shape[:2], *space), tuple(weight.shape), strides)] += 1
