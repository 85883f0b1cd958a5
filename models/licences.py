"""What is known about the licences of published weights. It is not legal advice.

`licences.csv` says for each name that timm records whether the licence allows commercial use:
'yes', 'no', or 'terms', which have to be read. A name that is not there has to be read as well.
"""

import csv
import dataclasses
import functools
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Licence:
    """`commercial`: 'yes', 'no', or 'terms'; `note`: in a few words, '' if there is nothing to
    say."""

    name: str
    commercial: str
    note: str

    @property
    def special(self) -> bool:
        """Whether whoever uses the weights has to look at it first."""
        return self.commercial != 'yes'

    def __str__(self) -> str:
        name = self.name or 'not stated'
        return f'{name} ({self.note})' if self.note and self.special else name


@functools.cache
def _table() -> dict[str, Licence]:
    with open(Path(__file__).with_name('licences.csv'), newline='') as file:
        return {row['license']: Licence(row['license'], row['commercial'], row['note'])
                for row in csv.DictReader(file)}


def licence(name: str) -> Licence:
    """Of a name as timm records it; '' where it states none."""
    return _table().get(name) or Licence(name, 'terms', 'read its terms' if name else '')
