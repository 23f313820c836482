"""What a flow asks of its parts: each adds its stages and returns their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sdrt.export.plan.dit import DitPass
from sdrt.export.plan.draft import Draft
from sdrt.runtime.directory.contents import Backend
from sdrt.runtime.directory.specs import Phase, Ref


class CoderLayout(Protocol):
    """The stages of an autoencoder."""

    def __init__(self, draft: Draft, backend: Backend) -> None: ...

    def encode(self, phase: Phase, latent_frames: int, results: Sequence[str]) -> str:
        """Add the stage that makes ``frames.<phase>`` and ``noise.<phase>`` a noisy chunk.

        Args:
            results: take the noisy chunk, and after the first chunk its timestep.
        """
        ...

    def decode(self, phase: Phase, latent_frames: int, latent: str) -> str:
        """Add the stage that makes ``frames_out.<phase>`` of a latent."""
        ...


class DitLayout(Protocol):
    """The stages of a DiT."""

    def __init__(self, draft: Draft, backend: Backend) -> None: ...

    def prompt(self) -> None:
        """Add the stage ``prompt``, of what depends on the prompt only."""
        ...

    def run(self, dit_pass: DitPass) -> list[str]:
        """Add the stages of a pass, a range each; return their names in order."""
        ...

    def ring_rows(self, row: int) -> list[Ref]:
        """Return one row's K and V rings, layer by layer."""
        ...


@dataclass(frozen=True)
class Stages:
    """The parts of a plan, each laid out by the backend that builds it."""

    encoder: CoderLayout | None
    """None: text to video."""
    dit: DitLayout
    decoder: CoderLayout
