"""What an engine counted and timed, step by step."""
from __future__ import annotations

import dataclasses
from typing import Optional

import numpy as np


@dataclasses.dataclass
class Step:
    """One forward pass. Blocks are (layer, kv head) blocks, times are microseconds unless named."""
    kind: str                 # "dense": reads everything before it; "decode": reads its window
    position: int             # of its first token
    tokens: int
    seconds: float = 0.0
    exact: bool = True        # every layer read all there is
    covered_to: int = 0       # tokens that the window stood for, least of all layers
    prefetch_us: list[float] = dataclasses.field(default_factory=list)  # per layer, in the call
    daemon_us: int = 0
    hits_device: int = 0
    hits_host: int = 0
    hits_nvme: int = 0
    misses: int = 0
    bytes_moved: int = 0      # into slots, by prefetches; what guesses had moved before is not in it
    guesses: int = 0          # layers whose moves were begun one layer early
    guess_us: float = 0.0     # the engine's time for them
    bytes_loaded: int = 0     # dense: bodies read back
    chunks_host: int = 0      # dense: where they came from
    chunks_nvme: int = 0
    read_blocks: int = 0      # table entries
    ranked_heads: int = 0     # (layer, head)s that were ranked, all unless Read.on_change kept some
    unread_mass: float = 0.0  # mean over layers
    tail_tokens: int = 0      # read from the engine's own memory, behind the window
    read_sentences: Optional[np.ndarray] = None  # traced: (layer, head)s that read each sentence
    resident_blocks: float = 0.0  # traced: distinct blocks read so far, at most the resident set;
    #                               mean over (layer, head)s


@dataclasses.dataclass
class Steps:
    """All steps of one conversation."""
    steps: list[Step] = dataclasses.field(default_factory=list)

    def add(self, step: Step) -> None:
        self.steps.append(step)

    def of(self, kind: str) -> list[Step]:
        return [step for step in self.steps if step.kind == kind]

    def prefetch_us(self) -> np.ndarray:
        return np.array([us for step in self.steps for us in step.prefetch_us], dtype=np.float64)

    def total(self, field: str) -> float:
        return sum(getattr(step, field) for step in self.steps)
