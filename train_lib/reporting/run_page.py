"""report.html of a run: one file that needs no network and no other file."""

from collections.abc import Callable
from pathlib import Path

from input_pipeline.manifest import SPLITS, Manifest
from train_lib.metrics import scores
from train_lib.reporting import about, gallery
from train_lib.reporting.classes import head_block
from train_lib.reporting.curves import learning_curves
from train_lib.reporting.inputs import (
    Head,
    as_dict,
    errors_a_head,
    read_heat_maps,
    read_json,
    read_metrics,
    read_predictions,
)
from train_lib.reporting.overlays import Overlays
from train_lib.reporting.page import duration, number, whole, write_page

_COLUMNS = {'accuracy': 'accuracy', 'f1_macro': 'F1', 'precision_macro': 'precision',
            'recall_macro': 'recall', 'top5': 'top 5', 'loss': 'loss', 'nll': 'NLL',
            'ece': 'ECE', 'brier': 'Brier'}


def write_report(workdir: str | Path, *, manifest: Manifest, read_image: Callable,
                 title: str | None = None, max_errors: int = 24) -> Path:
    """Writes workdir/report.html from what a run left there, and returns its path.

    Reads config.json, metrics.jsonl, result.json, predictions/test.npz (else val.npz) and
    heatmaps.npz. What is missing or damaged is said in one line in its section.

    Args:
        manifest: the run's data, with the column `split`.
        read_image: location -> uint8 [H, W, 3], RGB. A picture it fails on is left blank.
        title: heading; by default the workdir's name.
        max_errors: errors shown, over all heads; at least four a head.
    """
    workdir = Path(workdir)
    config, config_note = read_json(workdir / 'config.json')
    result, result_note = read_json(workdir / 'result.json')
    metrics, metrics_note = read_metrics(workdir / 'metrics.jsonl')
    split, heads, predictions_note = read_predictions(workdir)
    score_rows = _score_rows(result, heads, split)
    thumbnail = gallery.thumbnailer(read_image)
    heat_maps, heat_note = read_heat_maps(workdir / 'heatmaps.npz')
    overlays, each = Overlays(heat_maps), errors_a_head(max_errors, len(heads))
    path = workdir / 'report.html'
    write_page(
        path, 'template.html.jinja',
        title=title or workdir.resolve().name or 'Report',
        subtitle=_subtitle(config, result), status=result.get('status', ''),
        headline=_headline(score_rows), facts=_facts(result),
        score_rows=score_rows,
        score_columns=[(key, name) for key, name in _COLUMNS.items()
                       if any(row['values'].get(key) is not None for row in score_rows)],
        curves=learning_curves(metrics, result, config),
        heads=[head_block(head, manifest, thumbnail, overlays, each) for head in heads],
        predictions_split=split,
        settings=about.settings(config), changed=about.changed_settings(config),
        made_with=about.made_with(config, result),
        data=about.data_facts(manifest, result),
        seconds=about.seconds_by_kind(result.get('seconds')),
        notes=dict(config=config_note, result=result_note, metrics=metrics_note,
                   predictions=predictions_note, heat_maps=heat_note),
    )
    return path


def _score_rows(result: dict, heads: list[Head], split: str) -> list[dict]:
    """[dict(split, head, values)], from result.json, else computed from the predictions."""
    rows = []
    for name in SPLITS:
        values = as_dict(result.get(name))
        nested = {head: part for head, part in values.items() if isinstance(part, dict)}
        for head, part in (nested or ({'': values} if values else {})).items():
            # n belongs to the split where the head has none of its own; the loss is the
            # sum over heads there, so it isn't handed down.
            shared = {'n': values['n']} if 'n' in values else {}
            rows.append(dict(split=name, head=head, values={**shared, **part}))
    for head in heads:
        if not any((row['split'], row['head']) == (split, head.name) for row in rows):
            rows.append(dict(split=split, head=head.name,
                             values=scores.scores(head.logits, head.labels)))
    return rows


def _headline(rows: list[dict]) -> list[dict]:
    """Accuracy with its interval, F1 and n of each head on the last split there is."""
    splits = [row['split'] for row in rows if number(row['values'].get('accuracy')) is not None]
    if not splits:
        return []
    split = max(splits, key=SPLITS.index)
    found = []
    for row in rows:
        values = row['values']
        accuracy, n = number(values.get('accuracy')), number(values.get('n'))
        if row['split'] == split and accuracy is not None:
            interval = None
            if n and 0 <= accuracy <= 1:
                interval = scores.wilson_interval(accuracy, int(n))
            found.append(dict(split=split, head=row['head'], accuracy=accuracy, n=n,
                              f1=values.get('f1_macro'), interval=interval))
    return found


def _subtitle(config: dict, result: dict) -> str:
    model = config.get('model')
    name = model.get('name') if isinstance(model, dict) else model
    return ' · '.join(str(part) for part in (name, result.get('device')) if part)


def _facts(result: dict) -> list[tuple[str, str]]:
    facts = [('time', duration(as_dict(result.get('seconds')).get('total')))]
    for label, key in [('epochs', 'epochs'), ('steps', 'steps'), ('best step', 'best_step'),
                       ('parameters', 'parameters')]:
        value = number(result.get(key))
        text = f'{value:g}' if key == 'epochs' and value is not None else whole(value)
        facts.append((label, text))
    return [(label, text) for label, text in facts if text != '–']
