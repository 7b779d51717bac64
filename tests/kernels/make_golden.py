#!/usr/bin/env python3
"""Writes tests/data/ranking_golden.txt: records, scores and read sets of a small context.

Follows ipc/layout/vectors.h and kernels/README.md in exact rational arithmetic, rounding where they
say so; it shares nothing with the C++. Keys and queries are sixteenths and eighths, made by the
integer formulas below, so that they are exact in every dtype.
"""

import pathlib
import sys
from fractions import Fraction as F

D, BLOCK, RUN = 16, 8, 2
SENTENCES = 40
QUERIES = 3
SCALE = F(1, 4)
COARSE_BLOCKS, SINKS, RECENTS, BUDGET = 60, 2, 3, 24
LOG2E, HALF_LN2 = F(0x1715476, 1 << 24), F(0x162e430, 1 << 26)
EXP2 = [0x162e430, 0x1ebfbdc, 0x1c6aee8, 0x13b2d4c, 0x15f3e54, 0x141fbbc]
EXP2 = [F(c, 1 << 24) / (1 << e) for c, e in zip(EXP2, [1, 3, 5, 7, 10, 13])]
NONE = -F(2) ** 126


def rounded(x, bits, least_exponent):
    """Nearest even with `bits` of significand, subnormal below 2^least_exponent."""
    if x == 0:
        return F(0)
    exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
    if F(2) ** exponent > abs(x):
        exponent -= 1
    unit = F(2) ** (max(exponent, least_exponent) - bits + 1)
    return round(x / unit) * unit  # Fraction rounds ties to even


def f32(x):
    return rounded(x, 24, -126)


def f16(x):
    return max(min(rounded(x, 11, -14), F(65504)), F(-65504))


def f16_up(x):
    near = f16(x)
    while near < x:
        near = f16(near + max(near / 1500, F(2) ** -24))
    return near


def sqrt32(x):
    """Square root of a float, rounded to fp32."""
    scale = 1 << 200
    root = isqrt(x.numerator * x.denominator * scale * scale)
    return f32(F(root, x.denominator * scale))


def isqrt(n):
    import math
    return math.isqrt(n)


def power(sixteenths):
    """2^(sixteenths / 16), rounded to fp32."""
    scale = 1 << 1000
    value = F(2) ** (sixteenths // 16)
    root = scale * (1 << (sixteenths % 16)) * scale ** 15
    for _ in range(4):
        root = isqrt(root)  # four square roots of 2^k scale^16 leave 2^(k/16) scale
    return f32(value * F(root, scale))


T = [F(0)] + [power(c - 255) for c in range(1, 256)]
S8 = [F(0)] + [F(round(f32(power(2 * (c - 255)) * 255))) for c in range(1, 256)]


def blocks_of(sentence):
    return 4 + sentence * 3 % 5


def key(sentence, token, d):
    return F((sentence * 37 + token * 31 + d * 17 + token * d % 7 + sentence * d % 11) % 64 - 32, 16)


def query(q, d):
    return F((q * 29 + d * 13 + q * d % 5) % 32 - 16, 8)


def codes(values):
    """m, then the code nearest in ratio for each value."""
    m = f16_up(max(values))
    half_step = F(0x1059b0e, 1 << 24)
    result = []
    for value in values:
        code = 0
        if value > 0:
            code = next((c for c in range(1, 256) if f32(f32(m * T[c]) * half_step) >= value), 255)
        result.append(code)
    return m, result


def derive(sentence):
    tokens = blocks_of(sentence) * BLOCK
    keys = [[key(sentence, t, d) for d in range(D)] for t in range(tokens)]

    def total(rows, d):
        value = F(0)
        for row in rows:
            value = f32(value + row[d])
        return value

    mean = [f16(f32(total(keys, d) / tokens)) for d in range(D)]
    spread = []
    for d in range(D):
        value = F(0)
        for row in keys:
            off = f32(row[d] - mean[d])
            value = f32(value + f32(off * off))
        spread.append(sqrt32(f32(value / tokens)))
    runs = []
    for first in range(0, tokens, RUN):
        runs.append([f32(f32(total(keys[first:first + RUN], d) / RUN) - mean[d]) for d in range(D)])
    spread_m, spread_codes = codes(spread)
    scale_m, scale_codes = codes([f32(max(abs(run[d]) for run in runs) / 7) for d in range(D)])
    residuals = []
    for run in runs:
        row = []
        for d in range(D):
            step = f32(scale_m * T[scale_codes[d]])
            steps = f32(run[d] / step) if step > 0 else F(0)
            row.append(round(max(min(steps, F(7)), F(-7))))
        residuals.append(row)
    return {"mean": mean, "scale_m": scale_m, "spread_m": spread_m, "spread_codes": spread_codes,
            "scale_codes": scale_codes, "residuals": residuals}


def half_bits(x):
    import struct
    return struct.pack("<e", float(x))


def float_hex(x):
    import struct
    return struct.pack(">f", float(x)).hex()


def record_bytes(record):
    out = b"".join(half_bits(x) for x in record["mean"])
    out += half_bits(record["scale_m"]) + half_bits(record["spread_m"])
    out += bytes(record["spread_codes"]) + bytes(record["scale_codes"])
    runs = record["residuals"]
    for first in range(0, len(runs), 16):
        tile = runs[first:first + 16]
        tile += [[0] * D] * (-len(tile) % 4)
        for d in range(D):
            for pair in range(0, len(tile), 2):
                out += bytes([tile[pair][d] & 15 | (tile[pair + 1][d] & 15) << 4])
    return out


def fma_dot(a, b):
    value = F(0)
    for x, y in zip(a, b):
        value = f32(x * y + value)
    return value


def clean(x):
    return x if abs(x) <= F(2) ** 100 else NONE


def exp2(x):
    if x < -125:
        return F(0)
    magic = F(12582912)
    whole = f32(f32(x + magic) - magic)
    f = f32(x - whole)
    p = EXP2[5]
    for c in EXP2[4::-1]:
        p = f32(p * f + c)
    p = f32(p * f + 1)
    return f32(p * F(2) ** int(whole))


def tree(lanes):
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [f32(lanes[i] + lanes[i + half]) for i in range(half)]
    return lanes[0]


def sum16(pairs):
    lanes = [F(0)] * 16
    for i, (a, b) in enumerate(pairs):
        lanes[i % 16] = f32(a * b + lanes[i % 16])
    return tree(lanes)


def neighbours(values):
    while len(values) > 1:
        values = [f32(values[i] + values[i + 1]) for i in range(0, len(values), 2)]
    return values[0]


def in_steps(values, count):
    """Whole numbers of steps, the largest value being `count` of them, and the step."""
    largest = max(abs(x) for x in values)
    per_step = f32(count / largest)
    return [F(round(f32(x * per_step))) for x in values], f32(largest / count)


def main(path):
    records = [derive(s) for s in range(SENTENCES)]
    tokens = [F(blocks_of(s) * BLOCK) for s in range(SENTENCES)]
    first_block = [sum(blocks_of(i) for i in range(s)) for s in range(SENTENCES)]
    end_block = first_block[-1] + blocks_of(SENTENCES - 1)
    factor = f32(SCALE * LOG2E)
    queries = [[f32(query(q, d) * factor) for d in range(D)] for q in range(QUERIES)]
    squares = [[f32(x * x) for x in row] for row in queries]
    square_steps = [in_steps(row, 127)[0] for row in squares]
    square_values = [f32(max(row) / (127 * 255)) for row in squares]
    dots = [[fma_dot(queries[q], r["mean"]) for r in records] for q in range(QUERIES)]
    coarse = []
    shares = [F(0)] * SENTENCES
    for q in range(QUERIES):
        row = []
        for s, r in enumerate(records):
            var = f32(f32(sum(x * S8[c] for x, c in zip(square_steps[q], r["spread_codes"])))
                      * square_values[q])
            m2 = f32(r["spread_m"] * r["spread_m"])
            row.append(clean(f32(f32(var * m2) * HALF_LN2 + dots[q][s])))
        coarse.append(row)
        top = max(row)
        e = [exp2(f32(c - top)) for c in row]
        inv = f32(1 / sum16(zip(tokens, e)))
        shares = [f32(x * inv + share) for x, share in zip(e, shares)]

    always = [s for s in range(SENTENCES)
              if first_block[s] < SINKS or first_block[s] + blocks_of(s) > end_block - RECENTS]
    chosen, have = set(always), 0
    for s in sorted(set(range(SENTENCES)) - chosen, key=lambda s: (-shares[s], s)):
        if have >= COARSE_BLOCKS:
            break
        chosen.add(s)
        have += blocks_of(s)
    chosen = sorted(chosen)

    blocks = [first_block[s] + b for s in chosen for b in range(blocks_of(s))]
    scores = [F(0)] * len(blocks)
    skipped_mass = F(0)
    normalisers = []
    for q in range(QUERIES):
        logits = []
        for s in chosen:
            r = records[s]
            t = [f32(queries[q][d] * f32(r["scale_m"] * T[r["scale_codes"][d]])) for d in range(D)]
            steps, step = in_steps(t, 127)
            logits += [clean(f32(sum(x * y for x, y in zip(steps, run)) * step + dots[q][s]))
                       for run in r["residuals"]]
        rest = [coarse[q][s] if s not in chosen else NONE for s in range(SENTENCES)]
        top = max(max(logits), max(rest))
        skipped = sum16((tokens[s] if s not in chosen else F(0), exp2(f32(rest[s] - top)))
                        for s in range(SENTENCES))
        e = [exp2(f32(x - top)) for x in logits]
        per = BLOCK // RUN
        masses = [f32(neighbours(e[i:i + per]) * RUN) for i in range(0, len(e), per)]
        z = f32(sum16((x, F(1)) for x in masses) + skipped)
        inv = f32(1 / z)
        normalisers.append((top, z))
        skipped_mass = f32(skipped_mass + f32(skipped * inv))
        scores = [f32(b * inv + score) for b, score in zip(masses, scores)]
    group = f32(F(1, QUERIES))
    scores = [f32(x * group) for x in scores]
    skipped_mass = f32(skipped_mass * group)

    exempt = [b < SINKS or b >= end_block - RECENTS for b in blocks]
    order = sorted((i for i in range(len(blocks)) if not exempt[i]), key=lambda i: (-scores[i], i))
    taken = set(order[:BUDGET]) | {i for i in range(len(blocks)) if exempt[i]}
    lanes = [F(0)] * 16
    for i, x in enumerate(scores):
        if i not in taken:
            lanes[i % 16] = f32(lanes[i % 16] + x)
    unread = min(F(1), f32(tree(lanes) + skipped_mass))

    lines = ["# Written by tests/kernels/make_golden.py; fp32 values as big-endian hex."]
    for s in (0, 1, 2, SENTENCES - 1):
        lines.append(f"record {s} {record_bytes(records[s]).hex()}")
    lines.append("sentences " + " ".join(map(str, chosen)))
    lines.append("scores " + " ".join(map(float_hex, scores)))
    lines.append("normalisers " + " ".join(float_hex(x) for pair in normalisers for x in pair))
    lines.append("skipped_mass " + float_hex(skipped_mass))
    lines.append("read_set " + " ".join(str(blocks[i]) for i in sorted(taken)))
    lines.append("unread_mass " + float_hex(unread))
    pathlib.Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    default = pathlib.Path(__file__).resolve().parents[1] / "data" / "ranking_golden.txt"
    main(sys.argv[1] if len(sys.argv) > 1 else default)
