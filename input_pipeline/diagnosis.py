"""What is wrong with an image file, in words that end the sentence "Image 'a.png' ...".

`problem` is stricter and slower than decoding, because it makes sure of every pixel.
"""

import io

from PIL import Image

from input_pipeline.errors import in_one_line
from input_pipeline.image_headers import FORMATS, MAX_PIXELS, probe


def problem(data: bytes) -> str:
    """What is wrong with the bytes of an image file, or '' if the whole picture can be decoded.

    Pillow decodes every pixel and reports missing data, and the checksums of a PNG are verified.
    """
    reason = probe(data).reason
    if reason:
        return reason
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format == 'PNG':
                image.verify()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise nearly every type on damaged data
        return reason_of(error)
    return ''


def reason_of(error: Exception) -> str:
    """What an exception of Pillow's decoders says about the file."""
    if isinstance(error, Image.DecompressionBombError):
        return f'has more than {MAX_PIXELS:,} pixels (a decompression bomb?)'
    text = in_one_line(error)
    if 'truncated' in text:
        return 'is truncated'
    if isinstance(error, Image.UnidentifiedImageError):
        return 'is damaged (its header cannot be read)'
    return f'is damaged ({text})' if text else f'is damaged ({type(error).__name__})'
