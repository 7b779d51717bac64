"""The engine's own logic, against the in-memory skvd of fake_skv.py and a random Llama."""
from __future__ import annotations

import sys
import unittest

import numpy as np

import fake_skv

sys.dont_write_bytecode = True
skv = fake_skv.install()

import torch  # noqa: E402

from models import dense_logits, tiny  # noqa: E402
from skv.hf.guess import Guesser, NextQuery, Trial  # noqa: E402
from skv.hf import Engine, LostKv, Read  # noqa: E402


def prompt(count, seed=1):
    return np.random.default_rng(seed).integers(0, 512, count).tolist()


class EngineTest(unittest.TestCase):
    def setUp(self):
        self.daemon = fake_skv.Daemon()
        self.model = tiny()
        self.engine = self.new_engine()

    def tearDown(self):
        self.engine.close()

    def new_engine(self):
        return Engine(self.model, None, fake_skv.Session(self.daemon))

    def teacher_forced(self, conversation, ids, start):
        """Logits after each of ids[start - 1:]."""
        rows = [conversation.feed(ids[:start])]
        rows += [conversation.step(token) for token in ids[start:]]
        return torch.stack(rows)

    # Goal: reading everything through skvd is the model's own attention. Chunks, tail and window
    # together, over sentences that close while decoding.
    def test_full_read_is_exact(self):
        ids = prompt(500)
        with self.engine.open(chunk_tokens=128) as conversation:
            got = self.teacher_forced(conversation, ids, 401)
            self.assertTrue(conversation.cache.exact)
            self.assertLess(conversation.cache.own_tokens, 128)
            self.assertGreater(conversation.steps.of("decode")[-1].covered_to, 401)
        want = dense_logits(self.model, ids, 400)
        self.assertLess((got - want).abs().max().item(), 1e-4)

    # Goal: after the window stands for the prefix, a next question reads it back from skvd, layer
    # by layer, exactly; nothing of it stays.
    def test_next_question_reads_bodies(self):
        ids = prompt(700)
        with self.engine.open() as conversation:
            conversation.feed(ids[:400])
            conversation.step(ids[400])
            self.assertLess(conversation.cache.own_tokens, 128)
            got = conversation.feed(ids[401:], all_logits=True)
            self.assertGreater(conversation.steps.of("dense")[-1].bytes_loaded, 0)
        want = dense_logits(self.model, ids, 401)
        self.assertLess((got - want).abs().max().item(), 1e-4)

    def test_reuse_skips_what_is_stored(self):
        ids = prompt(600)
        with self.engine.open() as first:
            first.feed(ids[:512])
        with self.new_engine().open(reuse=True) as second:
            got = self.teacher_forced(second, ids, 520)
            self.assertEqual(second.report.matched_tokens, 512)
            self.assertEqual(sum(step.tokens for step in second.steps.of("dense")), 8)
        want = dense_logits(self.model, ids, 519)
        self.assertLess((got - want).abs().max().item(), 1e-4)

    # Goal: a prefix that is stored to its very end still gives logits, densely read.
    def test_reuse_of_everything_computes_the_last_token(self):
        ids = prompt(512)
        with self.engine.open() as first:
            want = first.feed(ids)
        with self.engine.open(reuse=True, read=Read(blocks=1, sinks=0, recents=0)) as second:
            got = second.feed(ids)
            self.assertEqual(second.report.matched_tokens, 511)
            self.assertTrue(second.cache.exact)
        self.assertLess((got - want).abs().max().item(), 1e-4)

    # Goal: a remainder of one token is part of the prefill, not a decoding step.
    def test_chunk_of_one_token_is_dense(self):
        ids = prompt(257)
        with self.engine.open(chunk_tokens=128, read=Read(blocks=1, sinks=0, recents=0)) as c:
            got = c.feed(ids)
            self.assertTrue(c.cache.exact)
            self.assertEqual(len(c.steps.of("decode")), 0)
        self.assertLess((got - dense_logits(self.model, ids, 256)[0]).abs().max().item(), 1e-4)

    # Goal: KV computed while reading less than everything never passes for exact. The inexact run
    # generates the very tokens the exact one has; the exact one must not find its sentences.
    def test_inexact_never_contaminates_exact(self):
        ids = prompt(500)
        with self.engine.open(read=Read(share=0.1)) as sparse:
            self.teacher_forced(sparse, ids, 300)
            self.assertFalse(sparse.cache.exact)
            stored = len(sparse.cache.sentence_stops)
        self.assertGreater(len(self.daemon.bodies), 300 // 64)
        with self.engine.open(reuse=True) as exact:
            got = self.teacher_forced(exact, ids, 500)
            self.assertLessEqual(exact.report.matched_tokens, 304)
            self.assertGreater(exact.report.matched_tokens, 200)
        self.assertGreater(stored, 5)
        want = dense_logits(self.model, ids, 499)
        self.assertLess((got - want).abs().max().item(), 1e-4)
        # and the sparse tail was stored, under keys of its own
        with self.engine.open(reuse=True) as again:
            again.feed(ids)
            self.assertEqual(again.report.matched_tokens, 448)

    # Goal: tokens that were announced, so named as exact, are computed exactly also one by one.
    def test_announced_tokens_are_dense(self):
        ids = prompt(260)
        cache = self.engine.new_cache(read=Read(blocks=1, sinks=0, recents=0))
        cache.announce(ids)
        with torch.no_grad():
            self.model(torch.tensor([ids[:200]]), past_key_values=cache)
            for token in ids[200:]:
                got = self.model(torch.tensor([[token]]), past_key_values=cache).logits[0, 0]
        self.assertTrue(cache.exact)
        self.assertEqual(len(cache.steps.of("decode")), 0)
        cache.close()
        self.assertLess((got - dense_logits(self.model, ids, 259)[0]).abs().max().item(), 1e-4)

    # Goal: a block that does not come in time makes the step inexact, also at full budget.
    def test_miss_is_inexact(self):
        ids = prompt(300)
        with self.engine.open() as conversation:
            conversation.feed(ids[:280])
            conversation.step(ids[280])
            self.assertTrue(conversation.cache.exact)
            self.daemon.hide = lambda block: block == 3
            conversation.step(ids[281])
            self.assertFalse(conversation.cache.exact)
            self.assertGreater(conversation.steps.steps[-1].misses, 0)

    # Goal: heads that read different numbers of blocks attend exactly theirs.
    def test_ragged_heads(self):
        ids = prompt(280)
        with self.engine.open() as conversation:
            conversation.feed(ids[:260])
            cache = conversation.cache
            conversation.step(ids[260])
            table = cache._window.table(1)
            keep = np.ones(len(table.slot), bool)
            keep[[2, 3, 4]] = False  # of head 0
            ragged = fake_skv.Record(
                version=table.version + 1, covered_to=table.covered_to, unread_mass=0.0,
                indptr=table.indptr - np.array([0, 3, 3], np.uint32),
                **{name: getattr(table, name)[keep]
                   for name in ("slot", "block", "sentence", "score")})
            cache._step = fake_skv.Record(exact=True, tail_tokens=0)
            keys, values, absent = cache._gather(1, ragged, cache.length)
            cache._step = None
            self.assertEqual(absent[0].sum().item(), 24)
            self.assertEqual(absent[1].sum().item(), 0)
            from skv.hf import attend_one
            query = torch.randn(1, 4, 1, 32)
            got = attend_one(query, keys, values, absent, 32 ** -0.5)[0, 0]
            for head in range(4):
                kv = head // 2
                rows = ~absent[kv]
                weights = torch.softmax(query[0, head] @ keys[kv][rows].T * 32 ** -0.5, -1)
                self.assertLess((weights @ values[kv][rows] - got[head]).abs().max().item(), 1e-5)

    # Goal: what the daemon lost is computed again, and the answer is the same.
    def test_lost_sentences_are_computed_again(self):
        ids = prompt(500)
        with self.engine.open() as conversation:
            conversation.feed(ids[:400])
            conversation.step(ids[400])
            self.daemon.bodies.clear()
            got = torch.stack([conversation.step(token) for token in ids[401:]])
            self.assertEqual(conversation.recoveries, 1)
            self.daemon.bodies.clear()
            more = prompt(20, seed=9)
            after = conversation.feed(more, all_logits=True)
            self.assertEqual(conversation.recoveries, 2)
        want = dense_logits(self.model, ids + more, 500)
        self.assertLess((after - want).abs().max().item(), 1e-4)
        want = dense_logits(self.model, ids, 401)
        self.assertLess((got - want).abs().max().item(), 1e-4)

    def test_busy_and_stale_windows_are_retried(self):
        ids = prompt(300)
        failures = [fake_skv.BusyError(), fake_skv.StaleError(), fake_skv.DisconnectedError()]

        def fail(call):
            if call == "prefetch" and failures:
                raise failures.pop(0)

        with self.engine.open() as conversation:
            conversation.feed(ids[:280])
            self.daemon.fail = fail
            got = conversation.step(ids[280])
            self.assertEqual(failures, [])
        self.assertLess((got - dense_logits(self.model, ids[:281], 280)[0]).abs().max().item(), 1e-4)

    # Goal: transformers' own driver works with the cache, prompt and all.
    def test_generate_of_transformers(self):
        ids = prompt(200)
        want = self.model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False,
                                   pad_token_id=0, eos_token_id=None)
        cache = self.engine.new_cache()
        got = self.model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False,
                                  pad_token_id=0, eos_token_id=None, past_key_values=cache)
        cache.close()
        self.assertEqual(got.tolist(), want.tolist())

    def test_half_types(self):
        for dtype in (torch.bfloat16, torch.float16):
            with self.subTest(dtype=dtype):
                model = tiny(dtype)
                ids = prompt(300)
                with Engine(model, None, fake_skv.Session(self.daemon)) as engine:
                    with engine.open() as conversation:
                        got = self.teacher_forced(conversation, ids, 280)
                    self.assertTrue(conversation.cache.exact)
                want = dense_logits(model, ids, 279)
                scale = want.abs().max().item()
                self.assertLess((got - want).abs().max().item() / scale, 0.1)

    # Goal: the pages of what a table covers are given back: the engine holds no second copy.
    def test_pages_are_given_back(self):
        ids = prompt(1200)
        with self.engine.open() as conversation:
            conversation.feed(ids[:1100])
            before = resident_bytes(conversation.cache._own.memory)
            conversation.step(ids[1100])
            after = resident_bytes(conversation.cache._own.memory)
            rows = 3 * 2 * 2
            self.assertGreater(before, 1100 * 32 * 4 * rows)
            self.assertLess(after, (128 * 32 * 4 + 2 * 4096) * rows)

    def test_what_is_not_supported_is_refused(self):
        with self.engine.open(max_tokens=64) as conversation:
            with self.assertRaisesRegex(ValueError, "max_tokens"):
                conversation.feed(prompt(4000))
        with self.assertRaisesRegex(ValueError, "batch 1"):
            cache = self.engine.new_cache()
            self.model(torch.zeros((2, 4), dtype=torch.long), past_key_values=cache)
        self.model.config.layer_types = ["sliding_attention"] * 3
        with self.assertRaisesRegex(NotImplementedError, "sliding_attention"):
            self.new_engine()

    def test_guesses_are_one_layer_early(self):
        ids = prompt(300)
        with self.engine.open(read=Read(share=0.2, guess=True)) as conversation:
            conversation.feed(ids[:290])
            for token in ids[290:]:
                conversation.step(token)
            window = conversation.cache._window
            self.assertEqual(window.asked[-5:], [("prefetch", 0), ("guess", 1), ("confirm", 1),
                                                 ("guess", 2), ("confirm", 2)])
        with self.engine.open(read=Read(share=0.2, guess=False)) as conversation:
            conversation.feed(ids[:290])
            conversation.step(ids[290])
            self.assertNotIn("guess", [verb for verb, _ in conversation.cache._window.asked])

    # Goal: the guess is the layer's own query where a layer changes nothing, and a model that makes
    # its queries in another way is refused rather than guessed for.
    def test_what_is_guessed(self):
        layers = self.model.get_decoder().layers
        queries = NextQuery(self.model.get_decoder())
        hidden = torch.randn(1, 1, 128)
        rotary = self.model.get_decoder().rotary_emb(hidden, torch.tensor([[77]]))
        query = queries.of(1, hidden, rotary)
        self.assertEqual(tuple(query.shape), (1, 4, 1, 32))
        plain = layers[1].self_attn.q_proj(layers[1].input_layernorm(hidden)).view(4, 32)
        self.assertTrue(torch.allclose(query[0, :, 0].norm(dim=-1), plain.norm(dim=-1), rtol=1e-4))
        self.assertTrue(queries.fits(1, hidden, rotary, query))
        self.assertFalse(NextQuery(self.model.get_decoder()).fits(1, hidden, rotary, query + 1))
        guesser = Guesser(NextQuery(self.model.get_decoder()), always=True)
        guesser.layer_begins(1, hidden, rotary)
        with self.assertRaisesRegex(NotImplementedError, "guess=False"):
            guesser.next_query(1, query + 1)

    def test_guesses_are_kept_where_they_pay(self):
        for with_guesses, kept in ((0.9, True), (1.1, False)):
            trial = Trial()
            tried = []
            for _ in range(2 * Trial.TRIED + Trial.KEPT):
                tried.append(trial.guesses)
                trial.step(with_guesses if trial.guesses else 1.0)
            self.assertEqual(tried[:Trial.TRIED], [False] * Trial.TRIED)
            self.assertEqual(tried[Trial.TRIED:2 * Trial.TRIED], [True] * Trial.TRIED)
            self.assertEqual(set(tried[2 * Trial.TRIED:]), {kept})
            self.assertFalse(trial.guesses)  # tried again

    def test_read_plan(self):
        plan = Read(share=0.125, sinks=1, recents=4, resident=2.5).plan(6400, 8192, 8)
        self.assertEqual((plan.width, plan.resident), (100, 250))
        self.assertEqual(Read().plan(6400, 8192, 8).budget, 1024)
        self.assertEqual(Read(share=0.001).plan(6400, 8192, 8).budget, 1)
        for wrong in ({"share": 0}, {"share": 1.5}, {"blocks": 0}, {"resident": 0.5}):
            with self.assertRaises(ValueError):
                Read(**wrong)

    def test_lost_kv_is_not_hidden_for_ever(self):
        def fail(call):
            if call == "load":
                raise fake_skv.NotFoundError("gone")

        ids = prompt(400)
        with self.engine.open() as conversation:
            conversation.feed(ids[:300])
            conversation.step(ids[300])
            self.daemon.fail = fail
            with self.assertRaises(LostKv):
                conversation.feed(ids[301:])


def resident_bytes(memory):
    with open("/proc/self/smaps") as smaps:
        inside = total = 0
        for line in smaps:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                begin, end = (int(part, 16) for part in head.split("-"))
                inside = begin < memory.address + memory.nbytes and end > memory.address
            elif inside and head == "Rss:":
                total += int(line.split()[1]) * 1024
        return total


if __name__ == "__main__":
    unittest.main()
