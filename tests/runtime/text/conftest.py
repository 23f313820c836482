"""An engine directory with a small UMT5 of noise, as ``build-engines`` writes one."""

from pathlib import Path
from typing import NamedTuple

import pytest

from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.engine.weights.umt5 import Umt5Config
from sdrt.export.store import write_text_encoder
from sdrt.runtime.directory.contents import TextSpec

SIZES = Umt5Config(vocab_size=128, dim=64, dim_attn=64, dim_ffn=96, num_heads=4, num_layers=3)


class Engine(NamedTuple):
    """What ``Prompts`` needs of an engine."""

    directory: Path
    spec: TextSpec
    text_len: int
    text_dim: int


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine of a test's own: it may damage it."""
    preset = load("sdv2-1.3b-480p")
    source = open_source("synthetic", preset, {"umt5": "synthetic"})
    directory = tmp_path / "engine"
    directory.mkdir()
    spec = write_text_encoder(directory, preset, source, config=SIZES)
    return Engine(directory, spec, 12, SIZES.dim)
