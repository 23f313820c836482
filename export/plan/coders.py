"""An autoencoder's stages as packages: frames to noisy latents, latents to frames."""

from collections.abc import Sequence

import torch

from sdrt.engine.frames import FramesToPixels, MotionNoise, PixelsToFrames
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import Preset
from sdrt.engine.stream import Intake, LatentDecoder, LatentEncoder, MixNoise
from sdrt.engine.taehv.model import TaehvDecoder, TaehvEncoder
from sdrt.engine.wan_vae.model import WanVaeDecoder, WanVaeEncoder
from sdrt.export.plan.draft import Draft
from sdrt.export.tune.wan_vae import largest_call
from sdrt.runtime.directory.specs import Phase, Role


def declare_input(draft: Draft, phase: Phase, latent_frames: int) -> int:
    """Declare what an encode stage takes, frames and noise; return the number of frames."""
    stream, frames = draft.preset.stream, input_frames(draft.preset, phase, latent_frames)
    shape = (frames, stream.height, stream.width, 3)
    draft.builder.buffer(f"frames.{phase}", shape, torch.uint8, "picture")
    draft.latents(f"noise.{phase}", latent_frames, role="noise")
    return frames


def input_frames(preset: Preset, phase: Phase, latent_frames: int) -> int:
    """Return the frames that an encoder makes ``latent_frames`` of.

    The Wan VAE encodes the very first frame alone. TAEHV has no such frame: whole groups of
    four keep its output, whose first three frames are dropped, on the input's frames.
    """
    alone = phase == "first" and preset.encoder == "wan-vae"
    return 4 * latent_frames - 3 if alone else 4 * latent_frames


def motion_noise(draft: Draft, kind: type[MotionNoise], phase: Phase) -> MotionNoise:
    """Return what chooses a chunk's noise scale, and the timestep that goes with it."""
    schedule, stream = draft.preset.schedule, draft.preset.stream
    assert schedule.noise_scale is not None
    size = (stream.height, stream.width)
    return kind(schedule.noise_scale, schedule.num_train_timesteps, *size, first=phase == "first")


def latent_encoder(draft: Draft, phase: Phase, frames: int) -> LatentEncoder:
    """Return the encoder of ``frames`` pixel frames, as the preset normalises its latents."""
    preset, first = draft.preset, phase == "first"
    size = (preset.stream.height, preset.stream.width)
    if preset.encoder == "wan-vae":
        encoder: PackageModule = WanVaeEncoder(
            preset.wan_vae, *size, frames, first, draft.how, largest_call(preset)
        )
    else:
        encoder = TaehvEncoder(preset.taehv, *size, frames, first, draft.how)
    return LatentEncoder(encoder, preset.latents.normalise_encoder)


def latent_decoder(draft: Draft, phase: Phase, latent_frames: int) -> LatentDecoder:
    """Return the decoder of ``latent_frames``, as the preset de-normalises them."""
    preset, first = draft.preset, phase == "first"
    size = (preset.stream.height, preset.stream.width)
    if preset.decoder == "wan-vae":
        decoder: PackageModule = WanVaeDecoder(
            preset.wan_vae, *size, latent_frames, first, draft.how, largest_call(preset)
        )
    else:
        decoder = TaehvDecoder(preset.taehv, *size, latent_frames, first, draft.how)
    return LatentDecoder(decoder, preset.latents.denormalise_decoder)


class CoderStages:
    """Lays out an autoencoder's stages, each of a few packages."""

    def __init__(self, draft: Draft) -> None:
        self.draft, self.builder, self.preset = draft, draft.builder, draft.preset

    def encode(self, phase: Phase, latent_frames: int, results: Sequence[str]) -> str:
        """Add an encode stage, as :class:`CoderLayout` has it."""
        builder, draft, suffix = self.builder, self.draft, f".{phase}"
        frames = declare_input(draft, phase, latent_frames)
        signed = self.preset.encoder == "wan-vae"
        name = "vae_encoder" if self.preset.encoder == "wan-vae" else "taehv_encoder"
        builder.package(
            f"intake{suffix}",
            lambda: Intake(
                FramesToPixels(signed, draft.dtype), motion_noise(draft, MotionNoise, phase)
            ),
        )
        builder.package(f"{name}{suffix}", lambda: latent_encoder(draft, phase, frames))
        builder.package(f"mix_noise{suffix}", MixNoise)
        pixels, latents = f"pixels_in{suffix}", f"latents_in{suffix}"
        noisy, *timestep = results
        taken: dict[str, Role] = {pixels: "pixels", "noise_scale": "noise_scale"}
        taken |= dict.fromkeys(timestep, "timestep")
        encoded: dict[str, Role] = {latents: "latent"}
        mixed: dict[str, Role] = {noisy: "latent"}
        weights = self.preset.encoder
        calls = [
            builder.call(f"intake{suffix}", [f"frames{suffix}"], taken, states="intake"),
            builder.call(f"{name}{suffix}", [pixels], encoded, states="encoder", weights=weights),
            builder.call(f"mix_noise{suffix}", [latents, f"noise{suffix}", "noise_scale"], mixed),
        ]
        return builder.stage(f"{name}{suffix}", "encode", phase, calls, latents)

    def decode(self, phase: Phase, latent_frames: int, latent: str) -> str:
        """Add a decode stage, as :class:`CoderLayout` has it."""
        builder, draft, suffix = self.builder, self.draft, f".{phase}"
        signed = self.preset.decoder == "wan-vae"
        name = "vae_decoder" if self.preset.decoder == "wan-vae" else "taehv_decoder"
        builder.package(f"{name}{suffix}", lambda: latent_decoder(draft, phase, latent_frames))
        builder.package(f"frames_out{suffix}", lambda: PixelsToFrames(signed))
        pixels = f"pixels_out{suffix}"
        decoded: dict[str, Role] = {pixels: "pixels"}
        pictures: dict[str, Role] = {f"frames_out{suffix}": "picture"}
        weights = self.preset.decoder
        calls = [
            builder.call(f"{name}{suffix}", [latent], decoded, states="decoder", weights=weights),
            builder.call(f"frames_out{suffix}", [pixels], pictures),
        ]
        return builder.stage(f"{name}{suffix}", "decode", phase, calls, pixels)
