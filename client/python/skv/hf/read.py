"""How much of a context a decoding step reads."""
from __future__ import annotations

import dataclasses
import math

import skv


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """Blocks per (layer, kv head), as skv.Context.window takes them."""
    budget: int
    sinks: int
    recents: int
    resident: int
    tokens: int  # of the context that it was made for

    @property
    def width(self) -> int:
        return self.budget + self.sinks + self.recents


@dataclasses.dataclass(frozen=True)
class Read:
    """The read set of a step: sinks, recents and the best ranked blocks of each layer and kv head.

    share     of the context's blocks, sinks and recents included; 1: everything
    blocks    instead of `share`: ranked blocks per (layer, kv head)
    sinks     first blocks of the context, always read
    recents   last closed blocks, always read (the open tail comes on top, from the engine's memory)
    resident  slots kept by recency, as a multiple of the read set
    cold      a block that is on NVMe only: waited for up to `deadline` seconds, or left out
    on_change above 0: a (layer, kv head) is not ranked again while its queries are within this cosine
              of those it was ranked by and no sentence was added; costs quality
    guess     begin each layer's moves one layer early, from a guess of its query. What is read stays
              the same. None: if steps are faster with than without, tried every few hundred steps.
              Without effect where blocks are read where they lie
    """
    share: float = 1.0
    blocks: int | None = None
    sinks: int = 1
    recents: int = 4
    resident: float = 2.5
    cold: skv.Cold = skv.Cold.WAIT
    deadline: float = 10.0
    guess: bool | None = None
    on_change: float = 0.0

    def __post_init__(self) -> None:
        if self.blocks is None and not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], not {self.share}")
        if self.blocks is not None and self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {self.blocks}")
        if not 0 <= self.on_change <= 1:
            raise ValueError(f"on_change must be in [0, 1], not {self.on_change}")
        if self.sinks < 0 or self.recents < 0 or self.resident < 1:
            raise ValueError("sinks and recents must not be negative, resident at least 1")

    @property
    def everything(self) -> bool:
        return self.blocks is None and self.share >= 1

    def plan(self, tokens: int, capacity: int, block_tokens: int) -> WindowPlan:
        """For a context of `tokens` that may grow to `capacity`."""
        most = max(1, capacity // block_tokens)
        sinks, recents = min(self.sinks, most), min(self.recents, most)
        if self.everything:
            budget = most
        elif self.blocks is not None:
            budget = self.blocks
        else:
            budget = math.ceil(self.share * tokens / block_tokens) - sinks - recents
        budget = max(1, min(budget, most))
        width = budget + sinks + recents
        resident = width if self.everything else max(width, min(math.ceil(self.resident * width),
                                                                most + sinks + recents))
        return WindowPlan(budget, sinks, recents, resident, tokens)
