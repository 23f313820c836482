"""Cold start: a process of its own that opens an engine and makes a first frame, and when."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sdrt.runtime.measure.stats import process_age_ms

IMPORTED_AT = time.perf_counter()
AGE_AT_IMPORT_MS = process_age_ms()
TIMEOUT_S = 600
PROMPT = "neon discs"
FRESH, CACHED = "fresh", "cached"
"""Whether the prompt's embedding must be made anew."""


@dataclass(frozen=True)
class ColdStart:
    """One cold start."""

    ms: dict[str, float]
    """From the process's start to each milestone."""
    text_encoder: str
    """What encoded the prompt, such as ``umt5, 10.6 GiB, loaded`` or ``not needed: cached``."""


def run_cold(engine: Path, cached: bool = False) -> ColdStart:
    """Start a process that makes one frame; return the ms from its start to each milestone.

    ``interpreter``: Python runs; ``imported``: the runtime is imported; ``loaded``: weights and
    packages are in memory, hashes checked; ``captured``: every stage is captured and the session
    is open; ``prepared``: the prompt is encoded; ``first_frame``: the first frames can be read.

    Args:
        cached: the prompt's embedding may come from the disk, where the last start left it.
    Raises:
        RuntimeError: the process failed; the message ends with its last line.
    """
    how = CACHED if cached else FRESH
    command = [sys.executable, "-m", "sdrt.bench.measure.cold", str(engine), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"the cold start failed: {lines[-1] if lines else done.returncode}")
    return ColdStart(**json.loads(done.stdout.splitlines()[-1]))


def _start(directory: Path, how: str) -> ColdStart:
    """Open the engine and make the first chunk, as ``sdrun`` does."""
    found = {"interpreter": _now_ms()}

    @contextmanager
    def emitter(name: str) -> Iterator[None]:
        yield
        if name == "load":
            found["loaded"] = _now_ms()

    from sdrt.runtime.engine import Engine
    from sdrt.runtime.measure import profiler

    found["imported"] = _now_ms()
    with profiler.emitting(emitter):
        engine = Engine.open(directory)
        session = engine.session()
    found["captured"] = _now_ms()
    if how == FRESH:
        engine.prompts.forget(PROMPT)
    session.prepare(PROMPT, seed=0)
    found["prepared"] = _now_ms()
    from sdrt.bench.measure.frames import chunks_for
    from sdrt.bench.measure.prompts import text_encoder_state

    frames = next(chunks_for(session))
    begin = time.perf_counter()
    session.step(frames)
    found["first_frame"] = found["prepared"] + (time.perf_counter() - begin) * 1e3
    return ColdStart(found, text_encoder_state(engine.prompts))


def _now_ms() -> float:
    """Return the time since the process began, in ms; since this module's import if unknown."""
    return (AGE_AT_IMPORT_MS or 0.0) + (time.perf_counter() - IMPORTED_AT) * 1e3


if __name__ == "__main__":
    print(json.dumps(asdict(_start(Path(sys.argv[1]), sys.argv[2]))))
