"""TensorRT programs and mixed directories, with stand-ins for the library and the GPU."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdrt.engine.preset.preset import load
from sdrt.export.child import Child, ChildCrash
from sdrt.export.recipe import Recipe
from sdrt.export.tensorrt import backend as tensorrt_build
from sdrt.export.trial import Trial, TrialError
from sdrt.export.trial_worker import try_one
from sdrt.runtime import session
from sdrt.runtime.directory.contents import (
    BuildSpec,
    DeviceSpec,
    EngineSpec,
    PackageSpec,
    TextSpec,
    WeightsSpec,
)
from sdrt.runtime.directory.manifest import SCHEMA_VERSION, Manifest, ManifestError, Variant
from sdrt.runtime.directory.specs import (
    BufferSpec,
    Call,
    StageSpec,
    StepSpec,
    StreamSpec,
    TensorSpec,
    buffer,
)
from sdrt.runtime.directory.variants import choose_variant
from sdrt.runtime.programs import tensorrt
from sdrt.runtime.programs.jit_cache import JitCache
from sdrt.runtime.programs.loaders import keep_compiled
from sdrt.runtime.programs.tensorrt import (
    Activations,
    PlanRunError,
    TensorRtProgram,
    add_command,
    import_library,
    load_plans,
)

STREAM = StreamSpec(
    height=16,
    width=16,
    frame_rate=16,
    first_frames_in=5,
    frames_in=4,
    first_frames_out=5,
    frames_out=4,
    latent_frames=1,
    lookahead_frames=0,
    drain_steps=0,
)
H200 = ("NVIDIA H200", (9, 0))
RTX_4090 = ("NVIDIA GeForce RTX 4090", (8, 9))
RTX_3090 = ("NVIDIA GeForce RTX 3090", (8, 6))


def spec(*shape: int) -> TensorSpec:
    stride = torch.empty(shape).stride()
    return TensorSpec(shape=shape, dtype="float32", stride=stride)


def engine_spec(**changes) -> EngineSpec:
    """A plan of one input, one output, a K/V cache and a state with a bank."""
    values = {
        "library": "tensorrt_rtx",
        "version": "1.7.1.116",
        "targets": ("sm_89", "sm_120"),
        "precision": "bf16",
        "graph_sha256": "0" * 64,
        "weights_sha256": "0" * 64,
        "flags": {},
        "addresses": (
            ("in.0", 0),
            ("out.0", 1),
            ("state.ring", 2),
            ("new.ring", 2),
            ("state.history", 3),
        ),
        "banks": (("new.history", 3),),
        "activation_bytes": 1000,
        "fused_attentions": 1,
    }
    return EngineSpec.model_validate(values | changes)


def package(engine: EngineSpec | None) -> PackageSpec:
    return PackageSpec(
        backend="inductor" if engine is None else "tensorrt-rtx",
        file="packages/a.pt2" if engine is None else "packages/a.plan",
        sha256="",
        bytes=0,
        build_s=0.0,
        arguments=(spec(4), spec(4), spec(2, 4), spec(4)),
        engine=engine,
    )


class Context:
    """Stands in for an execution context: keeps addresses, fills its outputs' bank."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.result = True
        self.on_run: Callable[[], object] = lambda: None

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return not name.startswith("unknown")

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        self.on_run()
        return self.result


@pytest.fixture
def cuda(monkeypatch):
    """Callable: from now on this machine has the given GPU."""

    def pretend(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    return pretend


@pytest.fixture
def stream(monkeypatch):
    """A current stream with a handle."""
    current = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: current)


def arguments() -> list[torch.Tensor]:
    return [torch.zeros(4), torch.zeros(4), torch.zeros(2, 4), torch.zeros(4)]


def test_tensors_lie_at_the_arguments_addresses(stream):
    """The ring in and out at one address; the history's new value in the bank, then copied."""
    context, bank, tensors = Context(), torch.zeros(4), arguments()
    program = TensorRtProgram("a", context, package(engine_spec()), [bank])
    context.on_run = lambda: bank.fill_(3)
    program.run(tensors)
    assert context.addresses["new.ring"] == context.addresses["state.ring"]
    assert context.addresses["state.ring"] == tensors[2].data_ptr()
    assert context.addresses["in.0"] == tensors[0].data_ptr()
    assert context.addresses["new.history"] == bank.data_ptr() != tensors[3].data_ptr()
    assert torch.equal(tensors[3], torch.full((4,), 3.0))
    others = arguments()
    program.run(others)  # another session's tensors
    assert context.addresses["out.0"] == others[1].data_ptr()


def test_false_is_an_error(stream):
    """TensorRT does not raise: it returns False."""
    context = Context()
    program = TensorRtProgram("a", context, package(engine_spec()), [torch.zeros(4)])
    context.result = False
    with pytest.raises(PlanRunError, match="plan a: TensorRT did not run it"):
        program.run(arguments())
    other = engine_spec(addresses=(("unknown", 0),))
    program = TensorRtProgram("b", Context(), package(other), [torch.zeros(4)])
    with pytest.raises(PlanRunError, match="plan b: has no tensor unknown"):
        program.run(arguments())


class RuntimeCache:
    def __init__(self) -> None:
        self.loaded, self.blob = b"", b"compiled"

    def deserialize(self, blob: bytes) -> bool:
        self.loaded = blob
        return True

    def serialize(self) -> bytes:
        return self.blob


class RuntimeConfig:
    caches: list[RuntimeCache] = []

    def __init__(self) -> None:
        self.cache, self.strategy = None, None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        self.caches.append(RuntimeCache())
        return self.caches[-1]

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


def fake_library(sizes: dict[bytes, int]) -> SimpleNamespace:
    """A library whose engines are known by their plans' bytes, with their memory sizes."""

    class Engine:
        def __init__(self, size: int) -> None:
            self.device_memory_size_v2 = size

        def create_runtime_config(self) -> RuntimeConfig:
            return RuntimeConfig()

        def create_execution_context(self, config: RuntimeConfig) -> Context:
            assert config.strategy == "user" and config.cache is RuntimeConfig.caches[0]
            return Context()

    class Runtime:
        def __init__(self, logger: object) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return Engine(sizes[plan]) if plan in sizes else None

    class Logger:
        WARNING = 2

        def __init__(self, severity: int) -> None: ...

    return SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="1.7.1.116",
        Runtime=Runtime,
        Logger=Logger,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
    )


@pytest.fixture
def plans(tmp_path: Path, monkeypatch, cuda):
    """Two plans of 300 and 5000 bytes of activations, and a library that loads them."""
    cuda(*RTX_4090)
    RuntimeConfig.caches = []
    library = fake_library({b"one": 300, b"two": 5000})
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    packages = {}
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
        packages[name] = package(engine_spec()).model_copy(update={"file": name})
    return packages


def test_plans_never_run_beside_each_other(monkeypatch):
    """They share memory: a session over one has a single stream, whatever it was asked for."""

    class StopHere(Exception):
        pass

    asked = []

    def steps(*arguments: Any) -> None:
        asked.append(arguments[5])
        raise StopHere

    monkeypatch.setattr(session, "Steps", steps)
    plan, other = package(engine_spec()), package(None)
    for packages in ({"a": other}, {"a": other, "b": plan}):
        manifest = SimpleNamespace(packages=packages, buffers={}, stages=(), stream=None)
        engine: Any = SimpleNamespace(
            manifest=manifest, device=torch.device("cpu"), programs={}, weights={}
        )
        with pytest.raises(StopHere):
            session.Session(engine)
    assert asked == [True, False]


def test_plans_share_activations_banks_and_the_jit_cache(plans, tmp_path: Path):
    """One allocation of the largest size; what was compiled is stored once, keyed to the card."""
    manifest: Any = SimpleNamespace(packages=plans)
    programs = load_plans(tmp_path, plans, torch.device("cpu"))
    contexts = [program._context for program in programs.values()]
    assert contexts[0].memory == contexts[1].memory
    address, size = contexts[0].memory
    assert size >= 5000 and address % 256 == 0
    assert contexts[0].addresses["new.history"] == contexts[1].addresses["new.history"]
    assert len(RuntimeConfig.caches) == 1
    keep_compiled(manifest, programs)
    (stored,) = (tmp_path / "jit").iterdir()
    assert stored.name == "tensorrt_rtx-1.7.1.116--sm_89--nvidia-geforce-rtx-4090.bin"
    assert stored.read_bytes() == b"compiled"
    RuntimeConfig.caches = []
    load_plans(tmp_path, plans, torch.device("cpu"))
    assert RuntimeConfig.caches[0].loaded == b"compiled"


def test_a_plan_that_does_not_load(plans, tmp_path: Path):
    """The library returns None; the line names plan and card."""
    (tmp_path / "two").write_bytes(b"of another version")
    with pytest.raises(ManifestError, match="plan two does not load on NVIDIA GeForce RTX 4090"):
        load_plans(tmp_path, plans, torch.device("cpu"))


def test_a_new_plan_is_tried_as_a_session_would_run_it(plans, tmp_path: Path, stream, monkeypatch):
    """Loaded by the runtime's own loader and run once; integers that must not be zero are not."""
    seen = []
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(TensorRtProgram, "run", lambda program, given: seen.append(given))
    counted = plans["two"].model_copy(
        update={
            "arguments": (
                *plans["two"].arguments,
                TensorSpec(shape=(2,), dtype="int32", stride=(1,)),
            )
        }
    )
    try_one("two", tmp_path, counted, torch.device("cpu"), {4: 1})
    (given,) = seen
    assert [tuple(tensor.shape) for tensor in given] == [(4,), (4,), (2, 4), (4,), (2,)]
    assert given[4].tolist() == [1, 1] and given[0].abs().sum() > 0
    (tmp_path / "two").write_bytes(b"of another version")
    with pytest.raises(ManifestError, match="plan two does not load"):
        try_one("two", tmp_path, counted, torch.device("cpu"), {})


def test_a_plan_that_fails_its_trial_is_an_error(monkeypatch, tmp_path: Path):
    """Crash or refusal: the line names the plan, its library and what to try."""
    answers: list = []

    def ask(child, request):
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Child, "ask", ask)
    plan = package(engine_spec())
    with Trial("cuda", "plan", tensorrt_build._advice) as trial:
        answers.append({"error": None})
        trial.run("dit", tmp_path, plan, {3: 1})
        answers.append({"error": "plan dit: TensorRT did not run it; see its log"})
        with pytest.raises(TrialError, match="plan dit was built but does not run: plan dit: Ten"):
            trial.run("dit", tmp_path, plan)
        answers.append(ChildCrash(-11))
        with pytest.raises(TrialError, match=r"-11\); try another version than tensorrt_rtx"):
            trial.run("dit", tmp_path, plan)


@pytest.mark.parametrize(
    "card, targets, device, expected",
    [
        (RTX_4090, ("sm_89", "sm_120"), "cpu", "cuda"),  # --target, and the card is here
        (RTX_3090, ("sm_89", "sm_120"), "cpu", None),
        (RTX_4090, ("sm_89",), "cuda:1", "cuda:1"),
        (H200, (), "cuda", "cuda"),  # full TensorRT: on the card it runs on
        (None, ("sm_89",), "cpu", None),
    ],
)
def test_plans_are_tried_where_their_card_is(cuda, card, targets, device, expected):
    """Reference: the table above."""
    if card is not None:
        cuda(*card)
    elif torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    request: Any = SimpleNamespace(
        device=torch.device(device),
        recipe=SimpleNamespace(tensorrt=SimpleNamespace(targets=targets)),
    )
    found = tensorrt_build.trial_device(request)
    assert found == (None if expected is None else torch.device(expected))


def test_only_key_counts_must_not_be_zero():
    """Reference: the names of the buffers that the plans of the preset tiny read."""
    preset = load("tiny")
    plan = Recipe.of(preset, "cuda", ((0, 4), (4, 8)), "tensorrt-rtx").plan()
    second = tensorrt_build.trial_integers(plan, "dit_range.chunk.4-8")
    spec = plan.packages["dit_range.chunk.4-8"].arguments
    assert {spec[index].dtype for index in second} == {"int32"} and set(second.values()) == {1}
    assert tensorrt_build.trial_integers(plan, "taehv_decoder.first") == {}


def test_full_tensorrt_has_no_jit_cache(tmp_path: Path, cuda):
    """Below 10.13 there is no runtime configuration, and full TensorRT never a runtime cache."""
    cuda(*H200)
    cache = JitCache(tmp_path, fake_library({}), torch.device("cpu"))
    cache.attach(object())
    cache.save()
    assert not (tmp_path / "jit").exists()
    made = []
    engine = SimpleNamespace(create_execution_context=lambda strategy: made.append(strategy))
    tensorrt._context(fake_library({}), engine, cache)
    assert made == ["user"]


def test_activations_are_aligned():
    """TensorRT wants 256 bytes; nothing is allocated until something is reserved."""
    activations = Activations(torch.device("cpu"))
    assert activations.size == 0
    activations.reserve(1000)
    assert activations.size >= 1000 and activations.address % 256 == 0


def test_the_library_must_be_the_one_that_built(monkeypatch):
    """Both values are named, and what to install."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(ManifestError, match="need tensorrt_rtx 1.7.1.116, which is not installed"):
        import_library(engine_spec())
    other = SimpleNamespace(__version__="1.6.1.50")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", other)
    with pytest.raises(ManifestError, match="1.7.1.116, this is tensorrt_rtx 1.6.1.50"):
        import_library(engine_spec())


def mixed() -> Manifest:
    """Packages for an H200, plans for sm_89 and sm_120."""

    def part(engine: EngineSpec | None, device: DeviceSpec) -> dict:
        names = ("x", "y", "ring", "history")
        return {
            "device": device,
            "versions": {"torch": torch.__version__},
            "built": "",
            "packages": {"a": package(engine)},
            "buffers": {
                name: BufferSpec(**argument.model_dump(), kind="io")
                for name, argument in zip(names, package(engine).arguments, strict=True)
            },
            "stages": (
                StageSpec(
                    name="dit[0:1]",
                    group="diffuse",
                    phase="steady",
                    calls=(Call(package="a", inputs=tuple(map(buffer, names))),),
                ),
            ),
            "steps": (StepSpec(phase="first", starts_at=0, tracks=()),),
            "conditions": (),
            "weights": WeightsSpec(sources={"dit": "s"}, synthetic=False, files=()),
        }

    h200 = DeviceSpec(type="cuda", name=H200[0], capability=H200[1], driver=None)
    targets = ("sm_89", "sm_120")
    cards = DeviceSpec(
        type="cuda", name="sm_89, sm_120", capability=None, driver=None, targets=targets
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        sdrt="",
        preset={"name": "tiny"},
        stream=STREAM,
        text=TextSpec(kind="hashed-words"),
        others=(Variant(**part(engine_spec(), cards)),),
        **part(None, h200),
    )


def test_a_mixed_directory_picks_by_card(cuda, monkeypatch):
    """Packages on the H200, plans on an RTX 4090; an RTX 3090 is refused in one line."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_library({}))
    manifest, folder = mixed(), Path("engine")
    for card, backend in ((H200, "inductor"), (RTX_4090, "tensorrt-rtx")):
        cuda(*card)
        device, chosen = choose_variant(folder, manifest, None)
        assert device.type == "cuda"
        assert [p.backend for p in chosen.packages.values()] == [backend]
        assert chosen.others == ()
    cuda(*RTX_3090)
    with pytest.raises(ManifestError) as caught:
        choose_variant(folder, manifest, None)
    message = str(caught.value)
    assert message.startswith("engine: built for NVIDIA H200; sm_89, sm_120; none of them fits")
    assert "this is NVIDIA GeForce RTX 3090 (sm_86)" in message and "\n" not in message
    assert "--target sm_86 --out engine --add" in message


def test_the_command_for_another_card_keeps_what_was_asked_for():
    """The arguments of the plans that are there, with the other card; else the preset's."""
    folder = Path("my engine")
    plain = "build-engines --preset tiny --backend tensorrt-rtx --target sm_86"
    assert add_command(folder, mixed(), "sm_86") == f"{plain} --out 'my engine' --add"
    arguments = ("--preset", "/p.yaml", "--set", "stream.height=256")
    packages = BuildSpec(arguments=arguments, device="cuda")
    flags = ("--backend", "tensorrt-rtx", "--keep-onnx")
    plans = BuildSpec(arguments=(*arguments, *flags), target="sm_89", rtx=True)
    directory = mixed().model_copy(update={"builds": (packages, plans)})
    assert add_command(folder, directory, "sm_86") == (
        "build-engines --preset /p.yaml --set stream.height=256 --backend tensorrt-rtx "
        "--keep-onnx --target sm_86 --out 'my engine' --add"
    )
    assert directory.variants()[1].rebuild_command(folder) == (
        "build-engines --preset /p.yaml --set stream.height=256 --device cuda "
        "--out 'my engine' --force && "
        "build-engines --preset /p.yaml --set stream.height=256 --backend tensorrt-rtx "
        "--keep-onnx --target sm_89 --out 'my engine' --add"
    )


def test_rtx_plans_alone_are_refused_on_hopper(cuda):
    """The line says why: such plans cannot run there, whatever they are built for."""
    cuda(*H200)
    plans = mixed().variants()[1]
    with pytest.raises(ManifestError, match="such plans cannot run on sm_90: use --backend"):
        choose_variant(Path("engine"), plans, None)


def test_plans_do_not_ask_for_the_builders_torch(cuda, monkeypatch):
    """Only packages are tied to a torch version."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_library({}))
    cuda(*RTX_4090)
    plans = mixed().variants()[1].model_copy(update={"versions": {"torch": "2.0"}})
    assert choose_variant(Path("engine"), plans, None)[0].type == "cuda"
