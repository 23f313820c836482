"""``bench``: speed and fidelity of an engine directory on this machine."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
EngineOption = Annotated[Path, typer.Option("--engine", help="Engine directory.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the figures to a file.")]


@app.command()
def run(
    engine: EngineOption,
    chunks: Annotated[int, typer.Option(help="AR steps to measure.", min=2)] = 200,
    output: JsonOption = None,
) -> None:
    """Measure steady FPS, chunk latency, stage times, allocations and memory."""
    from sdrt.bench.speed import measure_speed

    with _open(engine) as session:
        result = {"speed": measure_speed(session, chunks)} | _header(session)
    _show(result, output)


@app.command()
def fidelity(
    engine: EngineOption,
    chunks: Annotated[int, typer.Option(help="AR steps to compare.", min=1)] = 10,
    output: JsonOption = None,
) -> None:
    """Compare graphs with direct calls, and packages with the eager modules."""
    from sdrt.bench.fidelity import measure_fidelity

    with _open(engine) as session:
        result = {"fidelity": measure_fidelity(engine, session, chunks)} | _header(session)
    _show(result, output)


def _open(engine: Path):
    from sdrt.runtime.manifest import ManifestError
    from sdrt.runtime.session import Session

    try:
        return Session.open(engine)
    except ManifestError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _header(session) -> dict[str, Any]:
    """Return what a result must carry to be read later: engine, device, versions."""
    manifest = session.manifest
    return {
        "preset": manifest.preset,
        "synthetic_weights": manifest.weights.synthetic,
        "device": manifest.device.model_dump(),
        "versions": manifest.versions,
        "sdrt": manifest.sdrt,
    }


def _show(result: dict[str, Any], output: Path | None) -> None:
    figures = {name: result[name] for name in ("speed", "fidelity") if name in result}
    typer.echo(json.dumps(figures, indent=1))
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Entry point of ``bench``."""
    app()


if __name__ == "__main__":
    main()
