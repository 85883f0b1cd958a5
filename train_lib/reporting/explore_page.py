"""explore.html: what a data set is like, on one self-contained page."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from input_pipeline.curation.beside import Beside
from input_pipeline.curation.duplicates import KINDS, best_of_group
from input_pipeline.curation.exploration import Exploration, common_defects
from input_pipeline.curation.hashes import POSITIONS
from input_pipeline.curation.quality import FLAGS
from input_pipeline.manifest import SPLITS, Manifest, class_counts
from train_lib.reporting import figures
from train_lib.reporting.beside_section import BUDGET, beside_values
from train_lib.reporting.page import percent, write_page
from train_lib.reporting.thumbnails import thumbnailer

_SUSPECTS, _GROUPS, _MEMBERS, _PHOTOGRAPHS = 48, 36, 6, 16  # shown at most
_SAMPLES, _SHEETS = 8, 480  # pictures per class, and of all classes
_ROWS = 1000  # of a table
_BUDGET = 3_400_000  # characters of pictures; the page stays under 5 MB
_FLAG_WORDS = {
    'black_and_white': 'black and white', 'dark': 'dark throughout', 'bright': 'bright throughout',
    'blurred': 'blurred', 'empty': 'empty', 'odd_aspect': 'odd aspect', 'tiny': 'tiny'}
_KIND_WORDS = {'bytes': 'the same file', 'pixels': 'the same pixels', 'near': 'nearly the same'}
# measure: (heading, logarithmic axis, the flag whose threshold is marked)
_PANELS = {
    'width': ('width, pixels', False, 'tiny'), 'aspect': ('width / height', False, 'odd_aspect'),
    'brightness': ('brightness, 0 to 1', False, None), 'contrast': ('contrast', False, 'empty'),
    'sharpness': ('sharpness', True, 'blurred'), 'colourfulness': ('colourfulness', False, None)}


def write_explore_page(path: Path, found: Exploration, *, title: str,
                       thresholds: Mapping[str, float], wanted: str, read_image: Callable,
                       second: tuple[Beside, str, Callable] | None = None) -> Path:
    """Writes the page, and returns its path.

    Args:
        path: of the page.
        found: what is known of the pictures.
        title: of the page.
        thresholds: of config.curate.quality, marked in the figures.
        wanted: config.curate.photographs.wanted.
        read_image: location -> uint8 [H, W, 3].
        second: a second set of pictures, its name, and its read_image; None for none.
    """
    manifest = found.manifest
    thumbnail = thumbnailer(read_image, _BUDGET - (BUDGET if second else 0))
    picture = lambda row: _picture(manifest, row, thumbnail)
    table = found.measures.table[found.problems == '']
    relations = _relations(found)
    values = dict(
        title=title, n=len(manifest), classes=len(manifest.classes[manifest.heads[0]]),
        heads=[_head(manifest, head) for head in manifest.heads],
        combinations=_combinations(manifest), facts=_facts(found, table),
        split_note=found.split_note, range_note=found.range_note, common=common_defects(found),
        unreadable=[dict(id=manifest.table['id'][row], reason=found.problems[row])
                    for row in np.flatnonzero(found.problems != '')[:_ROWS]],
        unreadable_count=int((found.problems != '').sum()),
        suspects=_suspects(found, picture), photographs=_photographs(found, picture),
        wanted=wanted,
        suspects_count=int(np.count_nonzero(found.suspicion)),
        flags=[(_FLAG_WORDS[name], int(column.sum()), float(column.mean()))
               for name, column in found.flags[list(FLAGS)].items()],
        duplicates=_duplicates(relations), duplicate_groups=len(relations), kinds=_KIND_WORDS,
        duplicate_cards=_cards(found, relations, picture),
        samples=_samples(found, picture), panels=_panels(table, thresholds),
        stored=[(name, _counted(table[column])) for name, column in
                (('file type', 'file_type'), ('mode as stored', 'mode'))],
        sizes=_counted(pd.Series([f'{width:.0f} × {height:.0f}' for width, height in
                                  zip(table['width'], table['height'])], dtype=object), 8),
        groups=_people(manifest), splits=_splits(manifest),
        beside=second and beside_values(found, *second[:2], (read_image, second[2]), _PANELS))
    values['findings'] = _findings(values, relations)
    write_page(path, 'explore.html.jinja', **values)
    return path


def _picture(manifest: Manifest, row: int, thumbnail: Callable) -> dict:
    entry = manifest.table.iloc[row]
    labels = [names[label] if label >= 0 else 'unlabelled' for label, names in
              ((entry[f'label/{head}'], names) for head, names in manifest.classes.items())]
    shown = thumbnail(entry['location']) or dict(uri='', small=False)
    return dict(shown, id=entry['id'], label=' · '.join(labels),
                split=entry.get('split', ''), group=entry.get('group', ''))


def _head(manifest: Manifest, head: str) -> dict:
    counts, names = class_counts(manifest, head), manifest.classes[head]
    labels = manifest.labels(head)
    split = manifest.table.get('split')
    sides = {} if split is None else {
        side: np.bincount(labels[(split == side).to_numpy() & (labels >= 0)],
                          minlength=len(names)) for side in SPLITS if (split == side).any()}
    order = np.argsort(-counts, kind='stable')
    occurring = counts[counts > 0]
    return dict(
        name=head, classes=len(names), unlabelled=int((labels < 0).sum()),
        least=int(occurring.min()) if len(occurring) else 0, most=int(counts.max()),
        absent=int((counts == 0).sum()),
        imbalance=float(counts.max() / occurring.min()) if len(occurring) else None,
        sides=list(sides),
        rows=[dict(name=names[k], n=int(counts[k]), share=counts[k] / max(1, counts.sum()),
                   width=counts[k] / max(1, counts.max()),
                   sides=[int(side[k]) for side in sides.values()]) for k in order[:_ROWS]])


def _combinations(manifest: Manifest) -> dict | None:
    if len(manifest.heads) < 2:
        return None
    columns = [f'label/{head}' for head in manifest.heads]
    table = manifest.table[columns]
    counts = table[(table >= 0).all(axis=1)].value_counts()
    total = int(np.prod([len(names) for names in manifest.classes.values()]))
    return dict(
        heads=manifest.heads, possible=total, occurring=len(counts),
        imbalance=float(counts.max() / counts.min()) if len(counts) else None,
        rows=[dict(names=[manifest.classes[head][label] for head, label in
                          zip(manifest.heads, labels)],
                   n=int(n), share=n / counts.sum(), width=n / counts.max())
              for labels, n in counts.iloc[:200].items()])


def _facts(found: Exploration, table: pd.DataFrame) -> list[tuple[str, str]]:
    manifest = found.manifest
    facts = [('heads', ', '.join(manifest.heads))] if len(manifest.heads) > 1 else []
    size = table['bytes'].sum()
    if size:
        facts.append(('size of the files', f'{size / 1e9:.1f} GB' if size >= 1e9 else
                      f'{size / 1e6:.1f} MB'))
    if len(table):
        facts.append(('median size', f'{table["width"].median():.0f} × '
                                     f'{table["height"].median():.0f}'))
    if 'group' in manifest.table:
        named = manifest.table['group'].astype(str)
        facts.append(('groups', f'{named[named != ""].nunique():,}'))
    if 'split' in manifest.table:
        counts = manifest.table['split'].value_counts()
        facts += [(side, f'{counts[side]:,}') for side in SPLITS if side in counts]
    return facts


def _relations(found: Exploration) -> pd.DataFrame:
    """One row per group of duplicates: rows (in it), kind, conflict, best (the row worth keeping),
    sides (of the split), people (how many groups of the data)."""
    group, manifest = found.duplicates.group, found.manifest
    rows = [[] for _ in found.conflicts]
    for row in np.flatnonzero(group >= 0):
        rows[group[row]].append(int(row))
    table = pd.DataFrame(dict(rows=pd.Series(rows, dtype=object), conflict=found.conflicts,
                              kind=found.duplicates.kinds(),
                              best=best_of_group(group, found.measures.table)))
    split = manifest.table.get('split', pd.Series([''] * len(manifest))).to_numpy(object)
    table['sides'] = [tuple(side for side in SPLITS if side in set(split[members]))
                      for members in rows]
    names = manifest.table.get('group', pd.Series([''] * len(manifest))).to_numpy(object)
    table['people'] = [len({name for name in names[members] if name}) for members in rows]
    return table


def _duplicates(relations: pd.DataFrame) -> list[dict]:
    """One row per kind: groups, pictures, surplus (all but one of each group), conflicts, across
    (on several sides of the split), largest, pairs (of sides, in words)."""
    found = []
    for kind in KINDS:
        part = relations[relations['kind'] == kind]
        sizes = part['rows'].map(len)
        across = part[part['sides'].map(len) > 1]
        pairs = {}
        for sides in across['sides']:
            for pair in itertools.combinations(sides, 2):
                pairs[pair] = pairs.get(pair, 0) + 1
        found.append(dict(
            kind=kind, groups=len(part), pictures=int(sizes.sum()),
            surplus=int(sizes.sum() - len(part)), conflicts=int(part['conflict'].sum()),
            across=len(across), largest=int(sizes.max()) if len(part) else 0,
            pairs=', '.join(f'{one} and {other} {n}' for (one, other), n in pairs.items())))
    return found


def _cards(found: Exploration, relations: pd.DataFrame, picture: Callable) -> list[dict]:
    """Groups to look at: different labels first, then across the split, then the largest."""
    sizes = relations['rows'].map(len)
    order = np.lexsort((-sizes, relations['sides'].map(len) < 2, ~relations['conflict']))
    pairs = found.duplicates.pairs
    of_group = found.duplicates.group[pairs['first'].to_numpy(int)]
    cards = []
    for number in order[:_GROUPS]:
        entry = relations.iloc[number]
        rows = sorted(entry['rows'], key=lambda row, best=entry['best']: row != best)
        links = pairs[of_group == number]
        turned = sorted({POSITIONS[one] for one in links['position'] if one})
        cards.append(dict(
            pictures=[picture(row) for row in rows[:_MEMBERS]],
            more=max(0, len(rows) - _MEMBERS), kind=_KIND_WORDS[entry['kind']], turned=turned,
            correlation=float(links['correlation'].min()), conflict=bool(entry['conflict']),
            sides=entry['sides'] if len(entry['sides']) > 1 else ()))
    return cards


def _suspects(found: Exploration, picture: Callable) -> list[dict]:
    order = np.argsort(-found.suspicion, kind='stable')[:_SUSPECTS]
    return [dict(picture(row), why=found.why[row]) for row in order if found.suspicion[row] > 0]


def _photographs(found: Exploration, picture: Callable) -> dict:
    """Those most of the rare kind, the first ones first, and how many curate would not keep."""
    finding = found.photographs
    order = np.argsort(-np.nan_to_num(finding.score, nan=-1), kind='stable')[:_PHOTOGRAPHS]
    return dict(n=int(np.sum(finding.action != 'keep')), note=finding.note,
                pictures=[dict(picture(int(row)), why=f'{finding.score[row]:.2g}')
                          for row in order if finding.score[row] >= 0])


def _samples(found: Exploration, picture: Callable) -> list[dict]:
    """Pictures of each class of the first head, spread evenly over its readable rows."""
    manifest = found.manifest
    head = manifest.heads[0]
    labels, names = manifest.labels(head), manifest.classes[head]
    each = int(np.clip(_SHEETS // len(names), 1, _SAMPLES))
    shown = []
    for label, name in enumerate(names[:_SHEETS]):
        rows = np.flatnonzero((labels == label) & (found.problems == ''))
        if len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)]
            shown.append(dict(name=name, pictures=[picture(row) for row in rows]))
    return shown


def _panels(table: pd.DataFrame, thresholds: Mapping[str, float]) -> list[dict]:
    panels = []
    for name, (heading, log, flag) in _PANELS.items():
        values = table[name].dropna().to_numpy(float)
        if not len(values) or values.min() == values.max():
            continue
        low, middle, high = (f'{value:,.0f}' if value >= 100 else f'{value:.2g}'
                             for value in np.percentile(values, [5, 50, 95]))
        panels.append(dict(
            heading=heading, low=low, middle=middle, high=high,
            svg=figures.histogram(values, log=log, mark=thresholds[flag] if flag else None)))
    return panels


def _counted(values: pd.Series, most: int = 12) -> list[tuple[str, int, float]]:
    counts = values.value_counts()
    rows = [(str(name), int(n), n / counts.sum()) for name, n in counts.iloc[:most].items()]
    rest = int(counts.iloc[most:].sum())
    return rows + ([('others', rest, rest / counts.sum())] if rest else [])


def _people(manifest: Manifest) -> dict | None:
    """The groups that the data give (persons, drawers, ...), None without any."""
    if 'group' not in manifest.table:
        return None
    names = manifest.table['group'].astype(str)
    counts = names[names != ''].value_counts()
    if not len(counts):
        return None
    return dict(n=len(counts), alone=int((names == '').sum()), least=int(counts.min()),
                median=float(counts.median()), most=int(counts.max()),
                rows=[dict(name=name, n=int(n), width=n / counts.max())
                      for name, n in counts.iloc[:12].items()])


def _splits(manifest: Manifest) -> list[tuple[str, int]]:
    if 'split' not in manifest.table:
        return []
    counts = manifest.table['split'].value_counts()
    return [(side, int(counts[side])) for side in SPLITS if side in counts]


def _findings(values: Mapping, relations: pd.DataFrame) -> list[dict]:
    """What to look at first: dict(n, text, where), the most harmful first."""
    across = relations[relations['sides'].map(len) > 1]
    several = relations[relations['people'] > 1]
    first = values['heads'][0]
    beside = values['beside'] or dict(copied=0, unreadable_count=0, differ=False)
    candidates = [
        (values['unreadable_count'], 'picture', 's', 'that cannot be read', 'unreadable'),
        (beside['copied'], 'picture', 's', 'of the second set with a copy in the data, so scores '
         'on it will be too high', 'beside'),
        (beside['unreadable_count'], 'picture', 's', 'of the second set that cannot be read',
         'beside'),
        (int(relations['conflict'].sum()), 'group', 's', 'of duplicates with different labels',
         'duplicates'),
        (len(across), 'group', 's', 'of duplicates on two sides of the split, so scores will be '
         'too high', 'duplicates'),
        (len(several), 'group', 's', 'of duplicates in several groups of the data (persons, for '
         'instance), which a grouped split does not keep together', 'duplicates'),
        (len(relations), 'group', 's', 'of duplicates in total', 'duplicates'),
        (values['photographs']['n'], 'picture', 's', 'that '
         + ('look' if values['photographs']['n'] > 1 else 'looks')
         + (' like photographs among drawings' if values['wanted'] == 'drawings' else
            ' like drawings among photographs') + ', about which main.py curate decides',
         'photographs'),
        (values['suspects_count'], 'picture', 's', 'unlike the others or of poor quality',
         'suspicious'),
        (sum(head['unlabelled'] for head in values['heads']), 'missing label', 's', '', 'classes'),
        (sum(head['absent'] for head in values['heads']), 'class', 'es', 'without a picture',
         'classes'),
    ]
    found = [dict(n=None, text=f'{text[0].upper()}{text[1:]}.', where='suspicious')
             for text in values['common']]
    if values['range_note']:
        found.append(dict(n=None, text=values['range_note'], where='pictures'))
    found += [dict(n=n, text=f'{what}{plural if n > 1 else ""} {text}', where=where)
              for n, what, plural, text, where in candidates if n]
    if beside['differ']:
        found.append(dict(n=None, where='beside', text=(
            f'The second set can be told apart from the data: AUC {beside["auc"]:.3f} '
            f'[{beside["low"]:.3f}, {beside["high"]:.3f}], where 0.5 is chance.')))
    if first['imbalance'] and first['imbalance'] >= 3:
        found.append(dict(n=None, where='classes', text=(
            f'The largest class has {first["imbalance"]:.1f} times as many pictures as the '
            f'smallest ({percent(first["rows"][0]["share"])} of all pictures).')))
    return found
