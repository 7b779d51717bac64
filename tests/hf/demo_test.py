"""The demo's parts that need neither model nor daemon: what is asked, the report, the picture."""
from __future__ import annotations

import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
import fake_skv  # noqa: E402

fake_skv.install()
from sentences_test import small_tokenizer  # noqa: E402
from skv_demo import document as documents, picture, report  # noqa: E402
from skv_demo.__main__ import FULL, QUICK  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "tests/data" / documents.SHIPPED


def shipped_questions(which):
    return documents.read_questions(SHIPPED.with_name(documents.SHIPPED_QUESTIONS), which)


class DocumentTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tokenizer = small_tokenizer()

    def build(self, questions, path=SHIPPED, **changed):
        options = {"tokens_max": 1 << 20, "held_out": 128, "answer_tokens": 24, "context_max": 1 << 20}
        return documents.build(path, questions, self.tokenizer, **{**options, **changed})

    def test_shipped_questions_have_their_places(self):
        document, notes = self.build(shipped_questions("questions"))
        self.assertEqual(notes, [])
        places = [question.evidence_token for question in document.questions]
        self.assertEqual(len(places), 3)
        self.assertEqual(places, sorted(places))
        for question in document.questions:
            words = self.tokenizer.decode(document.prefix[question.evidence_token:][:40])
            self.assertIn(question.evidence[:20], words)
        self.assertGreater(places[2] - places[0], len(document.prefix) / 2)

    # Goal: the document goes on exactly where the prefix ends.
    def test_held_out_follows_the_prefix(self):
        document, _ = self.build([])
        text = SHIPPED.read_text().strip()
        self.assertEqual(self.tokenizer.decode(document.prefix + document.held_out), text)
        self.assertEqual(document.text, text[:len(document.text)])
        self.assertEqual(len(document.held_out), 128)
        again = documents.Document.from_json(document.to_json())
        self.assertEqual(again, document)

    # Goal: --quick asks what its first 2K tokens answer (the real tokenizer's are longer than these).
    def test_quick_fits(self):
        text = SHIPPED.read_text()
        for question in shipped_questions("quick"):
            self.assertLess(text.index(question.evidence), 4 * QUICK.document_tokens)
        self.assertGreater(FULL.held_out, QUICK.held_out)

    def test_any_document(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "own.txt")
            path.write_text("Ein Satz – noch einer? 日本語。 " * 200, encoding="utf-8")
            document, notes = self.build([documents.Question("Was steht da?")], path, context_max=2000)
            self.assertEqual(len(notes), 1)  # cut, and said so
            self.assertLess(len(document.prefix), 2000)
            self.assertIsNone(document.questions[0].evidence_token)
            path.write_text("Too short.")
            with self.assertRaisesRegex(SystemExit, "too few"):
                self.build([], path)
            path.write_text("word " * 3000)
            with self.assertRaisesRegex(SystemExit, "a question may have"):
                self.build([documents.Question("why " * 900)], path)


def a_run(percent):
    return {"percent": percent, "answers": [[1, 2], [3]], "texts": ["a", "b"], "tokens_read": 100.0,
            "tokens_resident": 250.0, "perplexity": 10.1, "bytes_moved_per_step": 1e6, "bytes_moved_first_step": 5e6,
            "guesses": 0,
            "hits": {"device": 5, "host": 4, "nvme": 3, "miss": 0}, "step_ms": 80.0, "steps": 7,
            "prefetch_us": {"p50": 100.0, "p99": 900.0}, "first_token_seconds": 1.25,
            "context_tokens": 1000.0}


class ReportTest(unittest.TestCase):
    def test_record_and_table(self):
        reference = {"perplexity": 10.0, "answers": [[1, 2], [4]]}
        record = report.run_record("shared", a_run(12.5), reference)
        self.assertEqual((record["answers_equal"], record["questions"]), (1, 2))
        for key in ("process", "read_percent", "tokens_read", "tokens_resident", "perplexity",
                    "perplexity_full", "bytes_moved_per_step", "hits", "prefetch_us",
                    "time_to_first_token_s"):
            self.assertIn(key, record)
        text = report.table([report.run_record("cold", a_run(100), reference), record])
        self.assertIn("+1.00 %", text)
        self.assertIn("1/2", text)
        self.assertEqual(len({len(line) for line in text.splitlines()}), 1)

    def test_picture(self):
        question = documents.Question("How many $ are there?", "x", evidence_token=70)
        panel = {"reads": [[0, 3, 9], [1, 0, 9, 2]], "stops": [40, 80, 120, 160]}
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "demo.png")
            picture.draw(path, [panel], [question], ["An $ answer"], percent=12.5, document="d",
                         tokens=160, rows=9)
            self.assertEqual(path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")


if __name__ == "__main__":
    unittest.main()
