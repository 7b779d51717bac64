"""The transformers engine: a model whose KV is kept, shared and ranked by skvd."""
from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from typing import Any, Iterator, Optional, Sequence, Union

import torch

import skv

from . import attention
from .cache import LostKv, SentenceCache
from .guess import Guesser, NextQuery
from .load_buffer import LoadBuffer
from .read import Read
from .record import Steps
from .sentences import SentenceEnds
from .storage import Geometry

_DTYPES = {torch.float32: skv.Dtype.FP32, torch.float16: skv.Dtype.FP16,
           torch.bfloat16: skv.Dtype.BF16}
_RECOVERIES_MAX = 2


def weights_id(model: torch.nn.Module) -> str:
    """A name for exactly these weights: SHA-256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy())
    return f"hf:{getattr(model.config, 'model_type', '?')}:{digest.hexdigest()}"


def geometry_of(model: Any, block_tokens: int) -> Geometry:
    """Refuses by name what this engine does not serve."""
    config = model.config
    classes = set(getattr(config, "layer_types", None) or ["full_attention"])
    if classes != {"full_attention"}:
        raise NotImplementedError(f"skv.hf: layers of class {sorted(classes)}; only full attention")
    for name in ("attn_logit_softcapping", "kv_lora_rank", "attention_chunk_size"):
        if getattr(config, name, None):
            raise NotImplementedError(f"skv.hf: {name} = {getattr(config, name)} is not supported")
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        raise NotImplementedError(f"skv.hf: sliding_window = {config.sliding_window} is not supported")
    if model.dtype not in _DTYPES:
        raise NotImplementedError(f"skv.hf: model dtype {model.dtype}; fp32, fp16 or bf16")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise NotImplementedError("skv.hf: the model must be on the CPU")
    heads = config.num_attention_heads
    return Geometry(layers=config.num_hidden_layers,
                    kv_heads=getattr(config, "num_key_value_heads", None) or heads,
                    head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
                    block_tokens=block_tokens, dtype=model.dtype)


def describe(model: Any, geometry: Geometry, name: str) -> skv.ModelDescriptor:
    """What the daemon is told of the model's KV."""
    base = model.get_decoder()
    rotary = base.rotary_emb
    frequencies = rotary.inv_freq.detach().to(torch.float32).numpy()
    table = skv.RotaryTable(2 * len(frequencies), frequencies, pairing=skv.RotaryPairing.HALF_SPLIT,
                            attention_factor=float(getattr(rotary, "attention_scaling", 1.0)))
    scale = float(base.layers[0].self_attn.scaling)
    layer = skv.Layer(geometry.kv_heads, model.config.num_attention_heads // geometry.kv_heads,
                      geometry.head_dim, geometry.head_dim, softmax_scale=scale, rotary_index=0)
    return skv.ModelDescriptor(name, _DTYPES[geometry.dtype], [layer] * geometry.layers,
                               block_tokens=geometry.block_tokens, rotary_tables=[table])


class Engine:
    """Binds a transformers model (Llama-family, CPU, batch 1) to a session with skvd.

        engine = skv.hf.Engine(model, tokenizer, skv.Session())
        with engine.open(read=skv.hf.Read(share=0.125), reuse=True) as conversation:
            conversation.feed(document + question)
            print(conversation.text(conversation.generate(64)))

    The model is set to the attention function "skv" and its decoder gets forward hooks, so
    that any driver (this class, model.generate, a loop of one's own) works with the caches that
    `open` makes; other caches work as before. close() takes the hooks off.

    Thread  one thread drives a model.
    """

    def __init__(self, model: Any, tokenizer: Any, session: skv.Session, *, block_tokens: int = 8,
                 name: Optional[str] = None, locale: str = "en_US") -> None:
        """`tokenizer` None: sentences are cut without regard to their ends. `name`: the weights id;
        two models whose weights differ must not share one (default: a hash of the weights)."""
        attention.register()
        self.model = model
        self.tokenizer = tokenizer
        self.session = session
        self.locale = locale
        self.geometry = geometry_of(model, block_tokens)
        self._skv_model = session.model(
            describe(model, self.geometry, name or weights_id(model)))
        self._load_buffer: Optional[LoadBuffer] = None
        model.set_attn_implementation(attention.NAME)
        decoder = model.get_decoder()
        self._next_query = NextQuery(decoder)
        self._hooks = [decoder.register_forward_pre_hook(self._before, with_kwargs=True),
                       decoder.register_forward_hook(self._after, with_kwargs=True)]
        self._hooks += [layer.register_forward_pre_hook(functools.partial(self._before_layer, index),
                                                        with_kwargs=True)
                        for index, layer in enumerate(decoder.layers)]

    @property
    def max_tokens(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def open(self, *, read: Read = Read(), reuse: bool = False, chunk_tokens: int = 1024,
             max_tokens: Optional[int] = None, trace: bool = False) -> "Conversation":
        return Conversation(self, read=read, reuse=reuse, chunk_tokens=chunk_tokens,
                            max_tokens=min(max_tokens or self.max_tokens, self.max_tokens),
                            trace=trace)

    def new_cache(self, *, read: Read = Read(), max_tokens: Optional[int] = None,
                  trace: bool = False) -> SentenceCache:
        """For past_key_values of the model itself or of model.generate."""
        if self._load_buffer is None:
            groups = self._skv_model.info.chunk_count
            self._load_buffer = LoadBuffer(self.session, self.geometry,
                                           -(-self.geometry.layers // groups), self.max_tokens)
        return SentenceCache(self, self.session, self._skv_model, self.geometry,
                             capacity=max_tokens or self.max_tokens, read=read,
                             ends=SentenceEnds(self.tokenizer, self.locale),
                             load_buffer=self._load_buffer, trace=trace,
                             guesser=None if read.guess is False or read.everything
                             else Guesser(self._next_query, always=read.guess is True))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._load_buffer is not None:
            self._load_buffer.close()
            self._load_buffer = None
        self._skv_model.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _before(self, decoder: Any, args: tuple, kwargs: dict) -> None:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, SentenceCache) and cache.owner is self:
            ids = args[0] if args else kwargs.get("input_ids")
            if ids is None:
                raise ValueError("skv: input_ids are needed (inputs_embeds have no identity)")
            if ids.shape[0] != 1:
                raise ValueError(f"skv: batch 1 only, not {ids.shape[0]}")
            cache.begin(ids[0].tolist())

    def _before_layer(self, index: int, layer: Any, args: tuple, kwargs: dict) -> None:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, SentenceCache) and cache.owner is self:
            hidden = args[0] if args else kwargs.get("hidden_states")
            rotary = kwargs.get("position_embeddings")
            if hidden is not None and rotary is not None:
                cache.layer_begins(index, hidden, rotary)

    def _after(self, decoder: Any, args: tuple, kwargs: dict, output: Any) -> None:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, SentenceCache) and cache.owner is self:
            cache.end()


@dataclasses.dataclass
class FeedReport:
    tokens: int          # fed
    matched_tokens: int  # of these, not computed because skvd had them
    host_tokens: int     # of the matched: in host memory
    nvme_tokens: int     # of the matched: partly on NVMe only
    seconds: float


class Conversation:
    """One growing context: feed a prompt, decode, feed the next question.

    What the daemon lost under it (evicted for good, or a restart without NVMe) is computed again
    from the tokens, which it keeps: that costs time, never correctness.
    """

    def __init__(self, engine: Engine, *, read: Read, reuse: bool, chunk_tokens: int, max_tokens: int,
                 trace: bool) -> None:
        if chunk_tokens < 2:
            raise ValueError("chunk_tokens must be at least 2")
        self.engine = engine
        self.recoveries = 0
        self.report: Optional[FeedReport] = None
        self._options = {"read": read, "max_tokens": max_tokens, "trace": trace}
        self._reuse = reuse
        self._chunk_tokens = chunk_tokens
        self._ids: list[int] = []
        self.cache = engine.new_cache(**self._options)

    @property
    def steps(self) -> Steps:
        return self.cache.steps

    @property
    def ids(self) -> list[int]:
        """All tokens fed and generated so far."""
        return list(self._ids)

    def text(self, ids: Sequence[int]) -> str:
        return self.engine.tokenizer.decode(ids)

    def feed(self, prompt: Union[str, Sequence[int]], progress: Any = None,
             all_logits: bool = False) -> torch.Tensor:
        """Computes a prompt or a next question: dense, in chunks, everything attended. Returns the
        logits [vocabulary] after its last token, or of each token computed ([n, vocabulary]).
        `progress(done, total)` is called after each chunk."""
        began = time.perf_counter()
        text = offsets = None
        if isinstance(prompt, str):
            encoded = self.engine.tokenizer(prompt, add_special_tokens=False,
                                            return_offsets_mapping=True)
            ids, text, offsets = encoded["input_ids"], prompt, encoded["offset_mapping"]
        else:
            ids = [int(token) for token in prompt]
        if not ids:
            raise ValueError("nothing to feed")
        first = not self._ids
        self.cache.announce(ids, text, offsets)
        self._ids += ids
        match = self.cache.adopt() if first and self._reuse else None
        computed_from = self.cache.length
        logits = self._retrying(lambda: self._compute(progress, all_logits),
                                rows=len(ids) if all_logits else 0)
        matched = min(match.hit_tokens, computed_from) if match else 0
        self.report = FeedReport(len(ids), matched, min(match.host_tokens, matched) if match else 0,
                                 match.nvme_tokens if match else 0, time.perf_counter() - began)
        return logits

    def step(self, token: int) -> torch.Tensor:
        """One token, reading its window. Returns the logits [vocabulary] after it."""
        token = int(token)
        self._ids.append(token)
        return self._retrying(lambda: self._forward([token], False))

    def generate(self, count: int, logits: Optional[torch.Tensor] = None,
                 stop: Sequence[int] = ()) -> Iterator[int]:
        """Greedy. Starts from `logits` (default: those of the last feed or step)."""
        logits = self._last_logits if logits is None else logits
        for index in range(count):
            token = int(logits.argmax())
            if token in stop:
                return
            yield token
            if index + 1 < count:
                logits = self.step(token)

    def _compute(self, progress: Any, all_logits: bool) -> torch.Tensor:
        """All tokens that have no KV yet."""
        start, total = self.cache.length, len(self._ids)
        parts = []
        while self.cache.length < total:
            at = self.cache.length
            stop = min(at + self._chunk_tokens, total)
            self.cache.dense_next = True
            parts.append(self._forward(self._ids[at:stop], all_logits))
            if progress is not None:
                progress(stop - start, total - start)
        return torch.cat(parts) if all_logits else parts[-1]

    @torch.no_grad()
    def _forward(self, ids: Sequence[int], all_logits: bool) -> torch.Tensor:
        output = self.engine.model(input_ids=torch.tensor([ids]), past_key_values=self.cache,
                                   use_cache=True, logits_to_keep=0 if all_logits else 1)
        self._last_logits = output.logits[0, -1].float()
        return output.logits[0].float() if all_logits else self._last_logits

    def _retrying(self, compute: Any, rows: int = 0) -> torch.Tensor:
        """`rows`: logits of so many last tokens are wanted, 0: of the last alone."""
        for attempt in range(_RECOVERIES_MAX + 1):
            try:
                return compute()
            except LostKv:
                if attempt == _RECOVERIES_MAX:
                    raise
                self._start_again(adopt=not rows)
                compute = (lambda: self._compute(None, True)[-rows:]) if rows else (
                    lambda: self._compute(None, False))
        raise AssertionError("unreachable")

    def _start_again(self, adopt: bool) -> None:
        """A new cache for the same tokens: takes what is still stored, computes the rest."""
        self.recoveries += 1
        steps = self.cache.steps
        self.cache.close()
        self.cache = self.engine.new_cache(**self._options)
        self.cache.steps = steps
        self.cache.announce(self._ids)
        if adopt:
            self.cache.adopt()

    def close(self) -> None:
        self.cache.close()

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
