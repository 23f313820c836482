"""The encode and decode stages of a plan: frames to noisy latents, latents to frames."""

import torch

from sdrt.engine.frames import FramesToPixels, PixelsToFrames
from sdrt.engine.how import How
from sdrt.engine.latents import latent_decoder, latent_encoder
from sdrt.engine.motion import Intake, MixNoise, MotionNoise
from sdrt.engine.preset.preset import Preset
from sdrt.export.plan.builder import PlanBuilder
from sdrt.runtime.directory.manifest import Phase


def encoder_results(phase: Phase) -> list[str]:
    """Return the buffers that an encode stage fills: the noisy chunk and, but first, a timestep."""
    return ["noisy.first"] if phase == "first" else ["encoded.noisy", "encoded.timestep"]


class CoderStages:
    """The part of a pipeline that plans the autoencoder's stages."""

    preset: Preset
    builder: PlanBuilder
    dtype: torch.dtype
    how: How

    def _encode(self, phase: Phase, latent_frames: int) -> None:
        builder, preset = self.builder, self.preset
        first, suffix = phase == "first", f".{phase}"
        size, schedule, coder = self._size(), preset.schedule, preset.input_coder
        scale = schedule.noise_scale
        assert scale is not None and coder is not None
        frames = preset.input_frames(first)
        builder.buffer(f"frames{suffix}", (frames, *size, 3), torch.uint8)
        builder.buffer(f"noise{suffix}", (latent_frames, *preset.latent_shape), torch.float32)
        builder.package(
            f"intake{suffix}",
            lambda: Intake(
                FramesToPixels(coder.signed, self.dtype),
                MotionNoise(scale, schedule.num_train_timesteps, *size, first=first),
            ),
        )
        name = coder.encoder_stage
        builder.package(f"{name}{suffix}", lambda: latent_encoder(preset, first, self.how))
        builder.package(f"mix_noise{suffix}", MixNoise)
        pixels, latents = f"pixels_in{suffix}", f"latents_in{suffix}"
        encoded = encoder_results(phase)
        calls = [
            builder.call(
                f"intake{suffix}",
                [f"frames{suffix}"],
                [pixels, "noise_scale", *encoded[1:]],
                states="intake",
            ),
            builder.call(
                f"{name}{suffix}", [pixels], [latents], states="encoder", weights=coder.name
            ),
            builder.call(
                f"mix_noise{suffix}",
                [latents, f"noise{suffix}", "noise_scale"],
                encoded[:1],
            ),
        ]
        builder.stage(name, "encode", phase, calls)

    def _size(self) -> tuple[int, int]:
        """Return height and width of the pixel frames."""
        return self.preset.stream.height, self.preset.stream.width

    def _decode(self, phase: Phase, latent_frames: int, latent: str) -> None:
        builder, preset, coder = self.builder, self.preset, self.preset.output_coder
        first, suffix = phase == "first", f".{phase}"
        name = coder.decoder_stage
        builder.package(
            f"{name}{suffix}", lambda: latent_decoder(preset, latent_frames, first, self.how)
        )
        builder.package(f"frames_out{suffix}", lambda: PixelsToFrames(coder.signed))
        pixels = f"pixels_out{suffix}"
        calls = [
            builder.call(
                f"{name}{suffix}", [latent], [pixels], states="decoder", weights=coder.name
            ),
            builder.call(f"frames_out{suffix}", [pixels], [f"frames_out{suffix}"]),
        ]
        builder.stage(name, "decode", phase, calls)
