"""Draw the figures of docs/models.md: python docs/draw_models.py

The numbers in the boxes are measured: a model is built without memory (on the meta device), an image sent through it,
and the shapes of what each module gives are noted.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figure import Box, Figure
from torch import Tensor, nn

from landmark_retrieval import create_model

HERE = Path(__file__).parent


def shapes_of(net: nn.Module, side: int) -> dict[str, str]:
    """What each module of the network gives for one image of that side, as text."""
    found: dict[str, str] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            last = output[-1] if isinstance(output, (list, tuple)) else output
            if isinstance(last, Tensor):
                found[name] = as_text(last)

        return hook

    for name, module in net.named_modules():
        module.register_forward_hook(note(name))
    net.eval()(torch.empty(1, 3, side, side))
    return found


def as_text(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape[1:])


def maps_of(net: nn.Module, side: int) -> str:
    return ", ".join("x".join(str(size) for size in m.shape[1:]) for m in net.backbone(torch.empty(1, 3, side, side)))


def dolg(name: str) -> Figure:
    net = create_model(name)
    side = net.pretrained_cfg["image_size"]
    shape = shapes_of(net, side)
    dilations = ", ".join(str(branch.dilation[0]) for branch in net.local_context.branches)
    figure = Figure(f"DOLGNet ({name})")
    figure.add("image", Box(0, 0.5, "photo", "RGB, normalised", "fixed", f"3 x {side} x {side}"))
    figure.add("backbone", Box(1, 0.5, "EfficientNet", "last two maps", "pretrained", maps_of(net, side)), "image")
    note = f"3x3, dilation {dilations}; 1x1"
    figure.add("context", Box(2, 0, "multi-atrous", note, "learned", shape["local_context"]), "backbone")
    attention = Box(3, 0, "spatial attention", "unit length x weight", "learned", shape["local_context"])
    figure.add("attention", attention, "context")
    figure.add("mean", Box(4, 0, "mean", "over positions", "fixed", as_text(torch.empty(1, 1024))), "attention")
    figure.add(
        "project", Box(2, 1, "1x1, BatchNorm, SiLU", "global branch", "learned", shape["global_project"]), "backbone"
    )
    figure.add("gem", Box(3, 1, "GeM", "learned p", "learned", shape["global_pool"]), "project")
    figure.add("fusion", Box(5, 0.5, "orthogonal fusion", "[l - (l.g / |g|²) g, g]", "fixed", shape["fusion"]), "mean")
    figure.arrows.append(("gem", "fusion"))
    figure.add("neck", Box(6, 0.5, "neck", "Linear, BatchNorm, PReLU", "result", shape["neck"]), "fusion")
    return figure


def dolg_resnet(name: str) -> Figure:
    net = create_model(name)
    side = net.pretrained_cfg["image_size"]
    shape = shapes_of(net, side)
    figure = Figure(f"DOLGResNet ({name})")
    figure.add("image", Box(0, 0.5, "photo", "RGB, normalised", "fixed", f"3 x {side} x {side}"))
    figure.add("backbone", Box(1, 0.5, "ResNet", "stages 3 and 4", "pretrained", maps_of(net, side)), "image")
    note = "mean, 1x1, 3x3 dilated; 1x1"
    figure.add("context", Box(2, 0, "multi-atrous", note, "learned", shape["local_context"]), "backbone")
    attention = Box(3, 0, "spatial attention", "unit length x weight", "learned", shape["local_context"])
    figure.add("attention", attention, "context")
    figure.add("mean", Box(4, 0, "mean", "over positions", "fixed", as_text(torch.empty(1, 1024))), "attention")
    figure.add("gem", Box(2, 1, "GeM", "learned p", "learned", shape["global_pool"]), "backbone")
    figure.add("project", Box(3, 1, "Linear", "global branch", "learned", shape["global_project"]), "gem")
    figure.add("fusion", Box(5, 0.5, "orthogonal fusion", "[g, l - (l.g / |g|²) g]", "fixed", shape["fusion"]), "mean")
    figure.arrows.append(("project", "fusion"))
    figure.add("neck", Box(6, 0.5, "Linear", "no norm, no activation", "result", shape["neck"]), "fusion")
    return figure


def hybrid(name: str) -> Figure:
    net = create_model(name)
    side = net.pretrained_cfg["image_size"]
    shape = shapes_of(net, side)
    blocks = len(net.patch_embedding.cnn.blocks)
    figure = Figure(f"HybridSwinNet ({name})")
    figure.add("image", Box(0, 0, "photo", "RGB, normalised", "fixed", f"3 x {side} x {side}"))
    figure.add(
        "cnn",
        Box(1, 0, "EfficientNet", f"first {blocks} stages", "pretrained", shape["patch_embedding.cnn"]),
        "image",
    )
    position = as_text(net.patch_embedding.position)
    figure.add("position", Box(1, 1, "position embedding", "added", "learned", position))
    figure.add("project", Box(2, 0, "projection", "1x1", "learned", shape["patch_embedding.project"]), "cnn")
    figure.arrows.append(("position", "project"))
    figure.add("token", Box(2, 1, "virtual token", "one vector", "learned", as_text(net.token)))
    column, above, beside = 3, "project", "token"
    for number, stage in enumerate(net.transformer.layers):
        height, width = stage.output_resolution
        channels = stage.blocks[0].dim
        key = f"stage{number}"
        merged = "" if number == 0 else "merging, "
        figure.add(
            key,
            Box(
                column,
                0,
                f"Swin stage {number + 1}",
                f"{merged}{len(stage.blocks)} blocks",
                "pretrained",
                f"{height} x {width} x {channels}",
            ),
            above,
        )
        note = "joins every window" if number == 0 else "4 copies merged, joins"
        figure.add(f"{key}_token", Box(column, 1, "token", note, "fixed", f"1 x {channels}"), beside)
        figure.arrows += [(key, f"{key}_token"), (f"{key}_token", key)]
        column, above, beside = column + 1, key, f"{key}_token"
    figure.add("norm", Box(column, 1, "LayerNorm", "of the token", "pretrained", shape["transformer"]), beside)
    figure.add("neck", Box(column, 0, "neck", "Linear, BatchNorm, PReLU", "result", shape["neck"]), "norm")
    return figure


def gem(name: str) -> Figure:
    net = create_model(name)
    side = net.pretrained_cfg["image_size"]
    shape = shapes_of(net, side)
    figure = Figure(f"GeMNet ({name})")
    figure.add("image", Box(0, 0, "photo", "RGB, normalised", "fixed", f"3 x {side} x {side}"))
    figure.add("backbone", Box(1, 0, "EfficientNet", "to its last 1x1", "pretrained", shape["backbone"]), "image")
    figure.add("gem", Box(2, 0, "GeM", "learned p", "learned", shape["global_pool"]), "backbone")
    figure.add("neck", Box(3, 0, "neck", "Linear, BatchNorm, PReLU", "result", shape["neck"]), "gem")
    return figure


FIGURES = {
    "dolg": lambda: dolg("dolg_efficientnet_b5"),
    "hybrid_swin": lambda: hybrid("hybrid_efficientnet_b5_swin_base_224"),
    "gem": lambda: gem("gem_efficientnet_b6"),
    "dolg_resnet": lambda: dolg_resnet("dolg_resnet50_ma"),
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        with torch.device("meta"), torch.no_grad():
            svg = draw().svg()
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        print(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
