"""The tensors of a session: buffers at fixed addresses, weights, and how calls name them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sdrt.runtime.directory.manifest import Manifest, ManifestError
from sdrt.runtime.directory.specs import Ref, TensorSpec, all_ops, op_refs


def allocate(spec: TensorSpec, device: torch.device) -> Tensor:
    """Return zeros of a spec's shape, dtype and strides."""
    dtype = getattr(torch, spec.dtype)
    return torch.empty_strided(spec.shape, spec.stride, dtype=dtype, device=device).zero_()


def allocate_buffers(manifest: Manifest, device: torch.device) -> dict[str, Tensor]:
    """Allocate every buffer of a session, as zeros."""
    return {name: allocate(spec, device) for name, spec in manifest.buffers.items()}


def weight_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return name -> spec of every weight that a call names."""
    specs: dict[str, TensorSpec] = {}
    for stage in manifest.stages:
        for call in stage.calls:
            arguments = manifest.packages[call.package].arguments
            for ref, spec in zip(call.arguments, arguments, strict=True):
                if ref.kind == "weight":
                    specs[ref.name] = spec
    return specs


def op_weights(manifest: Manifest) -> set[str]:
    """Return the name of every weight that an op of the AR steps names."""
    tracks = (track for step in manifest.steps for track in step.tracks)
    refs = (ref for track in tracks for op in all_ops(track) for ref in op_refs(op))
    return {ref.name for ref in refs if ref.kind == "weight"}


def load_weights(directory: Path, manifest: Manifest, device: torch.device) -> dict[str, Tensor]:
    """Read the weights from their safetensors files onto ``device``, in the declared strides.

    Raises:
        ManifestError: a weight is missing or has another shape or dtype than the manifest says.
    """
    specs = weight_specs(manifest)
    weights: dict[str, Tensor] = {}
    for file in manifest.weights.files:
        with safe_open(directory / file.file, framework="pt", device="cpu") as archive:
            for name in archive.keys():  # noqa: SIM118 (not a mapping)
                weights[name] = _place(archive.get_tensor(name), specs.get(name), device)
    hint = f"rebuild the engine: {manifest.rebuild_command(directory)}"
    if missing := sorted(op_weights(manifest) - set(weights)):
        raise ManifestError(
            f"{directory}: weight {missing[0]} is missing, which AR steps copy; {hint}"
        )
    for name, spec in specs.items():
        found = weights.get(name)
        if found is None or tuple(found.shape) != spec.shape or found.dtype != _dtype(spec):
            got = "missing" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise ManifestError(
                f"{directory}: weight {name} is {got}, expected {spec.shape} {spec.dtype}; {hint}"
            )
    return weights


def resolve(ref: Ref, buffers: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor that a reference names."""
    tensor = (weights if ref.kind == "weight" else buffers)[ref.name]
    return tensor if ref.rows is None else tensor[slice(*ref.rows)]


def check_arguments(name: str, specs: Iterable[TensorSpec], tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that do not fit a package's declared arguments.

    Raises:
        ManifestError: shape, dtype, strides or alignment differ.
    """
    for index, (spec, tensor) in enumerate(zip(specs, tensors, strict=True)):
        got = (tuple(tensor.shape), tensor.dtype, _strides(tensor))
        expected = (spec.shape, _dtype(spec), _strides(spec))
        if got != expected or tensor.data_ptr() % 16:
            raise ManifestError(
                f"package {name}: argument {index} is {got}, expected {expected}, 16-byte aligned"
            )


def _place(source: Tensor, spec: TensorSpec | None, device: torch.device) -> Tensor:
    """Copy a mapped tensor to the device; a mapping may be unaligned and strides may differ."""
    stride = source.stride()
    if spec is not None and spec.shape == tuple(source.shape):
        stride = spec.stride
    target = torch.empty_strided(source.shape, stride, dtype=source.dtype, device=device)
    return target.copy_(source)


def _dtype(spec: TensorSpec) -> torch.dtype:
    return getattr(torch, spec.dtype)


def _strides(tensor: Tensor | TensorSpec) -> tuple[int, ...]:
    """Strides of the dimensions that have more than one element; the others mean nothing."""
    strides = tensor.stride() if isinstance(tensor, Tensor) else tensor.stride
    return tuple(s for size, s in zip(tensor.shape, strides, strict=True) if size > 1)
