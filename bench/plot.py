"""The ratios as one picture: an SVG that follows the reader's light or dark theme by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import Any

from bench.contenders import CONTENDERS
from bench.figures import Table

WIDTH, LEFT, RIGHT = 860, 290, 70
BAR, STEP, HEAD = 16, 24, 50
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2937 }
.title { font-size: 15px; font-weight: 600 } .note, .tick { font-size: 11px; fill: #6b7280 }
.worse { fill: #94a3b8 } .better { fill: #f59e0b } .one { stroke: #0d9488; stroke-width: 2 }
.grid { stroke: #e5e7eb } .ours { fill: #0d9488; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #e5e7eb } .note, .tick { fill: #9ca3af } .worse { fill: #64748b } .better { fill: #d97706 }
  .grid { stroke: #374151 } .one { stroke: #2dd4bf } .ours { fill: #2dd4bf }
}
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One group of bars: how many times Tocsin's figure the others need."""

    title: str
    scenario: str
    figure: str


PANELS = (
    Panel("Server CPU a delivery, 8 messages in flight", "fanout", "window:8 us"),
    Panel("Server CPU a delivery, 50 messages a second (nothing to join)", "fanout", "rate:50 us"),
    Panel("Memory per idle connection", "idle", "memory_kb"),
    Panel("CPU per new connection", "idle", "connect_us"),
    Panel("Ingest: CPU a message, 50 publishers", "ingest", "window:500 message_us"),
)


def _bars(table: Table, panel: Panel) -> list[tuple[str, float]]:
    bars = []
    for name in table.contenders(panel.scenario):
        ratios = table.ratios(panel.scenario, name, "tocsin", panel.figure)
        if name != "tocsin" and ratios and median(ratios) > 0:
            bars.append((CONTENDERS[name].title.replace("`", ""), median(ratios)))
    return sorted(bars, key=lambda bar: bar[1])


def draw(table: Table, about: dict[str, Any]) -> str:
    """The picture of a run; panels without figures are left out."""
    panels = [(panel, bars) for panel in PANELS if (bars := _bars(table, panel))]
    ratios = [ratio for _, bars in panels for _, ratio in bars] or [1.0]
    low = math.floor(math.log10(min(*ratios, 0.9)))
    high = max(math.log10(max(*ratios, 1.0)), low + 1)

    def x(ratio: float) -> float:
        return LEFT + (math.log10(ratio) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts: list[str] = []
    y = 62
    for panel, bars in panels:
        parts.append(f'<text x="16" y="{y + 16}" class="title">{escape(panel.title)}</text>')
        top, y = y + 42, y + HEAD
        for power in range(low, math.floor(high) + 1):
            at = x(10.0**power)
            label = f"{10.0**power:g}x"
            parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{y + STEP * len(bars) - 6}"/>')
            parts.append(f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{top - 3}">{label}</text>')
        for title, ratio in bars:
            left, right = sorted((x(1), x(ratio)))
            kind = "worse" if ratio >= 1 else "better"
            parts.append(f'<text x="{LEFT - 14}" y="{y + 13}" text-anchor="end">{escape(title)}</text>')
            parts.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{y}" width="{max(right - left, 1):.1f}" '
                f'height="{BAR}" rx="2"/>'
            )
            parts.append(f'<text x="{right + 6:.1f}" y="{y + 13}">{ratio:.3g}x</text>')
            y += STEP
        parts.append(f'<line class="one" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{top}" y2="{y - 6}"/>')
        y += 18
    foot = f"{about['date']}, {about['cpu']}, {about['cores']} cores, loopback, medians of {about['rounds']} rounds"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 20}" width="{WIDTH}" height="{y + 20}" '
        f'role="img" aria-label="What others need, as multiples of Tocsin">\n<style>{STYLE}</style>\n'
        '<text x="16" y="26" class="title">What others need, as multiples of '
        '<tspan class="ours">Tocsin = 1x</tspan></text>'
        '<text x="16" y="43" class="note">Logarithmic. Bars to the right of the line: more than Tocsin. '
        "To the left, in amber: less.</text>\n"
        + "\n".join(parts)
        + f'\n<text x="16" y="{y + 8}" class="note">{escape(foot)}</text>\n</svg>\n'
    )
