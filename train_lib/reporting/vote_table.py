"""What the screen shows of a vote: a table of at most 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence

from train_lib.metrics.class_shift import LEVEL
from train_lib.metrics.structured import structure_lines

_MOST_LINES = 12  # of runs and members whose labels are elsewhere


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
    answer = result['ensembles'][result['answer']]
    lines += structure_lines(answer.get('heads') or answer)
    return lines + (_fit_lines(result['fit']) if result['fit'] else [])


def unlabelled_table(result: Mapping) -> list[str]:
    """Lines on rows without labels: the scores of the members and runs on validation rows, and the
    classes that are answered more or less often than there.

    Args:
        result: the content of vote.json, with 'unlabelled'.
    """
    found = result['unlabelled']
    of_members = [(member['name'], scores) for member, scores in
                  zip(result['members'], found['members'])]
    rows = [(f'{name}, out of fold', scores) for name, scores in found['runs'].items()]
    rows += [row for row in of_members if row[1]]
    left, rows = len(rows[_MOST_LINES:]), rows[:_MOST_LINES]
    lines = ['no row has a label; on validation rows:'] if rows else [
        'No row has a label, and no member has predictions of validation rows.']
    for name, scores in rows:
        interval = '' if scores['low'] is None else \
            f'  [{scores["low"]:.3f}, {scores["high"]:.3f}]'
        lines.append(f'  {_cut(name, 40):40}{scores["accuracy"]:7.4f}{interval:18}'
                     f' n {scores["n"]:,}')
    lines += [f'  and {left} more, in the report'] if left else []
    for head, part in found['classes'].items():
        marked = sum(part.get('marked', ()))
        if marked:
            beside = 'in training' if part['reference'] == 'training' else 'on validation rows'
            of_head = f' of {head}' if len(found['classes']) > 1 else ''
            lines += _wrapped(f'classes  {marked} of {len(part["predicted"])}{of_head} answered '
                              f'more or less often than {beside} (p < {LEVEL}), see the report')
    return lines + (_fit_lines(result['fit']) if result['fit'] else [])


def vote_marks(result: Mapping) -> list[str]:
    """Sentences on the rows that an ancestor of a member trained on, and on what is not checked,
    for the rows of the vote and for those of its fit; on members that do not say that classes have
    an order; and on heads that answer their median."""
    found = [f'The classes of {head} have an order, as other members say; the config of '
             f'{_some(names)} does not say so.'
             for head, names in result.get('order', {}).items() if names]
    found += [f'The answer to {head} is the median of its classes (eval.answer); scores are of '
              f'the most probable class, except the distance of the median.'
              for head in result.get('medians', ())]
    for where, part, rows in (('', result, result['rows']),
                              *((f' of the fit on {fit["source"]}', fit, fit['n'])
                                for fit in [result['fit']] if fit)):
        for name, count in (part.get('seen', {}) if part is not result or result['labelled']
                            else {}).items():
            found.append(f'An ancestor of {name} trained on {count:,} of the {rows:,} rows{where} '
                         f'(init.seen=accept), so its scores are not those of new pictures.')
        found += [f'Not checked{where}: {clause}.' for clause in part.get('not_checked', ())
                  if part is result or clause not in result.get('not_checked', ())]
    return found


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def mark_lines(result: Mapping) -> list[str]:
    """`vote_marks` in lines of at most 80 columns."""
    return [line for mark in vote_marks(result) for line in _wrapped(mark)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80, subsequent_indent='  ', break_long_words=False)


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
