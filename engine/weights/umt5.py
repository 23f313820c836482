"""UMT5 at build time: from Wan's checkpoint to the folder that the runtime's encoder loads."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from sdrt.kernels.errors import SdrtError

WHOLE_MODEL = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}
"""Wan's names outside the blocks, and transformers'."""

IN_BLOCK = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
"""Wan's names inside ``blocks.N``, and transformers' inside ``encoder.block.N``."""


class Umt5Error(SdrtError):
    """Weights that are not those of a UMT5 encoder under Wan's names."""


@dataclass(frozen=True)
class Umt5Config:
    """Sizes of the encoder; the defaults are UMT5-XXL's, which Wan uses."""

    vocab_size: int = 256384
    """Tokens."""
    dim: int = 4096
    """Width of the hidden rows."""
    dim_attn: int = 4096
    """Width of all attention heads together."""
    dim_ffn: int = 10240
    """Hidden width of the feed-forward layers."""
    num_heads: int = 64
    """Attention heads."""
    num_layers: int = 24
    """Blocks."""
    num_buckets: int = 32
    """Relative positions that attention tells apart."""


UMT5_XXL = Umt5Config()


def umt5_public_shapes(config: Umt5Config) -> dict[str, tuple[int, ...]]:
    """Return the parameter names and shapes of Wan's checkpoint."""
    dim, attn, ffn = config.dim, config.dim_attn, config.dim_ffn
    in_block = {
        "norm1.weight": (dim,),
        "attn.q.weight": (attn, dim),
        "attn.k.weight": (attn, dim),
        "attn.v.weight": (attn, dim),
        "attn.o.weight": (dim, attn),
        "norm2.weight": (dim,),
        "ffn.gate.0.weight": (ffn, dim),
        "ffn.fc1.weight": (ffn, dim),
        "ffn.fc2.weight": (dim, ffn),
        "pos_embedding.embedding.weight": (config.num_buckets, config.num_heads),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (config.vocab_size, dim)}
    for block in range(config.num_layers):
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in in_block.items()}
    return shapes | {"norm.weight": (dim,)}


def umt5_from_public(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the same tensors under the names of transformers' ``UMT5EncoderModel``.

    One is asked for at a time, and nothing is copied here. transformers ties
    ``encoder.embed_tokens.weight`` to ``shared.weight``; only the latter is given.

    Raises:
        Umt5Error: a name that Wan's checkpoint does not have.
    """
    for name, tensor in tensors.items():
        yield _transformers_name(name), tensor


def umt5_transformers_config(config: Umt5Config) -> dict[str, object]:
    """Return what ``config.json`` holds next to the weights, as plain values."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": config.vocab_size,
        "d_model": config.dim,
        "d_kv": config.dim_attn // config.num_heads,
        "d_ff": config.dim_ffn,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
    }


def _transformers_name(name: str) -> str:
    if name in WHOLE_MODEL:
        return WHOLE_MODEL[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None or match[2] not in IN_BLOCK:
        raise Umt5Error(
            f"UMT5 weights: {name} is unknown; expected Wan's names, such as "
            "token_embedding.weight and blocks.0.attn.q.weight"
        )
    return f"encoder.block.{match[1]}.{IN_BLOCK[match[2]]}"
