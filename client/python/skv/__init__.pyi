"""skv: keep the KV of an inference engine in skvd. Types of the public interface.

All arrays are NumPy, without copies: views keep their memory mapped as long as they live. bfloat16
appears as uint16 (torch: `torch.from_numpy(a).view(torch.bfloat16)`). Objects with `__dlpack__`
(torch tensors on the CPU) are accepted wherever an array goes in. Every object is a context manager;
using one after close raises UnknownHandleError. Every failure is an SkvError subclass by code, or
TypeError / ValueError for a wrong dtype / shape found before the daemon is asked.
"""
from __future__ import annotations

import enum
from typing import Any, Optional, Sequence, Union

import numpy as np
import numpy.typing as npt

__version__: str

class SkvError(Exception):
    code: int  # SKV_E_*, negative

class InvalidArgumentError(SkvError, ValueError): ...
class UnsupportedError(SkvError): ...
class UnknownHandleError(SkvError): ...
class ProtocolError(SkvError): ...
class TooLargeError(SkvError): ...
class NoSpaceError(SkvError): ...
class IoError(SkvError, OSError): ...
class CorruptError(SkvError): ...
class BusyError(SkvError): ...
class TimeoutError(SkvError, __builtins__.TimeoutError): ...
class DisconnectedError(SkvError, ConnectionError): ...  # a miss; the next call connects again
class StaleError(SkvError): ...  # window or lease of an earlier connection: open it again
class CancelledError(SkvError): ...
class DeniedError(SkvError, PermissionError): ...
class NotFoundError(SkvError, LookupError): ...
class InternalError(SkvError): ...

class Dtype(enum.IntEnum):
    FP32 = 0
    FP16 = 1
    BF16 = 2
    FP8_E4M3 = 3
    FP8_E5M2 = 4

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
    MEAN_SPREAD_RUNS = 0
    MEAN = 1

class Match(enum.IntEnum):
    MISS = 0
    PENDING = 1
    HIT = 2

class Put(enum.IntEnum):
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

class Cold(enum.IntEnum):
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
    def __init__(self, dims: int, frequencies: npt.ArrayLike, *, offset: int = 0,
                 pairing: RotaryPairing = ..., attention_factor: float = 1.0) -> None: ...

class Layer:
    def __init__(self, kv_heads: int, queries_per_kv_head: int, k_dim: int,
                 v_dim: Optional[int] = None, *, softmax_scale: Optional[float] = None,
                 layer_class: LayerClass = ..., shared_layer: int = 0, sliding_window: int = 0,
                 logit_cap: float = 0.0, rotary_index: Optional[int] = None) -> None: ...

class ModelDescriptor:
    def __init__(self, weights_id: str, dtype: Dtype, layers: Sequence[Layer], *,
                 block_tokens: int = 8, rotary_tables: Sequence[RotaryTable] = (),
                 k_state: KState = ..., tp_rank: int = 0, tp_size: int = 1,
                 first_kv_head: int = 0, v_is_view_of_k: bool = False) -> None: ...

class StridedKv:
    """K and V of some layers in one memory, as byte strides (skv_strided_kv)."""
    def __init__(self, memory: Optional[Memory], k_offset: int, v_offset: int, layer_stride: int,
                 head_stride: int, token_stride: int, first_token: int = 0) -> None: ...
    @classmethod
    def of(cls, memory: Memory, k: Any, v: Any, first_token: int = 0) -> StridedKv:
        """From two arrays (NumPy or DLPack, bfloat16 tensors too) shaped [layers, kv_heads, tokens,
        dim] that lie in `memory`; first_token is the position of index 0 of the token axis. Same
        strides in both, the last axis contiguous. A 3-d [kv_heads, tokens, dim] is one layer."""

class SessionInfo:
    session_id: int
    connections: int
    connected: bool
    staging_bytes: int
    host_bytes: int
    instance: bytes
    boot_id: bytes
    device_kind: str
    daemon_version: str

class Session:
    def __init__(self, socket_path: Optional[str] = None, *, client_name: Optional[str] = None,
                 connect_timeout: float = 2.0, call_timeout: Optional[float] = None) -> None:
        """Timeouts in seconds. socket_path: $SKV_SOCKET, else /run/skvd/skvd.sock."""
    def __enter__(self) -> Session: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    @property
    def info(self) -> SessionInfo: ...
    @property
    def staging(self) -> Memory: ...
    def reconnect(self, timeout: float = 0.0) -> None: ...
    def model(self, descriptor: ModelDescriptor) -> Model: ...
    def memory(self, nbytes: int) -> Memory:
        """New registered memory, zeroed."""
    def register_memory(self, fd: int, nbytes: int) -> Memory: ...
    def flush(self, level: FlushLevel = ..., timeout: Optional[float] = None) -> int: ...
    def stat(self, kind: StatKind = ...) -> Any:
        """Parsed JSON; for CONTEXTS the pages joined into one list."""

class Memory:
    """Registered memory. Also a buffer: np.frombuffer(memory), torch.frombuffer(memory, dtype=...)."""
    def __enter__(self) -> Memory: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def buffer(self) -> memoryview:
        """Writable bytes: torch.frombuffer(memory.buffer, dtype=torch.bfloat16, offset=.., count=..)."""
    def array(self, shape: Union[int, Sequence[int]], dtype: npt.DTypeLike = np.uint8,
              offset: int = 0) -> np.ndarray: ...

class ModelInfo:
    layer_count: int
    chunk_count: int
    block_tokens: int
    element_bytes: int
    fingerprint: bytes

class Model:
    descriptor: ModelDescriptor
    def __enter__(self) -> Model: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    @property
    def info(self) -> ModelInfo: ...
    def context(self, index: IndexKind = ..., run_tokens: int = 2) -> Context: ...

class AppendResult:
    token_count: int
    first_sentence: int
    closed_count: int

class MatchResult:
    outcome: Match
    hit_tokens: int
    pending_tokens: int
    host_tokens: int
    nvme_tokens: int

class ContextInfo:
    token_count: int
    sentence_count: int
    closed_blocks: int
    changes: int

class LoadResult:
    host_chunks: int
    nvme_chunks: int
    nbytes: int

class Ticket:
    """One asynchronous operation."""
    def wait(self, timeout: Optional[float] = None) -> Optional[LoadResult]:
        """Raises how it ended; TimeoutError leaves it open. A LoadResult for a load."""
    @property
    def done(self) -> bool: ...

class Context:
    def __enter__(self) -> Context: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    def append(self, tokens: npt.ArrayLike, ends: npt.ArrayLike = (), ends_final_to: int = 0,
               extra: Optional[bytes] = None,
               first_position: Optional[int] = None) -> AppendResult: ...
    @property
    def info(self) -> ContextInfo:
        """Reading it also acknowledges that sentences changed in a reconnection (StaleError)."""
    def sentences(self, first: int = 0) -> np.ndarray:
        """uint32 block counts of the closed sentences from `first` on (a copy)."""
    def match(self, adopt: bool = False) -> MatchResult: ...
    def put_reserve(self, first: int, count: int) -> np.ndarray:
        """uint8 [count] of Put; likewise commit, cancel, vectors_*."""
    def put_write(self, first_sentence: int, sentence_count: int, first_layer: int,
                  layer_count: int, source: StridedKv, wait: bool = True) -> Optional[Ticket]:
        """wait=False: returns a Ticket; leave the source alone until it is done."""
    def put_commit(self, first: int, count: int, derive_vectors: bool = True) -> np.ndarray: ...
    def put_cancel(self, first: int, count: int) -> np.ndarray: ...
    def vectors_derive(self, first: int, count: int) -> np.ndarray: ...
    def vectors_put(self, first: int, count: int, memory: Memory, offset: int,
                    nbytes: int) -> np.ndarray: ...
    def window(self, budget_blocks: int, *, sink_blocks: int = 0, recent_blocks: int = 0,
               resident_blocks: int = 0, cut: Cut = ..., coarse_blocks: int = 0) -> Window: ...
    def load(self, first_sentence: int, sentence_count: int, first_layer: int, layer_count: int,
             destination: StridedKv, deadline: float = 0.0,
             wait: bool = True) -> Union[LoadResult, Ticket]: ...
    def load_in_place(self, first_sentence: int, sentence_count: int, first_layer: int,
                      layer_count: int, deadline: float = 0.0) -> Lease: ...
    def drop(self, first_sentence: int = 0) -> tuple[int, int]:
        """(dropped, kept)"""

class PrefetchResult:
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

class Table:
    """One layer's read set. Read-only views into memory the daemon writes: valid in content until
    readers_done(version). Entries of kv head h are [indptr[h], indptr[h+1])."""
    version: int
    covered_to: int
    unread_mass: float
    indptr: np.ndarray    # uint32 [kv_heads + 1]
    slot: np.ndarray      # uint32 [entries]
    block: np.ndarray     # uint32
    sentence: np.ndarray  # uint32
    score: np.ndarray     # float32
    origin: np.ndarray    # uint8, Origin

class Window:
    layer_count: int
    width: int
    slot_unit_bytes: int
    slots_in_host: bool
    def __enter__(self) -> Window: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...
    @property
    def stale(self) -> bool: ...
    @property
    def slots(self) -> np.ndarray:
        """uint8 [slots_bytes], read-only; slot s begins at s * slot_unit_bytes."""
    def slots_of(self, layer: int) -> np.ndarray:
        """The slots as elements of the model's dtype (bf16: uint16), read-only: [units,
        slot_unit_bytes / element]. A block of `layer` begins at row `slot` and takes
        block_bytes / slot_unit_bytes rows (1 unless the host memory is read in place)."""
    def block(self, layer: int, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """K [block_tokens, k_dim] and V [block_tokens, v_dim] of one slot, read-only."""
    def prefetch(self, query: Any, first_layer: int = 0, layer_count: int = 0,
                 cold: Cold = ..., deadline: float = 0.0,
                 timeout: Optional[float] = None) -> PrefetchResult:
        """query: C-contiguous float32 with as many elements as [layers][query heads][k_dim]."""
    def table(self, layer: int) -> Table: ...
    def readers_done(self, version: int) -> None: ...

class Lease:
    """Bodies read in place. Context manager; release() once."""
    result: LoadResult
    def __enter__(self) -> Lease: ...
    def __exit__(self, *exc: object) -> None: ...
    def release(self) -> None: ...
    def layer(self, sentence: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """K [kv_heads, blocks, block_tokens, k_dim] and V [..., v_dim], read-only views."""
