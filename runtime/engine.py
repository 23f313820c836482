"""An engine: a loaded directory. Its sessions share programs, weights and the text encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sdrt.runtime.directory.checks import verify_files
from sdrt.runtime.directory.manifest import Manifest, read_manifest
from sdrt.runtime.directory.tensors import load_weights
from sdrt.runtime.directory.variants import choose_variant
from sdrt.runtime.measure import profiler
from sdrt.runtime.programs.loaders import load_programs
from sdrt.runtime.programs.program import Program
from sdrt.runtime.session import Session
from sdrt.runtime.text.prompts import Prompts


class Engine:
    """What several streams can share: code, weights, and what makes embeddings of prompts.

    Sessions of one engine are used by one thread, or by several that take turns; `prompts` may be
    used by any. Also a context manager, which closes it.
    """

    def __init__(
        self,
        manifest: Manifest,
        programs: Mapping[str, Program],
        weights: Mapping[str, Tensor],
        device: torch.device,
        directory: Path | None = None,
        text_encoder: str | None = None,
        keeps_prompts: bool = True,
    ) -> None:
        """Put loaded parts together; :meth:`open` loads them from an engine directory.

        Args:
            directory: holds the text encoder's files, where the preset needs one.
            text_encoder: as :meth:`open` takes it.
            keeps_prompts: store the embeddings of prompts in the directory.
        """
        self.manifest, self.programs, self.weights = manifest, programs, weights
        self.device, self.directory = device, directory
        (condition,) = manifest.conditions
        _, text_len, text_dim = manifest.buffers[condition.input.name].shape
        place = (directory, device, text_encoder, keeps_prompts)
        self.prompts = Prompts(manifest.text, text_len, text_dim, *place)

    @classmethod
    def open(
        cls,
        directory: Path | str,
        device: str | None = None,
        text_encoder: str | None = None,
    ) -> Self:
        """Load an engine directory.

        Args:
            device: ``cuda``, ``cuda:1`` or ``cpu``; by default what the engine was built for.
            text_encoder: ``cpu`` keeps the text encoder in the host's memory; by default it
                comes to the engine's device with the first prompt that is not known yet.
        Raises:
            ManifestError: the directory is damaged, or built for another machine.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        target, manifest = choose_variant(directory, manifest, device)
        with profiler.span("load"), torch.inference_mode(), verify_files(directory, manifest):
            weights = load_weights(directory, manifest, target)
            programs = load_programs(directory, manifest, target)
        return cls(manifest, programs, weights, target, directory, text_encoder)

    def session(self, overlap: bool = True, capture: bool = True) -> Session:
        """Return a stream of its own over the engine.

        Args:
            overlap: on a GPU, encode, denoise and decode different chunks at once; without, it
                is a little slower and needs less memory. TensorRT plans never do.
            capture: record CUDA graphs; without, packages are called one by one.
        """
        return Session(self, overlap, capture)

    def close(self) -> None:
        """Free the text encoder, and programs and weights once no session holds them."""
        self.prompts.close()
        self.programs, self.weights = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
