"""Stream batch (StreamDiffusionV2): row i of the batch holds the chunk that is at denoise step i.

An AR step moves the rows on, lets the new chunk in at row 0 and runs the DiT once over all of
them; the last row is finished. The first chunk passes its denoise steps one after another.
"""

import torch

from sdrt.export.flows.ops import denoise_steps, noises, replays
from sdrt.export.plan.dit import DitPass
from sdrt.export.plan.draft import Draft, table
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
    weight,
)


class StreamBatch:
    """Lays out buffers, stages and AR steps."""

    def __init__(self, draft: Draft, stages: Stages) -> None:
        self.draft, self.stages, self.preset = draft, stages, draft.preset
        self.first_frames = draft.preset.first_chunk_latent_frames
        self.frames = draft.preset.stream.chunk_latent_frames

    def steps(self) -> tuple[StepSpec, ...]:
        """Add buffers and stages; return the AR steps.

        The encoder's results and the decoder's input have buffers of their own, so that a chunk
        can be encoded and another decoded while the DiT works on a third.
        """
        self._buffers()
        encoder, dit, decoder = self.stages.encoder, self.stages.dit, self.stages.decoder
        assert encoder is not None, "a stream batch is video to video"
        self._encode: dict[str, str] = {
            "first": encoder.encode("first", self.first_frames, ["noisy.first"]),
            "steady": encoder.encode("steady", self.frames, ["encoded.noisy", "encoded.timestep"]),
        }
        self._diffuse = {
            "filling": dit.run(self._rows_pass("filling")),
            "steady": dit.run(self._rows_pass("steady")),
            "first": dit.run(self._first_pass()),  # on rows of the rings that the others declare
        }
        self._decode = {
            "first": decoder.decode("first", self.first_frames, "latent.first"),
            "steady": decoder.decode("steady", self.frames, "finished.steady"),
        }
        # Another spec begins where the rows are all in, and where the last one's window is full.
        begins = sorted({1, self.draft.steps, self._full_from()})
        return self._first_step(), *(self._step(index) for index in begins)

    def _buffers(self) -> None:
        draft, builder, rows = self.draft, self.draft.builder, self.draft.steps
        draft.latents("noisy.steady", 1, self.frames)
        builder.buffer("timestep", (1,), torch.float32, "timestep")
        draft.latents("finished.steady", 1, self.frames)
        builder.buffer("frame", (1,), torch.int64, "position", "state")
        draft.latents("latent.steady", rows, self.frames, state=True)
        self._drawn = draft.noise("renoise.steady", rows, self.frames)
        self._first_row = draft.row(".first")
        self._first_drawn = draft.noise("renoise.first", 1, self.first_frames)

    def _first_pass(self) -> DitPass:
        return DitPass(
            phase="first",
            latent="noisy.first",
            position="frame",
            row=(*self._first_row, *self._first_drawn),
            result="latent.first",
        )

    def _rows_pass(self, phase: Phase) -> DitPass:
        _, *columns = map(table, self.draft.columns)  # a new chunk's timestep follows its motion
        return DitPass(
            phase=phase,
            latent="rows.latent",
            position="rows.position",
            row=("rows.timestep", *map(weight, columns), *self._drawn),
            result="latent.steady",
            shift=("latent.steady", "noisy.steady", "timestep", "frame"),
        )

    def _full_from(self) -> int:
        """Return the first AR step after which the window is full in every row."""
        index = 1
        while not self._is_full(index):
            index += 1
        return index

    def _is_full(self, index: int) -> bool:
        """Return whether the last row, which is the latest chunk's, fills the window."""
        ahead = max(0, index - self.draft.steps) * self.frames
        return self.first_frames + ahead + self.frames >= self.preset.stream.window_frames

    def _first_step(self) -> StepSpec:
        noisy, latent = buffer("noisy.first"), buffer("latent.first")
        row, drawn = self._first_row, self._first_drawn
        denoised = denoise_steps(self.draft, noisy, latent, row, drawn, self._diffuse["first"])
        encode, decode = self._track_ends("first")
        diffuse = Track(name="diffuse", stream="diffuse", ops=(*denoised, *self._seed_rows()))
        return StepSpec(phase="first", starts_at=0, tracks=(encode, diffuse, decode))

    def _seed_rows(self) -> list[Op]:
        """Give every row the first chunk's K and V, which row 0 has, and place in the stream."""
        first, *others = (self.stages.dit.ring_rows(row) for row in range(self.draft.steps))
        pairs = [pair for row in others for pair in zip(first, row, strict=True)]
        return [
            *(copy(source, target) for source, target in pairs),
            fill(buffer("rows.position"), self.first_frames),
            copy(weight(table(next(iter(self.draft.columns)))), buffer("rows.timestep")),
            fill(buffer("frame"), self.first_frames),
        ]

    def _step(self, index: int) -> StepSpec:
        """Return the AR step as it is from ``index`` on."""
        phase: Phase = "steady" if self._is_full(index) else "filling"
        taken = [
            copy(buffer("encoded.noisy"), buffer("noisy.steady")),
            copy(buffer("encoded.timestep"), buffer("timestep")),
        ]
        ops = [
            *noises(self._drawn),
            *replays(self._diffuse[phase]),
            advance(buffer("frame"), self.frames),
        ]
        encode, decode = self._track_ends("steady")
        diffuse = Track(name="diffuse", stream="diffuse", hand_over=tuple(taken), ops=tuple(ops))
        finishes = index >= self.draft.steps
        tracks = (encode, diffuse, decode) if finishes else (encode, diffuse)
        return StepSpec(phase=phase, starts_at=index, tracks=tracks)

    def _track_ends(self, phase: str) -> tuple[Track, Track]:
        """Return the tracks before and after the DiT's."""
        last = self.draft.steps - 1
        finished = copy(buffer("latent.steady", (last, last + 1)), buffer("finished.steady"))
        encode = Track(
            name="encode",
            stream="encode",
            takes=buffer(f"frames.{phase}"),
            ops=(noise(buffer(f"noise.{phase}")), *replays([self._encode[phase]])),
        )
        decode = Track(
            name="decode",
            stream="decode",
            hand_over=(finished,) if phase == "steady" else (),
            ops=replays([self._decode[phase]]),
            gives=buffer(f"frames_out.{phase}"),
        )
        return encode, decode
