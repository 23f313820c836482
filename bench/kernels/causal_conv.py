"""Time of ``causal_conv`` at the Wan VAE's layers (832x480): python -m …causal_conv."""

from functools import partial

import torch
import torch.nn.functional as F

from sdrt.bench.kernels.harness import graph_us
from sdrt.kernels.causal_conv import causal_conv, pack_upsample_weight, pack_weight
from sdrt.kernels.dispatch import references
from sdrt.kernels.measure import relative_error

FRAMES = 4

LAYERS = [
    ("first of a block", 96, 96, 480, 832, False),
    ("second of a block", 96, 96, 480, 832, False),
    ("first of a block", 192, 192, 240, 416, False),
    ("second of a block", 192, 192, 240, 416, False),
    ("first of a block", 96, 192, 240, 416, False),
    ("upsampling", 192, 96, 240, 416, True),
    ("upsampling", 384, 192, 120, 208, True),
]


def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Return random bf16 numbers."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


def main() -> None:
    """Check each layer against the plain version, then time it beside cuDNN's convolution."""
    for title, channels_in, channels, height, width, upsample in LAYERS:
        taps, factor = ((3, 3), 2) if upsample else ((3, 3, 3), 1)
        weight = draw(channels, channels_in, *taps, scale=(27 * channels_in) ** -0.5)
        packed = pack_upsample_weight(weight) if upsample else pack_weight(weight)
        y = draw(FRAMES if upsample else FRAMES + 2, channels_in // 8, height, width, 8)
        shape = (FRAMES, channels // 8, factor * height, factor * width, 8)
        x_out = None if title.startswith("first") else torch.empty_like(draw(*shape))
        given = {
            "frames": FRAMES,
            "gamma": draw(channels),
            "position": torch.tensor(FRAMES, device="cuda"),
            "residual": draw(*shape) if title.startswith("second") else None,
        }
        y_out = torch.empty_like(draw(FRAMES + 2, *shape[1:]))
        run = partial(causal_conv, y, packed, draw(channels), x_out=x_out, y_out=y_out, **given)
        y_out.zero_()
        run()
        ours = y_out.float()
        y_out.zero_()
        with references():
            run()
        error = relative_error(y_out, ours)
        assert error < 1e-2, error

        us = graph_us(run)
        products = 4 * 4 if upsample else 27  # of each channel pair, for a pixel of the input
        flops = 2 * FRAMES * height * width * channels_in * channels * products
        clip = draw(1, FRAMES + 2 if not upsample else FRAMES, factor * height, factor * width,
                    channels_in).permute(0, 4, 1, 2, 3)  # fmt: skip
        kernel = weight.unsqueeze(2) if upsample else weight
        kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
        plain = graph_us(lambda: F.conv3d(clip, kernel, padding=(0, 1, 1)))  # noqa: B023
        name = f"{channels_in:3d} -> {channels:3d} {FRAMES}x{height}x{width} {title}"
        print(f"{name:44s} {us:7.0f} us {flops / us / 1e6:5.0f} TFLOP/s  conv3d {plain:7.0f} us")


if __name__ == "__main__":
    main()
