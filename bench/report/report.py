"""Results as a report: what was measured, where the time goes, and how far it is from the floor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdrt.bench.measure.environment import device_slug
from sdrt.bench.report import plots
from sdrt.bench.report import speed as speed_blocks
from sdrt.bench.report import stream as stream_blocks
from sdrt.bench.report.document import Block, Heading, Image, Paragraph, Table, to_html, to_markdown
from sdrt.bench.scenarios import find

Result = Mapping[str, Any]


def write_report(results: Sequence[Result], folder: Path, with_plots: bool = True) -> list[Path]:
    """Write ``report.md``, ``report.html`` and ``plots/*.png``; return the first two.

    Raises:
        PlotError: matplotlib is missing.
    """
    blocks: list[Block] = [Heading("Bench report", 1)]
    if with_plots and len(results) > 1 and (png := plots.scaling(results)):
        alt = "Frames per second against window, steps and picture size"
        blocks += [Heading("Scaling"), Image("scaling", alt, png)]
    for result in results:
        blocks += result_blocks(result, with_plots)
    folder.mkdir(parents=True, exist_ok=True)
    images = [block for block in blocks if isinstance(block, Image)]
    if images:
        (folder / "plots").mkdir(exist_ok=True)
    for image in images:
        (folder / "plots" / f"{image.name}.png").write_bytes(image.png)
    written = [folder / "report.md", folder / "report.html"]
    written[0].write_text(to_markdown(blocks, "plots"))
    written[1].write_text(to_html(blocks, "sdrt bench report"))
    return written


def result_blocks(result: Result, with_plots: bool = True) -> list[Block]:
    """Return the part of a report that one result makes."""
    name = result["scenario"]
    blocks: list[Block] = [Heading(name), *_header(result)]
    for section, reasons in result["errors"].items():
        blocks += [Paragraph(f"NOT MEASURED, {section}: {reason}") for reason in reasons]

    def picture(kind: str, alt: str, png: bytes | None) -> None:
        if png is not None:
            file = f"{name}-{device_slug(result['environment'])}-{kind}"
            blocks.append(Image(file, f"{alt}, {name}", png))

    measured = result["main"] in result["variants"]
    if measured:
        blocks += [Heading("Speed", 3), speed_blocks.speed(result), *speed_blocks.repeat(result)]
        blocks += [Heading("Stages against their floors", 3), *speed_blocks.stages(result)]
        if with_plots:
            picture("stages", "Stage times and floors", plots.stage_bars(result))
            picture("latency", "Time between chunks", plots.latency(result))
            picture("memory", "Memory over time", plots.memory(result))
    blocks += [
        *stream_blocks.cold(result),
        *stream_blocks.prompt(result),
        *stream_blocks.live(result),
        *stream_blocks.fidelity(result),
    ]
    if with_plots and "fidelity" in result:
        picture("fidelity", "Fidelity by chunk", plots.fidelity(result))
    return [
        *blocks,
        *stream_blocks.overhead(result),
        *speed_blocks.roof(result),
        *speed_blocks.kernels(result),
    ]


def _header(result: Result) -> list[Block]:
    environment, description = result["environment"], result["description"]
    versions = {key: value for key, value in environment["versions"].items() if value}
    machine = {
        "device": environment["device"],
        "driver": environment.get("driver"),
        "clocks and power at the start": _readings(environment.get("at_start", {})),
        "limits": _readings(environment.get("limits", {})),
        "cpu": f"{environment['cpu']}, {environment['cores']} cores",
        "torch's threads": environment["torch_threads"],
        "torch": environment["torch"],
        "CUDA": environment["cuda"],
        "cuDNN": environment["cudnn"],
        "packages": ", ".join(f"{key} {value}" for key, value in versions.items()),
        "python": environment["python"],
        "commit": environment["commit"],
        "preset": f"{result['preset']['name']}, hash {result['preset_hash']}",
        "engine": f"{result['engine']['packages']} packages, built {result['engine']['built']}",
    }
    rows = [[key, str(value)] for key, value in machine.items() if value]
    rows += [[key.replace("_", " "), str(value)] for key, value in description.items()]
    blocks: list[Block] = [Table(["", ""], rows)]
    if result["engine"]["synthetic_weights"]:
        blocks.append(
            Paragraph(
                "Synthetic weights: noise of full size. Speed does not depend on it; the pictures, "
                "and so PSNR and SSIM, are those of noise."
            )
        )
    command = f"bench run {result['scenario']} --engine DIR"
    try:
        command = f"{find(result['scenario']).build_command()} --out DIR; {command}"
    except ValueError:
        pass  # an engine with settings of its own
    return [*blocks, Paragraph(f"Made by: {command}")]


def _readings(readings: Mapping[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in readings.items())
