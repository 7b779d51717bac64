"""The package skv with a daemon that ends and comes back, and the shared directory over it."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import unittest
from typing import Optional

import numpy as np
import skv

from engine import BLOCK, DaemonTest, HEADS, LAYERS


# Another engine: opens the same model and looks up the tokens it is told, when it is told to.
OTHER_ENGINE = """
import json, sys
import numpy as np
import skv
from engine import descriptor

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
