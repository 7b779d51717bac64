"""Sentence ends from growing text: what is declared final never changes, however tokens come in."""
from __future__ import annotations

import pathlib
import random
import sys
import unittest

import fake_skv

sys.dont_write_bytecode = True
fake_skv.install()

from skv.hf.sentences import SentenceEnds  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
HARD = ("Mr. Smith went to Washington. He paid 3.50 dollars. The U.S. army (his words!) agreed... "
        "and then left. \"Why?\" she asked. No. 7 was next.  12 (3) then small letters follow. "
        "Ünïcödé – ça va? 日本語の文です。次の文。 \U0001f600 smiles. \U0001f468\u200d\U0001f469 families.\n\n"
        "A new paragraph\nwith a line break. End")


def small_tokenizer():
    """A byte-level BPE like that of real models, trained here: characters may be several tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast
    tokenizer = ByteLevelBPETokenizer()
    document = (ROOT / "tests/data/galapagos.txt").read_text()
    tokenizer.train_from_iterator([document], vocab_size=800, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer,
                                   clean_up_tokenization_spaces=False)


class SentenceEndsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tokenizer = small_tokenizer()
        cls.document = (ROOT / "tests/data/galapagos.txt").read_text()[:6000]

    def encode(self, text):
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def sentences(self, text):
        """Text between the ends of `text`, the whole of it known at once."""
        ids, offsets = self.encode(text)
        ends, _ = SentenceEnds(self.tokenizer).feed(ids, text, offsets)
        return [self.tokenizer.decode(ids[a:b]) for a, b in zip([0] + ends, ends)]

    def test_rules(self):
        self.assertEqual(self.sentences("It rained. We left. Nobody saw"), ["It rained.", " We left."])
        # a small letter goes on with the sentence, a number inside one does not end it
        self.assertEqual(self.sentences("He paid 3.50 etc. and left. Then"), ["He paid 3.50 etc. and left."])
        self.assertEqual(self.sentences("\"Why?\" She asked.\n\nNo"), ["\"Why?\"", " She asked.\n", "\n"])

    def test_nothing_final_too_early(self):
        # "etc." is an end if a capital follows and none if a small letter does.
        for tail, expected in ((" Then", [0]), (" then", [])):
            ends = SentenceEnds(self.tokenizer)
            ids, _ = self.encode("He paid etc.")
            found, final_to = ends.feed(ids)
            self.assertEqual(found, [])
            self.assertLess(final_to, len(ids))
            more, _ = ends.feed(self.encode(tail)[0])
            self.assertEqual(more, [len(ids)] if expected else [])

    def test_final_grows_without_ends(self):
        ends = SentenceEnds(self.tokenizer)
        ids, _ = self.encode("one very long sentence goes on and on without any end in sight and then")
        found, final_to = ends.feed(ids)
        self.assertEqual(found, [])
        self.assertGreaterEqual(final_to, len(ids) - 2)

    # Goal: the ends do not depend on how the tokens were batched, with offsets or without, and what
    # was called final stays so.
    def test_batches_do_not_matter(self):
        randomness = random.Random(7)
        for text in (HARD, self.document):
            ids, offsets = self.encode(text)
            whole, whole_final = SentenceEnds(self.tokenizer).feed(ids, text, offsets)
            self.assertGreater(len(whole), 5)
            for longest in (1, 3, 40, 400):
                ends, found, final_to, at = SentenceEnds(self.tokenizer), [], 0, 0
                while at < len(ids):
                    stop = min(len(ids), at + randomness.randint(1, longest))
                    new, now_final = ends.feed(ids[at:stop])
                    self.assertTrue(all(end > final_to for end in new), (new, final_to))
                    self.assertGreaterEqual(now_final, final_to)
                    self.assertTrue(all(end <= stop for end in new))
                    self.assertLessEqual(now_final, stop)
                    found, final_to, at = found + new, now_final, stop
                self.assertEqual(found, whole)
                self.assertEqual(final_to, whole_final)

    def test_without_tokenizer(self):
        self.assertEqual(SentenceEnds().feed([1, 2, 3]), ([], 3))


if __name__ == "__main__":
    unittest.main()
