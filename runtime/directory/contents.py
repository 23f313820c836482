"""What an engine directory holds, as data: packages, files, weights, device, how it was built."""

import shlex
from pathlib import Path
from typing import Literal

from sdrt.runtime.directory.specs import Model, TensorSpec

RTX_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""What plans of tensorrt_rtx are built for and run on; not sm_90 or sm_100."""

Backend = Literal["inductor", "tensorrt", "tensorrt-rtx"]


class Fp8Spec(Model):
    """Linears of a DiT range that run in FP8, and what that costs."""

    groups: tuple[str, ...]
    gemms: int
    """Matrix products with both operands in FP8, by the builder's log."""
    largest: dict[str, float]
    """Weight -> largest input of its linear in calibration; the input's scale is a 448th."""
    range_error: float
    """Relative error of the range's result, given the same input."""
    latent_error: float
    """Relative error of the latents after calibration, all ranges together."""


class EngineSpec(Model):
    """What a TensorRT plan was built with and how its tensors meet the arguments."""

    library: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    version: str
    targets: tuple[str, ...]
    """Architectures, such as ``sm_89``, that a plan of ``tensorrt_rtx`` runs on."""
    precision: str
    graph_sha256: str
    """Of the ONNX graph without its weights."""
    weights_sha256: str
    """Of the weights in the plan."""
    flags: dict[str, int | str]
    """Builder settings."""
    addresses: tuple[tuple[str, int], ...]
    """Tensor of the plan, index of the argument at whose address it lies."""
    banks: tuple[tuple[str, int], ...]
    """Output that is a state's new value, and the state's argument: it is copied there."""
    activation_bytes: int
    fused_attentions: int
    fp8: Fp8Spec | None = None
    onnx_error: float | None = None
    """Relative, of the graph in onnxruntime against the eager module; None: not checked."""


class PackageSpec(Model):
    """One compiled callable: every tensor it touches is an argument, results included."""

    backend: Backend
    file: str
    sha256: str
    bytes: int
    build_s: float
    arguments: tuple[TensorSpec, ...]
    engine: EngineSpec | None = None
    """Of a TensorRT plan."""


class FileSpec(Model):
    """A file of the engine directory, relative to it."""

    file: str
    sha256: str
    bytes: int


class DeviceSpec(Model):
    """The device that the packages were compiled for."""

    targets: tuple[str, ...] = ()
    """With plans of ``tensorrt_rtx`` only: the architectures, such as ``sm_89``, they run on."""

    type: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] | None
    driver: str | None


class WeightsSpec(Model):
    """Where the weights came from."""

    sources: dict[str, str]
    """Component (``dit``, ``vae``, …) -> what its weights came from."""
    synthetic: bool
    """Whether any of them are noise."""
    files: tuple[FileSpec, ...]


class TextSpec(Model):
    """How a prompt becomes embeddings ``[1, text_len, text_dim]``."""

    kind: Literal["umt5", "hashed-words"]
    files: tuple[FileSpec, ...] = ()
    tokenizer: Literal["files", "hashed"] = "files"
    """UMT5's: its own, among the files, or hashed words, for weights of noise."""


class BuildSpec(Model):
    """One ``build-engines`` that made an engine directory or added to it, as it was asked for."""

    arguments: tuple[str, ...]
    """All but those that follow, and those that say where to build and whether to replace."""
    device: str | None = None
    """``--device``, where it was given."""
    target: str | None = None
    """``--target``, where it was given."""
    rtx: bool = False
    """Whether it makes plans of tensorrt_rtx, which can be had for more cards."""

    def command(self, directory: Path, *flags: str) -> str:
        """Return the command that builds the same in ``directory``."""
        device = ("--device", self.device) if self.device else ()
        target = ("--target", self.target) if self.target else ()
        out = ("--out", str(directory), *flags)
        return shlex.join(["build-engines", *self.arguments, *device, *target, *out])


class Choice(Model):
    """Which implementation an op got, by measurement on the device that was built for."""

    chosen: str
    ms: dict[str, float]
    """Every candidate's time; empty where there was only one."""
