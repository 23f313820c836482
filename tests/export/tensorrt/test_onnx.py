"""Exported stages in onnxruntime: the same values as the eager modules, the same names."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sdrt.bench.measure.eager import eager_session
from sdrt.engine.dit.embeddings import DitIn
from sdrt.engine.latents import LatentDecoder, LatentEncoder
from sdrt.engine.module import PackageModule
from sdrt.engine.motion import MotionNoise
from sdrt.engine.preset.preset import load
from sdrt.engine.taehv.model import TaehvDecoder, TaehvEncoder
from sdrt.engine.taehv.model import from_public as taehv_from_public
from sdrt.engine.taehv.model import public_shapes as taehv_shapes
from sdrt.engine.wan_vae.coder import MEAN, STD
from sdrt.engine.wan_vae.model import WanVaeDecoder, WanVaeEncoder
from sdrt.engine.wan_vae.weights import from_public as wan_vae_from_public
from sdrt.engine.wan_vae.weights import public_shapes as wan_vae_shapes
from sdrt.engine.weights.source import open_source
from sdrt.export.errors import BackendError
from sdrt.export.plan.builder import PlanBuilder
from sdrt.export.plan.eager import rehearsal
from sdrt.export.plan.weights import plan_weights
from sdrt.export.recipe import Recipe
from sdrt.export.tensorrt.settings import RingMode, Settings
from sdrt.export.tensorrt.stages import default_ranges
from sdrt.runtime.session import Session

for optional in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(optional, reason="the extra `tensorrt-rtx` is not installed")

from sdrt.export.tensorrt.coders import OnnxMotionNoise  # noqa: E402
from sdrt.export.tensorrt.dit import OnnxDitIn  # noqa: E402
from sdrt.export.tensorrt.onnx import ExportError, export_stage  # noqa: E402
from sdrt.export.tensorrt.onnxruntime import TOLERANCE, OrtProgram  # noqa: E402


def onnx_session(preset, source, ranges, ring: RingMode = "length") -> Session:
    """Return a session whose every stage is an ONNX graph that onnxruntime runs."""
    device = torch.device("cpu")
    settings = Settings(ring=ring)
    recipe = Recipe.of(preset, "cpu", ranges, "tensorrt-rtx", tensorrt=settings)
    plan = recipe.plan()
    baked = dict(plan_weights(plan, preset, source, device, baked=True))
    programs = {
        name: OrtProgram(export_stage(planned, baked)) for name, planned in plan.packages.items()
    }
    tables = dict(plan_weights(plan, preset, source, device))
    return rehearsal(recipe, plan, programs, tables, device)


@pytest.mark.parametrize(
    "name, ranges",
    [
        ("sdv2_stream_batch", [(0, 1), (1, 3)]),
        ("sdv2_stream_batch_sink_refresh", [(0, 1), (1, 3)]),
        ("self_forcing", [(0, 1), (1, 2)]),
        ("self_forcing_local", [(0, 2)]),
    ],
)
def test_golden_streams_through_onnx(name, ranges, golden_streams):
    """Reference: the public implementations' outputs, every AR step, the wrapped ring included."""
    preset = golden_streams.preset(name)
    layers = preset.dit.num_layers
    ranges = [(first, min(last, layers)) for first, last in ranges if first < layers]
    ranges[-1] = (ranges[-1][0], layers)
    with onnx_session(preset, golden_streams.source(name), ranges) as session:
        errors = golden_streams.errors(session, name)
    assert len(errors) >= 5
    assert max(errors) <= TOLERANCE, errors


@pytest.mark.parametrize("ring", ["mask", "copy"])
def test_rings_of_older_versions(ring, golden_streams):
    """Reference: as above. Masked instead of shortened attention; a bank instead of an update."""
    name = "self_forcing_local"
    preset, source = golden_streams.preset(name), golden_streams.source(name)
    with onnx_session(preset, source, [(0, preset.dit.num_layers)], ring) as session:
        errors = golden_streams.errors(session, name)
    assert max(errors) <= TOLERANCE, errors


def export_coder(make, shape: tuple[int, ...], weights: dict[str, Tensor]):
    """Return a coder's program and its buffers: input, output and states, as zeros."""
    builder = PlanBuilder(torch.float32, channels_last_3d=False)
    builder.buffer("given", shape, torch.float32)
    builder.package("coder", make, "tensorrt-rtx", bakes=True)
    call = builder.call("coder", ["given"], ["made"])
    planned = builder.plan.packages["coder"]
    values = {planned.baked[name]: weights[name] for name in planned.baked}
    program = OrtProgram(export_stage(planned, values))
    buffers = {
        name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        for name, spec in builder.plan.buffers.items()
    }
    return program, buffers, [ref.name for ref in call.arguments]


@pytest.mark.parametrize("coder", ["wan-vae", "taehv"])
def test_golden_coders_through_onnx(coder, golden, recipe, relative_error):
    """Reference: the public implementations, whole clips; here the first chunk, then small ones."""
    tensors, case = golden({"wan-vae": "wan_vae_stream", "taehv": "taehv"}[coder])
    frames = {
        key: tensor[0].transpose(0, 1) if coder == "wan-vae" else tensor[0]
        for key, tensor in tensors.items()
    }
    height, width = frames["pixels"].shape[2:]
    preset = load("tiny", ["precision=fp32"])
    config: Any
    convert: Any
    makers: Any
    if coder == "wan-vae":
        config = preset.wan_vae.model_validate(case.get("model", {}))
        shapes, convert = wan_vae_shapes(config), wan_vae_from_public
        makers = (WanVaeEncoder, WanVaeDecoder)
    else:
        config = preset.taehv.model_validate({})
        shapes, convert = taehv_shapes(config), taehv_from_public
        makers = (TaehvEncoder, TaehvDecoder)
    weights = convert(config, recipe.synthetic_state_dict(shapes, case["seed"]))
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    first_frames = 5 if coder == "wan-vae" else 8
    runs = (
        (LatentEncoder, makers[0], frames["pixels"], (first_frames, 4), "latents"),
        (LatentDecoder, makers[1], frames["decode_latents"], (2, 1), "decode_pixels"),
    )
    for wrapper, maker, given, counts, result in runs:
        is_decoder = wrapper is LatentDecoder
        states, made = {}, []
        for phase, count in enumerate(counts):
            inner = lambda: maker(config, height, width, count, phase == 0)  # noqa: B023, E731
            statistics = (MEAN, STD) if is_decoder and coder == "wan-vae" else ()
            size = (count, *given.shape[1:])
            program, buffers, order = export_coder(
                lambda: wrapper(inner(), *statistics),  # noqa: B023
                (1, *size) if is_decoder else size,
                weights,
            )
            states = {name: states.get(name, buffer) for name, buffer in buffers.items()}
            states |= {name: buffers[name] for name in ("given", "made")}
            while len(given) >= count:
                states["given"].copy_(given[:count])
                program.run([states[name] for name in order])
                made.append(states["made"].clone())
                given = given[count:]
                if phase == 0:
                    break
        pixels = torch.cat(made)
        if coder == "taehv" and is_decoder:
            pixels = pixels.clamp(0, 1)
        assert relative_error(pixels, frames[result][: len(pixels)]) <= TOLERANCE
        assert len(pixels) >= len(frames[result]) - 3


def test_every_tiny_stage_agrees_with_eager(relative_error):
    """Reference: the eager modules, stage by stage, from the same seed, past a full window."""
    preset = load("tiny")
    source = open_source("bundled", preset, {})
    generator = torch.Generator().manual_seed(1)
    stream = preset.stream

    def clip(frames: int) -> Tensor:
        shape = (frames, stream.height, stream.width, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    ranges = default_ranges(preset.dit.num_layers)
    with (
        onnx_session(preset, source, ranges) as onnx,
        eager_session(Recipe.of(preset), source) as eager,
    ):
        for session in (onnx, eager):
            session.prepare("a lamp", seed=3)
        for index in range(6):
            frames = clip(eager.chunk_frames())
            shown = [session.step(frames).copy() for session in (onnx, eager)]
            phase = "steady" if index else "first"
            for name in (f"noisy.{phase}", f"latent.{phase}", "rows.timestep", "timestep"):
                if index or name.endswith("first"):
                    error = relative_error(onnx.buffers[name], eager.buffers[name])
                    assert error <= TOLERANCE, (index, name)
            difference = torch.from_numpy(shown[0]).int() - torch.from_numpy(shown[1]).int()
            assert difference.abs().max() <= 1 if difference.numel() else index > 0
        for layer in range(preset.dit.num_layers):
            for part in "kv":
                ring = onnx.buffers[f"ring.bhnd.{layer}.{part}"]
                heads = ring.shape[1]
                ring = ring.unflatten(2, (stream.window_frames, -1)).permute(0, 2, 3, 1, 4)
                expected = eager.buffers[f"ring.{layer}.{part}"].view(ring.shape)
                assert heads == preset.dit.num_heads
                assert relative_error(ring, expected) <= TOLERANCE


def test_weights_keep_their_names():
    """Every weight is an initialiser under the name that the engine's weights have."""
    preset = load("tiny", ["precision=bf16", "dit.num_layers=2"])
    plan = Recipe.of(preset, "cuda", backends="tensorrt-rtx").plan()
    planned = plan.packages["dit_range.chunk.0-2"]
    weights = {
        name: torch.randn(spec.shape, dtype=torch.bfloat16) for name, spec in plan.baked.items()
    }
    stage = export_stage(planned, weights)
    initializers = stage.model.graph.initializers
    assert set(planned.baked.values()) <= set(initializers)
    assert "block.1.self_attn.qkv.weight" in initializers
    other = export_stage(planned, {name: tensor + 1 for name, tensor in weights.items()})
    assert other.graph_sha256() == stage.graph_sha256()
    assert len(stage.caches) == 4 and stage.attentions == 4


class Ignores(PackageModule):
    """Does not look at its second input."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return x * 2


def test_an_unused_input_is_an_error():
    """A length that is not read means that attention sees keys that are not there."""
    builder = PlanBuilder(torch.float32, channels_last_3d=False)
    builder.buffer("x", (4,), torch.float32)
    builder.buffer("valid", (1,), torch.int64)
    builder.package("ignores", Ignores, "tensorrt-rtx", bakes=True)
    builder.call("ignores", ["x", "valid"], ["y"])
    with pytest.raises(ExportError, match="input 1 .* is not used"):
        export_stage(builder.plan.packages["ignores"], {})


def test_angles_without_float64(relative_error):
    """Reference: the float64 angles of the eager module, days into a stream."""
    config = load("sdv2-1.3b-480p").dit
    sizes = (config, 8, 8, 2, 6, 3)
    eager, tables = DitIn(*sizes), OnnxDitIn(*sizes, timesteps=1000)
    position = torch.tensor([0, 5, 1023, 1024, 86_400, 1_000_000])
    timestep = torch.tensor([[0.0], [599.0], [833.3333], [937.5], [1000.0], [0.25]])
    for method, argument in (("frame_angles", position), ("time_angles", timestep)):
        for made, expected in zip(
            getattr(tables, method)(argument), getattr(eager, method)(argument), strict=True
        ):
            assert (made.double() - expected.double()).abs().max() <= 5e-7
    slots = torch.arange(9)
    assert torch.equal(
        OnnxDitIn(config, 8, 8, 1, 6, 3, timesteps=1000).ring_places(slots) // 16,
        torch.tensor([0, 1, 2, 3, 4, 5, 3, 4, 5]).int(),
    )


def test_noise_scale_without_float64():
    """Reference: the float64 rule of the eager module, over still and moving chunks."""
    size = (16, 16)
    eager = MotionNoise(0.7, 1000, *size, first=False)
    fixed = OnnxMotionNoise(0.7, 1000, *size, first=False)
    states = eager.states("cpu"), fixed.states("cpu")
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (5, *size, 3), dtype=torch.uint8, generator=generator)
    MotionNoise(0.7, 1000, *size, first=True)(first, states=states[0])
    OnnxMotionNoise(0.7, 1000, *size, first=True)(first, states=states[1])
    frames, differing = first[-1:].expand(4, -1, -1, -1), 0
    for index in range(200):
        if index % 3:
            change = torch.randint(-9, 10, (4, *size, 3), generator=generator) * (index % 7)
            frames = (frames[-1:].int() + change).clamp(0, 255).to(torch.uint8)
        (scale, timestep), (scale_fixed, timestep_fixed) = (
            module(frames, states=own) for module, own in zip((eager, fixed), states, strict=True)
        )
        assert torch.allclose(scale, scale_fixed, rtol=0, atol=1e-7)
        differing += int(timestep != timestep_fixed)
        assert abs(int(timestep) - int(timestep_fixed)) <= 1
    assert differing == 0


def test_intake_has_no_float64():
    """TensorRT has no such type; a graph that holds one would be refused."""
    preset = load("tiny", ["precision=bf16"])
    buffers = Recipe.of(preset, "cuda", backends="tensorrt-rtx").plan().buffers
    assert not [name for name, spec in buffers.items() if spec.dtype == "float64"]


def test_a_ring_that_a_chunk_would_wrap_in_is_refused():
    """A cache update writes rows that follow each other: a chunk must not straddle the end."""
    preset = load("self-forcing-1.3b-480p", ["stream.window_frames=10", "stream.sink_frames=1"])
    recipe = Recipe.of(preset, "cuda", backends="tensorrt-rtx")
    with pytest.raises(BackendError, match="multiples of chunk_latent_frames = 3"):
        recipe.plan()
