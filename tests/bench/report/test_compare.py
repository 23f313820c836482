"""``bench compare``: a planted slow-down is found and put down to its stage."""

import json

import pytest

from sdrt.bench.cli import main
from sdrt.bench.report.compare import ALONE, CompareError, compare


@pytest.mark.parametrize("stage", ["encode_ms", "diffuse_ms", "decode_ms"])
def test_a_slower_stage_is_found_and_named(result, stage) -> None:
    slower = {stage: result()["variants"]["packages"]["summary"]["stages_ms"][stage]["p50"] * 1.2}
    found = compare(result(seed=1), result(slower, seed=2))
    names = [change.name for change in found.regressions(0.05)]
    assert stage in names
    assert set(names) <= {stage, "interval_ms", "total_ms"}
    culprit = found.culprit()
    assert culprit is not None and culprit.name == stage
    assert culprit.ratio.low < 1.2 < culprit.ratio.high or abs(culprit.ratio.value - 1.2) < 0.02


def test_equal_runs_pass(result) -> None:
    found = compare(result(seed=1), result(seed=2))
    assert not found.regressions(0.05)


def test_a_stage_too_short_to_matter_is_no_regression(result) -> None:
    found = compare(result(seed=1), result({"finalize_ms": 0.02}, seed=2))
    assert not found.regressions(0.05)


def test_a_repeat_counts_too(result) -> None:
    before, after = result(seed=1), result({"decode_ms": 18.0}, seed=2)
    before["variants"]["packages"]["repeat"] = result(seed=3)["variants"]["packages"]
    assert compare(before, after).regressions(0.05)


def test_stages_are_those_of_one_chunk_at_a_time(result) -> None:
    """Beside each other, stages take longer than their own time: that is no regression."""
    before, after = result(seed=1), result(seed=2)
    beside = {"encode_ms": 20.0}
    for run, stages in ((before, None), (after, beside)):
        run["variants"][ALONE] = result(seed=3)["variants"]["packages"]
        run["variants"]["packages"] = result(stages, seed=4)["variants"]["packages"]
    names = {change.name for change in compare(before, after).regressions(0.05)}
    assert names == {"interval_ms"}
    after["variants"][ALONE] = result({"decode_ms": 18.0}, seed=5)["variants"]["packages"]
    names = {change.name for change in compare(before, after).regressions(0.05)}
    assert "decode_ms" in names and "encode_ms" not in names


def test_other_presets_are_refused(result) -> None:
    other = result() | {"preset_hash": "0"}
    with pytest.raises(CompareError, match="different presets"):
        compare(result(), other)


def test_a_missing_variant_is_refused(result) -> None:
    with pytest.raises(CompareError, match="no variant graphs in tiny; it has packages"):
        compare(result(), result(), "graphs")


def test_what_else_differs_is_noted(result) -> None:
    other = result()
    other["environment"]["driver"] = "9"
    assert compare(result(), other).notes == ("driver: None before, 9 after",)


def test_exit_code_and_text(invoke, result, tmp_path) -> None:
    paths = {}
    for name, stages in (("a", None), ("b", {"decode_ms": 18.0})):
        paths[name] = tmp_path / f"{name}.json"
        paths[name].write_text(json.dumps(result(stages, seed=len(paths))))
    slower = invoke(main, "compare", paths["a"], paths["b"])
    assert slower.exit_code == 1
    assert "stage that added the most: decode_ms" in slower.output
    assert invoke(main, "compare", paths["b"], paths["a"]).exit_code == 0
    loose = [str(paths["a"]), str(paths["b"]), "--tolerance", "30"]
    assert invoke(main, "compare", *loose).exit_code == 0


def test_a_file_that_is_no_result_is_refused(invoke, tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[]")
    refused = invoke(main, "compare", str(path), str(path))
    assert refused.exit_code == 2
    assert "not a result" in refused.output
