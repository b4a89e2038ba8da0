"""What a search finds: an item, its score, and the reason."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from omit_hf.alignment import EncodedPicture, WordAlignment, align_sentence
from omit_hf.alignment.sentence import grid_frame
from omit_hf.library.files import decode, digest_of
from omit_hf.library.models import TOKENIZING
from omit_hf.modeling import OmitFeatures


@dataclass(frozen=True)
class FoundWord:
    """A word of the sentence, in a picture.

    Args:
        text: as the sentence spells it.
        matched: share of its mass that comes from the picture, 0 to 1; the rest is the dustbin's.
        box: x0, y0, x1, y1 in pixels of the fragment that gives it most; None for regions without boxes.
    """

    text: str
    matched: float
    box: tuple[float, float, float, float] | None


@dataclass(eq=False)
class Hit:
    """An item that a search found.

    Args:
        score: the head's similarity.
        metadata: columns of its row, by name.
        features: of the item alone, as the library keeps them.
    """

    score: float
    metadata: dict
    features: OmitFeatures = field(repr=False)
    query: object = field(repr=False)
    frame: dict = field(repr=False)
    library: object = field(repr=False)

    @property
    def id(self) -> str:
        return self.metadata["id"]

    @property
    def path(self) -> str | None:
        """The picture's file; None for a row of a data set that has none."""
        return self.metadata["path"]

    @property
    def captions(self) -> list[str] | None:
        return self.metadata["captions"]

    @cached_property
    def alignment(self) -> WordAlignment:
        """Where the words of the sentence are in the picture.

        Raises:
            ValueError: if the query or the item is no sentence and picture.
        """
        if self.library.of == "captions":
            raise ValueError("The item is a caption; use omit_hf.alignment.word_alignment with your picture.")
        if not isinstance(self.query, str):
            raise ValueError("The query is a picture, which has no words; expected the hit of a sentence.")
        model, processor = self.library.model, self.library.processor
        encoded = EncodedPicture(self.features, _frame(model, processor, self.metadata, self.frame))
        with TOKENIZING:
            return align_sentence(model, processor, encoded, self.query)

    @property
    def words(self) -> list[FoundWord]:
        """The words of the sentence, with how much of each the picture has, and where most of it is."""
        found, places = self.alignment, self.alignment.places()
        best = found.mass.argmax(axis=0)
        boxes = [None if places is None else tuple(places[place].tolist()) for place in best]
        return [FoundWord(*each) for each in zip(found.words, found.matched.tolist(), boxes, strict=True)]

    def picture(self) -> PIL.Image.Image:
        """The picture itself.

        Raises:
            ValueError: if the library has no file of it, or the file holds something else now.
            FileNotFoundError: if the file is not there any more.
        """
        if self.path is None:
            raise ValueError(f"The picture {self.id!r} was a row of a data set; expected draw(picture).")
        try:
            content = Path(self.path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            gone = f"{self.path!r} is no longer there; bring the library up to date with sync."
            raise FileNotFoundError(gone) from error
        if digest_of(content) != self.metadata["digest"]:
            raise ValueError(f"{self.path!r} has changed since; bring the library up to date with sync.")
        return decode(content)[0]

    def draw(self, picture: PIL.Image.Image | None = None):
        """Draw the words over the picture: a figure of matplotlib, from `omit_hf.visualization.draw_words`.

        Args:
            picture: the picture of the item; None to open its file.

        Raises:
            ImportError: without matplotlib, the extra `plot`.
            ValueError, FileNotFoundError: as `picture` and `alignment`.
        """
        from omit_hf.visualization import draw_words  # needs matplotlib

        return draw_words(self.alignment, self.picture() if picture is None else picture)


class Hits(list):
    """Hits, the best first.

    Args:
        proven: true if no other item of the library can score higher: all were scored, or the first stage was exact and
            bounds what it left out.
    """

    def __init__(self, hits=(), proven: bool = False):
        super().__init__(hits)
        self.proven = proven


def _frame(model, processor, metadata: dict, stored: dict) -> dict:
    """The fields of `WordAlignment` that say where fragments are."""
    width, height = metadata["width"], metadata["height"]
    if stored["grid"] is not None:
        return grid_frame(model, processor, width, height, tuple(stored["grid"]))
    boxes = None if stored["boxes"] is None else np.array(stored["boxes"], float).reshape(-1, 4)
    if width is None or height is None:
        width, height = (1, 1) if boxes is None else (max(1, int(np.ceil(side))) for side in boxes[:, 2:].max(axis=0))
    return {"boxes": boxes, "width": width, "height": height}
