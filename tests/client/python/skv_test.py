"""The package skv against a real skvd: every verb, and several threads."""
from __future__ import annotations

import os
import sys
import threading
import time
import unittest

import numpy as np
import skv

from engine import BLOCK, DIM, DaemonTest, Engine, HEADS, LAYERS


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


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
