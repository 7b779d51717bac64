"""The demo's results: one table for people, one JSON object for programs."""
from __future__ import annotations

from typing import Any, Sequence


def run_record(role: str, run: dict, reference: dict) -> dict:
    """One entry of "runs" in the JSON file."""
    equal = sum(own == full for own, full in zip(run["answers"], reference["answers"]))
    return {
        "process": role,
        "read_percent": run["percent"],
        "tokens_read": round(run["tokens_read"], 1),
        "tokens_resident": round(run["tokens_resident"], 1),
        "perplexity": run["perplexity"],
        "perplexity_full": reference["perplexity"],
        "answers_equal": equal,
        "questions": len(reference["answers"]),
        "bytes_moved_per_step": round(run["bytes_moved_per_step"]),
        "bytes_moved_first_step": round(run["bytes_moved_first_step"]),
        "guesses": run["guesses"],
        "hits": run["hits"],
        "prefetch_us": {name: round(value, 1) for name, value in run["prefetch_us"].items()},
        "time_to_first_token_s": round(run["first_token_seconds"], 3),
        "context_tokens": round(run["context_tokens"], 1),
        "step_ms": round(run["step_ms"], 1),
        "steps": run["steps"],
    }


def table(runs: Sequence[dict]) -> str:
    columns: list[tuple[str, Any]] = [
        ("process", lambda r: r["process"]),
        ("read", lambda r: f"{r['read_percent']:g} %"),
        ("tokens", lambda r: f"{r['tokens_read']:,.0f}"),
        ("share", lambda r: f"{100 * r['tokens_read'] / r['context_tokens']:.1f} %"),
        ("resident", lambda r: f"{min(100 * r['tokens_resident'] / r['context_tokens'], 100):.1f} %"),
        ("perplexity", lambda r: f"{r['perplexity']:.3f}"),
        ("vs full", lambda r: f"{100 * (r['perplexity'] / r['perplexity_full'] - 1):+.2f} %"),
        ("answers =", lambda r: f"{r['answers_equal']}/{r['questions']}"),
        ("moved/step", lambda r: f"{r['bytes_moved_per_step'] / 1e6:.2f} MB"),
        ("1st step", lambda r: f"{r['bytes_moved_first_step'] / 1e6:.1f} MB"),
        ("guesses", lambda r: f"{r['guesses']:,}"),
        ("device", lambda r: f"{r['hits']['device']:,}"),
        ("host", lambda r: f"{r['hits']['host']:,}"),
        ("nvme", lambda r: f"{r['hits']['nvme']:,}"),
        ("miss", lambda r: f"{r['hits']['miss']:,}"),
        ("p50", lambda r: f"{r['prefetch_us']['p50']:,.0f} us"),
        ("p99", lambda r: f"{r['prefetch_us']['p99']:,.0f} us"),
        ("step", lambda r: f"{r['step_ms']:.0f} ms"),
        ("1st token", lambda r: f"{r['time_to_first_token_s']:.2f} s"),
    ]
    rows = [[name for name, _ in columns]] + [[cell(run) for _, cell in columns] for run in runs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths))) for row in rows]
    rule = "-" * len(lines[0])
    lines.insert(1, rule)
    for index in range(len(runs) - 1, 0, -1):
        if runs[index]["process"] != runs[index - 1]["process"]:
            lines.insert(index + 2, rule)
    return "\n".join(lines)


LEGEND = """\
read, tokens, share   budget; tokens that a step really read, sinks, recents and open tail included
resident              blocks in device slots at the end, as a share of the context
perplexity, vs full   held-out continuation, token by token, against full KV attended by transformers
answers =             greedy answers that are the same, token for token, as with full KV
moved/step, 1st step  bytes that prefetches moved into slots, without and in the first step of a window, which fills it
guesses               layers whose moves were begun one layer early; what these moved is not in moved/step
device host nvme miss blocks by where the read set was found; p50, p99: one prefetch of one layer
1st token             from the prompt to its first token; model and interpreter were loaded before"""
