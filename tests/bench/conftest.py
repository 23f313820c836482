"""Fixtures of the bench tests: results made up from given stage times."""

from typing import Any

import numpy as np
import pytest

STAGES = {"encode_ms": 10.0, "diffuse_ms": 20.0, "decode_ms": 15.0, "finalize_ms": 0.002}


def make_result(
    stages: dict[str, float] | None = None, steps: int = 60, noise: float = 0.02, seed: int = 0
) -> dict[str, Any]:
    """Return a result whose steady stage times scatter around ``stages`` by ``noise``."""
    from sdrt.bench.measure.stream import Record, as_dicts, summarise
    from sdrt.bench.scenarios import describe, preset_hash
    from sdrt.engine.preset.preset import load, to_dict

    rng = np.random.default_rng(seed)
    means = STAGES | (stages or {})
    records, now = [], 0.0
    for index in range(steps + 8):
        phase = "filling" if index < 6 else "warm" if index < 8 else "steady"
        times = {name: mean * (1 + noise * rng.normal()) for name, mean in means.items()}
        times["total_ms"] = sum(times.values())
        now += times["total_ms"] + 0.2
        records.append(Record(index, phase, 4, now, times["total_ms"] + 0.2, 0.5, times))
    preset = to_dict(load("tiny"))
    launches = {"launches_per_step": 7.0, "kernels_per_step": 900.0, "ranges": [], "kernels": {}}
    variant = {
        "summary": summarise(records),
        "memory": {},
        "records": as_dicts(records),
        "samples": [{"t_s": 0.1 * i, "memory_gib": 1.0, "power_w": 300.0} for i in range(20)],
        "launches": launches,
    }
    return {
        "schema": 1,
        "scenario": "tiny",
        "main": "packages",
        "preset": preset,
        "preset_hash": preset_hash(preset),
        "description": describe(preset),
        "engine": {"built": "2030-01-01", "packages": 2, "synthetic_weights": True},
        "environment": {
            "device": "cpu",
            "cpu": "some cpu",
            "cores": 2,
            "torch_threads": 2,
            "torch": "2",
            "cuda": None,
            "cudnn": None,
            "python": "3",
            "commit": "abc",
            "versions": {},
        },
        "variants": {"packages": variant},
        "errors": {},
    }


@pytest.fixture
def result():
    """Callable: :func:`make_result`."""
    return make_result
