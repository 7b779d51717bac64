"""A transformers Cache whose KV lives in skvd."""
from __future__ import annotations

import os
import time
import warnings
from typing import Optional, Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

import skv

from .attention import LAYER_ATTRIBUTE
from .guess import Guesser
from .load_buffer import LoadBuffer
from .read import Read, WindowPlan
from .record import Step, Steps
from .sentences import SentenceEnds
from .storage import Geometry, KvMemory

_BUSY_TRIES = 50
_REOPEN_TRIES = 3
_RESERVE_MAX = 512     # sentences per message
_RETRY_STEPS = 16      # steps between attempts to store what another session had pending
_GROWTH_MAX = 1.25     # a window planned as a share is opened anew when the context outgrew it so far


class LostKv(Exception):
    """KV that this cache relied on is not stored any more: compute it again (Conversation does)."""


class SentenceLayer(CacheLayerMixin):
    """One layer of a SentenceCache. transformers calls update(), the attention function the rest."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: SentenceCache, index: int) -> None:
        super().__init__()
        self._cache = cache
        self._index = index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor,
                            value_states: Optional[torch.Tensor] = None) -> None:
        pass

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor,
               *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        self._cache.write_layer(self._index, key_states, value_states)
        setattr(key_states, LAYER_ATTRIBUTE, self)
        return key_states, value_states

    @property
    def decodes(self) -> bool:
        return self._cache.decodes

    def decode_kv(self, query: torch.Tensor):
        return self._cache.decode_kv(self._index, query)

    def dense_kv(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._cache.dense_kv(self._index)

    def get_seq_length(self, *args) -> int:
        return self._cache.length

    def get_mask_sizes(self, query_length, *args) -> tuple[int, int]:
        if isinstance(query_length, torch.Tensor):  # before 5.20: the positions themselves
            query_length = query_length.shape[0]
        return self._cache.length + query_length, 0

    def get_max_length(self) -> int:
        return self._cache.capacity

    get_max_cache_shape = get_max_length  # its name in earlier 5.x

    def reset(self) -> None:
        raise NotImplementedError("skv: open another conversation instead")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise NotImplementedError("skv: beams are not supported (batch 1)")


class SentenceCache(Cache):
    """The KV of one conversation: the newest tokens in the engine's own memory, the rest in skvd.

    A forward pass is begin(), then per layer write_layer() and decode_kv() or dense_kv(), then
    end(). Several tokens at once are *dense*: they attend everything before them, reading stored
    bodies back layer group by layer group into a buffer that keeps nothing. One token *decodes*
    (unless dense_next was set): it reads the window that skvd ranked for its query, and the open
    tail from the engine's memory.

      [0, own_from)        stored; the engine has no copy
      [own_from, length)   in `own`, on its way to skvd or not closed yet

    Identity   the KV of a token that read less than everything is not the exact KV: from its block
               on, the context carries a nonce as `extra`, so it is never taken for exact by anyone.
    Thread     the engine's.
    Owns       context, window, `own` memory, until close(). Borrows session, model and the buffer.
    """

    def __init__(self, owner: object, session: skv.Session, model: skv.Model, geometry: Geometry, *,
                 capacity: int, read: Read, ends: SentenceEnds, load_buffer: LoadBuffer,
                 guesser: Optional[Guesser] = None, trace: bool = False) -> None:
        super().__init__(layers=[SentenceLayer(self, i) for i in range(geometry.layers)])
        self.owner = owner     # the Engine whose hooks drive this cache
        self.geometry = geometry
        self.read = read
        self.trace = trace
        self.steps = Steps()
        self.length = 0        # tokens whose KV exists
        self.ids: list[int] = []  # all tokens of the context, also those yet to be computed
        self.exact = True      # every KV of the context was computed reading everything
        self.dense_next = False  # the next pass is dense even if it has one token
        self._session = session
        self._load_buffer = load_buffer
        self._guesser = guesser  # None: no guesses
        self._guessed: Optional[int] = None  # the layer whose moves were begun
        self._ends = ends
        self._extra: Optional[bytes] = None
        self._context = model.context()
        self._own = KvMemory(session, geometry, geometry.layers, capacity)
        self.capacity = self._own.capacity
        self._own_from = 0
        self._window: Optional[skv.Window] = None
        self._plan: Optional[WindowPlan] = None
        self._slots: Optional[torch.Tensor] = None
        self._gathered: Optional[torch.Tensor] = None
        self._layers_per_group = -(-geometry.layers // model.info.chunk_count)
        # Sentences of the context: where each ends (tokens), how many are stored for sure, from
        # which index on nothing was put yet, and what could not be put when its turn came.
        self._sentence_stops = np.zeros(0, dtype=np.int64)
        self._put_next = 0
        self._retry: list[int] = []
        self._committed = np.zeros(0, dtype=bool)
        self._seen: Optional[np.ndarray] = None
        self._step: Optional[Step] = None
        self._tickets: list = []
        self._loaded_groups: dict[int, object] = {}  # group -> its load, None once it was awaited

    # ---- what the context knows ------------------------------------------------------------------

    def announce(self, ids: Sequence[int], text: Optional[str] = None, offsets=None) -> None:
        """Tokens that are going to be computed (or were): the daemon cuts and names them."""
        if len(self.ids) + len(ids) > self.capacity:
            raise ValueError(f"skv: {len(self.ids) + len(ids)} tokens do not fit the conversation's "
                             f"{self.capacity}; open it with a larger max_tokens")
        ends, final_to = self._ends.feed(ids, text, offsets)
        tokens, ends = np.asarray(ids, dtype=np.uint32), np.asarray(ends, dtype=np.uint32)
        self._again(lambda: self._context.append(tokens, ends=ends, ends_final_to=final_to,
                                                 extra=self._extra, first_position=len(self.ids)))
        self.ids += [int(token) for token in ids]
        self._refresh_sentences()

    def adopt(self) -> skv.MatchResult:
        """Takes over what is stored of the announced tokens; the last one is computed all the same,
        for its logits."""
        if self.length:
            raise ValueError("skv: a prefix can be adopted before the first token is computed")
        match = self._again(lambda: self._context.match(adopt=True))
        self._refresh_sentences()
        if match.hit_tokens:
            self._own_from = match.hit_tokens
            self._put_next = int(np.searchsorted(self._sentence_stops, match.hit_tokens, "right"))
            self._committed[:self._put_next] = True
            self.length = min(match.hit_tokens, len(self.ids) - 1)
        return match

    def _refresh_sentences(self) -> None:
        blocks = self._context.sentences().astype(np.int64)
        self._sentence_stops = np.cumsum(blocks) * self.geometry.block_tokens
        grown = np.zeros(len(blocks), dtype=bool)
        kept = min(len(blocks), len(self._committed))
        grown[:kept] = self._committed[:kept]
        self._committed = grown

    @property
    def sentence_stops(self) -> np.ndarray:
        """Where each closed sentence ends, in tokens."""
        return self._sentence_stops

    @property
    def own_tokens(self) -> int:
        """Tokens whose KV the engine itself holds."""
        return max(self.length - self._own_from, 0)

    def stored_to(self) -> int:
        """Tokens of the longest prefix of sentences that this engine knows to be stored."""
        gaps = np.flatnonzero(~self._committed)
        stored = int(gaps[0]) if len(gaps) else len(self._committed)
        return int(self._sentence_stops[stored - 1]) if stored else 0

    # ---- one forward pass ------------------------------------------------------------------------

    def begin(self, ids: Sequence[int]) -> None:
        self._abandon()
        start, count = self.length, len(ids)
        known = self.ids[start:start + count]
        if list(ids[:len(known)]) != known:
            raise ValueError(f"skv: tokens at {start} differ from what was announced")
        if start + count > self.capacity:
            raise ValueError(f"skv: the conversation's {self.capacity} tokens are used up")
        # What was announced has the identity of exact KV, so it is computed exactly.
        dense = count > 1 or self.dense_next or bool(known)
        self.dense_next = False
        self._step = Step("dense" if dense else "decode", start, count)
        self._started = time.perf_counter()
        self._new_ids = list(ids[len(known):])
        self._covered: Optional[int] = None
        self._guessed = None
        self._dense_fallback = False
        if self._step.kind == "dense":
            if self._new_ids:
                self.announce(self._new_ids)
                self._new_ids = []
            self._puts = self._reserve(start + count)
        else:
            self._puts = []

    @property
    def decodes(self) -> bool:
        """Of the pass that runs."""
        return self._step.kind == "decode"

    def layer_begins(self, layer: int, hidden: torch.Tensor, rotary: tuple) -> None:
        """`layer` starts from `hidden` [1, tokens, width], at positions of these cos and sin."""
        if self._guesser is not None and self._step.kind == "decode":
            self._guesser.layer_begins(layer, hidden, rotary)

    def write_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """K and V [1, kv_heads, tokens, dim] of this pass, into the memory that skvd reads too."""
        step = self._step
        if step is None:
            raise RuntimeError("skv: the model's forward hook did not run (was the model replaced?)")
        if keys.shape[0] != 1 or keys.shape[2] != step.tokens:
            raise ValueError(f"skv: batch 1 only, and all tokens of a pass at once; got {tuple(keys.shape)}")
        at = slice(step.position, step.position + step.tokens)
        self._own.k(layer)[:, at] = keys[0]
        self._own.v(layer)[:, at] = values[0]
        for first, count in self._puts:
            self._tickets.append(self._again(lambda: self._context.put_write(
                first, count, layer, 1, self._own.strided(layer), wait=False)))

    def end(self) -> None:
        step = self._step
        if self._new_ids or step.kind == "decode":
            if not step.exact and self._extra is None:
                self._extra = os.urandom(32)
                self.exact = False
            if self._new_ids:
                self.announce(self._new_ids)
        elif not step.exact:
            raise AssertionError("a dense pass reads everything")
        self.length = step.position + step.tokens
        self._step = None
        if step.kind == "dense":
            self._wait_writes()
            self._commit(self._puts)
        self._put_closed()
        if self._covered is not None:
            step.covered_to = self._covered
            self._release(self._covered)
        self._load_buffer.give_back()
        step.seconds = time.perf_counter() - self._started
        step.resident_blocks = self._resident()
        if self._guesser is not None and step.kind == "decode" and self._moves:
            self._guesser.step(step.seconds)
        self.steps.add(step)

    def _abandon(self) -> None:
        """An earlier pass that raised left operations behind: they end before memory is reused."""
        self._tickets += [ticket for ticket in self._loaded_groups.values() if ticket is not None]
        self._loaded_groups = {}
        self._wait_writes()
        self._step = None

    def _wait_writes(self) -> None:
        tickets, self._tickets = self._tickets, []
        for ticket in tickets:
            try:
                ticket.wait()
            except skv.SkvError:
                pass  # a miss: its commit will say that something was not written

    def _again(self, call):
        """A call that a restart of the daemon may hit: repeated on the new connection."""
        for _ in range(_REOPEN_TRIES):
            try:
                return call()
            except skv.DisconnectedError:
                continue
            except skv.StaleError:
                self._reconnected()
        return call()

    # ---- storing ---------------------------------------------------------------------------------

    def _reserve(self, upto: int) -> list[tuple[int, int]]:
        """Room for the sentences that are complete at `upto` tokens; runs (first, count) to write."""
        stop = int(np.searchsorted(self._sentence_stops, upto, "right"))
        first, self._put_next = self._put_next, max(self._put_next, stop)
        return self._reserve_range(first, stop)

    def _reserve_range(self, first: int, stop: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for at in range(first, stop, _RESERVE_MAX):
            count = min(_RESERVE_MAX, stop - at)
            try:
                outcomes = self._again(lambda: self._context.put_reserve(at, count))
            except skv.NoSpaceError:
                outcomes = [skv.Put.FULL] * count
            for index, outcome in enumerate(outcomes, at):
                if outcome == skv.Put.EXISTS:
                    self._committed[index] = True
                elif outcome == skv.Put.RESERVED:
                    if runs and sum(runs[-1]) == index:
                        runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                    else:
                        runs.append((index, 1))
                else:  # another session is putting it, or no room: it stays in `own`, tried again
                    self._retry.append(index)
        return runs

    def _commit(self, runs: list[tuple[int, int]]) -> None:
        for first, count in runs:
            outcomes = self._again(lambda: self._context.put_commit(first, count))
            for index, outcome in enumerate(outcomes, first):
                if outcome in (skv.Put.COMMITTED, skv.Put.EXISTS):
                    self._committed[index] = True
                    continue
                self._retry.append(index)
                if outcome == skv.Put.INCOMPLETE:
                    self._again(lambda: self._context.put_cancel(index, 1))

    def _put_closed(self) -> None:
        """Stores what closed since: sentences of generated tokens, and what had to wait."""
        runs = self._reserve(self.length)
        if self._retry and (runs or len(self.steps.steps) % _RETRY_STEPS == 0):
            retry, self._retry = sorted(self._retry), []
            for index in retry:
                runs += self._reserve_range(index, index + 1)
        for first, count in runs:
            self._tickets.append(self._again(lambda: self._context.put_write(
                first, count, 0, self.geometry.layers, self._own.strided(0), wait=False)))
        self._wait_writes()
        self._commit(runs)

    def _release(self, covered: int) -> None:
        """A table that was read stands for [0, covered): the engine's copy of it goes."""
        covered = min(covered, self.stored_to(), self.length)
        if covered > self._own_from:
            self._own.give_back(self._own_from, covered)
            self._own_from = covered

    # ---- one token: its window -------------------------------------------------------------------

    def decode_kv(self, layer: int, query: torch.Tensor):
        """K and V [kv_heads, tokens, dim] that this token reads in `layer`, its own included, and
        which of them are padding ([kv_heads, tokens], None if nothing is)."""
        now = self._step.position + 1
        if self.stored_to() == 0 and self._own_from == 0:
            self._covered = 0
            self._step.tail_tokens = now
            return self._own.k(layer)[:, :now], self._own.v(layer)[:, :now], None
        result = None if self._dense_fallback else self._prefetch(layer, query)
        if result is None or result.covered_to < self._own_from:
            # The window does not stand for what the engine gave away: vectors are missing, or the
            # daemon forgot. Read everything instead, which is exact; what is lost raises.
            self._dense_fallback = True
            self._covered = 0
            return *self.dense_kv(layer), None
        self._guess_behind(layer, query)
        table = self._window.table(layer)
        keys, values, absent = self._gather(layer, table, now)
        self._window.readers_done(table.version)
        return keys, values, absent

    def _prefetch(self, layer: int, query: torch.Tensor):
        vectors = query[0, :, 0].to(torch.float32).contiguous().numpy()
        busy = reopened = 0
        while True:
            window = self._open_window()
            began = time.perf_counter()
            ask = window.confirm if self._guessed == layer else window.prefetch
            try:
                result = ask(vectors, first_layer=layer, layer_count=1, cold=self.read.cold,
                             deadline=self.read.deadline)
            except skv.BusyError:
                busy += 1
                if busy > _BUSY_TRIES:
                    raise
                time.sleep(0.001)
                continue
            except (skv.StaleError, skv.DisconnectedError, skv.UnknownHandleError):
                reopened += 1
                self.close_window()
                if reopened > _REOPEN_TRIES:
                    raise
                self._reconnected()
                continue
            break
        step = self._step
        step.prefetch_us.append((time.perf_counter() - began) * 1e6)
        step.daemon_us += result.daemon_us
        step.hits_device += result.hits_device
        step.hits_host += result.hits_host
        step.hits_nvme += result.hits_nvme
        step.misses += result.misses
        step.bytes_moved += result.bytes_moved
        step.read_blocks += result.read_blocks
        step.ranked_heads += result.ranked_heads
        step.unread_mass += result.unread_mass / self.geometry.layers
        return result

    @property
    def _moves(self) -> bool:
        """Whether blocks are moved into slots of the window, rather than read where they lie."""
        return self._window is not None and not self._window.slots_in_host

    def _guess_behind(self, layer: int, query: torch.Tensor) -> None:
        """Begins the moves of the layer behind `layer`, while this one is attended. Not before: one
        window's prefetches are served in order."""
        if self._guesser is None or not self._moves or layer + 1 >= self.geometry.layers:
            return
        began = time.perf_counter()
        vectors = self._guesser.next_query(layer, query)
        if vectors is None:
            return
        try:
            self._window.guess(vectors, first_layer=layer + 1, layer_count=1, cold=self.read.cold)
        except (skv.BusyError, skv.StaleError, skv.DisconnectedError, skv.UnknownHandleError, skv.TimeoutError):
            return  # the prefetch that follows deals with it
        self._guessed = layer + 1
        self._step.guesses += 1
        self._step.guess_us += (time.perf_counter() - began) * 1e6

    def _reconnected(self) -> None:
        """Another daemon may know other boundaries, or less; indices are valid again after this."""
        self._context.info  # acknowledges
        stops = self._sentence_stops
        self._refresh_sentences()
        if len(stops) != len(self._sentence_stops) or (stops != self._sentence_stops).any():
            raise LostKv("the sentences changed while the daemon was away")

    def _gather(self, layer: int, table: skv.Table, now: int):
        geometry = self.geometry
        heads, block, dim = geometry.kv_heads, geometry.block_tokens, geometry.head_dim
        covered = table.covered_to
        tail = now - covered
        counts = np.diff(table.indptr.astype(np.int64))
        most = int(counts.max())
        slots = self._slot_view()
        rows = torch.from_numpy(table.slot.astype(np.int64))
        keys, values = self._read_buffers(most * block + max(tail, 0))
        bounds = table.indptr.tolist()
        for head in range(heads):
            of_head = rows[bounds[head]:bounds[head + 1]]
            n = len(of_head) * block
            torch.index_select(slots[:, 0], 0, of_head, out=keys[head, :n].view(-1, block * dim))
            torch.index_select(slots[:, 1], 0, of_head, out=values[head, :n].view(-1, block * dim))
            if n < most * block:  # this head reads less: zero rows, masked by the caller
                keys[head, n:most * block] = 0
                values[head, n:most * block] = 0
        if tail > 0:
            keys[:, most * block:] = self._own.k(layer)[:, covered:now]
            values[:, most * block:] = self._own.v(layer)[:, covered:now]
        absent = None
        if int(counts.min()) < most:
            absent = torch.arange(keys.shape[1])[None] >= torch.from_numpy(counts * block)[:, None]
            absent &= torch.arange(keys.shape[1])[None] < most * block
        step = self._step
        step.exact = step.exact and bool((counts * block == covered).all())
        step.tail_tokens = tail
        self._covered = covered if self._covered is None else min(self._covered, covered)
        if self.trace:
            self._trace(layer, table)
        return keys, values, absent

    def _read_buffers(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [kv_heads, tokens, dim] to gather into, good until the next layer. Kept, because
        fresh memory of this size costs more in page faults than the gathering does."""
        geometry = self.geometry
        if self._gathered is None or self._gathered.shape[2] < tokens:
            room = -(-tokens // 256) * 256
            self._gathered = torch.empty(2, geometry.kv_heads, room, geometry.head_dim,
                                         dtype=geometry.dtype)
        return self._gathered[0, :, :tokens], self._gathered[1, :, :tokens]

    def _slot_view(self) -> torch.Tensor:
        """[slots, 2 (K, V), block elements] over the window's slots. A slot's number counts
        slot_unit_bytes, of which a block may take several (host memory read in place): then the rows
        of the view overlap."""
        if self._slots is None:
            geometry = self.geometry
            with warnings.catch_warnings():
                # Read-only, and only read: torch has no word for that.
                warnings.simplefilter("ignore", UserWarning)
                raw = torch.frombuffer(self._window.slots, dtype=geometry.dtype)
            unit = self._window.slot_unit_bytes // geometry.dtype.itemsize
            half = geometry.block_elements // 2
            count = (len(raw) - geometry.block_elements) // unit + 1
            self._slots = raw.as_strided((count, 2, half), (unit, half, 1))
        return self._slots

    def _open_window(self) -> skv.Window:
        tokens = max(self.length, 1)
        if self._window is not None and not self.read.everything and self.read.blocks is None \
                and tokens > _GROWTH_MAX * self._plan.tokens:
            self.close_window()
        if self._window is None:
            plan = self.read.plan(tokens, self.capacity, self.geometry.block_tokens)
            self._window = self._context.window(plan.budget, sink_blocks=plan.sinks,
                                                recent_blocks=plan.recents,
                                                resident_blocks=plan.resident,
                                                query_cosine=self.read.on_change)
            self._plan = plan
            self._seen = None
        return self._window

    @property
    def plan(self) -> Optional[WindowPlan]:
        return self._plan

    def close_window(self) -> None:
        self._slots = None
        if self._window is not None:
            self._window.close()
            self._window = None

    def _trace(self, layer: int, table: skv.Table) -> None:
        geometry, step = self.geometry, self._step
        if step.read_sentences is None:
            step.read_sentences = np.zeros(len(self._sentence_stops), dtype=np.uint16)
        if self._seen is None:
            self._seen = np.zeros((geometry.layers, geometry.kv_heads,
                                   self.capacity // geometry.block_tokens), dtype=bool)
        for head in range(geometry.kv_heads):
            part = slice(table.indptr[head], table.indptr[head + 1])
            self._seen[layer, head, table.block[part]] = True
            step.read_sentences[np.unique(table.sentence[part])] += 1

    def _resident(self) -> float:
        if self._seen is None or self._plan is None:
            return 0.0
        return float(np.minimum(self._seen.sum(axis=2), self._plan.resident).mean())

    # ---- several tokens: everything --------------------------------------------------------------

    def dense_kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [kv_heads, tokens, dim] of all tokens up to the end of this pass."""
        now = self._step.position + self._step.tokens
        if self._own_from == 0:
            return self._own.k(layer)[:, :now], self._own.v(layer)[:, :now]
        group = layer // self._layers_per_group
        self._start_load(group)
        buffer = self._load_buffer.memory(group % 2)
        ticket = self._loaded_groups[group]
        if ticket is not None:
            self._loaded_groups[group] = None
            try:
                result = ticket.wait()
            except (skv.NotFoundError, skv.CorruptError, skv.DisconnectedError, skv.StaleError,
                    skv.TimeoutError) as error:
                raise LostKv(f"reading layers from {group * self._layers_per_group}: {error}") from error
            self._step.bytes_loaded += result.nbytes
            self._step.chunks_host += result.host_chunks
            self._step.chunks_nvme += result.nvme_chunks
            self._start_load(group + 1)  # the next group arrives while this one is attended
        inside = layer - group * self._layers_per_group
        keys, values = buffer.k(inside), buffer.v(inside)
        if self._own_from < now:  # behind what was loaded: the tail, from the engine's own memory
            at = slice(self._own_from, now)
            keys[:, at] = self._own.k(layer)[:, at]
            values[:, at] = self._own.v(layer)[:, at]
        return keys[:, :now], values[:, :now]

    def _start_load(self, group: int) -> None:
        first = group * self._layers_per_group
        if group in self._loaded_groups or first >= self.geometry.layers:
            return
        count = int(np.searchsorted(self._sentence_stops, self._own_from, "right"))
        layers = min(self._layers_per_group, self.geometry.layers - first)
        buffer = self._load_buffer.memory(group % 2)
        self._loaded_groups[group] = self._again(lambda: self._context.load(
            0, count, first, layers, buffer.strided(0), deadline=self.read.deadline, wait=False))

    def close(self) -> None:
        """Gives everything back; what is stored stays stored."""
        if self._own is None:
            return
        self._abandon()
        self.close_window()
        self._context.close()
        self._own.close()
        self._own = None
