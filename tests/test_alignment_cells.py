import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    ViTImageProcessor,
)

from omit_hf.alignment.cells import centre_inside, grid_cells, share_inside, window_of

SIZES = [(500, 333), (375, 500), (96, 96), (61, 100), (251, 163)]


def whole(width, height):
    return [0, 0, width, height]


def centre_crop(width, height, shortest, crop):
    """The shorter side to `shortest`, the longer one cut to whole pixels; then a crop around the middle."""
    scale = shortest / min(width, height)
    resized = [shortest if side == min(width, height) else int(scale * side) for side in (width, height)]
    first = [int((side - crop) / 2) if side >= crop else -((crop - side + 1) // 2) for side in resized]
    factors = [width / resized[0], height / resized[1]]
    sides = list(zip(first, factors, strict=True))
    return [*(a * factor for a, factor in sides), *((a + crop) * factor for a, factor in sides)]


PROCESSORS = {
    "as it is": (ViTImageProcessor(do_resize=False), whole),
    "squeezed": (ViTImageProcessor(), whole),
    "squeezed, of a model that scales otherwise": (EfficientNetImageProcessor(), whole),
    "cropped": (CLIPImageProcessor(), lambda w, h: centre_crop(w, h, 224, 224)),
    "cropped closer": (
        BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
        lambda w, h: centre_crop(w, h, 256, 224),
    ),
    "cropped by a share": (
        ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
        lambda w, h: centre_crop(w, h, 256, 224),
    ),
    "small": (ViTImageProcessor(size={"height": 32, "width": 48}), whole),
}


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_what_a_processor_shows_of_a_picture(name, width, height):
    processor, expected = PROCESSORS[name]
    np.testing.assert_allclose(window_of(processor, width, height), expected(width, height), atol=1e-9)


@pytest.mark.parametrize(
    ("image_processor", "size", "expected"),
    [
        (CLIPImageProcessor(), (2000, 100), (950, 0, 1050, 100)),  # a strip
        (CLIPImageProcessor(), (8000, 50), (3975, 0, 4025, 50)),
        (CLIPImageProcessor(), (20, 3000), (0, 1490, 20, 1510)),
        (ViTImageProcessor(), (3, 5), (0, 0, 3, 5)),
        (BitImageProcessor(size={"shortest_edge": 256}), (640, 101), (276, 6.3, 364, 94.7)),
        (ViTImageProcessor(), (1, 30), (0, 0, 1, 30)),
        (ViTImageProcessor(), (2, 5), (0, 0, 2, 5)),
        (ViTImageProcessor(do_resize=False), (5, 7), (0, 0, 5, 7)),
        (CLIPImageProcessor(do_resize=False, crop_size={"height": 60, "width": 60}), (100, 40), (20, -10, 80, 50)),
        (CLIPImageProcessor(do_resize=False, crop_size={"height": 120, "width": 120}), (96, 300), (-12, 90, 108, 210)),
    ],
)
def test_odd_sizes_and_padding_are_found_to_half_a_pixel(image_processor, size, expected):
    np.testing.assert_allclose(window_of(image_processor, *size), expected, atol=0.5)


@pytest.mark.parametrize("size", [(20, 2), (2, 20), (200, 3), (3, 200), (4000, 40), (1, 30), (7, 7), (5, 3), (1, 1)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_strips_and_few_pixels_are_found_to_a_quarter_of_a_pixel(name, size):
    processor, expected = PROCESSORS[name]
    np.testing.assert_allclose(window_of(processor, *size), expected(*size), atol=0.25)


@pytest.mark.parametrize("size", [(96, 64), (640, 427), (427, 640), (123, 77), (1024, 300)])
@pytest.mark.parametrize("name", ["cropped", "cropped closer", "cropped by a share"])
def test_other_crops_are_found_exactly(name, size):
    processor, expected = PROCESSORS[name]
    np.testing.assert_allclose(window_of(processor, *size), expected(*size), atol=1e-9)


def test_padding_around_a_strip():
    """A side that is padded is seen whole, however few its pixels."""
    padding = CLIPImageProcessor(do_resize=False, crop_size={"height": 60, "width": 60})
    assert window_of(padding, 200, 3).tolist() == [70, -29, 130, 31]
    assert window_of(padding, 1, 3).tolist() == [-30, -29, 30, 31]


class Flips:
    def __call__(self, images, **kwargs):
        return {"pixel_values": np.asarray(images[0], dtype=float).transpose(2, 0, 1)[None, :, :, ::-1]}


class Bends:
    def __call__(self, images, **kwargs):
        pixels = np.asarray(images[0], dtype=float).transpose(2, 0, 1)[None]
        return {
            "pixel_values": pixels[..., (np.linspace(0, 1, pixels.shape[-1]) ** 2 * (pixels.shape[-1] - 1)).astype(int)]
        }


class Tiles:
    def __call__(self, images, **kwargs):
        return {"pixel_values": np.zeros((1, 4, 3, 32, 32))}


class Blank:
    def __call__(self, images, **kwargs):
        return {"pixel_values": np.zeros((1, 3, 32, 32))}


@pytest.mark.parametrize("processor", [Flips(), Bends(), Tiles(), Blank()])
def test_what_is_no_resizing_and_cropping(processor):
    with pytest.raises(ValueError, match=f"{type(processor).__name__} does something else with a picture than resize"):
        window_of(processor, 200, 100)


def test_cells_row_by_row():
    cells = grid_cells(np.array([10.0, 0.0, 40.0, 20.0]), rows=2, columns=3)
    assert cells[:4].tolist() == [[10, 0, 20, 10], [20, 0, 30, 10], [30, 0, 40, 10], [10, 10, 20, 20]]
    assert len(cells) == 6


def rectangles(least, most):
    side = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted).filter(lambda ends: ends[0] < ends[1])
    return st.lists(st.builds(lambda x, y: [x[0], y[0], x[1], y[1]], side, side), min_size=least, max_size=most)


@given(rectangles(1, 4), rectangles(0, 4))
def test_shares_are_counted_pixels(cells, boxes):
    shares = share_inside(np.array(cells), np.array(boxes))
    for (x0, y0, x1, y1), share in zip(cells, shares, strict=True):
        inside = [
            any(a <= x and x + 1 <= c and b <= y and y + 1 <= d for a, b, c, d in boxes)
            for x in range(x0, x1)
            for y in range(y0, y1)
        ]
        assert share == pytest.approx(sum(inside) / len(inside))


def test_a_centre_on_the_edge_is_not_inside():
    cells = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [1, 0, 5, 4]])
    boxes = np.array([[2, 0, 4, 4]])
    assert centre_inside(cells, boxes).tolist() == [False, False, True]
    assert centre_inside(cells, np.array([[2, 0, 4, 4], [1, 1, 3, 3]])).tolist() == [True, False, True]
    assert centre_inside(cells, np.empty((0, 4))).tolist() == [False] * 3


def test_a_cell_without_an_area():
    cells = np.array([[2.0, 2.0, 2.0, 5.0], [9.0, 2.0, 9.0, 2.0]])
    assert share_inside(cells, np.array([[1, 1, 4, 4]])).tolist() == [1, 0]
