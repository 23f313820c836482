"""``bench``: speed, latency, fidelity and where the time goes, by scenario."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sdrt.runtime.command import CommandError, run_command

# Everything heavy is imported where it is first needed: --help and refusals stay quick.

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
EngineOption = Annotated[
    list[Path], typer.Option("--engine", help="Engine directory; once for each scenario.")
]
REGRESSED = 1


@app.command("list")
def list_scenarios() -> None:
    """Show the scenarios and how their engines are built."""
    from rich.console import Console
    from rich.table import Table

    from sdrt.bench.scenarios import SCENARIOS, describe
    from sdrt.engine.preset.preset import to_dict

    columns = ("mode", "precision", "encoder", "decoder", "steps", "window_frames", "size")
    view = Table("scenario", *(column.replace("_", " ") for column in columns))
    for scenario in SCENARIOS.values():
        description = describe(to_dict(scenario.resolve()))
        view.add_row(scenario.name, *(str(description[column]) for column in columns))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(view)
    for scenario in SCENARIOS.values():
        console.print(f"{scenario.name}: {scenario.build_command()}", soft_wrap=True)


@app.command()
def run(
    engine: EngineOption,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Scenarios; by default those that the engines were built for."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("bench-results"),
    quick: Annotated[bool, typer.Option("--quick", help="Few AR steps, no torch.compile.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steady AR steps of the main stream; else those of 7 s."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Section to measure (cold, prompt, stream, paced, fidelity, overhead, baselines, "
            "roof); once for each."
        ),
    ] = None,
) -> int:
    """Measure scenarios and write one result each; exit code 1 if a section failed."""
    from sdrt.bench.effort import FULL, QUICK
    from sdrt.bench.measure.stream import Length
    from sdrt.bench.run import SECTIONS, Run

    if unknown := set(only or ()) - set(SECTIONS):
        raise CommandError(
            f"--only {sorted(unknown)[0]}: unknown section; use one of {', '.join(SECTIONS)}"
        )
    sections = frozenset(only or SECTIONS)
    effort = QUICK if quick else FULL
    if steps is not None:
        effort = replace(effort, main=Length(seconds=0, least=steps, most=steps))
    failed = False
    for name, directory in _pairs(names or [], engine):
        runner = Run(directory, name, effort, sections, lambda line: print(line, flush=True))
        result = runner.run()
        failed |= bool(result["errors"])
        _finish(result, out)
    return REGRESSED if failed else 0


def _pairs(names: list[str], engines: list[Path]) -> list[tuple[Any, Path]]:
    """Return each scenario with the engine that was built for it."""
    from sdrt.bench.scenarios import ScenarioError, find, identity
    from sdrt.engine.preset.preset import to_dict
    from sdrt.runtime.directory.manifest import read_manifest

    if not names:
        return [(None, directory) for directory in engines]
    built = {directory: identity(read_manifest(directory).preset) for directory in engines}
    found = []
    for name in names:
        scenario = find(name)
        wanted = identity(to_dict(scenario.resolve()))
        fitting = [directory for directory, preset in built.items() if preset == wanted]
        if not fitting and len(engines) > 1:
            raise ScenarioError(
                f"scenario {name}: no --engine was built for it; "
                f"build it: {scenario.build_command()}"
            )
        found.append((scenario, (fitting or engines)[0]))
    return found


def _finish(result: dict[str, Any], out: Path) -> None:
    """Write a result, show its speed and errors, and say in JSON where it is."""
    from sdrt.bench.measure.environment import device_slug

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{result['scenario']}--{device_slug(result['environment'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for section, reasons in result["errors"].items():
        for reason in reasons:
            print(f"error: {section}: {reason}", file=sys.stderr)
    fps = {
        name: round(variant["summary"]["fps"], 2) for name, variant in result["variants"].items()
    }
    print(json.dumps({"scenario": result["scenario"], "fps": fps, "result": path.name}))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Result to compare with, .json.")],
    after: Annotated[Path, typer.Argument(help="Result that may have become slower, .json.")],
    tolerance: Annotated[
        float, typer.Option(help="Slow-down in per cent that is still accepted.", min=0)
    ] = 5.0,
    variant: Annotated[
        str | None, typer.Option(help="graphs, packages, eager or compiled; else the engine's own.")
    ] = None,
) -> int:
    """Compare two results of a scenario; exit code 1 if the second is slower than accepted."""
    from rich.console import Console
    from rich.table import Table

    from sdrt.bench.report.compare import compare as compare_results

    found = compare_results(_read(before), _read(after), variant)
    view = Table("per AR step", title=f"{found.variant}, medians", title_justify="left")
    for column in ("before, ms", "after, ms", "ratio", "95 % interval", "added, ms"):
        view.add_column(column, justify="right")
    for change in found.changes:
        ratio = change.ratio
        figures = (f"{change.before_ms:.3f}", f"{change.after_ms:.3f}", f"{ratio.value:.3f}")
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        view.add_row(change.name, *figures, interval, f"{change.added_ms:+.3f}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(view)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    regressions = found.regressions(tolerance / 100)
    if not regressions:
        console.print(f"no slow-down beyond {tolerance:g} %")
        return 0
    names = ", ".join(change.name for change in regressions)
    console.print(f"slower beyond {tolerance:g} %: {names}", soft_wrap=True)
    if (culprit := found.culprit()) is not None:
        console.print(
            f"stage that added the most: {culprit.name} "
            f"({culprit.added_ms:+.3f} ms, {100 * (culprit.ratio.value - 1):+.1f} %)",
            soft_wrap=True,
        )
    return REGRESSED


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(help="Results of bench run, .json, or folders of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.md, report.html and plots.")],
    plots: Annotated[bool, typer.Option(help="Draw plots (needs matplotlib).")] = True,
) -> None:
    """Write results as Markdown and as one self-contained HTML page."""
    from sdrt.bench.report.report import write_report

    files = [file for path in results for file in (sorted(path.glob("*.json")) or [path])]
    for path in write_report([_read(file) for file in files], out, plots):
        print(f"wrote {path}")


@app.command()
def readme(
    path: Annotated[Path, typer.Argument(help="README to change.")] = Path("README.md"),
    results: Annotated[
        Path | None, typer.Option(help="Folder of results; those of the repository unless given.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if the table is old.")
    ] = False,
) -> int:
    """Put the table of results between the README's markers."""
    from sdrt.bench.report.readme import RESULTS, insert, load_results, table

    before = path.read_text()
    after = insert(before, table(load_results(results or RESULTS)))
    if check and before != after:
        print(f"{path}: the table is not that of the results: run bench readme", file=sys.stderr)
        return REGRESSED
    if not check:
        path.write_text(after)
    return 0


@app.command()
def profile(
    engine: Annotated[Path, typer.Option("--engine", help="Engine directory.")],
    out: Annotated[Path, typer.Option(help="Folder for the trace and its tables.")],
    steps: Annotated[int, typer.Option(help="Steady AR steps to trace.", min=1)] = 3,
) -> None:
    """Trace steady AR steps: trace.json for Perfetto, kernels.json, and the kernels by stage."""
    from rich.console import Console

    from sdrt.bench.measure.frames import ChunkSource
    from sdrt.bench.measure.launches import kernel_tables, trace_steps
    from sdrt.runtime.session import Session

    with Session.open(engine) as session:
        out.mkdir(parents=True, exist_ok=True)
        source = ChunkSource(session.stream.height, session.stream.width)
        found = trace_steps(session, source, steps, out / "trace.json")
    (out / "kernels.json").write_text(json.dumps(found, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 140)
    for view in kernel_tables(found):
        console.print(view)
    console.print(f"wrote {out / 'trace.json'}: open it at ui.perfetto.dev", soft_wrap=True)


def _read(path: Path) -> dict[str, Any]:
    from sdrt.bench.run import SCHEMA

    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: not a result of bench run ({error})") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise CommandError(
            f"{path}: not a result of this bench run (schema {SCHEMA}); measure it again"
        )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run ``bench`` and return its exit code; 1 where something failed or became slower."""
    return run_command(
        app,
        "bench",
        arguments,
        interrupted="interrupted: results that were announced are written",
        out_of_memory="the GPU's memory is too small for this scenario",
    )


if __name__ == "__main__":
    sys.exit(main())
