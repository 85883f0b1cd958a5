"""What the screen shows of a vote: a table of at most 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence


def vote_table(result: Mapping) -> list[str]:
    """Lines with the accuracy of each ensemble, its ties and its paired differences.

    Args:
        result: the content of vote.json, of rows with labels.
    """
    unit = result['interval_unit']
    row = lambda name, accuracy, rest='': f'{name:20}{accuracy:7.4f}{rest}'
    lines = [f'{"":20}   acc. ties  {"vs. best single":24}vs. mean member',
             row('  mean of members', result['members_mean']['accuracy']),
             row(_cut(f'  best: {result["best_single"]["name"]}'),
                 result['best_single']['accuracy'])]
    for name, entry in result['ensembles'].items():
        paired = entry['intervals'][unit]['accuracy']
        mark = '*' if name == result['answer'] else ' '
        lines.append(row(_cut(f'{mark} {name}'), entry['accuracy'],
                         f'{entry["ties_labelled"]:5d}  {_signed(paired["best_single"])}  '
                         f'{_signed(paired["mean_member"])}'))
    lines.append(f'* gives the answer. 95 % intervals: n {result["n"]:,}, {_of(result)}')
    return lines + (_fit_lines(result['fit']) if result['fit'] else [])


def vote_marks(result: Mapping) -> list[str]:
    """Sentences on the rows that an ancestor of a member trained on, and on what is not checked,
    for the rows of the vote and for those of its fit."""
    found = []
    for where, part, rows in (('', result, result['rows']),
                              *((f' of the fit on {fit["source"]}', fit, fit['n'])
                                for fit in [result['fit']] if fit)):
        for name, count in part.get('seen', {}).items():
            found.append(f'An ancestor of {name} trained on {count:,} of the {rows:,} rows{where} '
                         f'(init.seen=accept), so its scores are not those of new pictures.')
        found += [f'Not checked{where}: {clause}.' for clause in part.get('not_checked', ())
                  if part is result or clause not in result.get('not_checked', ())]
    return found


def mark_lines(result: Mapping) -> list[str]:
    """`vote_marks` in lines of at most 80 columns."""
    return [line for mark in vote_marks(result)
            for line in textwrap.wrap(mark, 80, subsequent_indent='  ', break_long_words=False)]


def _fit_lines(fit: Mapping) -> list[str]:
    naive, nested = fit['answer']['naive'], fit['answer']['nested']
    if not nested:
        return []
    lines = [f'fitted on {fit["source"]}: accuracy {naive["accuracy"]:.4f} naive, '
             f'{nested["accuracy"]:.4f} nested']
    if fit['temperature']:
        nll = ', '.join(f'{found["nll"]:.4f} {name}' for name, found in
                        (('without', fit['answer']['plain']), ('naive', naive),
                         ('nested', nested)) if found['nll'] is not None)
        lines.append(f'temperature {fit["temperature"]:.3f}: nll {nll}')
    return lines


def _of(result: Mapping) -> str:
    """What the intervals are about: new groups, or new rows."""
    if result['interval_unit'] != 'group':
        return 'for new rows'
    count = result['groups']
    return f'for new groups ({count:,} seen)' if count > 1 else 'none from a single group'


def _signed(difference: Sequence[float | None]) -> str:
    value, low, high = difference
    if low is None:
        return f'{value:+.3f} {"":15}'
    return f'{value:+.3f} [{low:+.3f},{high:+.3f}]'


def _cut(name: str, width: int = 19) -> str:
    return name if len(name) <= width else name[:width - 1] + '…'
