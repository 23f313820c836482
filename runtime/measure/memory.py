"""How much memory a session holds."""

import sys

import torch


def memory_gib(device: torch.device) -> dict[str, float]:
    """Return device memory in GiB: allocated, reserved, peak; on a CPU the process's peak."""
    if device.type == "cuda":
        readings = {
            "mem_alloc_gib": torch.cuda.memory_allocated(device),
            "mem_reserved_gib": torch.cuda.memory_reserved(device),
            "mem_peak_gib": torch.cuda.max_memory_allocated(device),
        }
        return {name: value / 2**30 for name, value in readings.items()}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"mem_rss_gib": peak / 2**30}
