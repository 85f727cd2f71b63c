"""`python -m landmark_retrieval.training.standby OVERRIDES`: a stage that waits for its turn, with all imports done.

They take several seconds, more than all else around the training of a stage. So a chain starts this process while the
stage before still trains. It waits for a line of JSON, variables for its environment, and then is what
`python -m landmark_retrieval.train OVERRIDES` is; if its standard input ends without one, so does it.
"""

import importlib
import json
import os
import runpy
import sys
import threading


def main() -> None:
    """Import, wait, run."""
    chosen = threading.Event()
    threading.Thread(target=_end_with, args=(os.getppid(), chosen), daemon=True).start()
    for name in ("hydra", "landmark_retrieval.training.stage"):
        importlib.import_module(name)
    line = sys.stdin.readline()
    chosen.set()
    if line:
        os.environ.update(json.loads(line))
        # as `python -m` does it: the trainer starts its other processes by the name of the main module
        runpy.run_module("landmark_retrieval.train", run_name="__main__", alter_sys=True)


def _end_with(parent: int, chosen: threading.Event) -> None:
    """End at once when the chain is gone, also amid the imports."""
    while not chosen.wait(0.2):
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main()
