#!/usr/bin/env python3
"""What a decoding step moves, on a real model.

Records the queries and keys of SmolLM2-135M-Instruct while it reads the demo's document and decodes
its next words (teacher-forced, everything attended), then replays them through the ranking library
(step_replay): how many bytes of the read set are not in the slots yet.

    bench_step.py [--quick] [--json FILE] [--build FOLDER]
"""
from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "client" / "python"))

MAGIC = 0x52564B53


def record(path: pathlib.Path, model_folder: pathlib.Path, tokens: int, steps: int) -> None:
    """Writes the recording that step_replay.cc describes."""
    import numpy
    import torch
    from transformers import AttentionInterface, DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    from skv.hf.sentences import SentenceEnds
    from skv_demo import document, model as demo_model

    queries: list[numpy.ndarray] = []

    def recording(module, query, key, value, attention_mask, **options):
        if query.shape[2] == 1:
            queries.append(query[0, :, 0].float().numpy().copy())
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("recording", recording)
    AttentionMaskInterface.register("recording", sdpa_mask)
    model, tokenizer = demo_model.load(demo_model.prepare(model_folder, "float32"), "float32")
    model.set_attn_implementation("recording")
    text = (ROOT / "tests" / "data" / document.SHIPPED).read_text(encoding="utf-8").strip()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"][:tokens + steps]
    if len(ids) < tokens + steps:
        tokens = len(ids) - steps
    ends, _ = SentenceEnds(tokenizer).feed(ids, text[:encoded["offset_mapping"][len(ids) - 1][1]],
                                           encoded["offset_mapping"][:len(ids)])
    cache = DynamicCache()
    with torch.no_grad():
        for at in range(0, tokens, 1024):
            model(torch.tensor([ids[at:min(at + 1024, tokens)]]), past_key_values=cache, logits_to_keep=1)
        queries.clear()  # a last chunk of one token is not a step
        for at in range(tokens, tokens + steps):
            model(torch.tensor([[ids[at]]]), past_key_values=cache)
            if sys.stderr.isatty():
                print(f"\rrecording: step {at - tokens + 1} of {steps}", end="", file=sys.stderr)
    config = model.config
    layers, kv_heads = config.num_hidden_layers, config.num_key_value_heads
    head_dim = cache.layers[0].keys.shape[-1]
    header = [MAGIC, layers, kv_heads, config.num_attention_heads // kv_heads, head_dim,
              tokens + steps, tokens, len(ends)]
    with path.open("wb") as file:
        file.write(numpy.array(header, numpy.uint32).tobytes())
        file.write(numpy.array([model.get_decoder().layers[0].self_attn.scaling], numpy.float32).tobytes())
        file.write(numpy.array(ends, numpy.uint32).tobytes())
        for layer in cache.layers:
            file.write(layer.keys[0].to(torch.float16).numpy().tobytes())
        file.write(numpy.stack(queries).tobytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1K tokens, 16 steps")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release")
    options = parser.parse_args()
    replay = options.build / "bin" / "step_replay"
    tokens, steps = (1024, 16) if options.quick else (6656, 128)
    with tempfile.TemporaryDirectory() as folder:
        recording = pathlib.Path(folder) / "attention"
        record(recording, options.build / "hf-model-float32", tokens, steps)
        command = [replay, recording] + (["--json", options.json] if options.json else [])
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
