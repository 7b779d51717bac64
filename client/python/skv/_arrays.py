"""Arrays in and out without copies: views over mapped memory, DLPack, checks of queries."""
from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ._abi import check, lib


class Hold:
    """Keeps a mapping of libskv alive (skv_hold); the views over it refer to this."""

    def __init__(self, take: Any, handle: int) -> None:
        hold = ctypes.c_void_p()
        check(take(handle, ctypes.byref(hold)))
        weakref.finalize(self, lib.skv_hold_release, hold.value)


class _Bytes:
    """An address range as NumPy's array interface; arrays made from it keep it, and so the hold."""

    def __init__(self, hold: Hold, address: int, nbytes: int, writable: bool) -> None:
        self.hold = hold
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, not writable),
        }


def view(hold: Hold, address: int, nbytes: int, writable: bool) -> np.ndarray:
    """uint8 [nbytes] at an address of libskv. A read-only view cannot be made writable."""
    return np.asarray(_Bytes(hold, address, nbytes, writable))


def at(buffer: np.ndarray, shape: Sequence[int], dtype: np.dtype, offset: int,
       strides: Optional[Sequence[int]] = None) -> np.ndarray:
    """A typed array inside a uint8 view; ValueError if it does not fit."""
    return np.ndarray(tuple(shape), dtype, buffer=buffer, offset=offset, strides=strides)


class Described(NamedTuple):
    """Where an array lies and how. Strides are in bytes."""

    address: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]
    itemsize: int


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


_CPU_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def describe(array: Any) -> Described:
    """Of a NumPy array or anything with __dlpack__ (bfloat16 tensors too, which NumPy cannot hold).
    Nothing is copied or kept."""
    if isinstance(array, np.ndarray):
        return Described(array.ctypes.data, array.shape, array.strides, array.itemsize)
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"a NumPy array or an object with __dlpack__ is needed, not {type(array)}")
    capsule = array.__dlpack__()
    pointer = _capsule_pointer(capsule, b"dltensor")
    tensor = ctypes.cast(pointer, ctypes.POINTER(_DLTensor)).contents
    if tensor.device_type not in _CPU_DEVICES:
        raise TypeError(f"the tensor is on DLPack device {tensor.device_type}, not on the CPU")
    itemsize = tensor.bits * tensor.lanes // 8
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[i] * itemsize for i in range(tensor.ndim))
    else:
        strides = tuple(int(np.prod(shape[i + 1:], dtype=np.int64)) * itemsize
                        for i in range(tensor.ndim))
    return Described((tensor.data or 0) + tensor.byte_offset, shape, strides, itemsize)


def as_query(query: Any) -> np.ndarray:
    """C-contiguous float32, as it is; TypeError or ValueError instead of a silent copy."""
    if not isinstance(query, np.ndarray):
        if not hasattr(query, "__dlpack__"):
            raise TypeError(
                f"a query is a NumPy array or an object with __dlpack__, not {type(query)}")
        query = np.from_dlpack(query)
    if query.dtype != np.float32:
        raise TypeError(f"a query is float32, not {query.dtype}")
    if not query.flags.c_contiguous:
        raise ValueError("a query must be C-contiguous")
    return query


def as_u32(values: Any, name: str) -> np.ndarray:
    """Contiguous uint32 [n]; refuses what does not fit instead of wrapping."""
    if hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
        values = np.from_dlpack(values)
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, dtype=np.uint32)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, one dimension is needed")
    if array.dtype == np.uint32:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} holds {array.dtype}, integers are needed")
    if int(array.min()) < 0 or int(array.max()) > 0xFFFFFFFF:
        raise ValueError(f"{name} holds values outside 0 to 2^32 - 1")
    return array.astype(np.uint32)
