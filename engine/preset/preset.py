"""Presets: the typed, validated description of a model and its stream, read from YAML."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from sdrt.engine.coder import CODERS, Coder, CoderName
from sdrt.engine.preset import rules
from sdrt.engine.preset.files import PRESETS, ConfigError, Settings, preset_names, read_settings
from sdrt.engine.preset.sections import (
    DitConfig,
    LatentConfig,
    Problem,
    RuleError,
    ScheduleConfig,
    Section,
    StreamConfig,
    TaehvConfig,
    WanVaeConfig,
    WeightsConfig,
)

__all__ = [
    "PRESETS",
    "ConfigError",
    "DitConfig",
    "LatentConfig",
    "Preset",
    "ScheduleConfig",
    "StreamConfig",
    "TaehvConfig",
    "WanVaeConfig",
    "WeightsConfig",
    "dump",
    "from_dict",
    "load",
    "preset_names",
    "to_dict",
]


class Preset(Section):
    """Everything that an engine directory is built from, weights aside."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the preset and its engine directory."""
    flow: Literal["stream-batch", "rollout"]
    """How AR steps denoise: row i at step i, or all steps of a chunk in turn."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Type of weights and activations."""
    dit: DitConfig
    """The diffusion transformer."""
    stream: StreamConfig
    """Picture size, chunk and window."""
    schedule: ScheduleConfig
    """Noise levels."""
    encoder: Literal[CoderName, "none"]
    """What turns input frames into latents; none: text to video."""
    decoder: CoderName
    """What turns latents into output frames."""
    wan_vae: WanVaeConfig = WanVaeConfig()
    """The Wan VAE, where it is used."""
    taehv: TaehvConfig = TaehvConfig()
    """TAEHV, where it is used."""
    latents: LatentConfig
    """Normalisation of the latents."""
    text: Literal["umt5", "hashed-words"]
    """What turns the prompt into rows."""
    weights: WeightsConfig = WeightsConfig()
    """Where the weights come from unless the builder is told."""

    @property
    def effective_sink_frames(self) -> int:
        """Slots of the ring that new frames do not overwrite.

        In stream-batch the queue of overwritten slots starts at frame 3, as in the reference, so
        a sink below 3 behaves as 3.
        """
        sink = self.stream.sink_frames
        return max(3, sink) if self.flow == "stream-batch" else sink

    @property
    def first_chunk_latent_frames(self) -> int:
        """Latent frames of the first chunk; in stream-batch it has one more than the others."""
        return self.stream.chunk_latent_frames + (self.flow == "stream-batch")

    @property
    def first_chunk_frames(self) -> int:
        """Pixel frames of the first chunk: its first latent frame stands for one."""
        return self.output_coder.time * (self.first_chunk_latent_frames - 1) + 1

    @property
    def chunk_frames(self) -> int:
        """Pixel frames of one AR step after the first."""
        return self.output_coder.time * self.stream.chunk_latent_frames

    @property
    def input_coder(self) -> Coder | None:
        """What turns input frames into latents; None: text to video."""
        return CODERS.get(self.encoder)

    @property
    def output_coder(self) -> Coder:
        """What turns latents into output frames."""
        return CODERS[self.decoder]

    @property
    def coders(self) -> tuple[Coder, ...]:
        """The autoencoders that are used, each once."""
        used = (self.encoder, self.decoder)
        return tuple(coder for name, coder in CODERS.items() if name in used)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.dit.in_dim

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of a latent frame."""
        space = self.output_coder.space
        return self.stream.height // space, self.stream.width // space

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape ``[C, h, w]`` of a latent frame."""
        return (self.latent_channels, *self.latent_size)

    @property
    def tokens_per_frame(self) -> int:
        """DiT tokens of one latent frame."""
        return math.prod(self.latent_size) // math.prod(self.dit.patch_size)

    def input_frames(self, first: bool) -> int:
        """Return how many frames a stream's first or a later chunk takes; 0 for text to video."""
        coder = self.input_coder
        if coder is None:
            return 0
        if not first:
            return coder.time * self.stream.chunk_latent_frames
        latents = self.first_chunk_latent_frames
        return coder.time * (latents - 1) + 1 if coder.first_alone else coder.time * latents

    def problems(self) -> Iterator[Problem]:
        yield from rules.FLOWS[self.flow](self)
        for coder in self.coders:
            yield from coder.problems(self)
        yield from rules.geometry(self)
        if self.text == "umt5" and self.dit.text_dim != 4096:
            yield "dit.text_dim", self.dit.text_dim, "must be 4096 with text = umt5"
        if self.text == "umt5" and self.dit.text_len > 512:
            yield "dit.text_len", self.dit.text_len, "must be at most 512 with text = umt5"


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Preset:
    """Read a preset and check it.

    Args:
        name_or_path: a name out of ``preset_names()``, or the path of a YAML file.
        overrides: ``key=value`` with a dotted key and a YAML value: ``stream.height=256``.
    Raises:
        ConfigError: no such preset, not YAML, or broken rules (one line each).
    """
    settings = read_settings(str(name_or_path))
    for override in overrides:
        _override(settings, override)
    return _validate(settings)


def from_dict(data: Mapping[str, Any], name: str | None = None) -> Preset:
    """Check plain values, as ``to_dict`` gives them.

    Args:
        data: the settings, sections nested.
        name: what messages call the preset; its own ``name`` unless given.
    Raises:
        ConfigError: broken rules, one line each.
    """
    return _validate(Settings(name or data.get("name", "?"), dict(data)))


def _validate(settings: Settings) -> Preset:
    try:
        return Preset.model_validate(settings.values)
    except ValidationError as error:
        lines = []
        for key, shown, rule in _describe(error):
            holder = settings.holder(key)
            place = f" (it comes from {holder})" if holder else ""
            lines.append(f"preset {settings.name}: {shown}: {rule}{place}")
        raise ConfigError(*lines) from error


def to_dict(preset: Preset) -> dict[str, Any]:
    """Return the preset as plain values for JSON; ``from_dict`` reads them back."""
    return preset.model_dump(mode="json")


def dump(preset: Preset) -> str:
    """Return the preset as YAML, every default written out; ``load`` reads it back."""
    return yaml.safe_dump(to_dict(preset), sort_keys=False, default_flow_style=None)


def _override(settings: Settings, override: str) -> None:
    """Apply one ``key=value`` to the settings read from YAML."""
    data, name = settings.values, settings.name
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"preset {name}: override {override!r}: must be key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"preset {name}: override {override!r}: value is not YAML") from error
    section: type[Section] | None = Preset
    for part in parts:
        if section is None or part not in section.model_fields:
            shown = f"{'.'.join(parts)} = {_show(value)}"
            raise ConfigError(f"preset {name}: {shown}: {_unknown(parts)}")
        section = _section(section.model_fields[part].annotation)
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(f"preset {name}: {part} = {_show(data)}: must be a mapping")
    data[parts[-1]] = value
    settings.holders.pop(".".join(parts), None)


def _section(annotation: Any) -> type[Section] | None:
    """Return a field's type if that is a section."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values of a section."""
    for name, field in section.model_fields.items():
        if inner := _section(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _unknown(parts: list[str]) -> str:
    """Say that a dotted key does not exist, and what it may have meant."""
    keys = list(_keys(Preset))
    close = [key for key in keys if key.split(".")[-1] == parts[-1]]
    close = close or difflib.get_close_matches(".".join(parts), keys, n=3)
    return "unknown key" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _describe(error: ValidationError) -> Iterator[tuple[str, str, str]]:
    """Yield key, ``key = value`` and the rule for each problem that pydantic found."""
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        context = item.get("ctx", {})
        if isinstance(cause := context.get("error"), RuleError):
            for part, value, rule in cause.problems:
                key = ".".join([*location, part])
                yield key, f"{key} = {_show(value)}", rule
            continue
        key = ".".join(location)
        shown = f"{key} = {_show(item['input'])}"
        match item["type"]:
            case "missing":
                yield key, key, "is missing"
            case "extra_forbidden":
                yield key, shown, _unknown(location)
            case "multiple_of":
                yield key, shown, f"must be divisible by {context['multiple_of']}"
            case "model_type":
                yield key, shown, "must be a mapping of settings"
            case _:
                yield key, shown, re.sub(r"^\w+ should", "must", item["msg"])


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
