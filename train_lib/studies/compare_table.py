"""Runs beside each other as a table for the terminal and as compare.csv."""

from collections.abc import Mapping, Sequence

import pandas as pd

from train_lib.studies.compared_runs import (
    SPLITS,
    ComparedRun,
    Difference,
    differing_knobs,
    heads_of,
    shortened,
)

Differences = Mapping[tuple[str, str], Mapping[str, Difference | str]]
_NAME, _VALUE = 26, 24  # columns of a name and of a value
_COLUMNS = 80
_FEWER = ' *'  # behind a difference on a part of the pictures that one of the runs held out
_KNOBS = 16  # settings that the terminal shows


def terminal_table(runs: Sequence[ComparedRun], reference: ComparedRun, found: Differences
                   ) -> list[str]:
    """Lines of at most 80 columns: scores, differences to the reference, knobs that differ."""
    lines = []
    for head in heads_of(runs) or ['']:
        split = last_split(runs, head)
        lines.append(_cut(f'{head or "run":{_NAME + 4}} {"val":>6} {"test":>6}  '
                          f'{f"95 % of {split}":14} {f"to {number_of(runs, reference)}":>7} '
                          f'{"p":>6}'))
        for place, run in enumerate(runs, 1):
            lines.append(_cut(f'{place:3} {_ended(run.name, _NAME):{_NAME}} '
                              + _scores(run, head, split, run is reference, found)))
    if any(line.endswith(_FEWER) for line in lines):
        lines.append('* only on the pictures that both runs held out: see report.html')
    knobs = differing_knobs(runs)
    if knobs:
        lines += ['', 'settings that differ']
        lines += [_knob_line(key, values) for key, values in list(knobs.items())[:_KNOBS]]
    if len(knobs) > _KNOBS:
        lines.append(f'  and {len(knobs) - _KNOBS} more: see report.html')
    return lines


def last_split(runs: Sequence[ComparedRun], head: str) -> str:
    """'test' if any run has a score of it, else 'val'."""
    return 'test' if any(('test', head) in run.scores for run in runs) else 'val'


def number_of(runs: Sequence[ComparedRun], wanted: ComparedRun) -> int:
    """The number by which the tables call a run, from 1."""
    return next(place for place, run in enumerate(runs, 1) if run is wanted)


def _scores(run: ComparedRun, head: str, split: str, is_reference: bool, found: Differences
            ) -> str:
    if not run.done:
        return 'not finished'
    values = [run.scores.get((name, head)) for name in SPLITS]
    shown = [f'{"–":>6}' if one is None else f'{one.accuracy:6.4f}' for one in values]
    score = run.scores.get((split, head))
    if score is None:
        return f'{shown[0]} {shown[1]}'
    interval = '' if score.interval is None else \
        f'{score.interval[0]:.4f}-{score.interval[1]:.4f}'
    own = found.get((split, head), {}).get(run.name, '')
    if isinstance(own, Difference):
        p = '–' if own.p is None else '< .001' if own.p < 0.001 else f'{own.p:.3f}'
        return (f'{shown[0]} {shown[1]}  {interval:14} {own.value:+7.4f} {p:>6}'
                f'{_FEWER if own.n < max(own.of) else ""}')
    return f'{shown[0]} {shown[1]}  {interval:14} {"" if is_reference else "not paired"}'


def _knob_line(key: str, values: Sequence[str]) -> str:
    """The key, and each value with the numbers of the runs that have it, as in 0.01 (1-3, 5)."""
    runs: dict[str, list[int]] = {}
    for place, value in enumerate(values, 1):
        runs.setdefault(value, []).append(place)
    return _cut(f'  {key:22} ' + ' | '.join(
        f'{text} ({_ranges(places)})'
        for text, places in zip(shortened(list(runs), _VALUE), runs.values())))


def _ranges(places: Sequence[int]) -> str:
    """Such as 1-3, 5."""
    parts: list[list[int]] = []
    for place in places:
        if parts and parts[-1][-1] == place - 1:
            parts[-1][1:] = [place]
        else:
            parts.append([place])
    return ', '.join('-'.join(map(str, part)) for part in parts)


def _cut(text: str, most: int = _COLUMNS) -> str:
    text = text.rstrip()
    return text if len(text) <= most else f'{text[:most - 1]}…'


def _ended(text: str, most: int) -> str:
    """The end of a long name, in which names of runs differ."""
    return text if len(text) <= most else f'…{text[1 - most:]}'


def as_csv(runs: Sequence[ComparedRun], reference: ComparedRun, found: Differences) -> str:
    """One row per run, with all that the page shows."""
    knobs, rows = differing_knobs(runs), []
    for place, run in enumerate(runs):
        row = dict(run=place + 1, name=run.name, workdir=str(run.workdir),
                   status='done' if run.done else 'unfinished', reference=run is reference)
        for (split, head), by_name in found.items():
            tail = f'{split}_{head}' if head else split
            score, own = run.scores.get((split, head)), by_name.get(run.name)
            low, high = (score and score.interval) or (None, None)
            row |= {f'{tail}_accuracy': score and score.accuracy, f'{tail}_low': low,
                    f'{tail}_high': high, f'{tail}_f1_macro': score and score.f1,
                    f'{tail}_nll': score and score.nll, f'{tail}_n': score and score.n}
            pair = own if isinstance(own, Difference) else None
            row |= {f'{tail}_difference': pair and pair.value,
                    f'{tail}_difference_low': pair and pair.low,
                    f'{tail}_difference_high': pair and pair.high,
                    f'{tail}_p': pair and pair.p, f'{tail}_pairs': pair and pair.n,
                    f'{tail}_not_paired': own if isinstance(own, str) else ''}
        row |= dict(run.facts) | {f'config.{key}': values[place] for key, values in knobs.items()}
        rows.append(row | dict(notes=' '.join(run.notes)))
    return pd.DataFrame(rows).to_csv(index=False, lineterminator='\n', float_format='%.10g')
