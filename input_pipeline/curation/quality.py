"""Which pictures are of poor quality or unusual, by thresholds on their measures."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from input_pipeline.errors import DataError

# flag: (the measure, whether values below the threshold are flagged)
_RULES = {
    'black_and_white': (lambda table: table['chroma'], True),
    'dark': (lambda table: table['brightest'], True),
    'bright': (lambda table: table['darkest'], False),
    'blurred': (lambda table: table['sharpness'], True),
    'empty': (lambda table: table['contrast'], True),
    'odd_aspect': (lambda table: np.maximum(table['aspect'], 1 / table['aspect']), False),
    'tiny': (lambda table: np.minimum(table['width'], table['height']), True),
}
FLAGS = tuple(_RULES)
# The least difference of a measure that matters.
_UNITS = {'brightness': 0.05, 'contrast': 0.05, 'colourfulness': 10.0, 'edges': 0.02, 'flat': 0.05,
          'entropy': 0.5, 'white': 0.05}
_COMMON = 0.1  # a flag that a larger share of the pictures has describes the data, not a defect
_FAR = 3.0  # times the distance from the median that a tenth of the pictures exceeds
_WORST = 3.0  # the largest value by which a flag or measure counts


def check(thresholds: Mapping[str, float]) -> None:
    """Checks that there is a threshold for every flag.

    Raises:
        DataError: a threshold is missing or is not a number above 0.
    """
    for name in FLAGS:
        threshold = thresholds.get(name)
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
        if not number or not 0 < threshold < np.inf:
            raise DataError(f'curate.quality.{name}={threshold!r} is not a valid threshold: '
                            f'give a number above 0.')


def flags(table: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """The flags of each picture: bool [N, FLAGS]; False where it could not be measured.

    Args:
        table: the table of `Measures`.
        thresholds: {flag: threshold}, as in config.curate.quality; see `check`.
    """
    return _excesses(table, thresholds) >= 1


def suspicions(table: pd.DataFrame, thresholds: Mapping[str, float]
               ) -> tuple[np.ndarray, list[str]]:
    """How suspicious each picture is, float64 [N] of 0 or more, and why, in words.

    A picture is suspicious if it has a flag that few others have, or a measure far from that of
    nearly all others: photographs among drawings, scans among photographs.
    """
    excess = _excesses(table, thresholds)
    found = excess >= 1
    parts = {name.replace('_', ' '): excess[name].where(found[name], 0) for name in FLAGS
             if found[name].mean() <= _COMMON}
    for name, unit in _UNITS.items():
        away = table[name] - table[name].median()
        spread = max(float(away.abs().quantile(0.9)), unit) if len(away.dropna()) else unit
        far = (away / (_FAR * spread)).fillna(0)
        for side, word in ((far, 'high'), (-far, 'low')):
            parts[f'{name} unusually {word}'] = side.where(side >= 1, 0)
    values = np.stack([np.minimum(part.to_numpy(float), _WORST) for part in parts.values()], 1)
    words = np.array(list(parts), object)
    why = [', '.join(words[order[row[order] > 0]])
           for row, order in zip(values, np.argsort(-values, axis=1, kind='stable'))]
    return values.sum(1), why


def _excesses(table: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """How far each value is beyond its threshold: 1 at the threshold, 2 at half or twice of it."""
    check(thresholds)
    found = {}
    for name, (value_of, below) in _RULES.items():
        values, threshold = value_of(table).astype(float), thresholds[name]
        ratio = threshold / np.maximum(values, 1e-9) if below else values / threshold
        found[name] = ratio.clip(upper=_WORST).fillna(0)
    return pd.DataFrame(found, index=table.index)
