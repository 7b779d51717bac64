"""Three engine processes decode over a long document while skvd holds its sentences in three tiers.

Process 1 (cold) computes the document and answers questions while reading less and less of it.
Process 2 (shared) runs at the same time and finds the document there. skvd restarts. Process 3
(restarted) finds it on NVMe. Everything is compared with full KV in transformers alone.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Optional

from . import document as documents
from . import model as demo_model
from . import picture, report
from .daemon import Daemon, die_with_parent
from .progress import Progress

ROOT = pathlib.Path(__file__).resolve().parents[3]
PERCENTS = [100, 25, 12.5, 6.25]
PERCENTS_OTHERS = [100, 12.5]  # of processes 2 and 3


@dataclasses.dataclass(frozen=True)
class Scale:
    document_tokens: int
    held_out: int
    answer_tokens: int
    chunk_tokens: int


FULL = Scale(document_tokens=1 << 20, held_out=128, answer_tokens=24, chunk_tokens=1024)
QUICK = Scale(document_tokens=2048, held_out=48, answer_tokens=16, chunk_tokens=512)


def arguments(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo.sh", description=__doc__.strip(),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=pathlib.Path, metavar="FILE",
                        help="any UTF-8 text (default: a chapter of Darwin's Voyage of the Beagle)")
    parser.add_argument("--question", action="append", metavar="TEXT", default=[],
                        help="ask this; may be repeated (default: three about the shipped document)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--quick", action="store_true", help="2K tokens; under 3 minutes on 2 cores")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE",
                        help="default: demo.png in the work folder")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32",
                        help="of model and KV (default: float32: more memory, and the faster step on "
                             "CPUs without matrix units for bfloat16)")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "demo", metavar="FOLDER",
                        help="model, socket, NVMe file, log (default: build/demo)")
    parser.add_argument("--skvd", type=pathlib.Path, default=ROOT / "build" / "release" / "bin" / "skvd",
                        metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class EngineProcess:
    """A child that runs skv_demo.process; its lines arrive as (name, event) on a common queue."""

    def __init__(self, name: str, job: dict, folder: pathlib.Path, events: queue.Queue) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        path = folder / f"{name}.job.json"
        path.write_text(json.dumps(job))
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "skv_demo.process", path], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=die_with_parent,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
        self._reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._reader.start()

    def _read(self, events: queue.Queue) -> None:
        for line in self._process.stdout:
            try:
                events.put((self.name, json.loads(line)))
            except json.JSONDecodeError:
                pass  # what a library printed
        events.put((self.name, {"event": "exit", "code": self._process.wait()}))

    def go(self) -> None:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def leave(self) -> None:
        """Lets a process that is done end."""
        if not self._process.stdin.closed:
            self._process.stdin.close()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class Demo:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.scale = QUICK if options.quick else FULL
        self.folder: pathlib.Path = options.work.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.progress = Progress()
        self.events: queue.Queue = queue.Queue()
        self.processes: dict[str, EngineProcess] = {}
        self.state: dict[str, dict[str, Any]] = {}
        self.daemon: Optional[Daemon] = None
        self.model_folder = self.folder / f"model-{options.dtype}"

    # ---- what is asked ---------------------------------------------------------------------------

    def prepare(self) -> None:
        if not (self.model_folder / "complete").exists():
            self.progress.say(f"unpacking {demo_model.NAME} to {self.model_folder} "
                              f"({'0.3' if self.options.dtype == 'bfloat16' else '0.5'} GB, once)")
        # In a process of its own: the 1.2 GB of memory that it takes are gone afterwards.
        subprocess.run([sys.executable, "-m", "skv_demo.model", self.model_folder, self.options.dtype],
                       check=True, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent,
                       env={**os.environ, **({} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"})})
        demo_model._quiet()
        from transformers import AutoConfig, AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(self.model_folder)
        self.config = AutoConfig.from_pretrained(self.model_folder)
        shipped = ROOT / "tests" / "data" / documents.SHIPPED
        path = self.options.document or shipped
        questions = [documents.Question(text) for text in self.options.question]
        if not questions and self.options.document is None:
            questions = documents.read_questions(shipped.with_name(documents.SHIPPED_QUESTIONS),
                                                 "quick" if self.options.quick else "questions")
        if not questions:
            questions = [documents.Question(text) for text in (
                "What is this text about?", "Who or what is named first in this text?",
                "How does this text end?")]
        self.document, notes = documents.build(
            path, questions, tokenizer, tokens_max=self.scale.document_tokens,
            held_out=self.scale.held_out, answer_tokens=self.scale.answer_tokens,
            context_max=self.config.max_position_embeddings)
        for note in notes:
            self.progress.say(note)
        element = 2 if self.options.dtype == "bfloat16" else 4
        heads, dim = self.config.num_key_value_heads, self.config.head_dim
        self.token_bytes = 2 * self.config.num_hidden_layers * heads * dim * element
        prefix = len(self.document.prefix)
        self.data_bytes = prefix * self.token_bytes
        behind = max(len(q.ids) for q in self.document.questions) + self.scale.answer_tokens
        behind = max(behind, self.scale.held_out) + 256
        # Two processes at once, each with one window that may hold everything, and slabs are whole.
        device = 2 * (prefix + behind) * self.token_bytes * 1.25 + 32e6
        self.daemon = Daemon(self.options.skvd, self.folder, data_bytes=self.data_bytes,
                             device_bytes=int(device))

    # ---- the processes ---------------------------------------------------------------------------

    def start(self, name: str, percents: list[float]) -> EngineProcess:
        job = {"role": name, "document": self.document.to_json(), "percents": percents,
               "answer_tokens": self.scale.answer_tokens, "chunk_tokens": self.scale.chunk_tokens,
               "socket": str(self.daemon.socket), "dtype": self.options.dtype,
               "model": str(self.model_folder)}
        self.state[name] = {"events": set(), "runs": []}
        process = EngineProcess(name, job, self.folder, self.events)
        self.processes[name] = process
        return process

    def wait(self, name: str, event: str) -> None:
        """Handles what all processes say until `name` said `event`."""
        while event not in self.state[name]["events"]:
            try:
                who, said = self.events.get(timeout=1.0)
            except queue.Empty:
                if not self.daemon.alive():
                    raise SystemExit(f"skvd died:\n{self.daemon.log_tail()}") from None
                continue
            self.handle(who, said)

    def handle(self, who: str, said: dict) -> None:
        state, what = self.state[who], said["event"]
        state["events"].add(what)
        say = self.progress.say
        if what == "progress":
            self.progress.update(who, said["what"], said["done"], said["total"])
        elif what == "first_token":
            state["first_token"] = said
            found = ("computed all of it" if not said["matched"] else
                     f"found {said['matched']:,} stored, {said['nvme']:,} of them on NVMe")
            say(f"{who}: first token after {said['seconds']:.2f} s "
                f"({said['tokens']:,} tokens, {found})")
        elif what == "run":
            state["runs"].append(said)
            say(f"{who}: {said['percent']:g} % read: perplexity {said['perplexity']:.3f}, "
                f"{said['step_ms']:.0f} ms per step")
        elif what == "reference":
            state["reference"] = said
            say(f"reference: full KV in transformers: perplexity {said['perplexity']:.3f}")
        elif what == "durable":
            say(f"{who}: {said['sentences']:,} sentences are durable")
        elif what == "exit":
            self.progress.finish(who)
            wanted = "reference" if who == "reference" else "done"
            if said["code"] != 0 or wanted not in state["events"]:
                raise SystemExit(f"process {who} ended with {said['code']}:\n"
                                 f"{self.processes[who].log_tail()}\nskvd:\n{self.daemon.log_tail()}")

    def run(self) -> dict:
        say = self.progress.say
        self.prepare()
        document = self.document
        say(f"{document.name}: {document.tokens:,} tokens, {self.data_bytes / 1e6:.0f} MB of KV in "
            f"{self.options.dtype}; {len(document.questions)} questions")
        self.daemon.start(fresh=True)
        say(f"skvd: host {self.daemon.host_bytes / 1e6:.0f} MB, emulated device "
            f"{self.daemon.device_bytes / 1e6:.0f} MB, NVMe file {self.daemon.nvme_bytes / 1e6:.0f} MB")
        cold = self.start("cold", PERCENTS)
        self.start("reference", [])
        self.wait("cold", "ready")
        cold.go()
        self.wait("reference", "exit")
        shared = self.start("shared", PERCENTS_OTHERS)
        self.wait("shared", "ready")
        self.wait("cold", "stored")
        shared.go()
        self.wait("shared", "done")
        self.wait("cold", "done")
        for process in (cold, shared):
            process.leave()
            self.wait(process.name, "exit")

        restarted = self.start("restarted", PERCENTS_OTHERS)  # loads its model meanwhile
        stopped = self.daemon.stop()
        started = self.daemon.start(fresh=False)
        say(f"skvd restarted: {stopped:.2f} s to drain and end, {started:.2f} s until it answered")
        self.wait("restarted", "ready")
        restarted.go()
        self.wait("restarted", "done")
        restarted.leave()
        self.wait("restarted", "exit")
        return self.results()

    def results(self) -> dict:
        reference = self.state["reference"]["reference"]
        cold = self.state["cold"]
        target = (self.options.picture or self.folder / "demo.png").resolve()
        drawn = next((run for run in cold["runs"] if run["pictures"]), None)
        if drawn is not None:
            picture.draw(target, drawn["pictures"], self.document.questions, drawn["texts"],
                         percent=drawn["percent"], document=self.document.name,
                         tokens=len(self.document.prefix),
                         rows=self.config.num_hidden_layers * self.config.num_key_value_heads)
        runs = [report.run_record(name, run, reference)
                for name in ("cold", "shared", "restarted") for run in self.state[name]["runs"]]
        self.answers = [(q.text, full, [(run["percent"], run["texts"][i]) for run in cold["runs"]])
                        for i, (q, full) in enumerate(zip(self.document.questions, reference["texts"]))]
        return {"model": demo_model.NAME,
                "document": {"name": self.document.name, "tokens": self.document.tokens,
                             "sentences": cold["first_token"]["sentences"]},
                "runs": runs, "picture": str(target) if drawn is not None else None}

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon.clean()


def main() -> int:
    options = arguments()
    if options.document is not None and not options.document.is_file():
        raise SystemExit(f"--document: there is no file {options.document}")
    if not options.skvd.is_file():
        raise SystemExit(f"{options.skvd} is not built; scripts/demo.sh builds it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    demo = Demo(options)
    try:
        results = demo.run()
    finally:
        demo.close()
    print()
    for question, full, answers in demo.answers:
        print(f"Q: {question}\n   full KV  {full!r}")
        for percent, text in answers:
            print(f"   {percent:>5g} %  {'the same' if text == full else repr(text)}")
    print()
    print(report.table(results["runs"]))
    print()
    print(report.LEGEND)
    print(f"\npicture: {results['picture']}\n{time.monotonic() - began:.0f} s in all")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
