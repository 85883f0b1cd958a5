"""Heat maps drawn on the pictures that they explain."""

from collections.abc import Mapping

import cv2
import numpy as np

from train_lib.reporting.figures import webp_uri

_SIDE = 96
_WARM, _HOT = np.array([60, 176, 255], np.float32), np.array([32, 32, 214], np.float32)  # BGR


class Overlays:
    """The overlays of heatmaps.npz by id and head.

    Args:
        heat_maps: of `inputs.read_heat_maps`.
    """

    def __init__(self, heat_maps: Mapping[str, np.ndarray]):
        self._maps = heat_maps
        self._row = {name: k for k, name in enumerate(heat_maps.get('ids', np.zeros(0)).tolist())}

    def __call__(self, name: str, head: str, predicted: str) -> list[dict]:
        """[dict(method=, uri=)] of a picture; a map that explains another class is left out."""
        row = self._row.get(name)
        explained = self._maps.get(f'class/{head}')
        if row is None or explained is None or explained[row] != predicted:
            return []
        picture, shown = self._maps['pictures'][row], []
        for key, values in self._maps.items():
            method, _, of = key.partition('/')
            if method == 'rollout':
                shown.append(dict(method='attention', uri=overlay(picture, values[row], lift=True)))
            elif of == head and method != 'class':
                shown.append(dict(method=method, uri=overlay(picture, values[row])))
        return shown


def overlay(picture: np.ndarray, heat: np.ndarray, *, lift: bool = False) -> str:
    """A picture with its heat map, as a WebP data URI: the picture in pale grey, warm where the
    map is high.

    Args:
        picture: uint8 [h, w, 3], RGB; the longer side becomes 96 pixels.
        heat: float [h, w]; negative values stay cold.
        lift: the lowest value becomes the coldest, whatever it is.
    """
    heat = heat.astype(np.float32)
    heat = np.maximum(heat - heat.min() if lift else heat, 0)
    heat = heat / max(float(heat.max()), 1e-12)
    longest = max(picture.shape[:2])
    height, width = (max(1, round(side * _SIDE / longest)) for side in picture.shape[:2])
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC)
    heat = np.clip(heat, 0, 1)[..., None]
    # Small pictures keep hard edges, as elsewhere on the page.
    how = cv2.INTER_NEAREST if longest <= 32 else cv2.INTER_AREA
    grey = cv2.cvtColor(cv2.resize(picture, (width, height), interpolation=how),
                        cv2.COLOR_RGB2GRAY)
    pale = 0.75 * grey[..., None].astype(np.float32) + 0.25 * 255
    colour = _WARM + (_HOT - _WARM) * heat
    strength = 0.75 * heat ** 0.8
    # Multiplied, so that the lines of a drawing stay dark under the heat.
    mixed = pale * (1 - strength) + colour * pale / 255 * strength
    return webp_uri(np.round(mixed).astype(np.uint8))
