"""Figures of a report: inline SVG drawn by matplotlib, and PNG data URIs.

Figures show numbers and fixed words only. Names of classes, heads and files are in the HTML
beside them, where the browser has the glyphs of every script and the template escapes them.
Colours are variables of the page's style sheet, so one figure serves the light and the dark scheme.
"""

import base64
import io
import re
import zlib

import cv2
import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from train_lib.metrics.confusions import Confusions

# Stand-ins that matplotlib can draw with, and what the page puts in their place.
_COLOURS = {'#010101': 'var(--ink)', '#020202': 'var(--muted)', '#030303': 'var(--line)',
            '#040404': 'var(--accent)', '#050505': 'var(--shade)'}
INK, MUTED, LINE, ACCENT, SHADE = _COLOURS
_STYLE = {
    'svg.fonttype': 'none', 'svg.hashsalt': 'report', 'font.size': 9.5, 'font.family': 'sans-serif',
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.spines.left': False,
    'axes.edgecolor': LINE, 'axes.linewidth': 1, 'axes.labelcolor': MUTED,
    'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True,
    'grid.color': LINE, 'grid.linewidth': .8,
    'xtick.color': MUTED, 'ytick.color': MUTED, 'xtick.major.size': 0, 'ytick.major.size': 0,
    'xtick.major.pad': 6,
    'text.color': INK, 'axes.facecolor': 'none', 'figure.facecolor': 'none',
    'lines.solid_capstyle': 'round', 'lines.solid_joinstyle': 'round',
}
_POINTS = 300
# Of runs beside each other: apart in hue, and legible on white and on near black.
RUN_COLOURS = ('#3e76ef', '#d9732b', '#2f9e6e', '#c2459b', '#8a63d2', '#a9891f', '#1c9cb5',
               '#d64545')
_BLUE, _GREY = (239, 118, 62), (150, 143, 136)  # BGR, legible on white and on near black


def curve(lines: dict[str, pd.DataFrame], column: str, x: str, *, stages=(), best=None,
          unit_range: bool = False) -> Markup:
    """One learning curve per split over `x`, as an SVG.

    Args:
        lines: split -> table with the columns `x` and `column`, sorted by x. More than 300
            points are averaged in 300 equal parts.
        column: the metric; x: 'epoch' or 'step'.
        stages: (start, end, label) in units of x, shaded in turn.
        best: x of the kept checkpoint, drawn as a dotted line; None for none.
        unit_range: the metric lies in 0..1, and the axis shows all of it up to 1.
    """
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((.13, .17, .86, .74))  # the same in all panels, so they align
        drawn = []
        for split, table in lines.items():
            xs, ys = _thin(table[x].to_numpy(float), table[column].to_numpy(float))
            colour, width = (MUTED, 1.3) if split == 'train' else (ACCENT, 2.0)
            # A marker shows a curve of one point, and where a short run was evaluated.
            marker = 'o' if len(xs) <= 30 else None
            ax.plot(xs, ys, color=colour, lw=width, marker=marker, ms=3, clip_on=False,
                    zorder=3 if split == 'train' else 4)
            drawn.append(ys)
        if unit_range:
            ax.set_ylim(min(0.0, *(ys.min() for ys in drawn)), 1.0)
        else:
            ax.set_ylim(bottom=min(0.0, *(ys.min() for ys in drawn)))
            ax.yaxis.set_major_formatter(FuncFormatter(_tick))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_xlabel(x)
        left, right = ax.get_xlim()
        for k, (start, end, label) in enumerate(stages):
            if k % 2:
                ax.axvspan(start, end, color=SHADE, lw=0, zorder=0)
            visible = max(start, left), min(end, right)
            if visible[0] < visible[1]:  # a curve may begin after the first stage has ended
                ax.text(sum(visible) / 2, 1.03, label, transform=ax.get_xaxis_transform(),
                        ha='center', va='bottom', fontsize=9, color=MUTED)
        ax.set_xlim(left, right)
        if best is not None:
            ax.axvline(best, color=ACCENT, lw=1, ls=(0, (1, 3)), zorder=2)
        return _svg(fig)


def overlaid(lines: list[tuple[str, pd.DataFrame]], column: str, x: str, *,
             unit_range: bool = False) -> Markup:
    """The curves of several runs in one panel, as an SVG.

    Args:
        lines: (colour as in `RUN_COLOURS`, table with the columns `x` and `column`, sorted by x);
            more than 300 points are averaged in 300 equal parts.
        column, x, unit_range: as in `curve`.
    """
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((.13, .17, .86, .78))
        lowest = 0.0
        for colour, table in lines:
            xs, ys = _thin(table[x].to_numpy(float), table[column].to_numpy(float))
            ax.plot(xs, ys, color=colour, lw=1.6, marker='o' if len(xs) <= 30 else None, ms=3,
                    clip_on=False, zorder=3)
            lowest = min(lowest, ys.min())
        ax.set_ylim(lowest, 1.0 if unit_range else None)
        if not unit_range:
            ax.yaxis.set_major_formatter(FuncFormatter(_tick))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_xlabel(x)
        return _svg(fig)


def reliability_diagram(table: pd.DataFrame) -> Markup:
    """Accuracy against confidence per bin, and below it the number of predictions per bin."""
    width = float(table['upper'].iloc[0] - table['lower'].iloc[0])
    middle = (table['lower'] + table['upper']) / 2
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(4.4, 4.4), layout='constrained')
        top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        top.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (1, 3)), zorder=4)
        full = table['n'] > 0
        top.bar(middle[full], table['accuracy'][full], width * .86, color=ACCENT, alpha=.75,
                zorder=3)
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy')
        bottom.bar(middle, table['n'], width * .86, color=MUTED, alpha=.7, zorder=3)
        bottom.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:,.0f}'))
        bottom.set(xlabel='probability of the predicted class', ylabel='pictures')
        return _svg(fig)


def histogram(values: np.ndarray, *, log: bool = False, mark: float | None = None) -> Markup:
    """The number of pictures by value, as an SVG.

    Args:
        values: finite; log: on a logarithmic axis (values below a thousandth of the largest count
            there).
        mark: a threshold, drawn as a dotted line where the axis reaches it.
    """
    values = np.asarray(values, float)
    if log:
        values = np.maximum(values, max(values.max(), 1e-6) / 1000)
    low, high = values.min(), values.max()
    room = 0.02 * abs(high) or 0.02
    low, high = (low, high) if high > low else (low - room, high + room)
    edges = np.geomspace(low, high, 41) if log else np.linspace(low, high, 41)
    counts, _ = np.histogram(values, edges)
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(4.1, 1.9))
        ax = fig.add_axes((.13, .17, .84, .78))
        ax.bar(edges[:-1], counts, np.diff(edges) * .88, align='edge', color=ACCENT, alpha=.75,
               zorder=3)
        _scale_values(ax, log)
        ax.set_xlim(low, high)
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:,.0f}'))
        if mark is not None and low < mark < high:
            ax.axvline(mark, color=INK, lw=1, ls=(0, (1, 3)), zorder=4)
        return _svg(fig)


def _scale_values(ax, log: bool) -> None:
    """The axis of the values of a histogram."""
    if log:
        ax.set_xscale('log')
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g}'))
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6))


def two_histograms(first: np.ndarray, second: np.ndarray, *, log: bool = False) -> Markup:
    """The shares of two sets by value, as an SVG: the first filled, the second as a line.

    Args:
        first, second: finite, [N] and [M]; the ends of the axis hold what lies beyond, half a
            percent of all values at most.
        log: on a logarithmic axis.
    """
    values = np.concatenate([first, second]).astype(float)
    if log:
        values = np.maximum(values, max(values.max(), 1e-6) / 1000)
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = (low, high) if high > low else (values.min(), values.max())
    room = 0.02 * abs(high) or 0.02
    low, high = (low, high) if high > low else (low - room, high + room)
    edges = np.geomspace(low, high, 31) if log else np.linspace(low, high, 31)
    values = np.clip(values, low, high)
    shares = [np.histogram(part, edges)[0] / len(part)
              for part in (values[:len(first)], values[len(first):])]
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(4.1, 1.9))
        ax = fig.add_axes((.13, .17, .84, .78))
        ax.stairs(shares[0], edges, fill=True, color=MUTED, alpha=.35, zorder=3)
        ax.stairs(shares[1], edges, color=ACCENT, lw=1.6, zorder=4)
        _scale_values(ax, log)
        ax.set(xlim=(low, high), ylim=(0, None))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{100 * v:.3g} %'))
        return _svg(fig)


def shares_by_score(counts: np.ndarray, beside: np.ndarray | None = None) -> Markup:
    """The shares of rows by a score in 0..1, as an SVG; all such figures have one axis.

    Args:
        counts: int [B], rows in B equal bins, filled.
        beside: int [B] of other rows, drawn as a line; None for none.
    """
    edges = np.linspace(0, 1, len(counts) + 1)
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(4.1, 1.9))
        ax = fig.add_axes((.13, .17, .84, .78))
        ax.stairs(counts / max(counts.sum(), 1), edges, fill=True, color=ACCENT, alpha=.55,
                  zorder=3)
        if beside is not None:
            ax.stairs(beside / max(beside.sum(), 1), edges, color=INK, lw=1.3, zorder=4)
        ax.set(xlim=(0, 1), ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{100 * v:.3g} %'))
        return _svg(fig)


def growth(table: pd.DataFrame) -> Markup:
    """Accuracy over the number of members, as an SVG.

    Args:
        table: members, accuracy, accuracy_mean, accuracy_low, accuracy_high.
    """
    members = table['members'].to_numpy()
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(4.1, 2.7))
        ax = fig.add_axes((.15, .17, .84, .78))
        ax.fill_between(members, table['accuracy_low'], table['accuracy_high'], color=SHADE, lw=0)
        ax.plot(members, table['accuracy_mean'], color=MUTED, lw=1.3)
        ax.plot(members, table['accuracy'], color=ACCENT, lw=2, clip_on=False,
                marker='o' if len(members) <= 30 else None, ms=3)
        ax.set_xlabel('members')
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        return _svg(fig)


def heat_map(found: Confusions, side: int = 720) -> str:
    """The confusions of many classes as a PNG data URI with a transparent background.

    Cells are shares of their row: correct ones grey, confusions blue, both on a square root scale,
    so that a single mistake is visible. The picture is about `side` pixels wide; where there are
    more classes than pixels, a pixel shows the largest share that it covers.
    """
    fold = -(-found.size // (2 * side))
    cells = -(-found.size // fold)
    errors, right = np.zeros((2, cells, cells))
    is_right = found.true == found.predicted
    for picture, part in ((right, is_right), (errors, ~is_right)):
        np.maximum.at(picture, (found.true[part] // fold, found.predicted[part] // fold),
                      found.shares[part])
    picture = np.empty((*errors.shape, 4), np.uint8)
    picture[..., :3] = np.where((errors > right)[..., None], _BLUE, _GREY)
    largest = np.maximum(errors, right)
    picture[..., 3] = np.round(np.where(largest > 0, 50 + 205 * np.sqrt(largest), 0))
    times = max(1, round(side / len(picture)))
    return png_uri(picture.repeat(times, axis=0).repeat(times, axis=1))


def png_uri(picture: np.ndarray) -> str:
    """uint8 [H, W, 3 or 4] in OpenCV's channel order as a PNG data URI."""
    return _uri('png', cv2.imencode('.png', picture)[1])


def webp_uri(picture: np.ndarray, quality: int = 80) -> str:
    """uint8 [H, W, 3] in OpenCV's channel order as a WebP data URI."""
    return _uri('webp', cv2.imencode('.webp', picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1])


def _uri(kind: str, data: np.ndarray) -> str:
    return f'data:image/{kind};base64,' + base64.b64encode(data.tobytes()).decode('ascii')


def _tick(value: float, _) -> str:
    # 7.5e-4 rather than 0.00075, so that learning rates fit beside the axis.
    if value == 0 or abs(value) >= 0.01:
        return f'{value:.3g}'
    mantissa, exponent = f'{value:.2e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'


def _thin(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(xs) <= _POINTS:
        return xs, ys
    starts = np.linspace(0, len(xs), _POINTS, endpoint=False).astype(int)
    count = np.diff(np.append(starts, len(xs)))
    return np.add.reduceat(xs, starts) / count, np.add.reduceat(ys, starts) / count


def _svg(fig: Figure) -> Markup:
    """The figure as an SVG element for an HTML page.

    Left out are the XML head, metadata and name spaces (the only addresses in it), the style
    element (it would apply to the whole page), and ids without use; those used get a
    prefix of their own, since a page holds several figures. Fonts come from the page.
    """
    buffer = io.StringIO()
    fig.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
    text = buffer.getvalue()
    text = text[text.index('<svg'):]
    prefix = f'f{zlib.crc32(text.encode()):08x}-'
    text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->', '', text, flags=re.S)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', '', text).replace('xlink:href', 'href')
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    used = {one or other for one, other in used}
    text = re.sub(r'\s+id="([^"]*)"', lambda m: (
        f' id="{prefix}{m[1]}"' if m[1] in used else ''), text)
    text = re.sub(r'url\(#([^)]+)\)', rf'url(#{prefix}\1)', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', text)
    text = re.sub(r'font-family: [^;"]*; ?', '', text)
    for stand_in, variable in _COLOURS.items():
        text = text.replace(stand_in, variable)
    # The page sets the width; the view box keeps the shape.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', text, count=1)
    text = text.replace('<svg', '<svg class="figure" role="img"', 1)
    return Markup(re.sub(r'\s+', ' ', re.sub(r'>\s+<', '><', text)))
