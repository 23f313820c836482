"""What ``build-engines`` was asked for, and the arguments that ask for the same again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pydantic is slow to import, and help does without
    from sdrt.runtime.directory.contents import BuildSpec

DEFAULT_BACKEND = "inductor"
SOURCE_WORDS = ("default", "bundled", "synthetic")
"""Sources of weights that are no places."""


@dataclass(frozen=True)
class Options:
    """The options of the command line, as given; its help describes them."""

    preset: str
    out: Path | None
    weights: str | None
    component: list[str] | None
    override: list[str] | None
    ranges: str | None
    device: str | None
    jobs: int | None
    force: bool
    backend: str
    stage_backend: list[str] | None
    target: str | None
    add: bool
    keep_onnx: bool
    explain: bool
    optimization_level: int | None
    aux_streams: int
    workspace_mib: int | None
    timing_cache: Path | None
    fp8: str | None
    calibration_clip: Path | None
    calibration_steps: int
    check_onnx: bool

    def asked(self, rtx: bool = False) -> "BuildSpec":
        """Return what builds the same.

        Args:
            rtx: whether that makes plans of tensorrt_rtx.
        """
        from sdrt.runtime.directory.contents import BuildSpec

        arguments = self._arguments()
        return BuildSpec(arguments=arguments, device=self.device, target=self.target, rtx=rtx)

    def _arguments(self) -> tuple[str, ...]:
        """Return the arguments that build the same; those of where and for which device aside.

        Paths are absolute, so that they hold in any folder; defaults are left out.
        """
        components = [part.partition("=") for part in self.component or []]
        options = [
            ("--preset", _absolute(self.preset)),
            ("--weights", self.weights and _absolute(self.weights)),
            *(("--component", f"{part}={_absolute(place)}") for part, _, place in components),
            *(("--set", change) for change in self.override or []),
            ("--ranges", self.ranges),
            ("--backend", self.backend if self.backend != DEFAULT_BACKEND else None),
            *(("--stage-backend", pair) for pair in self.stage_backend or []),
            ("--optimization-level", self.optimization_level),
            ("--aux-streams", self.aux_streams or None),
            ("--workspace-mib", self.workspace_mib),
            ("--timing-cache", self.timing_cache and self.timing_cache.absolute()),
            ("--fp8", self.fp8),
            ("--calibration-clip", self.calibration_clip and self.calibration_clip.absolute()),
            ("--calibration-steps", self.calibration_steps if self.fp8 else None),
        ]
        flags = [("--keep-onnx", self.keep_onnx), ("--check-onnx", self.check_onnx)]
        given = [text for name, value in options if value is not None for text in (name, value)]
        return (*map(str, given), *(name for name, wanted in flags if wanted))


def _absolute(place: str) -> str:
    """Return a place as an absolute path, if it is one and not a name or a repository."""
    exists = place not in SOURCE_WORDS and Path(place).exists()
    return str(Path(place).absolute()) if exists else place
