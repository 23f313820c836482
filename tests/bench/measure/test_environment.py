"""What a result says of its machine, with NVML played by a fake."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from sdrt.bench.measure import environment
from sdrt.bench.measure.sampler import HostMemory, Nvml, Sampler, open_meter


class FakeNvml(SimpleNamespace):
    """A GPU that takes 300 W and cannot tell its temperature."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 300_000

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return {1: 1980, 2: 3201}[clock]

    nvmlDeviceGetMaxClockInfo = nvmlDeviceGetClockInfo

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=3 << 30)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return int(time.perf_counter() * 300_000)


@pytest.fixture
def nvml(monkeypatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    properties = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return fake


def test_nvml_leaves_out_what_cannot_be_read(nvml) -> None:
    meter = Nvml(torch.device("cuda"))
    assert nvml.asked == [b"GPU-1234"]
    expected = {"power_w": 300.0, "sm_mhz": 1980.0, "memory_mhz": 3201.0, "memory_gib": 3.0}
    assert meter.sample() == expected
    assert meter.limits()["power_limit_w"] == 700.0


def test_energy_is_the_counters_difference(nvml) -> None:
    sampler = Sampler(Nvml(torch.device("cuda")))
    begin = time.perf_counter()
    with sampler:
        time.sleep(0.25)
    elapsed = time.perf_counter() - begin
    assert sampler.joules is not None
    assert 300 * 0.25 <= sampler.joules <= 300 * elapsed
    assert sampler.samples and sampler.samples[0]["power_w"] == 300.0


def test_without_the_package_there_is_no_meter(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_meter(torch.device("cuda")) is None
    with Sampler(None) as sampler:
        pass
    assert sampler.samples == [] and sampler.joules is None


def test_a_cpu_has_its_resident_memory() -> None:
    assert isinstance(open_meter(torch.device("cpu")), HostMemory)
    if sys.platform == "linux":
        assert 0.01 < HostMemory().sample()["memory_gib"] < 100


def test_environment_of_this_machine(monkeypatch) -> None:
    monkeypatch.setenv(environment.COMMIT_VARIABLE, "0123abc")
    found = environment.capture(torch.device("cpu"))
    assert found["device"] == "cpu" and found["torch"] == torch.__version__
    assert found["commit"] == "0123abc"
    assert environment.device_slug(found) == "cpu"
    assert environment.device_slug({"device": "NVIDIA H200"}) == "h200"
    assert environment.device_slug({"device": "NVIDIA GeForce RTX 4090"}) == "geforce-rtx-4090"
