"""TensorRT plans behind the interface of a package: ``tensorrt`` 10, 11 and ``tensorrt_rtx``."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdrt.kernels.errors import SdrtError
from sdrt.runtime.directory.contents import RTX_ARCHITECTURES, BuildSpec, EngineSpec, PackageSpec
from sdrt.runtime.directory.manifest import MachineError, Manifest, ManifestError
from sdrt.runtime.programs.jit_cache import JitCache
from sdrt.runtime.programs.program import LoadError, Program

ALIGNMENT = 256
"""Bytes that TensorRT wants its device memory aligned to."""


class PlanRunError(SdrtError):
    """A plan did not run; TensorRT's own message says why."""


def import_library(engine: EngineSpec) -> Any:
    """Return the TensorRT package that a plan was built with.

    Raises:
        ManifestError: it is not installed, or of another version (both are named).
    """
    package = engine.library.replace("_", "-")
    wanted = f"{engine.library} {engine.version}"
    try:
        library = importlib.import_module(engine.library)
    except ImportError:
        raise ManifestError(
            f"the plans need {wanted}, which is not installed: pip install "
            f"{package}=={engine.version}"
        ) from None
    if library.__version__ != engine.version:
        raise ManifestError(
            f"the plans need {wanted}, this is {engine.library} {library.__version__}: "
            f"pip install {package}=={engine.version}, or build the engine again"
        )
    return library


class Activations:
    """Device memory that the plans of a session share: they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)

    def reserve(self, size: int) -> None:
        """Make room for ``size`` bytes; before any program uses the memory."""
        if size > self.size:
            self._memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=self._device)

    @property
    def size(self) -> int:
        """Bytes that may be used."""
        return max(0, self._memory.numel() - ALIGNMENT)

    @property
    def address(self) -> int:
        """Where they start."""
        return -(-self._memory.data_ptr() // ALIGNMENT) * ALIGNMENT


class TensorRtProgram:
    """A plan over the caller's tensors.

    Every tensor lies where its argument lies; a K/V cache goes in and out at one address and is
    updated in place. New values of other states must not lie on the old ones, which the plan
    still reads: they go to a bank of the program's own and are copied over afterwards, on the
    same stream, so that a captured graph holds the copy too.
    """

    def __init__(
        self,
        name: str,
        context: Any,
        package: PackageSpec,
        banks: Sequence[Tensor],
        cache: JitCache | None = None,
        owners: Sequence[Any] = (),
    ) -> None:
        """Wrap an execution context.

        Args:
            banks: one tensor for each of the package's banks, in its argument's strides.
            cache: what the context compiles into.
            owners: what must live as long as the context.
        """
        assert package.engine is not None
        self._name, self._context, self._engine = name, context, package.engine
        self.cache, self._owners = cache, owners
        self._banks = list(zip(package.engine.banks, banks, strict=True))
        for (tensor, _), bank in self._banks:
            context.set_tensor_address(tensor, bank.data_ptr())

    def run(self, arguments: Sequence[Tensor]) -> None:
        """Run once on the current stream, which must not be the default one.

        Raises:
            PlanRunError: TensorRT refuses.
        """
        for tensor, index in self._engine.addresses:
            if not self._context.set_tensor_address(tensor, arguments[index].data_ptr()):
                raise PlanRunError(f"plan {self._name}: has no tensor {tensor}")
        stream = torch.cuda.current_stream(arguments[0].device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise PlanRunError(f"plan {self._name}: TensorRT did not run it; see its log")
        for (_, index), bank in self._banks:
            arguments[index].copy_(bank)


def load_plans(
    directory: Path, packages: Mapping[str, PackageSpec], device: torch.device
) -> dict[str, TensorRtProgram]:
    """Load plans onto a GPU; they share memory, so one runs at a time.

    Raises:
        ManifestError: the library is missing.
        LoadError: it refuses a plan.
    """
    engines: dict[str, Any] = {}
    first = next(iter(packages.values())).engine
    assert first is not None
    library = import_library(first)
    logger = library.Logger(library.Logger.WARNING)
    runtime = library.Runtime(logger)
    with torch.cuda.device(device):
        for name, package in packages.items():
            engine = runtime.deserialize_cuda_engine((directory / package.file).read_bytes())
            if engine is None:
                raise LoadError(
                    f"plan {name} does not load on {_name(device)}, see TensorRT's message above"
                )
            engines[name] = engine
        activations = Activations(device)
        activations.reserve(max(engine.device_memory_size_v2 for engine in engines.values()))
        scratch = _Scratch(device, packages)
        cache = JitCache(directory, library, device)
        programs = {}
        for name, engine in engines.items():
            context = _context(library, engine, cache)
            context.set_device_memory(activations.address, activations.size)
            banks, owners = scratch.banks(packages[name]), (runtime, engine, activations)
            programs[name] = TensorRtProgram(name, context, packages[name], banks, cache, owners)
    return programs


class PlanLoader:
    """Loads TensorRT plans."""

    exclusive = True
    """Plans share the memory of their activations."""

    def check(
        self,
        directory: Path,
        manifest: Manifest,
        packages: Mapping[str, PackageSpec],
        device: torch.device,
    ) -> None:
        """Refuse plans of another library, or for other cards.

        Raises:
            ManifestError: both values are named, and what to do.
        """
        if manifest.device.targets:
            _check_target(directory, manifest, device)
        for package in packages.values():
            assert package.engine is not None
            try:
                import_library(package.engine)
            except ManifestError as error:
                raise MachineError(directory, str(error)) from None

    def load(
        self, directory: Path, packages: Mapping[str, PackageSpec], device: torch.device
    ) -> dict[str, TensorRtProgram]:
        """Return the plans' programs; see :func:`load_plans`."""
        return load_plans(directory, packages, device)

    def keep_compiled(self, programs: Iterable[Program]) -> None:
        """Store what plans were compiled to for this card, once all have run."""
        plans = [program for program in programs if isinstance(program, TensorRtProgram)]
        for cache in {plan.cache for plan in plans if plan.cache is not None}:
            cache.save()


def _check_target(directory: Path, manifest: Manifest, device: torch.device) -> None:
    """Refuse a card that the plans of tensorrt_rtx were not built for."""
    built = f"built for {manifest.device.name} (plans of tensorrt_rtx)"
    if not torch.cuda.is_available():
        reason = f"{built}, but no CUDA device is here; run it on such a card"
        raise MachineError(directory, reason)
    major, minor = torch.cuda.get_device_capability(device)
    architecture = f"sm_{major}{minor}"
    if architecture in manifest.device.targets:
        return
    if architecture in RTX_ARCHITECTURES:
        advice = f"add it with {add_command(directory, manifest, architecture)}"
    else:
        advice = f"such plans cannot run on {architecture}: use --backend inductor or tensorrt"
    raise MachineError(directory, f"{built}, this is {_name(device)} ({architecture}); {advice}")


def add_command(directory: Path, manifest: Manifest, target: str) -> str:
    """Return the command that adds plans of tensorrt_rtx for another card to a directory."""
    builds = manifest.known_builds
    plans = [build for build in builds if build.rtx]
    if not plans:
        arguments = (*builds[0].arguments, "--backend", "tensorrt-rtx")
        plans = [BuildSpec(arguments=arguments, rtx=True)]
    return plans[-1].model_copy(update={"target": target}).command(directory, "--add")


class _Scratch:
    """Memory for the banks, shared by all plans: a bank is read back before the next plan runs."""

    def __init__(self, device: torch.device, packages: Mapping[str, PackageSpec]) -> None:
        size = max(sum(map(_bytes, self._specs(package))) for package in packages.values())
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)

    def banks(self, package: PackageSpec) -> list[Tensor]:
        """Return one tensor a bank of the package."""
        banks, offset = [], 0
        for spec in self._specs(package):
            dtype = getattr(torch, spec.dtype)
            part = self._memory[offset : offset + _bytes(spec)].view(dtype)
            banks.append(torch.as_strided(part, spec.shape, spec.stride))
            offset += _bytes(spec)
        return banks

    @staticmethod
    def _specs(package: PackageSpec) -> list:
        assert package.engine is not None
        return [package.arguments[index] for _, index in package.engine.banks]


def _bytes(spec) -> int:
    """Return the room of a tensor, rounded up to the alignment."""
    elements = 1
    for size in spec.shape:
        elements *= size
    size = elements * getattr(torch, spec.dtype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


def _context(library: Any, engine: Any, cache: JitCache) -> Any:
    """Return an execution context whose memory the caller provides."""
    strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(engine, "create_runtime_config"):  # TensorRT below 10.13
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    cache.attach(config)
    return engine.create_execution_context(config)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
