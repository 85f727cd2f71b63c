"""Draw the figures of docs/curriculum.md: python docs/draw_curriculum.py

What stands in the boxes is read from the stages of two curricula as they are composed: the steps of the papers.
"""

import sys
from pathlib import Path
from typing import Any

from figure import Box, Figure

from landmark_retrieval.training.curriculum import plan_curriculum
from landmark_retrieval.training.freezing import read_patterns, standing_still

HERE = Path(__file__).parent
LEGEND = {
    "result": "stage: what it is given",
    "pretrained": "new, from ImageNet or at random",
    "learned": "carried over, learns on",
    "fixed": "carried over, frozen",
}
SETS = {"c": "GLDv2c", "x": "GLDv2x", "full": "GLDv2"}
# of each kind of model: a module that stands for the part, what it is called
PARTS = {
    "DOLGNet": {"backbone": "EfficientNet", "neck": "branches, neck, head"},
    "HybridSwinNet": {"patch_embedding": "", "transformer": "Swin, token", "neck": "neck, head"},
}


def draw(curriculum: str, title: str) -> Figure:
    figure = Figure(f"{title} ({curriculum})", LEGEND)
    for column, stage in enumerate(plan_curriculum(curriculum)):
        about, data = stage.config["stage"], stage.config["data"]
        stop = f"{about['stop']} of " if about["stop"] else ""
        photos = f"{SETS[data['train_set']]}, {data['image_size']} px"
        figure.add(f"stage{column}", Box(column, 0, stage.name, photos, "result", f"{stop}{about['epochs']} epochs"))
        parts = PARTS[stage.config["model"]["_target_"].rpartition(".")[2]]
        frozen = standing_still(parts, read_patterns([p for p in about["freeze"] if p in parts], parts, ""), 0)
        for row, (module, name) in enumerate(parts.items(), 1):
            new = not about["after"] or (about["surgery"] == "replace_patch_embedding" and module == "patch_embedding")
            kind = "pretrained" if new else "fixed" if module in frozen else "learned"
            note = made(stage.config, module) or {"pretrained": "", "fixed": "frozen", "learned": "learns on"}[kind]
            box = Box(column, row, name or patches(stage.config["model"]), note or "new", kind)
            figure.add(f"{module}{column}", box, *([f"{module}{column - 1}"] if column else []))
    return figure


def patches(model: dict[str, Any]) -> str:
    blocks = model["cnn_blocks"]
    return f"{blocks} block{'s' if blocks > 1 else ''} of a CNN" if model["cnn"] else "4 x 4 px patches"


def made(config: dict[str, Any], module: str) -> str:
    surgery = config["stage"]["surgery"]
    if surgery and module == "patch_embedding":
        return {"insert_cnn_block": "one of them new"}.get(surgery, "new")
    if module in ("patch_embedding", "backbone") and config["model"].get("stem_stride") == 1:
        return "stride of the stem 1"
    return ""


FIGURES = {
    "curriculum_dolg": lambda: draw("dolg_b7", "DOLG in three steps"),
    "curriculum_hybrid": lambda: draw("hybrid_b3_swin_b224", "Hybrid-Swin-Transformer in four steps"),
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        (folder / f"{name}.svg").write_text(make().svg(), encoding="utf-8")
        print(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
