"""Locates the fragments of an image in its picture, and compares them with boxes.

Rectangles are x0, y0, x1, y1 in pixels of the picture, measured from its top left corner; pixel n covers n to n + 1.
"""

import numpy as np
from PIL import Image

FEW_PIXELS = 16  # a side this short is bent by filters in the middle too
TRIM, TRIM_OF_FEW = 0.08, 0.25  # share of a side left out at both ends, where filters behave differently
REACH = 4  # around a first estimate of where a picture goes
LEVELS_AROUND, PIXELS_AROUND = 2, 4  # of what is seen, that a ramp covers too: its levels are rounded, its ends bent
GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly
STEEPER = 0.98  # a ramp that is shorter by this is worth another look
TOLERANCE, TOLERANCE_OF_FEW = 2.5, 60  # levels of 255 by which a ramp may come out otherwise; of few, over the pixels


def grid_cells(window: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Divide a rectangle into the cells of a grid, row by row, [rows · columns, 4]."""
    x, y = (np.linspace(window[a], window[a + 2], n + 1) for a, n in ((0, columns), (1, rows)))
    left, top = np.meshgrid(x[:-1], y[:-1])
    right, bottom = np.meshgrid(x[1:], y[1:])
    return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)


def boxes_in_picture(boxes: np.ndarray, window: np.ndarray, shown: tuple[int, int]) -> np.ndarray:
    """Find boxes in a picture.

    Args:
        boxes: [K, 4] in pixels of what the model gets; see `OmitModel.fragment_boxes`.
        window: the rectangle of the picture that the model gets; see `window_of`.
        shown: height and width of what it gets.

    Returns:
        [K, 4] in pixels of the picture.

    Example:
        >>> boxes_in_picture(np.array([[0, 0, 4, 8]]), np.array([10, 0, 30, 20]), (8, 8)).tolist()
        [[10.0, 0.0, 20.0, 20.0]]
    """
    scale = (window[2:] - window[:2]) / np.array([shown[1], shown[0]])
    return np.tile(window[:2], 2) + boxes * np.tile(scale, 2)


def tile_edges(boxes: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Divide a grid's part of the picture into tiles, to draw cells side by side whose boxes overlap.

    The edge between two rows, or columns, is half-way between the centres of their boxes.

    Args:
        boxes: of the cells, row by row, [rows · columns, 4].
        grid: rows and columns.

    Returns:
        The edges from left to right, [columns + 1], and from top to bottom, [rows + 1].
    """
    boxes = boxes.reshape(*grid, 4)
    return tuple(
        np.r_[first[0], (middles[1:] + middles[:-1]) / 2, last[-1]]
        for first, last in ((boxes[0, :, 0], boxes[0, :, 2]), (boxes[:, 0, 1], boxes[:, 0, 3]))
        for middles in [(first + last) / 2]
    )


def shown_size(image_processor, width: int, height: int) -> tuple[int, int]:
    """Height and width of what an image processor makes of a picture."""
    return _processed(image_processor, np.zeros((height, width, 3))).shape[1:]


def window_of(image_processor, width: int, height: int) -> np.ndarray:
    """Measure which rectangle of a picture an image processor shows to the model.

    The rectangle reaches beyond the picture where the processor pads. Processors resize and crop by rules of their own,
    so a test picture is sent through: a ramp of colour along each side. Its output tells the size after resizing and
    the pixel at which the crop begins. Both are whole numbers, so the result is exact for most pictures. For others,
    such as a strip of a long picture, it is true to half a pixel. A ramp over the whole side comes first and tells
    where to place a steeper one. The ramp rises in red and blue and falls in green, so rounding errors cancel.

    Args:
        image_processor: image processor of transformers.
        width, height: size of the picture in pixels. A side of one pixel counts as seen whole.

    Returns:
        x0, y0, x1, y1, float64 [4].

    Raises:
        ValueError: if the processor does more than resize, crop and pad.
    """
    black, white = (_processed(image_processor, np.full((height, width, 3), level)) for level in (0, 255))
    contrast = white - black  # 0 where the processor pads
    seen = np.abs(contrast).mean(axis=0) > np.abs(contrast).max() / 2
    window = np.empty(4)
    for axis, pixels in ((0, width), (1, height)):
        across = height if axis == 0 else width
        part = 0, pixels  # that the ramp covers
        while part is not None:
            start, slope = _ramp(*part)
            ramp = slope * (np.arange(pixels) + 0.5 - start)
            ramp = np.clip(np.floor(ramp + _thresholds(across)[:, None]), 0, 255)
            ramp = ramp if axis == 0 else ramp.T
            shown = _processed(image_processor, np.stack([ramp, 255 - ramp, ramp], axis=-1)) - black
            shown = 255 * shown / np.where(seen, contrast, 1)
            levels = np.where(seen, ((shown[0] + shown[2]) / 2 + 255 - shown[1]) / 2, np.nan)
            part = _smaller_part(part, pixels, start + levels / slope)
        window[axis::2] = _side(image_processor, levels if axis == 0 else levels.T, pixels, start, slope)
    return window


def _ramp(first: int, last: int) -> tuple[float, float]:
    """Tell where a ramp over some pixels is 0, and its levels per pixel: a whole number if possible, which needs no
    rounding."""
    slope = 255 / max(1, last - first)
    return (first + 0.5, float(int(slope))) if slope >= 1 else (float(first), slope)


def _thresholds(count: int) -> np.ndarray:
    """Spread numbers evenly between 0 and 1, so that any few neighbours are even too; they make rounded means exact."""
    return (np.argsort(np.argsort(GOLDEN * np.arange(count) % 1)) + 0.5) / count


def _smaller_part(part: tuple[int, int], pixels: int, places: np.ndarray) -> tuple[int, int] | None:
    """Find the pixels that a steeper ramp should cover, including all that are seen; None if the ramp is steep enough.

    Args:
        part: first pixel that the ramp covered, and the one after its last.
        pixels: length of the side.
        places: positions in the picture that the ramp measured; NaN in the padding.
    """
    if np.isnan(places).all():
        return None
    around = PIXELS_AROUND + LEVELS_AROUND * (part[1] - part[0]) / 255
    first = max(0, int(np.nanmin(places) - around))
    last = min(pixels, int(np.nanmax(places) + around) + 1)
    return (first, last) if 0 < last - first < STEEPER * (part[1] - part[0]) else None


def _processed(image_processor, picture: np.ndarray) -> np.ndarray:
    """Send a picture [H, W, 3], 0 to 255, through a processor; the output has three channels."""
    picture = Image.fromarray(picture.astype(np.uint8))
    out = np.asarray(image_processor(images=[picture], return_tensors="np")["pixel_values"], dtype=np.float64)
    if out.ndim != 4 or out.shape[:2] != (1, 3):
        raise _unknown(image_processor)
    return out[0]


def _side(image_processor, levels: np.ndarray, pixels: int, start: float, slope: float) -> tuple[float, float]:
    """Find where the first column begins in the picture and where the last one ends.

    Args:
        levels: the processed ramp along x, [H, W]; NaN in the padding.
        pixels: width of the picture.
        start, slope: position in the picture where the ramp is 0, and its levels per pixel.
    """
    width = levels.shape[1]
    seen = ~np.isnan(levels)
    columns = np.flatnonzero(seen.any(axis=0))
    first, num_seen = (columns[0], len(columns)) if len(columns) else (0, 0)
    if pixels == 1 and num_seen:
        return -first / num_seen, (width - first) / num_seen
    trim = round((TRIM if pixels >= FEW_PIXELS else TRIM_OF_FEW) * num_seen)
    trim = min(trim, max(0, num_seen // 2 - 1))  # at least two are left
    columns = columns[trim : num_seen - trim]
    levels = levels[seen.any(axis=1)][:, columns]
    if len(columns) < 2 or np.isnan(levels).any():
        raise _unknown(image_processor)
    pixels_a_column, begin = np.polyfit(columns + 0.5, start + levels.mean(axis=0) / slope, 1)
    if pixels_a_column <= 0:
        raise _unknown(image_processor)
    # The whole numbers nearby that fit best; rounding each by itself would miss them, since they depend on each other.
    nearby = [np.arange(-REACH, REACH + 1) + round(each / pixels_a_column) for each in (pixels, begin)]
    resized, offset = (each.ravel() for each in np.meshgrid(*nearby))
    resized, offset = resized[resized > 0][:, None], offset[resized > 0][:, None]
    predicted = slope * ((columns + 0.5 + offset) * pixels / resized - start)
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
    """Compute which share of every cell's area lies in the boxes.

    Args:
        cells: [K, 4]; a cell without area counts as inside if its centre is.
        boxes: [N, 4]; overlaps count once.

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
    """Tell which cells have their centre in one of the boxes, bool [K]. A centre on an edge is outside."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    x, y = (cells[:, 0] + cells[:, 2]) / 2, (cells[:, 1] + cells[:, 3]) / 2
    in_x = (boxes[:, 0] < x[:, None]) & (x[:, None] < boxes[:, 2])
    in_y = (boxes[:, 1] < y[:, None]) & (y[:, None] < boxes[:, 3])
    return (in_x & in_y).any(axis=1)
