"""Draw the figures of docs/models.md: python docs/draw_models.py

The numbers in the boxes are measured: a model is built without memory (on the meta device), an image sent through it,
and the shapes of what each module gives are noted.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landmark_retrieval import create_model

HERE = Path(__file__).parent
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, TOP = 168, 70, 40, 26, 20, 62

# what a box stands for: (fill, line)
COLOURS = {
    "pretrained": ("#dbeafe", "#2563eb"),
    "learned": ("#fef3c7", "#d97706"),
    "fixed": ("#f3f4f6", "#6b7280"),
    "result": ("#dcfce7", "#16a34a"),
}
LEGEND = {
    "pretrained": "from ImageNet",
    "learned": "learned from the start",
    "fixed": "nothing to learn",
    "result": "descriptor",
}


@dataclass(frozen=True)
class Box:
    """One step: where it stands, what it is called, what it gives."""

    column: float
    row: float
    title: str
    note: str
    kind: str
    shape: str = ""


@dataclass
class Figure:
    """Boxes and arrows between them, by key."""

    title: str
    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, key: str, box: Box, *sources: str) -> None:
        self.boxes[key] = box
        self.arrows += [(source, key) for source in sources]

    def svg(self) -> str:
        columns = max(box.column for box in self.boxes.values()) + 1
        rows = max(box.row for box in self.boxes.values()) + 1
        width = int(2 * MARGIN + columns * WIDTH + (columns - 1) * GAP_X)
        height = int(TOP + rows * HEIGHT + (rows - 1) * GAP_Y + MARGIN + 30)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="Helvetica, Arial, DejaVu Sans, sans-serif">',
            # a ground of its own: pages are light or dark
            f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8 z" fill="#374151"/></marker></defs>',
            f'<text x="{MARGIN}" y="34" font-size="17" font-weight="bold" fill="#111827">{escape(self.title)}</text>',
            *(self._arrow(*arrow) for arrow in self.arrows),
            *(self._box(box) for box in self.boxes.values()),
            self._legend(height),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    @staticmethod
    def _corner(box: Box) -> tuple[float, float]:
        return MARGIN + box.column * (WIDTH + GAP_X), TOP + box.row * (HEIGHT + GAP_Y)

    def _box(self, box: Box) -> str:
        x, y = self._corner(box)
        fill, line = COLOURS[box.kind]
        middle = x + WIDTH / 2
        lines = [(box.title, 13, "bold", "#111827"), (box.note, 11, "normal", "#374151")]
        if box.shape:
            lines.append((box.shape, 11, "normal", line))
        start = y + HEIGHT / 2 - 8 * (len(lines) - 1) + 4
        texts = (
            f'<text x="{middle:g}" y="{start + 17 * i:g}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
            f'text-anchor="middle">{escape(text)}</text>'
            for i, (text, size, weight, colour) in enumerate(lines)
        )
        frame = (
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{fill}" stroke="{line}" '
            'stroke-width="1.3"/>'
        )
        return "\n".join([frame, *texts])

    def _arrow(self, source: str, target: str) -> str:
        (x1, y1), (x2, y2) = self._corner(self.boxes[source]), self._corner(self.boxes[target])
        if x1 == x2:  # straight down or up
            down = y2 > y1
            ends = (x1 + WIDTH / 2, y1 + (HEIGHT if down else 0), x2 + WIDTH / 2, y2 + (0 if down else HEIGHT))
            path = "M{:g} {:g} L{:g} {:g}".format(*ends)
        else:
            start, end, bend = x1 + WIDTH, x2, x2 - GAP_X / 2
            y1, y2 = y1 + HEIGHT / 2, y2 + HEIGHT / 2
            path = f"M{start:g} {y1:g} H{bend:g} V{y2:g} H{end:g}"
        return f'<path d="{path}" fill="none" stroke="#374151" stroke-width="1.3" marker-end="url(#tip)"/>'

    def _legend(self, height: int) -> str:
        parts, x, y = [], MARGIN, height - 22
        for kind in dict.fromkeys(box.kind for box in self.boxes.values()):
            fill, line = COLOURS[kind]
            parts.append(f'<rect x="{x}" y="{y}" width="14" height="12" rx="3" fill="{fill}" stroke="{line}"/>')
            parts.append(f'<text x="{x + 20}" y="{y + 10}" font-size="11" fill="#374151">{LEGEND[kind]}</text>')
            x += 34 + 6 * len(LEGEND[kind])
        return "\n".join(parts)


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
