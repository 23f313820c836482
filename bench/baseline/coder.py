"""Frames to latents and back, chunk by chunk, with either autoencoder."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdrt.bench.baseline.taehv import Taehv
from sdrt.bench.baseline.wan_vae import WanVae
from sdrt.engine.preset.preset import Preset
from sdrt.engine.taehv import model as taehv
from sdrt.engine.wan_vae import weights as wan_vae_weights
from sdrt.engine.wan_vae.model import MEAN, STD
from sdrt.engine.weights.source import Source

Step = Callable[[Tensor, dict[str, Tensor]], Tensor]


class WanCoder:
    """The Wan VAE: groups of four frames, one latent at a time."""

    def __init__(self, preset: Preset, source: Source, device: torch.device, dtype) -> None:
        self.latents, self.dtype = preset.latents, dtype
        with torch.device(device):
            self.model = WanVae(preset.wan_vae)
        tensors = source.load("vae", wan_vae_weights.public_shapes(preset.wan_vae), device=device)
        load_public(self.model, tensors, dtype)
        shape = (1, -1, 1, 1)
        self.mean = torch.tensor(MEAN, device=device).view(shape)
        self.std = torch.tensor(STD, device=device).view(shape)
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
        """Map uint8 ``[F, H, W, 3]`` to float32 ``[n, 16, h, w]``."""
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
        """Map float32 ``[n, 16, h, w]`` to uint8 ``[F, H, W, 3]``."""
        if self.latents.denormalise_decoder:
            latents = latents * self.std + self.mean
        pixels = []
        for latent in latents.to(self.dtype).unsqueeze(2).split(1):
            decode = self._decode if self._decoder_caches else self.model.decode_latent
            pixels.append(decode(latent, self._decoder_caches))
        levels = (torch.cat(pixels, dim=2)[0].float() + 1) * 127.5
        return levels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


class TaehvCoder:
    """TAEHV: all frames of a chunk at once."""

    def __init__(self, preset: Preset, source: Source, device: torch.device, dtype) -> None:
        self.dtype = dtype
        with torch.device(device):
            self.model = Taehv(preset.taehv)
        tensors = source.load("taehv", taehv.public_shapes(preset.taehv), device=device)
        load_public(self.model, tensors, dtype)
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
        """Map uint8 ``[F, H, W, 3]`` to float32 ``[n, 16, h, w]``."""
        pixels = (frames.permute(0, 3, 1, 2).float() / 255).to(self.dtype)
        encode = self._encode if self._encoder_caches else self.model.encode
        return encode(pixels, self._encoder_caches).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Map float32 ``[n, 16, h, w]`` to uint8 ``[F, H, W, 3]``."""
        void = 0 if self._decoder_caches else 3
        decode = self._decode if self._decoder_caches else self.model.decode
        pixels = decode(latents.to(self.dtype), self._decoder_caches)[void:]
        return (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


CODERS = {"wan-vae": WanCoder, "taehv": TaehvCoder}


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
