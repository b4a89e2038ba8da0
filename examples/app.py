"""A page in the browser that shows where a model finds the words of a sentence in a picture, with Gradio.

    pip install -e ".[demo]"
    python examples/app.py outputs/scenes
    MODEL=user/omit-scenes python examples/app.py --port 8000

Choose or upload a picture and type: every word is a button, and pointing at it, or reaching it with Tab, lights the
cells that its mass comes from. Beside it is what went to the dustbins, a second sentence to compare with, and what
`mean`, one vector a side of the same features, says of both. The page is for this machine alone unless --host or
--share say otherwise, and sends nothing elsewhere.

As a Space: this file as app.py, a requirements.txt that names omit-hf[demo], and the variable MODEL with the id of the
model.
"""

import base64
import io
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import torch
from PIL import Image

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import EncodedPicture, WordAlignment, align_sentence, encode_picture
from omit_hf.command_line import CommandParser, expanded, run_script
from omit_hf.data import load_image_text
from omit_hf.hub.handler import Limits, RequestError, decoded
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.modeling.pictures_omit import rgb_picture
from omit_hf.training import data_of_model

LIMITS = Limits(characters=200)  # of a sentence
MOST_CELLS = 1024  # of a picture; where a processor does not resize, larger ones are scaled down
MOST_SHOWN = 768  # pixels of the picture's longer side on the page
EXAMPLES = 6
MOST_WAITING = 32  # requests in the queue, a second each or less; whoever comes then reads that the page is busy


@dataclass
class Arguments:
    host: str | None = field(
        default=None, metadata={"help": "Address to listen at, 0.0.0.0 for all; by default this machine alone."}
    )
    port: int | None = field(default=None, metadata={"help": "By default the first free one from 7860."})
    share: bool = field(default=False, metadata={"help": "Make a public link through Gradio's servers."})


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
                "examples/explain.py draws the words of this one."
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
    """The picture with a cell over each fragment, whose opacity the page sets; what the model does not see is dim."""
    frame = shown.encoded.frame
    width, height, (x0, y0, x1, y1) = frame["width"], frame["height"], frame["area"]
    blank = WordAlignment("", 0, [], [], *[None] * 2, **frame)
    cells = "".join(
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}"/>'
        for left, top, right, bottom in blank.places()
    )
    unseen = f"M0 0H{width}V{height}H0Z M{x0:.2f} {y0:.2f}H{x1:.2f}V{y1:.2f}H{x0:.2f}Z"
    return (
        f'<svg viewBox="0 0 {width} {height}" style="--sides: {width / height:.4f}" role="img" '
        f'aria-label="The picture, {width} by {height} pixels">'
        f'<image href="{data_url(shown.picture)}" width="{width}" height="{height}"/>'
        f'<path class="unseen" fill-rule="evenodd" d="{unseen}"/><g class="cells">{cells}</g></svg>'
        '<p class="status" role="status" aria-live="polite"></p>'
    )


def data_url(picture: Image.Image, most: int = MOST_SHOWN) -> str:
    picture = picture.copy()
    picture.thumbnail((most, most))
    file, kind = io.BytesIO(), "png" if max(picture.size) <= 128 else "jpeg"
    picture.save(file, kind, **({} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def results(alignments: list[WordAlignment], sentences: list[str], means: list[float]) -> str:
    """Every sentence's words and dustbins, and the table that compares them."""
    titles = ["Words", "Words of the other sentence"] if len(sentences) > 1 else ["Words"]
    blocks = [block(*each) for each in zip(titles, alignments, sentences, strict=True)]
    return "".join(blocks) + comparison(alignments, sentences, means)


def block(title: str, alignment: WordAlignment, sentence: str) -> str:
    """A sentence: its score, a button a word, and what its dustbins took."""
    highest = max(float(alignment.mass.max()), 1e-12)
    words = "".join(word_button(alignment, number, highest) for number in range(len(alignment.words)))
    if alignment.has_dustbins:
        of_words, of_picture, of_cells = dustbin_shares(alignment)
        where = button(
            "where",
            "show which cells",
            f"Cells in the dustbin: {of_picture:.0%} of the picture's mass. Lit cells found no word.",
            of_cells,
            1.0,
        )
        dustbins = (
            f'To the dustbins went <b data-of="words" data-share="{of_words:.6f}">{of_words:.0%}</b> of the words’ '
            f'mass and <b data-of="picture" data-share="{of_picture:.6f}">{of_picture:.0%}</b> of the picture’s: '
            f"{where}."
        )
    else:
        dustbins = f"This model matches with <code>{escape(alignment.matching)}</code>, which has no dustbins."
    return (
        f'<section class="sentence" aria-label="{escape(sentence)}"><h2>{title}'
        f'<output data-similarity="{alignment.similarity:.6f}">score {alignment.similarity:.3f}</output></h2>'
        f'<div class="words" role="group" aria-label="Words">{words}</div><p class="dustbins">{dustbins}</p></section>'
    )


def word_button(alignment: WordAlignment, number: int, highest: float) -> str:
    word, mass, matched = alignment.words[number], alignment.mass[:, number], float(alignment.matched[number])
    row, column = divmod(int(mass.argmax()), alignment.grid[1])
    place = f"row {row + 1}, column {column + 1}"
    name = f'<span class="name">{escape(word)}</span>'
    tells = f"“{word}”: most of its mass, {mass.max():.0%}, comes from {place}"
    label = f"{word}, most from {place}"
    if alignment.has_dustbins:
        name += f'<span class="bar"><i style="width:{matched:.1%}"></i></span><span class="share">{matched:.0%}</span>'
        tells = f"“{word}”: {matched:.0%} of its mass comes from the picture, {mass.max():.0%} from {place} alone"
        tells += f"; {1 - matched:.0%} from the dustbin"
        label = f"{word}, {matched:.0%} from the picture"
    if not alignment.known[number]:
        tells, label = f"{tells}. The model does not know this word", f"{label}, not in the vocabulary"
    kind = "word" if alignment.known[number] else "word unknown"
    return button(kind, name, f"{tells}.", mass, highest, label, matched if alignment.has_dustbins else None)


def button(kind: str, content: str, tells: str, shares, highest: float, label: str = "", matched=None) -> str:
    """A button that lights the cells by their shares, of which `highest` is the brightest."""
    numbers = " ".join(f"{share:.4f}".rstrip("0").rstrip(".") for share in shares)
    label = f' aria-label="{escape(label)}"' if label else ""
    matched = "" if matched is None else f' data-matched="{matched:.6f}"'
    return (
        f'<button type="button" class="{kind}" aria-pressed="false"{label}{matched} data-tells="{escape(tells)}" '
        f'data-highest="{highest:.6f}" data-shares="{numbers}">{content}</button>'
    )


def dustbin_shares(alignment: WordAlignment) -> tuple:
    """Of a plan with dustbins: the share of all words' mass that is the image dustbin's; the share of all cells' mass
    that goes to the text dustbin; and that of each cell's own, [K]."""
    plan = alignment.plan
    of_cells = plan[1:, 0] / plan[1:].sum(axis=1).clip(1e-12)
    return float(plan[0, 1:].sum() / plan[:, 1:].sum()), float(plan[1:, 0].sum() / plan[1:].sum()), of_cells


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


def message(text: str, kind: str = "hint") -> str:
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="{kind}"{role}>{escape(text)}</p>'


# --- the page ---------------------------------------------------------------------------------------------------------

SCRIPT = """
const VEIL = 0.75;
const stage = () => document.querySelector('#stage');
const buttons = () => [...element.querySelectorAll('button[data-shares]')];
const pinned = () => buttons().find(each => each.getAttribute('aria-pressed') === 'true');
const summary = () => element.querySelector('[data-summary]')?.dataset.summary ?? '';
function show(button) {
  buttons().forEach(each => each.classList.toggle('shown', each === button));
  const status = stage().querySelector('.status');
  if (status) status.textContent = button ? button.dataset.tells : summary();
  const shares = button ? button.dataset.shares.split(' ').map(Number) : [];
  stage().querySelectorAll('.cells rect').forEach((cell, number) => {
    const light = button ? Math.min(1, shares[number] / Number(button.dataset.highest)) : 1;
    cell.style.fillOpacity = (VEIL * (1 - light)).toFixed(3);
  });
}
const focused = () => buttons().find(each => each === document.activeElement);
const rest = () => show(focused() ?? pinned());
const of = event => event.target.closest('button[data-shares]');
element.addEventListener('mouseover', event => of(event) && show(of(event)));
element.addEventListener('mouseout', event => of(event) && rest());
element.addEventListener('focusin', event => of(event) && show(of(event)));
element.addEventListener('focusout', () => show(pinned()));
element.addEventListener('click', event => {
  const button = of(event);
  if (!button) return;
  const pin = button.getAttribute('aria-pressed') !== 'true';
  buttons().forEach(each => each.setAttribute('aria-pressed', pin && each === button));
  show(button);
});
watch('value', () => setTimeout(rest));
"""

CHOOSE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-example]');
  if (button) trigger('select', {index: Number(button.dataset.example)});
});
"""

CSS = """
.gradio-container { overflow: visible !important; }
.gradio-container .main { max-width: 1080px !important; margin: 0 auto; padding: 20px 24px !important; }
.gradio-container .html-container { padding: 0; }
.gradio-container .form { border: 0; box-shadow: none; background: none; gap: 10px; }
.gradio-container .form .block { padding: 0; border: 0; background: none; }
.toast-wrap { max-width: 100%; }
footer { display: none !important; }
#page { gap: 36px; }
#head h1 { font-size: 27px; font-weight: 650; letter-spacing: -.02em; margin: 0 0 4px; }
#head p, .note, .hint { color: var(--body-text-color-subdued); font-size: 14px; line-height: 1.5; margin: 0; }
#stage { --tallest: 62vh; }
#stage svg { display: block; width: min(100%, var(--tallest) * var(--sides)); margin: 0 auto; border-radius: 10px; }
#stage .cells rect { fill: #0b1020; fill-opacity: 0; transition: fill-opacity .15s; shape-rendering: crispEdges; }
#stage .unseen { fill: #0b1020; fill-opacity: .55; }
#stage .status { min-height: 3em; overflow-wrap: anywhere; margin: 8px 0 0; font-size: 14px; line-height: 1.5; }
.strip { display: grid; grid-template-columns: repeat(6, 1fr); gap: 8px; }
.strip button { padding: 0; border: 1px solid var(--border-color-primary); border-radius: 8px; overflow: hidden;
  cursor: pointer; aspect-ratio: 1; }
.strip img { width: 100%; height: 100%; object-fit: cover; display: block; margin: 0; }
.sentence { padding: 0 0 14px; margin: 0 0 14px; border-bottom: 1px solid var(--border-color-primary); }
.sentence h2 { display: flex; justify-content: space-between; gap: 16px; font-size: 14px; font-weight: 500; margin: 0;
  color: var(--body-text-color-subdued); }
.sentence output { font-variant-numeric: tabular-nums; font-weight: 600; color: var(--body-text-color); }
.words { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0 10px; }
button.word { display: grid; grid-template-columns: minmax(0, auto) auto; column-gap: 8px; align-items: baseline;
  align-content: center; cursor: pointer; min-height: 44px; max-width: 100%; padding: 5px 10px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); text-align: left; }
button.word .name { min-width: 0; font-size: 15px; font-weight: 500; overflow-wrap: anywhere; }
button.word .share { font-size: 12px; font-weight: 400; color: var(--body-text-color-subdued); text-align: right;
  font-variant-numeric: tabular-nums; }
button.word .bar { grid-row: 2; grid-column: 1 / 3; height: 3px; margin-top: 4px; border-radius: 2px; overflow: hidden;
  background: var(--border-color-primary); }
button.word .bar i { display: block; height: 100%; background: var(--color-accent); }
button.unknown { border-style: dashed; }
.gradio-container button.where { background: none; cursor: pointer; text-decoration: underline; padding: 0;
  color: var(--color-accent); font: inherit; }
button.word.shown, button.word[aria-pressed=true] { border-color: var(--color-accent);
  background: var(--color-accent-soft); }
:is(#results, .strip) button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.dustbins { font-size: 14px; line-height: 1.5; margin: 0; }
.compare { width: 100%; border-collapse: collapse; font-size: 14px; margin: 0 0 8px; table-layout: fixed; }
.gradio-container .compare, .compare * { border: 0 !important; }
.gradio-container .words button { margin: 0; }
.gradio-container .compare :is(th, td) { text-align: right; padding: 6px 0; border: 0; font-weight: 400;
  font-variant-numeric: tabular-nums; vertical-align: baseline; }
.gradio-container .compare th:first-child { text-align: left; width: 56%; overflow-wrap: anywhere; }
.better { font-size: 12px; color: var(--color-accent); margin-right: 8px; }
.error { color: #b42318; font-size: 14px; } .dark .error { color: #ff8a80; }
@media (max-width: 760px) {
  .gradio-container .main { padding: 14px 16px !important; }
  #page { flex-direction: column; flex-wrap: nowrap; gap: 14px; }
  #page > .column { display: contents; }
  #head h1 { font-size: 22px; }
  #stage { --tallest: 34vh; position: sticky; top: 0; z-index: 5; padding: 6px 0;
    background: var(--body-background-fill); }
  .gradio-container .compare th:first-child { width: 44%; }
  #stage .status { font-size: 13px; margin: 4px 0 0; }
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


def launch(demo: Demo, arguments: Arguments, **options) -> gr.Blocks:
    """Serve the page; `options` are further ones of Gradio's `launch`."""
    blocks = page(demo).queue(max_size=MOST_WAITING)
    blocks.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        max_file_size=LIMITS.image_bytes,
        state_session_capacity=100,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        theme=gr.themes.Base(
            primary_hue="indigo",
            neutral_hue="slate",
            font=["Inter", "system-ui", "sans-serif"],  # as installed; none is fetched elsewhere
            font_mono=["ui-monospace", "monospace"],
        ),
        css=CSS,
        **options,
    )
    return blocks


def main() -> None:
    parser = CommandParser(Arguments, description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        default=expanded(os.environ.get("MODEL")),
        help="Folder or Hub id; by default the variable MODEL.",
    )
    arguments = parser.parse_args()
    if not arguments.model:
        parser.error("no model is given; expected a folder or Hub id, as an argument or in the variable MODEL")
    launch(Demo(arguments.model), Arguments(arguments.host, arguments.port, arguments.share))


if __name__ == "__main__":
    run_script(main)
