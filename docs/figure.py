"""Boxes and arrows as SVG, for the figures of the docs."""

from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, TOP = 168, 70, 40, 26, 20, 62

# what a box stands for: (fill, line)
COLOURS = {
    "pretrained": ("#dbeafe", "#2563eb"),
    "learned": ("#fef3c7", "#d97706"),
    "fixed": ("#f3f4f6", "#6b7280"),
    "result": ("#dcfce7", "#16a34a"),
}
MODEL_LEGEND = {
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
    legend: dict[str, str] = field(default_factory=lambda: MODEL_LEGEND)
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
        size = min(13, round(1.6 * WIDTH / len(box.title)))  # long names smaller
        lines = [(box.title, size, "bold", "#111827"), (box.note, 11, "normal", "#374151")]
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
            parts.append(f'<text x="{x + 20}" y="{y + 10}" font-size="11" fill="#374151">{self.legend[kind]}</text>')
            x += 34 + 6 * len(self.legend[kind])
        return "\n".join(parts)
