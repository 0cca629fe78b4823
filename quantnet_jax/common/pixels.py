"""What pixels of image files become, in datasets and in `predict` alike."""

from typing import Any

import numpy as np

BOX = 4  # PIL.Image.Resampling.BOX


def silhouette(image: Any, size: tuple[int, int], ink: float) -> np.ndarray:
    """A drawing in dark ink, reduced: uint8 (height, width), 255 for ink and else 0.

    Args:
      image: of PIL.
      size: (width, height), to which the drawing is squeezed.
      ink: share of what is under a pixel, from which on the pixel is ink.
    """
    small = np.asarray(image.convert("L").resize(size, BOX))
    return np.where(small <= 255 * (1 - ink), 255, 0).astype(np.uint8)


def eight_bits(image: Any) -> np.ndarray:
    """A gray image of more than 8 bits as uint8 (height, width).

    Of 16 bits the upper 8. An image of 32 bits does not tell how many it uses: 8 where
    no value is above 255, else 16.

    Args:
      image: of PIL, in the mode 'I', or in one of 'I;16'.

    Raises:
      ValueError: a value is negative, or takes more than 16 bits.
    """
    gray = np.asarray(image)
    low, high = gray.min(), gray.max()
    if low < 0 or high >= 2**16:
        raise ValueError(f"its pixels are from {low} to {high}, expected 0 to 65535")
    return (gray >> (0 if image.mode == "I" and high < 2**8 else 8)).astype(np.uint8)
