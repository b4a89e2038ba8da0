import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from omit_hf.comparison.plots import cost, curve, plots, save_plots, style_of
from omit_hf.comparison.spread import spread
from omit_hf.modeling.matching_omit import MATCHING


def found(fields, rows):
    """A summary of made-up figures: labels, RSUM of each seed, and the scoring time."""
    made = [
        {
            "labels": labels,
            "seeds": list(range(len(values))),
            "metrics": {name: vars(spread(values)) for name in ("rsum", "i2t_r1", "t2i_r1")} if values else {},
            "scoring_seconds_per_million": time,
        }
        for labels, values, time in rows
    ]
    return {"grid": "g", "fields": fields, "rows": made}


LAMBDA = found(
    {"matching": ["omit", "ot", "mean"], "regularization": [0.5, 0.005, 0.05]},
    [
        ({"matching": "omit", "regularization": 0.5}, [1.0, 3.0], 1.0),
        ({"matching": "omit", "regularization": 0.005}, [4.0, 8.0], 1.0),
        ({"matching": "omit", "regularization": 0.05}, [10.0, 12.0], 1.0),
        ({"matching": "ot", "regularization": 0.05}, [7.0], 1.0),
        ({"matching": "ot", "regularization": 0.5}, [], None),
        ({"matching": "mean"}, [5.0, 7.0], 1.0),
    ],
)
METHODS_GRID = found(
    {"matching": ["omit", "mean", "ot"]},
    [({"matching": "omit"}, [1.0, 3.0], 40.0), ({"matching": "mean"}, [5.0], 0.5), ({"matching": "ot"}, [], None)],
)


def test_a_curve_has_a_line_a_method_and_a_band_of_a_deviation():
    figure = curve(LAMBDA, "regularization")
    assert [panel.get_ylabel() for panel in figure.axes] == ["i2t R@1", "t2i R@1", "RSUM"]
    panel = figure.axes[2]
    assert (panel.get_xscale(), panel.get_xlabel()) == ("log", "λ")
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert lines == {
        "omit": [[0.005, 6.0], [0.05, 11.0], [0.5, 2.0]],
        "ot": [[0.05, 7.0]],
        "mean": [[0.005, 6.0], [0.5, 6.0]],  # which has no λ
    }
    band = panel.collections[0].get_paths()[0].vertices
    at = {x: sorted({round(y, 6) for x_, y in band if np.isclose(x_, x)}) for x in (0.05, 0.5)}
    root = 2**0.5
    assert at[0.05] == pytest.approx([11 - root, 11 + root])
    assert at[0.5] == pytest.approx([2 - root, 2 + root])
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["omit", "ot", "mean"]


def test_a_narrow_field_has_a_plain_axis():
    rows = [({"caption_noise": value}, [1.0, 2.0], None) for value in (0.0, 0.2, 0.4)]
    panel = curve(found({"caption_noise": [0.0, 0.2, 0.4]}, rows), "caption_noise", ("rsum",)).axes[0]
    assert panel.get_xscale() == "linear"
    assert [each.get_text() for each in panel.get_xticklabels()] == ["0", "0.2", "0.4"]


def test_cost_against_quality():
    panel = cost(METHODS_GRID).axes[0]
    assert panel.get_xscale() == "log"
    points = [tuple(container.lines[0].get_xydata()[0]) for container in panel.containers]
    assert points == [(40.0, 2.0), (0.5, 5.0)]
    [bar] = panel.containers[0].lines[2]
    assert bar.get_segments()[0][:, 1] == pytest.approx([2 - 2**0.5, 2 + 2**0.5])
    assert [text.get_text() for text in panel.texts] == ["omit", "mean"]


def test_which_plots_a_grid_gives(tmp_path):
    assert list(plots(LAMBDA)) == ["regularization"]
    assert list(plots(METHODS_GRID)) == ["cost"]
    assert plots(found({"matching": ["omit"], "marginals": ["norm", "uniform", "self_global"]}, [])) == {}
    assert plots(found({"regularization": [0.1, 0.2]}, [])) == {}  # two values make no curve
    assert plots(found({"image_flip": [True, False], "matching": ["omit"]}, [])) == {}
    nothing = found({"matching": ["omit"]}, [({"matching": "omit"}, [], None)])
    assert plots(nothing) == {}


def test_files(tmp_path):
    files = save_plots(METHODS_GRID, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g_cost.png", "g_cost.svg"]
    assert files == [tmp_path / "g_cost.png", tmp_path / "g_cost.svg"]
    assert Image.open(files[0]).width > 800
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")


def test_methods_are_told_apart_without_colours():
    styles = [style_of(method) for method in MATCHING]
    for name in ("marker", "linestyle", "color"):
        assert len({str(style[name]) for style in styles}) == len(MATCHING)


def test_without_matplotlib(tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", "import omit_hf.comparison.plots"]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert "ImportError: The plots need matplotlib: pip install 'omit-hf[plot]', or --no_plots." in result.stderr
