"""Where the fragments of an image lie in its picture, and how they meet boxes.

Rectangles are x0, y0, x1, y1 in pixels of the picture, measured from its top left corner; pixel n covers n to n + 1.
"""

import numpy as np
from PIL import Image

FEW_PIXELS = 16  # of a side, which filters bend in the middle too
TRIM, TRIM_OF_FEW = 0.08, 0.25  # share of a side that is left out at each end: filters behave otherwise there
REACH = 4  # around a first estimate of where a picture goes
TOLERANCE, TOLERANCE_OF_FEW = 2.5, 60  # levels of 255 by which a ramp may come out otherwise; of few, over the pixels


def grid_shape(cells: int, pixels: tuple[int, int], states=None) -> tuple[int, int]:
    """Rows and columns of the cells that a vision backbone makes of an image.

    Args:
        cells: how many.
        pixels: height and width of the image as the backbone gets it.
        states: the backbone's last states; [B, width, rows, columns] tell it, a list of patches [B, n, width] does not,
            and the patches are then taken for squares.

    Raises:
        ValueError: if they are no grid of squares that covers the image.
    """
    if states is not None and states.ndim == 4:
        return tuple(states.shape[-2:])
    height, width = pixels
    rows = max(1, round((cells * height / width) ** 0.5))
    if cells % rows or not 0.5 < (cells / rows) / rows / (width / height) < 2:
        raise ValueError(f"The image of {height} x {width} pixels has {cells} cells, which are no grid of square ones.")
    return rows, cells // rows


def grid_cells(window: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The cells of a grid over a rectangle, row by row, [rows · columns, 4]."""
    x, y = (np.linspace(window[a], window[a + 2], n + 1) for a, n in ((0, columns), (1, rows)))
    left, top = np.meshgrid(x[:-1], y[:-1])
    right, bottom = np.meshgrid(x[1:], y[1:])
    return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)


def window_of(image_processor, width: int, height: int) -> np.ndarray:
    """The rectangle of a picture that an image processor makes its tensor of; it reaches beyond the picture where the
    processor pads.

    Processors resize and crop by rules of their own, so it is measured: of a ramp of grey along each side, what comes
    out tells the size that the picture is resized to and the pixel at which the crop begins. Both are whole numbers,
    which makes the result exact for most pictures, and else, as for a strip of a long picture, true to half a pixel.

    Args:
        image_processor: of transformers.
        width, height: of the picture. A side of one pixel is taken to be seen whole.

    Returns:
        x0, y0, x1, y1, float64 [4].

    Raises:
        ValueError: if the processor does something else than resize, crop and pad.
    """
    black, white = (_processed(image_processor, np.full((height, width), level)) for level in (0, 255))
    contrast = white - black  # 0 where the processor pads
    seen = np.abs(contrast) > np.abs(contrast).max() / 2
    window = np.array([0, 0, width, height], dtype=np.float64)
    for axis, pixels in ((0, width), (1, height)):
        for _ in range(2 if pixels > 1 else 0):  # the second time with a ramp over what is seen, which is steeper
            low, high = window[axis::2]
            ramp = np.clip(np.rint(255 * (np.arange(pixels) + 0.5 - low) / (high - low)), 0, 255)
            picture = np.broadcast_to(ramp if axis == 0 else ramp[:, None], (height, width))
            levels = 255 * (_processed(image_processor, picture) - black) / np.where(seen, contrast, 1)
            levels = np.where(seen, levels, np.nan)
            window[axis::2] = _side(image_processor, levels if axis == 0 else levels.T, pixels, low, high)
    return window


def _processed(image_processor, grey: np.ndarray) -> np.ndarray:
    """What a processor makes of a grey picture, [H, W], 0 to 255; the mean of its channels."""
    picture = Image.fromarray(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2))
    out = np.asarray(image_processor(images=[picture], return_tensors="np")["pixel_values"], dtype=np.float64)
    if out.ndim != 4 or len(out) != 1:
        raise _unknown(image_processor)
    return out[0].mean(axis=0)


def _side(image_processor, levels: np.ndarray, pixels: int, low: float, high: float) -> tuple[float, float]:
    """Where the first column begins in the picture and the last one ends.

    Args:
        levels: a ramp along x as it came out, [H, W]; NaN where there is padding.
        pixels: the picture's, along x.
        low, high: where in the picture the ramp is 0 and 255.
    """
    width = levels.shape[1]
    seen = ~np.isnan(levels)
    columns = np.flatnonzero(seen.any(axis=0))
    trim = round((TRIM if pixels >= FEW_PIXELS else TRIM_OF_FEW) * len(columns))
    columns = columns[trim : len(columns) - trim]
    levels = levels[seen.any(axis=1)][:, columns]
    if len(columns) < 2 or np.isnan(levels).any():
        raise _unknown(image_processor)
    slope, start = np.polyfit(columns + 0.5, low + levels.mean(axis=0) / 255 * (high - low), 1)
    if slope <= 0:
        raise _unknown(image_processor)
    # The whole numbers nearby that fit best; rounding each by itself would miss them, since they depend on each other.
    resized, offset = np.meshgrid(*(np.arange(-REACH, REACH + 1) + round(each / slope) for each in (pixels, start)))
    resized, offset = resized[resized > 0][:, None], offset[resized > 0][:, None]
    predicted = 255 * ((columns + 0.5 + offset) * pixels / resized - low) / (high - low)
    best = ((levels.mean(axis=0) - predicted) ** 2).sum(axis=1).argmin()
    if np.abs(levels - predicted[best]).max() > TOLERANCE + TOLERANCE_OF_FEW / pixels:
        raise _unknown(image_processor)
    resized, offset = int(resized[best, 0]), int(offset[best, 0])
    return offset * pixels / resized, (offset + width) * pixels / resized


def _unknown(image_processor) -> ValueError:
    return ValueError(
        f"{type(image_processor).__name__} does something else with a picture than resize, crop and pad it, so it is "
        "not known where its cells lie; expected a processor that does no more."
    )


def share_inside(cells: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The share of each cell's area that lies in any of some boxes.

    Args:
        cells: [K, 4]; one without an area lies inside where its centre does.
        boxes: [N, 4]; what several cover counts once.

    Returns:
        [K], from 0 to 1.

    Example:
        >>> cells = np.array([[0, 0, 4, 4], [4, 0, 8, 4]])
        >>> share_inside(cells, np.array([[2, 0, 6, 4], [0, 0, 6, 2]])).tolist()
        [0.75, 0.5]
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if len(boxes) == 0:
        return np.zeros(len(cells))
    x, y = np.unique(boxes[:, 0::2]), np.unique(boxes[:, 1::2])  # which cut the plane into tiles, covered or not
    in_x = (boxes[:, None, 0] <= x[:-1]) & (x[1:] <= boxes[:, None, 2])
    in_y = (boxes[:, None, 1] <= y[:-1]) & (y[1:] <= boxes[:, None, 3])
    covered = (in_x[:, :, None] & in_y[:, None, :]).any(axis=0)
    wide = np.clip(np.minimum(cells[:, None, 2], x[1:]) - np.maximum(cells[:, None, 0], x[:-1]), 0, None)
    high = np.clip(np.minimum(cells[:, None, 3], y[1:]) - np.maximum(cells[:, None, 1], y[:-1]), 0, None)
    inside = np.einsum("kx,ky,xy->k", wide, high, covered)
    area = (cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])
    share = np.minimum(inside / np.where(area > 0, area, 1), 1)
    return np.where(area > 0, share, centre_inside(cells, boxes))


def centre_inside(cells: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether the centre of each cell lies within any of some boxes; on the edge is not within. Bool [K]."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    x, y = (cells[:, 0] + cells[:, 2]) / 2, (cells[:, 1] + cells[:, 3]) / 2
    in_x = (boxes[:, 0] < x[:, None]) & (x[:, None] < boxes[:, 2])
    in_y = (boxes[:, 1] < y[:, None]) & (y[:, None] < boxes[:, 3])
    return (in_x & in_y).any(axis=1)
