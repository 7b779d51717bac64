"""Window and Lease: reading what the daemon has brought."""
from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from . import _abi
from ._abi import check, lib, milliseconds
from ._arrays import Hold, as_query, at, view
from ._handle import Handle
from ._types import Cold, LoadResult, PrefetchResult, RankIn, from_struct

if TYPE_CHECKING:
    from ._context import Context


class Table(NamedTuple):
    """What to read of one layer: read-only views into memory that the daemon writes, whose contents
    last until readers_done(version). Entries of kv head h are [indptr[h], indptr[h + 1]), ascending
    by block."""

    version: int
    covered_to: int
    unread_mass: float
    indptr: np.ndarray  # uint32 [kv_heads + 1]
    slot: np.ndarray  # uint32 [entries]
    block: np.ndarray  # uint32: position / block_tokens
    sentence: np.ndarray  # uint32: index in the context
    score: np.ndarray  # float32: estimated share of attention
    origin: np.ndarray  # uint8: Origin


_COLUMNS = (("slot", np.uint32), ("block", np.uint32), ("sentence", np.uint32),
            ("score", np.float32), ("origin", np.uint8))


def _options(first_layer: int, layer_count: int, cold: Cold, deadline: float,
             timeout: Optional[float]) -> _abi.PrefetchOptions:
    return _abi.PrefetchOptions(
        first_layer=first_layer, layer_count=layer_count, cold=int(cold),
        deadline_us=min(0xFFFFFFFF, int(deadline * 1e6 + 0.999)), timeout_ms=milliseconds(timeout))


def prefetch_rows(windows: Sequence[Window], queries: Any, first_layer: int = 0,
                  layer_count: int = 0, cold: Cold = Cold.PARTIAL, deadline: float = 0.0,
                  timeout: Optional[float] = None) -> List[PrefetchResult]:
    """One call for a batch of sequences: as Window.prefetch for each, with the elements of
    [windows, layers, query heads, k_dim]. Raises for the first window that failed; the others were
    served all the same."""
    array = as_query(queries)
    options = _options(first_layer, layer_count, cold, deadline, timeout)
    handles = (ctypes.c_void_p * len(windows))(*(each._handle for each in windows))
    results = (_abi.PrefetchResult * len(windows))()
    for result in results:
        result.size = ctypes.sizeof(_abi.PrefetchResult)
    check(lib.skv_prefetch_rows(handles, len(windows), array.ctypes.data, array.nbytes,
                                ctypes.byref(options), results))
    return [from_struct(PrefetchResult, each) for each in results]


class Window(Handle):
    """The working set of one decoding row.

    A step: prefetch(query), then per layer table() and the slots it names, then readers_done() with
    the version. StaleError after a restart of the daemon: close it, open a new one.
    """

    def __init__(self, context: Context, handle: ctypes.c_void_p) -> None:
        super().__init__(handle, lib.skv_window_close)
        self.context = context
        info = self._info()
        self.layer_count: int = info.layer_count
        self.width: int = info.width
        self.slot_unit_bytes: int = info.slot_unit_bytes
        self.slots_in_host: bool = bool(info.slots_in_host)
        self.rank_in = RankIn(info.rank_in)
        hold = Hold(lib.skv_window_hold, self._handle)
        self._tables_address: int = info.tables
        self._tables = view(hold, info.tables, info.tables_bytes, False)
        self._slots = view(hold, info.slots, info.slots_bytes, False)
        # By address of a buffer: its arrays at full capacity, of which a table is the front part.
        self._buffers: Dict[int, Tuple[np.ndarray, ...]] = {}

    def _info(self) -> _abi.WindowInfo:
        info = _abi.WindowInfo()
        check(lib.skv_window_get_info(self._handle, ctypes.byref(info)))
        return info

    @property
    def stale(self) -> bool:
        return bool(self._info().stale)

    @property
    def slots(self) -> np.ndarray:
        """uint8, read-only: slot s begins at s * slot_unit_bytes."""
        return self._slots

    def slots_of(self, layer: int) -> np.ndarray:
        """All slots as elements of the model's dtype (bf16: uint16), read-only: [units,
        slot_unit_bytes / itemsize]. A block of `layer` begins at row `slot` and goes over
        block_bytes / slot_unit_bytes rows (1 where all layers have equal blocks and slots are the
        window's own)."""
        self.context.model.block_bytes(layer)  # checks the layer
        dtype = self.context.model.descriptor.dtype.numpy
        rows = self._slots.nbytes // self.slot_unit_bytes
        used = self._slots[:rows * self.slot_unit_bytes]
        return used.view(dtype).reshape(rows, self.slot_unit_bytes // dtype.itemsize)

    def block(self, layer: int, slot: int) -> Tuple[np.ndarray, np.ndarray]:
        """K [block_tokens, k_dim] and V [block_tokens, v_dim] in one slot, read-only views."""
        address = ctypes.c_void_p()
        check(lib.skv_window_slot(self._handle, layer, slot, ctypes.byref(address)))
        descriptor = self.context.model.descriptor
        shape = descriptor.layers[layer]
        dtype = descriptor.dtype.numpy
        offset = slot * self.slot_unit_bytes
        k_bytes = descriptor.block_tokens * shape.k_dim * dtype.itemsize
        k = at(self._slots, (descriptor.block_tokens, shape.k_dim), dtype, offset)
        v = at(self._slots, (descriptor.block_tokens, shape.v_dim), dtype, offset + k_bytes)
        return k, v

    def prefetch(self, query: Any, first_layer: int = 0, layer_count: int = 0,
                 cold: Cold = Cold.PARTIAL, deadline: float = 0.0,
                 timeout: Optional[float] = None) -> PrefetchResult:
        """Makes readable what matters to `query`: float32, C-contiguous, with the elements of
        [layers, query heads, k_dim]. layer_count 0: all from first_layer. deadline: of Cold.WAIT,
        seconds (0: the daemon's default). BusyError: readers_done is too far behind."""
        array = as_query(query)
        options = _options(first_layer, layer_count, cold, deadline, timeout)
        result = _abi.PrefetchResult()
        check(lib.skv_prefetch(self._handle, array.ctypes.data, array.nbytes,
                               ctypes.byref(options), ctypes.byref(result)))
        return from_struct(PrefetchResult, result)

    def guess(self, query: Any, first_layer: int = 0, layer_count: int = 0,
              cold: Cold = Cold.PARTIAL) -> None:
        """Begins the moves of prefetch(query) and publishes nothing. Does not wait; confirm(query),
        with the right query, moves what this one missed and publishes."""
        array = as_query(query)
        options = _options(first_layer, layer_count, cold, 0.0, None)
        check(lib.skv_guess(self._handle, array.ctypes.data, array.nbytes, ctypes.byref(options)))

    def confirm(self, query: Any, first_layer: int = 0, layer_count: int = 0,
                cold: Cold = Cold.PARTIAL, deadline: float = 0.0,
                timeout: Optional[float] = None) -> PrefetchResult:
        """The prefetch after a guess; as prefetch()."""
        return self.prefetch(query, first_layer, layer_count, cold, deadline, timeout)

    def table(self, layer: int) -> Table:
        """The newest table of a layer, without asking the daemon. NotFoundError before the first
        prefetch of the layer."""
        table = _abi.Table()
        check(lib.skv_window_table(self._handle, layer, ctypes.byref(table)))
        arrays = self._buffers.get(table.indptr)
        if arrays is None:
            arrays = self._buffer(table)
            self._buffers[table.indptr] = arrays
        count = table.entry_count
        return Table(table.version, table.covered_to, table.unread_mass, arrays[0],
                     *(each[:count] for each in arrays[1:]))

    def _buffer(self, table: _abi.Table) -> Tuple[np.ndarray, ...]:
        capacity = table.head_count * self.width
        arrays = [at(self._tables, (table.head_count + 1,), np.dtype(np.uint32),
                     table.indptr - self._tables_address)]
        arrays += [at(self._tables, (capacity,), np.dtype(dtype),
                      getattr(table, name) - self._tables_address) for name, dtype in _COLUMNS]
        return tuple(arrays)

    def readers_done(self, version: int) -> None:
        """No table of this version or an older one is read any more, nor slots only those name."""
        check(lib.skv_readers_done(self._handle, version))


class Lease(Handle):
    """Bodies read in place. `result` says how much came from where. Views of it are memory for as
    long as they live, and the sentences' bytes until release()."""

    def __init__(self, context: Context, handle: ctypes.c_void_p, result: LoadResult) -> None:
        super().__init__(handle, lib.skv_lease_release)
        self.context = context
        self.result = result
        self._hold = Hold(lib.skv_lease_hold, self._handle)

    def layer(self, sentence: int, layer: int) -> Tuple[np.ndarray, np.ndarray]:
        """K [kv_heads, blocks, block_tokens, k_dim] and V [..., v_dim] of one layer of the
        `sentence`-th leased sentence, read-only views. StaleError: the daemon is gone, a miss."""
        where = _abi.LeasedLayer()
        check(lib.skv_lease_get_layer(self._handle, sentence, layer, ctypes.byref(where)))
        descriptor = self.context.model.descriptor
        shape = descriptor.layers[layer]
        dtype = descriptor.dtype.numpy
        body = view(self._hold, where.pointer, where.kv_heads * where.blocks * where.block_bytes,
                    False)
        outer = (where.kv_heads, where.blocks, descriptor.block_tokens)
        k_bytes = descriptor.block_tokens * shape.k_dim * dtype.itemsize

        def part(dim: int, offset: int) -> np.ndarray:
            strides = (where.blocks * where.block_bytes, where.block_bytes, dim * dtype.itemsize,
                       dtype.itemsize)
            return at(body, outer + (dim,), dtype, offset, strides)

        return part(shape.k_dim, 0), part(shape.v_dim, k_bytes)

    def release(self) -> None:
        """Once: the second time is UnknownHandleError."""
        check(lib.skv_lease_release(self._handle))
        self._forget()
