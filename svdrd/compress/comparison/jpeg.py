"""JPEG, to tell where a codec stands."""

from io import BytesIO

import numpy as np
from PIL import Image

from svdrd.compress.comparison.crops import squared_error


def code(original: Image.Image, quality: int) -> tuple[float, float]:
    """Rate in bits per pixel and PSNR in dB of Pillow's JPEG: optimised Huffman tables, colours at half the size.

    Args:
        original: RGB, 8 bits a channel.
        quality: Pillow's, 1 to 95.
    """
    stream = BytesIO()
    original.save(stream, "JPEG", quality=quality, optimize=True, subsampling="4:2:0")
    decoded, wanted = (np.asarray(image, np.float64) for image in (Image.open(stream), original))
    bits = 8 * len(stream.getvalue())
    psnr = 10 * np.log10(255**2 / squared_error(decoded, wanted).mean())
    return bits / (original.width * original.height), float(psnr)
