"""The verb curate: which pictures to leave out, as a table that a person may correct.

    decisions.csv   one line an image, which data.decisions obeys; see curation/decisions.py
    to_mark.csv     the pictures on which photographs.marks would help most
    gallery.html    what would be dropped, and why

No picture is ever touched.
"""

import csv
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from input_pipeline import sources
from input_pipeline.curation import (
    borders,
    clusters,
    copies,
    label_errors,
    photographs,
    picture_statistics,
    quality,
)
from input_pipeline.curation.decisions import Finding, decide, save_decisions
from input_pipeline.curation.duplicates import Duplicates, find_duplicates
from input_pipeline.curation.measures import Measures, measure
from input_pipeline.descriptors import describe_all
from input_pipeline.manifest import Manifest
from input_pipeline.sources import csv_file
from train_lib.commands.command_line import Command
from train_lib.metrics.out_of_fold import read_probabilities
from train_lib.reporting.decisions_page import write_gallery
from train_lib.run_dir import lock, workdirs
from train_lib.runtime.errors import ConfigError
from train_lib.runtime.progress import bar
from train_lib.training.run import load_data

log = logging.getLogger(__name__)
_TO_MARK = 20


class Pictures:
    """What detectors know of the pictures; each part is computed when it is first asked for."""

    def __init__(self, config: ConfigDict, manifest: Manifest):
        self.config, self.manifest = config, manifest
        self.options = config.curate.to_dict()

    @functools.cached_property
    def measures(self) -> Measures:
        return _with_bar('measure', measure, self.manifest, cache_dir=workdirs.cache_folder())

    @functools.cached_property
    def duplicates(self) -> Duplicates:
        features = self.features if self.options['features'] == 'model' else None
        return _with_bar('compare', find_duplicates, self.measures, features=features,
                         **self.options['duplicates'])

    @functools.cached_property
    def statistics(self) -> np.ndarray:
        return _counted('statistics', picture_statistics.measure, self.manifest)

    @functools.cached_property
    def features(self) -> np.ndarray:
        if self.options['features'] == 'model':
            from train_lib.probing.backbone import plain_features  # which starts JAX
            return plain_features(self.config, self.manifest)
        return _counted('describe', describe_all, self.manifest)

    @functools.cached_property
    def label_errors(self) -> label_errors.LabelErrors:
        options = self.options['labels']
        labels = self.manifest.labels(self.head)
        if options['predictions']:
            probabilities = read_probabilities(Path(options['predictions']), self.manifest,
                                               self.head)
        else:
            group = np.full(len(labels), '', object)
            if 'duplicates' in self.options['detectors']:  # copies would vouch for each other
                found = self.duplicates.group
                group = np.where(found >= 0, found.astype(str).astype(object), '')
            log.info('labels   out of fold, by a logistic regression on %s features',
                     self.features.shape[1])
            probabilities = label_errors.out_of_fold(
                self.features, labels, classes=len(self.manifest.classes[self.head]),
                seed=self.config.seed, groups=group)
        return label_errors.find_label_errors(labels, probabilities, score=options['score'])

    @property
    def head(self) -> str:
        return self.options['labels']['head'] or self.manifest.heads[0]


def curate(command: Command) -> int:
    """Writes decisions.csv and gallery.html. Returns the exit code."""
    _check(command.config)
    workdir = command.workdir or workdirs.new(command.config_file)
    with lock.held(workdir):
        _curate(command.config, workdir)
    return 0


def _curate(config: ConfigDict, workdir: Path) -> None:
    manifest = load_data(config)
    pictures = Pictures(config, manifest)
    if pictures.head not in manifest.classes:
        raise ConfigError(f'config.curate.labels.head = {pictures.head!r}: '
                          f'choose one of {", ".join(manifest.heads)}.')
    findings = [DETECTORS[name](pictures) for name in config.curate.detectors]
    table = decide(manifest, findings, head=pictures.head)
    overlaps = None
    if 'labels' in config.curate.detectors:
        overlaps = label_errors.overlapping_classes(pictures.label_errors.joint,
                                                    manifest.classes[pictures.head])
    try:
        save_decisions(table, str(workdir / 'decisions.csv'))
        _write_to_mark(findings, manifest, workdir / 'to_mark.csv')
    except OSError as error:
        raise ConfigError(f'The workdir {workdir} cannot be written to ({error.strerror}): '
                          f'give another --workdir.') from None
    page = write_gallery(
        workdir / 'gallery.html', manifest, findings, table, head=pictures.head,
        overlaps=overlaps,
        read_image=lambda location: sources.read_image(manifest.root, location))
    for line in summary(findings, table).splitlines():
        log.info('%s', line)
    log.info('decisions %s; correct them, and train with --config.data.decisions=%s',
             workdir / 'decisions.csv', workdir / 'decisions.csv')
    log.info('gallery  %s', page)


def summary(findings: list[Finding], table: pd.DataFrame) -> str:
    """A line a detector and one of them all: dropped, to review."""
    rows = {found.detector: found.action for found in findings} | {'all': table['action']}
    counts = pd.DataFrame({name: [np.sum(actions == 'drop'), np.sum(actions == 'review')]
                           for name, actions in rows.items()}, index=['dropped', 'to review']).T
    return counts.rename_axis('detector').reset_index().to_string(index=False)


def _duplicates(pictures: Pictures) -> Finding:
    return copies.to_finding(pictures.duplicates, pictures.measures, pictures.manifest)


def _quality(pictures: Pictures) -> Finding:
    options = pictures.options
    table = pictures.measures.table
    score, why = quality.suspicions(table, options['quality'])
    flags = quality.flags(table, options['quality'])
    bad = flags[list(options['quality_drop'])].to_numpy().any(axis=1)
    action = np.where(bad, 'drop', np.where(score > 0, 'review', 'keep')).astype(object)
    reason = np.array([words or ', '.join(flags.columns[row]).replace('_', ' ') if drop else words
                       for words, row, drop in zip(why, flags.to_numpy(), bad)], object)
    return Finding('quality', score, action, reason)


def _photographs(pictures: Pictures) -> Finding:
    options = pictures.options['photographs']
    method, wanted = options['method'], options['wanted']
    ids, words = pictures.manifest.table['id'].to_numpy(object), ''
    if method == 'objects':
        count = photographs.read_objects(options['objects'], ids)
        odd = ((count >= options['least_objects']) == (wanted == 'drawings')).astype(float)
        words = 'by the objects in it'
    elif method == 'statistics':
        marks = photographs.read_marks(options['marks'], ids) if options['marks'] else None
        odd = photographs.photographs(
            pictures.statistics, features=pictures.features, marks=marks, wanted=wanted,
            seed=pictures.config.seed)
    else:
        features = (pictures.features if pictures.options['features'] == 'model' else
                    photographs.inputs_of(pictures.statistics))
        points = clusters.reduce(features, pictures.config.seed)
        cluster = (clusters.kmeans(points, seed=pictures.config.seed) if method == 'kmeans' else
                   clusters.dbscan(points))
        odd = photographs.of_clusters(pictures.statistics, cluster, wanted=wanted)
    return photographs.to_finding(odd, wanted=wanted, drop=options['drop'],
                                  review=options['review'], words=words)


def _labels(pictures: Pictures) -> Finding:
    options = pictures.options['labels']
    drop = options['drop'] if options['predictions'] else None  # the classifier here is weak
    return label_errors.to_finding(pictures.label_errors, pictures.manifest.classes[pictures.head],
                                   drop=np.inf if drop is None else drop)


def _borders(pictures: Pictures) -> Finding:
    rules, manifest = pictures.options['borders'], pictures.manifest
    columns, data = {}, pictures.config.data
    missing = borders.missing_columns(manifest, rules)
    if missing and data.source == 'csv' and not data.csv.lower().endswith('.parquet'):
        columns = csv_file.more_columns(data.csv, missing, manifest.table['id'],
                                        data.columns.to_dict())
    return borders.find_borders(manifest, rules, columns)


DETECTORS: dict[str, Callable[[Pictures], Finding]] = {
    'duplicates': _duplicates, 'quality': _quality, 'photographs': _photographs,
    'labels': _labels, 'borders': _borders}


def _check(config: ConfigDict) -> None:
    options = config.curate
    for name in options.detectors:
        if name not in DETECTORS:
            raise ConfigError(f'config.curate.detectors has {name!r}: '
                              f'choose from {", ".join(DETECTORS)}.')
    for key, value, allowed in (
            ('features', options.features, ('descriptor', 'model')),
            ('photographs.wanted', options.photographs.wanted, photographs.WANTED),
            ('photographs.method', options.photographs.method, photographs.METHODS),
            ('labels.score', options.labels.score, label_errors.SCORES),
            *(('quality_drop', flag, quality.FLAGS) for flag in options.quality_drop)):
        if value not in allowed:
            raise ConfigError(f'config.curate.{key} = {value!r}: '
                              f'choose one of {", ".join(allowed)}.')
    if options.photographs.method == 'objects' and not options.photographs.objects:
        raise ConfigError("config.curate.photographs.objects is empty: method='objects' needs a "
                          'CSV with the columns id and objects.')
    quality.check(options.quality.to_dict())


def _write_to_mark(findings: list[Finding], manifest: Manifest, path: Path) -> None:
    """The pictures that are hardest to tell, most doubtful first, for photographs.marks."""
    for found in findings:
        if found.detector == 'photographs':
            order = np.argsort(np.abs(found.score - 0.5), kind='stable')[:_TO_MARK]
            with open(path, 'w', encoding='utf-8', newline='') as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator='\n')
                writer.writerow(['id', 'photograph'])
                writer.writerows([name, ''] for name in manifest.table['id'].to_numpy()[order])


def _counted(what: str, function, manifest: Manifest):
    progress = bar(desc=what, unit='image', total=len(manifest))
    try:
        return function(manifest, progress=progress.update)
    finally:
        progress.close()


def _with_bar(what: str, function, *args, **settings):
    progress = bar(desc=what, unit='image' if what == 'measure' else 'pair')

    def show(done, total):
        progress.total = total
        progress.update(done - progress.n)

    try:
        return function(*args, progress=show, **settings)
    finally:
        progress.close()
