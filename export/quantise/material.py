"""What is streamed to calibrate FP8."""

from dataclasses import dataclass
from pathlib import Path

from sdrt.export.errors import PackageError


class CalibrationError(PackageError):
    """FP8 cannot be calibrated; the message says what is missing."""


@dataclass(frozen=True)
class Material:
    """The input of the short streams that calibrate."""

    clip: Path | None = None
    """A generated clip unless given."""
    steps: int = 4
    """AR steps."""
