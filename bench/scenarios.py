"""The scenarios of the bench suite: a preset, and what of it is changed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdrt.engine.preset.preset import Preset, load, to_dict
from sdrt.kernels.errors import SdrtError


class ScenarioError(SdrtError):
    """A scenario that does not exist, or an engine that does not fit it."""


@dataclass(frozen=True)
class Scenario:
    """One line of ``bench list``."""

    name: str
    preset: str
    """Built-in preset."""
    overrides: tuple[str, ...] = ()
    """Settings that differ from it, as ``build-engines --set`` takes them."""

    def resolve(self) -> Preset:
        """Return the preset with the scenario's settings."""
        return load(self.preset, self.overrides)

    def build_command(self) -> str:
        """Return the command that builds the scenario's engine."""
        changes = "".join(f" --set {override}" for override in self.overrides)
        return f"build-engines --preset {self.preset}{changes}"


def _family(name: str, preset: str, variants: Mapping[str, tuple[str, ...]]) -> list[Scenario]:
    return [Scenario(name, preset)] + [
        Scenario(f"{name}--{suffix}", preset, overrides) for suffix, overrides in variants.items()
    ]


WINDOW_12 = ("stream.window_frames=12", "stream.sink_frames=3")
TAEHV_DECODER = ("decoder=taehv", "latents.denormalise_decoder=false")

SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Scenario("tiny", "tiny"),
        *_family(
            "sdv2-1.3b-480p",
            "sdv2-1.3b-480p",
            {
                "window-12": ("stream.window_frames=12",),
                "1-step": ("schedule.steps=[700]",),
                "4-steps": ("schedule.steps=[700,500,400,200]",),
                "320x576": ("stream.height=320", "stream.width=576"),
            },
        ),
        *_family("sdv2-1.3b-480p-taehv", "sdv2-1.3b-480p-taehv", {"both-ways": ("encoder=taehv",)}),
        *_family("sdv2-14b-480p", "sdv2-14b-480p", {"taehv": ("encoder=taehv", *TAEHV_DECODER)}),
        *_family(
            "self-forcing-1.3b-480p",
            "self-forcing-1.3b-480p",
            {"window-12": WINDOW_12, "window-12-taehv": (*WINDOW_12, *TAEHV_DECODER)},
        ),
    ]
}
"""All scenarios by name; the variants are there for FPS against window, steps and resolution."""


def find(name: str) -> Scenario:
    """Return a scenario.

    Raises:
        ScenarioError: there is none of that name.
    """
    if name not in SCENARIOS:
        raise ScenarioError(f"scenario {name}: unknown; bench list shows: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def describe(preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells one scenario's preset from another's, for tables."""
    stream = preset["stream"]
    return {
        "mode": "text to video" if preset["encoder"] == "none" else "video to video",
        "precision": preset["precision"],
        "encoder": preset["encoder"],
        "decoder": preset["decoder"],
        "steps": len(preset["schedule"]["steps"]),
        "window_frames": stream["window_frames"],
        "sink_frames": stream["sink_frames"],
        "chunk_frames": 4 * stream["chunk_latent_frames"],
        "size": f"{stream['width']}x{stream['height']}",
    }


def identity(preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preset without what does not change its speed: its sources of weights."""
    return {key: value for key, value in preset.items() if key != "weights"}


def preset_hash(preset: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a preset's identity."""
    text = json.dumps(identity(preset), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def matching(preset: Mapping[str, Any]) -> Scenario | None:
    """Return the scenario that an engine's preset belongs to, if any."""
    wanted = identity(preset)
    for scenario in SCENARIOS.values():
        if identity(to_dict(scenario.resolve())) == wanted:
            return scenario
    return None


def check(scenario: Scenario, preset: Mapping[str, Any]) -> None:
    """Refuse an engine that was built for another scenario.

    Raises:
        ScenarioError: the settings differ; the first difference is named with both values.
    """
    expected, found = identity(to_dict(scenario.resolve())), identity(preset)
    for key in expected.keys() | found.keys():
        if expected.get(key) != found.get(key):
            raise ScenarioError(
                f"scenario {scenario.name} has {key} = {expected.get(key)}, the engine has "
                f"{found.get(key)}; build it: {scenario.build_command()}"
            )
