"""``build-engines``: build the engine directory of a preset for this machine."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sdrt.export.options import DEFAULT_BACKEND, Options
from sdrt.runtime.command import CommandError, run_command

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

    from sdrt.engine.preset.preset import Preset
    from sdrt.export.recipe import Recipe
    from sdrt.export.request import Request

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
        typer.Option(
            "--component",
            help="Another source for one part: dit=FILE, vae=…, taehv=…, umt5=… (synthetic weights "
            "come without UMT5 unless it is umt5=synthetic, 11 GB).",
        ),
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
    backend: Annotated[
        str, typer.Option(help="inductor, tensorrt (on the GPU it runs on) or tensorrt-rtx.")
    ] = DEFAULT_BACKEND,
    stage_backend: Annotated[
        list[str] | None,
        typer.Option("--stage-backend", help="Another one for a stage: vae_decoder=tensorrt."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Cards to build tensorrt-rtx plans for, GPU or not: sm_89,sm_120."),
    ] = None,
    add: Annotated[
        bool, typer.Option(help="Add the build to the engine directory, for another device.")
    ] = False,
    keep_onnx: Annotated[
        bool, typer.Option(help="TensorRT: keep the ONNX files in the engine directory.")
    ] = False,
    explain: Annotated[
        bool, typer.Option(help="TensorRT: print layers, fused attention, activation memory.")
    ] = False,
    optimization_level: Annotated[
        int | None, typer.Option(help="TensorRT: 0 (quick build) to 5.", min=0, max=5)
    ] = None,
    aux_streams: Annotated[
        int, typer.Option(help="TensorRT: extra streams of a plan; more need more memory.", min=0)
    ] = 0,
    workspace_mib: Annotated[
        int | None, typer.Option(help="TensorRT: most scratch memory of a layer.", min=1)
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="TensorRT (not RTX): file that keeps kernel timings.")
    ] = None,
    fp8: Annotated[
        str | None,
        typer.Option(help="TensorRT: run linears of the DiT in FP8 (lossy): all, or ffn_up,…."),
    ] = None,
    calibration_clip: Annotated[
        Path | None, typer.Option(help="FP8: a clip to calibrate on; a generated one by default.")
    ] = None,
    calibration_steps: Annotated[
        int, typer.Option(help="FP8: AR steps of the calibration.", min=2)
    ] = 4,
    check_onnx: Annotated[
        bool, typer.Option(help="TensorRT: check every stage in onnxruntime before it is built.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option(help="Print the preset as resolved, and stop.")
    ] = False,
) -> None:
    """Compile a preset's stages for this machine into an engine directory."""
    given = dict(locals())
    del given["print_config"]
    from sdrt.engine.preset.preset import dump, load

    resolved = load(preset, override or [])
    if print_config:
        typer.echo(dump(resolved), nl=False)
        return
    _build(resolved, Options(**given))


def _build(preset: "Preset", options: Options) -> None:
    from sdrt.export.build import build
    from sdrt.export.progress import Progress

    console = Console(soft_wrap=True)
    request = _request(preset, options)
    packages = len(request.recipe.plan().packages)
    console.print(f"building {request.out} ({packages} packages, {request.machine().name})")
    with Progress(console, packages) as progress:
        manifest = build(request, progress)
        seconds = progress.seconds
    if options.explain:
        _explain(console, request.out, manifest)
    _print_table(console, manifest, seconds)
    if manifest.weights.synthetic:
        console.print(
            "the weights are synthetic: this engine is for benchmarks, its output is noise"
        )
    console.print(f"built {request.out} in {seconds:.0f} s; run it: sdrun --engine {request.out} …")


def _request(preset: "Preset", options: Options) -> "Request":
    """Return what to build.

    Raises:
        SdrtError: options that do not go together, or not here.
    """
    import torch

    from sdrt.engine.weights.source import open_source
    from sdrt.export.backends import backends_of
    from sdrt.export.quantise.material import Material
    from sdrt.export.request import Request, default_folder

    device = _device(options.device)
    spec = options.weights or ("bundled" if preset.name == "tiny" else "default")
    source = open_source(spec, preset, _components(options.component or []))
    recipe = _recipe(preset, options, device)
    targets = recipe.tensorrt.targets
    if options.target is not None:
        device = torch.device("cpu")  # where weights are converted; nothing runs
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError(
            "no CUDA device is here: use --device cpu, or build on the GPU's machine"
        )
    request = Request(
        recipe,
        source,
        options.out or Path("engines") / default_folder(preset, device, targets),
        device,
        options.force,
        options.jobs,
        keep_onnx=options.keep_onnx,
        check_onnx=options.check_onnx,
        calibration=Material(options.calibration_clip, options.calibration_steps),
        add=options.add,
        asked=options.asked(any(backend.portable for backend in backends_of(recipe))),
    )
    for backend in backends_of(recipe):
        backend.check(request)
    return request


def _recipe(preset: "Preset", options: Options, device: "torch.device") -> "Recipe":
    """Return what determines the plan.

    Raises:
        CommandError, BackendError: options that do not go together, or not here.
    """
    from sdrt.export.backends import BACKENDS, choose_backends
    from sdrt.export.quantise.fp8 import choose_groups
    from sdrt.export.recipe import Recipe
    from sdrt.export.request import parse_ranges
    from sdrt.export.tensorrt.settings import (
        Settings,
        choose_ring,
        choose_targets,
        uses_tensorrt,
    )

    ranges = parse_ranges(options.ranges, preset.dit.num_layers)
    backends = choose_backends(preset, options.backend, options.stage_backend or [])
    if options.ranges is None:
        ranges = BACKENDS[backends["dit"]].default_ranges(preset.dit.num_layers)
    if options.check_onnx and not uses_tensorrt(backends):
        raise CommandError("--check-onnx: no stage is built by TensorRT")
    targets = choose_targets(preset, backends, options.target, device)
    settings = Settings(
        targets,
        options.optimization_level,
        options.aux_streams,
        options.workspace_mib,
        str(options.timing_cache) if options.timing_cache else None,
        choose_ring(backends["dit"]),
    )
    kind, groups = "cuda" if targets else device.type, choose_groups(options.fp8)
    return Recipe.of(preset, kind, ranges, backends, tensorrt=settings, fp8=groups)


def _explain(console: Console, folder: Path, manifest) -> None:
    """Print what the compilers made of each package."""
    from sdrt.export.backends import BACKENDS

    for variant in manifest.variants():
        for name, package in variant.packages.items():
            for line in BACKENDS[package.backend].explain(folder, name, package):
                console.print(line, markup=False, highlight=False)


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

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise CommandError(f"--device {name}: no such device; use cuda or cpu")
    return device


def _components(pairs: list[str]) -> dict[str, str]:
    sources = {}
    for pair in pairs:
        name, equals, source = pair.partition("=")
        if not equals:
            raise CommandError(f"--component {pair}: expected PART=SOURCE, such as dit=model.pt")
        sources[name] = source
    return sources


def main(arguments: list[str] | None = None) -> int:
    """Run ``build-engines`` and return its exit code: 0, 2 when refused, 130 when interrupted."""
    return run_command(
        app,
        "build-engines",
        arguments,
        interrupted="interrupted; the same command goes on where this one stopped",
        out_of_memory="the GPU's memory is too small for this build; end what else uses it",
    )


if __name__ == "__main__":
    sys.exit(main())
