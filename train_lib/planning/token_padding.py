"""How many tokens a TPU keeps for the tokens of a transformer."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import models
from models.transformer import Transformer
from train_lib.planning.targets import PlanTarget
from train_lib.training.preprocess_spec import input_size

_LANES = 128  # numbers in a row of a TPU's registers: an array's last dimension is kept in these
_WORTH_A_WORD = 1.2  # kept per token, from which on another size is looked for
_AROUND = 0.25  # how much smaller or larger its sides may be


@dataclasses.dataclass(frozen=True)
class TokenPadding:
    """What a TPU keeps for the tokens of a model.

    Attributes:
        tokens: per picture, the class token included.
        kept: tokens that a TPU keeps room for in queries, keys, values and attention weights. XLA
            lays these arrays out with the tokens last, in rows of 128.
        hint: how to pay less, '' where nothing near does.
    """

    tokens: int
    kept: int
    hint: str = ''

    def __str__(self) -> str:
        """What the verb plan prints."""
        times = f' (x{self.kept / self.tokens:.2f})' if self.kept > self.tokens else ''
        hint = f'\n         {self.hint}' if self.hint else ''
        return f'tokens   {self.tokens:,}, kept as {self.kept:,} on a TPU{times}{hint}'


def kept_on_tpu(tokens: int) -> int:
    """The next multiple of 128."""
    return math.ceil(tokens / _LANES) * _LANES


def token_padding(config: ConfigDict, target: PlanTarget) -> TokenPadding | None:
    """What the tokens of config.model cost on the target; None for other targets than TPUs and for
    models without tokens. No weight is created.

    Raises:
        ConfigError, ModelError: a user's mistake.
    """
    if target.platform != 'tpu' or 'scan' not in models.model_settings(config.model.name):
        return None
    settings = {key: value for key, value in config.model.to_dict().items() if key != 'name'}
    settings.setdefault('img_size', input_size(config))
    settings.update(depth=1, scan=False)
    model = nnx.eval_shape(lambda: models.create_model(config.model.name, rngs=nnx.Rngs(0),
                                                       **settings))
    images = jax.ShapeDtypeStruct((1, *model.img_size, model.in_channels), jnp.float32)
    tokens = nnx.eval_shape(lambda model, images: model.embed(images, rngs=nnx.Rngs(0)),
                            model, images).shape[1]
    return TokenPadding(tokens, kept_on_tpu(tokens + -tokens % model.token_multiple),
                        _hint(model, tokens))


def _hint(model: Transformer, tokens: int) -> str:
    """How to keep less per token, as far as a setting does."""
    if kept_on_tpu(tokens) < _WORTH_A_WORD * tokens:
        return ''
    rows, columns = model.grid
    # The others: class token and registers.
    patch, others = model.img_size[0] // rows, tokens - rows * columns
    ways = []
    if others == 1 and getattr(model, 'class_token', False) and tokens % _LANES == others:
        ways.append(f'{_of(rows * columns)} without a class token')
    if rows == columns:
        sides = sorted(range(math.ceil(rows * (1 - _AROUND)), int(rows * (1 + _AROUND)) + 1),
                       key=lambda side: (abs(side - rows), side))
        ways += [f'{_of(found)} at {side * patch} px' for side in sides
                 if kept_on_tpu(found := side * side + others) < _WORTH_A_WORD * found][:1]
    return f'fuller: {"; ".join(ways)}' if ways else ''


def _of(tokens: int) -> str:
    return f'{tokens:,} of {kept_on_tpu(tokens):,}'
