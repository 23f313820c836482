"""From a preset to its plan: the flow's AR steps over the stages of each part's backend."""

from collections.abc import Mapping, Sequence

from sdrt.engine.preset.preset import Preset
from sdrt.engine.solvers.schedule import step_tables
from sdrt.export.flows.rollout import Rollout
from sdrt.export.flows.stream_batch import StreamBatch
from sdrt.export.plan.coders import CoderStages
from sdrt.export.plan.dit import DitStages, prompt_condition
from sdrt.export.plan.draft import Draft
from sdrt.export.plan.plan import Plan
from sdrt.export.plan.stages import CoderLayout, Stages
from sdrt.export.tensorrt.choice import RingMode
from sdrt.runtime.directory.manifest import Backend
from sdrt.runtime.directory.order import check_order
from sdrt.runtime.directory.specs import StreamSpec

FLOWS = {"stream-batch": StreamBatch, "rollout": Rollout}


def make_plan(
    preset: Preset,
    ranges: Sequence[tuple[int, int]],
    device: str,
    backends: Mapping[str, Backend] | None = None,
    ring: RingMode = "length",
    how: Mapping[str, str] | None = None,
) -> Plan:
    """Return packages, buffers, stages and AR steps of a preset.

    Args:
        ranges: consecutive DiT block ranges ``(first, last)`` that cover all layers.
        device: ``cuda`` or ``cpu``: decides memory formats.
        backends: stage -> backend; Inductor for all unless given.
        ring: what the TensorRT that is used can do with the K/V ring.
        how: place -> implementation; what runs everywhere unless given.
    Raises:
        BackendError: a backend cannot hold the preset.
    """
    draft = Draft(preset, ranges, device, backends or {}, how or {}, ring)
    builder, plan, schedule = draft.builder, draft.builder.plan, preset.schedule
    timesteps, next_sigmas = step_tables(
        schedule.steps, schedule.shift, schedule.warp, schedule.num_train_timesteps
    )
    builder.table("schedule.timesteps", timesteps.view(-1, 1))
    builder.table("schedule.next_sigmas", next_sigmas)
    stages = _stages(draft)
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
    from sdrt.export.tensorrt.choice import stage_names
    from sdrt.export.tensorrt.stages import PlanCoderStages, PlanDitStages

    chosen: list[Backend] = [
        draft.backends.get(name, "inductor") for name in stage_names(draft.preset)
    ]

    dit, decoder = chosen[-2:]

    def coder(backend: Backend) -> CoderLayout:
        return CoderStages(draft) if backend == "inductor" else PlanCoderStages(draft, backend)

    return Stages(
        encoder=coder(chosen[0]),
        dit=DitStages(draft) if dit == "inductor" else PlanDitStages(draft, dit),
        decoder=coder(decoder),
    )
