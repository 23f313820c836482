"""Cold start: a process of its own that opens an engine and makes a first frame, and when."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdrt.runtime.measure.stats import process_age_ms

IMPORTED_AT = time.perf_counter()
AGE_AT_IMPORT_MS = process_age_ms()
TIMEOUT_S = 600


def run_cold(engine: Path) -> dict[str, float]:
    """Start a process that makes one frame; return the ms from its start to each milestone.

    ``interpreter``: Python runs; ``imported``: the runtime is imported; ``loaded``: weights and
    packages are in memory, hashes checked; ``captured``: every stage is captured and the session
    is open; ``prepared``: the prompt is encoded; ``first_frame``: the first frames can be read.

    Raises:
        RuntimeError: the process failed; the message ends with its last line.
    """
    command = [sys.executable, "-m", "sdrt.bench.measure.cold", str(engine)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"the cold start failed: {lines[-1] if lines else done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _milestones(engine: Path) -> dict[str, float]:
    """Open the engine and make the first chunk, as ``sdrun`` does."""
    found = {"interpreter": _now_ms()}

    @contextmanager
    def emitter(name: str) -> Iterator[None]:
        yield
        if name == "load":
            found["loaded"] = _now_ms()

    from sdrt.runtime.measure import profiler
    from sdrt.runtime.session import Session

    found["imported"] = _now_ms()
    with profiler.emitting(emitter):
        session = Session.open(engine)
    found["captured"] = _now_ms()
    session.prepare("neon discs", seed=0)
    found["prepared"] = _now_ms()
    from sdrt.bench.measure.frames import chunks_for

    frames = next(chunks_for(session))
    begin = time.perf_counter()
    session.step(frames)
    found["first_frame"] = found["prepared"] + (time.perf_counter() - begin) * 1e3
    return found


def _now_ms() -> float:
    """Return the time since the process began, in ms; since this module's import if unknown."""
    return (AGE_AT_IMPORT_MS or 0.0) + (time.perf_counter() - IMPORTED_AT) * 1e3


if __name__ == "__main__":
    print(json.dumps(_milestones(Path(sys.argv[1]))))
