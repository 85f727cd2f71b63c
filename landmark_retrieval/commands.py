"""What all commands share: how they end."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from landmark_retrieval.errors import LandmarkRetrievalError, Terminated

P = ParamSpec("P")
R = TypeVar("R")


def exit_on_error(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an error that a person can mend into one sentence on stderr and exit code 2; Ctrl-C into exit code 130,
    SIGTERM into 143."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except LandmarkRetrievalError as error:
            print(f"error: {_sentence(error)}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.filename is None:
                raise
            print(f"error: {error.filename}: {error.strerror}: choose another path, or mend that one.", file=sys.stderr)
            sys.exit(2)
        except Terminated as stopped:
            if str(stopped):
                print(f"{stopped}; the same command carries on where it stopped", file=sys.stderr)
            sys.exit(stopped.code)
        except KeyboardInterrupt:
            print("interrupted; the same command carries on where it stopped", file=sys.stderr)
            sys.exit(130)

    return run


def _sentence(error: Exception) -> str:
    """The text of an error; of one that comes from a DataLoader worker with its traceback, the end."""
    text = str(error)
    return text.rstrip().rpartition("LandmarkRetrievalError: ")[2] if "Original Traceback" in text else text
