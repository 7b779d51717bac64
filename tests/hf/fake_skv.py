"""An in-memory skvd with the Python API of `skv`, for tests of skv.hf without daemon and library.

It keeps whole bodies in dictionaries and ranks by the true attention mass of the query. What the
engine can observe is as in the real thing: sentence cut, outcomes, tables, slots by recency, misses.
install() puts it into sys.modules as `skv`, with the real package's folder as its path, so that
`import skv.hf` finds the engine.
"""
from __future__ import annotations

import enum
import hashlib
import pathlib
import sys
import types
from collections import OrderedDict

import numpy as np

BLOCK = 8


class SkvError(Exception): ...
class InvalidArgumentError(SkvError, ValueError): ...
class BusyError(SkvError): ...
class StaleError(SkvError): ...
class DisconnectedError(SkvError): ...
class UnknownHandleError(SkvError): ...
class NotFoundError(SkvError): ...
class CorruptError(SkvError): ...
class NoSpaceError(SkvError): ...
class TimeoutError(SkvError): ...  # noqa: A001


class Dtype(enum.IntEnum):
    FP32 = 0
    FP16 = 1
    BF16 = 2


class RotaryPairing(enum.IntEnum):
    HALF_SPLIT = 1


class Put(enum.IntEnum):
    RESERVED, EXISTS, PENDING, FULL, COMMITTED, INCOMPLETE, CANCELLED, NOT_RESERVED = range(8)


class Match(enum.IntEnum):
    MISS, PENDING, HIT = range(3)


class Cold(enum.IntEnum):
    PARTIAL, WAIT = range(2)


class Record(types.SimpleNamespace): ...


class RotaryTable(Record):
    def __init__(self, dims, frequencies, **kwargs):
        super().__init__(dims=dims, **kwargs)


class Layer(Record):
    def __init__(self, kv_heads, queries_per_kv_head, k_dim, v_dim=None, **kwargs):
        super().__init__(kv_heads=kv_heads, groups=queries_per_kv_head, dim=k_dim, **kwargs)


class ModelDescriptor(Record):
    def __init__(self, weights_id, dtype, layers, **kwargs):
        super().__init__(weights_id=weights_id, dtype=dtype, layers=layers, **kwargs)


class StridedKv(Record):
    def __init__(self, memory, k_offset, v_offset, layer_stride, head_stride, token_stride,
                 first_token=0):
        super().__init__(memory=memory, k_offset=k_offset, v_offset=v_offset,
                         layer_stride=layer_stride, head_stride=head_stride,
                         token_stride=token_stride, first_token=first_token)


class Daemon:
    """What engines share: bodies by key. `fail`: called with the name of each call, may raise."""

    def __init__(self):
        self.bodies = {}      # key -> [layers][K|V][heads][tokens][bytes of a token]
        self.pending = set()
        self.paths = {}       # (fingerprint, digest at boundary) -> [(next digest, blocks, key)]
        self.fail = lambda call: None
        self.hide = lambda block: False  # blocks that are not there in time (misses)


class Session:
    def __init__(self, daemon):
        self.daemon = daemon

    def memory(self, nbytes):
        return Memory(nbytes)

    def model(self, descriptor):
        return Model(self.daemon, descriptor)

    def close(self): ...


class Memory:
    """A shared anonymous mapping: madvise(MADV_REMOVE) works on it as on a memfd."""

    def __init__(self, nbytes):
        import mmap
        self.map = mmap.mmap(-1, nbytes)
        self.nbytes = nbytes
        self.buffer = memoryview(self.map)
        self.bytes = np.frombuffer(self.buffer, dtype=np.uint8)
        self.address = self.bytes.ctypes.data

    def close(self): ...


class Model:
    def __init__(self, daemon, descriptor):
        self.daemon, self.descriptor = daemon, descriptor
        layers = len(descriptor.layers)
        self.info = Record(layer_count=layers, chunk_count=-(-layers // 2))
        self.key = f"{descriptor.weights_id} {descriptor.dtype}".encode()

    def context(self):
        return Context(self)

    def close(self): ...


class Ticket:
    def __init__(self, result=None, error=None):
        self.result, self.error = result, error

    def wait(self, timeout=None):
        if self.error:
            raise self.error
        return self.result


class Context:
    def __init__(self, model):
        self.model, self.daemon = model, model.daemon
        self.tokens, self.extras, self.ends, self.final_to = [], [], [], 0
        self.blocks, self.own = [], {}  # closed sentences; index -> body of a reservation

    # -- identity and cut

    def digest(self, position):
        parts = [self.model.key]
        inherited = bytes(32)
        for at in range(0, position, BLOCK):
            given = [extra for extra in self.extras[at:at + BLOCK] if extra != bytes(32)]
            inherited = given[0] if given else inherited
            parts.append(np.asarray(self.tokens[at:at + BLOCK], np.uint32).tobytes() + inherited)
        return hashlib.sha256(b"|".join(parts)).digest()

    def stops(self):
        return np.cumsum(np.asarray([0] + self.blocks, dtype=np.int64)) * BLOCK

    def cut(self):
        while True:
            start = int(self.stops()[-1])
            for edge in range(start + 32, start + 65, BLOCK):
                if edge + BLOCK // 2 > min(len(self.tokens), self.final_to) and edge < start + 64:
                    return
                if edge > len(self.tokens):
                    return
                if edge == start + 64 or any(edge - 4 < end <= edge + 4 for end in self.ends):
                    self.blocks.append((edge - start) // BLOCK)
                    break

    def append(self, tokens, ends=(), ends_final_to=0, extra=None, first_position=None):
        self.daemon.fail("append")
        assert first_position in (None, len(self.tokens))
        ends = [int(end) for end in ends]
        assert ends == sorted(ends) and all(end > self.final_to for end in ends), (ends, self.final_to)
        self.tokens += [int(token) for token in tokens]
        self.extras += [extra or bytes(32)] * len(tokens)
        self.ends += ends
        assert ends_final_to <= len(self.tokens) and ends_final_to >= self.final_to
        self.final_to = ends_final_to
        self.cut()

    def sentences(self, first=0):
        return np.asarray(self.blocks[first:], dtype=np.uint32)

    @property
    def info(self):
        return Record(token_count=len(self.tokens), sentence_count=len(self.blocks))

    def key(self, index):
        return self.digest(int(self.stops()[index + 1])), int(self.stops()[index])

    def match(self, adopt=False):
        at, blocks = 0, []
        while True:
            found = [n for n in range(8, 3, -1)
                     if at + n * BLOCK <= len(self.tokens)
                     and (self.digest(at + n * BLOCK), at) in self.daemon.bodies]
            if not found:
                break
            blocks.append(found[0])
            at += found[0] * BLOCK
        if adopt:
            self.blocks = blocks
            self.cut()
        return Record(outcome=Match.HIT if at else Match.MISS, hit_tokens=at, pending_tokens=at,
                      host_tokens=at, nvme_tokens=0)

    # -- put and load

    def put_reserve(self, first, count):
        self.daemon.fail("put_reserve")
        outcomes = []
        for index in range(first, first + count):
            key = self.key(index)
            if key in self.daemon.bodies:
                outcomes.append(Put.EXISTS)
            elif key in self.daemon.pending:
                outcomes.append(Put.PENDING)
            else:
                self.daemon.pending.add(key)
                self.own[index] = {}
                outcomes.append(Put.RESERVED)
        return np.asarray(outcomes, dtype=np.uint8)

    def rows(self, kv, layer_count, first_token, tokens):
        shape = (layer_count, self.model.descriptor.layers[0].kv_heads, tokens, kv.token_stride)
        strides = (kv.layer_stride, kv.head_stride, kv.token_stride, 1)
        skip = (first_token - kv.first_token) * kv.token_stride
        return [np.lib.stride_tricks.as_strided(kv.memory.bytes[at + skip:], shape, strides)
                for at in (kv.k_offset, kv.v_offset)]

    def put_write(self, first, count, first_layer, layer_count, source, wait=True):
        self.daemon.fail("put_write")
        for index in range(first, first + count):
            start, stop = self.stops()[index:index + 2]
            k, v = self.rows(source, layer_count, int(start), int(stop - start))
            for layer in range(layer_count):
                self.own[index][first_layer + layer] = np.stack([k[layer], v[layer]])
        return None if wait else Ticket()

    def put_commit(self, first, count, derive_vectors=True):
        self.daemon.fail("put_commit")
        outcomes = []
        for index in range(first, first + count):
            layers = self.own.pop(index)
            self.daemon.pending.discard(self.key(index))
            if len(layers) != self.model.info.layer_count:
                outcomes.append(Put.INCOMPLETE)
                continue
            self.daemon.bodies[self.key(index)] = np.stack([layers[i] for i in range(len(layers))])
            outcomes.append(Put.COMMITTED)
        return np.asarray(outcomes, dtype=np.uint8)

    def load(self, first, count, first_layer, layer_count, destination, deadline=0.0, wait=True):
        try:
            self.daemon.fail("load")
            nbytes = 0
            for index in range(first, first + count):
                if self.key(index) not in self.daemon.bodies:
                    raise NotFoundError(f"sentence {index}")
                body = self.daemon.bodies[self.key(index)][first_layer:first_layer + layer_count]
                start, stop = self.stops()[index:index + 2]
                k, v = self.rows(destination, layer_count, int(start), int(stop - start))
                k[:], v[:] = body[:, 0], body[:, 1]
                nbytes += body.nbytes
        except SkvError as error:
            if wait:
                raise
            return Ticket(error=error)
        result = Record(nbytes=nbytes, host_chunks=count, nvme_chunks=0)
        return result if wait else Ticket(result)

    def window(self, budget, sink_blocks=0, recent_blocks=0, resident_blocks=0, query_cosine=0.0):
        return Window(self, budget, sink_blocks, recent_blocks, resident_blocks)

    def close(self): ...


class Window:
    def __init__(self, context, budget, sinks, recents, resident):
        self.context = context
        self.budget, self.sinks, self.recents, self.resident = budget, sinks, recents, resident
        layer = context.model.descriptor.layers[0]
        self.heads, self.groups, self.dim = layer.kv_heads, layer.groups, layer.dim
        self.dtype = {0: np.float32, 1: np.float16, 2: np.uint16}[int(context.model.descriptor.dtype)]
        self.slot_unit_bytes = 2 * BLOCK * self.dim * np.dtype(self.dtype).itemsize
        self.layers = context.model.info.layer_count
        self.slots = np.zeros(self.layers * self.heads * resident * self.slot_unit_bytes, np.uint8)
        self.map = {}      # (layer, head) -> {block: slot}, oldest first
        self.tables, self.version, self.done = {}, 0, 0
        self.slots_in_host = False
        self.asked = []    # (verb, layer)

    def floats(self, raw):
        values = np.ascontiguousarray(raw).view(self.dtype)
        if self.dtype == np.uint16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)

    def guess(self, query, first_layer=0, layer_count=0, cold=None):
        assert layer_count == 1 and query.dtype == np.float32
        self.asked.append(("guess", first_layer))

    def confirm(self, query, first_layer=0, layer_count=0, cold=None, deadline=0.0, timeout=None):
        self.asked.append(("confirm", first_layer))
        return self._prefetch(query, first_layer, layer_count)

    def prefetch(self, query, first_layer=0, layer_count=0, cold=None, deadline=0.0, timeout=None):
        self.asked.append(("prefetch", first_layer))
        return self._prefetch(query, first_layer, layer_count)

    def _prefetch(self, query, first_layer, layer_count):
        self.context.daemon.fail("prefetch")
        assert layer_count == 1 and query.dtype == np.float32
        context, bodies = self.context, []
        for index in range(len(context.blocks)):
            body = context.daemon.bodies.get(context.key(index))
            if body is None:
                break
            bodies.append(body[first_layer])
        known = len(bodies)
        covered = int(context.stops()[known])
        sentence_of = np.repeat(np.arange(known), context.blocks[:known])
        row_bytes = self.dim * np.dtype(self.dtype).itemsize
        bodies.append(np.zeros((2, self.heads, 0, row_bytes), np.uint8))
        kv = np.concatenate(bodies, axis=2)
        n = covered // BLOCK
        moved = hits = misses = 0
        indptr, columns = [0], {"slot": [], "block": [], "sentence": [], "score": []}
        mass_read = 0.0
        for head in range(self.heads):
            keys = self.floats(kv[0, head])
            q = query.reshape(self.heads, self.groups, self.dim)[head]
            logits = q @ keys.T * self.dim ** -0.5
            weights = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-1e9))
            mass = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
            mass = mass.reshape(n, BLOCK).sum(axis=1)
            fixed = set(range(min(self.sinks, n))) | set(range(max(n - self.recents, 0), n))
            ranked = [b for b in np.argsort(-mass, kind="stable") if b not in fixed][:self.budget]
            chosen = sorted(fixed | {int(b) for b in ranked})
            there = [b for b in chosen if not context.daemon.hide(b)]
            misses += len(chosen) - len(there)
            resident = self.map.setdefault((first_layer, head), OrderedDict())
            for b in there:
                if b in resident:
                    resident.move_to_end(b)
                    hits += 1
            for b in there:
                if b not in resident:
                    base = (first_layer * self.heads + head) * self.resident
                    if len(resident) < self.resident:
                        slot = base + len(resident)
                    else:
                        slot = resident.popitem(last=False)[1]
                    resident[b] = slot
                    at = slot * self.slot_unit_bytes
                    block = np.concatenate([kv[half, head, b * BLOCK:(b + 1) * BLOCK].reshape(-1)
                                            for half in (0, 1)])
                    self.slots[at:at + self.slot_unit_bytes] = block
                    moved += 1
            columns["slot"] += [resident[b] for b in there]
            columns["block"] += there
            columns["sentence"] += [int(sentence_of[b]) for b in there]
            columns["score"] += [float(mass[b]) for b in there]
            mass_read += float(mass[there].sum()) / self.heads
            indptr.append(len(columns["slot"]))
        self.version += 1
        arrays = {name: np.asarray(values, np.float32 if name == "score" else np.uint32)
                  for name, values in columns.items()}
        self.tables[first_layer] = Record(version=self.version, covered_to=covered,
                                          unread_mass=1 - mass_read,
                                          indptr=np.asarray(indptr, np.uint32), **arrays)
        return Record(version=self.version, covered_to=covered,
                      bytes_moved=moved * self.slot_unit_bytes, hits_device=hits, hits_host=moved,
                      hits_nvme=0, misses=misses, read_blocks=indptr[-1], ranked_heads=self.heads,
                      unread_mass=1 - mass_read, daemon_us=0)

    def table(self, layer):
        return self.tables[layer]

    def readers_done(self, version):
        assert version > self.done
        self.done = version

    def close(self): ...


def install():
    """This module as `skv`; the package's own __init__ (and libskv) stay out of it."""
    module = sys.modules[__name__]
    root = pathlib.Path(__file__).resolve().parents[2]
    module.__path__ = [str(root / "client" / "python" / "skv")]
    sys.modules["skv"] = module
    return module
