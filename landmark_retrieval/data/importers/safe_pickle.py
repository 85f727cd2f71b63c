"""Pickles of plain data, read without letting them run anything."""

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError


def read_plain_pickle(path: str | Path, what: str, advice: str) -> Any:
    """Read a pickle that holds lists, tuples, dictionaries, strings, numbers and numpy arrays of numbers, no more.

    Arrays come back as (nested) lists. Everything else that a pickle can ask for, such as calling a function, is
    refused before it happens; numpy's own unpickling, which trusts sizes and types in the file, is not used either.

    Args:
        path: the file; written by Python 2 or 3.
        what: what the file is, for errors ("ground truth").
        advice: what to do when it is missing or damaged, for errors.

    Raises:
        LandmarkRetrievalError: no such file, not a pickle, or one with something else in it.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        _check_memo(data)
        return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except (FileNotFoundError, IsADirectoryError):
        raise LandmarkRetrievalError(f"There is no {what} at {path}: {advice}.") from None
    except _RefusedError as error:
        raise LandmarkRetrievalError(
            f"The {what} {path} asks for {error}, which plain data has no use for: it may be meant to do harm. Nothing "
            f"of it was run; {advice}."
        ) from None
    # a damaged pickle can end in nearly any error of the unpickler, out of memory included
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise LandmarkRetrievalError(
            f"The {what} {path} is not a whole pickle of plain data ({type(error).__name__}: {error}): {advice}."
        ) from None


class _RefusedError(Exception):
    """The pickle asks for something that is not plain data; the text is its name."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.multiarray", "scalar"): _number,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes in pickles of protocol 2
            ("__builtin__", "bytes"): lambda: b"",  # the same, where there are none
        }
        try:
            return known[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError("objects outside of it")


class _Dtype:
    """A type of numbers, as a pickle names it."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"):
            raise _RefusedError(f"arrays of {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]

    def read(self, data: Any) -> np.ndarray:
        return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, self.order + self.code)


class _Array:
    """An array, as a pickle fills it."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        if len(shape) > 1 and 0 in shape:  # of nothing it would make any number of empty lists
            raise _RefusedError(f"an array of shape {shape}")
        self.values = dtype.read(data).reshape(shape, order="F" if by_columns else "C").tolist()


def _number(dtype: _Dtype, data: Any) -> int | float:
    return dtype.read(data)[0].item()


def _check_memo(data: bytes) -> None:
    """The unpickler makes room for as many remembered objects as the highest number given to one: a few bytes could
    ask for all the memory there is."""
    for step, argument, _ in pickletools.genops(data):
        if step.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise _RefusedError(f"room for {argument:,} objects")


_OPEN = object()


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """`value` with its arrays as lists; refused where something contains itself, or is anything else. What stands in
    several places is made once: copies of copies could fill the memory."""
    if type(value) in (str, int, float, bool, bytes, type(None)):
        return value
    if isinstance(value, _Array):
        return value.values
    if id(value) in done:
        if done[id(value)] is _OPEN:
            raise _RefusedError("a list that contains itself")
        return done[id(value)]
    done[id(value)] = _OPEN
    plain: Any
    if type(value) in (list, tuple):
        plain = [_plain(part, done) for part in value]
    elif type(value) is dict:
        plain = {_plain(key, done): _plain(part, done) for key, part in value.items()}
    else:
        raise _RefusedError(f"a {type(value).__name__}")
    done[id(value)] = plain
    return plain
