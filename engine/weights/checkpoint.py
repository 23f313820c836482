"""Checkpoint files as mappings of tensors that are read when asked for, and checked by shape."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdrt.kernels.errors import SdrtError

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by tensor name."""

Entry = tuple[str, tuple[int, ...], Callable[[], Tensor]]
"""A stored tensor: its name, its shape, what reads it."""

Accepts = Callable[[str, tuple[int, ...], tuple[int, ...]], bool]
"""(name, found shape, expected shape) -> whether a shape other than the expected one will do."""

GENERATORS = ("generator_ema", "generator")
"""Keys of a training checkpoint that hold the weights to stream with; the first found counts."""

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What wrappers of PyTorch put into names, at any depth."""

PREFIX = "model."
"""What training code puts before all names."""

LISTED = 20
"""Names that an error lists of a kind."""


class WeightsError(SdrtError):
    """Weights that cannot be found, opened or used."""


class Tensors(Mapping[str, Tensor]):
    """Tensors by name; each is read, or drawn, anew whenever it is asked for.

    Nothing is kept, so that passing through all of them holds one at a time.
    """

    def __init__(self, shapes: Shapes, read: Callable[[str], Tensor]) -> None:
        self.shapes = dict(shapes)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_checkpoint(paths: list[Path]) -> Tensors:
    """Open a checkpoint's files (several: its shards) under the public names.

    ``.safetensors`` and zipped ``.pt``/``.pth`` files are mapped into memory, not read. The keys
    of training checkpoints and the prefixes of wrappers are taken off the names.

    Raises:
        WeightsError: a file is missing, damaged, of another kind, or holds more than tensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    readers: dict[str, Callable[[], Tensor]] = {}
    for path in paths:
        if path.suffix not in READERS:
            kinds = ", ".join(READERS)
            raise WeightsError(f"{path}: not a checkpoint; expected a file ending in {kinds}")
        try:
            for name, shape, reader in READERS[path.suffix](path):
                shapes[name], readers[name] = shape, reader
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).partition(". ")[0]
            raise WeightsError(
                f"{path}: cannot be opened, damaged or incomplete: {reason}"
            ) from error
    public = _public_names(shapes)
    return Tensors(
        {name: shapes[stored] for name, stored in public.items()},
        lambda name: readers[public[name]](),
    )


def check(found: Shapes, expected: Shapes, title: str, accepts: Accepts | None = None) -> None:
    """Compare a checkpoint's names and shapes with a model's.

    Args:
        title: names the checkpoint in the message.
        accepts: allows a shape other than the expected one.
    Raises:
        WeightsError: lists the missing, the unexpected and the wrongly shaped tensors together.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    wrong = []
    for name, want in expected.items():
        got = found.get(name, want)
        if got != want and not (accepts and accepts(name, got, want)):
            wrong.append(f"{name}: got {list(got)}, expected {list(want)}")
    lines = [f"{title} does not fit the model of the preset"]
    for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong)):
        if names:
            lines.append(f"  {kind} ({len(names)}):")
            lines += [f"    {name}" for name in names[:LISTED]]
        if len(names) > LISTED:
            lines.append(f"    and {len(names) - LISTED} more")
    if len(lines) > 1:
        raise WeightsError(*lines)


def _read_safetensors(path: Path) -> Iterator[Entry]:
    """Yield the entries of a safetensors file."""
    file = safe_open(path, framework="pt")
    for name in file.keys():  # a handle, not a mapping
        yield name, tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name)


def _read_pickle(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file that ``torch.save`` wrote; no code in it is ever run."""
    try:
        content = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        names = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        raise WeightsError(
            f"{path}: refused, it holds more than tensors: {names or 'what torch does not read'}"
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in GENERATORS if key in content), content)
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected tensors by name")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise WeightsError(f"{path}: {name} is a {kind}, expected a tensor")
        yield name, tuple(tensor.shape), tensor.detach


READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_pickle,
    ".pth": _read_pickle,
}
"""How to read a file, by its suffix."""


def _public_names(stored: Iterable[str]) -> dict[str, str]:
    """Return public name -> stored name."""
    public = {}
    for name in stored:
        bare = name
        for wrapper in WRAPPERS:
            bare = bare.replace(wrapper, "")
        public[bare] = name
    while public and all(name.startswith(PREFIX) for name in public):
        public = {name.removeprefix(PREFIX): stored for name, stored in public.items()}
    return public
