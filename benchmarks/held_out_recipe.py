"""Does a recipe forget? Train it without some landmarks, and search for those; then without others.

    python benchmarks/held_out_recipe.py PHOTOS OUT --folds 4 --curriculum zoo_dolg_lite0

For each fold a quarter of the landmarks is held out (held_out_landmarks.py), the recipe is trained on the rest, packed
(`landmark-retrieval zoo pack`) and measured on the landmarks that it has not seen, beside ImageNet features of the same
photos, bare and whitened by the same photos that the recipe learns from. Prints a table; OUT keeps everything, and the
same call carries on where it was stopped.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from held_out_landmarks import split

from landmark_retrieval.data.dataset import train_place
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.files import read_json
from landmark_retrieval.retrieval.evaluate import METRICS, evaluate
from landmark_retrieval.retrieval.views import card_as_asked
from landmark_retrieval.training.packing import pack
from landmark_retrieval.zoo import create_model, load_model

SET = "full"
Figures = tuple[float, float]


def run(folder: Path, *command: str) -> None:
    """A command of the project, in a folder; what it prints goes to the last word's log."""
    print(f"{folder}: {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, "-m", f"landmark_retrieval.{command[0]}", *command[1:]], cwd=folder, check=True)


def trained(folder: Path, curriculum: str, words: list[str]) -> Path:
    """The folder of the last stage, trained without a look at what is held out."""
    done = folder / "trained.json"
    if not done.exists():
        never = "trainer.check_val_every_n_epoch=1000"
        run(folder, "curriculum", f"curriculum={curriculum}", "data.root=shards", never, *words)
        last = max(folder.glob("outputs/*/*/model.json"), key=lambda file: file.stat().st_mtime)
        done.symlink_to(last.resolve())
    return done.resolve().parent


def measured(model: str | Path, shards: Path, out: Path, size: int) -> Figures:
    if not (out / METRICS).exists():
        network, card = load_model(model)
        evaluate(network, card_as_asked(card, size), shards, out)
    found = read_json(out / METRICS, "figures", "delete it")
    return 100 * found["map_at_100"], 100 * found["precision_at_1"]


def whitened(model: str | Path, shards: Path, out: Path, size: int) -> Path:
    """A model with a PCA-whitening of its features for a neck."""
    if not (out / "model.json").exists():
        network, card = load_model(model)
        if model == "imagenet":  # the same with room for a neck
            network = create_model("gem_efficientnet_lite0", pretrained="imagenet", embedding_dim=512)
        pack(network.eval(), {**card, "image_size": size}, ShardedPhotos.open(train_place(shards, SET)), out)
    return out


def fold(photos: Path, out: Path, number: int, folds: int, curriculum: str, sizes: list[int], words: list[str]) -> dict:
    """Figures of one fold, by model and size."""
    out.mkdir(parents=True, exist_ok=True)
    shards = out / "shards"
    if not (shards / "dataset.json").exists():
        split(photos, out / "photos", number, folds)
        run(out, "cli", "shard", "gldv2", "photos", "--out", "shards", "--sets", SET)
    recipe = trained(out, curriculum, words)
    found: dict[tuple[str, int], Figures] = {}
    for size in sizes:
        for name, model in (("ImageNet", "imagenet"), ("recipe", recipe)):
            print(f"{out}: {name}, {size} px", flush=True)
            found[name, size] = measured(model, shards, out / f"{name}-{size}", size)
            neck = whitened(model, shards, out / f"{name}-whitened-{size}", size)
            found[f"{name}, whitened", size] = measured(neck, shards, neck / "evaluation", size)
    return found


def table(folds: list[dict[tuple[str, int], Figures]]) -> str:
    numbers = [f"fold {number}" for number in range(len(folds))]
    lines = [f"| | px | {' | '.join(numbers)} | mean |", "|---" * (len(folds) + 3) + "|"]
    for name, size in folds[0]:
        figures = [fold[name, size] for fold in folds]
        mean = tuple(statistics.fmean(column) for column in zip(*figures, strict=True))
        cells = [f"{precision:.2f} / {first:.1f}" for precision, first in (*figures, mean)]
        lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="in the layout of Google Landmarks")
    parser.add_argument("out", type=Path)
    parser.add_argument("words", nargs="*", help="key=value for the curriculum")
    parser.add_argument("--curriculum", default="zoo_dolg_lite0", help="(default: %(default)s)")
    parser.add_argument("--folds", type=int, default=4, help="into how many parts landmarks go (default: %(default)s)")
    parser.add_argument("--only", type=int, help="so many of the folds (default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 320], help="px (default: 256 320)")
    arguments = parser.parse_intermixed_args()
    done = []
    for number in range(arguments.folds)[: arguments.only]:
        where = arguments.out.resolve() / f"fold{number}"
        of = (number, arguments.folds, arguments.curriculum, arguments.sizes, arguments.words)
        done.append(fold(arguments.photos.resolve(), where, *of))
        print(f"\nmAP@100 / P@1 on landmarks held out\n\n{table(done)}\n", flush=True)


if __name__ == "__main__":
    main()
