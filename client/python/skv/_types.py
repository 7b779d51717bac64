"""Plain values of the interface: enumerations, the model descriptor, results."""
from __future__ import annotations

import ctypes
import enum
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Type, TypeVar

import numpy as np
import numpy.typing as npt

from . import _abi


class Dtype(enum.IntEnum):
    """Of bodies. NumPy has no bfloat16 and no fp8: their arrays are uint16 and uint8."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    FP8_E4M3 = 3
    FP8_E5M2 = 4

    @property
    def numpy(self) -> np.dtype:
        return np.dtype((np.float32, np.float16, np.uint16, np.uint8, np.uint8)[self])


class LayerClass(enum.IntEnum):
    FULL = 0
    SLIDING_WINDOW = 1
    LINEAR = 2
    SHARES_KV = 3
    SHARES_INDEX = 4


class KState(enum.IntEnum):
    POST_ROPE = 0
    PRE_ROPE = 1
    LATENT = 2


class RotaryPairing(enum.IntEnum):
    NONE = 0
    HALF_SPLIT = 1
    INTERLEAVED = 2


class IndexKind(enum.IntEnum):
    """What is kept of a context's sentences to rank them by; from FP16 on, one entry per run."""

    MEAN_SPREAD_RUNS = 0
    MEAN = 1
    FP16 = 2
    BF16 = 3
    INT8 = 4
    INT4 = 5
    MIN_MAX = 6
    BOX = 7
    BALL = 8
    KEYS = 9


class Match(enum.IntEnum):
    MISS = 0
    PENDING = 1
    HIT = 2


class Put(enum.IntEnum):
    """What became of one sentence."""

    RESERVED = 0
    EXISTS = 1
    PENDING = 2
    FULL = 3
    COMMITTED = 4
    INCOMPLETE = 5
    CANCELLED = 6
    NOT_RESERVED = 7


class Cut(enum.IntEnum):
    BLOCK = 0
    SENTENCE = 1


class RankIn(enum.IntEnum):
    """Where a window ranks: in the calling thread, or in the daemon. The same sets."""

    AUTO = 0
    CLIENT = 1
    DAEMON = 2


class Scores(enum.IntEnum):
    """What a window's scores are of. RELATIVE: the same blocks, found with less reading where the
    index is FP16, BF16 or KEYS and a kv head has one query; unread_mass is 1 then, not known."""

    SHARES = 0
    RELATIVE = 1


class Cold(enum.IntEnum):
    """What a prefetch does about bytes that are on NVMe only."""

    PARTIAL = 0
    WAIT = 1


class Origin(enum.IntEnum):
    DEVICE = 0
    HOST = 1
    NVME = 2


class FlushLevel(enum.IntEnum):
    HOST = 1
    DURABLE = 2


class StatKind(enum.IntEnum):
    STATUS = 0
    CONTEXTS = 1
    SESSION = 2


class RotaryTable:
    """One applied rotary table; `frequencies` as applied, dims / 2 of them."""

    def __init__(self, dims: int, frequencies: npt.ArrayLike, *, offset: int = 0,
                 pairing: RotaryPairing = RotaryPairing.HALF_SPLIT,
                 attention_factor: float = 1.0) -> None:
        self.dims = dims
        self.frequencies = np.ascontiguousarray(frequencies, dtype=np.float32).reshape(-1)
        self.offset = offset
        self.pairing = RotaryPairing(pairing)
        self.attention_factor = attention_factor

    def _as_struct(self) -> _abi.RotaryTable:
        pointer = self.frequencies.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return _abi.RotaryTable(dims=self.dims, offset=self.offset, pairing=self.pairing,
                                attention_factor=self.attention_factor,
                                frequency_count=self.frequencies.size, frequencies=pointer)


class Layer:
    """One layer's KV. softmax_scale: 1 / sqrt(k_dim) unless given; v_dim: k_dim."""

    def __init__(self, kv_heads: int, queries_per_kv_head: int, k_dim: int,
                 v_dim: Optional[int] = None, *, softmax_scale: Optional[float] = None,
                 layer_class: LayerClass = LayerClass.FULL, shared_layer: int = 0,
                 sliding_window: int = 0, logit_cap: float = 0.0,
                 rotary_index: Optional[int] = None) -> None:
        self.kv_heads = kv_heads
        self.queries_per_kv_head = queries_per_kv_head
        self.k_dim = k_dim
        self.v_dim = k_dim if v_dim is None else v_dim
        self.softmax_scale = k_dim ** -0.5 if softmax_scale is None else softmax_scale
        self.layer_class = LayerClass(layer_class)
        self.shared_layer = shared_layer
        self.sliding_window = sliding_window
        self.logit_cap = logit_cap
        self.rotary_index = rotary_index

    def _as_struct(self) -> _abi.Layer:
        rotary = _abi.NO_ROTARY if self.rotary_index is None else self.rotary_index
        return _abi.Layer(layer_class=self.layer_class, kv_heads=self.kv_heads,
                          queries_per_kv_head=self.queries_per_kv_head, k_dim=self.k_dim,
                          v_dim=self.v_dim, shared_layer=self.shared_layer,
                          sliding_window=self.sliding_window, softmax_scale=self.softmax_scale,
                          logit_cap=self.logit_cap, rotary_index=rotary)


class ModelDescriptor:
    """All that an engine declares about its KV (skv_model_descriptor). Engines with equal weights_id,
    dtype, block_tokens, heads, dims, rotary facts and k_state share bodies."""

    def __init__(self, weights_id: str, dtype: Dtype, layers: Sequence[Layer], *,
                 block_tokens: int = 8, rotary_tables: Sequence[RotaryTable] = (),
                 k_state: KState = KState.POST_ROPE, tp_rank: int = 0, tp_size: int = 1,
                 first_kv_head: int = 0, v_is_view_of_k: bool = False) -> None:
        self.weights_id = weights_id
        self.dtype = Dtype(dtype)
        self.layers: List[Layer] = list(layers)
        self.block_tokens = block_tokens
        self.rotary_tables: List[RotaryTable] = list(rotary_tables)
        self.k_state = KState(k_state)
        self.tp_rank = tp_rank
        self.tp_size = tp_size
        self.first_kv_head = first_kv_head
        self.v_is_view_of_k = v_is_view_of_k

    def _as_struct(self) -> _abi.ModelDescriptor:
        """The arrays stay alive with the struct, and are copied by skv_model_open."""
        layers = (_abi.Layer * len(self.layers))(*(each._as_struct() for each in self.layers))
        tables = (_abi.RotaryTable * len(self.rotary_tables))(
            *(each._as_struct() for each in self.rotary_tables))
        return _abi.ModelDescriptor(
            dtype=self.dtype, block_tokens=self.block_tokens, k_state=self.k_state,
            tp_rank=self.tp_rank, tp_size=self.tp_size, first_kv_head=self.first_kv_head,
            v_is_view_of_k=int(self.v_is_view_of_k), weights_id=self.weights_id.encode("utf-8"),
            rotary_tables=tables, layers=layers, rotary_table_count=len(self.rotary_tables),
            layer_count=len(self.layers))


class SessionInfo(NamedTuple):
    session_id: int
    connections: int
    connected: bool
    host_bytes: int
    instance: bytes
    boot_id: bytes
    device_kind: str
    daemon_version: str


class ModelInfo(NamedTuple):
    layer_count: int
    chunk_count: int
    block_tokens: int
    element_bytes: int
    fingerprint: bytes


class AppendResult(NamedTuple):
    token_count: int
    first_sentence: int
    closed_count: int


class ContextInfo(NamedTuple):
    token_count: int
    sentence_count: int
    closed_blocks: int
    changes: int


class MatchResult(NamedTuple):
    outcome: Match
    hit_tokens: int
    pending_tokens: int
    host_tokens: int
    nvme_tokens: int


class LoadResult(NamedTuple):
    host_chunks: int
    nvme_chunks: int
    nbytes: int


class PrefetchResult(NamedTuple):
    """Counts are blocks over all (layer, kv head)s of the prefetch. The times are of the call in the
    daemon: all of it, and of that ranking, choosing and writing tables. ranked_heads: (layer, kv
    head)s, all but what on-change mode kept."""

    version: int
    covered_to: int
    bytes_moved: int
    hits_device: int
    hits_host: int
    hits_nvme: int
    misses: int
    read_blocks: int
    unread_mass: float
    daemon_us: int
    rank_ns: int
    cut_ns: int
    write_ns: int
    daemon_ns: int
    ranked_heads: int


Values = TypeVar("Values", bound=NamedTuple)


def from_struct(kind: Type[Values], struct: ctypes.Structure, **other: Any) -> Values:
    """A named tuple from the equally named fields of a struct."""
    fields: Dict[str, Any] = {name: getattr(struct, name) for name in kind._fields
                              if name not in other}
    fields.update(other)
    return kind(**fields)
