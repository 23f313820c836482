"""The parts of a report that say how fast, and how far from the floor."""

from collections.abc import Mapping
from typing import Any

from sdrt.bench.report import plots
from sdrt.bench.report.compare import ALONE, staged_variant
from sdrt.bench.report.document import Block, Heading, Paragraph, Table
from sdrt.runtime.measure.timing import TRACKS

Result = Mapping[str, Any]
KERNELS_SHOWN = 8
NAME_WIDTH = 72
LABELS = {
    "eager": "eager, as the references run",
    "compiled": "the same with torch.compile",
    "packages": "packages, no graphs",
    "graphs": "packages, CUDA graphs",
    ALONE: "the same, one chunk at a time",
}


def speed(result: Result) -> Table:
    """Return the table of the variants: FPS, latency, launches, memory, energy."""
    header = ["", "FPS", "speed-up", "filling FPS", "step p50", "p90", "p99", "max", "jitter"]
    header += ["host ms", "launches", "kernels", "peak GiB", "J/frame"]
    variants = result["variants"]
    slowest = variants.get("eager", variants[result["main"]])["summary"]["fps"]
    rows = []
    for name in plots.VARIANTS:
        if name not in variants:
            continue
        variant = variants[name]
        summary, launches = variant["summary"], variant["launches"]
        interval = summary["interval_ms"]
        speed_up = f"{summary['fps'] / slowest:.2f}x" if "eager" in variants else ""
        filling = summary["filling_fps"]
        rows.append(
            [
                LABELS[name],
                f"{summary['fps']:.2f}",
                speed_up,
                "" if filling is None else f"{filling:.2f}",
                *(f"{interval[key]:.1f}" for key in ("p50", "p90", "p99", "max")),
                f"{interval['jitter']:.2f}",
                f"{summary['host_ms']['p50']:.2f}",
                f"{launches['launches_per_step']:.0f}",
                f"{launches['kernels_per_step']:.0f}",
                f"{variant['memory']['peak_gib']:.2f}" if variant["memory"] else "",
                f"{variant['energy']['joules_per_frame']:.2f}" if "energy" in variant else "",
            ]
        )
    return Table(header, rows)


def repeat(result: Result) -> list[Block]:
    """Return what the FPS are made of, and how far a second measurement was."""
    main = result["variants"][result["main"]]
    steps = main["summary"]["steady_steps"]
    text = (
        f"All stages are in the FPS, the pass that rewrites the K/V included; {steps} AR steps "
        "after the window was full."
    )
    if "repeat" in main:
        again = main["repeat"]["summary"]["fps"]
        spread = abs(again / main["summary"]["fps"] - 1)
        text += f" Measured again later in the same run: {again:.2f} FPS ({spread:.1%} apart)."
    if "steady_allocator" in main:
        grown = main["steady_allocator"]
        text += (
            f" In the steady AR steps: {grown['requests']} allocator requests, device memory "
            f"{grown['held_bytes']:+d} bytes."
        )
    ratio = main["summary"]["interval_ms"]["p99"] / main["summary"]["interval_ms"]["p50"]
    text += f" p99 / p50 of the time between chunks: {ratio:.3f}."
    allocations = main["launches"].get("allocations")
    if allocations is not None:
        text += f" Allocator requests in 2 traced AR steps: {allocations}."
    return [Paragraph(text)]


def stages(result: Result) -> list[Block]:
    """Return the table of stage times, floors and their ratio."""
    roof = result.get("roof", {}).get("stages", {})
    timed = staged_variant(result)
    variants = [
        name
        for name in plots.VARIANTS
        if name in result["variants"] and name not in {result["main"]} - {timed}
    ]
    header = ["stage, ms p50", *variants, "floor", "measured / floor", "TFLOP", "bound"]
    rows = []
    for stage in TRACKS:
        times = [
            result["variants"][name]["summary"]["stages_ms"][f"{stage}_ms"]["p50"]
            for name in variants
        ]
        if max(times) < plots.LEAST_MS:
            continue
        own = result["variants"][timed]["summary"]["stages_ms"][f"{stage}_ms"]["p50"]
        row = [stage, *(f"{value:.2f}" for value in times)]
        if stage in roof:
            floor = roof[stage]
            row += [f"{floor['floor_ms']:.2f}", f"{own / floor['floor_ms']:.2f}"]
            row += [f"{floor['tflop']:.3g}", f"{floor['bound_ms']:.2f}"]
        rows.append(row + [""] * (len(header) - len(row)))
    text = (
        "The floor is the stage's matrix products, attention and convolutions one after another, "
        "each timed alone at its own shape with the quickest library kernel; element-wise work "
        "counts nothing. The bound is its operations at the rate of one large matrix product."
    )
    return [Table(header, rows), Paragraph(text)]


def roof(result: Result) -> list[Block]:
    """Return the device's rates and the operations of each stage."""
    roof = result.get("roof")
    if not roof:
        return []
    gemm = ", ".join(f"{kind} {rate:.3g}" for kind, rate in roof["gemm_tflops"].items())
    text = f"Copy {roof['copy_gb_s']:.0f} GB/s (read and written). Large matrix product, TFLOP/s: "
    blocks: list[Block] = [Heading("Roof", 3), Paragraph(f"{text}{gemm}.")]
    for stage, found in roof["stages"].items():
        fp8 = any("fp8_tflops" in row for row in found["operations"])
        header = [stage, "count", "ms", "TFLOP/s", *(["fp8 TFLOP/s"] if fp8 else [])]
        rows = []
        for row in sorted(found["operations"], key=lambda r: -r["ms"] * r["count"]):
            cells = [
                row["operation"],
                str(row["count"]),
                f"{row['ms']:.4f}",
                f"{row['tflops']:.3g}",
            ]
            if fp8:
                cells.append(f"{row['fp8_tflops']:.3g}" if "fp8_tflops" in row else "")
            rows.append(cells)
        blocks.append(Table(header, rows))
    return blocks


def kernels(result: Result) -> list[Block]:
    """Return each stage's longest kernels."""
    if result["main"] not in result["variants"]:
        return []
    launches = result["variants"][result["main"]]["launches"]
    blocks: list[Block] = [Heading("Kernels by stage", 3)]
    for stage, kernels in launches["kernels"].items():
        rows = [
            [
                _short(kernel["name"]),
                f"{kernel['calls']:.0f}",
                f"{kernel['us']:.0f}",
                f"{kernel['share']:.1%}",
            ]
            for kernel in kernels[:KERNELS_SHOWN]
        ]
        blocks.append(Table([stage, "calls", "us per AR step", "share"], rows))
    return blocks


def _short(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"
