"""Backends: what is not installed is named before any work."""

import pytest

from sdrt.engine.preset.preset import load
from sdrt.export.tensorrt import choice as backends


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_package_is_one_line(backend, monkeypatch):
    """Reference: an install without the extra, as an empty search for modules."""
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    chosen = backends.choose_backends(load("tiny"), backend, [])
    with pytest.raises(backends.BackendError) as refused:
        backends.choose_ring(chosen)
    message = str(refused.value)
    assert f"pip install 'sdrt[{backend}]'" in message and "onnxscript" in message
    assert "\n" not in message


def test_packages_need_nothing(monkeypatch):
    """Reference: the same install; Inductor asks for none of it."""
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert backends.choose_ring(backends.choose_backends(load("tiny"), "inductor", [])) == "length"
