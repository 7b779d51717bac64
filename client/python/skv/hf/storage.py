"""Memory for K and V that the engine and skvd both see."""
from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os

import torch

import skv

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MADV_REMOVE = 9
_PAGE = mmap.PAGESIZE


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Shape of the KV of a model: the same in all layers."""
    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """One of K or V of one head, one token."""
        return self.head_dim * self.dtype.itemsize

    @property
    def block_elements(self) -> int:
        return 2 * self.block_tokens * self.head_dim


class KvMemory:
    """K and V of `layers` layers, [layer][K|V][kv_head][token][dim], in one registered memory.

    The torch tensors are views of it, so what the model writes is what skvd reads: nothing is copied
    twice. The memory is sparse: only pages that were written are there, and `give_back` returns them.

    Units   capacity in tokens, rounded up so that a head's tokens are whole pages
    Thread  one
    Owns    the registered memory, until close()
    """

    def __init__(self, session: skv.Session, geometry: Geometry, layers: int, capacity: int) -> None:
        self.geometry = geometry
        self.layers = layers
        page_tokens = max(1, _PAGE // geometry.token_bytes)
        self.capacity = -(-capacity // page_tokens) * page_tokens
        self._head_bytes = self.capacity * geometry.token_bytes
        self._half_bytes = self._head_bytes * geometry.kv_heads
        self._layer_bytes = 2 * self._half_bytes
        self.memory = session.memory(layers * self._layer_bytes)
        flat = torch.frombuffer(self.memory.buffer, dtype=geometry.dtype)
        flat = flat[:layers * self._layer_bytes // geometry.dtype.itemsize]
        self._kv = flat.view(layers, 2, geometry.kv_heads, self.capacity, geometry.head_dim)

    def k(self, layer: int) -> torch.Tensor:
        """[kv_heads, capacity, head_dim]"""
        return self._kv[layer, 0]

    def v(self, layer: int) -> torch.Tensor:
        return self._kv[layer, 1]

    def strided(self, layer: int) -> skv.StridedKv:
        """For a call on model layers whose first is kept here as `layer`."""
        at = layer * self._layer_bytes
        return skv.StridedKv(self.memory, k_offset=at, v_offset=at + self._half_bytes,
                             layer_stride=self._layer_bytes, head_stride=self._head_bytes,
                             token_stride=self.geometry.token_bytes, first_token=0)

    def give_back(self, first: int, end: int) -> None:
        """The pages that lie wholly in tokens [first, end) go back to the system and read as zero.
        A page that begins before `first` is taken too: what is before was given back already."""
        begin = first * self.geometry.token_bytes // _PAGE * _PAGE
        stop = end * self.geometry.token_bytes // _PAGE * _PAGE
        if stop <= begin:
            return
        base = self.memory.address
        for row in range(self.layers * 2 * self.geometry.kv_heads):
            at = base + row * self._head_bytes + begin
            if _libc.madvise(at, stop - begin, _MADV_REMOVE) != 0:
                raise OSError(ctypes.get_errno(), "madvise(MADV_REMOVE): "
                              + os.strerror(ctypes.get_errno()))

    def close(self) -> None:
        self._kv = None
        self.memory.close()
