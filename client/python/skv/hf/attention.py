"""The attention function of the engine, in transformers' own registry under the name "skv".

The keys that SentenceCache.update() returns know the layer they belong to; everything else (another
Cache, no cache at all) gets transformers' sdpa attention, so a model set to "skv" still works with
any of its caches.
"""
from __future__ import annotations

from typing import Any, Optional

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "skv"
LAYER_ATTRIBUTE = "skv_layer"  # on the keys that SentenceLayer.update() returns


def skv_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                  attention_mask: Optional[torch.Tensor], scaling: Optional[float] = None,
                  dropout: float = 0.0, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """query [1, heads, tokens, dim] after RoPE; returns [1, tokens, heads, dim]."""
    layer = getattr(key, LAYER_ATTRIBUTE, None)
    if layer is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling,
                                      dropout=dropout, **kwargs)
    if layer.decodes:
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("skv: a padded or custom attention mask is not supported")
        keys, values, absent = layer.decode_kv(query)
        return attend_one(query, keys, values, absent, scaling), None
    keys, values = layer.dense_kv()
    if attention_mask is None and keys.shape[1] != query.shape[2] > 1:
        raise ValueError("skv: tokens after a prefix need transformers' causal mask")
    return sdpa_attention_forward(module, query, keys[None], values[None], attention_mask,
                                  scaling=scaling, dropout=dropout, **kwargs)


def attend_one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
               absent: Optional[torch.Tensor], scaling: Optional[float]) -> torch.Tensor:
    """Softmax attention of one token over gathered keys [kv_heads, tokens, dim] in any order of
    tokens (keys carry their positions). `absent` [kv_heads, tokens]: rows that are padding, because
    heads read different numbers of blocks."""
    groups = query.shape[1] // keys.shape[0]
    grouped = query[0, :, 0].view(keys.shape[0], groups, -1)  # query heads of a kv head are adjacent
    mask = None
    if absent is not None:
        mask = ~absent[:, None, :].expand(-1, groups, -1)
    # The heads of a group are the "tokens" of one kv head: nothing is repeated in memory.
    out = torch.nn.functional.scaled_dot_product_attention(
        grouped[None], keys[None], values[None], attn_mask=None if mask is None else mask[None],
        scale=scaling)
    return out.reshape(1, 1, query.shape[1], -1)


def register() -> None:
    """Idempotent. The mask function is sdpa's: causal, with the offset of what the cache holds."""
    AttentionInterface.register(NAME, skv_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
