"""The roof of this device: its rates at each stage's own shapes, and the floor of every stage."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdrt.bench.measure.timing import Arguments, input_sets, milliseconds
from sdrt.bench.measure.work import Attention, Conv, Gemm, Op, stage_work
from sdrt.engine.preset.preset import Preset
from sdrt.export.plan.draft import DTYPES

BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
LARGE_GEMM = {"cuda": 8192, "cpu": 768}
FP8_CAPABILITY = (8, 9)
"""First compute capability with fp8 matrix units."""


def measure_roof(preset: Preset, device: torch.device) -> dict[str, Any]:
    """Measure the device's rates at a preset's shapes and derive the floor of each stage.

    A stage's floor is the larger of two times: its matrix products, attention and convolutions
    one after another, each as fast as the quickest library kernel runs it alone, and its weights,
    keys and values over the copy bandwidth. Element-wise work counts nothing: no version that
    uses these kernels is faster. ``bound_ms`` is harder still: the stage's operations at the rate
    of one large matrix product.

    Returns:
        ``copy_gb_s``; ``gemm`` with TFLOP/s of large products by type; ``stages`` by name with
        ``floor_ms``, ``bound_ms``, ``tflop`` and the operations measured; where there is fp8,
        also ``floor_fp8_ms``.
    """
    dtype = DTYPES[preset.precision]
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).mul_(0.5).to(kind)

    bench = _Bench(device, noise)
    work = stage_work(preset)
    times = {op: bench.time(op) for ops in work.values() for op in ops}
    fp8: dict[Op, float] = {}
    if bench.has_fp8:
        fp8 = {op: bench.fp8_gemm(op) for op in times if isinstance(op, Gemm) and _fits_fp8(op)}
    bandwidth = bench.copy_gb_s()
    size = LARGE_GEMM[device.type]
    large = Gemm(size, size, size)
    rate = large.flops / bench.time(large) / 1e9
    gemm = {preset.precision: rate}
    if bench.has_fp8:
        gemm["fp8"] = large.flops / bench.fp8_gemm(large) / 1e9
    stages = {}
    for stage, ops in work.items():
        moved = sum(op.weight_elements * count for op, count in ops.items()) * dtype.itemsize
        tflop = sum(op.flops * count for op, count in ops.items()) / 1e12
        memory_ms = moved / bandwidth / 1e6
        arithmetic_ms = sum(times[op] * count for op, count in ops.items())
        stages[stage] = {
            "floor_ms": max(memory_ms, arithmetic_ms),
            "memory_ms": memory_ms,
            "bound_ms": tflop / rate * 1e3,
            "tflop": tflop,
            "operations": [_row(op, count, times[op], fp8.get(op)) for op, count in ops.items()],
        }
        if fp8:
            quick = sum(min(times[op], fp8.get(op, times[op])) * n for op, n in ops.items())
            stages[stage]["floor_fp8_ms"] = max(memory_ms, quick)
    return {"copy_gb_s": bandwidth, "gemm_tflops": gemm, "stages": stages}


def _row(op: Op, count: int, ms: float, fp8_ms: float | None) -> dict[str, Any]:
    row = {"operation": str(op), "count": count, "ms": ms, "tflops": op.flops / ms / 1e9}
    return row if fp8_ms is None else row | {"fp8_tflops": op.flops / fp8_ms / 1e9}


def _fits_fp8(op: Gemm) -> bool:
    return op.n % 16 == 0 and op.k % 16 == 0


class _Bench:
    """Times single operations on one device."""

    def __init__(self, device: torch.device, noise: Callable[..., Tensor]) -> None:
        self.device, self.noise = device, noise
        self.has_fp8 = (
            device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
        )

    def time(self, op: Op) -> float:
        """Return the ms of the quickest way to run an operation."""
        match op:
            case Gemm():
                return self._gemm(op)
            case Attention():
                return self._attention(op)
            case Conv():
                return self._conv(op)

    def copy_gb_s(self) -> float:
        """Return the rate of a large copy, bytes read and written.

        An element-wise kernel does it: a copy captured in a graph goes to a slower copy engine.
        """
        source = torch.ones(COPY_BYTES[self.device.type] // 4, device=self.device)
        sets = [(torch.empty_like(source), source)] * 2
        return 2 * source.nbytes / milliseconds(_copy, sets, self.device) / 1e6

    def fp8_gemm(self, op: Gemm) -> float:
        """Return the ms of a product of e4m3 operands with one scale each."""
        one = torch.ones((), device=self.device)
        kind = torch.float8_e4m3fn

        def make() -> Arguments:
            return self.noise(op.m, op.k, kind=kind), self.noise(op.n, op.k, kind=kind).t()

        def run(a: Tensor, b: Tensor) -> Tensor:
            return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
                a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
            )

        return milliseconds(run, input_sets(make, self.device), self.device)

    def _gemm(self, op: Gemm) -> float:
        def make() -> Arguments:
            return self.noise(op.m, op.k), self.noise(op.n, op.k)

        return milliseconds(F.linear, input_sets(make, self.device), self.device)

    def _attention(self, op: Attention) -> float:
        def make() -> Arguments:
            queries = self.noise(op.batch, op.queries, op.heads, op.width).transpose(1, 2)
            keys, values = (
                self.noise(op.batch, op.keys, op.heads, op.width).transpose(1, 2) for _ in range(2)
            )
            return queries, keys, values

        sets = input_sets(make, self.device)
        if self.device.type != "cuda":
            return milliseconds(F.scaled_dot_product_attention, sets, self.device)
        times = []
        for backend in BACKENDS:
            with contextlib.suppress(RuntimeError), sdpa_kernel(backend):
                times.append(milliseconds(F.scaled_dot_product_attention, sets, self.device))
        return (
            min(times) if times else milliseconds(F.scaled_dot_product_attention, sets, self.device)
        )

    def _conv(self, op: Conv) -> float:
        with _searching():
            return min(self._conv_form(op, form) for form in _forms(op))

    def _conv_form(self, op: Conv, form: tuple[Conv, torch.memory_format]) -> float:
        shaped, layout = form
        function = F.conv2d if len(shaped.weight) == 4 else F.conv3d

        def make() -> Arguments:
            return tuple(
                self.noise(*shape).contiguous(memory_format=layout)
                for shape in (shaped.x, shaped.weight)
            )

        def run(x: Tensor, weight: Tensor) -> Tensor:
            return function(x, weight, stride=shaped.stride)

        return milliseconds(run, input_sets(make, self.device), self.device)


def _forms(op: Conv) -> list[tuple[Conv, torch.memory_format]]:
    """Return the ways to run a convolution: as it is, and a 3-D one with its taps as channels."""
    if len(op.weight) == 4:
        return [(op, torch.channels_last)]
    outputs, channels, taps, height, width = op.weight
    frames = op.out[2]
    stacked = Conv(
        (frames, taps * channels, *op.x[3:]),
        (outputs, taps * channels, height, width),
        op.stride[1:],
    )
    forms = [(stacked, torch.channels_last)]
    return forms if taps == 1 else [*forms, (op, torch.channels_last_3d)]


@contextlib.contextmanager
def _searching() -> Iterator[None]:
    """Let cuDNN try its algorithms."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _copy(target: Tensor, source: Tensor) -> Tensor:
    return torch.neg(source, out=target)
