"""What the package skv refuses, and how it says so."""
from __future__ import annotations

import gc
import os
import sys
import time
import unittest

import numpy as np
import skv

from engine import BLOCK, DIM, DaemonTest, HEADS, LAYERS, QUERIES, descriptor


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


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
