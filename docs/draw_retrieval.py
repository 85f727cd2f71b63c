"""Draw the figure of docs/retrieval.md: python docs/draw_retrieval.py

The numbers in the boxes are those of conf/submit.yaml.
"""

import sys
from pathlib import Path

from figure import Box, Figure

from landmark_retrieval.training.configs import compose

HERE = Path(__file__).parent
LEGEND = {
    "fixed": "photos",
    "pretrained": "for each model",
    "learned": "all models together",
    "result": "file",
}


def draw() -> Figure:
    config = compose([], "submit")
    retrieval, recognition = config.retrieval, config.recognition
    figure = Figure("From photos to a submission (Henkel 2021, section 2.4)", LEGEND)
    figure.add("photos", Box(0, 1, "Photos", "test, index, training", "fixed"))
    figure.add(
        "store", Box(1, 1, "Descriptors", "a store of each set", "pretrained", config.extraction.dtype), "photos"
    )

    figure.add(
        "votes", Box(2, 0, "Votes", f"of {retrieval.k} training photos", "pretrained", "landmark, confidence"), "store"
    )
    change = f"cos + {retrieval.up:g} conf or cos - {retrieval.down:g} conf"
    figure.add("lists", Box(3, 0, "Re-ranked lists", change, "pretrained", f"best {retrieval.per_model}"), "votes")
    figure.add("sum", Box(4, 0, "Ensemble", "sum of the scores", "learned", f"best {retrieval.top}"), "lists")
    figure.add("ranked", Box(5, 0, "predictions.csv", "id, images", "result", "track=retrieval"), "sum")

    figure.add("joined", Box(2, 2, "One descriptor", "mean of each type", "learned", "types side by side"), "store")
    figure.add("quantiles", Box(3, 2, "Quantile transform", "fitted on test photos", "learned"), "joined")
    likeness = f"B: {recognition.train_neighbours} nearest, C: {recognition.test_neighbours} nearest"
    figure.add("others", Box(3, 1, "Non-landmark photos", "mean cosine with the", "fixed", likeness))
    near = f"best {recognition.top} of cos - B"
    figure.add("candidates", Box(4, 2, "Candidates", near, "learned", "summed by landmark"), "quantiles", "others")
    figure.add("answer", Box(5, 2, "predictions.csv", "id, landmark, sum - C", "result", "track=recognition"))
    figure.arrows += [("candidates", "answer"), ("others", "answer")]
    return figure


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figures"
    folder.mkdir(exist_ok=True)
    (folder / "retrieval.svg").write_text(draw().svg())
