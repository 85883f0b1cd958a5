"""Where results that can be computed again are kept between runs."""

import os


def cache_folder() -> str:
    """The folder 'atelier' of the user's caches, which need not exist; XDG_CACHE_HOME is obeyed."""
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return os.path.join(base, 'atelier')
