"""Where weights come from: folders, files, Hugging Face repositories, the package, or noise."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.utils import EntryNotFoundError

from sdrt.engine.coder import CODERS
from sdrt.engine.preset.preset import PRESETS, Preset
from sdrt.engine.weights.checkpoint import (
    Shapes,
    Tensors,
    WeightsError,
    check,
    open_checkpoint,
)
from sdrt.engine.weights.synthetic import draw

__all__ = ["COMPONENTS", "Source", "Tensors", "WeightsError", "open_source"]

CODER_OF = {coder.component: coder for coder in CODERS.values()}
"""Component -> the autoencoder whose weights it is."""

COMPONENTS = ("dit", *CODER_OF, "umt5")
"""What a preset can need weights for."""

DEFAULT, BUNDLED, SYNTHETIC = "default", "bundled", "synthetic"
"""Sources that are not places: the preset's own, the package's tiny model, noise."""

BASE_DIT = "diffusion_pytorch_model*.safetensors"
"""Wan's own DiT, which was not trained to stream."""

FILES = {
    "dit": ("dit.safetensors", BASE_DIT),
    **{component: coder.files for component, coder in CODER_OF.items()},
    "umt5": ("models_t5_umt5-xxl-enc-bf16.safetensors", "models_t5_umt5-xxl-enc-bf16.pth"),
}
"""File names of each component, the preferred one first."""

TOKENIZER = "google/umt5-xxl"
"""The tokenizer's folder beside the text encoder."""


@dataclass(frozen=True)
class Source:
    """Where the weights of one preset come from; files are found when they are loaded."""

    preset: Preset
    """The preset that the weights are for."""
    specs: Mapping[str, str]
    """What each component that the preset uses comes from."""
    named: frozenset[str] = frozenset()
    """Components whose source was given for them alone."""

    @property
    def has_text_encoder(self) -> bool:
        """Whether there are weights of UMT5; noise only if it was asked for by name."""
        spec = self.specs.get("umt5")
        return spec is not None and (spec != SYNTHETIC or "umt5" in self.named)

    @property
    def synthetic(self) -> bool:
        """Whether any weights are noise."""
        return SYNTHETIC in self.specs.values()

    def load(
        self,
        component: str,
        expected: Shapes,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensors:
        """Find, open and check the weights of a component.

        Args:
            component: one of ``COMPONENTS`` that the preset uses.
            expected: the public checkpoint's names and shapes.
            device: where a tensor is put when it is asked for.
            dtype: its type then; None: the checkpoint's own, float32 for noise.
        Returns:
            Public names -> tensors, each read or drawn whenever it is asked for.
        Raises:
            WeightsError: the files are not there, cannot be had or read, or do not fit.
        """
        if self._spec(component) == SYNTHETIC:
            kind = {"device": device, "dtype": dtype or torch.float32}
            return Tensors(expected, lambda name: draw(name, expected[name], **kind))
        files = self._find(component)
        more = f" and {len(files) - 1} more files" if files[1:] else ""
        stored = open_checkpoint(files)
        coder = CODER_OF.get(component)
        accepts = coder.accepts if coder else None
        check(stored.shapes, expected, f"{component}: {files[0]}{more}", accepts)
        return Tensors(stored.shapes, lambda name: stored[name].to(device=device, dtype=dtype))

    def tokenizer_folder(self) -> Path | None:
        """Return the folder of UMT5's tokenizer; None without UMT5 or if its weights are noise.

        Raises:
            WeightsError: the source has no tokenizer.
        """
        spec = self.specs.get("umt5", SYNTHETIC)
        if spec == SYNTHETIC:
            return None
        folder = _local(spec)
        if folder is None:
            patterns = [f"{root}{TOKENIZER}/*" for root in self._roots()]
            folder = _snapshot("umt5", spec.partition(":")[0], patterns)
        elif folder.is_file():
            folder = folder.parent
        for root in self._roots():
            if (found := folder / root / TOKENIZER).is_dir():
                return found
        raise WeightsError(f"umt5: no tokenizer in {spec}; expected the folder {TOKENIZER} in it")

    def _spec(self, component: str) -> str:
        if component not in self.specs:
            raise WeightsError(f"preset {self.preset.name} does not use {component}")
        return self.specs[component]

    def _roots(self) -> list[str]:
        """Return the folders to look in, relative: the public repositories' and checkouts'."""
        roots = ["", "ckpts/", "checkpoints/"]
        if base := self.preset.weights.base:
            name = base.rpartition("/")[2]
            roots += [f"{name}/", f"wan_models/{name}/"]
        return roots

    def _find(self, component: str) -> list[Path]:
        """Return a component's files on this machine, downloaded first if need be."""
        spec, names = self._spec(component), list(FILES[component])
        trained = (self.preset.weights.dit or "").partition(":")[2] if component == "dit" else ""
        if trained:
            names = [trained, trained.rpartition("/")[2], *names]
        folder = _local(spec)
        if folder is None:
            repo, _, file = spec.partition(":")
            if file:
                return [_download(component, repo, file)]
            patterns = [root + name for name in names for root in self._roots()]
            folder = _snapshot(component, repo, patterns)
        elif folder.is_file():
            return [folder]
        for name in names:
            for root in self._roots():
                if found := sorted((folder / root).glob(name)):
                    if trained and name == BASE_DIT:
                        warnings.warn(f"{found[0]} was not trained to stream", stacklevel=3)
                    return found
        places = ", ".join(root for root in self._roots() if root)
        raise WeightsError(
            f"{component}: no weights in {spec}; expected one of {', '.join(names)}, "
            f"there or in its folders {places}; or name the file: {component}=FILE"
        )


def open_source(spec: str, preset: Preset, overrides: Mapping[str, str] | None = None) -> Source:
    """Settle where each component of a preset comes from; downloads nothing yet.

    Args:
        spec: a local folder in the layout of the public repositories, a Hugging Face repository
            ``owner/name``, ``default`` (the preset's own sources), ``bundled`` (the package's
            tiny model) or ``synthetic`` (noise, for benchmarks).
        overrides: another source for single components; also a file or ``owner/name:file``.
    Raises:
        WeightsError: a source or a component that does not exist.
    """
    used = _used(preset)
    overrides = overrides or {}
    for component in overrides:
        if component not in used:
            raise WeightsError(
                f"{component}={overrides[component]}: preset {preset.name} uses no such component; "
                f"its components are {', '.join(used)}"
            )
    specs = {}
    for component in used:
        chosen = overrides.get(component, spec)
        specs[component] = _default(preset, component) if chosen == DEFAULT else chosen
        path = _local(specs[component]) if chosen != SYNTHETIC else None
        single = path.is_file() if path else ":" in specs[component]
        if single and chosen != DEFAULT and component not in overrides and len(used) > 1:
            raise WeightsError(
                f"{spec}: one file cannot hold {', '.join(used)}; expected a folder or a "
                f"repository, or say what the file is: {component}={spec}"
            )
    return Source(preset, specs, frozenset(overrides))


def _used(preset: Preset) -> list[str]:
    """Return the components that a preset needs."""
    coders = [coder.component for coder in preset.coders]
    return ["dit", *coders, *(["umt5"] if preset.text == "umt5" else [])]


def _default(preset: Preset, component: str) -> str:
    """Return the preset's own source of a component."""
    coder = CODER_OF.get(component)
    own = {"dit": preset.weights.dit, "umt5": preset.weights.base}
    if spec := coder.default_source(preset) if coder else own[component]:
        return spec
    hint = f" ({coder.origin})" if coder and coder.origin else ""
    raise WeightsError(
        f"preset {preset.name} has no default weights for {component}: "
        f"give a local file{hint}: {component}=FILE"
    )


def _local(spec: str) -> Path | None:
    """Return the file or folder that a source names; None for a Hugging Face repository."""
    path = PRESETS / "tiny" if spec == BUNDLED else Path(spec).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(:.+)?", spec):
        return None
    raise WeightsError(
        f"weights {spec}: no such file or folder, and not a Hugging Face repository (owner/name)"
    )


def _download(component: str, repo: str, file: str) -> Path:
    """Return a repository's file from the cache of huggingface_hub, fetched where it is not."""
    with _hub_errors(component, f"{repo}:{file}"):
        return Path(huggingface_hub.hf_hub_download(repo, file))


def _snapshot(component: str, repo: str, patterns: list[str]) -> Path:
    """Return a repository's folder in the cache of huggingface_hub with the matching files."""
    with _hub_errors(component, repo):
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))


@contextmanager
def _hub_errors(component: str, what: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line that says what to do."""
    try:
        yield
    except (OSError, ValueError, EntryNotFoundError) as error:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise WeightsError(
                f"{component}: {what} is not in the cache {huggingface_hub.constants.HF_HUB_CACHE} "
                f"and HF_HUB_OFFLINE forbids to download it; unset it, or give {component}=FILE"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise WeightsError(
            f"{component}: cannot download {what} from Hugging Face: {reason}; "
            f"run again to resume, or give {component}=FILE"
        ) from error
