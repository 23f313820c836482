"""The compiled ops that packages call: which modules register them."""

from collections.abc import Mapping

from sdrt.engine.convs import FUSED
from sdrt.kernels.ring_attention import COMPILED

OP_MODULES = {COMPILED: "sdrt.kernels.ring_attention", FUSED: "sdrt.kernels.causal_conv"}
"""Implementations that are compiled ops -> the module that registers them."""


def op_modules(how: Mapping[str, str]) -> tuple[str, ...]:
    """Return the modules that register the ops that packages with these implementations call.

    They have to be imported before such a package is loaded.
    """
    used = set(how.values()) & OP_MODULES.keys()
    return tuple(sorted(OP_MODULES[name] for name in used))
