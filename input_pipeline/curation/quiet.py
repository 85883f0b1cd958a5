"""No warnings of scikit-learn: they tell the caller what to change, and users did not call it."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def without_sklearn_warnings() -> Iterator[None]:
    """A block, or decorated function, in which scikit-learn warns of nothing: of classes with fewer
    pictures than folds, of fits that did not converge, of fewer distinct points than clusters."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module=r'sklearn\.')
        yield
