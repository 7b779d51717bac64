"""Exceptions: one per error code of the C ABI, below the built-in exception they resemble."""
from __future__ import annotations

import builtins
from typing import Dict, Type


class SkvError(Exception):
    """What libskv reported. `code` is the negative SKV_E_* number."""

    code: int = 0


class InvalidArgumentError(SkvError, ValueError):
    code = -1


class UnsupportedError(SkvError):
    code = -2


class UnknownHandleError(SkvError):
    """Closed, never opened, or its session is closed."""

    code = -3


class ProtocolError(SkvError):
    code = -4


class TooLargeError(SkvError):
    code = -5


class NoSpaceError(SkvError):
    code = -6


class IoError(SkvError, OSError):
    code = -7


class CorruptError(SkvError):
    """A checksum did not hold: a miss."""

    code = -8


class BusyError(SkvError):
    code = -9


class TimeoutError(SkvError, builtins.TimeoutError):  # named as its C code is
    code = -10


class DisconnectedError(SkvError, ConnectionError):
    """The daemon went away: a miss. The next call connects again."""

    code = -11


class StaleError(SkvError):
    """Belongs to an earlier connection, daemon or device: open it again."""

    code = -12


class CancelledError(SkvError):
    code = -13


class DeniedError(SkvError, PermissionError):
    """Not this process's to do, e.g. in a forked child with its parent's session."""

    code = -14


class NotFoundError(SkvError, LookupError):
    code = -15


class InternalError(SkvError):
    code = -16


BY_CODE: Dict[int, Type[SkvError]] = {
    each.code: each
    for each in (
        InvalidArgumentError, UnsupportedError, UnknownHandleError, ProtocolError, TooLargeError,
        NoSpaceError, IoError, CorruptError, BusyError, TimeoutError, DisconnectedError, StaleError,
        CancelledError, DeniedError, NotFoundError, InternalError,
    )
}
