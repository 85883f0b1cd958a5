"""Heads, and what all models share: a backbone with one head or several named heads.

A family implements `forward_features` (images -> tokens or feature maps), and `pool` (-> one
vector per image) unless that is the mean of the maps. Everything after that is here, so every head
works with every backbone.
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from models.branches import BRANCHES, BranchHead, PooledHead
from models.errors import ModelError, unknown
from models.layers import Dropout, activation, timm_normal
from models.ordinal import ORDERS, OrderedHead

HEADS = ('linear', 'mlp', *BRANCHES)
HEAD_POOLS = ('shared', 'separate')
INITS = {'normal': timm_normal, 'zeros': nnx.initializers.zeros}


class LinearHead(nnx.Linear):
    """Dropout and one linear layer in float32: [B, D] -> [B, C]."""

    def __init__(self, features: int, classes: int, *, dropout: float = 0.0, kernel_init,
                 rngs: nnx.Rngs):
        super().__init__(features, classes, kernel_init=kernel_init, dtype=jnp.float32, rngs=rngs)
        self.dropout = Dropout(dropout, what='head_dropout')

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return super().__call__(self.dropout(x.astype(jnp.float32), rngs))


class MlpHead(nnx.Module):
    """For each hidden width a linear layer, the activation and dropout; then a linear layer:
    [B, D] -> [B, C], in float32."""

    def __init__(self, features: int, classes: int, *, hidden: tuple[int, ...], act: str,
                 dropout: float, kernel_init, rngs: nnx.Rngs):
        activation(act)  # refuses an unknown name
        self.hidden = nnx.List(
            nnx.Linear(a, b, kernel_init=timm_normal, dtype=jnp.float32, rngs=rngs)
            for a, b in zip((features, *hidden), hidden))
        self.out = LinearHead(hidden[-1], classes, dropout=dropout, kernel_init=kernel_init,
                              rngs=rngs)
        self.dropout = Dropout(dropout, what='head_dropout')
        self.act = act

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x.astype(jnp.float32)
        for i, layer in enumerate(self.hidden):
            x = activation(self.act)(layer(self.dropout(x, rngs) if i else x))
        return self.out(x, rngs)


class Classifier(nnx.Module):
    """A backbone with heads. Families set `num_features` and implement `forward_features`."""

    num_features: int
    timm_head = 'head'  # timm's name of the classifier; ours is always `head`
    # timm's names of modules at the top that have another name here.
    timm_modules: Mapping[str, str] = {}
    # Starts of keys, of a norm in timm's head, that weights without any key of that head may lack.
    timm_optional: tuple[str, ...] = ()
    timm_stem = ''  # timm's name of the first convolution
    # Regexes of parameter names, from the stem to the last block; their groups capture depths.
    layer_groups: tuple[str, ...] = ()
    # The same with the levels that timm gives them for layer-wise rates; (): those of layer_groups.
    # A name that leaves the last group of its regex out shares the level of the name before it; a
    # group that matches nothing is 0.
    layer_levels: tuple[str, ...] = ()
    timm_renames: tuple[tuple[str, str], ...] = ()  # (regex, replacement) for older keys
    # Regex of keys that weights of this network may have besides its own, and that it leaves out.
    timm_unused = ''
    # Families with token features have rows and columns of patches; transformers also have the
    # drop path rate of each block, and whether the blocks are stacked.
    grid: tuple[int, int]
    rates: tuple[float, ...]
    scan: bool

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Images [B, H, W, C] -> tokens [B, N, D] or maps [B, h, w, D], in the compute dtype."""
        raise NotImplementedError

    def pool(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """What `forward_features` returns -> one vector per image, [B, D]; of maps, the mean."""
        return jnp.mean(x, (1, 2), dtype=jnp.float32)

    def maps(self, x: jax.Array) -> jax.Array:
        """What `forward_features` returns -> feature maps [B, h, w, D], without class token and
        registers, which come before the patches."""
        if x.ndim == 4:
            return x
        return x[:, -math.prod(self.grid):].reshape(x.shape[0], *self.grid, x.shape[-1])

    def forward_head(self, x: jax.Array, *, pre_logits: bool = False,
                     rngs: nnx.Rngs | None = None, pooled: jax.Array | None = None):
        """What `forward_features` returns -> float32 logits as in `__call__`; with `pre_logits`
        the pooled features, float32 [B, D]. `pooled` is what `pool` gave, where it is known: a
        second call would move the statistics of a BatchNorm in it twice."""
        heads = dict(self.heads) if hasattr(self, 'heads') else {}
        if hasattr(self, 'head'):
            heads[''] = self.head
        on_maps = {name: head for name, head in heads.items() if hasattr(head, 'takes_maps')}
        logits = {name: head(self.maps(x), rngs) for name, head in on_maps.items()}
        if pre_logits or len(on_maps) < len(heads) or not heads:
            pooled = self.pool(x, rngs) if pooled is None else pooled
            pooled = self.head_drop(pooled.astype(jnp.float32), rngs)
            if pre_logits or not heads:
                return pooled
            logits |= {name: head(pooled, rngs) for name, head in heads.items()
                       if name not in on_maps}
        return logits[''] if hasattr(self, 'head') else {name: logits[name] for name in heads}

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None):
        """Normalised images, floating point [B, H, W, C] -> float32 logits [B, classes].

        With named heads a dict {name: logits}; without a head the pooled features [B, D].
        A model with dropout needs `rngs` in training mode.
        """
        return self.forward_head(self.forward_features(x, rngs=rngs), rngs=rngs)

    def add_heads(self, num_classes: int | Mapping[str, int], *, head: str = 'linear',
                  head_hidden: int | tuple[int, ...] | None = None, head_act: str = 'gelu',
                  head_dropout: float = 0.0, head_init: str = 'normal',
                  head_pool: str = 'shared', head_order: str | Mapping[str, str] = '',
                  drop_rate: float = 0.0, rngs: nnx.Rngs):
        """Puts new heads on the backbone and removes the old ones.

        Args:
            num_classes: number of classes for one head; a mapping from name to number for several
                heads; 0 for no head.
            head: 'linear'; 'mlp' for Linear-act-Linear (each further hidden width adds a layer);
                'shallow' or 'deep' for a branch of 1 or 3 convolutional blocks on feature maps.
            head_hidden: width of the mlp's hidden layer, or several widths (None: `num_features`);
                width of a branch (None: a quarter of `num_features`, at least 8).
            head_act: activation of the mlp and of branches.
            head_dropout: dropout before the output layer and between the mlp's hidden layers.
            head_init: 'normal' (standard deviation .02, as in timm) or 'zeros', for the output
                layer.
            head_pool: for 'linear' and 'mlp': 'shared' is the pooling of the backbone, once for all
                heads; 'separate' gives each head its own learned pooling. Branches always pool
                for themselves.
            head_order: of classes that have an order: 'corn' or 'cumulative_link' (ordinal.py),
                whose logits are log probabilities; {head: one of them} for some of several heads.
            drop_rate: dropout on the pooled features, before any head.
            rngs: for the initial values.

        Raises:
            ModelError: a value is unknown, or a number of classes is out of range.
        """
        if head not in HEADS:
            raise unknown('head', head, HEADS)
        if head_init not in INITS:
            raise unknown('head_init', head_init, INITS)
        if head_pool not in HEAD_POOLS:
            raise unknown('head_pool', head_pool, HEAD_POOLS)
        hidden = _widths(head_hidden, self.num_features if head == 'mlp' else
                         max(self.num_features // 4, 8))
        if head in BRANCHES and len(hidden) > 1:
            raise ModelError(f'head_hidden={head_hidden!r} has several widths, but a {head!r} '
                             f'branch has only one: give one integer.')
        common = dict(dropout=head_dropout, kernel_init=INITS[head_init], rngs=rngs)

        def build(classes: int, order: str = '') -> nnx.Module:
            def plain_head(features: int, outputs: int) -> nnx.Module:
                if head == 'mlp':
                    return MlpHead(features, outputs, hidden=hidden, act=head_act, **common)
                return LinearHead(features, outputs, **common)

            def vector_head(features):
                if order:
                    return OrderedHead(functools.partial(plain_head, features), classes, order)
                return plain_head(features, classes)

            maps = getattr(self, 'map_features', self.num_features)
            if head in BRANCHES:
                return BranchHead(maps, blocks=BRANCHES[head], width=hidden[0], act=head_act,
                                  drop_rate=drop_rate, make_out=vector_head, rngs=rngs)
            if head_pool == 'separate':
                return PooledHead(maps, drop_rate=drop_rate, make_out=vector_head)
            return vector_head(self.num_features)

        _check_classes(num_classes)
        orders = _orders(head_order, num_classes)
        for old in ('head', 'heads'):
            if hasattr(self, old):
                delattr(self, old)
        self.head_drop = Dropout(drop_rate)
        if isinstance(num_classes, Mapping):
            self.heads = nnx.Dict(
                {name: build(n, orders.get(name, '')) for name, n in num_classes.items()})
        elif num_classes:
            self.head = build(num_classes, orders.get('', ''))


def _widths(head_hidden, default: int) -> tuple[int, ...]:
    hidden = default if head_hidden is None else head_hidden
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    if not hidden or min(hidden) < 1:
        raise ModelError(f'head_hidden={head_hidden!r} is not a valid width: give a positive '
                         f'integer, or several for several layers.')
    return hidden


def _orders(given, num_classes: int | Mapping[str, int]) -> dict[str, str]:
    """{head: 'corn' or 'cumulative_link'}; the name of a lone head is ''."""
    sizes = dict(num_classes) if isinstance(num_classes, Mapping) else {'': num_classes}
    if isinstance(given, Mapping):
        wanted = dict(given)
        if list(sizes) == [''] and len(wanted) == 1:  # a lone head has no name in the model
            wanted = {'': next(iter(wanted.values()))}
    else:
        wanted = dict.fromkeys(sizes, given) if given else {}
    for name, order in wanted.items():
        if name not in sizes:
            raise unknown('In head_order, the head', name, sizes)
        if order not in ORDERS:
            raise unknown('head_order', order, ORDERS)
        if 0 < sizes[name] < 2:
            raise ModelError(f'head_order={order!r} needs two classes or more, and there is one: '
                             f'leave it out.')
    return wanted


def _check_classes(num_classes):
    named = isinstance(num_classes, Mapping)
    sizes = dict(num_classes) if named else {'': num_classes}
    if not sizes:
        raise ModelError('num_classes is an empty mapping: name a head, or use 0 for no head.')
    for name, size in sizes.items():
        where = f'num_classes[{name!r}]' if named else 'num_classes'
        if isinstance(size, bool) or not hasattr(size, '__index__') or size < named:
            raise ModelError(f'{where}={size!r} is not a valid number of classes: use an integer '
                             f'of at least {int(named)}.')
        if named and (not isinstance(name, str) or not name or hasattr(nnx.Dict, name)):
            raise ModelError(f'{name!r} cannot be the name of a head: use another name.')
