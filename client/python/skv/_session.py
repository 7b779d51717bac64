"""Session, Memory, Model and tickets."""
from __future__ import annotations

import ctypes
import json
import os
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _abi
from ._abi import check, lib, milliseconds
from ._arrays import Hold, at, describe, view
from ._handle import Handle
from ._types import (FlushLevel, IndexKind, LoadResult, ModelDescriptor, ModelInfo, SessionInfo,
                     StatKind, from_struct)

if TYPE_CHECKING:
    from ._context import Context, Keys


class Session(Handle):
    """A connection to skvd that finds its way back after a restart of the daemon.

    Any thread may use it and all that is opened under it. `connect_timeout` bounds opening, and
    connecting again inside later calls; `call_timeout` every call that asks the daemon (default:
    what the daemon proposes). Both in seconds. `spin`: most seconds that a wait for the data thread
    looks before it sleeps (default: the library's choice; 0: none).
    """

    def __init__(self, socket_path: Optional[Union[str, "os.PathLike[str]"]] = None, *,
                 client_name: Optional[str] = None, connect_timeout: float = 2.0,
                 call_timeout: Optional[float] = None, spin: Optional[float] = None) -> None:
        spin_us = 0 if spin is None else round(spin * 1e6) or _abi.SPIN_NEVER
        options = _abi.SessionOptions(
            connect_timeout_ms=max(1, milliseconds(connect_timeout)),
            call_timeout_ms=milliseconds(call_timeout), spin_us=spin_us,
            socket_path=None if socket_path is None else os.fsencode(socket_path),
            client_name=None if client_name is None else client_name.encode("utf-8"))
        handle = ctypes.c_void_p()
        check(lib.skv_session_open(ctypes.byref(options), ctypes.byref(handle)))
        super().__init__(handle, lib.skv_session_close)

    @property
    def info(self) -> SessionInfo:
        info = _abi.SessionInfo()
        check(lib.skv_session_get_info(self._handle, ctypes.byref(info)))
        return from_struct(SessionInfo, info, connected=bool(info.connected),
                           instance=bytes(info.instance), boot_id=bytes(info.boot_id),
                           device_kind=info.device_kind.decode(),
                           daemon_version=info.daemon_version.decode())

    def reconnect(self, timeout: float = 0.0) -> None:
        """Connects again now if the connection is lost, waiting up to `timeout` for the daemon."""
        check(lib.skv_session_reconnect(self._handle, milliseconds(timeout)))

    def memory(self, nbytes: int) -> Memory:
        """New memory, zeroed, registered with the daemon: allocate K and V in it."""
        handle = ctypes.c_void_p()
        check(lib.skv_memory_create(self._handle, nbytes, ctypes.byref(handle)))
        return Memory(self, handle)

    def register_memory(self, fd: int, nbytes: int) -> Memory:
        """The caller's own memfd, sealed against shrinking and growing; `fd` stays the caller's."""
        handle = ctypes.c_void_p()
        check(lib.skv_memory_register(self._handle, fd, nbytes, ctypes.byref(handle)))
        return Memory(self, handle)

    @property
    def staging(self) -> Memory:
        """The small staging memory of the present connection; StaleError on use after a later one.
        Each access gives a new handle on the same bytes."""
        handle = ctypes.c_void_p()
        check(lib.skv_session_staging(self._handle, ctypes.byref(handle)))
        return Memory(self, handle)

    def model(self, descriptor: ModelDescriptor) -> Model:
        """Declares a model. UnsupportedError names what this version does not serve."""
        handle = ctypes.c_void_p()
        struct = descriptor._as_struct()
        check(lib.skv_model_open(self._handle, ctypes.byref(struct), ctypes.byref(handle)))
        return Model(self, descriptor, handle)

    def flush(self, level: FlushLevel = FlushLevel.DURABLE,
              timeout: Optional[float] = None) -> int:
        """Waits until all committed sentences of the space are at `level`; how many there are."""
        sentences = ctypes.c_uint64()
        check(lib.skv_flush(self._handle, int(level), milliseconds(timeout),
                            ctypes.byref(sentences)))
        return sentences.value

    def stat(self, kind: StatKind = StatKind.STATUS) -> Any:
        """What the daemon tells of itself, parsed. Pages of lists are joined."""
        first = 0
        joined: Any = None
        while True:
            text = ctypes.c_void_p()
            following = ctypes.c_uint32()
            check(lib.skv_stat(self._handle, int(kind), first, ctypes.byref(text),
                               ctypes.byref(following)))
            try:
                page = json.loads(ctypes.string_at(text.value or 0))
            finally:
                lib.skv_free(text)
            joined = page if joined is None else _join(joined, page)
            if following.value <= first:
                return joined
            first = following.value


def _join(pages: Any, page: Any) -> Any:
    if isinstance(pages, list):
        return pages + page
    return {key: value + page[key] if isinstance(value, list) else value
            for key, value in pages.items()}


class Memory(Handle):
    """Memory that the daemon copies from (puts) and into (loads).

    Its arrays stay valid memory after close, but are no longer the daemon's to copy. BusyError on
    close while asynchronous operations use it.
    """

    def __init__(self, session: Session, handle: ctypes.c_void_p) -> None:
        super().__init__(handle, lib.skv_memory_close)
        self.session = session
        info = _abi.MemoryInfo()
        check(lib.skv_memory_get_info(self._handle, ctypes.byref(info)))
        self.nbytes: int = info.bytes
        self.address: int = info.pointer
        self._bytes = view(Hold(lib.skv_memory_hold, self._handle), self.address, self.nbytes, True)

    @property
    def fd(self) -> int:
        """Borrowed: valid until close."""
        info = _abi.MemoryInfo()
        check(lib.skv_memory_get_info(self._handle, ctypes.byref(info)))
        return info.fd

    @property
    def buffer(self) -> memoryview:
        """All of it, writable: torch.frombuffer(memory.buffer, dtype=torch.bfloat16, offset=...)."""
        return memoryview(self._bytes)

    def array(self, shape: Union[int, Sequence[int]], dtype: npt.DTypeLike = np.uint8,
              offset: int = 0) -> np.ndarray:
        """A view of a part of it, writable; `offset` in bytes."""
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        nbytes = int(np.prod(dims, dtype=np.int64)) * np.dtype(dtype).itemsize
        if offset < 0 or nbytes > self.nbytes - offset:
            raise ValueError(f"{nbytes} bytes at {offset} do not fit a memory of {self.nbytes}")
        return at(self._bytes, dims, np.dtype(dtype), offset)


class StridedKv:
    """K and V of some layers in one memory, as byte strides (skv_strided_kv): element (layer, head,
    token) of K is at k_offset + (layer - first layer of the call) * layer_stride + head *
    head_stride + (token - first_token) * token_stride."""

    def __init__(self, memory: Memory, k_offset: int, v_offset: int, layer_stride: int,
                 head_stride: int, token_stride: int, first_token: int = 0) -> None:
        self.memory = memory
        self.k_offset = k_offset
        self.v_offset = v_offset
        self.layer_stride = layer_stride
        self.head_stride = head_stride
        self.token_stride = token_stride
        self.first_token = first_token

    @classmethod
    def of(cls, memory: Memory, k: Any, v: Any, first_token: int = 0) -> StridedKv:
        """From two arrays or tensors [layers, kv_heads, tokens, dim] (or [kv_heads, tokens, dim] for
        one layer) that lie in `memory`, with equal strides and a contiguous last axis. first_token
        is the position of index 0 of the token axis."""
        offsets = []
        strides: Optional[Tuple[int, ...]] = None
        for name, array in (("k", k), ("v", v)):
            found = describe(array)
            if len(found.shape) not in (3, 4):
                raise ValueError(f"{name} has shape {found.shape}: [layers, kv_heads, tokens, dim] "
                                 "is needed")
            if found.shape[-1] > 1 and found.strides[-1] != found.itemsize:
                raise ValueError(f"the last axis of {name} is not contiguous")
            if any(stride < 0 for stride in found.strides):
                raise ValueError(f"{name} has negative strides")
            offset = found.address - memory.address
            extent = sum((size - 1) * stride for size, stride in zip(found.shape, found.strides)
                         if size > 0) + found.itemsize
            if offset < 0 or offset + extent > memory.nbytes:
                raise ValueError(f"{name} does not lie in the memory")
            outer = found.strides[-4:-1] if len(found.shape) == 4 else (0,) + found.strides[-3:-1]
            if strides is not None and outer != strides:
                raise ValueError(f"k and v have different strides: {strides} and {outer}")
            strides = outer
            offsets.append(offset)
        assert strides is not None
        return cls(memory, offsets[0], offsets[1], *strides, first_token=first_token)

    def _as_struct(self) -> _abi.StridedKv:
        return _abi.StridedKv(first_token=self.first_token, memory=self.memory._handle,
                              k_offset=self.k_offset, v_offset=self.v_offset,
                              layer_stride=self.layer_stride, head_stride=self.head_stride,
                              token_stride=self.token_stride)


class Model(Handle):
    """A declared model."""

    def __init__(self, session: Session, descriptor: ModelDescriptor,
                 handle: ctypes.c_void_p) -> None:
        super().__init__(handle, lib.skv_model_close)
        self.session = session
        self.descriptor = descriptor

    @property
    def info(self) -> ModelInfo:
        info = _abi.ModelInfo()
        check(lib.skv_model_get_info(self._handle, ctypes.byref(info)))
        return from_struct(ModelInfo, info, fingerprint=bytes(info.fingerprint))

    def query_bytes(self, first_layer: int = 0, layer_count: int = 0) -> int:
        """Of the query of a prefetch over these layers; layer_count 0: all from first_layer."""
        nbytes = ctypes.c_uint64()
        count = layer_count or len(self.descriptor.layers) - first_layer
        check(lib.skv_model_query_bytes(self._handle, first_layer, count, ctypes.byref(nbytes)))
        return nbytes.value

    def block_bytes(self, layer: int) -> int:
        nbytes = ctypes.c_uint64()
        check(lib.skv_model_block_bytes(self._handle, layer, ctypes.byref(nbytes)))
        return nbytes.value

    def context(self, index: IndexKind = IndexKind.MEAN_SPREAD_RUNS,
                run_tokens: int = 2) -> Context:
        from ._context import Context
        options = _abi.ContextOptions(index_kind=int(index), run_tokens=run_tokens)
        handle = ctypes.c_void_p()
        check(lib.skv_context_open(self._handle, ctypes.byref(options), ctypes.byref(handle)))
        return Context(self, handle)

    def keys(self, tokens: npt.ArrayLike = (), extra: Optional[bytes] = None) -> Keys:
        """The keys of a row of tokens, to test a match without asking the daemon."""
        from ._context import Keys
        handle = ctypes.c_void_p()
        check(lib.skv_keys_open(self._handle, ctypes.byref(handle)))
        keys = Keys(self, handle)
        keys.append(tokens, extra)
        return keys


class Ticket:
    """One asynchronous operation. What it reads or writes stays in use until it is done."""

    def __init__(self, session: Session, ticket: int, loads: bool) -> None:
        self._session = session
        self._ticket = ticket
        self._loads = loads
        self._ended = False

    def wait(self, timeout: Optional[float] = None) -> Optional[LoadResult]:
        """Until it is done (`timeout` seconds, default 30); raises how it ended. TimeoutError leaves
        it open; after it ended, waiting again is UnknownHandleError. A load gives a LoadResult."""
        result = _abi.LoadResult()
        code = lib.skv_wait(self._session._handle, self._ticket, milliseconds(timeout, 30_000),
                            ctypes.byref(result))
        self._ended = self._ended or code != -10
        check(code)
        if not self._loads:
            return None
        return LoadResult(result.host_chunks, result.nvme_chunks, result.bytes)

    @property
    def ended(self) -> bool:
        """Whether wait() has seen its end."""
        return self._ended
