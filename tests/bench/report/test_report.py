"""Reports and the README's table, from made-up results."""

import json
import re

import pytest

from sdrt.bench.cli import main
from sdrt.bench.report import plots
from sdrt.bench.report.document import Heading, Paragraph, Table, to_html, to_markdown
from sdrt.bench.report.readme import BEGIN, END, ReadmeError, insert, table
from sdrt.bench.report.report import write_report

PNG = b"\x89PNG"


def _full(result):
    """A result with every section."""
    found = result()
    found["variants"]["eager"] = result({"diffuse_ms": 60.0})["variants"]["packages"]
    found["cold_start_ms"] = [{"interpreter": 100.0, "first_frame": 4000.0}]
    found["cold_start_text_encoder"] = ["umt5, 10.6 GiB, loaded"]
    change = {"kind": "encoder loads", "encode_ms": [9000.0, 5000.0]}
    change["longest_interval_ms"] = [70.0, 65.0]
    found["prompt"] = {"text_encoder": "umt5, 10.6 GiB", "interval_ms": 60.0}
    found["prompt"] |= {"longest_interval_ms": 61.0, "changes": [change]}
    latency = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "max": 4.0}
    found["paced"] = [
        {"rate": 16, "chunks": 5, "glass_to_glass_ms": latency, "missed_deadlines": 1}
    ]
    track = {"latent_error": [1e-3, 2e-3], "psnr_db": [50.0, 49.0], "ssim": [0.99, 0.98]}
    names = ("packages_vs_eager", "packages_vs_fp32", "eager_vs_fp32")
    found["fidelity"] = dict.fromkeys(names, track) | {"chunks": 2, "replay_equals_direct": True}
    found["fidelity"]["stages_vs_fp32"] = {"decode": {"packages": [1e-3, 2e-3], "eager": [4e-3]}}
    found["overhead"] = {"off_ms": 1.0, "on_ms": 1.0, "ratio": [0.99, 1.0, 1.01]}
    operation = {"operation": "gemm 1x2x3", "count": 2, "ms": 1.0, "tflops": 3.0}
    stage = {"floor_ms": 5.0, "bound_ms": 4.0, "tflop": 1.0, "operations": [operation]}
    found["roof"] = {
        "copy_gb_s": 10.0,
        "gemm_tflops": {"fp32": 1.0},
        "stages": {name: stage for name in ("encode", "diffuse", "decode")},
    }
    return found


def test_report_states_measured_over_floor(result, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    paths = write_report([_full(result)], tmp_path)
    markdown = paths[0].read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| diffuse |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    eager, measured, floor, ratio = (float(cell) for cell in cells[1:5])
    assert floor == 5.0
    assert ratio == pytest.approx(measured / floor, abs=0.02)
    assert eager > measured
    assert "| decode | 2.00e-03 | 4.00e-03 | 0.50 |" in markdown
    assert "| text encoder | umt5, 10.6 GiB, loaded |" in markdown
    assert "| encoder loads | 9000.0 | 7000.0 | 70.0 | 2 |" in markdown
    for name in re.findall(r"\]\((plots/[^)]+)\)", markdown):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    page = paths[1].read_text()
    assert page.count("data:image/png;base64,") == len(list((tmp_path / "plots").iterdir())) == 4
    assert "http" not in page


def test_report_without_plots_and_with_errors(result, tmp_path) -> None:
    found = result()
    found["errors"] = {"roof": ["RuntimeError: out of memory"]}
    paths = write_report([found], tmp_path, with_plots=False)
    assert "NOT MEASURED, roof: RuntimeError: out of memory" in paths[0].read_text()
    assert not (tmp_path / "plots").exists()


def test_scaling_is_drawn_where_something_varies(result) -> None:
    pytest.importorskip("matplotlib")
    first, second = result(), result()
    assert plots.scaling([first, second]) is None
    second["description"] = first["description"] | {"window_frames": 12}
    drawn = plots.scaling([first, second])
    assert drawn is not None and drawn.startswith(PNG)


def test_documents_escape_their_text() -> None:
    blocks = [Heading("a<b"), Paragraph("<script>"), Table(["x"], [["a|b"]])]
    page = to_html(blocks, "t")
    assert "<script>" not in page and "a&lt;b" in page
    assert "| a\\|b |" in to_markdown(blocks, "plots")


def test_readme_table_is_generated(invoke, result, tmp_path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny--cpu.json").write_text(json.dumps(_full(result)))
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{BEGIN}\nold\n{END}\nrest\n")
    command = ["readme", str(readme), "--results", str(tmp_path / "results")]
    assert invoke(main, *command, "--check").exit_code == 1
    assert invoke(main, *command).exit_code == 0
    text = readme.read_text()
    assert "old" not in text and text.startswith("# x\n") and text.endswith("\nrest\n")
    found = _full(result)
    variants = found["variants"]
    speed_up = variants["packages"]["summary"]["fps"] / variants["eager"]["summary"]["fps"]
    assert f"| {speed_up:.2f}x |" in text
    assert invoke(main, *command, "--check").exit_code == 0


def test_readme_needs_markers(result) -> None:
    with pytest.raises(ReadmeError, match="bench:begin"):
        insert("# x", table([result()]))
