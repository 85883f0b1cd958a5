"""Image sizes: what a model is built for, and whether given images have that size."""

from collections.abc import Sequence

import jax

from models.errors import ModelError


def height_and_width(img_size: int | Sequence[int]) -> tuple[int, int]:
    """An image size, the side of a square or a pair, as (height, width).

    Raises:
        ModelError: it is neither.
    """
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sides) != 2 or not all(
            isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ModelError(f'img_size={img_size!r} is not a size in pixels: give a whole number, or '
                         f'(height, width).')
    height, width = sides
    return height, width


def patch_grid(img_size: int | tuple[int, int], patch: int
               ) -> tuple[tuple[int, int], tuple[int, int]]:
    """Checks an image size against a patch size, both in pixels.

    Returns:
        ((height, width) in pixels, (rows, columns) of patches)

    Raises:
        ModelError: such an image cannot be cut into whole patches.
    """
    size = height_and_width(img_size)
    if any(side < patch or side % patch for side in size):
        raise ModelError(f'img_size={img_size!r} cannot be cut into patches of {patch} '
                         f'pixels: use multiples of patch_size={patch}.')
    return size, (size[0] // patch, size[1] // patch)


def check_images(x: jax.Array, size: tuple[int, int], channels: int) -> None:
    """Checks that images are [B, *size, channels].

    Raises:
        ModelError: they have another shape.
    """
    if x.shape[1:] != (*size, channels):
        raise ModelError(
            f'This model takes images [B, {size[0]}, {size[1]}, {channels}] and got '
            f'{list(x.shape)}: create it with another img_size or in_channels, or resize the '
            f'images.')


def check_any_size(x: jax.Array, channels: int, least: int = 1, fewer: str = '') -> None:
    """Checks that images are [B, H, W, channels] with sides of at least `least` pixels.

    `fewer` names the setting that has to be smaller for smaller images.

    Raises:
        ModelError: they have another shape, or are smaller.
    """
    if x.ndim != 4 or x.shape[-1] != channels or min(x.shape[1:3]) < least:
        sides = f' with sides of at least {least} pixels' if least > 1 else ''
        raise ModelError(
            f'This model takes images [B, H, W, {channels}]{sides} and got {list(x.shape)}: create '
            f'it with another in_channels{f" or fewer {fewer}" if fewer else ""}, or resize the '
            f'images.')
