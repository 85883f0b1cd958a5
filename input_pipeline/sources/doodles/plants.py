"""What is planted among the drawings on purpose: altered copies and photographs."""

import cv2
import numpy as np

_PHOTO = 0xF070


def alter(image: np.ndarray, alteration: str) -> np.ndarray:
    """A near duplicate of a picture: uint8 [s, s, 3] -> uint8 [s, s, 3]; see ALTERATIONS."""
    return ALTERATIONS[alteration](image)


def _crop(share: float):
    def crop(image: np.ndarray) -> np.ndarray:
        size = len(image)
        off = max(1, round(size * share))
        part = image[off // 2:size - off + off // 2, off // 2:size - off + off // 2]
        return cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)
    return crop


def _jpeg(quality: int):
    def jpeg(image: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    return jpeg


def _brightness(factor: float):
    table = np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8)
    return lambda image: table[image]


ALTERATIONS = {
    'crop-3': _crop(.03),
    'crop-10': _crop(.10),
    'flip': lambda image: np.ascontiguousarray(image[:, ::-1]),
    'jpeg-50': _jpeg(50),
    'brightness-1.2': _brightness(1.2),
    'brightness-0.8': _brightness(.8),
}


def photo(seed: int, number: int, size: int) -> np.ndarray:
    """Photograph number `number`: lit, coloured bodies before a rough background, with noise.

    Returns:
        uint8 [size, size, 3]; a pure function of the arguments.
    """
    rng = np.random.default_rng((seed, _PHOTO, number))

    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))  # a Python float keeps arrays at float32

    axis = (np.arange(size, dtype=np.float32) + .5) / size
    x, y = np.meshgrid(axis, axis)
    corners = rng.uniform(40, 190, (2, 2, 3)).astype(np.float32)
    image = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    image += _rough(rng, size)[..., None] * draw(12, 34)
    light = draw(0, 2 * np.pi)
    lx, ly = float(np.cos(light)), float(np.sin(light))
    for _ in range(rng.integers(2, 6)):
        dx, dy = (x - draw(.1, .9)), (y - draw(.1, .9))
        rx, ry, turn = draw(.1, .34), draw(.1, .34), draw(0, np.pi)
        c, s = float(np.cos(turn)), float(np.sin(turn))
        far = ((c * dx + s * dy) / rx) ** 2 + ((c * dy - s * dx) / ry) ** 2
        body = np.clip((1 - far) / draw(.12, .32), 0, 1)[..., None]  # out of focus at its edge
        shade = .75 - .5 * (lx * dx / rx + ly * dy / ry) - .12 * far
        grey = draw(40, 200)
        colour = (grey + draw(.2, 1) * (rng.uniform(30, 225, 3) - grey)).astype(np.float32)
        skin = _rough(rng, size) * draw(2, 16)
        image += body * (np.clip(shade, .12, 1.15)[..., None] * colour + skin[..., None] - image)
    if rng.random() < .5:  # a horizon
        at, tone = draw(.55, .85), draw(.45, .8)
        image *= 1 - (1 - tone) * np.clip((y - at) / .04, 0, 1)[..., None]
    image *= (1.08 - draw(.3, .8) * ((x - .5) ** 2 + (y - .5) ** 2))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), max(.5, size / 150))
    image += rng.standard_normal(image.shape, np.float32) * draw(2, 6)
    return np.clip(image, 0, 232).astype(np.uint8)


def _rough(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise whose amplitude falls with the frequency as 1/f: float32 [size, size], standard
    deviation 1."""
    total = np.zeros((size, size), np.float32)
    cells = 3
    while cells < size:
        octave = rng.standard_normal((cells, cells), np.float32)
        total += cv2.resize(octave, (size, size), interpolation=cv2.INTER_CUBIC) / cells
        cells *= 2
    return total / total.std()
