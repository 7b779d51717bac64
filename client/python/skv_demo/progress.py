"""Progress of several processes: bars on a terminal, one line per stage elsewhere."""
from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 24


class Progress:
    """Not for threads: the parent's loop calls it."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._bars: dict[str, str] = {}
        self._stages: dict[str, str] = {}
        self._drawn = 0
        self._began = time.monotonic()

    def update(self, name: str, what: str, done: int, total: int) -> None:
        if self._terminal:
            filled = _WIDTH * done // max(total, 1)
            bar = "#" * filled + "-" * (_WIDTH - filled)
            self._bars[name] = f"  {name:<10} [{bar}] {done:>5}/{total:<5} {what}"
            self._draw()
        elif self._stages.get(name) != what or done == total:
            if self._stages.get(name) != what:
                self.say(f"{name}: {what}")
            self._stages[name] = what

    def finish(self, name: str) -> None:
        if self._bars.pop(name, None) is not None:
            self._draw()

    def say(self, text: str) -> None:
        """A line that stays, above the bars."""
        self._erase()
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=self._out, flush=True)
        self._draw()

    def _erase(self) -> None:
        if self._terminal and self._drawn:
            self._out.write(f"\x1b[{self._drawn}F\x1b[0J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._terminal:
            return
        self._erase()
        for line in self._bars.values():
            self._out.write(line[:118] + "\n")
        self._drawn = len(self._bars)
        self._out.flush()
