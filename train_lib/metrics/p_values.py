"""How a p value is written: on pages, in tables and on the terminal."""

import math

LEAST = 0.001


def p_text(p: float | None) -> str:
    """Three decimals, '< .001' for less than that, and a dash for None and NaN: no p is 0."""
    if p is None or math.isnan(p):
        return '–'
    return '< .001' if p < LEAST else f'{p:.3f}'


def p_sentence(p: float | None) -> str:
    """The same with its sign: 'p = 0.012' or 'p < .001'."""
    text = p_text(p)
    return f'p {text}' if text.startswith('<') else f'p = {text}'
