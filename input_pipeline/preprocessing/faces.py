"""Finds faces, and crops a picture to the largest face.

The cascades (Viola & Jones, CVPR 2001; LBP: Liao et al., ICB 2007) need no download, but miss most
faces that wear a mask or are seen from the side. YuNet (Wu et al., MIR 2023) finds these too; it
needs an ONNX file that the user provides.
"""

import functools
import os
import threading

import cv2
import numpy as np

from input_pipeline.errors import DataError

DETECTORS = ('haar', 'lbp')
FALLBACKS = ('keep', 'center')

_SIDE = 320  # pixels of the longest side at which faces are searched
# Cascades need some room around a face: without it they miss half of the portraits in which the
# face fills the picture.
_ROOM = 0.2
_SHRINK = 1.1  # ratio of the sizes at which a cascade searches
_NEIGHBORS, _SCORE = 4, 0.6
_local = threading.local()  # detectors keep state while they search


def crop_to_face(image: np.ndarray, options: dict, before=None) -> tuple[np.ndarray, dict]:
    """The picture around its largest face.

    Args:
        image: RGB uint8 [H, W, 3].
        options: `detector`: 'haar', 'lbp', the .xml file of a cascade or the .onnx file of
            YuNet; `margin`: room added on each side, as a share of the face's side; `square`:
            whether the crop is a square, moved and shrunk to lie inside the picture; `min_face`:
            the smallest side of a face, as a share of the picture's shorter side; `least`: the
            score from which a face counts (see `find_faces`), 0 for the detector's default;
            `fallback`: what to do without a face: 'keep' the picture or take its 'center' square.
        before: unused.

    Returns:
        The crop, uint8 [h, w, 3], and the record: found; left, top, width, height of the face and
        crop_left, ... of the crop, in pixels of the given picture; score; faces (how many);
        fallback.

    Raises:
        DataError: the detector is missing or damaged.
    """
    boxes, scores = find_faces(image, options['detector'], options['min_face'], options['least'])
    height, width = image.shape[:2]
    found, crop = len(boxes) > 0, (0, 0, width, height)
    if found:
        crop = _around((width, height), boxes[0], options['margin'], options['square'])
    elif options['fallback'] == 'center':
        side = min(width, height)
        crop = (width - side) // 2, (height - side) // 2, side, side
    sides = ('left', 'top', 'width', 'height')
    record = dict(
        found=found, **dict(zip(sides, boxes[0].tolist() if found else (0, 0, 0, 0))),
        score=round(float(scores[0]), 4) if found else 0.0, faces=len(boxes),
        **{f'crop_{name}': value for name, value in zip(sides, crop)},
        fallback='' if found else options['fallback'])
    if crop == (0, 0, width, height):
        return image, record
    left, top, across, down = crop
    return np.ascontiguousarray(image[top:top + down, left:left + across]), record


def find_faces(image: np.ndarray, detector: str, min_face: float = 0.2,
               least: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """The faces of a picture, the largest first.

    Args:
        image: RGB uint8 [H, W, 3].
        detector: see `crop_to_face`.
        min_face: the smallest side of a face, as a share of the picture's shorter side.
        least: the least score; 0 means 4 for cascades and 0.6 for YuNet.

    Returns:
        Boxes (left, top, width, height), int [n, 4], pixels inside the picture, and scores,
        float [n]: for cascades the number of windows that agree, for YuNet 0 to 1.

    Raises:
        DataError: the detector is missing or damaged.
    """
    height, width = image.shape[:2]
    scale = min(1, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    room = round(_ROOM * max(size))
    small = cv2.copyMakeBorder(small, room, room, room, room, cv2.BORDER_REPLICATE)
    smallest = max(1, round(min_face * min(size)))
    look = _yunet if detector.lower().endswith('.onnx') else _cascade
    boxes, scores = look(small, detector, smallest, least)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) - room
    corners = np.round(corners / np.tile([size[0] / width, size[1] / height], 2)).astype(int)
    corners = np.clip(corners, 0, [width, height, width, height])
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    order = np.lexsort((-scores, -boxes[:, 2:].prod(1)))
    order = order[(boxes[order, 2:] > 0).all(1)]
    return boxes[order], scores[order]


def detector_file(detector: str) -> str:
    """The path of the file from which a detector is read.

    Raises:
        DataError: there is no such detector or file, or its package is not installed.
    """
    if detector == 'haar':
        folder = getattr(getattr(cv2, 'data', None), 'haarcascades', '')
        path = os.path.join(folder, 'haarcascade_frontalface_default.xml')
        if not os.path.exists(path):
            raise DataError("The face detector 'haar' is not in this OpenCV: install "
                            "opencv-python-headless below 5, or give detector a file.")
        return path
    if detector == 'lbp':
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
        except ImportError:
            raise DataError("The face detector 'lbp' comes with scikit-image, which is not "
                            "installed: install it, or use detector='haar'.") from None
        return lbp_frontal_face_cascade_filename()
    if not detector.lower().endswith(('.xml', '.onnx')):
        raise DataError(f'The face detector {detector!r} is unknown: use one of '
                        f'{", ".join(DETECTORS)}, the .xml file of an OpenCV cascade or the '
                        f'.onnx file of YuNet.')
    path = os.path.abspath(os.path.expanduser(detector))
    if not os.path.isfile(path):
        raise DataError(f'The face detector {detector!r} is not a file: correct the path.')
    return path


def load_detector(detector: str):
    """This thread's detector: a cascade or a YuNet of OpenCV.

    Raises:
        DataError: it is missing or damaged.
    """
    loaded = _local.__dict__.setdefault('detectors', {})
    if detector not in loaded:
        path = detector_file(detector)
        try:
            if path.lower().endswith('.onnx'):
                loaded[detector] = cv2.FaceDetectorYN.create(path, '', (_SIDE, _SIDE))
            else:
                loaded[detector] = _load_cascade(path)
        except (cv2.error, SystemError, AttributeError, UnicodeDecodeError) as error:
            text = ' '.join(str(error.__cause__ or error).split())
            raise DataError(f'The face detector {path!r} cannot be loaded by OpenCV '
                            f'{cv2.__version__} ({text}): give another file.') from None
    return loaded[detector]


def _load_cascade(path: str):
    # scikit-image's file misspells a tag that OpenCV needs; scikit-image itself never reads it.
    storage = cv2.FileStorage(_text(path).replace('featuhreParams', 'featureParams'),
                              cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    cascade = cv2.CascadeClassifier()
    if not cascade.read(storage.getFirstTopLevelNode()):
        raise cv2.error('not a cascade of the current format')
    return cascade


@functools.lru_cache(maxsize=4)
def _text(path: str) -> str:
    with open(path, encoding='utf-8') as file:
        return file.read()


def _cascade(image: np.ndarray, detector: str, smallest: int,
             least: float) -> tuple[np.ndarray, np.ndarray]:
    gray = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    boxes, counts = load_detector(detector).detectMultiScale2(
        gray, scaleFactor=_SHRINK, minNeighbors=max(1, round(least or _NEIGHBORS)),
        minSize=(smallest, smallest))
    return np.reshape(boxes, (-1, 4)).astype(np.float64), np.reshape(counts, -1).astype(float)


def _yunet(image: np.ndarray, detector: str, smallest: int,
           least: float) -> tuple[np.ndarray, np.ndarray]:
    net = load_detector(detector)
    net.setInputSize((image.shape[1], image.shape[0]))
    net.setScoreThreshold(least or _SCORE)
    faces = net.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    faces = np.zeros((0, 15)) if faces is None else faces.astype(np.float64)
    faces = faces[faces[:, 2:4].min(1) >= smallest]
    return faces[:, :4], faces[:, -1]


def _around(size: tuple[int, int], box: np.ndarray, margin: float,
            square: bool) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the crop around a box; `size` is the picture's (width, height).
    """
    size = np.array(size)
    sides = np.ceil(box[2:] * (1 + 2 * margin)).astype(int)
    if square:
        # Moved inside, not padded: an artificial edge would reveal faces near the border.
        side = min(sides.max(), size.min())
        first = np.clip(np.round(box[:2] + box[2:] / 2 - side / 2).astype(int), 0, size - side)
        last = first + side
    else:
        first = np.round(box[:2] + box[2:] / 2 - sides / 2).astype(int)
        first, last = np.maximum(first, 0), np.minimum(first + sides, size)
    return tuple(np.concatenate([first, last - first]).tolist())
