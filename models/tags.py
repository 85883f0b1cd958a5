"""Published weights by tag, and the preprocessing that they expect.

`pretrained_tags.csv` holds what timm 1.0.31 records about each tag. A model's first line is timm's
default tag. The weights of a tag are in the Hugging Face repository `timm/<model>.<tag>`.
"""

import csv
import dataclasses
import functools
from pathlib import Path

from models.weight_files import FILES

STATISTICS = {  # mean and standard deviation per colour channel, for values in 0..1
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    'satellite': ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),  # of DINOv3's aerial pictures
    'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'none': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclasses.dataclass(frozen=True)
class Tag:
    """One set of published weights.

    `image_size` is in pixels. `crop_pct` is the fraction of each side that the centre crop keeps.
    `crop_mode` is 'center' (resize the shorter side, crop the centre) or 'squash' (resize both
    sides). `classes` is 0 if the weights have no classifier.
    """

    model: str
    tag: str
    image_size: int
    crop_pct: float
    interpolation: str
    crop_mode: str
    statistics: str
    classes: int
    license: str

    @property
    def repository(self) -> str:
        """The Hugging Face repository."""
        return f'timm/{self.model}.{self.tag}'

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of red, green and blue, for values in 0..1."""
        return STATISTICS[self.statistics][0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of red, green and blue, for values in 0..1."""
        return STATISTICS[self.statistics][1]


@functools.cache
def _table() -> dict[str, tuple[Tag, ...]]:
    table: dict[str, tuple[Tag, ...]] = {}
    with open(Path(__file__).with_name('pretrained_tags.csv'), newline='') as file:
        for row in csv.DictReader(file):
            tag = Tag(row['model'], row['tag'], int(row['image_size']), float(row['crop_pct']),
                      row['interpolation'], row['crop_mode'], row['statistics'],
                      int(row['classes']), row['license'])
            table[tag.model] = table.get(tag.model, ()) + (tag,)
    return table


def tags_of(model: str) -> tuple[Tag, ...]:
    """The published weights of a model, the default first; () if there are none."""
    return _table().get(model, ())


def find_tag(model: str, source: str) -> Tag | None:
    """The tag that `source` means for this model.

    Args:
        model: a name of `create_model`.
        source: 'default', a tag ('a1_in1k'), 'model.tag', a repository ('timm/model.tag'), or a
            file. A file whose name is not a tag means the model's default, because all weights of
            a family expect much the same preprocessing.

    Returns:
        None if the model has no published weights, or `source` is somebody else's repository.
    """
    known, path = tags_of(model), Path(source)
    is_file = path.suffix in FILES
    owner = source.rpartition('/')[0].removeprefix('hf-hub:').removeprefix('hf_hub:')
    if not is_file and owner not in ('', 'timm'):
        return None
    name = path.stem if is_file else path.name
    for tag in known:
        if name in (tag.tag, f'{tag.model}.{tag.tag}'):
            return tag
    return known[0] if known and (source == 'default' or is_file) else None
