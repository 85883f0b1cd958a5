"""Pictures of 16 bits per value, and which of their values become black and white.

Cameras of 10, 12 or 14 bits, depth maps and label images use the lower bits only. By their upper
8 bits such pictures are nearly or entirely black, so the range is that of the data set
(config.image.range16).
"""

import dataclasses
import functools
import logging
from collections.abc import Collection, Sequence

import cv2
import numpy as np

from input_pipeline.errors import DataError, counted
from input_pipeline.image_headers import probe

Range = tuple[int, int]  # (low, high): the values that become black and white
FULL: Range = (0, 65535)
_SLIGHT = 16  # pictures that reach less than this part of the range are dark

_log = logging.getLogger(__name__)


def peak(data: bytes) -> int | None:
    """The largest value of a picture with 16 bits per value, as far as it is visible, 0 to 65535;
    None for all other pictures.

    Args:
        data: the content of a readable image file.
    """
    if not probe(data).deep:
        return None
    try:
        values = _values(data)
    except ValueError:
        return None
    if values.ndim == 3 and values.shape[2] == 4:
        values = values[values[..., 3] > 0][:, :3]
    return int(values.max(initial=0))


def as_eight_bits(data: bytes, limits: Range) -> np.ndarray:
    """The pixels of a 16-bit PNG, not turned: uint8 [H, W, 3], or [H, W, 4] with transparency.

    Args:
        data: the content of the file.
        limits: (low, high), spread evenly over the 256 grey levels; values outside are clipped.

    Raises:
        ValueError: it cannot be decoded.
    """
    values = _values(data)
    found = _table(*limits)[values]
    if found.ndim == 2:
        return np.stack([found] * 3, axis=-1)
    if found.shape[2] == 4:
        found[..., 3] = values[..., 3] >> 8
        return cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA)
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def _values(data: bytes) -> np.ndarray:
    """uint16 [H, W], or [H, W, 3 or 4] in OpenCV's order of the channels."""
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    if values is None or values.dtype != np.uint16:
        raise ValueError('its 16-bit values cannot be read')
    return values


@functools.lru_cache(maxsize=8)
def _table(low: int, high: int) -> np.ndarray:
    """The grey level of each 16-bit value, uint8 [65536]; of `FULL`, the upper 8 bits."""
    above = np.clip(np.arange(65536), low, high) - low
    levels = high - low + 1
    if levels >= 256:
        return (above * 256 // levels).astype(np.uint8)
    return np.rint(above * 255 / (levels - 1)).astype(np.uint8)


def check(wanted) -> str | Range:
    """A value of config.image.range16: 'auto', or the limits that it stands for.

    Raises:
        DataError: it is not valid.
    """
    if wanted == 'auto':
        return 'auto'
    if wanted == 'full':
        return FULL
    whole = isinstance(wanted, Sequence) and not isinstance(wanted, str) and len(wanted) == 2 and (
        all(isinstance(value, int) and not isinstance(value, bool) for value in wanted))
    if not whole or not 0 <= wanted[0] < wanted[1] <= FULL[1]:
        raise DataError(f"image.range16={wanted!r} is not a valid range: give 'auto', 'full', or "
                        f'the values of black and white, such as (0, 4095), up to 65535.')
    return wanted[0], wanted[1]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The range of a data set, and what to say about it ('' if there is nothing to say)."""

    limits: Range
    note: str = ''


def choose(wanted: str | Range, peaks: Collection[int]) -> Chosen:
    """The range by which all pictures of a data set are read.

    Args:
        wanted: see `check`. 'auto' takes the values below the smallest power of two that holds
            all peaks.
        peaks: see `peak`; one per picture that has one.
    """
    largest = max(peaks, default=0)
    bits = largest.bit_length()
    auto = wanted == 'auto'
    limits = (0, 2**bits - 1) if auto and bits else FULL if auto else wanted
    if not peaks:
        return Chosen(limits)
    low, high = limits
    several = f'{counted(len(peaks), "picture has", "pictures have")} 16 bits per value'
    above = sum(one > high for one in peaks)
    slight = sum(one - low < (high - low) / _SLIGHT for one in peaks)
    if not largest:
        note = f'{several}, and all of them are 0: they are black.'
    elif auto and bits < 16:
        note = (f'{several} and use {bits} of them (up to {largest:,}): {low:,} becomes black '
                f'and {high:,} white.')
    elif above:
        note = (f'{several}, and {above:,} of them have values above {high:,}, which become '
                f'white.')
    elif 2 * slight > len(peaks):
        note = (f'{several}, and {slight:,} of them reach only the lowest sixteenth of {low:,} to '
                f'{high:,} (config.image.range16): they are nearly black.')
    else:
        note = ''
    return Chosen(limits, note)


def warn(chosen: Chosen) -> None:
    """Logs what there is to say about a range."""
    if chosen.note:
        _log.warning('%s', chosen.note)
