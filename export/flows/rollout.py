"""Rollout (Self-Forcing): all denoise steps of a chunk, then a clean pass that rewrites its K/V."""

import torch

from sdrt.export.flows.ops import denoise_steps, replays
from sdrt.export.plan.dit import DitPass
from sdrt.export.plan.draft import Draft
from sdrt.export.plan.stages import Stages
from sdrt.runtime.directory.specs import (
    Op,
    Phase,
    StepSpec,
    Track,
    advance,
    buffer,
    copy,
    fill,
    noise,
)


class Rollout:
    """Lays out buffers, stages and AR steps."""

    def __init__(self, draft: Draft, stages: Stages) -> None:
        self.draft, self.stages, self.preset = draft, stages, draft.preset
        self.frames = draft.preset.stream.chunk_latent_frames

    def steps(self) -> tuple[StepSpec, ...]:
        """Add buffers and stages; return the AR steps."""
        self._buffers()
        run, decoder = self.stages.dit.run, self.stages.decoder
        phases: tuple[Phase, ...] = ("filling", "steady")
        self._diffuse = {phase: run(self._pass(phase, "latent")) for phase in phases}
        self._clean = {}
        if self.preset.schedule.clean_pass:
            self._clean = {phase: run(self._pass(phase, None)) for phase in phases}
        self._decode = {
            "first": decoder.decode("first", self.frames, "finished"),
            "steady": decoder.decode("steady", self.frames, "finished"),
        }
        full_from = -(-self.preset.stream.window_frames // self.frames) - 1
        begins = sorted({0, 1, max(1, full_from)})
        return tuple(self._step(index, index >= full_from) for index in begins)

    def _buffers(self) -> None:
        draft, builder = self.draft, self.draft.builder
        draft.latents("noisy", 1, self.frames)
        draft.latents("finished", 1, self.frames)
        self._row, self._drawn = draft.row(), draft.noise("renoise", 1, self.frames)
        builder.buffer("frame", (1,), torch.int64, "position", "state")

    def _pass(self, phase: Phase, result: str | None) -> DitPass:
        return DitPass(
            phase=phase,
            latent="noisy",
            position="frame",
            row=(*self._row, *self._drawn),
            result=result,
        )

    def _step(self, index: int, is_full: bool) -> StepSpec:
        """Return the AR step as it is from ``index`` on."""
        phase: Phase = "steady" if is_full else "filling"
        chunk = (buffer("noisy"), buffer("latent"))
        denoised = denoise_steps(self.draft, *chunk, self._row, self._drawn, self._diffuse[phase])
        ops = (noise(buffer("noisy")), *denoised)
        decoded = "steady" if index else "first"
        tracks = (
            Track(name="diffuse", stream="diffuse", ops=ops),
            Track(
                name="decode",
                stream="decode",
                hand_over=(copy(buffer("latent"), buffer("finished")),),
                ops=replays([self._decode[decoded]]),
                gives=buffer(f"frames_out.{decoded}"),
            ),
            # The frames do not wait for it.
            Track(name="finalize", stream="diffuse", ops=(*self._rewrite(phase), self._next())),
        )
        return StepSpec(phase=phase if index else "first", starts_at=index, tracks=tracks)

    def _rewrite(self, phase: Phase) -> list[Op]:
        """Return the clean pass: the finished chunk at timestep 0."""
        if not self._clean:
            return []
        finished = copy(buffer("latent"), buffer("noisy"))
        return [finished, fill(self._row[0], 0), *replays(self._clean[phase])]

    def _next(self) -> Op:
        return advance(buffer("frame"), self.frames)
