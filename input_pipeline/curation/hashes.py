"""Perceptual hashes: 64 bits that stay nearly the same when a picture is encoded again.

A bit says whether one of the 8 x 8 lowest frequencies of a cosine transform lies above their
median. A turned or mirrored picture has the same frequencies with other signs and places, so
one transform gives the hashes of all eight positions.
"""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

POSITIONS = ('as it is', 'turned 90', 'turned 180', 'turned 270',
             'mirrored', 'mirrored, turned 90', 'mirrored, turned 180', 'mirrored, turned 270')
_SIDE, _KEPT = 32, 8
_SIGNS = np.where(np.arange(_KEPT) % 2, -1, 1).astype(np.float32)
_ROWS, _COLUMNS = 16, 16384  # of a block of pairs: 2 MB, which fit into a core's cache


def position(picture: np.ndarray, number: int) -> np.ndarray:
    """The picture [H, W, ...] in position `number` of POSITIONS: mirrored left to right from 4 on,
    then turned counter-clockwise."""
    return np.rot90(picture[:, ::-1] if number >= 4 else picture, number % 4)


def dct_hashes(grey: np.ndarray) -> np.ndarray:
    """Hashes of a picture in each of POSITIONS: uint8 [H, W] -> uint64 [8]."""
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:_KEPT, :_KEPT]
    found = []
    for start in (low, low * _SIGNS):
        for _ in range(4):
            found.append(start > np.median(start))
            start = start.T * _SIGNS[:, None]
    return np.packbits(np.reshape(found, (8, -1)), axis=1).view('>u8').astype(np.uint64).ravel()


def near_pairs(hashes: np.ndarray, most: int, *, threads: int = 2,
               limit: int = 5_000_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of pictures that are near each other in some position.

    Args:
        hashes: uint64 [N, P], from `dct_hashes`, or its first columns.
        most: the largest number of differing bits.
        threads: how many blocks are compared at once.
        limit: the largest number of pairs; if there are more, `most` is lowered.

    Returns:
        (first, second, distance), int64 [M] each, first < second; sorted, each pair once, with
        its smallest distance in bits.
    """
    plain = np.ascontiguousarray(hashes[:, 0])
    others = np.ascontiguousarray(hashes.T)
    most_now = most

    def compare(start: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        bits = np.empty((_ROWS, _COLUMNS), np.uint64)
        counts = np.empty((_ROWS, _COLUMNS), np.uint8)
        rows = plain[start:start + _ROWS, None]
        found = []
        for left in range(start, len(plain), _COLUMNS):
            for column in others:
                part = column[None, left:left + _COLUMNS]
                shape = np.s_[:len(rows), :part.shape[1]]
                np.bitwise_xor(rows, part, out=bits[shape])
                np.bitwise_count(bits[shape], out=counts[shape])
                near = counts[shape] <= most_now
                if near.any():
                    i, j = np.nonzero(near)
                    distance = counts[shape][i, j]
                    i, j = i + start, j + left
                    found.append((i[i < j], j[i < j], distance[i < j]))
        return found

    parts, size = [], 0
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for found in pool.map(compare, range(0, len(plain), _ROWS)):
            parts += _up_to(most_now, found)  # most_now may have fallen since they were compared
            size = sum(len(part[0]) for part in parts)
            while size > limit:
                most_now -= 1
                parts = _up_to(most_now, parts)
                size = sum(len(part[0]) for part in parts)
    if not parts:
        return (np.empty(0, np.int64),) * 3
    first, second, distance = (np.concatenate(column).astype(np.int64) for column in zip(*parts))
    return _least_by_pair(first, second, distance)


def _up_to(most: int, parts: list[tuple]) -> list[tuple]:
    kept = ((part, part[2] <= most) for part in parts)
    return [tuple(column[keep] for column in part) for part, keep in kept if keep.any()]


def _least_by_pair(first: np.ndarray, second: np.ndarray, distance: np.ndarray
                   ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.lexsort((distance, second, first))
    first, second, distance = first[order], second[order], distance[order]
    new = np.ones(len(first), bool)
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return first[new], second[new], distance[new]
