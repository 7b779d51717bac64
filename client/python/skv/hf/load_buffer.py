"""Where stored bodies are read back to, when several tokens attend everything."""
from __future__ import annotations

from typing import Optional

import skv

from .storage import Geometry, KvMemory


class LoadBuffer:
    """Two registered memories of one layer group each: one is attended while the other fills. Shared
    by the conversations of an engine (their passes never overlap), made on first use; its pages go
    back after each pass, so that no second copy of a KV stays."""

    def __init__(self, session: skv.Session, geometry: Geometry, layers: int, capacity: int) -> None:
        self._arguments = (session, geometry, layers, capacity)
        self._memories: list[Optional[KvMemory]] = [None, None]
        self._used = False

    def memory(self, half: int) -> KvMemory:
        self._used = True
        if self._memories[half] is None:
            self._memories[half] = KvMemory(*self._arguments)
        return self._memories[half]

    def give_back(self) -> None:
        if self._used:
            for memory in self._memories:
                if memory is not None:
                    memory.give_back(0, memory.capacity)
            self._used = False

    def close(self) -> None:
        for memory in self._memories:
            if memory is not None:
                memory.close()
        self._memories = [None, None]
