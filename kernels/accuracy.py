"""How far a result is from what it should be."""

from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ``||found - expected|| / ||expected||`` in float64."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
