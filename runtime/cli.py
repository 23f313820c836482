"""``sdrun``: streams a clip, or a prompt alone, through an engine directory into an mp4."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdrt.runtime.command import INTERRUPTED, CommandError, run_command

# Everything heavy is imported where it is first needed: --help and refusals stay quick.
if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from sdrt.runtime.session import Session

TEXT_TO_VIDEO_FRAMES = 81


@dataclass(frozen=True)
class Request:
    """The command line, parsed."""

    engine: Path | None
    input: Path | None
    prompt: str | None
    output: Path | None
    max_frames: int | None
    seed: int
    stats: Path | None
    device: str | None
    demo: bool
    profile: Path | None = None
    overlap: bool = True
    text_encoder: str | None = None


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def sdrun(
    engine: Annotated[Path | None, typer.Option(help="Engine directory.")] = None,
    input: Annotated[
        str | None,
        typer.Option(help="Clip, or folder of images; 'none' for text to video."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to make of it.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write, .mp4.")] = None,
    max_frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames to write at most (text to video: 81)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    stats: Annotated[Path | None, typer.Option(help="File for all timings, .json.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cuda, cuda:N or cpu (else what the engine was built for)."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Stream a sample clip through the built-in tiny model.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="File for a trace of a few steady AR steps, .json (for Perfetto)."),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option(help="Stages of different chunks at once (GPU); without: less memory."),
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what an AR step of the engine does, and stop.")
    ] = False,
    text_encoder: Annotated[
        str | None,
        typer.Option(help="Where UMT5 runs: cpu spares 11 GB of GPU memory; else with the rest."),
    ] = None,
) -> int:
    """Stream video through an engine directory that build-engines made."""
    if explain:
        return _explain(engine)
    clip = None if input in (None, "none") else Path(input)
    return run(
        Request(
            engine=engine,
            input=clip,
            prompt=prompt,
            output=output,
            max_frames=max_frames,
            seed=seed,
            stats=stats,
            device=device,
            demo=demo,
            profile=profile,
            overlap=overlap,
            text_encoder=text_encoder,
        )
    )


def main(arguments: list[str] | None = None) -> int:
    """Run ``sdrun`` and return its exit code: 0, 2 when refused, 130 when interrupted."""
    return run_command(
        app,
        "sdrun",
        arguments,
        interrupted="interrupted: nothing was written",
        out_of_memory="the GPU's memory is too small for this engine; --no-overlap needs less",
    )


def run(request: Request) -> int:
    """Check the request, open the session, stream, report; return the exit code.

    Raises:
        SdrtError: refused; nothing is left behind.
        KeyboardInterrupt: interrupted before the first frame was written.
    """
    if request.demo:
        request = _demo_request(request)
    output, prompt = _check(request)
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    with _open_session(request, console) as session:
        return _stream_to_file(session, request, output, prompt, console)


def _explain(engine: Path | None) -> int:
    """Print an engine's program; nothing is loaded."""
    from sdrt.runtime.directory.manifest import read_manifest
    from sdrt.runtime.explain import explain

    if engine is None:
        raise CommandError("no engine: give --engine DIR, made by build-engines")
    for line in explain(read_manifest(engine)):
        typer.echo(line)
    return 0


def _demo_request(request: Request) -> Request:
    from sdrt.runtime import demo

    if request.engine is not None:
        raise CommandError("--demo brings its own engine: leave out --engine")
    prompt = demo.PROMPT if request.prompt is None else request.prompt
    return replace(request, prompt=prompt, output=request.output or demo.OUTPUT)


def _check(request: Request) -> tuple[Path, str]:
    """Refuse what can be refused without the session, cheapest first; return output and prompt."""
    if request.engine is None and not request.demo:
        raise CommandError("no engine: give --engine DIR, made by build-engines, or --demo")
    if request.prompt is None or not request.prompt.strip():
        raise CommandError("no prompt: give --prompt TEXT")
    if request.output is None:
        raise CommandError("no output: give --output FILE.mp4")
    if request.device is not None and request.device.partition(":")[0] not in ("cuda", "cpu"):
        raise CommandError(f"unknown --device {request.device}: expected cuda, cuda:N or cpu")
    if request.text_encoder not in (None, "cuda", "cpu"):
        raise CommandError(f"unknown --text-encoder {request.text_encoder}: expected cuda or cpu")
    from sdrt.runtime.directory.manifest import read_manifest

    if request.engine is not None:
        takes_frames = read_manifest(request.engine).stream.takes_frames
        if takes_frames and request.input is None:
            raise CommandError(
                f"{request.engine.name} is a video-to-video engine: give --input, "
                "a clip or a folder of images"
            )
        if not takes_frames and request.input is not None:
            raise CommandError(
                f"{request.engine.name} is a text-to-video engine: leave out --input"
            )
    from sdrt.runtime.video.reader import check_input
    from sdrt.runtime.video.writer import check_output

    check_output(request.output)
    if request.stats is not None:
        check_output(request.stats, ".json")
    if request.profile is not None:
        check_output(request.profile, ".json")
    if request.input is not None:
        check_input(request.input)
        if request.output.exists() and request.output.samefile(request.input):
            raise CommandError(f"--output {request.output} is the input: name another file")
    return request.output, request.prompt


def _open_session(request: Request, console: "Console") -> "Session":
    if request.engine is None:
        from sdrt.runtime import demo

        return demo.open_session(request.device, console.print, request.overlap)
    from sdrt.runtime.session import Session

    return Session.open(request.engine, request.device, request.overlap, request.text_encoder)


def _stream_to_file(
    session: "Session", request: Request, output: Path, prompt: str, console: "Console"
) -> int:
    """Stream into the file, show the numbers, and return the exit code."""
    from sdrt.runtime.measure.stats import LiveLine, StreamStats
    from sdrt.runtime.measure.trace import tracing
    from sdrt.runtime.stream import stream_frames
    from sdrt.runtime.video.writer import FrameWriter

    if session.manifest.weights.synthetic:
        console.print("note: synthetic weights: the output is noise, good for timing only")
    frames = _input_frames(session, request, console)
    pairs = None
    if request.demo and frames is not None:
        from sdrt.runtime.demo import Pairs

        pairs = Pairs(frames)
    limit = request.max_frames or (TEXT_TO_VIDEO_FRAMES if frames is None else None)
    session.prepare(prompt, request.seed)
    session.engine.prompts.release()  # there is no other prompt, and UMT5 is large

    stats = StreamStats()
    size = session.stream
    width = size.width * (2 if pairs else 1)
    writer = FrameWriter(output, width, size.height, size.frame_rate)
    interrupted, trace = False, None
    try:
        with writer, LiveLine(console) as live, tracing(session, request.profile) as trace:
            for made in stream_frames(session, pairs or frames, limit, stats):
                writer.write(pairs.joined(made) if pairs else made)
                live.update(stats)
                if trace is not None:
                    trace.step(stats.records[-1].phase == "steady")
    except KeyboardInterrupt:
        if not writer.frames:
            raise
        interrupted = True
    memory = session.memory_gib()
    console.print(stats.table(memory))
    sides = ", input left, output right" if pairs else ""
    console.print(f"wrote {output}: {writer.frames} frames{sides}")
    if trace is not None:
        console.print(*trace.report(), sep="\n")
    if request.stats is not None:
        stats.write_json(request.stats, _report_header(session, request, interrupted), memory)
    return INTERRUPTED if interrupted else 0


def _input_frames(
    session: "Session", request: Request, console: "Console"
) -> "Iterator[np.ndarray] | None":
    """Return the input at the session's size and rate; None for text to video."""
    width, height = session.stream.width, session.stream.height
    if request.input is not None:
        from sdrt.runtime.video.reader import open_input

        source = open_input(request.input, width, height, session.stream.frame_rate)
        for note in source.notes:
            console.print(f"note: {note}")
        return source
    if request.demo:
        from sdrt.runtime.sample_clip import sample_clip

        return sample_clip(height=height, width=width)
    return None


def _report_header(session: "Session", request: Request, interrupted: bool) -> dict[str, Any]:
    """Return what a report says beside the numbers; names only, no paths."""
    from sdrt.runtime.measure.stats import versions

    manifest = session.manifest
    return {
        "engine": request.engine.resolve().name if request.engine else "demo",
        "preset": manifest.name,
        "device": {"type": manifest.device.type, "name": manifest.device.name},
        "synthetic_weights": manifest.weights.synthetic,
        "seed": request.seed,
        "interrupted": interrupted,
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
