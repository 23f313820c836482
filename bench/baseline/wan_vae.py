"""The Wan 2.1 VAE under its public names: plain 3-D convolutions, caches padded and joined."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdrt.engine.preset.preset import WanVaeConfig
from sdrt.engine.wan_vae.layers import decoder_chain, encoder_chain

Caches = dict[str, Tensor]
"""Layer name -> the last frames of what it saw, ``[1, C, 1 or 2, H, W]``."""


class CausalConv3d(nn.Conv3d):
    """A convolution that sees the frames before its own, never a later one."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int, int]) -> None:
        super().__init__(inputs, outputs, kernel)
        self.name = ""

    def forward(self, x: Tensor, caches: Caches) -> Tensor:  # pyright: ignore
        """Map ``[1, C, T, H, W]`` to the same size; the history comes from ``caches``."""
        frames, height, width = (size // 2 for size in self.kernel_size)
        if not frames:
            return super().forward(x)
        space = (width, width, height, height)
        history = caches.get(self.name)
        if history is None:
            history = torch.zeros_like(x[:, :, :1]).repeat(1, 1, 2 * frames, 1, 1)
        joined = torch.cat([history, x], dim=2)
        caches[self.name] = joined[:, :, -2 * frames :].clone()
        return super().forward(F.pad(joined, (*space, 0, 0)))


class RmsNorm(nn.Module):
    """``x / |x| * sqrt(C) * gamma`` over the channels."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * math.sqrt(x.shape[1]) * self.gamma


class ResidualBlock(nn.Module):
    """Norm, SiLU and causal convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [RmsNorm(inputs, 1, 1, 1), nn.SiLU(), CausalConv3d(inputs, outputs, 3)]
        layers += [RmsNorm(outputs, 1, 1, 1), nn.SiLU(), nn.Dropout(0.0)]
        self.residual = nn.Sequential(*layers, CausalConv3d(outputs, outputs, 3))
        self.shortcut = CausalConv3d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        y = x
        for layer in self.residual:
            y = layer(y, caches) if isinstance(layer, CausalConv3d) else layer(y)
        return y + (x if self.shortcut is None else self.shortcut(x, caches))


class Attention(nn.Module):
    """One head over the pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RmsNorm(channels, 1, 1)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        frames = x[0].transpose(0, 1)
        t, c, h, w = frames.shape
        qkv = self.to_qkv(self.norm(frames)).reshape(t, 1, 3 * c, h * w).transpose(2, 3)
        q, k, v = (part.contiguous() for part in qkv.chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.proj(y.squeeze(1).transpose(1, 2).reshape(t, c, h, w))
        return x + y.transpose(0, 1).unsqueeze(0)


class Resample(nn.Module):
    """Halves or doubles height and width and, if temporal, the number of frames."""

    def __init__(self, inputs: int, outputs: int, up: bool, temporal: bool) -> None:
        super().__init__()
        self.up = up
        if up:
            first, conv = nn.Identity(), nn.Conv2d(inputs, outputs, 3, padding=1)
        else:
            first, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, outputs, 3, stride=2)
        self.resample = nn.Sequential(first, conv)
        kernel = (3, 1, 1)
        self.time_conv = None
        if temporal:
            self.time_conv = CausalConv3d(inputs, 2 * inputs if up else outputs, kernel)

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        if self.up:
            return self._in_space(self._more_frames(x, caches))
        return self._fewer_frames(self._in_space(x), caches)

    def _in_space(self, x: Tensor) -> Tensor:
        frames = x[0].transpose(0, 1)
        if self.up:
            wide = F.interpolate(frames.float(), scale_factor=2.0, mode="nearest-exact")
            frames = wide.type_as(frames)
        return self.resample(frames).transpose(0, 1).unsqueeze(0)

    def _more_frames(self, x: Tensor, caches: Caches) -> Tensor:
        conv = self.time_conv
        if conv is None:
            return x
        if conv.name not in caches:  # the very first latent is one frame, and is not remembered
            caches[conv.name] = torch.zeros_like(x[:, :, :1]).repeat(1, 1, 2, 1, 1)
            return x
        y = conv(x, caches).unflatten(1, (2, -1))
        return torch.stack((y[:, 0], y[:, 1]), dim=3).flatten(2, 3)

    def _fewer_frames(self, x: Tensor, caches: Caches) -> Tensor:
        conv = self.time_conv
        if conv is None:
            return x
        last = caches.get(conv.name)
        caches[conv.name] = x[:, :, -1:].clone()
        if last is None:
            return x
        joined = torch.cat([last, x], dim=2)
        return F.conv3d(joined, conv.weight, conv.bias, stride=(2, 1, 1))


class Coder(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, config: WanVaeConfig, encoder: bool) -> None:
        super().__init__()
        widths = [config.dim * multiple for multiple in config.dim_mult]
        deep = widths[-1]
        chain = encoder_chain(config) if encoder else decoder_chain(config)
        layers = [
            ResidualBlock(inputs, outputs)
            if kind == "residual"
            else Resample(inputs, outputs, not encoder, kind == "temporal")
            for kind, inputs, outputs in chain
        ]
        middle = nn.Sequential(
            ResidualBlock(deep, deep), Attention(deep), ResidualBlock(deep, deep)
        )
        ends = (3, widths[0], deep, 2 * config.z_dim)
        if not encoder:
            ends = (config.z_dim, deep, widths[0], 3)
        self.conv1 = CausalConv3d(ends[0], ends[1], 3)
        if encoder:
            self.downsamples, self.middle = nn.Sequential(*layers), middle
        else:
            self.middle, self.upsamples = middle, nn.Sequential(*layers)
        norm = RmsNorm(ends[2], 1, 1, 1)
        self.head = nn.Sequential(norm, nn.SiLU(), CausalConv3d(ends[2], ends[3], 3))

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        x = self.conv1(x, caches)
        for part in list(self.children())[1:-1]:
            for layer in part.children():
                x = layer(x, caches)
        norm, silu, conv = self.head
        return conv(silu(norm(x)), caches)


class WanVae(nn.Module):
    """Encodes four frames and decodes one latent at a time, the very first frame alone."""

    def __init__(self, config: WanVaeConfig) -> None:
        super().__init__()
        self.encoder = Coder(config, encoder=True)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Coder(config, encoder=False)
        for name, module in self.named_modules():
            if isinstance(module, CausalConv3d):
                module.name = name

    def encode_group(self, pixels: Tensor, caches: Caches) -> Tensor:
        """Map ``[1, 3, 1 or 4, H, W]`` in [-1, 1] to one latent ``[1, C, 1, h, w]``."""
        return self.conv1(self.encoder(pixels, caches), caches).chunk(2, dim=1)[0]

    def decode_latent(self, latent: Tensor, caches: Caches) -> Tensor:
        """Map one latent ``[1, C, 1, h, w]`` to ``[1, 3, 1 or 4, H, W]``."""
        return self.decoder(self.conv2(latent, caches), caches)
