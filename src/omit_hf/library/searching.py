"""What a search looks at: one state of a library, with the model that made it."""

import threading
from collections.abc import Iterator, Sequence

import torch

from omit_hf.library.hits import Hit, Hits
from omit_hf.library.lance import LanceStore
from omit_hf.library.models import TOKENIZING, LoadedModel
from omit_hf.library.ranking import Query, Ranking, rank_candidates, rank_everything
from omit_hf.library.stores import take
from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.pictures_omit import as_picture
from omit_hf.parsing import shown

MOST_TOKENS = 512  # of a sentence
PARTS = ("embeds", "mask", "pooled", "norms")  # of features
PIECE = 12  # fragments of a query that is drawn from a picture


def check_whole(name: str, value) -> None:
    """Raise a ValueError for what is no whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number from 1.")


class Snapshot:
    """One state of a library, which stays as it is while others write. Threads may search it at once.

    Args:
        store: of the library, which nobody writes to.
        loaded: the model that made it.
        of: `pictures` or `captions`.
    """

    def __init__(self, store: LanceStore, loaded: LoadedModel, of: str):
        self.store, self.of = store, of
        self.model, self.processor = loaded.model, loaded.processor
        self.lock = threading.Lock()  # of reading all features
        self.blocks: list[tuple[list, OmitFeatures]] | None = None  # ids and features of all items

    @torch.inference_mode()
    def encode_text(self, sentence: str) -> OmitFeatures:
        """Features of a sentence; `ValueError` as of `PictureLibrary.search`."""
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"The sentence is {shown(sentence)}; expected a text of at least one word.")
        with TOKENIZING:
            tokens = self.processor(text=sentence)
            count = len(self.processor.tokenizer(sentence, verbose=False)["input_ids"])
        most = min(MOST_TOKENS, self.processor.tokenizer.model_max_length)
        if count > most:
            raise ValueError(f"The sentence has {count} tokens; expected at most {most}. Shorten it.")
        features = self.model.get_text_features(**tokens.to(self.model.device)).select(slice(1))
        if not features.mask.any():
            raise ValueError(
                f"The sentence {shown(sentence)} has no word that the model matches; expected at least one."
            )
        return features

    @torch.inference_mode()
    def encode_image(self, picture) -> OmitFeatures:
        """Features of a picture, or of regions [K, width]; `ValueError` or `OSError` for what is none."""
        takes_regions = self.model.vision_encoder.input_name == "region_features"
        if takes_regions and getattr(picture, "ndim", 2) != 2:
            raise ValueError(f"The regions have the shape {tuple(picture.shape)}; expected [K, width], of one picture.")
        inputs = self.processor(regions=[picture]) if takes_regions else self.processor(images=as_picture(picture))
        return self.model.get_image_features(**inputs.to(self.model.device)).select(slice(1))

    def query(self, features: OmitFeatures, side: str) -> Query:
        return Query(self.model, features, side, "image" if self.of == "pictures" else "text")

    def rank(self, query: Query, k: int, where: str | None, exact: bool, candidates: int | None, in_memory: bool):
        """The best k as a `Ranking`: of all items, from memory or from the disk, or of candidates."""
        if in_memory:
            return rank_everything(query, self._in_memory(where), k)
        if exact or self.store.index is None:
            return rank_everything(query, self.store.scan(where), k)
        return rank_candidates(query, self.store, k, where, max(k, candidates or self.store.settings.candidates))

    def hits(self, ranking: Ranking, given) -> Hits:
        rows = self.store.metadata(ranking.ids, [*self.store.columns, "grid", "boxes"])
        features = self.store.fragments(ranking.ids)
        hits = []
        for place, (row, score) in enumerate(zip(rows, ranking.scores.tolist(), strict=True)):
            frame = {name: row.pop(name) for name in ("grid", "boxes")}
            item, count = features.select(slice(place, place + 1)), int(features.mask[place].sum())
            own = item.embeds[:, :count], item.mask[:, :count], item.pooled, item.norms[:, :count]
            item = OmitFeatures(**dict(zip(PARTS, own, strict=True)))  # without the padding to others
            hits.append(Hit(score, row, item, given, frame, self))
        return Hits(hits, ranking.proven)

    def _in_memory(self, where: str | None) -> Iterator[tuple[list[int], OmitFeatures]]:
        """Ids and features of all items, or of those that a filter lets pass, in blocks; read once."""
        wanted = None if where is None else set(self.store.matching(where))
        with self.lock:
            if self.blocks is None:
                self.blocks = list(self.store.scan())
        for ids, features in self.blocks:
            if wanted is not None:
                places = [place for place, number in enumerate(ids) if number in wanted]
                ids, features = [ids[place] for place in places], take(features, torch.tensor(places, dtype=torch.long))
            if ids:
                yield ids, features

    def queries(self, queries: int | Sequence[str]) -> tuple[list[Query], str]:
        """Sentences as queries, and what kind they are. Drawn are captions of the library, or pieces of its items."""
        if not isinstance(queries, int):
            return [self.query(self.encode_text(text), "text") for text in queries], "sentences"
        generator = torch.Generator().manual_seed(0)
        rows = self.store.metadata(columns=["captions"]) if self.of == "pictures" else []
        texts = [caption for row in rows for caption in row["captions"] or [] if caption and caption.strip()]
        texts = [texts[place] for place in torch.randperm(len(texts), generator=generator)[:queries].tolist()]
        if texts:
            return [self.query(self.encode_text(text), "text") for text in texts], "captions of the library"
        side, pieces = "text" if self.of == "pictures" else "image", []
        for ids, features in self.store.scan():
            share = queries * len(ids) / len(self.store)
            for place in torch.randperm(len(ids), generator=generator)[: round(share) or 1].tolist():
                item = features.select(slice(place, place + 1))
                chosen = torch.randperm(int(item.mask.sum()), generator=generator)[:PIECE]
                if not len(chosen):
                    continue
                parts = item.embeds[:, chosen], item.mask[:, chosen], item.pooled, item.norms[:, chosen]
                parts = {name: part.to(self.model.device) for name, part in zip(PARTS, parts, strict=True)}
                pieces.append(self.query(OmitFeatures(**parts), side))
        return pieces[:queries], "pieces of its own items"
