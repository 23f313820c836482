"""The pictures of a report, as PNG bytes, through matplotlib."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from sdrt.bench.report.compare import ALONE, staged_variant
from sdrt.kernels.errors import SdrtError
from sdrt.runtime.measure.timing import TRACKS

VARIANTS = ("eager", "compiled", "packages", "graphs", ALONE)
"""From the slowest to the fastest."""
COLOURS = {
    "floor": "#9aa5b1",
    "eager": "#c8553d",
    "compiled": "#e9a23b",
    "packages": "#5b8db8",
    "graphs": "#1f4e79",
    ALONE: "#1f4e79",
}
LEAST_MS = 0.05
"""Stages below this are nothing but bookkeeping, and are not shown."""
Result = Mapping[str, Any]


class PlotError(SdrtError):
    """Plots cannot be drawn here."""


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise PlotError(
            "plots need matplotlib: pip install matplotlib, or use --no-plots"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png(figure: Any) -> bytes:
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    _pyplot().close(figure)
    return buffer.getvalue()


def stage_bars(result: Result) -> bytes:
    """Draw each stage's median time by variant, beside its floor."""
    floors = {name: stage["floor_ms"] for name, stage in _roof(result).items()}
    bars = {"floor": floors} if floors else {}
    for variant in VARIANTS:
        beside = variant == result["main"] != staged_variant(result)
        if variant in result["variants"] and not beside:
            stages = result["variants"][variant]["summary"]["stages_ms"]
            bars[variant] = {name: stages[f"{name}_ms"]["p50"] for name in TRACKS}
    shown = [s for s in TRACKS if any(times.get(s, 0) > LEAST_MS for times in bars.values())]
    figure, axes = _pyplot().subplots(figsize=(8, 3.6))
    width = 0.8 / len(bars)
    for index, (name, times) in enumerate(bars.items()):
        places = [place + index * width for place in range(len(shown))]
        values = [times.get(stage, 0.0) for stage in shown]
        drawn = axes.bar(places, values, width * 0.92, label=name, color=COLOURS[name])
        axes.bar_label(drawn, fmt="%.1f", fontsize=7)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(shown))], shown)
    axes.set_ylabel("ms per AR step")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def latency(result: Result) -> bytes:
    """Draw the time between chunks: a histogram, and over the stream."""
    records = result["variants"][result["main"]]["records"]
    pairs = list(zip(records, records[1:], strict=False))
    intervals = [
        (r["index"], r["phase"], r["received_ms"] - before["received_ms"]) for before, r in pairs
    ]
    steady = [value for _, phase, value in intervals if phase == "steady"]
    figure, (left, right) = _pyplot().subplots(
        1, 2, figsize=(8, 3), gridspec_kw={"width_ratios": [1, 2]}
    )
    left.hist(steady, bins=min(40, max(5, len(steady) // 3)), color=COLOURS["graphs"])
    left.set_xlabel("ms between chunks, steady")
    left.set_ylabel("AR steps")
    for phase, colour in (("filling", "#e9a23b"), ("warm", "#9aa5b1"), ("steady", "#1f4e79")):
        points = [(index, value) for index, found, value in intervals if found == phase]
        if points:
            right.plot(*zip(*points, strict=True), ".-", ms=3, lw=0.8, color=colour, label=phase)
    right.set_xlabel("AR step")
    right.set_ylabel("ms")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    return _png(figure)


def memory(result: Result) -> bytes | None:
    """Draw memory and, where it was read, power over time; None without samples."""
    samples = result["variants"][result["main"]]["samples"]
    points = [(s["t_s"], s["memory_gib"]) for s in samples if "memory_gib" in s]
    if not points:
        return None
    figure, axes = _pyplot().subplots(figsize=(8, 2.6))
    axes.plot(*zip(*points, strict=True), color=COLOURS["graphs"])
    axes.set_ylim(0, 1.15 * max(value for _, value in points))
    axes.set_xlabel("s")
    axes.set_ylabel("GiB in use")
    power = [(s["t_s"], s["power_w"]) for s in samples if "power_w" in s]
    if power:
        right = axes.twinx()
        right.plot(*zip(*power, strict=True), color=COLOURS["eager"], lw=0.8)
        right.set_ylabel("W", color=COLOURS["eager"])
        right.set_ylim(bottom=0)
    return _png(figure)


def fidelity(result: Result) -> bytes:
    """Draw the latents' error and the frames' PSNR chunk by chunk."""
    found = result["fidelity"]
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(8, 3))
    lines = {
        "packages_vs_eager": ("packages, against eager", COLOURS["graphs"], "-"),
        "packages_vs_fp32": ("packages, against fp32", COLOURS["packages"], "--"),
        "eager_vs_fp32": ("eager, against fp32", COLOURS["eager"], ":"),
    }
    for key, (label, colour, style) in lines.items():
        if found[key]["latent_error"][-1] > 0:
            left.semilogy(found[key]["latent_error"], style, color=colour, label=label)
        right.plot(found[key]["psnr_db"], style, color=colour, label=label)
    left.set_ylabel("relative error of latents")
    right.set_ylabel("PSNR of frames, dB")
    for axes in (left, right):
        axes.set_xlabel("chunk")
    right.legend(fontsize=7)
    return _png(figure)


QUANTITIES = {
    "window, latent frames": lambda d: d["window_frames"],
    "denoise steps": lambda d: d["steps"],
    "megapixels": lambda d: int(d["size"].split("x")[0]) * int(d["size"].split("x")[1]) / 1e6,
}


def scaling(results: Sequence[Result]) -> bytes | None:
    """Draw FPS against window, steps and picture size; None if none of them varies.

    Results of one model on one device share a line in a panel where all else is equal.
    """
    measured = [r for r in results if r["main"] in r["variants"]]
    panels = {}
    for name, value in QUANTITIES.items():
        lines: dict[tuple, list[tuple[float, float]]] = {}
        for result in measured:
            description = result["description"]
            others = tuple(f(description) for key, f in QUANTITIES.items() if key != name)
            model = result["scenario"].partition("--")[0]
            fps = result["variants"][result["main"]]["summary"]["fps"]
            key = (model, result["environment"]["device"], others)
            lines.setdefault(key, []).append((value(description), fps))
        lines = {key: sorted(points) for key, points in lines.items() if len(dict(points)) > 1}
        if lines:
            panels[name] = lines
    if not panels:
        return None
    figure, grid = _pyplot().subplots(1, len(panels), figsize=(8, 3), squeeze=False)
    for axes, (name, lines) in zip(grid[0], panels.items(), strict=True):
        for (model, device, _), points in lines.items():
            axes.plot(*zip(*points, strict=True), "o-", label=f"{model}, {device}")
        axes.set_xlabel(name)
        axes.set_ylabel("FPS, all in")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    return _png(figure)


def _roof(result: Result) -> Mapping[str, Any]:
    return result.get("roof", {}).get("stages", {})
