"""Draws the pictures of these pages: `python docs/pictures.py` writes architecture.svg and attention_patterns.svg.

The colors have enough contrast on white and on black, and the background is transparent, so that one file serves light
and dark pages. The attention patterns are drawn from their definitions in `hf_gpt.model.attention_patterns`.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from hf_gpt import GPTConfig
from hf_gpt.model.attention_patterns import build_pattern

BLUE, ORANGE, GREEN, PURPLE, GRAY, INK = "#437bb5", "#c2651a", "#3f8a4b", "#8464b3", "#6a737d", "#7b838d"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

LEFT, RIGHT, BOX = 16, 864, 46  # edges of the picture, height of a box
STREAM, BLOCK = 37, 200  # the middle of each row of boxes
CHOICES = (
    (120, BLUE, "positions", ("learned", "sinusoidal", "rope, 6 types", "none")),
    (330, ORANGE, "attention", ("dense, banded", "strided, fixed", "MHA, GQA, MQA", "sinks")),
    (548, GREEN, "feed-forward", ("mlp", "glu", "clamped glu", "experts")),
    (758, PURPLE, "block", ("pre or post norm", "parallel branches", "layer norm", "RMS norm")),
)

LENGTH, CELL, GAP = 16, 11, 46  # tokens in a grid, pixels of a cell, pixels between grids
SIZES = {"sliding_window": 5, "attention_stride": 4, "attention_summary_size": 1}
CAPTIONS = {
    "dense": ("every earlier token",),
    "banded": ("the last 5",),
    "strided": ("the last 4, and", "every 4th before"),
    "fixed": ("its block of 4, and", "the last of each before"),
}


def svg(width: int, height: int, title: str, elements: list[str]) -> str:
    """A complete SVG file."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="{FONT}" role="img">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
            *elements,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, line: str, size: int = 17, color: str = INK, anchor: str = "middle", **style) -> str:
    """One line of text; `y` is its baseline."""
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{more}>{escape(line)}</text>'


def box(x: float, y: float, width: float, height: float, label: str, color: str) -> str:
    """A filled rectangle with a label in its middle."""
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{color}"/>'
    return shape + text(x + width / 2, y + height / 2 + 6, label, color="#ffffff", font_weight=600)


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points, with a head at the last."""
    path = " L".join(f"{x},{y}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="2" marker-end="url(#head)"/>'


def plus(x: float, y: float) -> str:
    """The sum of a residual connection."""
    circle = f'<circle cx="{x}" cy="{y}" r="12" fill="none" stroke="{INK}" stroke-width="2"/>'
    return circle + f'<path d="M{x - 7},{y} H{x + 7} M{x},{y - 7} V{y + 7}" stroke="{INK}" stroke-width="2"/>'


def stream() -> tuple[list[str], dict[str, tuple[float, float]]]:
    """The model from token ids to the loss; and the left and right edge of each part."""
    parts = (("token ids", GRAY, 110), ("embedding", BLUE, 126), ("N × block", GRAY, 126))
    parts += (("norm", PURPLE, 84), ("head", BLUE, 84), ("logits, loss", GRAY, 126))
    elements, edges, x = [], {}, LEFT
    for label, color, width in parts:
        if edges:
            elements.append(arrow((x - 36, STREAM), (x - 3, STREAM)))
        elements.append(box(x, STREAM - BOX / 2, width, BOX, label, color))
        edges[label] = (x, x + width)
        x += width + 38
    return elements, edges


def block() -> list[str]:
    """One block: two branches, each added to the residual stream."""
    frame = f'x="{LEFT}" y="118" width="{RIGHT - LEFT}" height="134" rx="10"'
    elements = [f'<rect {frame} fill="none" stroke="{INK}" stroke-width="1.5"/>']
    x = LEFT + 18
    for label, color in (("attention", ORANGE), ("feed-forward", GREEN)):
        norm, layer, total = x + 50, x + 166, x + 360
        elements += [
            arrow((x, BLOCK), (norm - 3, BLOCK)),
            box(norm, BLOCK - BOX / 2, 84, BOX, "norm", PURPLE),
            arrow((norm + 84, BLOCK), (layer - 3, BLOCK)),
            box(layer, BLOCK - BOX / 2, 150, BOX, label, color),
            arrow((layer + 150, BLOCK), (total - 13, BLOCK)),
            arrow((x + 24, BLOCK), (x + 24, BLOCK - 50), (total, BLOCK - 50), (total, BLOCK - 15)),
            plus(total, BLOCK),
        ]
        x = total + 12
    return [*elements, arrow((x, BLOCK), (RIGHT - 14, BLOCK))]


def architecture() -> str:
    """The way through the model, and what the configuration chooses in each part."""
    elements, edges = stream()
    corners = zip(edges["N × block"], (LEFT, RIGHT), strict=True)
    elements += [
        f'<path d="M{x},{STREAM + BOX / 2} L{corner},118" stroke="{INK}" stroke-width="1.5" stroke-dasharray="4 4"/>'
        for x, corner in corners
    ]
    elements += block()
    for x, color, title, lines in CHOICES:
        elements.append(text(x, 292, title, size=19, color=color, font_weight=700))
        elements += [text(x, 318 + 24 * row, line) for row, line in enumerate(lines)]
    return svg(880, 402, "The way through the model, and what its configuration chooses", elements)


def cells(name: str) -> Iterator[tuple[int, int, str, float]]:
    """Row, column, color and opacity of every cell on and below the diagonal."""
    config = GPTConfig(num_hidden_layers=4, attention_patterns=list(CAPTIONS), **SIZES)
    position = torch.arange(LENGTH)
    query, key = position[:, None], position[None, :]
    seen = build_pattern(config, name).visible(query, key)
    stride = config.attention_stride
    near = {
        "strided": query - key < stride,
        "fixed": query // stride == key // stride,
    }.get(name, torch.ones_like(seen))
    for q in range(LENGTH):
        for k in range(q + 1):
            if seen[q, k]:
                yield q, k, BLUE if near[q, k] else ORANGE, 1
            else:
                yield q, k, INK, 0.22


def attention_patterns() -> str:
    """Which keys each query sees, one grid for each pattern."""
    elements = []
    side = LENGTH * CELL
    left, top = 40, 62
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        x = left + number * (side + GAP)
        elements.append(text(x + side / 2, 22, name, size=20, font_weight=700))
        for q, k, color, opacity in cells(name):
            elements.append(
                f'<rect x="{x + k * CELL}" y="{top + q * CELL}" width="{CELL - 1}" height="{CELL - 1}" rx="1.5" '
                f'fill="{color}" opacity="{opacity}"/>'
            )
        elements += [text(x + side / 2, top + side + 26 + 21 * row, line) for row, line in enumerate(caption)]
    elements.append(text(left + side / 2, top - 12, "key →", size=16))
    elements.append(text(22, top + side / 2, "← query", size=16, transform=f"rotate(-90 22 {top + side / 2})"))
    width = left + 4 * side + 3 * GAP + 18
    return svg(width, top + side + 58, "Which keys a query sees, by attention pattern", elements)


PICTURES = {"architecture.svg": architecture, "attention_patterns.svg": attention_patterns}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        Path(__file__).with_name(name).write_text(draw(), encoding="utf-8")
