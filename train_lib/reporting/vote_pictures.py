"""Where the pictures of a vote are, so that its report can show them."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from input_pipeline import sources
from input_pipeline.errors import DataError
from input_pipeline.manifest import SPLITS
from input_pipeline.sixteen_bits import FULL
from train_lib.ensembles.aligned import AlignedPredictions
from train_lib.predictions.run_folders import config_json
from train_lib.predictions.store import OUT_OF_FOLD, Member, other_data
from train_lib.run_dir.run_config import config_of_run
from train_lib.run_dir.workdirs import range16_of
from train_lib.runtime.errors import ConfigError

log = logging.getLogger(__name__)
# (location -> uint8 [H, W, 3], {id: location})
Given = tuple[Callable[[str], np.ndarray], Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class VotePictures:
    """How to show the pictures of a vote.

    Attributes:
        read: location -> uint8 [H, W, 3]; None if they cannot be shown.
        locations: {id: location}.
        why_not: why they cannot be shown, a sentence; '' if they can.
    """

    read: Callable[[str], np.ndarray] | None
    locations: Mapping[str, str]
    why_not: str = ''


def find_pictures(aligned: AlignedPredictions, given: Given | None = None) -> VotePictures:
    """The pictures that the members predicted: those that are given, else other data that the
    predictions name, else the data of the first member's run.

    An id may stand for other pictures in the data of the run than in those that were predicted, so
    these are taken only for rows of the run.
    """
    if given is not None:
        return VotePictures(*given)
    first = aligned.members[0]
    place = next(filter(None, map(other_data, aligned.members)), None)
    try:
        if place is None and not _is_of_the_run(first):
            return VotePictures(None, {}, f'The predictions of “{first.source}” do not say where '
                                          f'their pictures are: they were made by an older '
                                          f'version, or by hand.')
        if place is None and 'data' not in config_json(first.workdir):
            return VotePictures(None, {}, f'{first.workdir} does not say where its data are.')
        if place is None:
            config = config_of_run(first.workdir)
            place = dict(data=config.data.to_dict(), seed=config.seed)
        manifest = sources.load_source(place['data'], seed=place['seed'])
    except (ConfigError, DataError, OSError) as error:
        log.info('no pictures in the report: %s', error)
        return VotePictures(None, {}, f'The pictures cannot be read: {error}')
    read = partial(sources.read_image, manifest.root, range16=range16_of(first.workdir) or FULL)
    return VotePictures(read, dict(zip(manifest.table['id'], manifest.table['location'])))


def _is_of_the_run(member: Member) -> bool:
    """Whether the rows are those of a split of the run; other data may be called `test` too."""
    if member.source == OUT_OF_FOLD:
        return True
    if member.source not in SPLITS:
        return False
    return not member.roles or all(
        member.roles.get(name) == member.source for name in member.ids.tolist())
