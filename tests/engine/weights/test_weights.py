"""Weights: folder layouts of the public repositories, the Hub without a network, checks, noise."""

import os
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from sdrt.engine.dit import weights as dit_weights
from sdrt.engine.preset.preset import load
from sdrt.engine.taehv import model as taehv
from sdrt.engine.weights.source import COMPONENTS, WeightsError, open_source
from sdrt.engine.weights.synthetic import draw

SHAPES = {"a.weight": (4, 3), "blocks.0.b.bias": (4,)}
"""A stand-in for any component: the checks take the expected names and shapes as arguments."""

SDV2, TAEHV, SELF_FORCING = "sdv2-1.3b-480p", "sdv2-1.3b-480p-taehv", "self-forcing-1.3b-480p"
BASE = "Wan2.1-T2V-1.3B"


@pytest.fixture
def tensors():
    """The tensors of ``SHAPES``."""
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def save(tensors, path: Path, layout=lambda tensors: tensors) -> Path:
    """Write tensors as the suffix says, in a training checkpoint's layout if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(layout(tensors), path)
    else:
        torch.save(layout(tensors), path)
    return path


def assert_same(loaded, tensors) -> None:
    """The names, values and types are those of ``tensors``."""
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def wrapped(tensors):
    """As FSDP, activation checkpointing and torch.compile leave the names."""
    inner = {
        name.replace("b.", "b._checkpoint_wrapped_module._orig_mod."): tensor
        for name, tensor in tensors.items()
    }
    return prefixed("model._fsdp_wrapped_module.")(inner)


def both_generators(tensors):
    """The moving average is the one to use; the optimiser's state is not looked at."""
    last = {f"model.{name}": tensor + 1 for name, tensor in tensors.items()}
    return {
        "generator": last,
        "generator_ema": prefixed("model.")(tensors),
        "critic": {"x": torch.ones(1)},
        "step": 7,
    }


LAYOUTS = {
    "bare": lambda tensors: tensors,
    "model": prefixed("model."),
    "generator": lambda tensors: {"generator": prefixed("model.")(tensors)},
    "both": both_generators,
    "wrapped": lambda tensors: {"generator_ema": wrapped(tensors)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_checkpoints_lose_their_wrapping(layout, tensors, tmp_path):
    file = save(tensors, tmp_path / "any.pt", LAYOUTS[layout])
    source = open_source("synthetic", load(SDV2), {"dit": str(file)})
    assert_same(source.load("dit", SHAPES), tensors)


@pytest.mark.parametrize("root", ["", f"{BASE}/", f"wan_models/{BASE}/"])
@pytest.mark.parametrize(
    ("component", "file"),
    [
        ("vae", "Wan2.1_VAE.pth"),
        ("umt5", "models_t5_umt5-xxl-enc-bf16.pth"),
        ("dit", "dit.safetensors"),
    ],
)
def test_folders_in_the_layout_of_the_public_repositories(root, component, file, tensors, tmp_path):
    save(tensors, tmp_path / root / file)
    source = open_source(str(tmp_path), load(SDV2))
    assert_same(source.load(component, SHAPES), tensors)


@pytest.mark.parametrize(
    ("preset", "file"),
    [
        (SDV2, "wan_causal_dmd_v2v/model.pt"),
        (SDV2, "ckpts/wan_causal_dmd_v2v/model.pt"),
        ("sdv2-14b-480p", "ckpts/wan_causal_dmd_v2v_14b/model.pt"),
        (SELF_FORCING, "checkpoints/self_forcing_dmd.pt"),
        (SELF_FORCING, "self_forcing_dmd.pt"),
    ],
)
def test_the_trained_dit_comes_before_the_base_model(preset, file, tensors, tmp_path):
    save(tensors, tmp_path / file, both_generators)
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    save(other, tmp_path / BASE / "diffusion_pytorch_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(open_source(str(tmp_path), load(preset)).load("dit", SHAPES), tensors)


def test_the_base_model_is_used_with_a_warning_and_in_shards(tensors, tmp_path):
    for index, (name, tensor) in enumerate(tensors.items(), 1):
        file = f"diffusion_pytorch_model-0000{index}-of-00002.safetensors"
        save({name: tensor}, tmp_path / BASE / file)
    source = open_source(str(tmp_path), load(SDV2))
    with pytest.warns(UserWarning, match="not trained to stream"):
        assert_same(source.load("dit", SHAPES), tensors)


@pytest.mark.parametrize("file", ["taew2_1.pth", "ckpts/taew2_1.safetensors"])
def test_taehv_may_bring_frame_splits_of_twice_the_outputs(file, tmp_path):
    config = load(TAEHV).taehv
    expected = taehv.public_shapes(config)
    tensors = {name: torch.randn(shape) for name, shape in expected.items()}
    split = next(name for name, shape in expected.items() if shape[2:] == (1, 1) and "deco" in name)
    tensors[split] = torch.randn(2 * expected[split][0], *expected[split][1:])
    save(tensors, tmp_path / file)
    loaded = open_source(str(tmp_path), load(TAEHV)).load("taehv", expected)
    assert_same(loaded, tensors)
    kept = taehv.from_public(config, loaded)[split]
    assert torch.equal(kept, tensors[split][expected[split][0] :])

    tensors["decoder.1.weight"] = tensors["decoder.1.weight"].repeat(2, 1, 1, 1)
    save(tensors, tmp_path / file)
    with pytest.raises(WeightsError, match=r"wrong shape \(1\):\n    decoder\.1\.weight: got"):
        open_source(str(tmp_path), load(TAEHV)).load("taehv", expected)


def test_tensors_are_converted_as_they_are_asked_for(tensors, tmp_path):
    source = open_source("synthetic", load(SDV2), {"dit": str(save(tensors, tmp_path / "a.pt"))})
    loaded = source.load("dit", SHAPES, dtype=torch.bfloat16)
    assert torch.equal(loaded["a.weight"], tensors["a.weight"].bfloat16())
    assert len(loaded) == 2 and "c" not in loaded
    with pytest.raises(KeyError):
        loaded["c"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_does_not_fit_is_listed_in_one_error(suffix, tensors, tmp_path):
    tensors["a.weight"] = torch.randn(4, 4)
    tensors |= {f"extra.{i}": torch.zeros(1) for i in range(25)}
    del tensors["blocks.0.b.bias"]
    file = save(tensors, tmp_path / f"model.{suffix}")
    source = open_source("synthetic", load(SDV2), {"dit": str(file)})
    with pytest.raises(WeightsError) as caught:
        source.load("dit", SHAPES)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"dit: {file} does not fit the model of the preset"
    assert lines[1:4] == ["  missing (1):", "    blocks.0.b.bias", "  unexpected (25):"]
    assert len([line for line in lines if line.startswith("    extra.")]) == 20
    assert lines[-3:] == [
        "    and 5 more",
        "  wrong shape (1):",
        "    a.weight: got [4, 4], expected [4, 3]",
    ]


class Malicious:
    """Runs a command when unpickled."""

    def __reduce__(self):
        return os.system, ("echo unpickled",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: torch.save({"a": Malicious()}, path),
            r"refused, it holds more than tensors: posix\.system",
        ),
        (lambda path: torch.save({"a": "text"}, path), "a is a str, expected a tensor"),
        (lambda path: torch.save(torch.ones(1), path), "holds a Tensor, expected tensors by name"),
        (lambda path: path.write_text("version https://git-lfs"), "damaged or incomplete"),
        (lambda path: path.write_bytes(b""), "damaged or incomplete"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(write, message, tmp_path, capfd):
    file = tmp_path / "model.pt"
    write(file)
    with pytest.raises(WeightsError, match=message) as caught:
        open_source("synthetic", load(SDV2), {"dit": str(file)}).load("dit", SHAPES)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    assert "unpickled" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_truncated_files_are_refused(name, tmp_path):
    file = save({"a": torch.ones(4096)}, tmp_path / name)
    file.write_bytes(file.read_bytes()[:8000])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        open_source("synthetic", load(SDV2), {"dit": str(file)}).load("dit", SHAPES)


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(WeightsError, match=r"expected a file ending in \.safetensors, \.pt, \.pth"):
        open_source("synthetic", load(SDV2), {"dit": str(file)}).load("dit", SHAPES)


def test_the_tokenizer_lies_beside_the_text_encoder(tmp_path):
    folder = tmp_path / BASE / "google" / "umt5-xxl"
    preset = load(SDV2)
    (tmp_path / BASE).mkdir()
    with pytest.raises(WeightsError, match="expected the folder google/umt5-xxl"):
        open_source(str(tmp_path), preset).tokenizer_folder()
    folder.mkdir(parents=True)
    assert open_source(str(tmp_path), preset).tokenizer_folder() == folder
    encoder = tmp_path / BASE / "models_t5_umt5-xxl-enc-bf16.pth"
    encoder.touch()
    named = open_source("synthetic", preset, {"umt5": str(encoder)})
    assert named.tokenizer_folder() == folder
    assert open_source("synthetic", preset).tokenizer_folder() is None
    assert open_source("default", load("tiny")).tokenizer_folder() is None


def test_a_folder_without_the_file_says_what_was_expected(tmp_path):
    source = open_source(str(tmp_path), load(SDV2))
    with pytest.raises(WeightsError) as caught:
        source.load("dit", SHAPES)
    for part in ("dit: no weights in", "wan_causal_dmd_v2v/model.pt", f"{BASE}/", "dit=FILE"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match=f"preset {SDV2} does not use taehv"):
        source.load("taehv", SHAPES)


@pytest.mark.parametrize(
    ("spec", "preset", "overrides", "message"),
    [
        ("/nowhere/at all", SDV2, {}, "no such file or folder, and not a Hugging Face repository"),
        ("./weights", SDV2, {}, "no such file or folder"),
        ("defualt", SDV2, {}, "no such file or folder"),
        ("default", SDV2, {"taehv": "x"}, "uses no such component; its components are dit, vae, u"),
        ("default", SDV2, {"text": "x"}, "uses no such component"),
        ("default", TAEHV, {}, r"no default weights for taehv: give a local file \(taew2_1.pth"),
        (
            "owner/name:file.pt",
            SDV2,
            {},
            "one file cannot hold dit, vae, umt5.*dit=owner/name:file",
        ),
        (__file__, SDV2, {}, "one file cannot hold"),
    ],
)
def test_sources_that_do_not_exist(spec, preset, overrides, message):
    with pytest.raises(WeightsError, match=message):
        open_source(spec, load(preset), overrides)


def test_every_component_has_a_source():
    source = open_source("default", load(TAEHV), {"taehv": "synthetic"})
    assert source.specs == {
        "dit": "jerryfeng/StreamDiffusionV2:wan_causal_dmd_v2v/model.pt",
        "vae": "Wan-AI/Wan2.1-T2V-1.3B",
        "taehv": "synthetic",
        "umt5": "Wan-AI/Wan2.1-T2V-1.3B",
    }
    assert source.synthetic
    assert not open_source("default", load(SDV2)).synthetic


@pytest.mark.parametrize("spec", ["default", "bundled"])
def test_the_bundled_model_loads(spec):
    preset = load("tiny")
    source = open_source(spec, preset)
    dit = source.load("dit", dit_weights.public_shapes(preset.dit), dtype=torch.float32)
    millions = sum(tensor.numel() for tensor in dit.values()) / 1e6
    assert round(millions, 1) == 4.7  # as the README beside the weights says
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float32 for tensor in dit.values())
    assert len(source.load("taehv", taehv.public_shapes(preset.taehv))) > 0
    assert source.specs == {"dit": "bundled", "taehv": "bundled"}


def test_the_bundled_model_is_refused_by_other_presets():
    preset = load(SDV2)
    with pytest.raises(WeightsError, match="does not fit the model"):
        open_source("bundled", preset).load("dit", dit_weights.public_shapes(preset.dit))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the Hub: ``tmp_path/hub`` is every repository; the calls are recorded."""
    calls = []

    def download(repo, file):
        calls.append((repo, file))
        return str(tmp_path / "hub" / file)

    def snapshot(repo, allow_patterns):
        calls.append((repo, allow_patterns))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return calls


def test_defaults_come_from_the_presets_repositories(hub, tensors, tmp_path):
    save(tensors, tmp_path / "hub" / "wan_causal_dmd_v2v/model.pt", both_generators)
    save(tensors, tmp_path / "hub" / "Wan2.1_VAE.pth")
    (tmp_path / "hub" / "google" / "umt5-xxl").mkdir(parents=True)
    source = open_source("default", load(SDV2))
    assert hub == []  # nothing is fetched before it is needed
    assert_same(source.load("dit", SHAPES), tensors)
    assert_same(source.load("vae", SHAPES), tensors)
    assert source.tokenizer_folder() == tmp_path / "hub" / "google" / "umt5-xxl"
    (dit, vae, tokenizer) = hub
    assert dit == ("jerryfeng/StreamDiffusionV2", "wan_causal_dmd_v2v/model.pt")
    assert vae[0] == tokenizer[0] == "Wan-AI/Wan2.1-T2V-1.3B"
    assert "Wan2.1_VAE.pth" in vae[1] and "google/umt5-xxl/*" in tokenizer[1]


def test_a_repository_may_supply_everything(hub, tensors, tmp_path):
    save(tensors, tmp_path / "hub" / "model.pt")
    assert_same(open_source("owner/name", load(SDV2)).load("dit", SHAPES), tensors)
    assert hub[0][0] == "owner/name" and "model.pt" in hub[0][1]
    with pytest.raises(WeightsError, match="vae: no weights in owner/name"):
        open_source("owner/name", load(SDV2)).load("vae", SHAPES)


@pytest.mark.parametrize("component", ["dit", "vae"])
def test_offline_and_not_cached_is_one_clear_line(component, monkeypatch, tmp_path):
    """With huggingface_hub's own offline mode and an empty cache: no request is made."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        open_source("default", load(SDV2)).load(component, SHAPES)
    message = str(caught.value)
    assert message.startswith(f"{component}: ") and "\n" not in message
    assert f"is not in the cache {tmp_path} and HF_HUB_OFFLINE forbids" in message
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)


def test_a_failed_download_says_how_to_go_on(monkeypatch):
    def fail(repo, file):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(WeightsError, match="cannot download .*: no route to host; run again") as e:
        open_source("default", load(SELF_FORCING)).load("dit", SHAPES)
    assert "\n" not in str(e.value)


def test_synthetic_weights_depend_on_name_and_seed_only():
    first, again = draw("a.weight", (8, 8)), draw("a.weight", (8, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw("b.weight", (8, 8)))
    assert not torch.equal(first, draw("a.weight", (8, 8), seed=1))
    assert torch.equal(first.bfloat16(), draw("a.weight", (8, 8), dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "shape", "mean", "std"),
    [
        ("blocks.0.ffn.0.weight", (512, 256), 0, 256**-0.5),
        ("patch_embedding.weight", (256, 16, 1, 2, 2), 0, 64**-0.5),
        ("blocks.0.norm3.weight", (20000,), 1, 0.1),
        ("decoder.head.0.gamma", (20000, 1, 1, 1), 1, 0.1),
        ("blocks.0.ffn.0.bias", (20000,), 0, 0.02),
        ("blocks.0.modulation", (1, 6, 4096), 0, 1 / 64),
    ],
)
def test_synthetic_weights_are_scaled_by_kind(name, shape, mean, std):
    tensor = draw(name, shape)
    assert tensor.shape == shape
    # 16,000 draws or more: the mean is within 5 standard errors, the deviation within 5%
    assert float(tensor.mean()) == pytest.approx(mean, abs=5 * std / tensor.numel() ** 0.5)
    assert float(tensor.std()) == pytest.approx(std, rel=0.05)


def test_a_synthetic_source_serves_every_component():
    preset = load(SDV2)
    source = open_source("synthetic", preset)
    shapes = dit_weights.public_shapes(preset.dit)
    dit = source.load("dit", shapes, dtype=torch.bfloat16)
    assert dit.shapes == shapes
    bias = dit["blocks.29.ffn.2.bias"]
    assert bias.shape == (1536,) and bias.dtype == torch.bfloat16
    assert source.synthetic
    assert source.specs == {name: "synthetic" for name in COMPONENTS if name != "taehv"}


@pytest.mark.gpu
def test_synthetic_weights_are_drawn_on_the_device():
    first = draw("a.weight", (64, 64), device="cuda", dtype=torch.bfloat16)
    assert first.is_cuda and torch.equal(
        first, draw("a.weight", (64, 64), device="cuda", dtype=torch.bfloat16)
    )
