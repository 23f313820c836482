"""``build-engines``: build the engine directory of a preset for this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def build_engines(
    preset: Annotated[
        str, typer.Option(help="Name of a built-in preset, or the path of a YAML file.")
    ] = "tiny",
    out: Annotated[
        Path | None,
        typer.Option(help="Engine directory; engines/<preset>--<gpu>--<type> unless given."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Folder in the public layout, Hugging Face repository, 'default' (the preset's "
            "own), 'bundled' (tiny), or 'synthetic' (noise of full size, for benchmarks)."
        ),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", help="Another source for one part: dit=FILE, vae=…, taehv=…."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting of the preset: --set stream.height=256."),
    ] = None,
    ranges: Annotated[
        str | None, typer.Option(help="Split the DiT into stages: 0:15,15:30.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda or cpu; the GPU if there is one.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Packages compiled at once.", min=1)] = None,
    force: Annotated[bool, typer.Option(help="Replace an engine directory that exists.")] = False,
    print_config: Annotated[
        bool, typer.Option(help="Print the preset as resolved, and stop.")
    ] = False,
) -> None:
    """Compile a preset's stages for this machine into an engine directory."""
    from sdrt.engine.config import ConfigError, dump, load

    try:
        resolved = load(preset, override or [])
        if print_config:
            typer.echo(dump(resolved), nl=False)
            return
    except ConfigError as error:
        _fail(str(error))
    _build(resolved, out, weights, component or [], ranges, device, jobs, force)


def _build(resolved, out, weights, component, ranges, device, jobs, force) -> None:
    import torch

    from sdrt.engine.config import ConfigError
    from sdrt.engine.weights import WeightsError, open_source
    from sdrt.export.build import BuildError, Request, build, default_folder, parse_ranges
    from sdrt.export.pipeline import Pipeline
    from sdrt.export.progress import Progress

    console = Console(soft_wrap=True)
    try:
        target = _device(device)
        spec = weights or ("bundled" if resolved.name == "tiny" else "default")
        source = open_source(spec, resolved, _components(component))
        blocks = parse_ranges(ranges, resolved.dit.num_layers)
        if target.type == "cuda" and not torch.cuda.is_available():
            raise BuildError(
                "no CUDA device is here: use --device cpu, or build on the GPU's machine"
            )
        folder = out or Path("engines") / default_folder(resolved, target)
        request = Request(resolved, source, folder, target, blocks, force, jobs)
        packages = len(Pipeline(resolved, blocks, target.type).plan().packages)
        console.print(f"building {folder} ({packages} packages, {target})")
        with Progress(console, packages) as progress:
            manifest = build(request, progress)
            seconds = progress.seconds
    except (ConfigError, WeightsError, BuildError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on where this one stopped")
        raise typer.Exit(130) from None
    _print_table(console, manifest, seconds)
    if manifest.weights.synthetic:
        console.print(
            "the weights are synthetic: this engine is for benchmarks, its output is noise"
        )
    console.print(f"built {folder} in {seconds:.0f} s; run it: sdrun --engine {folder} …")


def _print_table(console: Console, manifest, seconds: float) -> None:
    from sdrt.export.build import table

    view = Table("stage", "artefact")
    view.add_column("MB", justify="right")
    view.add_column("seconds", justify="right")
    for stage, artefact, megabytes, spent in table(manifest):
        view.add_row(stage, artefact, f"{megabytes:.2f}", f"{spent:.1f}" if spent else "")
    view.add_row("total", "", "", f"{seconds:.1f}")
    console.print(view)


def _device(name: str | None):
    import torch

    from sdrt.export.build import BuildError

    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise BuildError(f"--device {name}: no such device; use cuda or cpu") from None


def _components(pairs: list[str]) -> dict[str, str]:
    from sdrt.engine.weights import WeightsError

    sources = {}
    for pair in pairs:
        name, equals, source = pair.partition("=")
        if not equals:
            raise WeightsError(f"--component {pair}: expected PART=SOURCE, such as dit=model.pt")
        sources[name] = source
    return sources


def _fail(message: str) -> None:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of ``build-engines``."""
    app()


if __name__ == "__main__":
    main()
