"""The README's result table, made from the files in bench/results."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdrt.kernels.errors import SdrtError

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
RESULTS = Path(__file__).parents[1] / "results"


class ReadmeError(SdrtError):
    """A README without the markers, or no results."""


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Read all results of a folder, sorted by device (CPUs last) and scenario.

    Raises:
        ReadmeError: there are none.
    """
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise ReadmeError(f"{folder}: no results; bench run --out makes them")
    return sorted(found, key=lambda r: (r["environment"]["device"] == "cpu", r["scenario"]))


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the Markdown table: one row per result that measured its stream."""
    lines = [
        "| scenario | device | FPS, all in | step p50 / p99, ms | first frame, s | "
        "peak memory, GiB | eager FPS | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(result) for result in results if result["main"] in result["variants"]]
    return "\n".join(lines)


def _row(result: Mapping[str, Any]) -> str:
    variants = result["variants"]
    main = variants[result["main"]]
    summary, memory = main["summary"], main["memory"]
    cold = result.get("cold_start_ms")
    eager = variants.get("eager")
    interval = summary["interval_ms"]
    cells = [
        result["scenario"],
        result["environment"]["device"],
        f"{summary['fps']:.1f}",
        f"{interval['p50']:.1f} / {interval['p99']:.1f}",
        f"{cold[-1]['first_frame'] / 1e3:.1f}" if cold else "",
        f"{memory['peak_gib']:.1f}" if memory else "",
        f"{eager['summary']['fps']:.1f}" if eager else "",
        f"{summary['fps'] / eager['summary']['fps']:.2f}x" if eager else "",
    ]
    return "| " + " | ".join(cells) + " |"


def insert(readme: str, block: str) -> str:
    """Return a README with ``block`` between its two markers.

    Raises:
        ReadmeError: the markers are missing.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ReadmeError(f"the README has no {BEGIN} … {END} to put the table between")
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"
