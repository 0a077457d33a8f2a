"""The plot of benchmarks/claim.py: a dot a search, chosen minus released, by data set and kind of search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from prometar.io.files import write_atomically

WIDTH, LEFT, RIGHT, TOP, ROW = 1050, 110, 20, 72, 66
COLOURS = ("#0b6e99", "#6aa84f", "#b8860b", "#8a5a83", "#555555", "#c0504d", "#d99694", "#a0a0a0")


def draw(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], path: Path) -> None:
    """An SVG; the bar is a data set's mean, the dashed line is no gain."""
    names = sorted({row["dataset"] for row in rows})
    gains = [row["H"] for row in rows]
    low, high = min(-1.0, *gains), 1.05 * max(1.0, *gains)
    arms = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    height = TOP + ROW * len(names) + 50

    def x(gain: float) -> float:
        return LEFT + (gain - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def text(at: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    step = max(1, round((high - low) / 8))
    ticks = range(int(low // step) * step, int(high) + 1, step)
    bottom = TOP + ROW * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        *(text(x(tick), bottom + 18, f"{tick:+d}") for tick in ticks if tick >= low),
        text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, "chosen minus released, points of H on test images"),
        f'<path d="M{x(0):.1f} {TOP - 6} V{bottom}" stroke="#666" stroke-dasharray="4 3"/>',
    ]
    at, line = float(LEFT), 20
    for arm, colour in zip(arms, COLOURS, strict=False):
        wide = 40 + 7.2 * len(arm)
        if at + wide > WIDTH:
            at, line = float(LEFT), line + 22
        parts += [
            f'<circle cx="{at:.1f}" cy="{line}" r="5" fill="{colour}"/>',
            text(at + 10, line + 4, arm, "start"),
        ]
        at += wide
    for k, name in enumerate(names):
        parts.append(text(LEFT - 12, TOP + ROW * (k + 0.5) + 4, name, "end"))
        for j, (arm, colour) in enumerate(zip(arms, COLOURS, strict=False)):
            found = [row["H"] for row in rows if row["dataset"] == name and row["arm"] == arm]
            y = TOP + ROW * k + ROW * (j + 1) / (len(arms) + 1)
            if found:
                parts.append(
                    f'<path d="M{x(mean(found)):.1f} {y - 6:.1f} v12" stroke="{colour}" stroke-width="3"/>'
                )
            parts += [
                f'<circle cx="{x(g):.1f}" cy="{y:.1f}" r="4" fill="{colour}" opacity="0.6"/>' for g in found
            ]
    write_atomically(path, ("\n".join([*parts, "</svg>"]) + "\n").encode())
