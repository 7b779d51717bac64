"""What the Python package adds to the round trips of libskv: each call's time outside the C function that it
calls, beside the time inside, from the same rounds against a real skvd.

    bench_python.py [--quick] [--json FILE]
"""
from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any, Callable, Dict, List

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
os.environ.setdefault("SKV_DAEMON", str(BUILD / "bin" / "skvd"))
os.environ.setdefault("SKV_LIBRARY", str(BUILD / "lib" / "libskv.so"))
sys.path[:0] = [str(ROOT / "client" / "python"), str(ROOT / "tests" / "client" / "python")]

import numpy as np  # noqa: E402
import skv  # noqa: E402
from daemon import Daemon  # noqa: E402
from skv import _abi  # noqa: E402

LAYERS, HEADS, QUERIES, DIM, TOKENS = 2, 8, 4, 128, 640


class Inside:
    """Replaces one function of the library by itself with a clock around it."""

    def __init__(self, name: str) -> None:
        self.name, self.function, self.ns = name, getattr(_abi.lib, name), 0

    def __enter__(self) -> "Inside":
        def timed(*arguments: Any) -> int:
            start = time.perf_counter_ns()
            code = self.function(*arguments)
            self.ns += time.perf_counter_ns() - start
            return code

        setattr(_abi.lib, self.name, timed)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(_abi.lib, self.name, self.function)


def measure(function: str, call: Callable[[], Any], rounds: int) -> Dict[str, float]:
    outside: List[float] = []
    inside: List[float] = []
    with Inside(function) as clock:
        for turn in range(-5, rounds):
            clock.ns = 0
            start = time.perf_counter_ns()
            call()
            total = time.perf_counter_ns() - start
            if turn >= 0:
                inside.append(clock.ns / 1000)
                outside.append((total - clock.ns) / 1000)
    return {"outside": statistics.median(outside), "inside": statistics.median(inside)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    given = parser.parse_args()
    rounds = 30 if given.quick else 1000

    daemon = Daemon(host="256MiB").start()
    try:
        session = skv.Session(daemon.socket, client_name="bench")
        layer = skv.Layer(HEADS, QUERIES, DIM)
        model = session.model(skv.ModelDescriptor("bench-python", skv.Dtype.FP16, [layer] * LAYERS))
        context = model.context()
        ends = np.arange(32, TOKENS + 1, 32)
        context.append(np.arange(TOKENS), ends, ends_final_to=TOKENS + 64)
        shape = (2, LAYERS, HEADS, TOKENS, DIM)
        memory = session.memory(int(np.prod(shape)) * 2)
        kv = memory.array(shape, np.dtype(np.float16))
        kv[:] = np.random.default_rng(1).standard_normal(shape).astype(np.float16)
        source = skv.StridedKv.of(memory, kv[0], kv[1])
        count = len(context.sentences()) - 1
        context.put_reserve(0, count + 1)
        context.put_write(0, count, 0, LAYERS, source)
        context.put_commit(0, count)
        window = context.window(16)
        query = np.random.default_rng(2).standard_normal(
            (1, HEADS * QUERIES, DIM)).astype(np.float32)
        version = 0

        def prefetch() -> None:
            nonlocal version
            version = window.prefetch(query, 0, 1).version
            _done(window._handle, version)

        _done = _abi.lib.skv_readers_done
        calls = {
            "prefetch": ("skv_prefetch", prefetch),
            "table": ("skv_window_table", lambda: window.table(0)),
            "readers_done": ("skv_readers_done", lambda: window.readers_done(version)),
            "put_write": ("skv_put_write",
                          lambda: context.put_write(count, 1, 0, 1, source)),
            "stat": ("skv_stat", lambda: session.stat(skv.StatKind.SESSION)),
        }
        figures = []
        for name, (function, call) in calls.items():
            seen = measure(function, call, rounds)
            figures.append({
                "name": f"python.{name}", "case": f"outside {function}, beside inside",
                "value": seen["outside"], "unit": "us", "limit": seen["inside"],
                "limit_name": function, "ratio": seen["outside"] / max(seen["inside"], 1e-9),
                "target": None, "met": None})
            print(f"python.{name:<14} + {seen['outside']:8.2f} us outside, "
                  f"{seen['inside']:8.2f} us inside {function}")
    finally:
        daemon.close()
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
