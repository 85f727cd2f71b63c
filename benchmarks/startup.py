"""What starting costs: importing the package beside importing torch and timm, and the help of each command.

    python benchmarks/startup.py [runs]

Each figure is the median of fresh processes, taken in turn; ratios are taken pair by pair.
"""

import statistics
import subprocess
import sys
import time

BASE = ["-c", "import torch, timm"]
COMMANDS = {
    "import landmark_retrieval": ["-c", "import landmark_retrieval"],
    "from landmark_retrieval import DOLGNet": ["-c", "from landmark_retrieval import DOLGNet"],
    "landmark-retrieval --help": ["-m", "landmark_retrieval.cli", "--help"],
    "train --help": ["-m", "landmark_retrieval.train", "--help"],
    "curriculum --help": ["-m", "landmark_retrieval.curriculum", "--help"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for arguments in (BASE, *COMMANDS.values()):  # once, to fill the file cache
        seconds(arguments)
    print(f"{'':40s} median s   of `import torch, timm` (median of {runs} pairs)")
    for name, arguments in COMMANDS.items():
        pairs = [(seconds(BASE), seconds(arguments)) for _ in range(runs)]
        took = statistics.median(own for _, own in pairs)
        print(f"{name:40s} {took:8.2f}   {statistics.median(own / base for base, own in pairs):.2f}")


if __name__ == "__main__":
    main()
