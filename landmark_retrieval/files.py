"""Files that are written whole or not at all, and read with errors a person can act on."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from landmark_retrieval.errors import LandmarkRetrievalError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk that takes no more."""

# to read it is to change it for a moment, which no thread may do while another one makes a file
_MASK = os.umask(0)
os.umask(_MASK)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends without an error.

    Whoever looks at `path` sees the old file or the new one, never half of one. On an error the temporary file is
    removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    else:
        # mkstemp makes private files; give the result the permissions any new file would have
        temporary.chmod(0o666 & ~_MASK)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def open_replacing(path: str | Path, mode: str = "w", **kwargs: Any) -> Iterator[IO[Any]]:
    """Like `open(path, mode)` for writing, but the file appears only when the block ends without an error."""
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
        kwargs.setdefault("newline", "")
    with replacing(path) as temporary, temporary.open(mode, **kwargs) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with open_replacing(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: str | Path, what: str, advice: str) -> Any:
    """Read JSON from `path`.

    Args:
        path: the file.
        what: what the file is, for the error ("shard manifest").
        advice: what to do when it is missing or damaged, for the error ("write it with ...").

    Raises:
        LandmarkRetrievalError: there is no such file, or it is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LandmarkRetrievalError(f"There is no {what} at {path}: {advice}.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise LandmarkRetrievalError(f"The {what} {path} is damaged ({error}): {advice}.") from None


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
