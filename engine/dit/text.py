"""The prompt's side of the causal Wan DiT: context, and the K/V of the cross-attention."""

from typing import cast

from torch import Tensor, nn

from sdrt.engine.dit.block import RMSNorm
from sdrt.engine.module import PackageModule
from sdrt.engine.preset.preset import DitConfig


class TextEmbedding(PackageModule):
    """Project prompt embeddings to the DiT's width."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim),
            nn.GELU("tanh"),
            nn.Linear(config.dim, config.dim),
        )

    def forward(self, prompt_embeds: Tensor) -> Tensor:
        """Return the context ``[1, text_len, dim]`` of float32 ``[1, text_len, text_dim]``."""
        first = cast(nn.Linear, self.text_embedding[0])
        return self.text_embedding(prompt_embeds.to(first.weight.dtype))


class CrossKV(PackageModule):
    """Cross-attention keys and values of one layer: they depend on the prompt only."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.head_dim)
        self.kv = nn.Linear(config.dim, 2 * config.dim)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return k and v, ``[1, text_len, H, D]``."""
        k, v = self.kv(context).chunk(2, dim=-1)
        return self.norm_k(k).unflatten(-1, self.heads), v.unflatten(-1, self.heads)
