"""Arrays by path."""

from flax import nnx

import models
from train_lib.runtime.trees import by_path, path_name


def test_dicts_lists_and_indices_have_one_form():
    tree = {'blocks': {0: {'kernel': 1}, 1: {'kernel': 2}}, 'head': [3, (4,)]}
    assert by_path(tree) == {'blocks/0/kernel': 1, 'blocks/1/kernel': 2, 'head/0': 3,
                             'head/1/0': 4}
    assert by_path({}) == {}


def test_a_weight_has_the_same_name_in_a_model_and_in_its_state():
    model = models.create_model('small_cnn', 3, width=4, stages=1, rngs=nnx.Rngs(0))
    of_model = {path_name(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert of_model == set(by_path(state)) and 'head/kernel' in of_model
