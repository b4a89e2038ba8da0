"""The page of `omit-hf browse`: pictures of a library, found by a sentence, and why."""

import collections
import functools
import io
import os
import threading
from html import escape
from pathlib import Path

import PIL.Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omit_hf.demo import data_url, message, picture_with_cells, sentence_block
from omit_hf.demo.address import Address
from omit_hf.demo.serving import LIMITS, gr, serve
from omit_hf.demo.style import SCRIPT
from omit_hf.demo.words import MOST_SHOWN
from omit_hf.library import Hit, Hits, PictureLibrary
from omit_hf.library.files import digest_of
from omit_hf.modeling.pictures_omit import BoundedFile, rgb_picture

WALL = 24  # pictures
THUMBNAIL = 256  # pixels of the longer side
KEPT = 4096  # thumbnails in memory, some 10 kB each
MOST_KNOWN = 2**16  # pictures that were found last, whose thumbnails are served
MOST_FILTER = 500  # characters
GONE = "This picture is no longer there, or has changed."


class Demo:
    """A library that is searched on a page.

    Args:
        path: of the library.
        model: where its model is, if it was moved.

    Raises:
        ValueError: if there is no library, or it has no pictures: one of captions, or of regions.
    """

    def __init__(self, path: str, model: str | None = None):
        self.library = PictureLibrary(path, model)
        self.name = Path(path).name
        if self.library.of != "pictures":
            raise ValueError(f"{path} is a library of captions; expected one of pictures.")
        if self.library.model.vision_encoder.input_name == "region_features":
            raise ValueError(f"The model of {path} takes precomputed regions; expected a library of picture files.")
        self.paths: collections.OrderedDict[str, str] = collections.OrderedDict()  # by digest
        self.lock = threading.Lock()
        self.decoding = threading.Semaphore(os.cpu_count() or 1)
        self.small = functools.lru_cache(KEPT)(self._small)

    def search(self, sentence: str, where: str) -> Hits:
        for what, text, most in (("sentence", sentence, LIMITS.characters), ("filter", where, MOST_FILTER)):
            if len(text) > most:
                raise ValueError(f"The {what} has {len(text)} characters; expected at most {most}. Shorten it.")
        hits = self.library.search(sentence, WALL, where.strip() or None)
        with self.lock:
            for hit in hits:
                if hit.path is not None:
                    self.paths[hit.metadata["digest"]] = hit.path
                    self.paths.move_to_end(hit.metadata["digest"])
            while len(self.paths) > MOST_KNOWN:
                self.paths.popitem(last=False)
        return hits

    def explain(self, key: str, sentence: str) -> Hit | None:
        """The hit of one picture; None if it is no longer in the library."""
        if not key.isalnum():
            raise ValueError("There is no such picture.")
        return next(iter(self.library.search(sentence, 1, f"key = '{key}'", exact=True)), None)

    def thumbnail(self, digest: str) -> bytes | None:
        """A JPEG of a picture that was found; None if it is not there any more."""
        with self.lock:
            path = self.paths.get(digest)
        try:
            return None if path is None else self.small(path, digest)
        except (OSError, ValueError):
            return None

    def _small(self, path: str, digest: str) -> bytes:
        with self.decoding:
            file = io.BytesIO()
            scaled(path, digest, THUMBNAIL).save(file, "jpeg", quality=82)
            return file.getvalue()


def scaled(path: str, digest: str, most: int) -> PIL.Image.Image:
    """A picture file with at most so many pixels on its longer side.

    Raises:
        OSError, ValueError: if it is not there, or holds something else than the library saw.
    """
    content = Path(path).read_bytes()
    if digest_of(content) != digest:
        raise ValueError(f"{path} has changed.")
    picture = PIL.Image.open(BoundedFile(content))
    picture.draft("RGB", (most, most))  # a JPEG is decoded at a fraction of its size
    picture = rgb_picture(picture)
    picture.thumbnail((most, most))
    return picture


# --- what is drawn ----------------------------------------------------------------------------------------------------
# Whatever comes from the visitor, the library or the tokenizer goes through `escape`.


def wall(hits: Hits, count: int) -> str:
    """A button a picture, the best first; the first is the one that is shown."""
    tiles = "".join(tile(hit, rank) for rank, hit in enumerate(hits, start=1))
    told = f"The best {len(hits)} of {count:,} pictures" if len(hits) < count else f"All {count:,} pictures"
    told += ", the best first." if hits.proven else ", found by the index."
    group = f'<div class="wall" role="group" aria-label="Pictures" data-gone="{escape(GONE)}">{tiles}</div>'
    return f'<p class="note" role="status">{told}</p>{group}'


def tile(hit: Hit, rank: int) -> str:
    name, first = escape(name_of(hit)), rank == 1
    if is_there(hit):
        picture = f'<img alt="" loading="lazy" src="thumbnails/{escape(hit.metadata["digest"])}"/>'
    else:
        picture = f'<span class="gone">{GONE}</span>'
    return (
        f'<button type="button" data-key="{escape(hit.metadata["key"])}" aria-pressed="false" title="{name}" '
        f'class="{"tile shown" if first else "tile"}" tabindex="{0 if first else -1}" '
        f'aria-label="{rank}: {name}, score {hit.score:.3f}">{picture}'
        f'<span class="score">{hit.score:.3f}</span></button>'
    )


def name_of(hit: Hit) -> str:
    return Path(hit.path).name if hit.path else hit.id


def is_there(hit: Hit) -> bool:
    """Whether the file is as the library saw it, as far as its size tells."""
    try:
        return hit.path is not None and os.stat(hit.path).st_size == hit.metadata["bytes"]
    except OSError:
        return False


def picture_of(hit: Hit) -> str:
    """The picture with its cells; where it is gone the cells alone, which the library knows."""
    frame = {name: getattr(hit.alignment, name) for name in ("width", "height", "area", "boxes", "grid")}
    try:
        if hit.path is None:
            raise ValueError("It was a row of a data set.")
        return picture_with_cells(frame, data_url(scaled(hit.path, hit.metadata["digest"], MOST_SHOWN)))
    except (OSError, ValueError):
        return message(GONE) + picture_with_cells(frame, None)


def words_of(hit: Hit, sentence: str) -> str:
    told = f"“{sentence}” scores {hit.score:.3f} in {name_of(hit)}."
    return f'<div data-summary="{escape(told)}">{sentence_block(name_of(hit), hit.alignment, sentence)}</div>'


# --- the page ---------------------------------------------------------------------------------------------------------

POINT = """
const DWELL = 120;  // milliseconds on a picture, so that one on the way to another place is not shown
const tiles = () => [...element.querySelectorAll('.tile')];
const pinned = () => tiles().find(each => each.getAttribute('aria-pressed') === 'true');
const of = event => event.target.closest('.tile');
let waiting;
function show(tile, delay) {
  clearTimeout(waiting);
  if (tile.classList.contains('shown')) return;
  waiting = setTimeout(() => {
    if (!tile.isConnected) return;
    tiles().forEach(each => {
      each.classList.toggle('shown', each === tile);
      each.tabIndex = each === tile ? 0 : -1;
    });
    trigger('select', {index: tile.dataset.key});
  }, delay);
}
function pin(tile) {
  tiles().forEach(each => each.setAttribute('aria-pressed', each === tile));
}
element.addEventListener('mouseover', event => of(event) && !pinned() && show(of(event), DWELL));
element.addEventListener('mouseout', () => clearTimeout(waiting));
element.addEventListener('focusin', event => of(event) && !pinned() && show(of(event), DWELL));
element.addEventListener('click', event => {
  const tile = of(event);
  if (!tile) return;
  pin(tile === pinned() ? null : tile);
  show(tile, 0);
});
element.addEventListener('keydown', event => {
  const tile = of(event), all = tiles(), place = all.indexOf(tile);
  if (!tile) return;
  const wide = all.filter(each => each.offsetTop === all[0].offsetTop).length;
  const last = all.length - 1;
  const to = {ArrowLeft: place - 1, ArrowRight: place + 1, ArrowUp: place - wide, ArrowDown: place + wide,
    Home: 0, End: last}[event.key];
  if (event.key === 'Escape') pin(null);
  if (to === undefined) return;
  event.preventDefault();
  all[Math.min(Math.max(to, 0), last)].focus();
});
element.addEventListener('error', event => {
  if (event.target.tagName !== 'IMG') return;
  const gone = document.createElement('span');
  gone.className = 'gone';
  gone.textContent = element.querySelector('.wall').dataset.gone;
  event.target.replaceWith(gone);
}, true);
"""

CSS = """
#page { align-items: flex-start; }
#panel { position: sticky; top: 12px; }
#panel #stage { --tallest: 52vh; }
.wall { display: grid; grid-template-columns: repeat(auto-fill, minmax(108px, 1fr)); gap: 8px; margin-top: 8px; }
#wall .tile { position: relative; aspect-ratio: 1; padding: 0; margin: 0; overflow: hidden; cursor: pointer;
  border-radius: 8px; border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
#wall .tile img { width: 100%; height: 100%; object-fit: cover; display: block; margin: 0; }
.tile .score { position: absolute; right: 4px; bottom: 4px; padding: 0 5px; border-radius: 5px; font-size: 11px;
  line-height: 17px; font-variant-numeric: tabular-nums; color: #fff; background: #0b1020b0; }
.tile .gone { display: block; padding: 8px; font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; }
.tile.shown { outline: 3px solid var(--color-accent); outline-offset: -1px; }
.tile[aria-pressed=true] { outline-style: double; outline-width: 6px; }
.tile:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
#panel .sentence { border: 0; margin: 0; }
#panel .sentence h2 { overflow-wrap: anywhere; }
@media (max-width: 760px) {
  #find { display: contents; }
  #panel { order: 1; top: 0; z-index: 5; padding: 6px 0; gap: 4px; background: var(--body-background-fill); }
  #panel #stage { --tallest: 26vh; }
  #panel #stage .status { min-height: 0; }
  #panel .words { max-height: 106px; overflow-y: auto; margin: 4px 0; }
  #panel .dustbins { display: none; }
  #panel .sentence { padding: 0; }
  #wall { order: 2; }
  .wall { grid-template-columns: repeat(3, 1fr); }
}
"""


def page(demo: Demo) -> gr.Blocks:
    """The page; nothing of it is open to Gradio's clients, only to the browser."""
    start = message(f"Type what you look for in {len(demo.library):,} pictures.")

    def search(sentence: str, where: str) -> tuple[str, str, str]:
        if not sentence.strip():
            return start, "", ""
        try:
            hits = demo.search(sentence, where)
            if not hits:
                return message("Nothing was found: no picture meets the filter."), "", ""
            return wall(hits, len(demo.library)), picture_of(hits[0]), words_of(hits[0], sentence)
        except (ValueError, OSError) as error:
            return message(str(error), "error"), "", ""

    def point(sentence: str, event: gr.EventData) -> tuple[str, str]:
        try:
            hit = demo.explain(str(event.index), sentence)
            if hit is None:
                return message("This picture is no longer in the library."), ""
            return picture_of(hit), words_of(hit, sentence)
        except (ValueError, OSError) as error:
            return message(str(error), "error"), ""

    with gr.Blocks(title="Find a picture by a sentence", analytics_enabled=False) as blocks:
        gr.HTML(
            f"<h1>Find a picture by a sentence</h1><p><code>{escape(demo.name)}</code> is searched as you type. Point "
            "at a picture to see where it has your words, and at a word for its cells.</p>",
            elem_id="head",
        )
        with gr.Row(elem_id="page"):
            with gr.Column(min_width=320, scale=3, elem_id="find"):
                sentence = gr.Textbox(
                    label="What do you look for?", elem_id="sentence", max_length=LIMITS.characters, autofocus=True
                )
                where = gr.Textbox(
                    label="Only pictures with (optional; Enter applies it)",
                    elem_id="where",
                    placeholder="year >= 2020 AND width > height",
                    max_length=MOST_FILTER,
                )
                found = gr.HTML(start, elem_id="wall", js_on_load=POINT)
            with gr.Column(min_width=320, scale=2, elem_id="panel"):
                picture = gr.HTML("", elem_id="stage")
                words = gr.HTML("", elem_id="results", js_on_load=SCRIPT)

        # One request of a visitor at a time, and after it the last that was made meanwhile: what a debounce is for,
        # without its delay.
        last = {"trigger_mode": "always_last", "concurrency_limit": 1, "concurrency_id": "model"}
        last |= {"show_progress": "hidden", "api_visibility": "private"}
        everything = [found, picture, words]
        # Gradio's input event leaves out Backspace. Half of a filter is none, so that one counts when it is finished.
        gr.on([sentence.change, where.submit, where.blur], search, [sentence, where], everything, **last)
        found.select(point, [sentence], [picture, words], **last)
    return blocks


def launch(demo: Demo, address: Address, **options) -> gr.Blocks:
    """Serve the page and the thumbnails; `options` are further ones of Gradio's `launch`."""

    def thumbnail(request: Request) -> Response:
        content = demo.thumbnail(request.path_params["digest"])
        if content is None:
            return Response(status_code=404)
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(content, media_type="image/jpeg", headers=headers)

    return serve(page(demo), address, CSS, app_kwargs={"routes": [Route("/thumbnails/{digest}", thumbnail)]}, **options)
