import base64

import cv2
import numpy as np
from synthetic_run import noise_image, run_manifest, run_workdir

from train_lib.metrics import scores
from train_lib.reporting import example_pictures
from train_lib.reporting.inputs import Head, read_predictions
from train_lib.reporting.overlays import overlay
from train_lib.reporting.thumbnails import thumbnailer


def test_errors_are_the_confident_ones(tmp_path):
    manifest = run_manifest({'class': ('a', 'b', 'c')}, n=400)
    path = run_workdir(tmp_path / 'run', manifest, skill=0.3)
    _, [head], _ = read_predictions(path)
    examples = example_pictures.examples_by_class(manifest, head)
    thumbnail = thumbnailer(noise_image)
    locations = dict(zip(manifest.table['id'], manifest.table['location']))
    cards, count = example_pictures.errors(head, locations, examples, thumbnail, 6)
    probs = scores.softmax(head.logits)
    wrong = probs.argmax(1) != head.labels
    assert count == wrong.sum()
    assert [card['p_predicted'] for card in cards] == sorted(probs.max(1)[wrong])[::-1][:6]
    train = manifest.table[manifest.table['split'] == 'train']
    for name, places in examples.items():
        labels = train.set_index('location').loc[places, 'label/class']
        assert {manifest.classes['class'][k] for k in labels} == {name}
    assert all(len(card['of_true']) == len(card['of_predicted']) == 3 for card in cards)
    assert all(card['true'] != card['predicted'] for card in cards)


def test_an_overlay_is_warm_where_the_map_is_high():
    heat = np.full((4, 4), -3.0)
    heat[1, 2] = 2
    data = base64.b64decode(overlay(np.full((48, 48, 3), 200, np.uint8), heat).split(',')[1])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)
    side = len(picture)
    hot = picture[int(1.5 / 4 * side), int(2.5 / 4 * side)]
    assert hot[2] > hot[0] + 60  # red above blue
    cold = picture[int(3.5 / 4 * side), int(.5 / 4 * side)]
    assert cold.max() - cold.min() < 8
    flat = overlay(np.zeros((48, 48, 3), np.uint8), np.zeros((4, 4)))  # nothing speaks for it
    assert flat.startswith('data:image/webp')


def test_pairs_show_what_was_confused(tmp_path):
    manifest = run_manifest({'class': ('a', 'b', 'c')}, n=400)
    path = run_workdir(tmp_path / 'run', manifest, skill=0.3)
    _, [head], _ = read_predictions(path)
    shown = example_pictures.confused(head, 2, 0, dict(zip(head.ids, head.ids)),
                             lambda place: dict(uri=place, small=False))
    probs = scores.softmax(head.logits)
    wrong = [k for k in range(len(probs)) if head.labels[k] == 2 and probs[k].argmax() == 0]
    want = sorted(wrong, key=lambda k: -probs[k].max())[:3]
    assert [one['uri'] for one in shown] == [head.ids[k] for k in want]
    assert len(want) == 3


def test_best_and_worst_never_share_a_class():
    for classes in (1, 2, 5, 9):
        table = scores.class_table(np.eye(classes), np.arange(classes), list('abcdefghi'[:classes]))
        head = _perfect_head(classes)
        sides = example_pictures.extremes(head, table, {}, lambda place: None)
        names = [one['row']['class'] for side in sides for one in side['classes']]
        assert len(names) == len(set(names)) == 2 * min(3, classes // 2)


def _perfect_head(classes):
    labels = np.arange(classes)
    return Head('', labels.astype(str), labels, np.eye(classes), tuple('abcdefghi'[:classes]),
                np.eye(classes, dtype=np.int64))


def test_budget_of_pictures():
    thumbnail = thumbnailer(noise_image, budget=10_000)
    found = [thumbnail(str(k)) for k in range(100)]
    shown = [one for one in found if one]
    assert 0 < len(shown) < 100
    assert sum(len(one['uri']) for one in shown) < 20_000
