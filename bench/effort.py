"""How much ``bench run`` measures: all of it, or a quick look."""

from dataclasses import dataclass

from sdrt.bench.measure import paced
from sdrt.bench.measure.prompts import Amount
from sdrt.bench.measure.stream import Length


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    main: Length
    baseline: Length
    cold_runs: int
    prompts: Amount
    rates: tuple[int, ...]
    paced_steps: int
    fidelity_latents: int
    """Latent frames that the fidelity runs on for when the window is full."""
    overhead_steps: int
    compiled: bool
    """Whether torch.compile takes part: its first AR steps take minutes."""


FULL = Effort(
    main=Length(seconds=7, least=20, most=200),
    baseline=Length(seconds=3, least=6, most=30),
    cold_runs=2,
    prompts=Amount(steps=40, changes=5),
    rates=paced.RATES,
    paced_steps=24,
    fidelity_latents=6,
    overhead_steps=3,
    compiled=True,
)
QUICK = Effort(
    main=Length(seconds=2, least=6, most=50),
    baseline=Length(seconds=1, least=3, most=10),
    cold_runs=1,
    prompts=Amount(steps=4, changes=1),
    rates=(16,),
    paced_steps=4,
    fidelity_latents=1,
    overhead_steps=2,
    compiled=False,
)
