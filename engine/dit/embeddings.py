"""What comes before the blocks of the causal Wan DiT: embeddings, rotary angles, ring rows."""

import math

import torch
from torch import Tensor, nn

from sdrt.engine.dit.ring import ring_rows, ring_slots, valid_tokens
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import DitConfig


class DitIn(PackageModule):
    """Everything of one DiT pass that comes before the blocks."""

    plane_cos: Tensor
    plane_sin: Tensor
    frame_frequencies: Tensor
    time_frequencies: Tensor

    def __init__(
        self, config: DitConfig, height: int, width: int, frames: int, window: int, sink: int
    ) -> None:
        """Size the module for ``[B, frames]`` latents of ``height`` x ``width`` (latent pixels)."""
        super().__init__()
        self.config, self.frames, self.window, self.sink = config, frames, window, sink
        self.rows, self.columns = height // 2, width // 2
        dim = config.dim
        self.patch_embedding = nn.Linear(config.in_dim * math.prod(config.patch_size), dim)
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        half = config.head_dim // 2
        third = half // 3
        self.axis_widths = (half - 2 * third, third, third)
        # Tables are made on the CPU whatever the default device: a plan builds modules on "meta".
        rows = torch.arange(self.rows, device="cpu").view(-1, 1, 1).expand(-1, self.columns, 1)
        columns = torch.arange(self.columns, device="cpu").view(1, -1, 1).expand(self.rows, -1, 1)
        plane = torch.cat([rows * rope_frequencies(third), columns * rope_frequencies(third)], -1)
        plane = plane.flatten(0, 1)  # [T, 2 * third], float64
        self.register_buffer("plane_cos", plane.cos().float())
        self.register_buffer("plane_sin", plane.sin().float())
        self.register_buffer("frame_frequencies", rope_frequencies(self.axis_widths[0]))
        self.register_buffer("time_frequencies", sinusoid_frequencies(config.freq_dim))

    def forward(self, latent: Tensor, timestep: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """Embed one chunk a row.

        Args:
            latent: float32 ``[B, F, C, h, w]``, at the noise level of ``timestep``.
            timestep: float32 ``[B, 1]`` or ``[B, F]``.
            position: int64 ``[B]``, absolute index of each row's first frame.
        Returns:
            x ``[B, F*T, dim]``; e ``[B, E, dim]`` float32; e0 ``[B, E, 6, dim]`` float32;
            cos, sin ``[B, F*T, D/2]`` float32; ring rows int64 ``[B*F]``; valid tokens ``[B]``.
        """
        dtype = self.patch_embedding.weight.dtype
        batch, frames = latent.shape[:2]
        patches = latent.view(batch, frames, -1, self.rows, 2, self.columns, 2)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).reshape(
            batch, frames * self.rows * self.columns, -1
        )
        x = self.patch_embedding(patches.to(dtype))

        e = self.time_embedding(torch.cat(self.time_angles(timestep), dim=-1).to(dtype))
        e0 = self.time_projection(e).unflatten(-1, (6, -1))

        frame_cos, frame_sin = self.frame_angles(position)
        cos = self._with_plane(frame_cos.float(), self.plane_cos)
        sin = self._with_plane(frame_sin.float(), self.plane_sin)
        rows = self.ring_places(position)
        valid = valid_tokens(position, frames, self.window, self.rows * self.columns)
        return x, e.float(), e0.float(), cos, sin, rows, valid

    def time_angles(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``[B, E, freq_dim / 2]`` of the timestep sinusoid."""
        angle = timestep.double().unsqueeze(-1) * self.time_frequencies
        return angle.cos(), angle.sin()

    def frame_angles(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine ``[B, F, c0]`` of the chunk's frame positions."""
        frame = position.unsqueeze(1) + torch.arange(self.frames, device=position.device)
        angle = frame.double().unsqueeze(-1) * self.frame_frequencies
        return angle.cos(), angle.sin()

    def ring_places(self, position: Tensor) -> Tensor:
        """Return where the chunk's K and V go in the ring, as the blocks take it."""
        slots = ring_slots(position, self.frames, self.window, self.sink)
        return ring_rows(slots, self.window)

    def _with_plane(self, frame: Tensor, plane: Tensor) -> Tensor:
        """Join frame angles ``[B, F, c0]`` and row/column angles ``[T, c1+c2]``."""
        batch, frames, tokens = *frame.shape[:2], plane.shape[0]
        joined = torch.cat(
            [
                frame.unsqueeze(2).expand(-1, -1, tokens, -1),
                plane.expand(batch, frames, -1, -1),
            ],
            dim=-1,
        )
        return joined.flatten(1, 2)


def rope_frequencies(pairs: int) -> Tensor:
    """Return float64 ``[pairs]`` rotary frequencies, base 10000, of one axis."""
    return 10000.0 ** -(torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)


def sinusoid_frequencies(width: int) -> Tensor:
    """Return float64 ``[width / 2]`` frequencies of the timestep sinusoid."""
    half = width // 2
    return 10000.0 ** -(torch.arange(half, dtype=torch.float64, device="cpu") / half)
