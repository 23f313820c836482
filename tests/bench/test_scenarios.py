"""The registry: every scenario resolves, differs from the others, and finds its engine."""

import pytest

from sdrt.bench.cli import main
from sdrt.bench.scenarios import SCENARIOS, ScenarioError, check, find, matching, preset_hash
from sdrt.engine.preset.preset import to_dict


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_resolve_and_are_found_again(name) -> None:
    preset = to_dict(SCENARIOS[name].resolve())
    assert matching(preset) == SCENARIOS[name]
    assert matching(preset | {"weights": {"dit": "elsewhere"}}) == SCENARIOS[name]
    check(SCENARIOS[name], preset)


def test_hashes_tell_scenarios_apart() -> None:
    hashes = {preset_hash(to_dict(scenario.resolve())) for scenario in SCENARIOS.values()}
    assert len(hashes) == len(SCENARIOS)


def test_another_engine_is_refused_with_both_values_and_the_command() -> None:
    window = find("sdv2-1.3b-480p--window-12")
    preset = to_dict(find("sdv2-1.3b-480p").resolve())
    with pytest.raises(ScenarioError, match=r"'window_frames': 12.*'window_frames': 6.*build it: "):
        check(window, preset)
    assert matching(preset | {"name": "x"}) is None


def test_list_shows_every_scenario(invoke) -> None:
    shown = invoke(main, "list")
    assert shown.exit_code == 0
    for scenario in SCENARIOS.values():
        assert scenario.build_command() in shown.output


def test_unknown_names_are_refused(invoke, tmp_path) -> None:
    with pytest.raises(ScenarioError, match="unknown; bench list"):
        find("nothing")
    refused = invoke(main, "run", "tiny", "--engine", str(tmp_path / "none"))
    assert refused.exit_code == 2
    assert "no such engine directory" in refused.output
    options = ["run", "--engine", str(tmp_path), "--only", "everything"]
    refused = invoke(main, *options)
    assert refused.exit_code == 2
    assert "unknown section" in refused.output
