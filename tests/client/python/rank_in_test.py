"""The same sets wherever they are ranked: in the calling thread, or in the daemon."""
from __future__ import annotations

import threading
import unittest
from typing import List

import numpy as np
import skv

from daemon import Daemon
from engine import HEADS, LAYERS, Engine


class RankInTest(unittest.TestCase):
    def start(self, **options) -> Daemon:
        daemon = Daemon(**options).start()
        self.addCleanup(daemon.close)
        return daemon

    def engine(self, daemon: Daemon, name: str, **options) -> Engine:
        engine = Engine(daemon.socket, name, **options)
        self.addCleanup(engine.session.close)
        return engine

    def same(self, engine: Engine, here: skv.Window, there: skv.Window, seeds: range,
             cold: skv.Cold = skv.Cold.PARTIAL) -> List[skv.PrefetchResult]:
        """Both windows read the same blocks for the same queries, and find the engine's bytes."""
        results = []
        for seed in seeds:
            one = here.prefetch(engine.query(seed), cold=cold, deadline=20)
            tables = [here.table(layer) for layer in range(LAYERS)]
            copies = [[column.copy() for column in (t.indptr, t.block, t.sentence, t.score)]
                      for t in tables]
            masses = [t.unread_mass for t in tables]
            engine.check_window(self, here, one.version)
            here.readers_done(one.version)
            two = there.prefetch(engine.query(seed), cold=cold, deadline=20)
            engine.check_window(self, there, two.version)
            for layer in range(LAYERS):
                table = there.table(layer)
                for a, b in zip(copies[layer], (table.indptr, table.block, table.sentence,
                                                table.score)):
                    np.testing.assert_array_equal(a, b)
                self.assertEqual(masses[layer], table.unread_mass)
            there.readers_done(two.version)
            self.assertEqual((one.read_blocks, one.misses, one.covered_to, one.unread_mass, one.ranked_heads),
                             (two.read_blocks, two.misses, two.covered_to, two.unread_mass, two.ranked_heads))
            results.append(one)
        return results

    def test_the_choice(self) -> None:
        for device, auto in (("none", skv.RankIn.CLIENT), ("emulated", skv.RankIn.DAEMON)):
            engine = self.engine(self.start(device=device), "choice")
            engine.put()
            with engine.context.window(4) as window:
                self.assertEqual(window.rank_in, auto)
            with engine.context.window(4, rank_in=skv.RankIn.DAEMON) as window:
                self.assertEqual(window.rank_in, skv.RankIn.DAEMON)
            if device == "emulated":
                with self.assertRaises(skv.UnsupportedError):
                    engine.context.window(4, rank_in=skv.RankIn.CLIENT)

    def test_ample_host_memory(self) -> None:
        daemon = self.start(device="none")
        for index in (skv.IndexKind.MEAN_SPREAD_RUNS, skv.IndexKind.MEAN):
            for cut in (skv.Cut.BLOCK, skv.Cut.SENTENCE):
                engine = self.engine(daemon, f"ample {index} {cut}", tokens=3000, index=index)
                engine.put()
                options = dict(sink_blocks=1, recent_blocks=2, cut=cut)
                here = engine.context.window(10, rank_in=skv.RankIn.CLIENT, **options)
                there = engine.context.window(10, rank_in=skv.RankIn.DAEMON, **options)
                for result in self.same(engine, here, there, range(8)):
                    self.assertEqual(result.misses, 0)
                    self.assertEqual(result.daemon_us, 0)

    def test_the_recall_of_the_coarse_stage(self) -> None:
        daemon = self.start(device="none", recall_every=1)
        engine = self.engine(daemon, "recall", tokens=6000)
        engine.put()
        whole = engine.context.window(100, coarse_blocks=10_000, rank_in=skv.RankIn.DAEMON)

        def chosen(window: skv.Window, seed: int) -> List[set]:
            done = window.prefetch(engine.query(seed))
            tables = [window.table(layer) for layer in range(LAYERS)]
            sets = [set(t.block[t.indptr[head]:t.indptr[head + 1]].tolist())
                    for t in tables for head in range(HEADS)]
            window.readers_done(done.version)
            return sets

        expected = {"rankings": 0, "wanted": 0, "found": 0}
        for rank_in in (skv.RankIn.DAEMON, skv.RankIn.CLIENT):
            with engine.context.window(100, rank_in=rank_in) as window:
                for seed in range(4):
                    for full, coarse in zip(chosen(whole, seed), chosen(window, seed)):
                        expected["rankings"] += 1
                        expected["wanted"] += len(full)
                        expected["found"] += len(full & coarse)
            # What a client counts is collected when its window closes, if not before.
            self.assertEqual(engine.session.stat()["prefetch"]["recall"], expected)
        self.assertLess(expected["found"], expected["wanted"])
        self.assertGreater(expected["found"], 0)

    def test_mass_and_budgets_of_heads(self) -> None:
        daemon = self.start(device="none")
        engine = self.engine(daemon, "budgets", tokens=3000)
        engine.put()
        heads = LAYERS * HEADS
        options = dict(sink_blocks=1, mass=0.7, head_budgets=[2 * (i % 6) for i in range(heads)])
        here = engine.context.window(10, rank_in=skv.RankIn.CLIENT, **options)
        there = engine.context.window(10, rank_in=skv.RankIn.DAEMON, **options)
        for result in self.same(engine, here, there, range(4)):
            self.assertLessEqual(result.read_blocks, sum(1 + 2 * (i % 6) for i in range(heads)))
        with self.assertRaisesRegex(skv.InvalidArgumentError, r"3 head_budgets for a model of"):
            engine.context.window(10, head_budgets=[1, 2, 3])
        with self.assertRaisesRegex(skv.InvalidArgumentError, r"head_budgets\[1\] is 11"):
            engine.context.window(10, head_budgets=[10, 11] + [0] * (heads - 2))
        with self.assertRaisesRegex(skv.InvalidArgumentError, r"mass is 2"):
            engine.context.window(10, mass=2.0)

    def test_on_change(self) -> None:
        daemon = self.start(device="none")
        engine = self.engine(daemon, "on change", tokens=3000)
        engine.put()
        here = engine.context.window(10, rank_in=skv.RankIn.CLIENT, query_cosine=0.95)
        there = engine.context.window(10, rank_in=skv.RankIn.DAEMON, query_cosine=0.95)
        ranked = [result.ranked_heads for result in self.same(engine, here, there, [0, 0, 1, 1, 0])]
        heads = LAYERS * HEADS
        self.assertEqual(ranked, [heads, 0, heads, 0, heads])

    def test_relative_scores(self) -> None:
        """The blocks of a window with shares; only where they are found otherwise, no mass."""
        daemon = self.start(device="none")
        options = dict(sink_blocks=1, recent_blocks=2)
        relative = dict(options, scores=skv.Scores.RELATIVE)
        for index, queries, is_relative in (
                (skv.IndexKind.FP16, 1, True), (skv.IndexKind.BF16, 1, True),
                (skv.IndexKind.FP16, 2, False), (skv.IndexKind.MEAN_SPREAD_RUNS, 1, False)):
            engine = self.engine(daemon, f"relative {index} {queries}", tokens=3000, index=index,
                                 queries=queries)
            engine.put()
            shares = engine.context.window(10, **options)
            here = engine.context.window(10, rank_in=skv.RankIn.CLIENT, **relative)
            there = engine.context.window(10, rank_in=skv.RankIn.DAEMON, **relative)
            for seed, result in enumerate(self.same(engine, here, there, range(4))):
                wanted = shares.prefetch(engine.query(seed))
                self.assertEqual(result.unread_mass, 1.0 if is_relative else wanted.unread_mass)
                self.assertLess(wanted.unread_mass, 1.0)
                shares.readers_done(wanted.version)
            for layer in range(LAYERS):
                table, other = shares.table(layer), there.table(layer)
                np.testing.assert_array_equal(table.indptr, other.indptr)
                np.testing.assert_array_equal(table.block, other.block)
                np.testing.assert_array_equal(table.sentence, other.sentence)
                for head in range(HEADS):
                    mine = slice(table.indptr[head], table.indptr[head + 1])
                    factor = other.score[mine] / table.score[mine]
                    np.testing.assert_allclose(factor, factor[0], rtol=1e-5)
                    self.assertEqual(bool(factor[0] > 1.01), is_relative)
        for wrong, what in ((dict(mass=0.5), r"mass is 0\.5.* with scores 1"),
                            (dict(cut=skv.Cut.SENTENCE), "cut is 1 with scores 1"),
                            (dict(scores=2), "scores is 2")):
            with self.assertRaisesRegex(skv.InvalidArgumentError, what):
                engine.context.window(10, **dict(relative, **wrong))

    def test_a_context_that_grows_and_shares(self) -> None:
        daemon = self.start(device="none")
        engine = self.engine(daemon, "grows", tokens=6000)
        engine.context.put_reserve(0, engine.count)
        engine.context.put_write(0, engine.count, 0, LAYERS, engine.source)
        here = engine.context.window(8, sink_blocks=1, rank_in=skv.RankIn.CLIENT)
        there = engine.context.window(8, sink_blocks=1, rank_in=skv.RankIn.DAEMON)
        empty = here.prefetch(engine.query())
        self.assertEqual((empty.covered_to, empty.read_blocks), (0, 0))
        for first in range(0, engine.count, 30):
            count = min(30, engine.count - first)
            engine.context.put_commit(first, count)
            covered = int(engine.blocks[:first + count].sum()) * 8
            one = here.prefetch(engine.query(first))
            two = there.prefetch(engine.query(first))
            # What a reply told of is in the next table.
            self.assertEqual((one.covered_to, two.covered_to), (covered, covered))
            for layer in range(LAYERS):
                np.testing.assert_array_equal(here.table(layer).block, there.table(layer).block)
            here.readers_done(one.version)
            there.readers_done(two.version)

        # A second session on the same chain shares its pages.
        other = self.engine(daemon, "grows", tokens=6000)
        other.context.match()
        mine = other.context.window(8, sink_blocks=1)
        self.assertEqual(mine.rank_in, skv.RankIn.CLIENT)
        self.same(other, mine, there, range(3))

    def test_less_host_memory_than_the_context(self) -> None:
        daemon = self.start(device="none", host="2MiB", nvme=True)
        engine = self.engine(daemon, "tight", tokens=4000)
        for first in range(0, engine.count, 10):
            count = min(10, engine.count - first)
            engine.context.put_reserve(first, count)
            engine.context.put_write(first, count, 0, LAYERS, engine.source)
            engine.context.put_commit(first, count)
            engine.session.flush()
        here = engine.context.window(6, sink_blocks=1, rank_in=skv.RankIn.CLIENT)
        there = engine.context.window(6, sink_blocks=1, rank_in=skv.RankIn.DAEMON)
        results = self.same(engine, here, there, range(12), cold=skv.Cold.WAIT)
        self.assertTrue(all(result.misses == 0 for result in results))
        self.assertGreater(sum(result.hits_nvme for result in results), 0)

    def test_a_miss_is_asked_for(self) -> None:
        daemon = self.start(device="none", nvme=True)
        engine = self.engine(daemon, "cold", tokens=1000)
        engine.put()
        engine.session.flush()
        daemon.restart()
        engine.session.reconnect(10)
        engine.context.match()
        window = engine.context.window(6, sink_blocks=1)
        self.assertEqual(window.rank_in, skv.RankIn.CLIENT)
        for _ in range(1000):
            done = window.prefetch(engine.query())
            engine.check_window(self, window, done.version)
            window.readers_done(done.version)
            if done.misses == 0:
                break
            threading.Event().wait(0.01)
        self.assertEqual(done.misses, 0)

    def test_chunks_are_taken_back_under_use(self) -> None:
        """What a table names stays the engine's bytes while others push it out of host memory."""
        daemon = self.start(device="none", host="2MiB", nvme=True)
        engine = self.engine(daemon, "reader", tokens=600)
        engine.put()
        engine.session.flush()
        window = engine.context.window(12, sink_blocks=1, rank_in=skv.RankIn.CLIENT)
        done = window.prefetch(engine.query(), cold=skv.Cold.WAIT, deadline=20)
        read = engine.check_window(self, window, done.version)
        self.assertGreater(read, 0)

        other = self.engine(daemon, "pusher", tokens=6000, seed=2)
        for first in range(0, other.count, 5):
            count = min(5, other.count - first)
            other.context.put_reserve(first, count)
            other.context.put_write(first, count, 0, LAYERS, other.source)
            other.context.put_commit(first, count)
            other.session.flush()
            self.assertEqual(engine.check_window(self, window, done.version), read)
        window.readers_done(done.version)
        again = window.prefetch(engine.query(), cold=skv.Cold.WAIT, deadline=20)
        self.assertEqual(again.misses, 0)
        self.assertEqual(engine.check_window(self, window, again.version), read)

    def test_readers_that_do_not_go_on(self) -> None:
        engine = self.engine(self.start(device="none"), "busy")
        engine.put()
        window = engine.context.window(4, rank_in=skv.RankIn.CLIENT)
        window.prefetch(engine.query(1))
        second = window.prefetch(engine.query(2))
        with self.assertRaises(skv.BusyError):
            window.prefetch(engine.query(3))
        window.readers_done(second.version)
        self.assertGreater(window.prefetch(engine.query(3)).version, second.version)

    def test_rows_and_threads(self) -> None:
        engine = self.engine(self.start(device="none"), "rows", tokens=2000)
        engine.put()
        windows = [engine.context.window(6, rank_in=where)
                   for where in (skv.RankIn.CLIENT, skv.RankIn.DAEMON, skv.RankIn.CLIENT)]
        queries = np.stack([engine.query(3)] * 3)
        done = skv.prefetch_rows(windows, queries)
        for window, row in zip(windows, done):
            engine.check_window(self, window, row.version)
            np.testing.assert_array_equal(window.table(1).block, windows[1].table(1).block)

        wrong: List[BaseException] = []

        def decode(seed: int) -> None:
            try:
                for step in range(30):
                    try:
                        version = windows[0].prefetch(engine.query(seed + step)).version
                        windows[0].readers_done(version)
                    except skv.BusyError:
                        pass  # another thread's table is not let go of yet
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=decode, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
