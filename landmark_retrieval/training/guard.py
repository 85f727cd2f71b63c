"""Ends a stage whose chain has died: `python guard.py PROCESS SECONDS`, a script with the standard library alone.

Its standard input is a pipe that the chain holds. A byte in it says that the stage has ended; its end without one says
that the chain was killed, which the chain itself has no way of telling. Then the stage gets SIGTERM, so that it can
save what it has done, and after so many seconds its whole process group gets SIGKILL.

A parent-death signal (PR_SET_PDEATHSIG) would do less: it reaches one process, not the others of its group, gives no
time to save, and exists on Linux alone.
"""

import contextlib
import os
import signal
import sys
import time


def main() -> None:
    """Wait for the byte, or for the end."""
    leader, seconds = int(sys.argv[1]), float(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the chain's to handle
    if os.read(0, 1):
        return
    with contextlib.suppress(ProcessLookupError):
        # the leader alone: decoding processes that ended now would make it fail before it has saved
        os.kill(leader, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            os.kill(leader, 0)
            time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    main()
