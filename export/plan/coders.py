"""The encode and decode stages of a plan: frames to noisy latents, latents to frames."""

from collections.abc import Mapping

import torch

from sdrt.engine.frames import FramesToPixels, MotionNoise, PixelsToFrames
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import Preset
from sdrt.engine.stream import Intake, LatentDecoder, LatentEncoder, MixNoise
from sdrt.engine.taehv.model import TaehvDecoder, TaehvEncoder
from sdrt.engine.wan_vae.model import WanVaeDecoder, WanVaeEncoder
from sdrt.export.plan.builder import PlanBuilder
from sdrt.export.tune.wan_vae import largest_call
from sdrt.runtime.directory.manifest import Phase


def encoder_results(phase: Phase) -> list[str]:
    """Return the buffers that an encode stage fills: the noisy chunk and, but first, a timestep."""
    return ["noisy.first"] if phase == "first" else ["encoded.noisy", "encoded.timestep"]


class CoderStages:
    """The part of a pipeline that plans the autoencoder's stages."""

    preset: Preset
    builder: PlanBuilder
    dtype: torch.dtype
    latent: tuple[int, int]
    """Height and width of a latent frame."""
    choices: Mapping[str, str]

    def _encode(self, phase: Phase, latent_frames: int) -> None:
        builder, preset, stream = self.builder, self.preset, self.preset.stream
        first, suffix = phase == "first", f".{phase}"
        size = (stream.height, stream.width)
        signed = preset.encoder == "wan-vae"
        frames = self._input_frames(phase, latent_frames)
        scale = preset.schedule.noise_scale
        assert scale is not None
        builder.buffer(f"frames{suffix}", (frames, *size, 3), torch.uint8)
        builder.buffer(f"noise{suffix}", (latent_frames, 16, *self.latent), torch.float32)
        builder.package(
            f"intake{suffix}",
            lambda: Intake(
                FramesToPixels(signed, self.dtype),
                MotionNoise(scale, preset.schedule.num_train_timesteps, *size, first=first),
            ),
        )
        name = "vae_encoder" if preset.encoder == "wan-vae" else "taehv_encoder"
        builder.package(
            f"{name}{suffix}",
            lambda: LatentEncoder(self._encoder(frames, first), preset.latents.normalise_encoder),
        )
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
                f"{name}{suffix}", [pixels], [latents], states="encoder", weights=preset.encoder
            ),
            builder.call(
                f"mix_noise{suffix}",
                [latents, f"noise{suffix}", "noise_scale"],
                encoded[:1],
            ),
        ]
        builder.stage(name, "encode", phase, calls)

    def _input_frames(self, phase: Phase, latent_frames: int) -> int:
        """Return the frames that an encoder makes ``latent_frames`` of.

        The Wan VAE encodes the very first frame alone. TAEHV has no such frame: whole groups of
        four keep its output, whose first three frames are dropped, on the input's frames.
        """
        alone = phase == "first" and self.preset.encoder == "wan-vae"
        return 4 * latent_frames - 3 if alone else 4 * latent_frames

    def _encoder(self, frames: int, first: bool) -> PackageModule:
        preset, size = self.preset, (self.preset.stream.height, self.preset.stream.width)
        if preset.encoder == "wan-vae":
            return WanVaeEncoder(
                preset.wan_vae, *size, frames, first, self.choices, largest_call(preset)
            )
        return TaehvEncoder(preset.taehv, *size, frames, first, self.choices)

    def _decoder(self, latent_frames: int, first: bool) -> PackageModule:
        preset, size = self.preset, (self.preset.stream.height, self.preset.stream.width)
        if preset.decoder == "wan-vae":
            return WanVaeDecoder(
                preset.wan_vae, *size, latent_frames, first, self.choices, largest_call(preset)
            )
        return TaehvDecoder(preset.taehv, *size, latent_frames, first, self.choices)

    def _decode(self, phase: Phase, latent_frames: int, latent: str) -> None:
        builder, preset = self.builder, self.preset
        first, suffix = phase == "first", f".{phase}"
        name = "vae_decoder" if preset.decoder == "wan-vae" else "taehv_decoder"
        builder.package(
            f"{name}{suffix}",
            lambda: LatentDecoder(
                self._decoder(latent_frames, first), preset.latents.denormalise_decoder
            ),
        )
        builder.package(f"frames_out{suffix}", lambda: PixelsToFrames(preset.decoder == "wan-vae"))
        pixels = f"pixels_out{suffix}"
        calls = [
            builder.call(
                f"{name}{suffix}", [latent], [pixels], states="decoder", weights=preset.decoder
            ),
            builder.call(f"frames_out{suffix}", [pixels], [f"frames_out{suffix}"]),
        ]
        builder.stage(name, "decode", phase, calls)
