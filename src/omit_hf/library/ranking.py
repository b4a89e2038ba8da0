"""Two stages: candidates by late interaction, then the head's own score over their fragments."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from omit_hf.library.stores import Store
from omit_hf.modeling import OmitFeatures

FRAGMENTS_AT_ONCE = 512  # items whose fragments are in memory at once
ROUNDING = 1e-5  # of scores and bounds in float32, by which a proof must be the stricter


class Ranking(NamedTuple):
    """The best items of a store.

    Args:
        ids: items, the best first.
        scores: the head's similarity, float32, one an item.
        proven: true if no other item can score higher.
    """

    ids: list
    scores: Tensor
    proven: bool


class Query:
    """A sentence or a picture, encoded, that is compared with the items of a store.

    Args:
        model: `OmitModel` with a head that aligns.
        features: of the one item, from `get_text_features` or `get_image_features`.
        side: `text` or `image`, what the query is.
        items: `text` or `image`, what the items are. If both are the same, a pair is scored in both roles and the two
            scores are averaged, as in `omit_hf.evaluation.same_side_similarity`.
    """

    def __init__(self, model, features: OmitFeatures, side: str, items: str):
        self.model, self.features, self.side, self.items = model, features, side, items

    @property
    def has_bound(self) -> bool:
        """Whether late interaction bounds the score from above: a plan's columns, the words, hold their mass exactly.
        Its rows do so in the limit only."""
        config, head = self.model.config, self.model.matching
        between_fragments = config.global_weight == 0 and config.score == "local" and config.marginals != "cross_global"
        return head.transports and between_fragments and (self.side, self.items) == ("text", "image")

    def words(self) -> tuple[Tensor, Tensor]:
        """The query's fragments, [L, D], and the mass of each, [L]: what bounds the score, where something does."""
        head, valid = self.model.matching, self.features.mask[0]
        if not head.transports:
            return self.features.embeds[0, valid].float().cpu(), torch.full((int(valid.sum()),), 1 / int(valid.sum()))
        side = head.sides(self.features, self.features)[1 if self.side == "text" else 0]
        mass = side.mass.reshape(-1)[head.num_dustbins :]
        return self.features.embeds[0, valid].float().cpu(), mass[valid].float().cpu()

    @torch.inference_mode()
    def scores(self, items: OmitFeatures) -> Tensor:
        """The head's similarity to every item, float32 [N]."""
        if not len(items.embeds):
            return torch.zeros(0)
        items, query = self._as_query(items), self.features
        roles = []
        if (self.side, self.items) != ("image", "text"):
            roles.append(self.model.similarity(items, query))
        if (self.side, self.items) != ("text", "image"):
            roles.append(self.model.similarity(query, items))
        return torch.stack([scores.flatten() for scores in roles]).mean(0).float().cpu()

    def _as_query(self, items: OmitFeatures) -> OmitFeatures:
        """The items on the device of the query, and in its type."""
        like = self.features.embeds
        norms = None if items.norms is None else items.norms.to(like.device)
        embeds, pooled = items.embeds.to(like), items.pooled.to(like)
        return OmitFeatures(embeds=embeds, mask=items.mask.to(like.device), pooled=pooled, norms=norms)


def rank_candidates(query: Query, store: Store, k: int, where, count: int) -> Ranking:
    """Rank the `count` candidates of the first stage; `proven` if the k-th score reaches what was left out."""
    found = store.candidates(*query.words(), where, count)
    ranking = rank_items(query, store, found.ids, k)
    if found.rest is None or not query.has_bound:
        proven = found.rest == -torch.inf
    else:
        last = float(ranking.scores[-1]) if len(ranking.ids) == min(k, count) and ranking.ids else -torch.inf
        proven = found.rest == -torch.inf or last >= found.rest + ROUNDING
    return ranking._replace(proven=proven)


def rank_items(query: Query, store: Store, ids: list, k: int) -> Ranking:
    """Rank some items by the head's score."""
    pieces = [ids[start : start + FRAGMENTS_AT_ONCE] for start in range(0, len(ids), FRAGMENTS_AT_ONCE)]
    scores = [query.scores(store.fragments(piece)) for piece in pieces]
    return best(ids, torch.cat(scores) if scores else torch.zeros(0), k)


def rank_everything(query: Query, blocks: Iterable[tuple[list, OmitFeatures]], k: int) -> Ranking:
    """Rank all items, block by block, in float32: what a ranking is measured against, and proven."""
    kept = Ranking([], torch.zeros(0), True)
    for ids, items in blocks:
        kept = best(kept.ids + list(ids), torch.cat([kept.scores, query.scores(items)]), k)
    return kept._replace(proven=True)


def best(ids: list, scores: Tensor, k: int) -> Ranking:
    scores, places = scores.sort(descending=True, stable=True)
    return Ranking([ids[place] for place in places[:k].tolist()], scores[:k], False)
