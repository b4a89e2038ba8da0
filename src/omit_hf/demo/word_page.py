"""The page of `omit-hf app`: where a model finds the words of a sentence in a picture."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from PIL import Image

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import EncodedPicture, WordAlignment, align_sentence, encode_picture
from omit_hf.data import load_image_text
from omit_hf.demo import data_url, message, picture_with_cells, sentence_block
from omit_hf.demo.address import Address
from omit_hf.demo.serving import LIMITS, gr, serve
from omit_hf.demo.style import SCRIPT
from omit_hf.demo.words import MOST_SHOWN
from omit_hf.hub.handler import RequestError, decoded
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.modeling.pictures_omit import rgb_picture
from omit_hf.training import data_of_model

MOST_CELLS = 1024  # of a picture; where a processor does not resize, larger ones are scaled down
EXAMPLES = 6


@dataclass
class Shown:
    """A picture on the page, and what the model made of it."""

    picture: Image.Image
    encoded: EncodedPicture


# --- the model --------------------------------------------------------------------------------------------------------


class Demo:
    """A model that aligns words with the cells of pictures.

    Args:
        name: folder or Hub id.

    Raises:
        ValueError: if the model takes regions, or its head does not align.
        OSError: if there is no such model.
    """

    def __init__(self, name: str):
        self.name = Path(name).name if Path(name).is_dir() else name
        self.model, self.processor = OmitModel.from_pretrained(name).eval(), OmitProcessor.from_pretrained(name)
        self.matching = self.model.config.matching
        if self.model.vision_encoder.input_name == "region_features":
            raise ValueError(
                f"{name} takes precomputed regions, which no upload can bring; expected a model that takes pictures. "
                "`omit-hf explain` draws the words of this one."
            )
        if not self.model.matching.aligns:
            able = ", ".join(repr(each) for each, kind in MATCHING.items() if kind.aligns)
            raise ValueError(
                f"{name} matches with {self.matching!r}, which does not align words with cells; expected a model that "
                f"matches with one of {able}."
            )
        self.mean = MATCHING["mean"](self.model.config)
        self.examples = scenes_examples(name)

    def open(self, file: str | Path) -> Shown:
        """An uploaded picture.

        Raises:
            ValueError: if it is no picture, or too large.
        """
        try:
            if Path(file).stat().st_size > LIMITS.image_bytes:
                raise RequestError(f"The picture is too large; expected at most {LIMITS.image_bytes} bytes.")
            return self.show(decoded(Path(file).read_bytes(), "The picture", LIMITS))
        except RequestError as error:
            raise ValueError(str(error)) from error

    def show(self, picture: Image.Image) -> Shown:
        """A picture, encoded once for all sentences."""
        picture = rgb_picture(picture)
        if not self.processor.image_processor.do_resize:
            picture.thumbnail((MOST_SHOWN, MOST_SHOWN))
        encoded = encode_picture(self.model, self.processor, picture)
        cells = encoded.features.embeds.shape[1]
        if cells > MOST_CELLS and not self.processor.image_processor.do_resize:
            scale = (MOST_CELLS / cells) ** 0.5
            picture = picture.resize([max(1, int(scale * side)) for side in picture.size])
            encoded = encode_picture(self.model, self.processor, picture)
        return Shown(picture, encoded)

    def align(self, shown: Shown, sentence: str) -> WordAlignment:
        if len(sentence) > LIMITS.characters:
            raise ValueError(
                f"The sentence has {len(sentence)} characters; expected at most {LIMITS.characters}. Shorten it."
            )
        return align_sentence(self.model, self.processor, shown.encoded, sentence)

    @torch.inference_mode()
    def mean_similarity(self, shown: Shown, sentence: str) -> float:
        """Cosine of the mean-pooled fragments of the same features."""
        text = self.model.get_text_features(**self.processor(text=sentence).to(self.model.device))
        return self.mean.tiled_similarity(shown.encoded.features, text).item()


def scenes_examples(name: str) -> list[tuple[Image.Image, str]]:
    """Pictures of the test split with a caption each, where the model was trained on Scenes, which are generated."""
    try:
        data, options = data_of_model(name)
    except OSError:  # no recipe beside the model
        return []
    if data != "scenes":
        return []
    rows = load_image_text(data, **{**options, "only": ["test"], "test_size": EXAMPLES})["test"]
    return [(row["image"], row["captions"][0]) for row in rows]


# --- what is drawn ----------------------------------------------------------------------------------------------------
# Whatever comes from the visitor or the tokenizer goes through `escape`.


def stage(shown: Shown) -> str:
    return picture_with_cells(shown.encoded.frame, data_url(shown.picture))


def results(alignments: list[WordAlignment], sentences: list[str], means: list[float]) -> str:
    """Every sentence's words and dustbins, and the table that compares them."""
    titles = ["Words", "Words of the other sentence"] if len(sentences) > 1 else ["Words"]
    blocks = [sentence_block(*each) for each in zip(titles, alignments, sentences, strict=True)]
    return "".join(blocks) + comparison(alignments, sentences, means)


def comparison(alignments: list[WordAlignment], sentences: list[str], means: list[float]) -> str:
    """A row a sentence, a column a method; the better of two is marked."""
    matching = alignments[0].matching
    columns = [[each.similarity for each in alignments], means]

    def cell(name: str, values: list[float], row: int) -> str:
        best = len(values) > 1 and values[row] == max(values) and values[row] > min(values)
        mark = '<span class="better">better</span> ' if best else ""
        return f'<td data-method="{escape(name)}" data-value="{values[row]:.6f}">{mark}{values[row]:.3f}</td>'

    names = [matching, "mean"]
    rows = "".join(
        f'<tr><th scope="row">{escape(sentence)}</th>'
        + "".join(cell(name, values, row) for name, values in zip(names, columns, strict=True))
        + "</tr>"
        for row, sentence in enumerate(sentences)
    )
    heads = "".join(f'<th scope="col"><code>{escape(name)}</code></th>' for name in names)
    summary = "; ".join(
        f"“{sentence}” scores {each.similarity:.3f}" for each, sentence in zip(alignments, sentences, strict=True)
    )
    return (
        f'<table class="compare" data-summary="{escape(summary)}."><thead><tr><th scope="col">How well it fits</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="note"><code>{escape(matching)}</code> matches word by word. <code>mean</code> is the cosine of the '
        "averages of the same fragments, for which this model was not trained. Compare within a column only.</p>"
    )


# --- the page ---------------------------------------------------------------------------------------------------------

CHOOSE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-example]');
  if (button) trigger('select', {index: Number(button.dataset.example)});
});
"""

CSS = """
.strip { display: grid; grid-template-columns: repeat(6, 1fr); gap: 8px; }
.strip button { padding: 0; border: 1px solid var(--border-color-primary); border-radius: 8px; overflow: hidden;
  cursor: pointer; aspect-ratio: 1; }
.strip button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.strip img { width: 100%; height: 100%; object-fit: cover; display: block; margin: 0; }
.compare { width: 100%; border-collapse: collapse; font-size: 14px; margin: 0 0 8px; table-layout: fixed; }
.gradio-container .compare, .compare * { border: 0 !important; }
.gradio-container .compare :is(th, td) { text-align: right; padding: 6px 0; border: 0; font-weight: 400;
  font-variant-numeric: tabular-nums; vertical-align: baseline; }
.gradio-container .compare th:first-child { text-align: left; width: 56%; overflow-wrap: anywhere; }
.better { font-size: 12px; color: var(--color-accent); margin-right: 8px; }
@media (max-width: 760px) {
  #page > .column { display: contents; }
  #stage { --tallest: 34vh; position: sticky; top: 0; z-index: 5; padding: 6px 0;
    background: var(--body-background-fill); }
  .gradio-container .compare th:first-child { width: 44%; }
}
"""


def page(demo: Demo) -> gr.Blocks:
    """The page; nothing of it is open to Gradio's clients, only to the browser."""

    def update(shown: Shown | None, *sentences: str) -> str:
        sentences = [each.strip() for each in sentences if each and each.strip()]
        if shown is None or not sentences:
            return message("Type a sentence." if shown else "Choose or upload a picture.")
        try:
            alignments = [demo.align(shown, each) for each in sentences]
        except ValueError as error:
            return message(str(error), "error")
        return results(alignments, sentences, [demo.mean_similarity(shown, each) for each in sentences])

    def upload(file: str, *sentences: str) -> tuple:
        try:
            shown = demo.open(file)
        except (ValueError, OSError) as error:
            return None, message(str(error), "error"), update(None)
        return shown, stage(shown), update(shown, *sentences)

    def example(number: int) -> tuple:
        picture, sentence = demo.examples[number]
        other = demo.examples[number - 1][1]  # of another picture
        shown = demo.show(picture)
        return shown, stage(shown), update(shown, sentence, other), sentence, other

    def choose(event: gr.EventData) -> tuple:
        return example(int(event.index) % len(demo.examples))

    with gr.Blocks(
        title="Where a model finds your words", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as blocks:
        shown = gr.State(None, time_to_live=3600)
        gr.HTML(
            f"<h1>Where does it find your words?</h1><p><code>{escape(demo.name)}</code> matches every word of a "
            "sentence with cells of the picture. Point at a word, or reach it with Tab.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="page"):
            with gr.Column(min_width=320):
                picture = gr.HTML(message("Choose or upload a picture."), elem_id="stage")
                if demo.examples:
                    pictures = "".join(
                        f'<button type="button" data-example="{number}" aria-label="Example {number + 1}: '
                        f'{escape(sentence)}"><img alt="" src="{data_url(each, 128)}"></button>'
                        for number, (each, sentence) in enumerate(demo.examples)
                    )
                    strip = f'<div class="strip" role="group" aria-label="Examples">{pictures}</div>'
                    examples = gr.HTML(strip, elem_id="examples", js_on_load=CHOOSE)
                button = gr.UploadButton("Upload a picture", file_types=["image"], elem_id="upload", size="md")
            with gr.Column(min_width=320):
                limit = {"max_length": LIMITS.characters, "lines": 1, "max_lines": 4, "container": True}
                sentence = gr.Textbox(label="Sentence", elem_id="sentence", **limit)
                other = gr.Textbox(
                    label="Another sentence, to compare",
                    elem_id="other",
                    placeholder="Change a word, for instance",
                    **limit,
                )
                found = gr.HTML(message("Type a sentence."), elem_id="results", js_on_load=SCRIPT)

        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "model"}
        # One request of a visitor at a time, and after it the last that was typed meanwhile: what a debounce is for,
        # without its delay.
        gr.on(
            [sentence.change, other.change],  # Gradio's input event leaves out Backspace
            update,
            [shown, sentence, other],
            found,
            trigger_mode="always_last",
            concurrency_limit=1,
            **quiet,
        )
        button.upload(upload, [button, sentence, other], [shown, picture, found], **quiet)
        if demo.examples:
            everything = [shown, picture, found, sentence, other]
            examples.select(choose, None, everything, **quiet)
            blocks.load(lambda: example(0), None, everything, **quiet)
    return blocks


def launch(demo: Demo, address: Address, **options) -> gr.Blocks:
    """Serve the page; `options` are further ones of Gradio's `launch`."""
    return serve(page(demo), address, CSS, **options)
