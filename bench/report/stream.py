"""The parts of a report on how a stream begins, keeps time, and stays true."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from sdrt.bench.report.document import Block, Heading, Paragraph, Table
from sdrt.runtime.measure.timing import TRACKS

Result = Mapping[str, Any]


def cold(result: Result) -> list[Block]:
    """Return the milestones of a cold start."""
    runs = result.get("cold_start_ms")
    if not runs:
        return []
    header = ["ms from process start", *(f"run {index + 1}" for index in range(len(runs)))]
    rows = [[key.replace("_", " "), *(f"{run[key]:.0f}" for run in runs)] for key in runs[0]]
    if "cold_start_text_encoder" in result:
        rows.append(["text encoder", *result["cold_start_text_encoder"]])
    return [Heading("Cold start", 3), Table(header, rows)]


def prompt(result: Result) -> list[Block]:
    """Return how long changes of the prompt took, and how long frames waited meanwhile."""
    found = result.get("prompt")
    if not found:
        return []
    header = ["the prompt's embedding", "first, ms", "median, ms", "longest gap, ms", "changes"]
    rows = [["no change", "", "", f"{found['longest_interval_ms']:.1f}", ""]]
    for change in found["changes"]:
        times = change["encode_ms"]
        gap = max(change["longest_interval_ms"])
        figures = (times[0], median(times), gap)
        rows.append([change["kind"], *(f"{value:.1f}" for value in figures), str(len(times))])
    text = (
        f"Text encoder: {found['text_encoder']}. From set_prompt to the embedding being there, "
        "while the stream goes on, and the longest time between two chunks meanwhile; the median "
        f"without a change is {found['interval_ms']:.1f} ms."
    )
    return [Heading("Changing the prompt", 3), Table(header, rows), Paragraph(text)]


def live(result: Result) -> list[Block]:
    """Return what a live source, or a player, got."""
    if "paced" in result:
        header = ["source FPS", "glass to glass p50, ms", "p90", "p99", "max", "missed", "chunks"]
        rows = [
            [
                f"{run['rate']:g}",
                *(f"{run['glass_to_glass_ms'][key]:.0f}" for key in ("p50", "p90", "p99", "max")),
                str(run["missed_deadlines"]),
                str(run["chunks"]),
            ]
            for run in result["paced"]
        ]
        text = (
            "From a frame's capture to its output being readable, the wait for the rest of its "
            "chunk and the denoise steps of a stream batch included. A chunk misses its deadline "
            "when it is ready later than the next one is captured."
        )
        return [Heading("A live source", 3), Table(header, rows), Paragraph(text)]
    if "stalls" in result:
        header = ["player FPS", "real-time factor", "missed", "stalled, ms", "chunks"]
        rows = [
            [
                f"{run['rate']:g}",
                f"{run['real_time_factor']:.2f}",
                str(run["missed_deadlines"]),
                f"{run['stalled_ms']:.0f}",
                str(run["chunks"]),
            ]
            for run in result["stalls"]
        ]
        return [Heading("A live player", 3), Table(header, rows)]
    return []


def fidelity(result: Result) -> list[Block]:
    """Return the errors against the eager modules."""
    found = result.get("fidelity")
    if not found:
        return []
    header = ["", "latent error, first", "last", "largest", "PSNR dB, least", "SSIM, least"]
    rows = []
    for key in ("packages_vs_eager", "packages_vs_fp32", "eager_vs_fp32"):
        errors = found[key]["latent_error"]
        rows.append(
            [
                key.replace("_vs_", " against "),
                *(f"{value:.2e}" for value in (errors[0], errors[-1], max(errors))),
                f"{min(found[key]['psnr_db']):.1f}",
                f"{min(found[key]['ssim']):.4f}",
            ]
        )
    same = "equal" if found["replay_equals_direct"] else "DIFFERENT"
    text = f"Over {found['chunks']} chunks that stream freely. Replay and direct calls: {same}."
    blocks = [Heading("Fidelity", 3), Table(header, rows), Paragraph(text)]
    return [*blocks, *_stage_errors(found.get("stages_vs_fp32", {}))]


def _stage_errors(found: Mapping[str, Mapping[str, list[float]]]) -> list[Block]:
    if not found:
        return []  # a result from before they were measured
    header = ["stage", "packages against fp32", "eager against fp32", "ratio"]
    rows = []
    for stage in (stage for stage in TRACKS if stage in found):
        errors = found[stage]
        ours, eager = (max(errors[name]) for name in ("packages", "eager"))
        ratio = f"{ours / eager:.2f}" if eager else ""
        rows.append([stage, f"{ours:.2e}", f"{eager:.2e}", ratio])
    text = (
        "Each stage by itself, from the inputs and states of the float32 stream: the largest "
        "relative error over its steady calls."
    )
    return [Table(header, rows), Paragraph(text)]


def overhead(result: Result) -> list[Block]:
    """Return what profiling ranges cost."""
    found = result.get("overhead")
    if not found:
        return []
    low, value, high = (100 * (ratio - 1) for ratio in found["ratio"])
    text = (
        f"Named ranges attached: {value:+.2f} % an AR step (95 %: {low:+.2f} to {high:+.2f}). "
        "Without a profiler none are attached and the loop has no code for them."
    )
    return [Heading("Cost of profiling ranges", 3), Paragraph(text)]
