"""The learning curves of a report, and the stages of the curriculum in words."""

import numpy as np
import pandas as pd

from train_lib.reporting import figures
from train_lib.reporting.inputs import RunInputs
from train_lib.reporting.page import Section, number, render


def curves_section(inputs: RunInputs) -> list[Section]:
    """The section Learning curves."""
    curves = learning_curves(inputs.metrics, inputs.result, inputs.config)
    return [Section('curves', 'Learning curves', render('run_curves.html.jinja', inputs=inputs,
                                                        curves=curves))]


def learning_curves(metrics: pd.DataFrame, result: dict, config: dict) -> dict:
    """Panels (caption and SVG) and the stages of the curriculum in words."""
    if not len(metrics):
        return dict(panels=[], stages=[], splits=[], best=False)
    x = 'epoch' if 'epoch' in metrics and metrics['epoch'].notna().any() else 'step'
    stages = _stage_spans(metrics, x)
    best = _best_at(metrics, result.get('best_step'), x)
    wanted = [(name, name) for name in metrics if name == 'loss']
    wanted += [(name, name) for name in metrics
               if 'accuracy' in name.split('/') and name.count('/') <= 1]
    wanted += [(name, 'F1, mean of classes') for name in metrics if name == 'f1_macro']
    wanted += [(name, 'learning rate') for name in metrics if name == 'lr']
    panels, drawn = [], set()
    for column, label in wanted:
        lines = {}
        for split in ('train', 'val'):
            part = metrics[(metrics['split'] == split)].dropna(subset=[column, x])
            if len(part):
                lines[split] = part
        if not lines:
            continue
        drawn.update(lines)
        svg = figures.curve(
            lines, column, x, best=best, unit_range='accuracy' in column or column == 'f1_macro',
            stages=[(start, end, f'stage {k}' if len(stages) <= 4 else f'{k}')
                    for start, end, k in stages])
        last = {split: float(part[column].iloc[-1]) for split, part in lines.items()}
        panels.append(dict(label=label, svg=svg, last=last, is_lr=column == 'lr'))
    return dict(panels=panels, splits=[s for s in ('train', 'val') if s in drawn],
                best=best is not None, stages=_stage_words(stages, config, x))


def _stage_spans(metrics: pd.DataFrame, x: str) -> list[tuple[float, float, int]]:
    """(start, end, stage) in units of x; [] for fewer than two stages."""
    if 'stage' not in metrics:
        return []
    part = metrics[metrics['split'] == 'train'].dropna(subset=['stage', x])
    stage, at = part['stage'].to_numpy(int), part[x].to_numpy(float)
    turns = np.flatnonzero(np.diff(stage)) + 1
    if not len(turns):
        return []
    # A line is about the steps before it, so a stage ends at its last line.
    edges = [0.0, *at[turns - 1], at[-1]]
    return list(zip(edges[:-1], edges[1:], stage[np.append(0, turns)].tolist()))


def _stage_words(spans: list, config: dict, x: str) -> list[dict]:
    stages = config.get('curriculum')
    stages = stages if isinstance(stages, list) else []
    words = []
    for start, end, k in spans:
        stage = stages[k] if k < len(stages) and isinstance(stages[k], dict) else {}
        words.append(dict(stage=k, start=f'{start:.4g}', end=f'{end:.4g}', x=x,
                          transforms=_transform_words(stage.get('transforms'))))
    return words


def _transform_words(transforms) -> str:
    if not isinstance(transforms, list):
        return ''
    names = [str(one.get('name', one.get('kind', one))) if isinstance(one, dict) else
             str(one[0]) if isinstance(one, list) and one else str(one) for one in transforms]
    return ', '.join(names) or 'no transforms'


def _best_at(metrics: pd.DataFrame, best_step, x: str) -> float | None:
    best_step = number(best_step)
    if best_step is None:
        return None
    part = metrics.dropna(subset=[x])
    near = part[part['step'] == best_step]
    return float(near[x].iloc[0]) if len(near) else None
