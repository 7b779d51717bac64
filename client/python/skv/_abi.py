"""The C ABI of libskv (client/skv.h) in ctypes: structs, prototypes, finding the library."""
from __future__ import annotations

import ctypes
import ctypes.util
import os
import pathlib
from ctypes import (POINTER, c_char, c_char_p, c_float, c_int, c_int32, c_uint8, c_uint32, c_uint64,
                    c_void_p)
from typing import Any, List, Optional

from ._errors import BY_CODE, InternalError

AT_END = 0xFFFFFFFF
NO_ROTARY = 0xFFFF
SPIN_NEVER = 0xFFFFFFFF


class Struct(ctypes.Structure):
    """A size-prefixed struct: `size` is set, the rest is zero unless given."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=ctypes.sizeof(self), **fields)


class SessionOptions(Struct):
    _fields_ = [("size", c_uint32), ("connect_timeout_ms", c_uint32), ("call_timeout_ms", c_uint32),
                ("spin_us", c_uint32), ("socket_path", c_char_p), ("client_name", c_char_p)]


class SessionInfo(Struct):
    _fields_ = [("size", c_uint32), ("session_id", c_uint32), ("connections", c_uint32),
                ("connected", c_uint32), ("host", c_void_p), ("host_bytes", c_uint64),
                ("instance", c_uint8 * 16), ("boot_id", c_uint8 * 16), ("device_kind", c_char * 16),
                ("daemon_version", c_char * 32)]


class RotaryTable(Struct):
    _fields_ = [("size", c_uint32), ("dims", c_uint32), ("offset", c_uint32), ("pairing", c_uint32),
                ("attention_factor", c_float), ("frequency_count", c_uint32),
                ("frequencies", POINTER(c_float))]


class Layer(Struct):
    _fields_ = [("size", c_uint32), ("layer_class", c_uint32), ("kv_heads", c_uint32),
                ("queries_per_kv_head", c_uint32), ("k_dim", c_uint32), ("v_dim", c_uint32),
                ("shared_layer", c_uint32), ("sliding_window", c_uint32),
                ("softmax_scale", c_float), ("logit_cap", c_float), ("rotary_index", c_uint32)]


class ModelDescriptor(Struct):
    _fields_ = [("size", c_uint32), ("dtype", c_uint32), ("block_tokens", c_uint32),
                ("k_state", c_uint32), ("tp_rank", c_uint32), ("tp_size", c_uint32),
                ("first_kv_head", c_uint32), ("v_is_view_of_k", c_uint32), ("weights_id", c_char_p),
                ("rotary_tables", POINTER(RotaryTable)), ("layers", POINTER(Layer)),
                ("rotary_table_count", c_uint32), ("layer_count", c_uint32)]


class ModelInfo(Struct):
    _fields_ = [("size", c_uint32), ("layer_count", c_uint32), ("chunk_count", c_uint32),
                ("block_tokens", c_uint32), ("element_bytes", c_uint32), ("reserved", c_uint32),
                ("fingerprint", c_uint8 * 32)]


class ContextOptions(Struct):
    _fields_ = [("size", c_uint32), ("index_kind", c_uint32), ("run_tokens", c_uint32)]


class AppendOptions(Struct):
    _fields_ = [("size", c_uint32), ("first_position", c_uint32), ("tokens", c_void_p),
                ("token_count", c_uint32), ("end_count", c_uint32), ("ends", c_void_p),
                ("ends_final_to", c_uint32), ("reserved", c_uint32), ("extra", c_char_p)]


class AppendResult(Struct):
    _fields_ = [("size", c_uint32), ("token_count", c_uint32), ("first_sentence", c_uint32),
                ("closed_count", c_uint32)]


class ContextInfo(Struct):
    _fields_ = [("size", c_uint32), ("token_count", c_uint32), ("sentence_count", c_uint32),
                ("closed_blocks", c_uint32), ("changes", c_uint32)]


class MatchResult(Struct):
    _fields_ = [("size", c_uint32), ("outcome", c_uint32), ("hit_tokens", c_uint32),
                ("pending_tokens", c_uint32), ("host_tokens", c_uint32), ("nvme_tokens", c_uint32)]


class MemoryInfo(Struct):
    _fields_ = [("size", c_uint32), ("fd", c_int32), ("pointer", c_void_p), ("bytes", c_uint64)]


class StridedKv(Struct):
    _fields_ = [("size", c_uint32), ("first_token", c_uint32), ("memory", c_void_p),
                ("k_offset", c_uint64), ("v_offset", c_uint64), ("layer_stride", c_uint64),
                ("head_stride", c_uint64), ("token_stride", c_uint64)]


class PutWriteOptions(Struct):
    _fields_ = [("size", c_uint32), ("first_sentence", c_uint32), ("sentence_count", c_uint32),
                ("first_layer", c_uint32), ("layer_count", c_uint32), ("reserved", c_uint32),
                ("source", POINTER(StridedKv))]


class VectorsPutOptions(Struct):
    _fields_ = [("size", c_uint32), ("first_sentence", c_uint32), ("sentence_count", c_uint32),
                ("reserved", c_uint32), ("memory", c_void_p), ("offset", c_uint64),
                ("bytes", c_uint64)]


class WindowOptions(Struct):
    _fields_ = [("size", c_uint32), ("budget_blocks", c_uint32), ("sink_blocks", c_uint32),
                ("recent_blocks", c_uint32), ("resident_blocks", c_uint32), ("cut", c_uint32),
                ("coarse_blocks", c_uint32), ("rank_in", c_uint32), ("mass", c_float),
                ("head_budget_count", c_uint32), ("head_budgets", ctypes.POINTER(c_uint32)),
                ("query_cosine", c_float), ("scores", c_uint32)]


class WindowInfo(Struct):
    _fields_ = [("size", c_uint32), ("layer_count", c_uint32), ("width", c_uint32),
                ("slot_unit_bytes", c_uint32), ("slots", c_void_p), ("slots_bytes", c_uint64),
                ("slots_in_host", c_uint32), ("stale", c_uint32), ("tables", c_void_p),
                ("tables_bytes", c_uint64), ("rank_in", c_uint32), ("reserved", c_uint32)]


class PrefetchOptions(Struct):
    _fields_ = [("size", c_uint32), ("first_layer", c_uint32), ("layer_count", c_uint32),
                ("cold", c_uint32), ("deadline_us", c_uint32), ("timeout_ms", c_uint32)]


class PrefetchResult(Struct):
    _fields_ = [("size", c_uint32), ("covered_to", c_uint32), ("version", c_uint64),
                ("bytes_moved", c_uint64), ("hits_device", c_uint32), ("hits_host", c_uint32),
                ("hits_nvme", c_uint32), ("misses", c_uint32), ("read_blocks", c_uint32),
                ("unread_mass", c_float), ("daemon_us", c_uint32), ("status", c_int32),
                ("rank_ns", c_uint32), ("cut_ns", c_uint32), ("write_ns", c_uint32),
                ("daemon_ns", c_uint32), ("ranked_heads", c_uint32), ("reserved", c_uint32)]


class Table(Struct):
    _fields_ = [("size", c_uint32), ("covered_to", c_uint32), ("version", c_uint64),
                ("entry_count", c_uint32), ("head_count", c_uint32), ("unread_mass", c_float),
                ("reserved", c_uint32), ("indptr", c_void_p), ("slot", c_void_p),
                ("block", c_void_p), ("sentence", c_void_p), ("score", c_void_p),
                ("origin", c_void_p)]


class LoadOptions(Struct):
    _fields_ = [("size", c_uint32), ("first_sentence", c_uint32), ("sentence_count", c_uint32),
                ("first_layer", c_uint32), ("layer_count", c_uint32), ("deadline_ms", c_uint32),
                ("destination", POINTER(StridedKv))]


class LoadResult(Struct):
    _fields_ = [("size", c_uint32), ("host_chunks", c_uint32), ("nvme_chunks", c_uint32),
                ("reserved", c_uint32), ("bytes", c_uint64)]


class LeasedLayer(Struct):
    _fields_ = [("size", c_uint32), ("kv_heads", c_uint32), ("blocks", c_uint32),
                ("block_bytes", c_uint32), ("pointer", c_void_p)]


_OUT = POINTER(c_void_p)
# Every function of skv.h that returns a code; tests compare the list with the header.
PROTOTYPES = {
    "skv_session_open": [POINTER(SessionOptions), _OUT],
    "skv_session_close": [c_void_p],
    "skv_session_get_info": [c_void_p, POINTER(SessionInfo)],
    "skv_session_reconnect": [c_void_p, c_uint32],
    "skv_session_hold": [c_void_p, _OUT],
    "skv_window_hold": [c_void_p, _OUT],
    "skv_memory_hold": [c_void_p, _OUT],
    "skv_lease_hold": [c_void_p, _OUT],
    "skv_hold_release": [c_void_p],
    "skv_model_open": [c_void_p, POINTER(ModelDescriptor), _OUT],
    "skv_model_close": [c_void_p],
    "skv_model_get_info": [c_void_p, POINTER(ModelInfo)],
    "skv_model_query_bytes": [c_void_p, c_uint32, c_uint32, POINTER(c_uint64)],
    "skv_model_block_bytes": [c_void_p, c_uint32, POINTER(c_uint64)],
    "skv_context_open": [c_void_p, POINTER(ContextOptions), _OUT],
    "skv_context_close": [c_void_p],
    "skv_context_append": [c_void_p, POINTER(AppendOptions), POINTER(AppendResult)],
    "skv_context_get_info": [c_void_p, POINTER(ContextInfo)],
    "skv_context_get_sentences": [c_void_p, c_uint32, c_void_p, c_uint32, POINTER(c_uint32)],
    "skv_match": [c_void_p, c_int, POINTER(MatchResult)],
    "skv_keys_open": [c_void_p, _OUT],
    "skv_keys_close": [c_void_p],
    "skv_keys_append": [c_void_p, c_void_p, c_uint32, c_char_p],
    "skv_match_local": [c_void_p, POINTER(MatchResult)],
    "skv_memory_create": [c_void_p, c_uint64, _OUT],
    "skv_memory_register": [c_void_p, c_int, c_uint64, _OUT],
    "skv_session_staging": [c_void_p, _OUT],
    "skv_memory_close": [c_void_p],
    "skv_memory_get_info": [c_void_p, POINTER(MemoryInfo)],
    "skv_put_reserve": [c_void_p, c_uint32, c_uint32, c_void_p],
    "skv_put_write": [c_void_p, POINTER(PutWriteOptions), POINTER(c_uint64)],
    "skv_put_commit": [c_void_p, c_uint32, c_uint32, c_int, c_void_p],
    "skv_put_cancel": [c_void_p, c_uint32, c_uint32, c_void_p],
    "skv_vectors_derive": [c_void_p, c_uint32, c_uint32, c_void_p],
    "skv_vectors_put": [c_void_p, POINTER(VectorsPutOptions), c_void_p],
    "skv_window_open": [c_void_p, POINTER(WindowOptions), _OUT],
    "skv_window_close": [c_void_p],
    "skv_window_get_info": [c_void_p, POINTER(WindowInfo)],
    "skv_prefetch": [c_void_p, c_void_p, c_uint64, POINTER(PrefetchOptions),
                     POINTER(PrefetchResult)],
    "skv_prefetch_rows": [POINTER(c_void_p), c_uint32, c_void_p, c_uint64,
                          POINTER(PrefetchOptions), POINTER(PrefetchResult)],
    "skv_guess": [c_void_p, c_void_p, c_uint64, POINTER(PrefetchOptions)],
    "skv_confirm": [c_void_p, c_void_p, c_uint64, POINTER(PrefetchOptions),
                    POINTER(PrefetchResult)],
    "skv_window_table": [c_void_p, c_uint32, POINTER(Table)],
    "skv_window_slot": [c_void_p, c_uint32, c_uint32, _OUT],
    "skv_readers_done": [c_void_p, c_uint64],
    "skv_load": [c_void_p, POINTER(LoadOptions), POINTER(c_uint64), POINTER(LoadResult)],
    "skv_load_in_place": [c_void_p, POINTER(LoadOptions), _OUT, POINTER(LoadResult)],
    "skv_lease_get_layer": [c_void_p, c_uint32, c_uint32, POINTER(LeasedLayer)],
    "skv_lease_release": [c_void_p],
    "skv_flush": [c_void_p, c_int, c_uint32, POINTER(c_uint64)],
    "skv_drop": [c_void_p, c_uint32, POINTER(c_uint32), POINTER(c_uint32)],
    "skv_stat": [c_void_p, c_int, c_uint32, POINTER(c_void_p), POINTER(c_uint32)],
    "skv_wait": [c_void_p, c_uint64, c_uint32, POINTER(LoadResult)],
}


def candidates() -> List[str]:
    """Where libskv.so is looked for, in order. SKV_LIBRARY, if set, is the only place."""
    chosen = os.environ.get("SKV_LIBRARY")
    if chosen:
        return [chosen]
    package = pathlib.Path(__file__).resolve().parent
    found = [package / "libskv.so.0", package / "libskv.so"]
    tree = package.parents[2]  # of the source tree, where the package is client/python/skv
    if (tree / "client" / "skv.h").is_file():
        found += [tree / "build" / preset / "lib" / "libskv.so.0" for preset in ("release", "debug")]
    return [str(path) for path in found if path.is_file()] + ["libskv.so.0"]


def _load() -> ctypes.CDLL:
    failures = []
    for path in candidates():
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            failures.append(str(error))
    raise ImportError("libskv.so.0 cannot be loaded; set SKV_LIBRARY to its path. Tried: " +
                      "; ".join(failures))


lib = _load()
for _name, _arguments in PROTOTYPES.items():
    _function = getattr(lib, _name)
    _function.argtypes = _arguments
    _function.restype = c_int
lib.skv_last_error.restype = c_char_p
lib.skv_last_error.argtypes = []
lib.skv_error_name.restype = c_char_p
lib.skv_error_name.argtypes = [c_int]
lib.skv_version.restype = c_char_p
lib.skv_version.argtypes = []
lib.skv_free.restype = None
lib.skv_free.argtypes = [c_void_p]


def check(code: int) -> None:
    """Raises what a negative code stands for."""
    if code < 0:
        text = lib.skv_last_error().decode("utf-8", "replace")
        raise BY_CODE.get(code, InternalError)(text or lib.skv_error_name(code).decode())


def milliseconds(seconds: Optional[float], default: int = 0) -> int:
    """For u32 timeouts, rounded up so that a short one is not none."""
    if seconds is None:
        return default
    if not 0 <= seconds <= 4_000_000:
        raise ValueError(f"a time of {seconds} s: allowed are 0 to 4000000")
    return -int(-seconds * 1000 // 1)
