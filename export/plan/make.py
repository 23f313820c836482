"""From a recipe to its plan: the flow's AR steps over stages that each part's backend lays out."""

from typing import TYPE_CHECKING, NamedTuple

from sdrt.engine.preset.preset import Preset
from sdrt.export.flows.rollout import Rollout
from sdrt.export.flows.stream_batch import StreamBatch
from sdrt.export.plan.coders import CoderStages
from sdrt.export.plan.dit import DitStages, prompt_condition
from sdrt.export.plan.draft import Draft
from sdrt.export.plan.plan import Plan
from sdrt.export.plan.stages import CoderLayout, DitLayout, Stages
from sdrt.export.tensorrt.stages import PlanCoderStages, PlanDitStages
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.order import check_order
from sdrt.runtime.directory.specs import StreamSpec

if TYPE_CHECKING:  # a recipe makes plans
    from sdrt.export.recipe import Recipe


class Layout(NamedTuple):
    """How a backend wants stages laid out."""

    coder: type[CoderLayout]
    dit: type[DitLayout]


_PLANS = Layout(PlanCoderStages, PlanDitStages)
LAYOUTS: dict[Backend, Layout] = {
    "inductor": Layout(CoderStages, DitStages),
    "tensorrt": _PLANS,
    "tensorrt-rtx": _PLANS,
}
FLOWS = {"stream-batch": StreamBatch, "rollout": Rollout}


def make_plan(recipe: "Recipe") -> Plan:
    """Return packages, buffers, stages and AR steps.

    Raises:
        BackendError: a backend cannot hold the preset.
    """
    draft, preset = Draft(recipe), recipe.preset
    plan, stages = draft.builder.plan, _stages(draft)
    plan.stream = stream_spec(preset)
    plan.conditions = (prompt_condition(draft),)
    stages.dit.prompt()
    plan.steps = FLOWS[preset.flow](draft, stages).steps()
    states = [name for name, spec in plan.buffers.items() if spec.kind == "state"]
    check_order(plan.steps, plan.stages, plan.conditions, states)
    return plan


def stream_spec(preset: Preset) -> StreamSpec:
    """Return the numbers of a preset's stream."""
    stream, batched = preset.stream, preset.flow == "stream-batch"
    first_in, first_out = preset.input_frames(first=True), preset.first_chunk_frames
    return StreamSpec(
        height=stream.height,
        width=stream.width,
        frame_rate=stream.frame_rate,
        first_frames_in=first_in,
        frames_in=preset.input_frames(first=False),
        first_frames_out=first_out,
        frames_out=preset.chunk_frames,
        latent_frames=stream.chunk_latent_frames,
        lookahead_frames=first_in - first_out if first_in else 0,
        drain_steps=len(preset.schedule.steps) - 1 if batched else 0,
    )


def _stages(draft: Draft) -> Stages:
    """Return who lays out each part: the backend that builds it."""
    backends, encoder = draft.recipe.backends, draft.preset.input_coder
    dit, decoder = backends["dit"], backends[draft.preset.output_coder.decoder_stage]
    return Stages(
        encoder=None if encoder is None else _coder(draft, backends[encoder.encoder_stage]),
        dit=LAYOUTS[dit].dit(draft, dit),
        decoder=_coder(draft, decoder),
    )


def _coder(draft: Draft, backend: Backend) -> CoderLayout:
    return LAYOUTS[backend].coder(draft, backend)
