"""Preset files: where they lie, and how one extends another."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sdrt.kernels.errors import SdrtError

PRESETS = Path(__file__).parents[2] / "configs"
"""The folder of the presets that ship with the package."""

EXTENDS = "extends"
"""The key that names the preset of which a file holds the differences."""


class ConfigError(SdrtError):
    """A preset that cannot be used; one line a problem."""


@dataclass
class Settings:
    """What a preset's files say: plain values, not checked yet."""

    name: str
    """What messages call the preset."""
    values: dict[str, Any] = field(default_factory=dict)
    """Sections nested."""
    holders: dict[str, Path] = field(default_factory=dict)
    """Dotted key -> the file it comes from, where that is another than the preset's own."""

    def holder(self, key: str) -> Path | None:
        """Return the other file that holds a key, or the list or section it is in."""
        while key and key not in self.holders:
            key = key.rpartition(".")[0]
        return self.holders.get(key)


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_settings(name_or_path: str) -> Settings:
    """Read a preset's file, and those that it extends.

    Mappings are merged key by key; whatever else a file holds replaces what it extends. A file
    that extends another and has no ``name`` is called as its file is.

    Raises:
        ConfigError: a file that is not there or cannot be read, or files in a circle.
    """
    path = _find(name_or_path)
    return _read(path, path.stem, ())


def _read(path: Path, name: str, above: tuple[Path, ...]) -> Settings:
    """Read a file; ``above``: those that extend it, the preset's own first."""
    chain = (*above, path.resolve())
    if path.resolve() in above:
        circle = " -> ".join(place.name for place in chain)
        raise ConfigError(f"preset {name}: {EXTENDS}: {circle} is a circle; one must stand alone")
    values = _parse(path, name)
    base = values.pop(EXTENDS, None)
    if base is None:
        return Settings(name, values, {key: path for key in _keys(values)} if above else {})
    values.setdefault("name", path.stem)  # another preset than the one that it extends
    if not isinstance(base, str):
        raise ConfigError(f"preset {name}: {EXTENDS} in {path}: must name a preset or a YAML file")
    try:
        place = _find(base, path.parent)
    except ConfigError as error:
        raise ConfigError(f"preset {name}: {EXTENDS} in {path}: {error}") from None
    settings = _read(place, name, chain)
    merged = _merge(settings.values, values)
    own = set(_keys(values))
    holders = {key: holder for key, holder in settings.holders.items() if key not in own}
    if above:
        holders |= {key: path for key in own}
    return Settings(name, merged, holders)


def _parse(path: Path, name: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"preset {name}: cannot read {path}: {reason}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"preset {name}: {path} must hold a YAML mapping of settings")
    return data


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = _merge(below, value)
        merged[key] = value
    return merged


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values that are no mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _find(name_or_path: str, folder: Path = Path()) -> Path:
    """Return a preset's file; a relative path begins at ``folder``."""
    path = folder / name_or_path
    if path.suffix in (".yaml", ".yml") or len(Path(name_or_path).parts) > 1:
        if not path.is_file():
            raise ConfigError(f"preset file {path}: no such file")
        return path
    if name_or_path not in preset_names():
        known = ", ".join(preset_names())
        raise ConfigError(
            f"preset {name_or_path}: unknown; use one of {known}, or the path of a .yaml file"
        )
    return PRESETS / f"{name_or_path}.yaml"
