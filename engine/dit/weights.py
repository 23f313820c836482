"""The causal Wan DiT under its public checkpoint names, and the way to the modules' names."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sdrt.engine.how import NOTHING, How
from sdrt.engine.preset.preset import DitConfig


def public_shapes(config: DitConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of the public checkpoint."""
    dim, ffn = config.dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out_features: int, in_features: int) -> None:
        shapes[f"{name}.weight"] = (out_features, in_features)
        shapes[f"{name}.bias"] = (out_features,)

    shapes["patch_embedding.weight"] = (dim, config.in_dim, *config.patch_size)
    shapes["patch_embedding.bias"] = (dim,)
    linear("text_embedding.0", dim, config.text_dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, config.freq_dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for attn in ("self_attn", "cross_attn"):
            for projection in "qkvo":
                linear(f"{block}.{attn}.{projection}", dim, dim)
            shapes[f"{block}.{attn}.norm_q.weight"] = (dim,)
            shapes[f"{block}.{attn}.norm_k.weight"] = (dim,)
        shapes[f"{block}.norm3.weight"] = (dim,)
        shapes[f"{block}.norm3.bias"] = (dim,)
        linear(f"{block}.ffn.0", ffn, dim)
        linear(f"{block}.ffn.2", dim, ffn)
    shapes["head.modulation"] = (1, 2, dim)
    linear("head.head", config.out_dim * math.prod(config.patch_size), dim)
    return shapes


def from_public(
    config: DitConfig, tensors: Mapping[str, Tensor], how: How = NOTHING
) -> Iterator[tuple[str, Tensor]]:
    """Yield the modules' parameters one after another, so that no second copy is ever whole.

    Names are ``in.*`` (:class:`DitIn`), ``block.<layer>.*``, ``cross.<layer>.*``
    (:class:`CrossKV`), ``out.*`` (:class:`DitOut`) and ``text.*`` (:class:`TextEmbedding`).

    Args:
        tensors: the public checkpoint, complete.
        how: as the modules get it; their weights lie the same whatever it says.
    """
    yield "in.patch_embedding.weight", tensors["patch_embedding.weight"].flatten(1)
    yield "in.patch_embedding.bias", tensors["patch_embedding.bias"]
    for name in ("time_embedding.0", "time_embedding.2", "time_projection.1"):
        yield from _linear(f"in.{name}", name, tensors)
    for name in ("text_embedding.0", "text_embedding.2"):
        yield from _linear(f"text.{name}", name, tensors)
    yield "out.head.modulation", tensors["head.modulation"]
    yield from _linear("out.head.head", "head.head", tensors)
    for layer in range(config.num_layers):
        yield from _block(layer, tensors)


def _block(layer: int, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    source, block, cross = f"blocks.{layer}", f"block.{layer}", f"cross.{layer}"
    for name in ("modulation", "norm3.weight", "norm3.bias"):
        yield f"{block}.{name}", tensors[f"{source}.{name}"]
    yield from _fused(f"{block}.self_attn.qkv", f"{source}.self_attn", "qkv", tensors)
    yield from _fused(f"{cross}.kv", f"{source}.cross_attn", "kv", tensors)
    for name in ("self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2"):
        yield from _linear(f"{block}.{name}", f"{source}.{name}", tensors)
    for name in ("self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q"):
        yield f"{block}.{name}.weight", tensors[f"{source}.{name}.weight"]
    yield f"{cross}.norm_k.weight", tensors[f"{source}.cross_attn.norm_k.weight"]


def _linear(
    target: str, source: str, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    for leaf in ("weight", "bias"):
        yield f"{target}.{leaf}", tensors[f"{source}.{leaf}"]


def _fused(
    target: str, source: str, parts: str, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    for leaf in ("weight", "bias"):
        yield f"{target}.{leaf}", torch.cat([tensors[f"{source}.{part}.{leaf}"] for part in parts])
