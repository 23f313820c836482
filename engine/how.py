"""How an engine's ops are implemented: one name a place, for every module and its weights."""

from collections.abc import Mapping

How = Mapping[str, str]
"""Place, such as ``wan_vae.decoder.upsamples.2`` -> implementation; else what runs everywhere."""

NOTHING: How = {}
"""Every place has the implementation that runs everywhere."""


def below(how: How, place: str) -> dict[str, str]:
    """Return what ``how`` says of the places below ``place``, under their names there."""
    return {
        name.removeprefix(f"{place}."): implementation
        for name, implementation in how.items()
        if name.startswith(f"{place}.")
    }
