"""What the detectors do with what they found; the verb's tests run them on pictures."""

import contextlib

import numpy as np
import pytest

from input_pipeline.curation.detectors import DETECTORS, Help, Pictures
from input_pipeline.curation.label_errors import LabelErrors
from input_pipeline.manifest import make_manifest

COUNT = 20


def pictures(*, most=.1, predictions='', objects=''):
    """Twenty pictures of two classes; nothing can be read of them."""
    names = [f'{k}.png' for k in range(COUNT)]
    manifest = make_manifest({'id': names, 'location': names, 'label/class': [0, 1] * 10},
                             {'class': ('x', 'y')})
    options = dict(
        most=most, features='descriptor',
        labels=dict(head='', predictions=predictions, drop=3.0, score='margin'),
        photographs=dict(method='objects', wanted='drawings', objects=objects, least_objects=1.0,
                         drop=.5, review=.3))
    helped = Help('', lambda: None, lambda path, head: None, lambda what, unit:
                  contextlib.nullcontext(lambda done, total: None))
    return Pictures(manifest, options, data={}, seed=0, helped=helped)


def wrong_labels(found: Pictures, wrong: int) -> Pictures:
    """The first labels are wrong, with a score far beyond that from which they are dropped."""
    rows = np.arange(COUNT) < wrong
    found.label_errors = LabelErrors(np.where(rows, 9.0, -9.0), rows, np.zeros(COUNT, int),
                                     np.eye(2, dtype=int))
    return found


@pytest.mark.parametrize('predictions, wrong, action', [
    ('', 2, 'review'),  # the regression on descriptors is too weak to drop by
    ('run', 2, 'drop'), ('run', 3, 'review')])
def test_labels_are_dropped_by_given_predictions_unless_many_are_wrong(predictions, wrong, action):
    found = DETECTORS['labels'](wrong_labels(pictures(predictions=predictions), wrong))
    assert found.action.tolist() == [action] * wrong + ['keep'] * (COUNT - wrong)
    assert ('3 of 20 pictures are flagged, which describes' in found.note) == (wrong == 3)


@pytest.mark.parametrize('photographs, action', [(2, 'drop'), (3, 'review')])
def test_photographs_are_dropped_unless_they_are_many(tmp_path, photographs, action):
    lines = [f'{k}.png,{int(k < photographs)}' for k in range(COUNT)]
    (tmp_path / 'objects.csv').write_text('\n'.join(['id,objects', *lines]))
    found = DETECTORS['photographs'](pictures(objects=str(tmp_path / 'objects.csv')))
    assert found.action.tolist() == [action] * photographs + ['keep'] * (COUNT - photographs)
    assert ('3 of 20 pictures are flagged' in found.note) == (photographs == 3)
    assert (found.score[:photographs] > .99).all() and (found.score[photographs:] < .01).all()
