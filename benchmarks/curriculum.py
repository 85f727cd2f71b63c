"""What a chain of stages costs beside their training: python benchmarks/curriculum.py

Three stages of a tiny model on drawn photos, by the command a person types. Training is what the trainer does, from its
first line to its last, validation and checkpoints among it; all the rest of the wall-clock time is overhead: imports,
plan, data, model, hand-over, the ends of the processes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytorch_lightning.loggers.logger import Logger

STAGES = 3


class TrainingTime(Logger):
    """Writes down when the trainer begins and ends; a logger, since stages take loggers from their config."""

    name, version = "times", 0

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.began = Path(path), time.time()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *_: object, **__: object) -> None:
        pass

    def finalize(self, status: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{self.began} {time.time()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of each stage (default: %(default)s)")
    arguments = parser.parse_args()
    from photos import drawn

    from landmark_retrieval.data.prepare import shard_folder

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, path in enumerate(sorted(drawn(folder, 48).iterdir())):
            landmark = folder / "landmarks" / str(number % 6)
            landmark.mkdir(parents=True, exist_ok=True)
            path.rename(landmark / path.name)
        shard_folder(folder / "landmarks", folder / "shards", photos_per_shard=10, workers=1)
        command = [sys.executable, "-m", "landmark_retrieval.curriculum", "curriculum=dolg_lite0"]
        command += ["model.backbone=mobilenetv3_small_050", "model.pretrained=false", f"data.root={folder / 'shards'}"]
        command += ["data.image_size=48", "data.batch_size=8", "data.num_workers=0", "stage.freeze=[]"]
        command += [f"stage.epochs={arguments.epochs}", "trainer.accelerator=cpu", "trainer.devices=1"]
        command += ["trainer.enable_progress_bar=false", f"run_dir='{folder}/${{stage.name}}'"]
        command += ["+logger.times._target_=curriculum.TrainingTime", f"+logger.times.path={folder / 'times'}"]
        began = time.time()
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        )
        ended = time.time()
        times = [tuple(map(float, line.split())) for line in (folder / "times").read_text().splitlines()]
    assert len(times) == STAGES
    for number, (first, last) in enumerate(times, 1):
        before = first - (times[number - 2][1] if number > 1 else began)
        print(f"stage {number}: {last - first:6.1f} s of training, {before:5.1f} s before it")
    training = sum(last - first for first, last in times)
    print(f"after the last: {ended - times[-1][1]:.1f} s")
    print(f"overhead: {(ended - began - training) / STAGES:.1f} s a stage (wanted: under 5)")


if __name__ == "__main__":
    main()
