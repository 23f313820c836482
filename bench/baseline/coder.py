"""Frames to latents and back, chunk by chunk, with each autoencoder."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdrt.bench.baseline.taehv import Taehv
from sdrt.bench.baseline.wan_vae import WanVae
from sdrt.engine.coder import Coder
from sdrt.engine.preset.preset import Preset
from sdrt.engine.taehv.coder import TaehvCoder
from sdrt.engine.wan_vae.coder import WanVaeCoder
from sdrt.engine.weights.source import Source, Tensors

Step = Callable[[Tensor, dict[str, Tensor]], Tensor]
SteadyCall = tuple[Step, Tensor, Tensor]
"""A call that takes pixels or latents and caches, what a stream starts it with, what follows."""


class WanVaeBaseline:
    """The Wan VAE: groups of four frames, one latent at a time."""

    @staticmethod
    def steady_call(preset: Preset, encode: bool) -> SteadyCall:
        """Return one direction's call, without weights: as :data:`SteadyCall` says."""
        model, size = WanVae(preset.wan_vae), (preset.stream.height, preset.stream.width)
        if encode:
            first, x = torch.empty(1, 3, 1, *size), torch.empty(1, 3, preset.chunk_frames, *size)
            return model.encode_group, first, x
        channels, *latent = preset.latent_shape
        x = torch.empty(1, channels, preset.stream.chunk_latent_frames, *latent)
        return model.decode_latent, torch.empty(1, channels, 1, *latent), x

    def __init__(self, preset: Preset, source: Source, device: torch.device, dtype) -> None:
        self.latents, self.dtype = preset.latents, dtype
        with torch.device(device):
            self.model = WanVae(preset.wan_vae)
        coder = WanVaeCoder()
        load_public(self.model, public_tensors(coder, preset, source, device), dtype)
        shape = (1, -1, 1, 1)
        self.mean = torch.tensor(coder.mean, device=device).view(shape)
        self.std = torch.tensor(coder.std, device=device).view(shape)
        self.start()
        self._encode: Step = self.model.encode_group
        self._decode: Step = self.model.decode_latent

    def start(self) -> None:
        """Forget the stream so far."""
        self._encoder_caches: dict[str, Tensor] = {}
        self._decoder_caches: dict[str, Tensor] = {}

    def compile(self) -> None:
        """Compile what runs again and again; a stream's first frame stays as it is."""
        self._encode = torch.compile(self.model.encode_group, dynamic=False)
        self._decode = torch.compile(self.model.decode_latent, dynamic=False)

    def encode(self, frames: Tensor) -> Tensor:
        """Map uint8 ``[F, H, W, 3]`` to float32 ``[n, C, h, w]``."""
        pixels = (frames.permute(3, 0, 1, 2).float() / 127.5 - 1).to(self.dtype).unsqueeze(0)
        latents = []
        if not self._encoder_caches:
            latents.append(self.model.encode_group(pixels[:, :, :1], self._encoder_caches))
            pixels = pixels[:, :, 1:]
        for group in pixels.split(4, dim=2) if pixels.shape[2] else ():
            latents.append(self._encode(group, self._encoder_caches))
        found = torch.cat(latents, dim=2)[0].transpose(0, 1).float()
        return (found - self.mean) / self.std if self.latents.normalise_encoder else found

    def decode(self, latents: Tensor) -> Tensor:
        """Map float32 ``[n, C, h, w]`` to uint8 ``[F, H, W, 3]``."""
        if self.latents.denormalise_decoder:
            latents = latents * self.std + self.mean
        pixels = []
        for latent in latents.to(self.dtype).unsqueeze(2).split(1):
            decode = self._decode if self._decoder_caches else self.model.decode_latent
            pixels.append(decode(latent, self._decoder_caches))
        levels = (torch.cat(pixels, dim=2)[0].float() + 1) * 127.5
        return levels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


class TaehvBaseline:
    """TAEHV: all frames of a chunk at once."""

    @staticmethod
    def steady_call(preset: Preset, encode: bool) -> SteadyCall:
        """Return one direction's call, without weights: as :data:`SteadyCall` says."""
        model = _without_detour(Taehv(preset.taehv))
        frames = (preset.chunk_frames, 3, preset.stream.height, preset.stream.width)
        latents = (preset.stream.chunk_latent_frames, *preset.latent_shape)
        x = torch.empty(frames if encode else latents)
        return model.encode if encode else model.decode, x, x

    def __init__(self, preset: Preset, source: Source, device: torch.device, dtype) -> None:
        self.dtype = dtype
        with torch.device(device):
            self.model = Taehv(preset.taehv)
        load_public(self.model, public_tensors(TaehvCoder(), preset, source, device), dtype)
        self.start()
        self._encode: Step = self.model.encode
        self._decode: Step = self.model.decode

    def start(self) -> None:
        """Forget the stream so far."""
        self._encoder_caches: dict[str, Tensor] = {}
        self._decoder_caches: dict[str, Tensor] = {}

    def compile(self) -> None:
        """Compile both directions."""
        self._encode = torch.compile(self.model.encode, dynamic=False)
        self._decode = torch.compile(self.model.decode, dynamic=False)

    def encode(self, frames: Tensor) -> Tensor:
        """Map uint8 ``[F, H, W, 3]`` to float32 ``[n, C, h, w]``."""
        pixels = (frames.permute(0, 3, 1, 2).float() / 255).to(self.dtype)
        encode = self._encode if self._encoder_caches else self.model.encode
        return encode(pixels, self._encoder_caches).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Map float32 ``[n, C, h, w]`` to uint8 ``[F, H, W, 3]``."""
        void = 0 if self._decoder_caches else 3
        decode = self._decode if self._decoder_caches else self.model.decode
        pixels = decode(latents.to(self.dtype), self._decoder_caches)[void:]
        return (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


BASELINES = {"wan-vae": WanVaeBaseline, "taehv": TaehvBaseline}
"""Autoencoder -> the plain way to run it."""


def public_tensors(coder: Coder, preset: Preset, source: Source, device: torch.device) -> Tensors:
    """Return an autoencoder's public checkpoint."""
    return source.load(coder.component, coder.public_shapes(preset), device=device)


def load_public(model: torch.nn.Module, tensors, dtype: torch.dtype) -> None:
    """Load a public checkpoint into a model that carries its names, in ``dtype``.

    A TAEHV checkpoint may split frames into more than the model does: the last outputs count.
    """
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = {name: tensors[name][-shape[0] :].to(dtype) for name, shape in shapes.items()}
    model.eval().requires_grad_(False).to(dtype).load_state_dict(state)


def to_host(frames: Tensor | None) -> np.ndarray:
    """Copy uint8 frames to the host; none are an empty array."""
    if frames is None:
        return np.zeros((0, 0, 0, 3), np.uint8)
    return frames.cpu().contiguous().numpy()


def _without_detour(model: Taehv) -> Taehv:
    """Let frames be split before they are enlarged: the same result for a quarter of the work."""
    layers = list(model.decoder)
    for index, layer in enumerate(list(layers)):
        if isinstance(layer, torch.nn.Upsample):
            layers[index], layers[index + 1] = layers[index + 1], layer
    model.decoder = torch.nn.Sequential(*layers)
    return model
