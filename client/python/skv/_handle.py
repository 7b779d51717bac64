"""What all handles of the library have in common."""
from __future__ import annotations

import ctypes
import weakref
from typing import Any, TypeVar

from ._abi import check

Self = TypeVar("Self", bound="Handle")


class Handle:
    """A handle of libskv. Closing twice is harmless, using it after close is UnknownHandleError: the
    library checks the number. What is forgotten without close is closed when it is collected."""

    def __init__(self, handle: ctypes.c_void_p, close: Any) -> None:
        assert handle.value is not None
        self._handle: int = handle.value
        self._close_function = close
        self._closed = False
        self._finalizer = weakref.finalize(self, close, self._handle)
        self._finalizer.atexit = False  # the daemon sees the process end

    def close(self) -> None:
        if self._closed:
            return
        check(self._close_function(self._handle))
        self._forget()

    def _forget(self) -> None:
        self._closed = True
        self._finalizer.detach()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<skv.{type(self).__name__} {self._handle:#x} {state}>"
