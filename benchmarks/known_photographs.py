"""Published weights on photographs whose class is known: what the model says, through the
evaluation pipeline of this project (decoding, resizing, crop and statistics of the tag).

    python benchmarks/known_photographs.py --masks=mask_photos.zip

The pictures are those inside scikit-image and scikit-learn, as far as they are installed (nothing
is downloaded), and those of an archive with folders with_mask and without_mask. What is expected
was written down from looking at the pictures, before any model saw them. The weights come from the
packages of requirements-weights.txt.
"""

import argparse
import importlib.util
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import common
from input_pipeline.curriculum import Stage
from input_pipeline.given_batches import given_batches
from input_pipeline.given_pictures import each_given
from models import create_model, eval_view
from models.errors import ModelError
from models.tags import find_tag
from models.weight_packages import packages
from train_lib.training.init_pretrained import load_pretrained
from train_lib.training.preprocess_spec import preprocess_spec
from train_lib.training.step import make_normalise

# Of ImageNet's 1,000 classes, those that the pictures show; others are printed by their number.
CLASSES = {281: 'tabby cat', 282: 'tiger cat', 285: 'Egyptian cat', 450: 'bobsled',
           504: 'coffee mug', 540: 'drilling platform', 560: 'football helmet', 599: 'honeycomb',
           643: 'mask', 657: 'missile', 663: 'monastery', 665: 'moped',
           670: 'motor scooter', 698: 'palace', 744: 'projectile', 759: 'reflex camera',
           796: 'ski mask', 812: 'space shuttle', 832: 'stupa', 872: 'tripod', 967: 'espresso',
           968: 'cup', 985: 'daisy'}
# (package, file, the classes that are right)
PICTURES = (
    ('skimage', 'data/chelsea.png', (281, 282, 285)),  # a ginger tabby
    ('skimage', 'data/coffee.png', (967, 968, 504)),  # an espresso in a cup
    ('skimage', 'data/rocket.jpg', (657, 744)),  # on its launch pad
    ('skimage', 'data/camera.png', (872, 759)),  # a man with a camera on a tripod, grey
    ('skimage', 'data/motorcycle_left.png', (665, 670)),  # ImageNet has no motorcycle
    ('skimage', 'data/astronaut.png', (812,)),  # the shuttle behind her; no class for her
    ('sklearn', 'datasets/images/china.jpg', (698, 663, 832)),  # the Summer Palace
    ('sklearn', 'datasets/images/flower.jpg', (985,)),  # a dahlia; the only flower of its kind
)
MASKS = (643, 796)  # 'mask' and 'ski mask'


def known(pictures: Sequence[tuple[str, str, tuple[int, ...]]] = PICTURES
          ) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """(path, right classes) of the pictures that are installed; no package is imported."""
    for package, name, right in pictures:
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (Path(folder) / name).is_file():
                yield Path(folder) / name, right


def probabilities(name: str, images: Sequence[Path | bytes]) -> np.ndarray:
    """The softmax of a model with the weights of its package, float32 [N, 1000].

    Args:
        name: a model with a package.
        images: paths, or the bytes of files.

    Raises:
        ModelError: the package is not installed.
    """
    config = common.get_config()
    config.model.name, config.init.pretrained, config.init.head = name, 'package', 'keep'
    tag = find_tag(name, 'package')
    if tag is not None:
        config.image.size = tag.image_size
    model = nnx.eval_shape(lambda: create_model(name, 1000, rngs=nnx.Rngs(0)))
    load_pretrained(config, model)
    spec = preprocess_spec(config)
    normalise = make_normalise(spec.mean, spec.std, np.float32)
    graphdef, state = nnx.split(model)

    @jax.jit
    def answer(state, pictures):
        return jax.nn.softmax(eval_view(nnx.merge(graphdef, state))(normalise(pictures)))

    found = [np.asarray(answer(state, batch['image']))[batch['mask']] for batch in given_batches(
        each_given(list(images)), spec, (Stage(0, ()),), batch_size=32)]
    return np.concatenate(found)


def archive(path: Path, folder: str, most: int) -> list[bytes]:
    """Files of a folder in an archive, evenly spread over their sorted names."""
    with zipfile.ZipFile(path) as opened:
        names = sorted(name for name in opened.namelist()
                       if name.startswith(f'{folder}/') and not name.endswith('/'))
        step = max(len(names) // most, 1)
        return [opened.read(name) for name in names[::step][:most]]


def row(picture: str, found: np.ndarray, right: Sequence[int],
        classes: Mapping[int, str] = CLASSES) -> str:
    """A line of the table, of the probabilities [1000] of one picture."""
    named = lambda number: classes.get(number, f'class {number}')
    top = int(found.argmax())
    place = int((found > found[list(right)].max()).sum()) + 1
    return (f'{picture:20} {named(top):15} {found[top]:5.2f}  {"yes" if top in right else "no":3} '
            f'{place:>5}  {", ".join(map(named, right))}')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--models', default=','.join(packages()))
    parser.add_argument('--masks', type=Path, help='an archive with with_mask and without_mask')
    parser.add_argument('--most', type=int, default=256, help='pictures of each folder in it')
    args = parser.parse_args(argv)
    pictures = list(known())
    for name in args.models.split(','):
        try:
            print(f'\n{name}')
            if pictures:
                print(f'{"picture":20} {"top-1":15} {"prob.":5}  ok  place  expected')
                for (path, right), found in zip(pictures, probabilities(
                        name, [path for path, _ in pictures])):
                    print(row(path.name, found, right))
            if args.masks:
                for folder in ('with_mask', 'without_mask'):
                    found = probabilities(name, archive(args.masks, folder, args.most))
                    top = np.isin(found.argmax(axis=1), MASKS).mean()
                    five = np.isin(np.argsort(-found)[:, :5], MASKS).any(axis=1).mean()
                    print(f'{folder:20} mask or ski mask first: {top:.3f}, among the first five: '
                          f'{five:.3f} (n {len(found)})')
        except ModelError as error:
            print(f'known_photographs.py: {error}', file=sys.stderr)
            return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
