"""What can be tuned: a place in an engine, and the implementations that it may have."""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

PLAIN = "conv2d"
"""The form of layers that are nothing but convolutions and what lies between them."""

Candidates = Mapping[str, Callable[[], object]]
"""Implementation -> a call of it."""


class Tunable(NamedTuple):
    """A place with a choice of implementations."""

    place: str
    """Its name in an engine's ``how``."""
    stage: str
    """The stage that it is part of."""
    kind: Hashable
    """What its fastest implementation depends on: places of the same kind are timed once."""
    candidates: Callable[[], Candidates]
    """Makes the implementations to time."""
