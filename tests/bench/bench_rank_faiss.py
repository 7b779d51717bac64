#!/usr/bin/env python3
"""rank and cut beside FAISS: the same vectors, queries, k and one thread, in turn.

    bench_rank_faiss.py [--quick] [--json FILE] [--build FOLDER]

Values are FAISS's time over ours. The sets have to agree but for vectors whose exact score is within
the band of the k-th best (BANDS, of the largest |query| |vector|); anything else fails the run.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIM = 128
QUERIES = 8
FP16, INT8 = 2, 4  # IndexKind
# Of one quantizer: fp16 rounds to 2^-11, both int8 forms to a 254th of a range per channel.
BANDS = {"fp16": 1e-3, "flat": 1e-3, "sq8": 1e-2}
TARGETS = {1: 2.0, 4: 6.0, 8: 8.0}


class Ours:
    def __init__(self, binary: pathlib.Path, path: pathlib.Path) -> None:
        self.process = subprocess.Popen([str(binary), "--faiss-file", str(path)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.line() == "ready"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def ask(self, verb: str, queries: int) -> None:
        self.process.stdin.write(f"{verb} {queries}\n")
        self.process.stdin.flush()

    def seconds(self, queries: int) -> float:
        self.ask("time", queries)
        return float(self.line())

    def ids(self, queries: int) -> list[list[int]]:
        self.ask("ids", queries)
        return [[int(word) for word in self.line().split()] for _ in range(queries)]

    def close(self) -> None:
        self.process.stdin.write("quit\n")
        self.process.stdin.close()
        self.process.wait()


def check_sets(ours, theirs, scores, band: float, where: str) -> int:
    """Returns how many differ, all within the band."""
    differing = 0
    for query, (mine, yours) in enumerate(zip(ours, theirs)):
        mine, yours = set(mine), set(int(i) for i in yours)
        if len(mine) != len(yours):
            sys.exit(f"{where}: query {query} has {len(mine)} vectors, FAISS {len(yours)}")
        edge = sorted(scores[query][list(yours)])[0]
        for i in mine ^ yours:
            differing += 1
            if abs(scores[query][i] - edge) > band:
                sys.exit(f"{where}: query {query}, vector {i} scores {scores[query][i]:.5f}, the "
                         f"edge is {edge:.5f}: outside the band of {band:.5f}")
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--build", default=str(ROOT / "build" / "release"))
    options = parser.parse_args()
    try:
        import faiss
        import numpy
    except ImportError as error:
        print(f"skipped: {error}")
        return 0
    faiss.omp_set_num_threads(1)
    count, k, rounds = (4096, 64, 3) if options.quick else (200_000, 256, 21)
    random = numpy.random.default_rng(1)
    vectors = random.standard_normal((count, DIM), dtype=numpy.float32)
    queries = random.standard_normal((QUERIES, DIM), dtype=numpy.float32)
    scores = queries.astype(numpy.float64) @ vectors.astype(numpy.float64).T
    largest = (numpy.linalg.norm(queries, axis=1).max() * numpy.linalg.norm(vectors, axis=1).max())

    def quantizer(kind):
        index = faiss.IndexScalarQuantizer(DIM, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        return index

    indexes = {"fp16": (FP16, quantizer(faiss.ScalarQuantizer.QT_fp16)),
               "flat": (FP16, faiss.IndexFlatIP(DIM)),
               "sq8": (INT8, quantizer(faiss.ScalarQuantizer.QT_8bit))}
    figures = []
    print(f"faiss {faiss.__version__} ({faiss.get_compile_options().strip()}), one thread, "
          f"{count} x {DIM}, k = {k}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, index) in indexes.items():
            index.add(vectors)
            path = pathlib.Path(folder) / "vectors"
            with open(path, "wb") as file:
                file.write(struct.pack("<5I", kind, count, DIM, QUERIES, k))
                file.write(vectors.tobytes())
                file.write(queries.tobytes())
            ours = Ours(pathlib.Path(options.build) / "bin" / "bench_rank", path)
            found = index.search(queries, k)[1]
            differing = check_sets(ours.ids(QUERIES), found, scores, BANDS[name] * largest, name)
            for group in TARGETS:
                mine, theirs = [], []
                for _ in range(rounds):
                    begin = time.thread_time()
                    index.search(queries[:group], k)
                    theirs.append(time.thread_time() - begin)
                    mine.append(ours.seconds(group))
                value, limit = statistics.median(mine) * 1e3, statistics.median(theirs) * 1e3
                ratio = limit / value
                target = TARGETS[group] if name == "fp16" else None
                metric = f"rank.faiss.q{group}" if name == "fp16" else f"rank.faiss.{name}.q{group}"
                case = (f"{count} x {DIM}, k {k}, ours {value:.3f} ms, FAISS {limit:.3f} ms, "
                        f"{differing} of {QUERIES * k} in the band")
                figures.append({"name": metric, "case": case, "value": ratio, "unit": "x",
                                "limit": None, "limit_name": f"FAISS {name}", "ratio": None,
                                "target": target, "met": target is None or ratio >= target})
                print(f"{metric:22s} {case:80s} {ratio:7.2f}x  "
                      f"{'' if target is None else f'>= {target}'}", flush=True)
            ours.close()
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
