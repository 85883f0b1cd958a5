"""The detectors of the verb curate: each looks at all pictures and returns a Finding.

To add one, write a function (Pictures) -> Finding and add its line to DETECTORS.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np

from input_pipeline.curation import (
    borders,
    clusters,
    copies,
    label_errors,
    photographs,
    picture_statistics,
    quality,
)
from input_pipeline.curation.decisions import Finding, moderated
from input_pipeline.curation.duplicates import Duplicates, find_duplicates
from input_pipeline.curation.measures import Measures, measure
from input_pipeline.descriptors import describe_all
from input_pipeline.errors import DataError
from input_pipeline.manifest import Manifest
from input_pipeline.sources import csv_file

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Help:
    """What the detectors cannot do themselves.

    Attributes:
        cache_dir: folder in which measures of files are kept between runs.
        model_features: () -> features of a model, or those of a file, float32 [N, D].
        probabilities: (path of predictions, head) -> their probabilities, float64 [N, C], NaN for
            rows without a prediction.
        progress: (what, unit) -> a block with a progress bar, which yields its function
            (done, total).
    """

    cache_dir: str
    model_features: Callable[[], np.ndarray]
    probabilities: Callable[[str, str], np.ndarray]
    progress: Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]


class Pictures:
    """What the detectors know of N pictures; each part is computed when it is first asked for."""

    def __init__(self, manifest: Manifest, options: Mapping, *, data: Mapping, seed: int,
                 helped: Help):
        """
        Args:
            manifest: N rows.
            options: config.curate.
            data: config.data.
            seed: of everything that is drawn.
            helped: see `Help`.
        """
        self.manifest, self.options, self.data, self.seed = manifest, options, data, seed
        self._help = helped

    @property
    def head(self) -> str:
        """The head whose labels are looked at."""
        return self.options['labels']['head'] or self.manifest.heads[0]

    @functools.cached_property
    def measures(self) -> Measures:
        """Sizes, brightness, hashes and the like of each picture."""
        with self._help.progress('measure', 'image') as progress:
            return measure(self.manifest, cache_dir=self._help.cache_dir, progress=progress)

    @functools.cached_property
    def duplicates(self) -> Duplicates:
        """Which pictures are copies of each other."""
        features = self.features if by_model(self.options) else None
        measures = self.measures
        with self._help.progress('compare', 'pair') as progress:
            return find_duplicates(measures, features=features, progress=progress,
                                   **self.options['duplicates'])

    @functools.cached_property
    def statistics(self) -> np.ndarray:
        """Float [N, S], by which photographs differ from drawings."""
        return self._of_each('statistics', picture_statistics.measure)

    @functools.cached_property
    def features(self) -> np.ndarray:
        """Float32 [N, D], by which like pictures are near each other."""
        if by_model(self.options):
            return self._help.model_features()
        return self._of_each('describe', describe_all)

    @functools.cached_property
    def label_errors(self) -> label_errors.LabelErrors:
        """Which labels are probably wrong."""
        options = self.options['labels']
        labels = self.manifest.labels(self.head)
        if options['predictions']:
            probabilities = self._help.probabilities(options['predictions'], self.head)
        else:
            log.info('labels   out of fold, by a logistic regression on %s features',
                     self.features.shape[1])
            probabilities = label_errors.out_of_fold(
                self.features, labels, classes=len(self.manifest.classes[self.head]),
                seed=self.seed, groups=self._groups_of_copies())
        return label_errors.find_label_errors(labels, probabilities, score=options['score'])

    def _groups_of_copies(self) -> np.ndarray:
        """'' or the group of a picture: copies in two folds would vouch for each other's label."""
        if 'duplicates' not in self.options['detectors']:
            return np.full(len(self.manifest), '', object)
        found = self.duplicates.group
        return np.where(found >= 0, found.astype(str).astype(object), '')

    def _of_each(self, what: str, function: Callable) -> np.ndarray:
        with self._help.progress(what, 'image') as progress:
            count = itertools.count(1)
            return function(self.manifest,
                            progress=lambda: progress(next(count), len(self.manifest)))


def _duplicates(pictures: Pictures) -> Finding:
    return copies.to_finding(pictures.duplicates, pictures.measures, pictures.manifest,
                             most=pictures.options['most'])


def _quality(pictures: Pictures) -> Finding:
    options = pictures.options
    table = pictures.measures.table
    score, why = quality.suspicions(table, options['quality'])
    flags = quality.flags(table, options['quality'])
    share = flags.mean()
    wanted = list(options['quality_drop'])
    common = [name for name in wanted if share[name] > options['most']]
    bad = flags[[name for name in wanted if name not in common]].to_numpy().any(axis=1)
    if bad.mean() > options['most']:  # together, although none of them alone
        common, bad = wanted, np.zeros_like(bad)
    often = flags[common].to_numpy().any(axis=1)
    action = np.where(bad, 'drop', np.where((score > 0) | often, 'review', 'keep')).astype(object)
    reason = np.array([words or ', '.join(flags.columns[row]).replace('_', ' ') if named else words
                       for words, row, named in zip(why, flags.to_numpy(), bad | often)], object)
    note = '; '.join(f'{flags[name].sum():,} of {len(flags):,} pictures are '
                     f'{name.replace("_", " ")}' for name in common)
    return Finding('quality', score, action, reason,
                   note=f'{note}, which describes the data: they are for review' if note else '')


def _photographs(pictures: Pictures) -> Finding:
    options = pictures.options['photographs']
    method, wanted = options['method'], options['wanted']
    ids, words = pictures.manifest.table['id'].to_numpy(object), ''
    by = None  # what orders rows of the same probability
    if method == 'objects':
        by = count = photographs.read_objects(options['objects'], ids)
        by = by if wanted == 'drawings' else -by
        odd = ((count >= options['least_objects']) == (wanted == 'drawings')).astype(float)
        words = 'by the objects in it'
    elif method == 'statistics':
        marks = photographs.read_marks(options['marks'], ids) if options['marks'] else None
        odd = photographs.photographs(pictures.statistics, features=pictures.features, marks=marks,
                                      wanted=wanted, seed=pictures.seed)
    else:
        features = (pictures.features if by_model(pictures.options) else
                    photographs.inputs_of(pictures.statistics))
        points = clusters.reduce(features, pictures.seed)
        cluster = (clusters.kmeans(points, seed=pictures.seed) if method == 'kmeans' else
                   clusters.dbscan(points))
        odd = photographs.of_clusters(pictures.statistics, cluster, wanted=wanted)
        by = photographs.index(pictures.statistics) * (1 if wanted == 'drawings' else -1)
    odd = odd if by is None else photographs.ranked(odd, by)
    found = photographs.to_finding(odd, wanted=wanted, drop=options['drop'],
                                   review=options['review'], words=words)
    return moderated(found, pictures.options['most'])


def _labels(pictures: Pictures) -> Finding:
    options = pictures.options['labels']
    drop = options['drop'] if options['predictions'] else None  # the classifier here is weak
    found = pictures.label_errors
    if np.isnan(found.score).all():
        log.warning('labels   cannot be judged: it takes two classes with at least two labelled '
                    'pictures each that are not copies')
    found = label_errors.to_finding(found, pictures.manifest.classes[pictures.head],
                                    drop=np.inf if drop is None else drop)
    return moderated(found, pictures.options['most'])


def _borders(pictures: Pictures) -> Finding:
    rules, manifest, data = pictures.options['borders'], pictures.manifest, pictures.data
    columns = {}
    missing = borders.missing_columns(manifest, rules)
    if missing and data['source'] == 'csv' and not data['csv'].lower().endswith('.parquet'):
        columns = csv_file.more_columns(data['csv'], missing, manifest.table['id'],
                                        data['columns'])
    return borders.find_borders(manifest, rules, columns)


DETECTORS: dict[str, Callable[[Pictures], Finding]] = {
    'duplicates': _duplicates, 'quality': _quality, 'photographs': _photographs,
    'labels': _labels, 'borders': _borders}


def by_model(options: Mapping) -> bool:
    """Whether config.curate asks for features of a model or of a file, not for the descriptor."""
    return options['features'] != 'descriptor'


def is_file(features: str) -> bool:
    """Whether config.curate.features names a file."""
    return features.endswith('.parquet')


def check_features(options: Mapping) -> None:
    """Refuses a wrong config.curate.features.

    Raises:
        DataError: it is none of those that there are.
    """
    features = options['features']
    if features not in ('descriptor', 'model') and not is_file(features):
        raise DataError(f'config.curate.features = {features!r}: choose one of descriptor, model, '
                        f'or give a .parquet file of `main.py features`.')


def check_options(options: Mapping) -> None:
    """Refuses values of config.curate that would fail only after minutes of work.

    Raises:
        DataError: with the first of them.
    """
    for name in options['detectors']:
        if name not in DETECTORS:
            raise DataError(f'config.curate.detectors has {name!r}: '
                            f'choose from {", ".join(DETECTORS)}.')
    check_features(options)
    of_photographs = options['photographs']
    for key, value, allowed in (
            ('photographs.wanted', of_photographs['wanted'], photographs.WANTED),
            ('photographs.method', of_photographs['method'], photographs.METHODS),
            ('labels.score', options['labels']['score'], label_errors.SCORES),
            *(('quality_drop', flag, quality.FLAGS) for flag in options['quality_drop'])):
        if value not in allowed:
            raise DataError(f'config.curate.{key} = {value!r}: '
                            f'choose one of {", ".join(allowed)}.')
    if of_photographs['method'] == 'objects' and not of_photographs['objects']:
        raise DataError("config.curate.photographs.objects is empty: method='objects' needs a "
                        'CSV with the columns id and objects.')
    most = options['most']
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not 0 <= most <= 1:
        raise DataError(f'config.curate.most = {most!r} is out of range: use 0 to 1.')
    quality.check(options['quality'])
    borders.check(options['borders'])
