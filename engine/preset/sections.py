"""The sections of a preset: sizes and settings, each with the rules between its fields."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Problem = tuple[str, Any, str]
"""A broken rule: the dotted key, its value, what the value must be."""

PositiveInt = Annotated[int, Field(gt=0)]


class RuleError(ValueError):
    """Carries the broken cross-field rules of one model through pydantic's error."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} broken rules")
        self.problems = problems


class Section(BaseModel):
    """A frozen group of settings; unknown keys and broken rules are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """Yield the broken rules between this section's fields."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> "Section":
        if problems := list(self.problems()):
            raise RuleError(problems)
        return self


class DitConfig(Section):
    """Sizes of the causal Wan DiT, under the names of the public checkpoints."""

    dim: PositiveInt
    """Width of the tokens."""
    num_heads: PositiveInt
    """Attention heads; they share ``dim`` evenly."""
    ffn_dim: PositiveInt
    """Hidden width of the feed-forward layers."""
    num_layers: PositiveInt
    """Blocks."""
    freq_dim: Annotated[int, Field(gt=0, multiple_of=2)] = 256
    """Width of the sinusoid that encodes a timestep."""
    text_dim: PositiveInt = 4096
    """Width of the text encoder's output."""
    text_len: PositiveInt = 512
    """Text rows that cross-attention sees, the padding included."""
    in_dim: PositiveInt = 16
    """Latent channels in."""
    out_dim: PositiveInt = 16
    """Latent channels out."""
    patch_size: tuple[Literal[1], Literal[2], Literal[2]] = (1, 2, 2)
    """Latents per token: frames, rows, columns."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Epsilon of all norms."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    def problems(self) -> Iterator[Problem]:
        if self.dim % self.num_heads:
            yield "dim", self.dim, f"must be divisible by num_heads = {self.num_heads}"
        elif self.head_dim % 2 or self.head_dim < 6:
            rule = f"dim / num_heads = {self.head_dim} must be even and at least 6 (rotary pairs)"
            yield "dim", self.dim, rule
        if self.in_dim != self.out_dim:
            yield "out_dim", self.out_dim, f"must equal in_dim = {self.in_dim}"


class StreamConfig(Section):
    """Size of the pictures and what attention remembers of them."""

    height: PositiveInt
    """Rows of a pixel frame."""
    width: PositiveInt
    """Columns of a pixel frame."""
    frame_rate: PositiveInt = 16
    """Pixel frames a second that the model was trained for."""
    chunk_latent_frames: PositiveInt
    """Latent frames of one AR step."""
    window_frames: PositiveInt
    """Latent frames that attention sees, sink included: the slots of the K/V ring."""
    sink_frames: Annotated[int, Field(ge=0)]
    """Latent frames that are never evicted (see ``Preset.effective_sink_frames``)."""
    sink_refresh_threshold: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Cosine similarity below which a sink frame is given up; negative: never."""

    def problems(self) -> Iterator[Problem]:
        if self.window_frames <= self.sink_frames:
            rule = f"must be greater than sink_frames = {self.sink_frames}"
            yield "window_frames", self.window_frames, rule
        if self.sink_refresh_threshold >= 0 and not self.sink_frames:
            rule = "must be negative (off) without sink frames"
            yield "sink_refresh_threshold", self.sink_refresh_threshold, rule


class ScheduleConfig(Section):
    """The noise levels that a chunk passes."""

    steps: Annotated[tuple[int, ...], Field(min_length=1)]
    """Timesteps of the denoise steps, strictly decreasing."""
    shift: Annotated[float, Field(gt=0)]
    """Shift of the flow-matching sigmas towards noise."""
    warp: bool
    """Read ``steps`` as places in the shifted table instead of as timesteps."""
    noise_scale: Annotated[float, Field(gt=0, le=1)] | None
    """Noise mixed into the encoded video at the start; null: chunks start as pure noise."""
    clean_pass: bool
    """Rewrite a finished chunk's K/V with one more pass at timestep 0."""
    num_train_timesteps: PositiveInt = 1000
    """Length of the timestep table."""

    def problems(self) -> Iterator[Problem]:
        steps = self.steps
        if any(later >= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
            yield "steps", list(steps), "must be strictly decreasing"
        if not all(1 <= step <= self.num_train_timesteps for step in steps):
            rule = f"must lie in 1..num_train_timesteps = {self.num_train_timesteps}"
            yield "steps", list(steps), rule


class WanVaeConfig(Section):
    """Sizes of the Wan 2.1 VAE: 8x in space, 4x in time."""

    dim: PositiveInt = 96
    """Channels of the first level."""
    z_dim: PositiveInt = 16
    """Latent channels."""
    dim_mult: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (1, 2, 4, 4)
    """Channels of the levels, in multiples of ``dim``."""
    num_res_blocks: PositiveInt = 2
    """Residual blocks of an encoder level; the decoder has one more."""
    temporal_downsample: tuple[bool, bool, bool] = (False, True, True)
    """Levels after which the encoder halves the frame rate."""

    def problems(self) -> Iterator[Problem]:
        if sum(self.temporal_downsample) != 2:
            value = list(self.temporal_downsample)
            yield "temporal_downsample", value, "must hold true exactly twice (4x in time)"


class TaehvConfig(Section):
    """Sizes of TAEHV, the small autoencoder: 8x in space, 4x in time."""

    encoder_width: PositiveInt = 64
    """Channels of the encoder."""
    decoder_widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (256, 128, 64, 64)
    """Channels of the decoder's levels, from the latents to the pixels."""
    latent_channels: PositiveInt = 16
    """Latent channels."""


class LatentConfig(Section):
    """Where the autoencoder's mean and std of each channel apply."""

    normalise_encoder: bool
    """Normalise what the encoder gives."""
    denormalise_decoder: bool
    """Undo the normalisation before the decoder."""


class WeightsConfig(Section):
    """Default sources: ``owner/repo``, ``owner/repo:path/in/it``, or ``bundled``."""

    dit: str | None = None
    """The causal DiT's checkpoint."""
    base: str | None = None
    """The Wan repository that holds the VAE, the text encoder and its tokenizer."""
    taehv: str | None = None
    """TAEHV's checkpoint; null: a local file has to be given."""
