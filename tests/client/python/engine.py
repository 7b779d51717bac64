"""An engine of the tests: a session with a context and its KV, and a daemon for a test case."""
from __future__ import annotations

import unittest

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
