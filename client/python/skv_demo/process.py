"""One engine process of the demo. It talks to its parent in lines of JSON on standard output.

    python -m skv_demo.process JOB.json

A job is {"role": "reference" | "cold" | "shared" | "restarted", ...}; the reference is transformers
alone, without skvd. The other roles load the model, say {"event": "ready"}, wait for a line on
standard input, work, say {"event": "done"} and stay until standard input ends.
"""
from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import time
from typing import Any, Optional

from . import model as demo_model
from .document import Document

PICTURE_PERCENT = 12.5


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


class Job:
    def __init__(self, fields: dict) -> None:
        self.role: str = fields["role"]
        self.document = Document.from_json(fields["document"])
        self.percents: list[float] = fields["percents"]
        self.answer_tokens: int = fields["answer_tokens"]
        self.chunk_tokens: int = fields["chunk_tokens"]
        self.socket: str = fields["socket"]
        self.dtype: str = fields["dtype"]
        model, self.tokenizer = demo_model.load(pathlib.Path(fields["model"]), self.dtype)
        self.model = model
        self.stop = {model.config.eos_token_id, self.tokenizer.eos_token_id}
        # Room for the longest of what comes behind the prefix.
        behind = max([len(q.ids) + self.answer_tokens for q in self.document.questions]
                     + [len(self.document.held_out)])
        self.max_tokens = len(self.document.prefix) + behind + 8

    def perplexity(self, nll: float) -> float:
        return math.exp(nll / len(self.document.held_out))


def reference(job: Job) -> None:
    """Full KV in torch, attended whole: what the other processes are compared with."""
    import copy
    import torch
    from transformers import DynamicCache
    prefix = job.document.prefix
    cache = DynamicCache()
    with torch.no_grad():
        for at in range(0, len(prefix), job.chunk_tokens):
            output = job.model(torch.tensor([prefix[at:at + job.chunk_tokens]]), past_key_values=cache,
                               logits_to_keep=1)
            say("progress", what="prefill", done=min(at + job.chunk_tokens, len(prefix)),
                total=len(prefix))
        held_out = job.document.held_out
        own = copy.deepcopy(cache)
        rows = [output.logits[0, -1:]]
        rows.append(job.model(torch.tensor([held_out]), past_key_values=own).logits[0, :-1])
        logits = torch.cat(rows).float().log_softmax(-1)
        nll = -sum(float(logits[i, token]) for i, token in enumerate(held_out))
        answers = []
        for index, question in enumerate(job.document.questions):
            own = copy.deepcopy(cache)
            row = job.model(torch.tensor([question.ids]), past_key_values=own,
                            logits_to_keep=1).logits[0, -1]
            answer: list[int] = []
            while len(answer) < job.answer_tokens:
                token = int(row.argmax())
                if token in job.stop:
                    break
                answer.append(token)
                row = job.model(torch.tensor([[token]]), past_key_values=own).logits[0, -1]
            answers.append(answer)
            say("progress", what="answers", done=index + 1, total=len(job.document.questions))
    say("reference", answers=answers, texts=[job.tokenizer.decode(a) for a in answers],
        perplexity=job.perplexity(nll))


class Runner:
    """The work of an engine process: for each share, the questions and the continuation."""

    def __init__(self, job: Job) -> None:
        import skv
        import skv.hf
        self.job = job
        self.hf = skv.hf
        self.session = skv.Session(job.socket, client_name=f"demo-{job.role}", connect_timeout=10.0)
        self.engine = skv.hf.Engine(job.model, job.tokenizer, self.session)
        self.total = len(job.percents) * (len(job.document.questions) + 1)
        self.ended = 0

    def close(self) -> None:
        self.engine.close()
        self.session.close()

    def open(self, percent: float, reuse: bool, trace: bool):
        read = self.hf.Read(share=percent / 100)
        return self.engine.open(read=read, reuse=reuse, chunk_tokens=self.job.chunk_tokens,
                                max_tokens=self.job.max_tokens, trace=trace)

    def feed_prefix(self, conversation: Any, ids: list[int], announce: bool):
        """The prefix, and behind it `ids`, as one prompt. The sentence ends of the prefix come from
        its text; with reuse they come with what is stored."""
        def progress(done: int, total: int) -> None:
            if announce:
                say("progress", what="prefill", done=done, total=total)
        return conversation.feed(self.job.document.prefix + ids, progress=progress)

    def first_run(self) -> float:
        """Prompt to first token, as this process finds the prefix: cold, shared or on NVMe. Each
        process begins with another question, so that the second finds the document but not the
        question's own KV."""
        job = self.job
        questions = job.document.questions
        question = questions[("cold", "shared", "restarted").index(job.role) % len(questions)]
        began = time.perf_counter()
        with self.open(job.percents[0], reuse=job.role != "cold", trace=False) as conversation:
            logits = self.feed_prefix(conversation, question.ids, announce=True)
            int(logits.argmax())
            seconds = time.perf_counter() - began
            report = conversation.report
            load = conversation.steps.of("dense")
            sentences = len(conversation.cache.sentence_stops)
            say("first_token", seconds=seconds, tokens=report.tokens, matched=report.matched_tokens,
                host=report.host_tokens, nvme=report.nvme_tokens, sentences=sentences,
                chunks_host=sum(step.chunks_host for step in load),
                chunks_nvme=sum(step.chunks_nvme for step in load))
        return seconds

    def run(self, percent: float, first_token_seconds: float) -> None:
        job = self.job
        steps, answers, pictures = [], [], []
        filled = []  # the first step of each window: all that it reads has to be moved
        for question in job.document.questions:
            with self.open(percent, reuse=True, trace=True) as conversation:
                logits = self.feed_prefix(conversation, question.ids, announce=False)
                answers.append(list(conversation.generate(job.answer_tokens, logits, job.stop)))
                decoded = conversation.steps.of("decode")
                steps += decoded
                filled += decoded[:1]
                if job.role == "cold" and percent == self.picture_percent():
                    pictures.append({"reads": [s.read_sentences.tolist() for s in decoded],
                                     "stops": conversation.cache.sentence_stops.tolist()})
            self.progress(percent)
        nll, tail = self.continuation(percent)
        steps += tail
        filled += tail[:1]
        self.progress(percent)
        say("run", percent=percent, answers=answers,
            texts=[job.tokenizer.decode(answer) for answer in answers],
            perplexity=job.perplexity(nll), first_token_seconds=first_token_seconds,
            pictures=pictures, **self.counters(steps, filled))

    def picture_percent(self) -> float:
        return PICTURE_PERCENT if PICTURE_PERCENT in self.job.percents else self.job.percents[-1]

    def continuation(self, percent: float) -> tuple[float, list]:
        """Negative log likelihood of the held-out tokens, teacher-forced one by one."""
        nll = 0.0
        with self.open(percent, reuse=True, trace=True) as conversation:
            logits = self.feed_prefix(conversation, [], announce=False)
            for index, token in enumerate(self.job.document.held_out):
                nll -= float(logits.log_softmax(-1)[token])
                if index + 1 < len(self.job.document.held_out):
                    logits = conversation.step(token)
            return nll, conversation.steps.of("decode")

    def counters(self, steps: list, filled: list) -> dict:
        import numpy as np
        later = [step for step in steps if not any(step is first for first in filled)]
        geometry = self.engine.geometry
        rows = geometry.layers * geometry.kv_heads
        prefetch = np.array([us for step in steps for us in step.prefetch_us] or [0.0])
        count = max(len(steps), 1)
        block = geometry.block_tokens
        return {
            "steps": len(steps),
            "step_ms": 1e3 * sum(step.seconds for step in steps) / count,
            "tokens_read": sum(step.read_blocks * block / rows + step.tail_tokens
                               for step in steps) / count,
            "tokens_resident": max((step.resident_blocks * block for step in steps), default=0.0),
            "context_tokens": sum(step.position + 1 for step in steps) / count,
            "bytes_moved_per_step": sum(step.bytes_moved for step in later) / max(len(later), 1),
            "bytes_moved_first_step": sum(step.bytes_moved for step in filled) / max(len(filled), 1),
            "hits": {"device": sum(step.hits_device for step in steps),
                     "host": sum(step.hits_host for step in steps),
                     "nvme": sum(step.hits_nvme for step in steps),
                     "miss": sum(step.misses for step in steps)},
            "prefetch_us": {"p50": float(np.percentile(prefetch, 50)),
                            "p99": float(np.percentile(prefetch, 99))},
            "guesses": sum(step.guesses for step in steps),
            "exact_steps": sum(step.exact for step in steps),
        }

    def progress(self, percent: float) -> None:
        self.ended += 1
        say("progress", what=f"decoding at {percent:g} %", done=self.ended, total=self.total)


def main() -> None:
    job = Job(json.loads(pathlib.Path(sys.argv[1]).read_text()))
    if job.role == "reference":
        reference(job)
        return
    runner: Optional[Runner] = None
    try:
        say("ready")
        sys.stdin.readline()
        runner = Runner(job)
        seconds = runner.first_run()
        if job.role == "cold":
            say("stored")
        for percent in job.percents:
            runner.run(percent, seconds)
        if job.role != "restarted":
            import skv
            say("durable", sentences=runner.session.flush(skv.FlushLevel.DURABLE))
        say("done")
        sys.stdin.read()  # alive until the parent has seen what it wants
    finally:
        if runner is not None:
            runner.close()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
