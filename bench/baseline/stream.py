"""A stream over the references' way of running: the slow side of every speed-up we state."""

import time

import numpy as np
import torch
from torch import Tensor

from sdrt.bench.baseline.coder import BASELINES, load_public, to_host
from sdrt.bench.baseline.dit import CausalWanDit
from sdrt.bench.baseline.kv_cache import EvictedCache, RolledCache
from sdrt.engine.dit import weights as dit_weights
from sdrt.engine.preset.preset import Preset
from sdrt.engine.solvers.schedule import add_noise, denoise_timesteps, flow_table, nearest_sigma
from sdrt.engine.weights.source import Source
from sdrt.export.plan.draft import DTYPES
from sdrt.runtime.chunk import Chunk
from sdrt.runtime.measure.timing import make_clock

FULL_MOTION = 0.2
"""Difference of neighbouring frames, root mean square, that counts as the most motion."""


class ReferenceStream:
    """Runs a preset's model eagerly; to be driven as a ``Session`` is.

    The noise is drawn from the same seed in the same order as a session's, so both make the same
    video.
    """

    def __init__(
        self, preset: Preset, source: Source, device: torch.device, prompt_embeds: Tensor
    ) -> None:
        """Load the public weights.

        Args:
            prompt_embeds: ``[1, text_len, text_dim]``: the text encoder is no part of this.
        """
        self.preset, self.device = preset, device
        self.dtype = DTYPES[preset.precision]
        with torch.device(device):
            self.dit = CausalWanDit(preset.dit)
        tensors = source.load("dit", dit_weights.public_shapes(preset.dit), device=device)
        load_public(self.dit, tensors, self.dtype)
        coders = {
            coder.name: BASELINES[coder.name](preset, source, device, self.dtype)
            for coder in preset.coders
        }
        self.encoder, self.decoder = coders.get(preset.encoder), coders[preset.decoder]
        schedule = preset.schedule
        self._table = tuple(
            part.to(device) for part in flow_table(schedule.shift, schedule.num_train_timesteps)
        )
        own = denoise_timesteps(
            schedule.steps, schedule.shift, schedule.warp, schedule.num_train_timesteps
        )
        self._timesteps = own.to(device)
        after = nearest_sigma(self._timesteps[1:], *self._table)
        self._next_sigmas = torch.cat([after, after.new_zeros(1)])
        self._prompt_embeds = prompt_embeds.to(device)
        self._generator = torch.Generator(device)
        self._clock = make_clock(device)
        self._rollout = preset.flow == "rollout"
        self._index = 0

    def compile(self) -> None:
        """Compile the DiT's blocks and the autoencoder; what reads indices stays eager."""
        for block in self.dit.layers():
            block.project = torch.compile(block.project, dynamic=False)
            block.finish = torch.compile(block.finish, dynamic=False)
        for coder in {id(c): c for c in (self.encoder, self.decoder) if c is not None}.values():
            coder.compile()

    def chunk_frames(self) -> int:
        """Return how many input frames the next :meth:`submit` takes; 0 for text to video."""
        return self.preset.input_frames(first=not self._index)

    @torch.inference_mode()
    def prepare(self, prompt: str, seed: int = 0) -> None:
        """Start a stream; the prompt is the one whose embeddings were given."""
        self._generator.manual_seed(seed)
        self._cross = self.dit.cross_caches(self._prompt_embeds)
        stream = self.preset.stream
        heads, width = self.preset.dit.num_heads, self.preset.dit.head_dim
        like = torch.empty(heads, width, dtype=self.dtype, device=self.device)
        sizes = (stream.window_frames, stream.sink_frames)
        layers, tokens = range(self.preset.dit.num_layers), self.preset.tokens_per_frame
        if self._rollout:
            self._caches = [RolledCache(*sizes, tokens, like) for _ in layers]
        else:
            threshold = stream.sink_refresh_threshold
            self._caches = [EvictedCache(*sizes, threshold, tokens, like) for _ in layers]
        for coder in (self.encoder, self.decoder):
            if coder is not None:
                coder.start()
        self._index, self._frame = 0, 0
        self._last_picture: Tensor | None = None
        self._scale = self.preset.schedule.noise_scale or 0.0

    @torch.inference_mode()
    def submit(self, frames: np.ndarray | None = None) -> None:
        """Run one AR step (see ``Session.submit``); the host waits wherever it reads an index."""
        self._started = time.perf_counter()
        clock = self._clock
        clock.start()
        clock.begin("encode")
        noisy, timestep = (None, None) if frames is None else self._encode(frames)
        clock.end("encode")
        clock.begin("diffuse")
        self.latent = self._diffuse_rollout() if noisy is None else self._diffuse(noisy, timestep)
        clock.end("diffuse")
        clock.begin("decode")
        fills = not self._rollout and 0 < self._index < len(self._timesteps)
        self._made = None if fills else self.decoder.decode(self.latent[-1])
        clock.end("decode")
        clock.begin("finalize")
        self._finalize()
        clock.end("finalize")
        self._index += 1

    def receive(self) -> Chunk:
        """Return the AR step that was submitted."""
        frames = to_host(self._made)
        latency_ms = (time.perf_counter() - self._started) * 1e3
        return Chunk(
            index=self._index - 1,
            frames=frames,
            stages_ms=self._clock.read() | {"finalize_ms": self._clock.finalize_ms()},
            latency_ms=latency_ms,
            steady=self._oldest_end() >= self.preset.stream.window_frames,
        )

    def close(self) -> None:
        """Free the caches."""
        self._caches, self._cross = [], []

    def _encode(self, frames: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return the noisy latent and, after the first chunk, the first denoise step's timestep."""
        pictures = torch.as_tensor(frames).to(self.device)
        timestep = None
        pixels = pictures.float() / 127.5 - 1
        if self._last_picture is not None:
            joined = torch.cat([self._last_picture.unsqueeze(0), pixels])
            rms = (joined[1:] - joined[:-1]).flatten(1).square().mean(1).sqrt()
            motion = min(max(rms.max().item() / FULL_MOTION, 0.0), 1.0)
            initial = self.preset.schedule.noise_scale
            assert initial is not None
            total = self.preset.schedule.num_train_timesteps
            self._scale = (initial - 0.1 * motion) * 0.9 + self._scale * 0.1
            timestep = torch.tensor(
                [float(int(total * self._scale) - total // 10)], device=self.device
            )
        self._last_picture = pixels[-1]
        assert self.encoder is not None
        latent = self.encoder.encode(pictures)
        noise = self._noise(latent.shape)
        return (noise * self._scale + latent * (1 - self._scale)).unsqueeze(0), timestep

    def _diffuse(self, noisy: Tensor, timestep: Tensor | None) -> Tensor:
        """Run the first chunk's steps in turn, or one pass over the rows of the stream batch."""
        if timestep is None:
            latent = self._denoise(noisy)
            for cache in self._caches:
                assert isinstance(cache, EvictedCache)
                cache.repeat(len(self._timesteps))
            first = self.preset.first_chunk_latent_frames
            self._rows = torch.zeros_like(noisy[:, :1]).repeat(len(self._timesteps), 1, 1, 1, 1)
            self._row_times = self._timesteps.clone()
            self._row_frames = [first] * len(self._timesteps)
            return latent
        self._rows = torch.cat([noisy, self._rows[:-1]])
        self._row_times = torch.cat([timestep, self._row_times[1:]])
        self._row_frames = [self._frame, *self._row_frames[:-1]]
        positions = torch.tensor(self._row_frames, device=self.device)
        noise = self._noise(self._rows.shape)
        x0 = self._x0(self._rows, self._row_times, positions)
        self._rows = add_noise(x0, noise, self._next_sigmas)
        return self._rows

    def _diffuse_rollout(self) -> Tensor:
        stream = self.preset.stream
        shape = (1, stream.chunk_latent_frames, *self.preset.latent_shape)
        return self._denoise(self._noise(shape))

    def _finalize(self) -> None:
        """Rewrite the finished chunk's K/V where the preset asks for it, and move on."""
        if self.preset.schedule.clean_pass:
            self._flow(self.latent, torch.zeros_like(self._timesteps[:1]), self._positions())
        self._frame += self.latent.shape[1]

    def _denoise(self, noisy: Tensor) -> Tensor:
        for step in range(len(self._timesteps)):
            noise = self._noise(noisy.shape)
            x0 = self._x0(noisy, self._timesteps[step : step + 1], self._positions())
            noisy = add_noise(x0, noise, self._next_sigmas[step : step + 1])
        return noisy

    def _x0(self, latent: Tensor, timestep: Tensor, positions: Tensor) -> Tensor:
        sigma = nearest_sigma(timestep, *self._table).double().view(-1, 1, 1, 1, 1)
        flow = self._flow(latent, timestep, positions)
        return (latent.double() - sigma * flow.double()).float()

    def _flow(self, latent: Tensor, timestep: Tensor, positions: Tensor) -> Tensor:
        times = timestep.unsqueeze(1).expand(-1, latent.shape[1])
        return self.dit(latent, times, positions, self._caches, self._cross)

    def _positions(self) -> Tensor:
        return torch.tensor([self._frame], device=self.device)

    def _oldest_end(self) -> int:
        """Return where the row that is furthest behind in the stream ends."""
        if self._rollout:
            return self._frame
        return self._row_frames[-1] + 1 if self._index > 1 else 0

    def _noise(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.empty(shape, device=self.device).normal_(generator=self._generator)
