import importlib
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from planned import alignment
from tiny import REGIONS, lay_evenly, tiny_config

from omit_hf import OmitModel
from omit_hf.alignment import WordAlignment, word_alignment
from omit_hf.visualization import check_figure_file, draw_comparison, draw_plan, draw_words, explain, save_figure
from omit_hf.visualization.panels import COLOURS, fitted
from omit_hf.visualization.plan import chosen_fragments

PICTURE = Image.new("RGB", (80, 40), "teal")


SMALL = alignment([[0.1, 0.1, 0.3], [0.05, 0.3, 0.1], [0.05, 0.0, 0.0]])
BOXES = np.array([[0.0, 0, 20, 20], [30, 10, 70, 40], [5, 5, 10, 35], [60, 0, 80, 9]])


def titled(figure) -> dict:
    return {axis.get_title(): axis for axis in figure.axes if axis.get_title()}


def bars(axis) -> list[float]:
    """Widths of the grey bar and of the blue one under a panel."""
    below = [patch for patch in axis.patches if patch.get_y() >= 40]
    return [patch.get_width() for patch in below]


def no_overlap(figure) -> None:
    """No two texts of a figure cover each other, and none leaves it."""
    canvas = FigureCanvasAgg(figure)
    texts = [text for axis in figure.axes for text in [axis.title, *axis.texts] if text.get_text()]
    renderer = canvas.get_renderer()
    extents = [text.get_window_extent(renderer) for text in texts]
    for number, one in enumerate(extents):
        assert one.x0 >= -1
        assert one.y0 >= -1
        assert one.x1 <= figure.bbox.width + 1
        assert one.y1 <= figure.bbox.height + 1
        for text, other in zip(texts[:number], extents, strict=False):
            if texts[number].get_rotation() == text.get_rotation() == 0:
                width = min(one.x1, other.x1) - max(one.x0, other.x0)
                height = min(one.y1, other.y1) - max(one.y0, other.y0)
                assert width < 2 or height < 2, (texts[number].get_text(), text.get_text())


def twice(found: WordAlignment, picture: Image.Image) -> Figure:
    return draw_comparison([found, found], ["a", "b"], picture)


def test_a_panel_for_the_picture_and_one_for_each_word(scenes, scenes_model, processor):
    row = scenes["test"][0]
    figure = explain(lay_evenly(scenes_model, 96, 96), processor, row["image"], row["captions"][0])
    found = word_alignment(scenes_model, processor, row["image"], row["captions"][0])
    words = processor.tokenizer.tokenize(row["captions"][0])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == f"similarity {found.similarity:.2f}"
    assert [title.split()[0].casefold() for title in titles[1:]] == words
    for number, axis in enumerate(figure.axes[1 : 1 + len(words)]):
        heat = axis.get_images()[1]
        np.testing.assert_allclose(heat.get_array().ravel(), found.mass[:, number] / found.mass.max())
        assert heat.get_extent() == [0, 96, 96, 0]


def test_cells_are_drawn_side_by_side_where_they_look():
    """Of boxes that overlap or leave a gap, the edge lies half-way between the centres."""
    boxes = np.array([[0, 0, 20, 30], [10, 0, 50, 30], [60, 0, 70, 30]])
    found = alignment([[0.1, 0.1], [0.2, 0.3], [0.2, 0.1], [0.0, 0.0]], ["star"], boxes=boxes)
    heat = titled(draw_words(found, PICTURE))["star  80%"].collections[0]
    np.testing.assert_allclose(heat.get_coordinates()[0, :, 0], [0, 20, 47.5, 70])
    np.testing.assert_allclose(heat.get_coordinates()[:, 0, 1], [0, 30])
    np.testing.assert_allclose(heat.get_array().ravel(), [1, 1 / 3, 0])


def test_the_number_and_the_bar_are_the_share_that_is_not_from_the_dustbin():
    panels = titled(draw_words(SMALL, PICTURE))
    assert list(panels) == ["similarity 0.25", "left  75%", "star  25%"]
    assert bars(panels["left  75%"]) == pytest.approx([80, 60])
    assert bars(panels["star  25%"]) == pytest.approx([80, 20])
    assert to_hex(panels["left  75%"].title.get_color()) == "#000000"
    assert to_hex(panels["star  25%"].title.get_color()) == to_hex("0.45")


def test_all_panels_have_the_scale_of_the_greatest_share():
    figure = draw_words(SMALL, PICTURE)
    panels = titled(figure)
    np.testing.assert_allclose(panels["left  75%"].get_images()[1].get_array(), [[1, 0]])
    star = panels["star  25%"].get_images()[1]
    np.testing.assert_allclose(star.get_array(), [[0.2 / 0.6, 0]])
    np.testing.assert_allclose(star.get_alpha(), [[0.85 * (1 / 3) ** 0.5, 0]])
    assert star.get_clim() == (0, 1)
    [scale] = [axis for axis in figure.axes if axis.get_xlabel()]
    assert [tick.get_text() for tick in scale.get_xticklabels()][::2] == ["0", "75%"]


def test_more_mass_is_darker_in_grey():
    red, green, blue, _ = COLOURS(np.linspace(0, 1, 256)).T
    assert (np.diff(0.299 * red + 0.587 * green + 0.114 * blue) <= 0).all()


def test_a_grid_lies_where_the_processor_looked():
    area = (20, 0, 60, 40)
    panel = titled(draw_words(alignment(SMALL.plan, area=area), PICTURE))["left  75%"]
    assert panel.get_images()[0].get_extent() == [0, 80, 40, 0]
    assert panel.get_images()[1].get_extent() == [20, 60, 40, 0]
    assert panel.get_xlim() == (0, 80)


def test_the_best_three_regions_are_boxes():
    plan = [[0.1, 0.1], [0.1, 0.1], [0.1, 0.4], [0.1, 0.02], [0.1, 0.05]]
    panel = titled(draw_words(alignment(plan, ["star"], grid=None, area=None, boxes=BOXES), PICTURE))["star  85%"]
    outlines = [each for each in panel.patches if each.get_y() < 40 and each.get_edgecolor()[3] > 0]
    drawn = [(each.get_x(), each.get_y(), each.get_width(), each.get_height()) for each in outlines]
    assert drawn == [(60, 0, 20, 9), (0, 0, 20, 20), (30, 10, 40, 30)]  # the best one last, above the others
    widths, opacities = [each.get_linewidth() for each in outlines], [each.get_alpha() for each in outlines]
    assert widths == pytest.approx([0.8 + 2.2 * share for share in (0.05 / 0.4, 0.25, 1)])
    assert opacities == sorted(opacities)
    assert [text.get_text() for text in panel.texts] == ["60%"]
    assert panel.texts[0].get_position() == (30, 10)


def test_faint_regions_are_not_drawn():
    plan = [[0.1, 0.9], [0.1, 0.02], [0.1, 0.02], [0.1, 0.02], [0.1, 0.04]]
    panel = titled(draw_words(alignment(plan, ["star"], grid=None, area=None, boxes=BOXES)))["star  10%"]
    assert not panel.texts


def test_regions_of_a_model(scenes_model, processor):
    config = tiny_config(vision_config=REGIONS, text_config=scenes_model.config.text_config.to_dict())
    figure = explain(
        OmitModel(config), processor, sentence="a star", regions=np.ones((4, 10)), boxes=BOXES, size=(80, 40)
    )
    outlines = {patch.get_bbox().extents.tobytes() for patch in figure.axes[0].patches}
    assert {box.tobytes() for box in BOXES} <= outlines


def test_regions_without_boxes():
    with pytest.raises(ValueError, match="The boxes of the regions are not known"):
        draw_words(alignment(SMALL.plan, grid=None, area=None), PICTURE)


def test_without_transport_there_is_no_number_and_no_bar(scenes_model, processor):
    figure = explain(scenes_model, processor, PICTURE.resize((96, 64)), "a red star", matching="maxsim")
    assert [axis.get_title() for axis in figure.axes][1:4] == ["a", "red", "star"]
    assert not any(axis.patches for axis in figure.axes)


def test_a_large_picture_is_drawn_no_larger_than_it_is_seen():
    large = alignment(SMALL.plan, area=(0, 0, 4000, 2000))
    large.width, large.height = 4000, 2000
    for axis in draw_words(large, PICTURE.resize((4000, 2000))).axes[:2]:
        assert axis.get_images()[0].get_size() == (400, 800)
        assert axis.get_images()[0].get_extent() == [0, 4000, 2000, 0]


@pytest.mark.parametrize("draw", [draw_words, draw_plan, twice])
def test_another_picture_than_the_aligned_one(draw):
    with pytest.raises(ValueError, match="The picture has 40 x 80 pixels, and the aligned one 80 x 40"):
        draw(SMALL, PICTURE.rotate(90, expand=True))


def test_unknown_words_are_called_so():
    strange = alignment(SMALL.plan)
    strange.known[1] = False
    assert "star (unknown)  25%" in titled(draw_words(strange, PICTURE))


@pytest.mark.parametrize("size", [(96, 96), (900, 60), (60, 900)])
@pytest.mark.parametrize(
    "draw", [draw_words, draw_plan, lambda *given: draw_comparison([given[0]] * 2, "ab", given[1])]
)
def test_long_sentences_and_long_pictures_are_legible(draw, size):
    words = ["$5", "a", "incomprehensibilities", "of", "$_$", *["otherwise"] * 25]
    plan = np.random.default_rng(0).dirichlet(np.ones(31 * 50)).reshape(50, 31)
    long = alignment(plan, words, grid=(7, 7), area=(0, 0, *size))
    long.width, long.height = size
    figure = draw(long, Image.new("RGB", size, "teal"))
    no_overlap(figure)
    assert figure.get_size_inches()[0] < 15


def test_a_text_is_made_smaller_and_then_cut():
    assert fitted("star", 1.6) == ("star", 10)
    text, size = fitted("incomprehensible", 1.2)
    assert text == "incomprehensible"
    assert 6.5 <= size < 10
    text, size = fitted("incomprehensibilities" * 2, 1.2, ending="  75%")
    assert size == 6.5
    assert text.startswith("incompr")
    assert text.endswith("…  75%")


# ---- the plan


def blocks(figure) -> list:
    """Axes of the matrix: their cells, where they have colours."""
    return [
        axis
        for axis in figure.axes
        if axis.get_images() and not axis.get_xlabel() and axis.get_images()[0].get_clim() == (0, 1)
    ]


def texts_of(axes) -> list[str]:
    return [text.get_text() for axis in axes for text in axis.texts]


def test_the_plan_has_its_dustbins_apart():
    plan = [[0.06, 0.04, 0.1], [0.1, 0.3, 0.0], [0.04, 0.06, 0.3]]
    figure = draw_plan(alignment(plan), PICTURE)
    corner, image_dustbin, text_dustbin, local = blocks(figure)
    for axis, expected in (
        (corner, [[0.06]]),
        (image_dustbin, [[0.04, 0.1]]),
        (text_dustbin, [[0.1], [0.04]]),
        (local, [[0.3, 0.0], [0.06, 0.3]]),
    ):
        np.testing.assert_allclose(axis.get_images()[0].get_array(), np.array(expected) / 0.3)
    assert local.get_position().x0 > text_dustbin.get_position().x1
    assert local.get_position().y1 < image_dustbin.get_position().y0
    assert [text for text in texts_of([local]) if text] == ["30.0", "6.0", "30.0"]
    assert texts_of([corner, image_dustbin]) == ["6.0", "text dustbin", "4.0", "10.0", "left", "star"]
    assert {"image dustbin", "row 1, col 1", "row 1, col 2"} <= set(texts_of(figure.axes))


def test_the_marginals_are_ticks_on_bars_of_the_mass():
    figure = draw_plan(alignment([[0.06, 0.04, 0.1], [0.1, 0.3, 0.0], [0.04, 0.06, 0.3]]))
    beside = [axis for axis in figure.axes if axis.lines]
    rows, columns = beside[:2], beside[2:]
    drawn = [patch.get_width() for axis in rows for patch in axis.patches]
    np.testing.assert_allclose(drawn, 0.65 * np.array([0.2, 0.4, 0.4]) / 0.4)
    ticks = [line.get_xdata()[0] for axis in rows for line in axis.lines]
    np.testing.assert_allclose(ticks, 0.65 / 3 / 0.4)
    drawn = [patch.get_height() for axis in columns for patch in axis.patches]
    np.testing.assert_allclose(drawn, 0.65 * np.array([0.2, 0.4, 0.4]) / 0.4)
    assert [line.get_ydata()[0] for axis in columns for line in axis.lines] == pytest.approx(drawn)
    assert texts_of(rows) == ["20.0", "40.0", "40.0"]


def test_of_many_fragments_the_others_are_added_up():
    plan = np.random.default_rng(0).dirichlet(np.ones(37 * 3)).reshape(37, 3)
    figure = draw_plan(alignment(plan, grid=(6, 6)), PICTURE, fragments=5)
    shown, others = chosen_fragments(alignment(plan).mass, 5)
    local = blocks(figure)[3].get_images()[0].get_array()
    np.testing.assert_allclose(local * plan[[0, *shown + 1]].max(), plan[1 + shown, 1:])
    summed = [f"{100 * plan[1 + others, column].sum():.1f}" for column in range(3)]
    assert [text for text in texts_of(figure.axes) if text in summed] == summed
    assert f"{100 * plan[1 + others].sum():.1f} of {100 * 31 / 37:.1f}" in texts_of(figure.axes)
    assert "31 others" in texts_of(figure.axes)


def test_which_fragments_are_shown():
    mass = np.array([[0.0, 0.3], [0.1, 0.0], [0.5, 0.4], [0.0, 0.6], [0.4, 0.0]])
    shown, others = chosen_fragments(mass, 3)
    assert (shown.tolist(), others.tolist()) == ([2, 4, 3], [0, 1])
    shown, others = chosen_fragments(mass, 4)  # a sum of one is no shorter
    assert (shown.tolist(), others.tolist()) == ([2, 4, 1, 3, 0], [])


def test_thumbnails_show_the_fragments():
    picture = Image.new("RGB", (80, 40), "black")
    picture.paste((255, 255, 255), (40, 0, 80, 40))
    figure = draw_plan(SMALL, picture)
    seen = [
        (axis.get_xlim(), axis.get_ylim())
        for axis in figure.axes
        if axis.get_images() and axis.get_images()[0].get_array().ndim == 3
    ]
    assert seen == [((0, 40), (40, 0)), ((40, 80), (40, 0))]


def test_a_plan_without_dustbins_and_none_at_all(scenes_model, processor):
    full = word_alignment(scenes_model, processor, PICTURE.resize((96, 64)), "a star", matching="ot")
    assert "image dustbin" not in texts_of(draw_plan(full).axes)
    chosen = word_alignment(scenes_model, processor, PICTURE.resize((96, 64)), "a star", matching="maxsim")
    with pytest.raises(ValueError, match="matching is 'maxsim', which has no transport plan"):
        draw_plan(chosen)
    with pytest.raises(ValueError, match="fragments is 0; expected at least 1"):
        draw_plan(SMALL, fragments=0)


# ---- side by side


def test_rows_are_methods_and_columns_are_words():
    other = alignment([[0.1, 0.0, 0.0], [0.05, 0.1, 0.4], [0.05, 0.3, 0.0]])
    figure = draw_comparison([SMALL, other], ["omit", "other"], PICTURE)
    panels = [axis for axis in figure.axes if axis.get_title()]
    titles = [axis.get_title() for axis in panels]
    assert titles == ["omit  0.25", "left  75%", "star  25%", "other  0.25", "left  100%", "star  100%"]
    left, tops = ([round(getattr(axis.get_position(), side), 6) for axis in panels] for side in ("x0", "y1"))
    assert left[:3] == left[3:]
    assert len(set(left)) == 3
    assert len(set(tops[:3])) == len(set(tops[3:])) == 1
    assert tops[0] > tops[3]
    np.testing.assert_allclose(panels[1].get_images()[1].get_array(), [[0.75, 0]])  # of the star's 100 % below
    np.testing.assert_allclose(panels[5].get_images()[1].get_array(), [[1, 0]])


def test_words_are_those_of_the_first_method():
    other = alignment(np.full((3, 4), 1 / 12), ["Left", ".", "planet"])
    titles = list(titled(draw_comparison([SMALL, other], ["a", "b"], PICTURE)))
    assert titles[3:] == ["b  0.25", "Left  67%", "star: no such word"]


def test_comparisons_that_make_no_sense():
    with pytest.raises(ValueError, match="There are 1 alignments and 2 names; expected as many, from one"):
        draw_comparison([SMALL], ["a", "b"])
    with pytest.raises(ValueError, match="expected as many, from one"):
        draw_comparison([], [])
    other = alignment(SMALL.plan)
    other.width = 70
    with pytest.raises(ValueError, match=r"of the sizes \[\(70, 40\), \(80, 40\)\]; expected those of one picture"):
        draw_comparison([SMALL, other], ["a", "b"])


# ---- files


@pytest.mark.parametrize(("name", "begin"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_formats(tmp_path, name, begin):
    save_figure(draw_words(SMALL, PICTURE), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_figure_that_cannot_be_drawn_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_text("before")

    def savefig(self, partial, **options):
        partial.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="disk full"):
        save_figure(Figure(), file)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a.png": "before"}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.gif", ValueError, "expected a name that ends in one of .png, .svg, .pdf"),
        ("a", ValueError, "expected a name that ends in one of"),
        ("none/a.png", FileNotFoundError, "There is no folder .*none for a.png; make it first"),
        ("folder.png", IsADirectoryError, "is a folder; expected the name of a file"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, error, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error, match=message):
        check_figure_file(tmp_path / name)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "omit_hf.visualization")
    with pytest.raises(ImportError, match=r"omit_hf.visualization needs matplotlib: pip install 'omit-hf\[plot\]'"):
        importlib.import_module("omit_hf.visualization")
