"""Rules between the sections of a preset."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sdrt.engine.coder import CODERS
from sdrt.engine.preset.sections import Problem

if TYPE_CHECKING:
    from sdrt.engine.preset.preset import Preset


def geometry(preset: "Preset") -> Iterator[Problem]:
    """Yield what of the sizes does not fit the autoencoders."""
    unit = preset.output_coder.space * preset.dit.patch_size[1]
    for key in ("height", "width"):
        if (value := getattr(preset.stream, key)) % unit:
            yield f"stream.{key}", value, f"must be divisible by {unit}"
    channels = preset.latent_channels
    normalisers = {"normalise_encoder": preset.encoder, "denormalise_decoder": preset.decoder}
    for key, name in normalisers.items():
        if not getattr(preset.latents, key):
            continue
        known = len(CODERS[name].mean) if name in CODERS else 0
        if not known:
            rule = f"must be false with {name!r} there, which has no mean and std"
            yield f"latents.{key}", True, rule
        elif known != channels:
            rule = f"must be false unless dit.in_dim = {channels} is {known}, the channels of "
            yield f"latents.{key}", True, rule + "the mean and std"


def stream_batch(preset: "Preset") -> Iterator[Problem]:
    """Yield what a stream batch cannot have."""
    stream, schedule = preset.stream, preset.schedule
    if stream.chunk_latent_frames != 1:
        value = stream.chunk_latent_frames
        yield "stream.chunk_latent_frames", value, "must be 1 with flow = stream-batch"
    if preset.encoder == "none":
        rule = f"must be {' or '.join(CODERS)} with flow = stream-batch (video to video)"
        yield "encoder", preset.encoder, rule
    if schedule.noise_scale is None:
        rule = "must be a number in (0, 1] with flow = stream-batch"
        yield "schedule.noise_scale", None, rule
    if stream.window_frames < 4:
        rule = "must be at least 4 with flow = stream-batch (overwriting starts at frame 3)"
        yield "stream.window_frames", stream.window_frames, rule
    if schedule.clean_pass:
        yield "schedule.clean_pass", True, "must be false with flow = stream-batch"


def rollout(preset: "Preset") -> Iterator[Problem]:
    """Yield what a rollout cannot have."""
    stream, schedule = preset.stream, preset.schedule
    if preset.encoder != "none":
        yield "encoder", preset.encoder, "must be none with flow = rollout (text to video)"
    if schedule.noise_scale is not None:
        value = schedule.noise_scale
        yield "schedule.noise_scale", value, "must be null with flow = rollout"
    smallest = stream.sink_frames + stream.chunk_latent_frames
    if stream.window_frames < smallest:
        rule = f"must be at least sink_frames + chunk_latent_frames = {smallest}"
        yield "stream.window_frames", stream.window_frames, rule
    if stream.sink_refresh_threshold >= 0:
        value = stream.sink_refresh_threshold
        rule = "must be negative (off) with flow = rollout"
        yield "stream.sink_refresh_threshold", value, rule


FLOWS: dict[str, Callable[["Preset"], Iterator[Problem]]] = {
    "stream-batch": stream_batch,
    "rollout": rollout,
}
"""Flow -> its rules."""
