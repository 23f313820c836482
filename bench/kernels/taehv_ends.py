"""Time of TAEHV's first and last layers (832x480), fused and not: python -m …taehv_ends."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sdrt.bench.kernels.harness import copy_tb_s, graph_us, report
from sdrt.engine.preset.preset import TaehvConfig
from sdrt.engine.taehv.model import FIRST, FUSED, LAST, TaehvDecoder, TaehvEncoder
from sdrt.kernels.measure import relative_error
from sdrt.kernels.triton import conv_relu_pool, relu_conv

FRAMES, HEIGHT, WIDTH = 4, 480, 832

FIRST_TILES = [
    conv_relu_pool.Tile(pixels, count, warps)
    for pixels, warps in [(64, 4), (128, 4), (128, 8), (32, 4)]
    for count in (2, 4, 8)
]
LAST_TILES = [
    relu_conv.Tile(columns, rows, warps, stages)
    for columns, warps in [(64, 4), (128, 4), (128, 8)]
    for rows in (8, 16, 30)
    for stages in (1, 2, 3)
]


def compare(
    title: str,
    plain: Callable[[Tensor], Tensor],
    fused: Callable[[Tensor], Tensor],
    x: Tensor,
    roof: float,
) -> None:
    """Check one form against the other, then time both."""
    expected, y = plain(x), fused(x)
    error = relative_error(y, expected)
    assert error < 1e-2, error
    moved = x.nbytes + y.nbytes
    report(title, graph_us(partial(fused, x)), moved, roof)
    report(f"  layer by layer: {title}", graph_us(partial(plain, x)), moved, roof)


def try_tiles(module, tiles: list, run: Callable[[], Tensor]) -> None:
    """Time a kernel under each of ``tiles``, put in the place of the module's ``HALF``."""
    expected = run()
    for tile in tiles:
        module.HALF = tile
        error = relative_error(run(), expected)
        assert error < 1e-2, (tile, error)
        print(f"  {str(tile):60s} {graph_us(run):9.1f} us")


@torch.inference_mode()
def main() -> None:
    """Compare the layers as the kernels are, then time these with other tiles."""
    roof, config = copy_tb_s(), TaehvConfig()
    options = {"device": "cuda", "dtype": torch.bfloat16}

    plain = TaehvEncoder(config, HEIGHT, WIDTH, FRAMES, False).to(**options)
    fused = TaehvEncoder(config, HEIGHT, WIDTH, FRAMES, False, {FIRST: FUSED}).to(**options)
    fused.load_state_dict(plain.state_dict())
    x = torch.rand(FRAMES, HEIGHT, WIDTH, 3, **options).permute(0, 3, 1, 2)
    compare("encoder: conv, ReLU, pool", plain.first_layers, fused.first_layers, x, roof)
    try_tiles(conv_relu_pool, FIRST_TILES, partial(fused.first_layers, x))

    plain = TaehvDecoder(config, HEIGHT, WIDTH, FRAMES // 4, False).to(**options)
    fused = TaehvDecoder(config, HEIGHT, WIDTH, FRAMES // 4, False, {LAST: FUSED}).to(**options)
    fused.load_state_dict(plain.state_dict())
    channels = config.decoder_widths[-1]
    x = torch.randn(FRAMES, HEIGHT, WIDTH, channels, **options).permute(0, 3, 1, 2)
    compare("decoder: ReLU, conv", plain.last_layers, fused.last_layers, x, roof)
    try_tiles(relu_conv, LAST_TILES, partial(fused.last_layers, x))


if __name__ == "__main__":
    main()
