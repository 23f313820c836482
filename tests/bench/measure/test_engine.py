"""The suite over a real engine on the CPU: every section runs; no times are asserted."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sdrt.bench.cli import main
from sdrt.bench.effort import QUICK
from sdrt.bench.measure.cold import run_cold
from sdrt.bench.measure.frames import ChunkSource
from sdrt.bench.measure.stream import PROMPT, Record, as_dicts
from sdrt.bench.report.compare import compare
from sdrt.bench.run import SECTIONS, Run
from sdrt.bench.scenarios import find
from sdrt.engine.preset.preset import load
from sdrt.engine.weights.source import open_source
from sdrt.engine.weights.umt5 import Umt5Config
from sdrt.export.store import write_text_encoder
from sdrt.runtime.chunk import Chunk
from sdrt.runtime.directory.manifest import read_manifest, write_manifest
from sdrt.runtime.session import Session


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On a busy machine threads that wait for each other cost most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(tiny_engine) -> dict:
    """A quick result of the tiny engine."""
    said: list[str] = []
    run = Run(tiny_engine, find("tiny"), QUICK, frozenset(SECTIONS), said.append)
    result = run.run()
    assert not result["errors"], said
    return json.loads(json.dumps(result))


def test_every_section_is_there(measured) -> None:
    assert set(measured["variants"]) == {"packages", "eager"}
    packages = measured["variants"]["packages"]
    assert packages["summary"]["fps"] > 0
    assert packages["summary"]["filling_steps"] == 5
    assert packages["launches"]["kernels_per_step"] > 0
    assert set(packages["launches"]["kernels"]) == {"encode", "diffuse", "decode"}
    (cold,) = measured["cold_start_ms"]
    milestones = ["interpreter", "imported", "loaded", "captured", "prepared", "first_frame"]
    assert list(cold) == milestones
    assert sorted(cold.values()) == list(cold.values())
    assert measured["cold_start_text_encoder"] == ["hashed words"]
    (change,) = measured["prompt"]["changes"]
    assert change["kind"] == measured["prompt"]["text_encoder"] == "hashed words"
    (paced,) = measured["paced"]
    assert paced["rate"] == 16 and paced["chunks"] >= QUICK.paced_steps
    assert set(measured["roof"]["stages"]) == {"encode", "diffuse", "decode"}
    assert len(measured["overhead"]["ratio"]) == 3
    assert set(measured["seconds"]) == set(SECTIONS)


def test_a_cold_start_says_what_encoded_its_prompt(tiny_engine, tmp_path) -> None:
    """The tiny engine with a small UMT5 of noise in the place of its hashed words."""
    engine = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    manifest = read_manifest(engine)
    source = open_source("synthetic", load("sdv2-1.3b-480p"), {"umt5": "synthetic"})
    dim = manifest.preset["dit"]["text_dim"]
    sizes = Umt5Config(128, dim, dim_attn=64, dim_ffn=96, num_heads=4, num_layers=2)
    text = write_text_encoder(engine, source.preset, source, config=sizes)
    write_manifest(engine, manifest.model_copy(update={"text": text}))
    assert run_cold(engine).text_encoder == "umt5, 0.0 GiB, loaded"
    assert run_cold(engine, cached=True).text_encoder == "not needed: cached"


def test_fidelity_of_the_packages(measured) -> None:
    fidelity = measured["fidelity"]
    assert fidelity["replay_equals_direct"]
    assert max(fidelity["packages_vs_eager"]["latent_error"]) < 1e-4  # float32 on both sides
    assert min(fidelity["packages_vs_eager"]["ssim"]) > 0.999
    assert max(fidelity["eager_vs_fp32"]["latent_error"]) < 1e-6  # tiny is in float32 itself


def test_error_of_each_stage(measured) -> None:
    stages = measured["fidelity"]["stages_vs_fp32"]
    assert set(stages) == {"encode", "diffuse", "decode"}
    for errors in stages.values():
        assert len(errors["packages"]) == len(errors["eager"]) > 0
        assert max(errors["packages"]) < 1e-4
        assert max(errors["eager"]) == 0  # tiny is in float32 itself
    assert max(stages["diffuse"]["packages"]) > 0  # another order of sums


def test_no_paths_or_host_names_in_a_result(measured) -> None:
    import socket

    text = json.dumps(measured)
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_report_and_readme_of_the_result(invoke, measured, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "tiny--cpu.json"
    path.write_text(json.dumps(measured))
    done = invoke(main, "report", str(path), "--out", str(tmp_path / "report"))
    assert done.exit_code == 0, done.output
    assert "measured / floor" in (tmp_path / "report" / "report.md").read_text()
    assert invoke(main, "compare", str(path), str(path)).exit_code == 0


def test_profile_writes_a_trace_and_tables(invoke, tiny_engine, tmp_path) -> None:
    command = ["profile", "--engine", str(tiny_engine), "--out", str(tmp_path), "--steps", "1"]
    done = invoke(main, *command)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert json.loads((tmp_path / "kernels.json").read_text())["kernels"]["diffuse"]


def test_another_scenario_is_refused(invoke, tiny_engine) -> None:
    refused = invoke(main, "run", "sdv2-1.3b-480p", "--engine", str(tiny_engine))
    assert refused.exit_code == 2
    assert "build-engines --preset sdv2-1.3b-480p" in refused.output


class Halves:
    """Two streams in one: every other AR step of a session has a sleep in its decoder."""

    def __init__(self, session: Session) -> None:
        self._session, self._source = session, ChunkSource(128, 224)
        session.prepare(PROMPT)
        warm = [self._step().stages_ms["decode_ms"] for _ in range(12)][3:]
        planted_s = 0.2 * float(np.median(warm)) / 1e3
        (op,) = session.steps.at(12).track("decode").ops
        run, self._slow = op.run, False

        def sleepy() -> None:
            run()
            if self._slow:
                time.sleep(planted_s)

        op.run = sleepy
        self.records: tuple[list[Record], list[Record]] = ([], [])

    def stream(self, steps: int) -> None:
        """Run some AR steps of each kind, in turns: what else the machine does hits both alike."""
        for index in range(2 * steps):
            self._slow = index % 2 == 1
            records = self.records[self._slow]
            begin = time.perf_counter()
            chunk = self._step()
            elapsed = (time.perf_counter() - begin) * 1e3
            received = elapsed + (records[-1].received_ms if records else 0.0)
            records.append(Record(index, "steady", 4, received, elapsed, elapsed, chunk.stages_ms))

    def _step(self) -> Chunk:
        self._session.submit(self._source.take(self._session.chunk_frames()))
        return self._session.receive()


def test_a_sleep_planted_in_a_stage_is_found_and_named(tiny_engine, result) -> None:
    """The decoder sleeps for a fifth of its own time; a busy machine needs more AR steps."""
    with Session.open(tiny_engine) as session:
        halves = Halves(session)
        for _ in range(10):
            halves.stream(20)
            results = [result(), result()]
            for made, records in zip(results, halves.records, strict=True):
                made["variants"]["packages"]["records"] = as_dicts(records)
            found = compare(*results)
            slower = [change.name for change in found.regressions(0.05)]
            if "decode_ms" in slower:
                break
        else:
            pytest.fail("decode_ms is not among the regressions")
    culprit = found.culprit()
    assert culprit is not None and culprit.name == "decode_ms"
