"""Transport plans as pictures."""

from collections.abc import Sequence

import numpy as np
import torch

from omit_hf.modeling.pictures_omit import rgb_picture

try:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise ImportError("omit_hf.visualization needs matplotlib: pip install 'omit-hf[plot]'.") from error

COLUMNS = 8  # panels side by side


@torch.inference_mode()
def explain(model, processor, picture, sentence: str) -> Figure:
    """Draw where a model moves the mass of each word of a sentence.

    Args:
        model: `OmitModel` with a head that transports.
        processor: its `OmitProcessor`.
        picture: a PIL image.
        sentence: a caption.

    Returns:
        A matplotlib figure; see `draw_plan`.

    Raises:
        ValueError: if the head does not transport, the sentence has no word that the model matches, or the cells are no
            grid.
    """
    picture = rgb_picture(picture)
    inputs = processor(images=picture, text=sentence).to(model.device)
    was_training = model.training
    model.eval()
    try:
        out = model(**inputs, output_transport=True)
    finally:
        model.train(was_training)
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    valid = out.text_mask[0]
    plan = out.transport_plan[0, 0]
    dustbins = plan.shape[-1] - valid.shape[0]  # 1 with dustbins, 0 without
    kept = torch.cat([valid.new_ones(dustbins), valid])
    if not valid.any():
        raise ValueError(f"The sentence {sentence!r} has no word that the model matches; expected at least one.")
    states = out.vision_model_output.last_hidden_state
    if states.ndim == 4:
        grid = tuple(states.shape[-2:])
    else:
        grid = _grid(out.image_mask.shape[1], tuple(inputs["pixel_values"].shape[-2:]))
    words = [token for token, is_valid in zip(tokens, valid.tolist(), strict=True) if is_valid]
    return draw_plan(picture, words, plan[:, kept].cpu().numpy(), grid, out.similarity.item())


def _grid(cells: int, pixels: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of square patches that cover an image."""
    height, width = pixels
    rows = max(1, round((cells * height / width) ** 0.5))
    if cells % rows or not 0.5 < (cells / rows) / rows / (width / height) < 2:
        raise ValueError(f"The image of {height} x {width} pixels has {cells} cells, which are no grid of square ones.")
    return rows, cells // rows


def draw_plan(
    picture, words: Sequence[str], plan: np.ndarray, grid: tuple[int, int], similarity: float | None = None
) -> Figure:
    """The picture, then a panel a word: bright where the cells are that the word's mass comes from.

    The bar under a panel, and the number, tell how much of the word's mass comes from cells; the rest comes from the
    image's dustbin. All panels share one scale, so a word without a counterpart stays dark.

    Args:
        picture: a PIL image.
        words: L words.
        plan: [K + 1, L + 1] with dustbins first, or [K, L].
        grid: rows and columns of cells, K in all.
        similarity: shown above the picture.

    Raises:
        ValueError: if the plan does not fit the words and the grid.
    """
    rows, columns = grid
    has_dustbins = plan.shape == (rows * columns + 1, len(words) + 1)
    if not has_dustbins and plan.shape != (rows * columns, len(words)):
        raise ValueError(
            f"plan has shape {plan.shape}; expected {(rows * columns + 1, len(words) + 1)} with dustbins, or "
            f"{(rows * columns, len(words))} without, for {len(words)} words and {rows} x {columns} cells."
        )
    if has_dustbins:
        plan = plan[:, 1:]
    share = plan / plan.sum(axis=0, keepdims=True)  # of each word's mass
    cells = share[1:] if has_dustbins else share
    brightest = max(float(cells.max()), 1e-12)

    panels = len(words) + 1
    width = min(panels, COLUMNS)
    height = -(-panels // width)
    figure = Figure(figsize=(1.75 * width, 2.15 * height), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).ravel()
    extent = (0, picture.width, picture.height, 0)
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(picture, extent=extent)
    axes[0].set_title("image" if similarity is None else f"similarity {similarity:.2f}", fontsize=10)
    grey = picture.convert("L")
    for axis, word, column in zip(axes[1:], words, cells.T, strict=False):
        axis.imshow(grey, extent=extent, cmap="gray", vmin=-250, vmax=300)
        heat = column.reshape(rows, columns) / brightest
        axis.imshow(
            heat, extent=extent, cmap="viridis", vmin=0, vmax=1, alpha=0.85 * heat**0.5, interpolation="nearest"
        )
        matched = float(column.sum())
        axis.set_title(f"{word}  {matched:.0%}", fontsize=10, color="black" if matched >= 0.5 else "0.45")
        axis.add_patch(_bar(picture, 1, "0.85"))
        axis.add_patch(_bar(picture, matched, "#31688e"))
        axis.set_ylim(picture.height * 1.09, 0)
    return figure


def _bar(picture, share: float, color: str) -> Rectangle:
    return Rectangle(
        (0, picture.height * 1.03),
        picture.width * share,
        picture.height * 0.05,
        color=color,
        linewidth=0,
        clip_on=False,
    )
