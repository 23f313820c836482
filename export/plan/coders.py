"""An autoencoder's stages as packages: frames to noisy latents, latents to frames."""

from collections.abc import Sequence

import torch

from sdrt.engine.coder import Coder
from sdrt.engine.frames import FramesToPixels, PixelsToFrames
from sdrt.engine.latents import latent_decoder, latent_encoder
from sdrt.engine.motion import Intake, MixNoise, MotionNoise
from sdrt.export.plan.draft import Draft
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.specs import Phase, Role


def input_coder(draft: Draft) -> Coder:
    """Return what encodes the input of a preset that takes any."""
    coder = draft.preset.input_coder
    assert coder is not None, f"preset {draft.preset.name} encodes nothing"
    return coder


def declare_input(draft: Draft, phase: Phase, latent_frames: int) -> None:
    """Declare what an encode stage takes: frames and noise."""
    stream, frames = draft.preset.stream, draft.preset.input_frames(phase == "first")
    shape = (frames, stream.height, stream.width, 3)
    draft.builder.buffer(f"frames.{phase}", shape, torch.uint8, "picture")
    draft.latents(f"noise.{phase}", latent_frames, role="noise")


def motion_noise(draft: Draft, kind: type[MotionNoise], phase: Phase) -> MotionNoise:
    """Return what chooses a chunk's noise scale, and the timestep that goes with it."""
    schedule, stream = draft.preset.schedule, draft.preset.stream
    assert schedule.noise_scale is not None
    size = (stream.height, stream.width)
    return kind(schedule.noise_scale, schedule.num_train_timesteps, *size, first=phase == "first")


class CoderStages:
    """Lays out an autoencoder's stages, each of a few packages."""

    def __init__(self, draft: Draft, backend: Backend) -> None:
        self.draft, self.builder, self.preset = draft, draft.builder, draft.preset
        self.backend: Backend = backend

    def encode(self, phase: Phase, latent_frames: int, results: Sequence[str]) -> str:
        """Add an encode stage, as :class:`CoderLayout` has it."""
        builder, draft, coder = self.builder, self.draft, input_coder(self.draft)
        stage, first = f"{coder.encoder_stage}.{phase}", phase == "first"
        pixels, latents = f"pixels_in.{phase}", f"latents_in.{phase}"
        declare_input(draft, phase, latent_frames)
        builder.package(
            f"intake.{phase}",
            lambda: Intake(
                FramesToPixels(coder.signed, draft.dtype), motion_noise(draft, MotionNoise, phase)
            ),
            self.backend,
        )
        builder.package(stage, lambda: latent_encoder(self.preset, first, draft.how), self.backend)
        builder.package(f"mix_noise.{phase}", MixNoise, self.backend)
        noisy, *timestep = results
        taken: dict[str, Role] = {pixels: "pixels", "noise_scale": "noise_scale"}
        taken |= dict.fromkeys(timestep, "timestep")
        encoded: dict[str, Role] = {latents: "latent"}
        mixed: dict[str, Role] = {noisy: "latent"}
        calls = [
            builder.call(f"intake.{phase}", [f"frames.{phase}"], taken, states="intake"),
            builder.call(stage, [pixels], encoded, states="encoder", weights=coder.name),
            builder.call(f"mix_noise.{phase}", [latents, f"noise.{phase}", "noise_scale"], mixed),
        ]
        return builder.stage(stage, "encode", phase, calls, latents)

    def decode(self, phase: Phase, latent_frames: int, latent: str) -> str:
        """Add a decode stage, as :class:`CoderLayout` has it."""
        builder, draft, coder = self.builder, self.draft, self.preset.output_coder
        stage, first = f"{coder.decoder_stage}.{phase}", phase == "first"
        pixels = f"pixels_out.{phase}"
        builder.package(
            stage,
            lambda: latent_decoder(self.preset, latent_frames, first, draft.how),
            self.backend,
        )
        builder.package(f"frames_out.{phase}", lambda: PixelsToFrames(coder.signed), self.backend)
        decoded: dict[str, Role] = {pixels: "pixels"}
        frames: dict[str, Role] = {f"frames_out.{phase}": "picture"}
        calls = [
            builder.call(stage, [latent], decoded, states="decoder", weights=coder.name),
            builder.call(f"frames_out.{phase}", [pixels], frames),
        ]
        return builder.stage(stage, "decode", phase, calls, pixels)
