"""The package skv against a real skvd: every verb, errors, threads, restarts."""
from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import unittest
from typing import Optional, Tuple

import numpy as np
import skv

from daemon import Daemon

LAYERS, HEADS, DIM, QUERIES, BLOCK = 3, 2, 32, 2, 8


def descriptor(name: str, dtype: skv.Dtype = skv.Dtype.FP32,
               queries: int = QUERIES) -> skv.ModelDescriptor:
    layer = skv.Layer(HEADS, queries, DIM, rotary_index=0)
    return skv.ModelDescriptor(name, dtype, [layer] * LAYERS,
                               rotary_tables=[skv.RotaryTable(DIM, np.ones(DIM // 2))])


class Engine:
    """A session with a model, a context, and K and V of its tokens in a registered memory."""

    def __init__(self, socket: str, name: str, tokens: int = 200, seed: int = 1,
                 dtype: skv.Dtype = skv.Dtype.FP32,
                 index: skv.IndexKind = skv.IndexKind.MEAN_SPREAD_RUNS,
                 queries: int = QUERIES) -> None:
        self.session = skv.Session(socket, client_name=name)
        self.queries = queries
        self.model = self.session.model(descriptor(name, dtype, queries))
        self.context = self.model.context(index)
        random = np.random.default_rng(seed)
        self.tokens = random.integers(0, 50_000, tokens)
        ends = np.arange(40, tokens + 1, 40)
        self.context.append(self.tokens, ends, ends_final_to=tokens)
        self.blocks = self.context.sentences()
        self.count = len(self.blocks)
        shape = (LAYERS, HEADS, tokens, DIM)
        values = random.standard_normal((2,) + shape).astype(np.float32)
        if dtype == skv.Dtype.BF16:
            stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        else:
            stored = values.astype(dtype.numpy)
        self.memory = self.session.memory(stored.nbytes)
        self.kv = self.memory.array(stored.shape, stored.dtype)
        self.kv[:] = stored
        self.source = skv.StridedKv.of(self.memory, self.kv[0], self.kv[1])

    def put(self, derive_vectors: bool = True) -> np.ndarray:
        self.context.put_reserve(0, self.count)
        self.context.put_write(0, self.count, 0, LAYERS, self.source)
        return self.context.put_commit(0, self.count, derive_vectors)

    def query(self, seed: int = 7) -> np.ndarray:
        random = np.random.default_rng(seed)
        return random.standard_normal((LAYERS, HEADS * self.queries, DIM)).astype(np.float32)

    def covered(self) -> int:
        return int(self.blocks.sum()) * BLOCK

    def check_window(self, test: unittest.TestCase, window: skv.Window, version: int) -> int:
        """Every entry of every table names a slot that holds the block it says."""
        entries = 0
        for layer in range(LAYERS):
            table = window.table(layer)
            test.assertEqual(table.version, version)
            test.assertEqual(table.covered_to, self.covered())
            test.assertEqual(len(table.slot), table.indptr[-1])
            for head in range(HEADS):
                mine = range(table.indptr[head], table.indptr[head + 1])
                test.assertEqual(sorted(table.block[mine]), list(table.block[mine]))
                for i in mine:
                    k, v = window.block(layer, int(table.slot[i]))
                    first = int(table.block[i]) * BLOCK
                    at = np.s_[layer, head, first:first + BLOCK]
                    np.testing.assert_array_equal(k, self.kv[0][at])
                    np.testing.assert_array_equal(v, self.kv[1][at])
                    entries += 1
        return entries


class DaemonTest(unittest.TestCase):
    device = "emulated"
    nvme = False
    daemon: Daemon

    @classmethod
    def setUpClass(cls) -> None:
        cls.daemon = Daemon(device=cls.device, nvme=cls.nvme).start()
        cls.addClassCleanup(cls.daemon.close)

    def engine(self, **options) -> Engine:
        engine = Engine(self.daemon.socket, self.id().rsplit(".", 1)[-1], **options)
        self.addCleanup(engine.session.close)
        return engine


class VerbsTest(DaemonTest):
    def test_a_document_from_put_to_window(self) -> None:
        socket = self.daemon.socket
        # [snippet:python]
        layer = skv.Layer(kv_heads=2, queries_per_kv_head=2, k_dim=32)
        rope = skv.RotaryTable(32, [1.0] * 16)
        with skv.Session(socket, client_name="readme") as session:
            model = session.model(skv.ModelDescriptor("my weights", skv.Dtype.FP32, [layer],
                                                      rotary_tables=[rope]))
            context = model.context()
            context.append(np.arange(200), ends=[40, 80, 120, 160, 200], ends_final_to=200)
            sentences = len(context.sentences())

            # K and V of all tokens, in memory that the daemon can copy from.
            memory = session.memory(2 * 2 * 200 * 32 * 4)
            k, v = memory.array((2, 1, 2, 200, 32), np.float32)  # [layer, kv head, token, dim]
            k[:], v[:] = np.random.standard_normal(k.shape), np.random.standard_normal(v.shape)
            context.put_reserve(0, sentences)
            context.put_write(0, sentences, 0, 1, skv.StridedKv.of(memory, k, v))
            context.put_commit(0, sentences)

            # What matters to this query, 4 blocks of 8 tokens per kv head and the first one.
            window = context.window(budget_blocks=4, sink_blocks=1)
            query = np.random.standard_normal((1, 4, 32)).astype(np.float32)
            done = window.prefetch(query)
            table = window.table(layer=0)
            for entry in range(table.indptr[0], table.indptr[1]):  # kv head 0
                keys, values = window.block(0, table.slot[entry])  # views: nothing is copied
            window.readers_done(done.version)
        # [/snippet:python]
        self.assertEqual(done.read_blocks, 10)
        first = int(table.block[entry]) * BLOCK
        np.testing.assert_array_equal(keys, k[0, 0, first:first + BLOCK])
        np.testing.assert_array_equal(values, v[0, 0, first:first + BLOCK])

    def test_windows_hold_the_blocks_they_name(self) -> None:
        engine = self.engine()
        self.assertTrue((engine.put() == skv.Put.COMMITTED).all())
        with engine.context.window(6, sink_blocks=1, recent_blocks=1) as window:
            for seed in range(4):
                done = window.prefetch(engine.query(seed))
                self.assertEqual(done.misses, 0)
                self.assertEqual(engine.check_window(self, window, done.version), done.read_blocks)
                window.readers_done(done.version)
            self.assertEqual(done.read_blocks, LAYERS * HEADS * 8)

    def test_bfloat16_and_float16_bodies(self) -> None:
        for dtype in (skv.Dtype.BF16, skv.Dtype.FP16):
            with self.subTest(dtype):
                engine = Engine(self.daemon.socket, f"dtype {dtype.name}", dtype=dtype)
                with engine.session:
                    engine.put()
                    window = engine.context.window(4)
                    done = window.prefetch(engine.query())
                    engine.check_window(self, window, done.version)
                    self.assertEqual(window.slots_of(0).dtype, dtype.numpy)

    def test_prefetch_of_some_layers(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        done = window.prefetch(engine.query()[1:2], first_layer=1, layer_count=1)
        self.assertEqual(window.table(1).version, done.version)
        with self.assertRaises(skv.NotFoundError):
            window.table(0)

    def test_a_guess_and_its_confirmation(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        window.guess(engine.query())
        done = window.confirm(engine.query())
        self.assertEqual(done.version, 1, "a guess publishes nothing")
        self.assertEqual(done.bytes_moved, 0, "all of it was guessed")
        engine.check_window(self, window, done.version)

    def test_rows_of_one_call(self) -> None:
        engine = self.engine()
        engine.put()
        windows = [engine.context.window(4) for _ in range(3)]
        queries = np.stack([engine.query(seed) for seed in (7, 8, 9)])
        rows = skv.prefetch_rows(windows, queries)
        for window, row, seed in zip(windows, rows, (7, 8, 9)):
            engine.check_window(self, window, row.version)
            alone = engine.context.window(4)
            alone.prefetch(engine.query(seed))
            self.assertTrue((alone.table(1).block == window.table(1).block).all())
        with self.assertRaises(skv.InvalidArgumentError):
            skv.prefetch_rows([windows[0], windows[0]], queries[:2])

    def test_layer_by_layer_puts(self) -> None:
        engine = self.engine()
        context, count = engine.context, engine.count
        self.assertTrue((context.put_reserve(0, count) == skv.Put.RESERVED).all())
        self.assertTrue((context.put_commit(0, count) == skv.Put.INCOMPLETE).all())
        tickets = []
        for layer in range(LAYERS):
            source = skv.StridedKv.of(engine.memory, engine.kv[0, layer], engine.kv[1, layer])
            tickets.append(context.put_write(0, count, layer, 1, source, wait=False))
        for ticket in tickets:
            self.assertIsNone(ticket.wait())
            self.assertTrue(ticket.ended)
            with self.assertRaises(skv.UnknownHandleError):
                ticket.wait()
        self.assertTrue((context.put_commit(0, count) == skv.Put.COMMITTED).all())
        self.assertTrue((context.put_reserve(0, count) == skv.Put.EXISTS).all())

    def test_cancelled_puts_leave_nothing(self) -> None:
        engine = self.engine()
        engine.context.put_reserve(0, engine.count)
        other = self.engine()
        self.assertEqual(other.context.match().outcome, skv.Match.PENDING)
        self.assertTrue((other.context.put_reserve(0, 1) == skv.Put.PENDING).all())
        outcomes = engine.context.put_cancel(0, engine.count)
        self.assertTrue((outcomes == skv.Put.CANCELLED).all())
        self.assertTrue((engine.context.put_commit(0, 1) == skv.Put.NOT_RESERVED).all())
        self.assertEqual(engine.context.match().outcome, skv.Match.MISS)

    def test_a_second_session_finds_and_loads(self) -> None:
        engine = self.engine()
        engine.put()
        other = self.engine()
        found = other.context.match(adopt=True)
        self.assertEqual((found.outcome, found.hit_tokens), (skv.Match.HIT, engine.covered()))
        self.assertEqual(found.host_tokens, found.hit_tokens)
        other.kv[:] = 0
        loaded = other.context.load(0, other.count, 0, LAYERS, other.source)
        self.assertGreater(loaded.host_chunks, 0)
        covered = np.s_[:, :, :, :engine.covered()]
        np.testing.assert_array_equal(other.kv[covered], engine.kv[covered])
        other.kv[:] = 0
        ticket = other.context.load(1, 1, 1, 1, skv.StridedKv.of(
            other.memory, other.kv[0, 1], other.kv[1, 1]), wait=False)
        result = ticket.wait()
        first, last = int(engine.blocks[0]) * BLOCK, int(engine.blocks[:2].sum()) * BLOCK
        self.assertGreater(result.nbytes, 0)
        np.testing.assert_array_equal(other.kv[:, 1, :, first:last], engine.kv[:, 1, :, first:last])
        self.assertFalse(other.kv[:, 0].any())

    def test_bodies_in_place(self) -> None:
        engine = self.engine()
        engine.put()
        with engine.context.load_in_place(1, 2, 0, LAYERS) as lease:
            first = int(engine.blocks[0])
            for sentence, blocks in enumerate(engine.blocks[1:3]):
                for layer in range(LAYERS):
                    k, v = lease.layer(sentence, layer)
                    self.assertEqual(k.shape, (HEADS, blocks, BLOCK, DIM))
                    at = np.s_[layer, :, first * BLOCK:(first + blocks) * BLOCK]
                    np.testing.assert_array_equal(k.reshape(HEADS, -1, DIM), engine.kv[0][at])
                    np.testing.assert_array_equal(v.reshape(HEADS, -1, DIM), engine.kv[1][at])
                first += blocks
            with self.assertRaises(skv.InvalidArgumentError):
                lease.layer(2, 0)
        with self.assertRaises(skv.UnknownHandleError):
            lease.release()

    def test_staging(self) -> None:
        engine = self.engine(tokens=48)
        staging = engine.session.staging
        half = engine.kv[0].nbytes
        self.assertLessEqual(2 * half, staging.nbytes)
        copy = staging.array(engine.kv.shape, np.float32)
        copy[:] = engine.kv
        engine.context.put_reserve(0, engine.count)
        engine.context.put_write(0, engine.count, 0, LAYERS,
                                 skv.StridedKv.of(staging, copy[0], copy[1]))
        self.assertTrue((engine.context.put_commit(0, engine.count) == skv.Put.COMMITTED).all())
        window = engine.context.window(2)
        engine.check_window(self, window, window.prefetch(engine.query()).version)

    def test_vectors_derived_later_and_given(self) -> None:
        engine = self.engine()
        engine.put(derive_vectors=False)
        engine.context.vectors_derive(0, engine.count)
        window = engine.context.window(4)
        self.assertEqual(window.prefetch(engine.query()).covered_to, engine.covered())

        # The mean alone: fp16 [layer][kv head][dim] per sentence.
        given = Engine(self.daemon.socket, "vectors given", index=skv.IndexKind.MEAN)
        with given.session:
            given.put(derive_vectors=False)
            means = []
            edges = [0] + (np.cumsum(given.blocks) * BLOCK).tolist()
            for first, last in zip(edges, edges[1:]):
                means.append(given.kv[0, :, :, first:last].mean(axis=2))
            blobs = np.stack(means).astype(np.float16)
            memory = given.session.memory(blobs.nbytes)
            memory.array(blobs.shape, np.float16)[:] = blobs
            given.context.vectors_put(0, given.count, memory, 0, blobs.nbytes)
            window = given.context.window(4)
            self.assertEqual(window.prefetch(given.query()).covered_to, given.covered())

    def test_every_index_kind_is_derived_and_ranked(self) -> None:
        for kind in skv.IndexKind:
            engine = Engine(self.daemon.socket, f"index {kind.name}", index=kind)
            with engine.session:
                engine.put()
                window = engine.context.window(4, sink_blocks=1, recent_blocks=1)
                done = window.prefetch(engine.query())
                self.assertEqual(done.covered_to, engine.covered(), kind)
                entries = engine.check_window(self, window, done.version)
                self.assertEqual(entries, LAYERS * HEADS * 6, kind)

    def test_sentences_that_close_one_by_one(self) -> None:
        engine = self.engine(tokens=200)
        context = engine.model.context()
        closed = 0
        for position, token in enumerate(engine.tokens.tolist()):
            result = context.append([token], ends_final_to=position + 1)
            self.assertEqual(result.first_sentence, closed)
            closed += result.closed_count
        self.assertEqual(closed, context.info.sentence_count)
        self.assertEqual(context.sentences().tolist(), [8, 8, 8])  # no ends: 64 tokens each
        self.assertEqual(context.info.token_count, 200)

    def test_extra_keeps_contexts_apart(self) -> None:
        engine = self.engine()
        engine.put()
        other = engine.model.context()
        other.append(engine.tokens, np.arange(40, 201, 40), ends_final_to=200,
                     extra=bytes(range(32)))
        self.assertEqual(other.match().outcome, skv.Match.MISS)

    def test_stat_and_drop(self) -> None:
        engine = self.engine()
        engine.put()
        status = engine.session.stat()
        self.assertGreaterEqual(status["directory"]["sentences"], engine.count)
        names = [each["name"] for each in engine.session.stat(skv.StatKind.CONTEXTS)]
        self.assertIn("test_stat_and_drop", names)
        self.assertEqual(engine.session.stat(skv.StatKind.SESSION)["contexts"], 1)
        self.assertEqual(engine.context.drop(1), (engine.count - 1, 0))
        self.assertEqual(engine.context.match().hit_tokens, int(engine.blocks[0]) * BLOCK)
        engine.session.flush(skv.FlushLevel.HOST)


class VerbsInPlaceTest(VerbsTest):
    """The same where windows read blocks in place in host memory."""

    device = "none"


class ErrorsTest(DaemonTest):
    def test_queries(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        query = engine.query()
        with self.assertRaisesRegex(TypeError, "float64"):
            window.prefetch(query.astype(np.float64))
        with self.assertRaisesRegex(TypeError, "list"):
            window.prefetch(query.tolist())
        with self.assertRaisesRegex(ValueError, "C-contiguous"):
            window.prefetch(query.transpose(1, 0, 2))
        with self.assertRaisesRegex(skv.InvalidArgumentError, "were given"):
            window.prefetch(query[:2])
        with self.assertRaises(ValueError):  # the same class, seen as a built-in one
            window.prefetch(query, first_layer=9)
        window.prefetch(query.reshape(-1))  # only the number of elements counts

    def test_dlpack_goes_in(self) -> None:
        class Tensor:
            """Nothing but DLPack, as of another library."""

            def __init__(self, array: np.ndarray) -> None:
                self.array = array

            def __dlpack__(self, **options):
                return self.array.__dlpack__(**options)

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        engine = self.engine()
        source = skv.StridedKv.of(engine.memory, Tensor(engine.kv[0]), Tensor(engine.kv[1]))
        for name in ("k_offset", "v_offset", "layer_stride", "head_stride", "token_stride"):
            self.assertEqual(getattr(source, name), getattr(engine.source, name))
        engine.put()
        window = engine.context.window(4)
        self.assertGreater(window.prefetch(Tensor(engine.query())).read_blocks, 0)
        context = engine.model.context()
        tokens = Tensor(np.arange(50, dtype=np.int64))
        self.assertEqual(context.append(tokens).token_count, 50)
        # And out: memory as a tensor of another library.
        shared = np.from_dlpack(Tensor(engine.memory.array((4,), np.float32)))
        engine.memory.array((1,), np.float32)[0] = 42
        self.assertEqual(shared[0], 42)

    def test_tokens_and_ends(self) -> None:
        context = self.engine().model.context()
        with self.assertRaisesRegex(ValueError, "outside 0 to"):
            context.append([1, -1])
        with self.assertRaisesRegex(TypeError, "integers"):
            context.append([0.5])
        with self.assertRaisesRegex(ValueError, "one dimension"):
            context.append(np.zeros((2, 2), np.int32))
        with self.assertRaisesRegex(ValueError, "32 are needed"):
            context.append([1], extra=b"short")
        with self.assertRaisesRegex(skv.InvalidArgumentError, "ascend"):
            context.append(range(10), ends=[5, 5])
        with self.assertRaisesRegex(skv.InvalidArgumentError, "gap"):
            context.append([1], first_position=5)
        context.append([1, 2, 3])
        with self.assertRaisesRegex(skv.InvalidArgumentError, "differ"):
            context.append([9], first_position=1)
        self.assertEqual(context.append([2, 3, 4], first_position=1).token_count, 4)

    def test_arrays_that_do_not_lie_in_the_memory(self) -> None:
        engine = self.engine()
        outside = np.zeros((LAYERS, HEADS, 8, DIM), np.float32)
        with self.assertRaisesRegex(ValueError, "k does not lie in the memory"):
            skv.StridedKv.of(engine.memory, outside, outside)
        with self.assertRaisesRegex(ValueError, "different strides"):
            skv.StridedKv.of(engine.memory, engine.kv[0], engine.kv[1][:, :, ::2])
        with self.assertRaisesRegex(ValueError, "not contiguous"):
            skv.StridedKv.of(engine.memory, engine.kv[0][..., ::2], engine.kv[1][..., ::2])
        with self.assertRaisesRegex(ValueError, "shape"):
            skv.StridedKv.of(engine.memory, engine.kv, engine.kv)
        with self.assertRaisesRegex(TypeError, "__dlpack__"):
            skv.StridedKv.of(engine.memory, [1.0], [1.0])
        with self.assertRaisesRegex(ValueError, "do not fit"):
            engine.memory.array((engine.memory.nbytes,), np.float32)
        # Inside the memory, but not all the sentences' tokens: the daemon checks.
        engine.context.put_reserve(0, engine.count)
        short = skv.StridedKv(engine.memory, engine.memory.nbytes - 4096,
                              engine.memory.nbytes - 4096, 0, 1024, DIM * 4)
        with self.assertRaises(skv.InvalidArgumentError):
            engine.context.put_write(0, engine.count, 0, LAYERS, short)

    def test_ranges(self) -> None:
        engine = self.engine()
        engine.put()
        for call in (lambda: engine.context.put_reserve(engine.count, 1),
                     lambda: engine.context.put_write(0, 1, LAYERS, 1, engine.source),
                     lambda: engine.context.load_in_place(0, engine.count + 1, 0, 1),
                     lambda: engine.context.load_in_place(0, 1, 0, LAYERS + 1),
                     lambda: engine.context.load(0, 0xFFFFFFFF, 0, 1, engine.source),
                     lambda: engine.context.drop(engine.count + 1),
                     lambda: engine.context.window(0)):
            with self.assertRaises(skv.InvalidArgumentError):
                call()
        with self.assertRaises(skv.NotFoundError):
            context = engine.model.context()
            context.append(np.arange(100), ends_final_to=100)
            context.load_in_place(0, 1, 0, 1)

    def test_what_is_not_served_is_named(self) -> None:
        session = self.engine().session
        linear = skv.Layer(HEADS, QUERIES, DIM, layer_class=skv.LayerClass.LINEAR)
        with self.assertRaisesRegex(skv.UnsupportedError, "layer"):
            session.model(skv.ModelDescriptor("linear", skv.Dtype.FP16, [linear]))
        with self.assertRaises(skv.UnsupportedError):
            session.model(descriptor("fp8", skv.Dtype.FP8_E4M3))
        with self.assertRaises(skv.InvalidArgumentError):
            session.model(skv.ModelDescriptor("", skv.Dtype.FP16, [skv.Layer(1, 1, 64)]))

    def test_a_window_that_does_not_fit_names_both_numbers(self) -> None:
        engine = self.engine()
        engine.put()
        with self.assertRaisesRegex(skv.SkvError, r"\d.*\d"):
            engine.context.window(1_000_000)

    def test_readers_that_do_not_go_on(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        with self.assertRaisesRegex(skv.InvalidArgumentError, "never seen"):
            window.readers_done(1)
        with self.assertRaises(skv.BusyError):
            for seed in range(4):
                done = window.prefetch(engine.query(seed))
        window.readers_done(done.version)
        self.assertGreater(window.prefetch(engine.query(9)).version, done.version)

    def test_use_after_close(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        window.prefetch(engine.query())
        window.close()
        window.close()  # harmless
        for call in (lambda: window.prefetch(engine.query()), lambda: window.table(0),
                     lambda: window.readers_done(1), lambda: window.block(0, 0)):
            with self.assertRaises(skv.UnknownHandleError):
                call()
        window = engine.context.window(4)
        engine.context.close()
        with self.assertRaises(skv.UnknownHandleError):
            engine.context.append([1])
        with self.assertRaises(skv.StaleError):
            window.prefetch(engine.query())
        self.assertTrue(window.stale)
        engine.memory.close()
        with self.assertRaises(skv.UnknownHandleError):
            engine.model.context().put_write(0, 1, 0, 1, engine.source)
        engine.session.close()
        for call in (lambda: engine.session.info, engine.session.stat, engine.model.context,
                     lambda: engine.session.memory(1), lambda: engine.model.info):
            with self.assertRaises(skv.UnknownHandleError):
                call()

    def test_views_outlive_what_they_came_from(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        window.prefetch(engine.query())
        table, slots = window.table(0), window.slots_of(0)
        lease = engine.context.load_in_place(0, 1, 0, 1)
        keys, _ = lease.layer(0, 0)
        kv = engine.kv
        lease.release()
        window.close()
        engine.memory.close()
        engine.session.close()
        del window, lease
        engine.__dict__.clear()
        gc.collect()
        self.assertGreater(float(np.abs(kv).sum()), 0)
        self.assertEqual(int(table.indptr[0]), 0)
        self.assertEqual(keys.shape[0], HEADS)
        self.assertEqual(slots[0].nbytes, 2 * BLOCK * DIM * 4)

    def test_read_only_views_stay_so(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        window.prefetch(engine.query())
        lease = engine.context.load_in_place(0, 1, 0, 1)
        for array in (window.slots, window.slots_of(0), window.table(0).slot,
                      window.block(0, int(window.table(0).slot[0]))[0], lease.layer(0, 0)[0]):
            self.assertFalse(array.flags.writeable)
            with self.assertRaises(ValueError):
                array.flags.writeable = True

    def test_slots_outside(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        with self.assertRaises(skv.InvalidArgumentError):
            window.block(0, 0x7FFFFFFF)
        with self.assertRaises(skv.InvalidArgumentError):
            window.block(LAYERS, 0)
        with self.assertRaises(skv.InvalidArgumentError):
            window.slots_of(LAYERS)

    def test_memory_of_the_callers_own(self) -> None:
        import fcntl
        session = self.engine().session
        fd = os.memfd_create("mine", os.MFD_CLOEXEC | 2)  # MFD_ALLOW_SEALING
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, 8192)
        with self.assertRaisesRegex(skv.InvalidArgumentError, "seal"):
            session.register_memory(fd, 8192)
        fcntl.fcntl(fd, 1033, 2 | 4)  # F_ADD_SEALS: SHRINK, GROW
        with session.register_memory(fd, 8192) as memory:
            os.pwrite(fd, b"hello", 100)
            self.assertEqual(bytes(memory.buffer[100:105]), b"hello")
        with self.assertRaises(skv.InvalidArgumentError):
            session.register_memory(fd, 4096)

    def test_nobody_listens(self) -> None:
        started = time.monotonic()
        with self.assertRaisesRegex(ConnectionError, "nobody listens"):
            skv.Session("/tmp/no-skvd-here", connect_timeout=0.2)
        self.assertLess(time.monotonic() - started, 5)
        with self.assertRaises(skv.InvalidArgumentError):
            skv.Session("x" * 200)
        with self.assertRaises(ValueError):
            skv.Session(self.daemon.socket, connect_timeout=-1)

    def test_the_environment_names_the_socket(self) -> None:
        os.environ["SKV_SOCKET"] = self.daemon.socket
        self.addCleanup(os.environ.pop, "SKV_SOCKET")
        with skv.Session() as session:
            self.assertTrue(session.info.connected)


class ThreadsTest(DaemonTest):
    def test_many_threads_on_one_session(self) -> None:
        engine = self.engine()
        engine.put()
        failures = []

        def work(number: int) -> None:
            try:
                context = engine.model.context()
                context.append(engine.tokens, np.arange(40, 201, 40), ends_final_to=200)
                context.match(adopt=True)
                with context.window(4) as window:
                    for i in range(30):
                        done = window.prefetch(engine.query(100 * number + i))
                        engine.check_window(self, window, done.version)
                        window.readers_done(done.version)
                        engine.session.flush(skv.FlushLevel.HOST)
                context.close()
            except BaseException as error:  # noqa: B902: reported below
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        # Channels go with their threads; this one has its own, for the put.
        deadline = time.monotonic() + 10
        while engine.session.stat(skv.StatKind.SESSION)["channels"] > 1:
            self.assertLess(time.monotonic(), deadline)

    def test_a_forked_child_is_told(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4)
        window.prefetch(engine.query())
        child = os.fork()
        if child == 0:
            code = 1
            try:
                window.prefetch(engine.query())
            except skv.DeniedError as error:
                code = 0 if "forked" in str(error) else 2
            try:
                with skv.Session(self.daemon.socket) as own:
                    own.stat()
            except BaseException:  # noqa: B902: the exit code tells
                code = 3
            os._exit(code)
        _, status = os.waitpid(child, 0)
        self.assertEqual(os.waitstatus_to_exitcode(status), 0)
        window.readers_done(window.table(0).version)
        self.assertGreater(window.prefetch(engine.query()).read_blocks, 0)


# Another engine: opens the same model and looks up the tokens it is told, when it is told to.
OTHER_ENGINE = """
import json, sys
import numpy as np
import skv
from skv_test import descriptor

session = skv.Session(sys.argv[1], client_name="other")
keys = session.model(descriptor(sys.argv[2])).keys(np.array(json.loads(sys.argv[3])))
for line in sys.stdin:
    found = keys.match()
    print(json.dumps([int(found.outcome), found.hit_tokens, found.pending_tokens,
                      found.host_tokens, found.nvme_tokens, session.info.connections]), flush=True)
"""


class SharedDirectoryTest(DaemonTest):
    nvme = True

    def other_engine(self, name: str, tokens: np.ndarray):
        child = subprocess.Popen(
            [sys.executable, "-c", OTHER_ENGINE, self.daemon.socket, name,
             json.dumps(tokens.tolist())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=os.path.dirname(os.path.abspath(__file__)))

        def end() -> None:
            child.stdin.close()
            child.stdout.close()
            self.assertEqual(child.wait(30), 0)
        self.addCleanup(end)

        def ask() -> list:
            child.stdin.write("match\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())
        return ask

    def test_another_process_sees_puts_and_restarts(self) -> None:
        engine = self.engine()
        ask = self.other_engine(self.id().rsplit(".", 1)[-1], engine.tokens)
        miss, pending, hit = int(skv.Match.MISS), int(skv.Match.PENDING), int(skv.Match.HIT)
        covered = engine.covered()
        self.assertEqual(ask(), [miss, 0, 0, 0, 0, 1])
        mine = engine.model.keys(engine.tokens)

        engine.context.put_reserve(0, engine.count)
        self.assertEqual(ask(), [pending, 0, covered, 0, 0, 1])
        self.assertEqual(mine.match().outcome, skv.Match.MISS)  # one's own puts are not pending
        engine.context.put_write(0, engine.count, 0, LAYERS, engine.source)
        first = int(engine.blocks[0]) * BLOCK
        engine.context.put_commit(0, 1)
        self.assertEqual(ask(), [hit, first, covered, first, 0, 1])
        engine.context.put_commit(1, engine.count - 1)
        self.assertEqual(ask(), [hit, covered, covered, covered, 0, 1])
        self.assertEqual(mine.match(), engine.context.match())

        engine.session.flush()
        self.daemon.restart()
        # The next look is in the directory of the new daemon: all of it came back, on NVMe.
        self.assertEqual(ask(), [hit, covered, covered, 0, covered, 2])
        self.assertEqual(mine.match(), engine.context.match())

    def test_keys_are_those_of_the_context(self) -> None:
        engine = self.engine()
        engine.put()
        covered = engine.covered()
        pieces = engine.model.keys()
        for at in range(0, len(engine.tokens), 7):  # however they are batched
            pieces.append(engine.tokens[at:at + 7])
        self.assertEqual(pieces.match(), engine.context.match())
        self.assertEqual(pieces.match().hit_tokens, covered)
        other = engine.tokens.copy()
        other[int(engine.blocks[0]) * BLOCK] += 1  # the first token of the second sentence
        self.assertEqual(engine.model.keys(other).match().hit_tokens,
                         int(engine.blocks[0]) * BLOCK)
        extra = engine.model.keys(engine.tokens, extra=b"x" * 32)
        self.assertEqual(extra.match().outcome, skv.Match.MISS)
        with self.assertRaises(ValueError):
            engine.model.keys([1], extra=b"short")

    def test_many_boundaries_move_to_a_larger_memory(self) -> None:
        # 1,500 boundaries; the first memory, which the reader has mapped, takes some 640.
        small = skv.ModelDescriptor("small", skv.Dtype.FP32, [skv.Layer(1, 1, 8)])
        tokens = np.arange(60_008)
        with skv.Session(self.daemon.socket) as writer, skv.Session(self.daemon.socket) as reader:
            keys = reader.model(small).keys(tokens)
            self.assertEqual(keys.match().outcome, skv.Match.MISS)
            context = writer.model(small).context()
            context.append(tokens, np.arange(40, 60_001, 40), ends_final_to=60_008)
            count = len(context.sentences())
            self.assertEqual(count, 1500)
            for first in range(0, count, 500):
                outcomes = context.put_reserve(first, 500)
                self.assertTrue((outcomes == skv.Put.RESERVED).all())
                self.assertEqual(keys.match().pending_tokens, (first + 500) * 40)
            context.close()
            self.assertEqual(keys.match().pending_tokens, 0)


class RestartTest(DaemonTest):
    nvme = True

    def setUp(self) -> None:
        if self.daemon.process.poll() is not None:
            self.daemon.start()

    def test_what_was_durable_comes_back(self) -> None:
        engine = self.engine()
        engine.put()
        window = engine.context.window(4, sink_blocks=1)
        before = window.prefetch(engine.query())
        tables = [window.table(layer) for layer in range(LAYERS)]
        blocks = [table.block.tolist() for table in tables]
        self.assertGreaterEqual(engine.session.flush(), engine.count)
        self.daemon.restart()
        with self.assertRaises(skv.DisconnectedError):  # a miss
            window.prefetch(engine.query())
        with self.assertRaises(skv.StaleError):
            window.prefetch(engine.query())
        self.assertEqual(int(tables[0].indptr[0]), 0)  # mapped still
        window.close()

        found = engine.context.match()  # connects, replays
        self.assertEqual((found.hit_tokens, found.nvme_tokens), (engine.covered(),) * 2)
        self.assertEqual(engine.context.info.changes, 0)
        self.assertEqual(engine.session.info.connections, 2)
        window = engine.context.window(4, sink_blocks=1)
        done = window.prefetch(engine.query(), cold=skv.Cold.WAIT, deadline=10)
        self.assertGreater(done.hits_nvme, 0)
        self.assertEqual(done.read_blocks, before.read_blocks)
        self.assertEqual([window.table(layer).block.tolist() for layer in range(LAYERS)], blocks)
        engine.check_window(self, window, done.version)

    def test_what_was_not_is_put_again(self) -> None:
        engine = self.engine()
        engine.context.put_reserve(0, engine.count)
        engine.context.put_write(0, engine.count, 0, 1, engine.source)
        self.daemon.restart()
        # The reservation is gone: the write is skipped, the commit says so.
        engine.context.put_write(0, engine.count, 1, LAYERS - 1, skv.StridedKv.of(
            engine.memory, engine.kv[0, 1:], engine.kv[1, 1:]))
        outcomes = engine.context.put_commit(0, engine.count)
        self.assertTrue((outcomes == skv.Put.NOT_RESERVED).all())
        self.assertTrue((engine.put() == skv.Put.COMMITTED).all())  # the memory is registered again
        window = engine.context.window(4)
        engine.check_window(self, window, window.prefetch(engine.query()).version)

    def test_leases_and_staging_are_stale(self) -> None:
        engine = self.engine(tokens=48)
        engine.put()
        lease = engine.context.load_in_place(0, 1, 0, 1)
        keys, _ = lease.layer(0, 0)
        staging = engine.session.staging
        self.daemon.restart()
        with self.assertRaises(skv.SkvError):
            engine.session.flush(skv.FlushLevel.HOST)
            engine.context.put_write(0, 1, 0, 1, skv.StridedKv(staging, 0, 0, 0, 0, 0))
        with self.assertRaises(skv.StaleError):
            lease.layer(0, 0)
        self.assertEqual(keys.shape[0], HEADS)
        lease.release()
        with self.assertRaises(skv.StaleError):
            engine.context.put_write(0, 1, 0, 1, skv.StridedKv(staging, 0, 0, 0, 0, 0))

    def test_absence_is_bounded(self) -> None:
        engine = self.engine()
        session = skv.Session(self.daemon.socket, connect_timeout=0.3)
        self.daemon.kill()
        started = time.monotonic()
        for _ in range(5):
            with self.assertRaises(skv.DisconnectedError):
                session.stat()
        self.assertLess(time.monotonic() - started, 3)
        with self.assertRaises(skv.DisconnectedError):
            session.reconnect()
        self.daemon.start()
        session.reconnect(timeout=5)
        self.assertTrue(session.info.connected)
        session.close()
        self.assertEqual(engine.context.match().outcome, skv.Match.MISS)

    def test_threads_go_on_over_restarts(self) -> None:
        """Engines that treat every SkvError as a miss never see wrong bytes, and go on."""
        engine = self.engine()
        engine.put()
        engine.session.flush()
        stop = threading.Event()
        problems = []
        steps = [0, 0]

        def decode(number: int) -> None:
            window: Optional[skv.Window] = None
            context = engine.model.context()
            context.append(engine.tokens, np.arange(40, 201, 40), ends_final_to=200)
            while not stop.is_set():
                try:
                    if window is None:
                        window = context.window(4)
                    done = window.prefetch(engine.query(steps[number]), cold=skv.Cold.WAIT,
                                           deadline=5)
                    engine.check_window(self, window, done.version)
                    window.readers_done(done.version)
                    steps[number] += 1
                except skv.SkvError:
                    if window is not None:
                        try:
                            window.close()
                        except skv.SkvError:
                            pass
                    window = None
                except BaseException as error:  # noqa: B902: reported below
                    problems.append(error)
                    return

        threads = [threading.Thread(target=decode, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            self.wait_for_steps(steps, problems)
            self.daemon.restart()
        self.wait_for_steps(steps, problems)
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual(problems, [])

    def wait_for_steps(self, steps, problems) -> None:
        wanted = [step + 3 for step in steps]
        deadline = time.monotonic() + 30
        while not problems and any(step < want for step, want in zip(steps, wanted)):
            self.assertLess(time.monotonic(), deadline, f"{steps} of {wanted}\n{self.daemon.log()}")
            time.sleep(0.01)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
