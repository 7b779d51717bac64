"""The demo's picture: which sentences each decoding step read."""
from __future__ import annotations

import pathlib
from typing import Any, Optional, Sequence


def draw(path: pathlib.Path, pictures: Sequence[dict], questions: Sequence[Any],
         texts: Sequence[str], *, percent: float, document: str, tokens: int, rows: int) -> None:
    """One panel per question: sentences down, steps across; how dark a cell is says what share of
    the `rows` (layer, kv head)s read the sentence in that step. The place of the answer is marked.

    pictures  per question: {"reads": [step][sentence], "stops": token where each sentence ends}
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    panels = [p for p in pictures if p["reads"]]
    if not panels:
        return
    widths = [max(len(p["reads"]), 6) for p in panels]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 + 3.4 * len(panels), 7.5), sharey=True,
                                squeeze=False, gridspec_kw={"width_ratios": widths},
                                layout="constrained")
    image = None
    for index, (axis, panel) in enumerate(zip(axes[0], panels)):
        height = max(len(read) for read in panel["reads"])
        grid = np.zeros((height, len(panel["reads"])))
        for step, read in enumerate(panel["reads"]):
            grid[:len(read), step] = np.asarray(read) / rows
        image = axis.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest",
                            origin="upper")
        question = questions[index]
        place = _sentence_at(panel["stops"], question.evidence_token)
        if place is not None:
            axis.axhspan(place - 0.5, place + 0.5, facecolor="none", edgecolor="tab:red", linewidth=1.6)
            axis.annotate("answer", (grid.shape[1] - 0.5, place), xytext=(4, 0), color="tab:red",
                          textcoords="offset points", va="center", fontsize=8, annotation_clip=False)
        axis.set_title(f"{_wrap(question.text)}\n“{_wrap(texts[index])}”", fontsize=8)
        axis.set_xlabel("decoding step")
    axes[0][0].set_ylabel("sentence of the context, first at the top")
    figure.suptitle(f"Sentences that each step read, at {percent:g} % of {tokens:,} tokens of {document}")
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.6, pad=0.08,
                    label="share of (layer, kv head)s that read the sentence")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _sentence_at(stops: Sequence[int], token: Optional[int]) -> Optional[int]:
    if token is None:
        return None
    return next((index for index, stop in enumerate(stops) if token < stop), None)


def _wrap(text: str, width: int = 44, lines: int = 3) -> str:
    import textwrap
    # A dollar sign would begin matplotlib's mathematics.
    wrapped = textwrap.wrap(" ".join(text.split()).replace("$", r"\$"), width)
    if len(wrapped) > lines:
        wrapped = wrapped[:lines - 1] + [wrapped[lines - 1] + " …"]
    return "\n".join(wrapped)
