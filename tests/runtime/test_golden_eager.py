"""Streaming golden cases on the eager modules, through the session's own flows."""

import pytest

from sdrt.bench.measure.eager import eager_session
from sdrt.export.recipe import Recipe

CASES = (
    "sdv2_stream_batch",
    "sdv2_stream_batch_sink_refresh",
    "self_forcing",
    "self_forcing_local",
)


@pytest.mark.parametrize("name", CASES)
def test_stream_matches_the_reference(name, golden_streams):
    """Reference: the public implementations' outputs, every AR step, the wrapped ring included."""
    preset = golden_streams.preset(name)
    with eager_session(Recipe.of(preset), golden_streams.source(name)) as session:
        errors = golden_streams.errors(session, name)
    assert len(errors) >= 5
    assert max(errors) <= 1e-4, errors


def test_block_ranges_change_nothing(golden_streams):
    """Reference: the DiT as one range; ``dit[0:1]`` and ``dit[1:3]`` must give the same bits."""
    name = "sdv2_stream_batch"
    preset, source = golden_streams.preset(name), golden_streams.source(name)
    with (
        eager_session(Recipe.of(preset), source) as whole,
        eager_session(Recipe.of(preset, ranges=((0, 1), (1, 3))), source) as split,
    ):
        assert {"dit[0:1].steady", "dit[1:3].steady"} <= set(split.steps.stages)
        assert golden_streams.errors(split, name) == golden_streams.errors(whole, name)
