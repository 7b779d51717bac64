"""Context: tokens, sentences, puts, loads."""
from __future__ import annotations

import ctypes
from typing import Any, Optional, Sequence, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _abi
from ._abi import check, lib, milliseconds
from ._arrays import as_u32
from ._handle import Handle
from ._session import Memory, Model, StridedKv, Ticket
from ._types import (AppendResult, ContextInfo, Cut, LoadResult, Match, MatchResult, RankIn,
                     Scores, from_struct)
from ._window import Lease, Window


class Keys(Handle):
    """Digests of a row of tokens, computed once (Model.keys). match() looks them up in a directory
    that the daemon shares read-only with its space: no message, but a hint; Context.match is the
    authority."""

    def __init__(self, model: Model, handle: ctypes.c_void_p) -> None:
        super().__init__(handle, lib.skv_keys_close)
        self.model = model

    def append(self, tokens: npt.ArrayLike, extra: Optional[bytes] = None) -> None:
        """More tokens at the end. `extra` as of Context.append."""
        token_array = as_u32(tokens, "tokens")
        if extra is not None and len(extra) != 32:
            raise ValueError(f"extra has {len(extra)} bytes, 32 are needed")
        check(lib.skv_keys_append(self._handle, token_array.ctypes.data, token_array.size, extra))

    def match(self) -> MatchResult:
        """The longest prefix of the tokens that is stored, as far as the directory shows."""
        result = _abi.MatchResult()
        check(lib.skv_match_local(self._handle, ctypes.byref(result)))
        return from_struct(MatchResult, result, outcome=Match(result.outcome))


class Context(Handle):
    """A path of tokens that grows at its end, cut into sentences. Calls on one context are served
    one after another. StaleError on a sentence index: the sentences changed in a reconnection, read
    `info` and `sentences()` again."""

    def __init__(self, model: Model, handle: ctypes.c_void_p) -> None:
        super().__init__(handle, lib.skv_context_close)
        self.model = model

    def append(self, tokens: npt.ArrayLike, ends: npt.ArrayLike = (), ends_final_to: int = 0,
               extra: Optional[bytes] = None,
               first_position: Optional[int] = None) -> AppendResult:
        """Adds tokens, and declares sentence ends (positions after a last token, ascending) and up to
        where they are final. With first_position, repeating an append is harmless: tokens that are
        there already are compared and skipped. `extra`: 32 bytes of what else the KV depends on."""
        token_array = as_u32(tokens, "tokens")
        end_array = as_u32(ends, "ends")
        if extra is not None and len(extra) != 32:
            raise ValueError(f"extra has {len(extra)} bytes, 32 are needed")
        options = _abi.AppendOptions(
            first_position=_abi.AT_END if first_position is None else first_position,
            tokens=token_array.ctypes.data, token_count=token_array.size,
            end_count=end_array.size, ends=end_array.ctypes.data, ends_final_to=ends_final_to,
            extra=extra)
        result = _abi.AppendResult()
        check(lib.skv_context_append(self._handle, ctypes.byref(options), ctypes.byref(result)))
        return AppendResult(result.token_count, result.first_sentence, result.closed_count)

    @property
    def info(self) -> ContextInfo:
        """Reading it acknowledges that sentences changed in a reconnection."""
        info = _abi.ContextInfo()
        check(lib.skv_context_get_info(self._handle, ctypes.byref(info)))
        return from_struct(ContextInfo, info)

    def sentences(self, first: int = 0) -> np.ndarray:
        """uint32: the blocks of each closed sentence from `first` on."""
        pieces = []
        while True:
            blocks = np.empty(4096, dtype=np.uint32)
            count = ctypes.c_uint32()
            check(lib.skv_context_get_sentences(self._handle, first, blocks.ctypes.data,
                                                blocks.size, ctypes.byref(count)))
            pieces.append(blocks[:count.value])
            first += count.value
            if count.value < blocks.size:
                return np.concatenate(pieces)

    def match(self, adopt: bool = False) -> MatchResult:
        """The longest prefix of the context that is stored. adopt: take its sentence boundaries."""
        result = _abi.MatchResult()
        check(lib.skv_match(self._handle, int(adopt), ctypes.byref(result)))
        return from_struct(MatchResult, result, outcome=Match(result.outcome))

    def _outcomes(self, function: Any, first: int, count: int, *more: int) -> np.ndarray:
        outcomes = np.empty(count, dtype=np.uint8)
        check(function(self._handle, first, count, *more, outcomes.ctypes.data))
        return outcomes

    def put_reserve(self, first: int, count: int) -> np.ndarray:
        """Makes room for sentences [first, first + count). uint8 [count] of Put, as of the others."""
        return self._outcomes(lib.skv_put_reserve, first, count)

    def put_write(self, first_sentence: int, sentence_count: int, first_layer: int,
                  layer_count: int, source: StridedKv, wait: bool = True) -> Optional[Ticket]:
        """Copies layers of reserved sentences. wait=False: at once a Ticket; leave the source alone
        until it is done."""
        strided = source._as_struct()
        options = _abi.PutWriteOptions(
            first_sentence=first_sentence, sentence_count=sentence_count, first_layer=first_layer,
            layer_count=layer_count, source=ctypes.pointer(strided))
        if wait:
            check(lib.skv_put_write(self._handle, ctypes.byref(options), None))
            return None
        ticket = ctypes.c_uint64()
        check(lib.skv_put_write(self._handle, ctypes.byref(options), ctypes.byref(ticket)))
        return Ticket(self.model.session, ticket.value, loads=False)

    def put_commit(self, first: int, count: int, derive_vectors: bool = True) -> np.ndarray:
        """Makes them visible, with vectors derived from their keys."""
        return self._outcomes(lib.skv_put_commit, first, count, int(derive_vectors))

    def put_cancel(self, first: int, count: int) -> np.ndarray:
        return self._outcomes(lib.skv_put_cancel, first, count)

    def vectors_derive(self, first: int, count: int) -> np.ndarray:
        return self._outcomes(lib.skv_vectors_derive, first, count)

    def vectors_put(self, first: int, count: int, memory: Memory, offset: int,
                    nbytes: int) -> np.ndarray:
        """Vectors made elsewhere, one blob per sentence back to back at `offset` of `memory`."""
        outcomes = np.empty(count, dtype=np.uint8)
        options = _abi.VectorsPutOptions(first_sentence=first, sentence_count=count,
                                         memory=memory._handle, offset=offset, bytes=nbytes)
        check(lib.skv_vectors_put(self._handle, ctypes.byref(options), outcomes.ctypes.data))
        return outcomes

    def window(self, budget_blocks: int, *, sink_blocks: int = 0, recent_blocks: int = 0,
               resident_blocks: int = 0, cut: Cut = Cut.BLOCK, coarse_blocks: int = 0,
               rank_in: RankIn = RankIn.AUTO, mass: float = 0.0,
               head_budgets: Optional[Sequence[int]] = None, query_cosine: float = 0.0,
               scores: Scores = Scores.SHARES) -> Window:
        """A working set of so many blocks per (layer, kv head). resident_blocks 0: 2.5 times the sum
        of the others. rank_in AUTO: in the client where windows read host memory in place. mass
        above 0: no more ranked blocks than bring the estimated share of attention to that.
        head_budgets: ranked blocks of each (layer, kv head), layer by layer, at most
        budget_blocks. query_cosine above 0: on-change mode, a (layer, kv head) is not ranked while
        its queries are that close to those that it was ranked by and no sentence was added. scores
        RELATIVE: the same blocks, found with less reading, and no unread_mass."""
        budgets = as_u32([] if head_budgets is None else head_budgets, "head_budgets")
        options = _abi.WindowOptions(
            budget_blocks=budget_blocks, sink_blocks=sink_blocks, recent_blocks=recent_blocks,
            resident_blocks=resident_blocks, cut=int(cut), coarse_blocks=coarse_blocks,
            rank_in=int(rank_in), mass=mass, head_budget_count=budgets.size,
            head_budgets=budgets.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
            if budgets.size else None, query_cosine=query_cosine, scores=int(scores))
        handle = ctypes.c_void_p()
        check(lib.skv_window_open(self._handle, ctypes.byref(options), ctypes.byref(handle)))
        return Window(self, handle)

    def load(self, first_sentence: int, sentence_count: int, first_layer: int, layer_count: int,
             destination: StridedKv, deadline: float = 0.0,
             wait: bool = True) -> Union[LoadResult, Ticket]:
        """Whole sentences back, copied to `destination`. deadline (seconds): for bytes from NVMe."""
        strided = destination._as_struct()
        options = self._range(first_sentence, sentence_count, first_layer, layer_count, deadline)
        options.destination = ctypes.pointer(strided)
        if not wait:
            ticket = ctypes.c_uint64()
            check(lib.skv_load(self._handle, ctypes.byref(options), ctypes.byref(ticket), None))
            return Ticket(self.model.session, ticket.value, loads=True)
        result = _abi.LoadResult()
        check(lib.skv_load(self._handle, ctypes.byref(options), None, ctypes.byref(result)))
        return LoadResult(result.host_chunks, result.nvme_chunks, result.bytes)

    def load_in_place(self, first_sentence: int, sentence_count: int, first_layer: int,
                      layer_count: int, deadline: float = 0.0) -> Lease:
        """The same without a copy: read where the bodies lie, until release."""
        options = self._range(first_sentence, sentence_count, first_layer, layer_count, deadline)
        handle = ctypes.c_void_p()
        result = _abi.LoadResult()
        check(lib.skv_load_in_place(self._handle, ctypes.byref(options), ctypes.byref(handle),
                                    ctypes.byref(result)))
        return Lease(self, handle,
                     LoadResult(result.host_chunks, result.nvme_chunks, result.bytes))

    @staticmethod
    def _range(first_sentence: int, sentence_count: int, first_layer: int, layer_count: int,
               deadline: float) -> _abi.LoadOptions:
        return _abi.LoadOptions(first_sentence=first_sentence, sentence_count=sentence_count,
                                first_layer=first_layer, layer_count=layer_count,
                                deadline_ms=milliseconds(deadline))

    def drop(self, first_sentence: int = 0) -> Tuple[int, int]:
        """Drops stored sentences from there on, leaf first: (dropped, kept)."""
        dropped = ctypes.c_uint32()
        kept = ctypes.c_uint32()
        check(lib.skv_drop(self._handle, first_sentence, ctypes.byref(dropped),
                           ctypes.byref(kept)))
        return dropped.value, kept.value
