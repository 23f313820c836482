"""Presets: every shipped file loads, every rule is enforced and named, overrides and dumps."""

import json

import pytest
import yaml
from pydantic import ValidationError

from sdrt.engine.preset import preset as config
from sdrt.engine.preset.preset import ConfigError, Preset, load

STREAM, ROLLOUT = "tiny", "self-forcing-1.3b-480p"
PLAIN = "latents.denormalise_decoder=false"


@pytest.mark.parametrize("name", config.preset_names())
def test_every_preset_loads_and_survives_a_round_trip(name, tmp_path):
    preset = load(name)
    assert preset.name == name
    assert config.from_dict(json.loads(json.dumps(config.to_dict(preset)))) == preset
    path = tmp_path / "copy.yaml"
    path.write_text(config.dump(preset))
    assert load(path) == preset


def test_the_presets_of_the_package():
    assert config.preset_names() == [
        "sdv2-1.3b-480p",
        "sdv2-1.3b-480p-taehv",
        "sdv2-14b-480p",
        "self-forcing-1.3b-480p",
        "tiny",
    ]


def test_sizes_of_the_video_to_video_preset():
    preset = load("sdv2-1.3b-480p")
    assert preset.dit.head_dim == 128
    assert preset.latent_shape == (16, 60, 104)
    assert preset.tokens_per_frame == 30 * 52
    assert (preset.first_chunk_latent_frames, preset.first_chunk_frames) == (2, 5)
    assert (preset.chunk_frames, preset.input_frames(first=False)) == (4, 4)
    # The Wan VAE encodes the first frame alone, TAEHV whole groups of four.
    assert preset.input_frames(first=True) == 5
    taehv = load("sdv2-1.3b-480p-taehv", ["encoder=taehv"])
    assert taehv.input_frames(first=True) == 8


def test_sizes_of_the_text_to_video_preset():
    preset = load(ROLLOUT)
    assert preset.chunk_frames == 12
    assert preset.input_frames(first=True) == preset.input_frames(first=False) == 0
    assert (preset.first_chunk_latent_frames, preset.first_chunk_frames) == (3, 9)
    bounded = load(ROLLOUT, ["stream.window_frames=12", "stream.sink_frames=3"])
    assert (bounded.stream.window_frames, bounded.effective_sink_frames) == (12, 3)


@pytest.mark.parametrize(("sink", "effective"), [(0, 3), (2, 3), (3, 3), (4, 4)])
def test_stream_batch_never_overwrites_the_first_three_frames(sink, effective):
    assert load(STREAM, [f"stream.sink_frames={sink}"]).effective_sink_frames == effective


def test_rollout_keeps_its_sink():
    assert load(ROLLOUT, ["stream.sink_frames=1"]).effective_sink_frames == 1


def test_tiny_matches_the_description_of_its_weights():
    described = json.loads((config.PRESETS / "tiny" / "config.json").read_text())
    preset = load("tiny")
    sizes = preset.dit.model_dump(mode="json")
    assert sizes == {key: described["dit"][key] for key in sizes}
    assert preset.taehv.encoder_width == described["taehv"]["encoder_width"]
    assert list(preset.taehv.decoder_widths) == described["taehv"]["decoder_widths"]
    assert preset.schedule.shift == described["scheduler"]["shift"]
    assert list(preset.schedule.steps) == described["stream"]["denoising_steps"]


RULES = [
    # preset, overrides, key and value in the message, rule in the message
    (STREAM, ["stream.height=100"], "stream.height = 100", "divisible by 16"),
    (STREAM, ["stream.width=8"], "stream.width = 8", "divisible by 16"),
    (STREAM, ["stream.width=0"], "stream.width = 0", "greater than 0"),
    (STREAM, ["stream.height=96.5"], "stream.height = 96.5", "must be a valid integer"),
    (STREAM, ["stream.frame_rate=0"], "stream.frame_rate = 0", "greater than 0"),
    (STREAM, ["stream.sink_frames=-1"], "stream.sink_frames = -1", "greater than or equal to 0"),
    (STREAM, ["stream.window_frames=3"], "stream.window_frames = 3", "greater than sink_frames"),
    (
        STREAM,
        ["stream.window_frames=3", "stream.sink_frames=1"],
        "stream.window_frames = 3",
        "at least 4 with flow = stream-batch",
    ),
    (STREAM, ["stream.chunk_latent_frames=3"], "stream.chunk_latent_frames = 3", "must be 1"),
    (
        STREAM,
        ["stream.sink_refresh_threshold=1.5"],
        "stream.sink_refresh_threshold = 1.5",
        "less than or equal to 1",
    ),
    (
        STREAM,
        ["stream.sink_refresh_threshold=-2"],
        "stream.sink_refresh_threshold = -2",
        "greater than or equal to -1",
    ),
    (
        STREAM,
        ["stream.sink_refresh_threshold=0.2", "stream.sink_frames=0"],
        "stream.sink_refresh_threshold = 0.2",
        "without sink frames",
    ),
    (STREAM, ["dit.dim=193"], "dit.dim = 193", "divisible by num_heads = 3"),
    (STREAM, ["dit.dim=21"], "dit.dim = 21", "even and at least 6"),
    (STREAM, ["dit.dim=12"], "dit.dim = 12", "even and at least 6"),
    (STREAM, ["dit.freq_dim=255"], "dit.freq_dim = 255", "divisible by 2"),
    (STREAM, ["dit.out_dim=8"], "dit.out_dim = 8", "must equal in_dim = 16"),
    (STREAM, ["dit.patch_size=[1, 2, 4]"], "dit.patch_size.2 = 4", "must be 2"),
    (STREAM, ["dit.num_layers=0"], "dit.num_layers = 0", "greater than 0"),
    (STREAM, ["dit=8"], "dit = 8", "mapping"),
    (STREAM, ["schedule.steps=[500, 700]"], "schedule.steps = [500, 700]", "decreasing"),
    (STREAM, ["schedule.steps=[500, 500]"], "schedule.steps = [500, 500]", "decreasing"),
    (STREAM, ["schedule.steps=[1001, 500]"], "schedule.steps = [1001, 500]", "1..num_train"),
    (STREAM, ["schedule.steps=[500, 0]"], "schedule.steps = [500, 0]", "1..num_train"),
    (STREAM, ["schedule.steps=[]"], "schedule.steps = []", "at least 1"),
    (STREAM, ["schedule.shift=0"], "schedule.shift = 0", "greater than 0"),
    (STREAM, ["schedule.shift=.inf"], "schedule.shift = Infinity", "finite"),
    (STREAM, ["schedule.noise_scale=0"], "schedule.noise_scale = 0", "greater than 0"),
    (STREAM, ["schedule.noise_scale=1.1"], "schedule.noise_scale = 1.1", "equal to 1"),
    (STREAM, ["schedule.noise_scale=null"], "schedule.noise_scale = null", "in (0, 1]"),
    (STREAM, ["schedule.clean_pass=true"], "schedule.clean_pass = true", "must be false"),
    (STREAM, ["encoder=none"], "encoder = none", "must be wan-vae or taehv"),
    (STREAM, ["encoder=vae"], "encoder = vae", "must be 'wan-vae', 'taehv' or 'none'"),
    (STREAM, ["flow=batch"], "flow = batch", "must be 'stream-batch' or 'rollout'"),
    (STREAM, ["precision=fp8"], "precision = fp8", "must be 'fp32', 'bf16' or 'fp16'"),
    (STREAM, ["name=a/b"], "name = a/b", "must match"),
    (STREAM, ["taehv.latent_channels=8"], "taehv.latent_channels = 8", "equal dit.in_dim = 16"),
    (STREAM, ["taehv.decoder_widths=[8, 8]"], "taehv.decoder_widths.2", "is missing"),
    (STREAM, ["encoder=wan-vae", "wan_vae.z_dim=8"], "wan_vae.z_dim = 8", "equal dit.in_dim = 16"),
    (
        STREAM,
        ["wan_vae.temporal_downsample=[true, true, true]"],
        "wan_vae.temporal_downsample = [true, true, true]",
        "exactly twice",
    ),
    (STREAM, ["latents.normalise_encoder=true"], "latents.normalise_encoder = true", "no mean"),
    (
        STREAM,
        ["latents.denormalise_decoder=true"],
        "latents.denormalise_decoder = true",
        "must be false with 'taehv'",
    ),
    (
        ROLLOUT,
        ["dit.in_dim=8", "dit.out_dim=8", "wan_vae.z_dim=8"],
        "latents.denormalise_decoder = true",
        "must be false unless dit.in_dim = 8 is 16",
    ),
    (STREAM, ["text=umt5"], "dit.text_dim = 64", "must be 4096 with text = umt5"),
    (ROLLOUT, ["dit.text_len=513"], "dit.text_len = 513", "at most 512 with text = umt5"),
    (ROLLOUT, ["encoder=wan-vae"], "encoder = wan-vae", "must be none with flow = rollout"),
    (ROLLOUT, ["schedule.noise_scale=0.5"], "schedule.noise_scale = 0.5", "must be null"),
    (
        ROLLOUT,
        ["stream.window_frames=5", "stream.sink_frames=3"],
        "stream.window_frames = 5",
        "at least sink_frames + chunk_latent_frames = 6",
    ),
    (
        ROLLOUT,
        ["stream.sink_frames=3", "stream.sink_refresh_threshold=0.2"],
        "stream.sink_refresh_threshold = 0.2",
        "must be negative (off) with flow = rollout",
    ),
]


@pytest.mark.parametrize(("preset", "overrides", "key", "rule"), RULES)
def test_a_broken_rule_is_named_with_key_and_value(preset, overrides, key, rule):
    with pytest.raises(ConfigError) as caught:
        load(preset, overrides)
    line = next(line for line in str(caught.value).splitlines() if key in line)
    assert line.startswith(f"preset {preset}: {key}: ")
    assert rule in line


def test_every_problem_has_its_line():
    with pytest.raises(ConfigError) as caught:
        load("tiny", ["stream.height=0", "dit.dim=193", "precision=fp8"])
    assert str(caught.value).splitlines() == [
        "preset tiny: precision = fp8: must be 'fp32', 'bf16' or 'fp16'",
        "preset tiny: dit.dim = 193: must be divisible by num_heads = 3",
        "preset tiny: stream.height = 0: must be greater than 0",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.hight=96", "stream.hight = 96: unknown key; did you mean stream.height"),
        ("height=96", "height = 96: unknown key; did you mean stream.height?"),
        ("dit.dim.x=1", "dit.dim.x = 1: unknown key"),
        ("colour=red", "colour = red: unknown key"),
        ("stream.height", "override 'stream.height': must be key=value"),
        ("=96", "override '=96': must be key=value"),
        ("schedule.steps=[700", "override 'schedule.steps=[700': value is not YAML"),
    ],
)
def test_overrides_that_cannot_be_applied(override, message):
    with pytest.raises(ConfigError, match="^preset tiny: ") as caught:
        load("tiny", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_apply_in_order_and_reach_defaults():
    preset = load("tiny", ["stream.height=96", "stream.height=112", "dit.eps=1e-5", "weights.dit="])
    assert preset.stream.height == 112
    assert preset.dit.eps == 1e-5  # written without a dot, which YAML reads as a string
    assert preset.weights.dit is None
    assert load("tiny", ["schedule.steps=[700, 500, 400]"]).schedule.steps == (700, 500, 400)
    assert load("tiny", ["precision=fp16"]).precision == "fp16"
    assert load(ROLLOUT, ["decoder=taehv", PLAIN]).decoder == "taehv"


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"preset tny: unknown; use one of .*sdv2-14b.*, tiny,"):
        load("tny")


def test_files_that_are_not_presets(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.yaml")
    broken, text = tmp_path / "broken.yaml", tmp_path / "text.yaml"
    broken.write_text("dit: [1")
    text.write_text("hello")
    with pytest.raises(ConfigError, match="cannot read"):
        load(broken)
    with pytest.raises(ConfigError, match="must hold a YAML mapping"):
        load(text)


def test_unknown_and_missing_keys_of_a_file(tmp_path):
    data = yaml.safe_load((config.PRESETS / "tiny.yaml").read_text())
    data["stream"]["sinkframes"] = data["stream"].pop("sink_frames")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as caught:
        load(path)
    missing, unknown = str(caught.value).splitlines()
    assert missing == "preset mine: stream.sink_frames: is missing"
    assert unknown.startswith(
        "preset mine: stream.sinkframes = 3: unknown key; did you mean stream."
    )
    assert "stream.sink_frames" in unknown


def test_presets_are_frozen():
    preset = load("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        preset.stream.height = 96
    assert isinstance(preset, Preset)
