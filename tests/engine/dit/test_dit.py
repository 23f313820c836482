"""The causal Wan DiT against the golden forward pass, and its weights' names."""

import pytest
import torch

from sdrt.engine.dit.block import DitBlock
from sdrt.engine.dit.embeddings import DitIn
from sdrt.engine.dit.head import DitHead
from sdrt.engine.dit.text import CrossKV, TextEmbedding
from sdrt.engine.dit.weights import from_public, public_shapes
from sdrt.engine.preset.preset import DitConfig

WINDOW, SINK = 6, 3


def _load(module, weights, prefix):
    """Load a module's parameters; its tables are computed, not loaded."""
    own = {name: weights[f"{prefix}.{name}"] for name, _ in module.named_parameters()}
    module.load_state_dict(own, strict=False)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def forward(golden, recipe):
    """The golden case and our own pass over it: name -> tensor, in the case's layouts."""
    tensors, case = golden("wan_dit_forward")
    config = DitConfig(**case["model"])
    shapes = public_shapes(config)
    assert shapes == {name: tuple(shape) for name, shape in case["parameters"].items()}
    weights = dict(from_public(config, recipe.synthetic_state_dict(shapes, case["seed"])))
    (height, width), frames = case["latent_hw"], tensors["latent"].shape[2]
    tokens = (height // 2) * (width // 2)
    position = torch.zeros(1, dtype=torch.int64)
    embed = _load(DitIn(config, height, width, frames, WINDOW, SINK), weights, "in")
    x, e, e0, cos, sin, rows, valid = embed(
        tensors["latent"].transpose(1, 2), tensors["timestep"].float(), position
    )
    text = _load(TextEmbedding(config), weights, "text")(tensors["prompt_embeds"])
    out = {
        "patch_embedding": x.transpose(1, 2).view_as(tensors["patch_embedding"]),
        "time_projection": e0.flatten(2)[0],
        "text_embedding": text,
    }
    block = DitBlock(config, 1, tokens, WINDOW, SINK, "filling")
    cross = CrossKV(config)
    for layer in range(config.num_layers):
        states = block.states("cpu")
        k, v = _load(cross, weights, f"cross.{layer}")(text)
        _load(block, weights, f"block.{layer}")
        x = block(x, e0, cos, sin, rows, valid, position, k, v, states=states)
        out[f"block{layer}"] = x
        out[f"k_cache{layer}"] = states["k"][:frames].flatten(0, 1).unsqueeze(0)
        out[f"v_cache{layer}"] = states["v"][:frames].flatten(0, 1).unsqueeze(0)
    head = _load(DitHead(config, height, width), weights, "out.head")
    out["flow"] = head(x, e).transpose(1, 2)
    return tensors, out


NAMES = ["patch_embedding", "time_projection", "text_embedding", "flow"]
NAMES += [f"{part}{layer}" for part in ("block", "k_cache", "v_cache") for layer in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_forward_matches_the_reference(forward, name, relative_error):
    """Reference: the public implementation, one forward pass over two frames, empty cache."""
    tensors, out = forward
    assert relative_error(out[name], tensors[name]) <= 1e-4


@pytest.mark.parametrize(
    ("dim", "heads", "ffn", "layers", "parameters"),
    [(1536, 12, 8960, 30, 1.42e9), (5120, 40, 13824, 40, 14.3e9)],
)
def test_public_sizes(dim, heads, ffn, layers, parameters):
    """Reference: the parameter counts of Wan 2.1, 1.3B and 14B."""
    config = DitConfig(dim=dim, num_heads=heads, ffn_dim=ffn, num_layers=layers)
    count = sum(torch.Size(shape).numel() for shape in public_shapes(config).values())
    assert count == pytest.approx(parameters, rel=0.01)
