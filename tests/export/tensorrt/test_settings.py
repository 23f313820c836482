"""What TensorRT needs and can do here: what is not installed is named before any work."""

import importlib.metadata

import pytest

from sdrt.export.errors import BackendError
from sdrt.export.tensorrt import settings


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_package_is_one_line(backend, monkeypatch):
    """Reference: an install without the extra, as an empty search for modules."""
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(BackendError) as refused:
        settings.check_installed(backend, check_onnx=False)
    message = str(refused.value)
    assert f"pip install 'sdrt[{backend}]'" in message and "onnxscript" in message
    assert "\n" not in message and "onnxruntime" not in message
    with pytest.raises(BackendError, match="onnxruntime"):
        settings.check_installed(backend, check_onnx=True)


@pytest.mark.parametrize(
    ("version", "ring"),
    [("10.14.1", "copy"), ("10.15.0", "mask"), ("11.0.0", "length"), (None, "length")],
)
def test_the_ring_follows_the_library(version, ring, monkeypatch):
    """Reference: docs/tensorrt.md; RTX can always read up to a length."""

    def installed(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    for backend, expected in (
        ("tensorrt", ring),
        ("tensorrt-rtx", "length"),
        ("inductor", "length"),
    ):
        assert settings.choose_ring(backend) == expected
