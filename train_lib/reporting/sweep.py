"""lr_find.png: the loss by learning rate, with the suggestions marked."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from input_pipeline.atomic_files import atomic_open

# The colours of the report's light scheme.
INK, MUTED, LINE, ACCENT, PAPER = '#1d1f23', '#70747c', '#e6e6e3', '#3e76ef', '#fcfcfb'
MARKS = {'steepest': '#d1495b', 'valley': '#2e8b6f', 'minimum/10': '#b07d12'}
_STYLE = {
    'font.size': 9.5, 'font.family': 'sans-serif', 'text.color': INK, 'axes.labelcolor': MUTED,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.spines.left': False,
    'axes.edgecolor': LINE, 'axes.grid': True, 'axes.grid.axis': 'y', 'axes.axisbelow': True,
    'axes.facecolor': 'none', 'figure.facecolor': PAPER, 'grid.color': LINE, 'grid.linewidth': .8,
    'xtick.color': MUTED, 'ytick.color': MUTED, 'xtick.major.size': 0, 'ytick.major.size': 0,
    'xtick.minor.size': 0, 'xtick.major.pad': 6, 'lines.solid_capstyle': 'round',
}


def draw_sweep(path: Path, table: pd.DataFrame, suggestions: dict[str, float]) -> None:
    """Draws a sweep.

    Args:
        path: of the PNG.
        table: lr, loss, smoothed.
        suggestions: rule -> learning rate; each gets a dot on the curve and a line in the legend.
    """
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(7.2, 4.2), dpi=160, layout='constrained')
        FigureCanvasAgg(fig)
        ax = fig.subplots()
        ax.set(xscale='log', xlabel='learning rate', ylabel='training loss')
        if len(table):
            ax.plot(table['lr'], table['loss'], color=MUTED, lw=.8, alpha=.45, label='each step')
            ax.plot(table['lr'], table['smoothed'], color=ACCENT, lw=2.2, label='smoothed')
            low, high = table['smoothed'].min(), table['smoothed'].iloc[:max(len(table) // 5, 1)]
            room = max(high.max() - low, .05 * abs(low), 1e-6)
            ax.set_ylim(low - .25 * room, high.max() + .6 * room)  # the explosion is cut off
        for rule, rate in suggestions.items():
            height = np.interp(np.log(rate), np.log(table['lr']), table['smoothed'])
            ax.plot(rate, height, 'o', color=MARKS[rule], ms=7, mec=PAPER, mew=1.4, zorder=5,
                    label=f'{rule}  {rate:.1e}')
            ax.axvline(rate, color=MARKS[rule], lw=1, ls=(0, (1, 3)), zorder=2)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc='upper left', labelcolor=INK, handlelength=1.4, facecolor=PAPER,
                      edgecolor='none', framealpha=.9)
        with atomic_open(path, 'wb') as file:
            fig.savefig(file, format='png')
