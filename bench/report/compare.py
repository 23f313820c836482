"""Two results of one scenario: what became slower, by how much, and in which stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdrt.bench.measure.statistics import Ratio, median_ratio
from sdrt.kernels.errors import SdrtError

TOTAL = "total_ms"
ALONE = "alone"
"""The engine's own stream with one chunk at a time, so that no stage runs beside another."""
INTERVAL = "interval_ms"
LEAST_SHARE = 0.02
"""A stage below this share of the AR step is reported, but no regression by itself."""


class CompareError(SdrtError):
    """Results that cannot be compared."""


@dataclass(frozen=True)
class Change:
    """One quantity of an AR step in both results."""

    name: str
    before_ms: float
    after_ms: float
    ratio: Ratio

    @property
    def added_ms(self) -> float:
        return self.after_ms - self.before_ms

    def regressed(self, tolerance: float) -> bool:
        """Whether even the interval's low end is beyond the tolerance (0.05 is 5 %)."""
        return self.ratio.low > 1 + tolerance


@dataclass(frozen=True)
class Comparison:
    """All changes between two results."""

    variant: str
    changes: tuple[Change, ...]
    """The interval between chunks first, then the device's total, then the stages."""
    notes: tuple[str, ...]

    def regressions(self, tolerance: float) -> list[Change]:
        """Return what became slower beyond the tolerance."""
        whole = next(change for change in self.changes if change.name == TOTAL)
        return [
            change
            for change in self.changes
            if change.regressed(tolerance) and change.after_ms >= LEAST_SHARE * whole.after_ms
        ]

    def culprit(self) -> Change | None:
        """Return the stage that added the most time; None if none did."""
        stages = [c for c in self.changes if c.name not in (TOTAL, INTERVAL)]
        worst = max(stages, key=lambda change: change.added_ms)
        return worst if worst.added_ms > 0 else None


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], variant: str | None = None
) -> Comparison:
    """Compare the steady AR steps of two results, record by record.

    Args:
        variant: ``graphs``, ``packages``, ``eager`` or ``compiled``; by default the engine's own.
    Raises:
        CompareError: one of them lacks the variant, or they measure different things.
    """
    if before["preset_hash"] != after["preset_hash"]:
        raise CompareError(
            f"different presets: {before['scenario']} ({before['preset_hash']}) and "
            f"{after['scenario']} ({after['preset_hash']})"
        )
    chosen = variant or before["main"]
    for result in (before, after):
        if chosen not in result["variants"]:
            known = ", ".join(result["variants"]) or "none"
            raise CompareError(f"no variant {chosen} in {result['scenario']}; it has {known}")
    old, new = (_samples(result["variants"][chosen]) for result in (before, after))
    if chosen == before["main"] and all(ALONE in result["variants"] for result in (before, after)):
        alone = [_samples(result["variants"][ALONE]) for result in (before, after)]
        old, new = (
            found | {name: values for name, values in stages.items() if name != INTERVAL}
            for found, stages in zip((old, new), alone, strict=True)
        )
    changes = tuple(
        Change(
            name,
            float(np.median(values)),
            float(np.median(new[name])),
            median_ratio(values, new[name]),
        )
        for name, values in old.items()
        if name in new and min(values) > 0 and min(new[name]) > 0
    )
    return Comparison(chosen, changes, tuple(_notes(before, after)))


def staged_variant(result: Mapping[str, Any]) -> str:
    """Return the variant whose stage times are each stage's own."""
    return ALONE if ALONE in result["variants"] else result["main"]


def _samples(variant: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return each quantity's steady values, those of a repeat included."""
    found: dict[str, list[float]] = {}
    for part in (variant, variant.get("repeat")):
        if part is None:
            continue
        for name, values in _steady(part["records"]).items():
            found.setdefault(name, []).extend(values)
    return found


def _steady(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    pairs = list(zip(records, records[1:], strict=False))
    steady = [(old, new) for old, new in pairs if new["phase"] == "steady"]
    found = {INTERVAL: [new["received_ms"] - old["received_ms"] for old, new in steady]}
    found[TOTAL] = [record["stages_ms"][TOTAL] for _, record in steady]
    for stage in steady[0][1]["stages_ms"]:
        if stage != TOTAL:
            found[stage] = [record["stages_ms"][stage] for _, record in steady]
    return found


def _notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what else differs between the two runs and may explain a change."""
    notes = []
    for key in ("device", "driver", "torch", "cuda", "cudnn", "commit"):
        old, new = before["environment"].get(key), after["environment"].get(key)
        if old != new:
            notes.append(f"{key}: {old} before, {new} after")
    return notes
