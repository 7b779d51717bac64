"""skv: keep the KV of an inference engine in skvd, the sentence-KV daemon.

Session -> Model -> Context -> Window, Lease; Memory to copy from and into. Arrays are NumPy views
without copies that keep their memory mapped as long as they live; bfloat16 appears as uint16 (torch:
`torch.from_numpy(a).view(torch.bfloat16)`). Objects with `__dlpack__` (torch tensors on the CPU) are
accepted wherever an array goes in. Everything is a context manager; all may be used from any thread.

Every failure is an SkvError subclass by code; a wrong dtype or shape found before the daemon is asked
is a TypeError or ValueError. A restart of the daemon is a DisconnectedError (a miss) for the call it
hits; later calls connect again, and windows and leases of before are a StaleError.
"""
from ._abi import lib as _lib
from ._context import Context, Keys
from ._errors import (BusyError, CancelledError, CorruptError, DeniedError, DisconnectedError,
                      InternalError, InvalidArgumentError, IoError, NoSpaceError, NotFoundError,
                      ProtocolError, SkvError, StaleError, TimeoutError, TooLargeError,
                      UnknownHandleError, UnsupportedError)
from ._session import Memory, Model, Session, StridedKv, Ticket
from ._types import (AppendResult, Cold, ContextInfo, Cut, Dtype, FlushLevel, IndexKind, KState,
                     Layer, LayerClass, LoadResult, Match, MatchResult, ModelDescriptor, ModelInfo,
                     Origin, PrefetchResult, Put, RankIn, RotaryPairing, RotaryTable, Scores,
                     SessionInfo, StatKind)
from ._window import Lease, Table, Window, prefetch_rows

__version__: str = _lib.skv_version().decode()

__all__ = [name for name in dir() if not name.startswith("_")]
