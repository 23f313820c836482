"""One scenario, measured: the sections of a result, one after another on one device."""

import gc
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sdrt.bench.baseline.stream import ReferenceStream
from sdrt.bench.effort import Effort
from sdrt.bench.measure import environment, paced
from sdrt.bench.measure.cold import run_cold
from sdrt.bench.measure.fidelity import measure_fidelity
from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.launches import trace_steps
from sdrt.bench.measure.overhead import measure_overhead
from sdrt.bench.measure.prompts import measure_prompts
from sdrt.bench.measure.roof import measure_roof
from sdrt.bench.measure.sampler import Sampler, open_meter
from sdrt.bench.measure.stream import (
    PROMPT,
    Length,
    MemoryMeter,
    Record,
    Streamer,
    allocator_counts,
    as_dicts,
    record_stream,
    summarise,
)
from sdrt.bench.report.compare import ALONE
from sdrt.bench.scenarios import Scenario, check, describe, matching, preset_hash
from sdrt.engine.preset.preset import from_dict
from sdrt.engine.weights.source import Source
from sdrt.runtime.directory.manifest import Manifest, read_manifest
from sdrt.runtime.engine import Engine
from sdrt.runtime.session import Session

SCHEMA = 1
SECTIONS = ("cold", "prompt", "stream", "paced", "fidelity", "overhead", "baselines", "roof")
"""What ``bench run --only`` can choose from."""


class Run:
    """Measures one engine as one scenario."""

    def __init__(
        self,
        engine: Path,
        scenario: Scenario | None,
        effort: Effort,
        only: frozenset[str],
        say: Callable[[str], None],
    ) -> None:
        """Check that the engine fits.

        Args:
            scenario: None takes the one that the engine was built for, if any.
            only: sections to measure.
            say: gets a line when a section begins.
        Raises:
            ManifestError: the engine cannot be read.
            ScenarioError: it was built for another scenario.
        """
        self.engine, self.effort, self.only, self.say = engine, effort, only, say
        self.manifest: Manifest = read_manifest(engine)
        if scenario is not None:
            check(scenario, self.manifest.preset)
        known = scenario or matching(self.manifest.preset)
        self.name = known.name if known else self.manifest.name
        self.device = torch.device(self.manifest.device.type)
        self.source = ChunkSource(self.manifest.stream.height, self.manifest.stream.width)
        self.ahead = 1 if self.device.type == "cuda" else 0
        self.main = "graphs" if self.device.type == "cuda" else "packages"
        self.records: list[Record] = []
        """Of the engine's own stream, once it is measured."""
        self.result: dict[str, Any] = {"variants": {}, "seconds": {}, "errors": {}}

    def run(self) -> dict[str, Any]:
        """Return the result; a section that fails is named under ``errors`` and the rest goes on.

        The engine is measured first and once more after the fidelity, so that its own spread is
        known; the baselines follow when its session is closed.
        """
        manifest = self.manifest
        self.result = self._header() | self.result
        self._section("cold", self._cold)
        self._section("prompt", self._prompt)
        if self.only - {"cold", "prompt", "roof"}:
            with Session.open(self.engine) as session:
                session.prepare(PROMPT)
                session.engine.prompts.release()  # its memory is no part of the stream's
                self._with_session(session)
                self.prompt_embeds = session.prompt_embeds().clone()
            del session
            self._free()
        self._section("baselines", self._reference)
        preset = from_dict(manifest.preset)
        self._section("roof", lambda: self._keep("roof", measure_roof(preset, self.device)))
        return self.result

    def _with_session(self, session: Session) -> None:
        effort = self.effort
        self._section("stream", lambda: self._stream(self.main, session, effort.main, self.ahead))
        if self.ahead:
            self._section("stream", lambda: self._stream(ALONE, session, effort.baseline, 0))
        if session.takes_frames:
            self._section("paced", lambda: self._paced(session))
        else:
            self._section("paced", lambda: self._stalls(session))
        if self.main == "graphs":
            self._section("baselines", lambda: self._direct(session))
        chunks = self._fidelity_chunks()
        self._section(
            "fidelity",
            lambda: self._keep("fidelity", measure_fidelity(session, chunks)),
        )
        self._section(
            "overhead",
            lambda: self._keep(
                "overhead", measure_overhead(session, self.source, effort.overhead_steps)
            ),
        )
        self._section("stream", lambda: self._again(session))
        session.prepare("neon discs")

    def _fidelity_chunks(self) -> int:
        stream = self.manifest.preset["stream"]
        latents = stream["window_frames"] + self.effort.fidelity_latents
        return -(-latents // self.manifest.stream.latent_frames)

    def _header(self) -> dict[str, Any]:
        manifest = self.manifest
        return {
            "schema": SCHEMA,
            "scenario": self.name,
            "main": self.main,
            "preset": manifest.preset,
            "preset_hash": preset_hash(manifest.preset),
            "description": describe(manifest.preset),
            "engine": {
                "built": manifest.built,
                "versions": manifest.versions,
                "synthetic_weights": manifest.weights.synthetic,
                "packages": len(manifest.packages),
                "megabytes": round(sum(p.bytes for p in manifest.packages.values()) / 1e6, 1),
                "build_s": round(sum(p.build_s for p in manifest.packages.values()), 1),
            },
            "environment": environment.capture(self.device),
        }

    def _section(self, name: str, body: Callable[[], None]) -> None:
        if name not in self.only:
            return
        self.say(f"{self.name}: {name}")
        started = time.perf_counter()
        try:
            body()
        except Exception as error:  # one section must not cost the others their device time
            self.say(traceback.format_exc())
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
            self.result["errors"].setdefault(name, []).append(reason)
        seconds = self.result["seconds"]
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 1)

    def _keep(self, name: str, value: Any) -> None:
        self.result[name] = value

    def _cold(self) -> None:
        runs = [run_cold(self.engine) for _ in range(self.effort.cold_runs)]
        if self.manifest.text.kind == "umt5":
            runs.append(run_cold(self.engine, cached=True))
        self.result["cold_start_ms"] = [run.ms for run in runs]
        self.result["cold_start_text_encoder"] = [run.text_encoder for run in runs]

    def _prompt(self) -> None:
        """Measure changes of the prompt, before the other sections: the encoder needs memory."""
        with Engine.open(self.engine) as engine, engine.session() as session:
            found = measure_prompts(
                engine.prompts, session, self.source, self.ahead, self.effort.prompts
            )
        self.result["prompt"] = found
        self._free()

    def _stream(self, name: str, streamer: Streamer, length: Length, ahead: int) -> None:
        """Measure one variant: speed, memory, energy, launches."""
        memory, sampler = MemoryMeter(self.device), Sampler(open_meter(self.device))
        before: dict[str, int] = {}

        def count() -> None:
            if self.device.type == "cuda":
                before.update(allocator_counts(self.device))

        with sampler:
            started = time.perf_counter()
            records = record_stream(streamer, self.source, length, ahead, count)
            seconds = time.perf_counter() - started
        grown = {key: allocator_counts(self.device)[key] - value for key, value in before.items()}
        if name == self.main:
            self.records = records
        variant: dict[str, Any] = {
            "summary": summarise(records),
            "memory": memory.read() or _resident(sampler.samples),
        }
        if grown:
            variant["steady_allocator"] = grown
        if sampler.joules is not None:
            frames = sum(record.frames for record in records)
            variant["energy"] = {
                "joules_per_frame": sampler.joules / frames,
                "mean_w": sampler.joules / seconds,
            }
        variant["records"] = as_dicts(records)
        variant["samples"] = sampler.samples
        variant["launches"] = trace_steps(streamer, self.source, steps=2)
        self.result["variants"][name] = variant

    def _again(self, session: Session) -> None:
        """Measure the engine once more: what differs from the first time is noise."""
        records = record_stream(session, self.source, self.effort.baseline, self.ahead)
        variant = self.result["variants"][self.main]
        variant["repeat"] = {"summary": summarise(records), "records": as_dicts(records)}

    def _paced(self, session: Session) -> None:
        steps, rates = self.effort.paced_steps, self.effort.rates
        self.result["paced"] = [
            paced.run_paced(session, self.source, rate, steps) for rate in rates
        ]

    def _stalls(self, session: Session) -> None:
        records = self.records or record_stream(
            session, self.source, self.effort.baseline, self.ahead
        )
        self.result["stalls"] = [paced.stalls(records, rate) for rate in self.effort.rates]

    def _direct(self, session: Session) -> None:
        with session.engine.session(capture=False) as direct:
            self._stream("packages", direct, self.effort.baseline, self.ahead)

    def _reference(self) -> None:
        """Measure the model as the references run it, then with its modules compiled."""
        preset = from_dict(self.manifest.preset)
        # Where the engine's weights came from: the baselines load the public ones again.
        source = Source(preset, self.manifest.weights.sources)
        with torch.inference_mode():
            reference = ReferenceStream(preset, source, self.device, self.prompt_embeds)
        self._stream("eager", reference, self.effort.baseline, 0)
        if self.effort.compiled:
            torch._dynamo.reset()
            reference.compile()
            self._stream("compiled", reference, self.effort.baseline, 0)
        reference.close()
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _resident(samples: list[dict[str, float]]) -> dict[str, float]:
    """Return a CPU run's memory: that of the whole process, libraries included."""
    found = [sample["memory_gib"] for sample in samples if "memory_gib" in sample]
    return {"peak_gib": max(found), "steady_gib": found[-1]} if found else {}
