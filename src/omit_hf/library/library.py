"""A library of pictures, or captions, that is searched by a sentence or a picture, with OMIT's own score."""

import contextlib
import copy
import functools
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset

from omit_hf.library.checking import Check, check_candidates
from omit_hf.library.hits import Hit, Hits
from omit_hf.library.lance import LanceStore, Settings
from omit_hf.library.models import LoadedModel, load_model
from omit_hf.library.ranking import Query, Ranking, rank_candidates, rank_everything
from omit_hf.library.stores import joined, take
from omit_hf.library.updating import Report, Update
from omit_hf.modeling import OmitFeatures, OmitModel, OmitProcessor
from omit_hf.modeling.pictures_omit import as_picture
from omit_hf.ownership import FolderLock
from omit_hf.parsing import shown
from omit_hf.writing import names_what_fails

MEMORY = 2**30  # bytes of features up to which a library is searched in memory, exactly; 28 000 pictures of 37 x 256
MOST_TOKENS = 512  # of a sentence
MERGE_ROWS = 16_384  # that may be missing in the index while an update goes on
PIECE = 12  # fragments of a query that is drawn from a picture
WRITER, MEANWHILE = "update of this library", "search it meanwhile"
KINDS = ("pictures", "captions")


class PictureLibrary:
    """Pictures that are searched by a sentence, with the score and the reason.

    The first stage finds candidates by late interaction, the second scores them by the model's head. A library whose
    features fit into memory is scored whole, so its results are exact; a larger one has an index.

    Args:
        path: folder of the library, made by the first `add`; or its address in an object store, `s3://…`.
        model: `OmitModel`, its folder or Hub id; None for the one that the library was made with.
        processor: of a model that is given as an object.
        of: `pictures`, or `captions` for a library of texts that is searched by pictures.
        storage_options: of the object store; see LanceDB's documentation.

    Raises:
        ValueError: if the model differs from the library's, its head pools fragments, or `of` is another than the
            library's; if there is neither a library nor a model; if the library has the layout of another version.

    Example:
        ```python
        library = PictureLibrary("photos.lance", model="outputs/scenes")
        library.add("~/Pictures")
        hits = library.search("a small red star left of a ring", k=10, where="year >= 2020")
        print(hits[0].path, hits[0].score, hits[0].words)
        ```
    """

    def __init__(
        self,
        path: str | Path,
        model: "OmitModel | str | Path | None" = None,
        processor: OmitProcessor | None = None,
        *,
        of: str | None = None,
        storage_options: dict[str, str] | None = None,
    ):
        if of not in (None, *KINDS):
            raise ValueError(f"of is {of!r}; expected one of {', '.join(KINDS)}.")
        self.is_local = "://" not in str(path)
        self.path = os.path.abspath(os.path.expanduser(path)) if self.is_local else str(path)
        self.storage_options = storage_options
        self.store = None
        if not self.is_local or os.path.isdir(self.path):
            self.store = LanceStore(self.path, storage_options)
        settings = self.settings
        if settings is None and model is None:
            raise ValueError(f"There is no library at {self.path!r}; expected one, or a model to make one with.")
        if settings is not None and of not in (None, settings.of):
            raise ValueError(f"The library {self.path!r} is one of {settings.of}; expected of={settings.of!r}.")
        self.of = settings.of if settings is not None else of or "pictures"
        self._given = (model, processor)
        self._cached: tuple | None = None  # version, ids and features of a library that fits into memory
        if model is not None:
            self._loaded  # noqa: B018 (a model that is given is checked at once)

    @property
    def settings(self) -> Settings | None:
        return None if self.store is None else self.store.settings

    @cached_property
    def _loaded(self) -> LoadedModel:
        model, processor = self._given
        loaded = load_model(self.settings.model if model is None else model, processor)
        if self.settings is not None and self.settings.digest != loaded.digest:
            raise ValueError(
                f"The library {self.path!r} was made with {self.settings.model!r}, and {loaded.name!r} has other "
                "weights, another configuration or processor. Open it with the model that made it, or encode it again: "
                "PictureLibrary(path).reencode(model)."
            )
        return loaded

    @property
    def model(self) -> OmitModel:
        return self._loaded.model

    @property
    def processor(self) -> OmitProcessor:
        return self._loaded.processor

    def __len__(self) -> int:
        return 0 if self.store is None else len(self.store)

    # --- adding -------------------------------------------------------------------------------------------------------

    def add(self, source, *, batch_size: int = 64, progress: bool = True) -> Report:
        """Add pictures; those that are there already are left as they are.

        It can be stopped at any moment: what was added is there, and another call goes on.

        Args:
            source: a folder or a file, or a list of them; a `datasets.Dataset` with `image` or `region_features`, all
                of whose other columns become metadata; in a library of captions a list of texts.
            batch_size: how many are encoded together.
            progress: show a bar.

        Raises:
            BlockingIOError: while another process adds.
            FileNotFoundError, ValueError: for a place without pictures, or data that do not fit.
            OSError: for a full or read-only disk.
        """
        with self._updating(batch_size, progress) as update:
            if self.of == "captions":
                return update.captions(_texts(source))
            if isinstance(source, Dataset):
                return update.rows(source)
            return update.files(_places(source), remove=False)

    def sync(self, source, *, batch_size: int = 64, progress: bool = True) -> Report:
        """Bring the library up to date with folders: what is new, changed, moved or gone since.

        Args:
            source: a folder, or a list of them.
            batch_size, progress: as in `add`.

        Raises:
            ValueError: for a library of captions; otherwise as `add`.
        """
        if self.of == "captions" or isinstance(source, Dataset):
            raise ValueError("sync compares folders of pictures with the library; expected a folder, or use add.")
        with self._updating(batch_size, progress) as update:
            return update.files(_places(source), remove=True)

    def reencode(
        self,
        model,
        processor: OmitProcessor | None = None,
        *,
        data: Dataset | None = None,
        batch_size: int = 64,
        progress: bool = True,
    ) -> Report:
        """Encode everything again with another model; searches go on with the former one until that is done.

        It can be stopped at any moment, and another call with the same model goes on.

        Args:
            model, processor: as of `PictureLibrary`.
            data: the rows that came from data sets, in one `datasets.Dataset`; their `image_id` tells which they are.
            batch_size, progress: as in `add`.

        Raises:
            ValueError: if rows came from data sets and are missing in `data`; otherwise as `add`.
        """
        loaded = load_model(model, processor)
        with self._locked():
            rows = self.store.metadata()
            files = [row for row in rows if row["path"] is not None or self.of == "captions"]
            missing = {row["id"] for row in rows if row["path"] is None} if self.of == "pictures" else set()
            missing -= set() if data is None else set(map(str, data["image_id"]))
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(rows)} pictures came from data sets, such as {min(missing)!r}; pass the "
                    "rows that they were made of: reencode(model, data=dataset)."
                )
            new = copy.copy(self.store)
            new.settings = replace(
                self.settings,
                model=loaded.name,
                digest=loaded.digest,
                width=loaded.model.config.projection_dim,
                table=_table_of(loaded.digest),
            )
            new.table = new.make_table(new.settings.table, new.settings.width)
            update = Update(new, loaded.model, loaded.processor, batch_size, progress, lambda: self._tend(new))
            report = update.again(files)
            if data is not None:
                report = update.rows(data)
            self.store.write_settings(new.settings)
            self._tend(self.store, finished=True)
        self._given, self._cached = (loaded.model, loaded.processor), None
        self.__dict__["_loaded"] = loaded
        return report

    def remove(self, where: str) -> int:
        """Remove the items that a filter lets pass, such as `"year < 2000"`, and return how many; files stay."""
        with self._locked():
            keys = [row["key"] for row in self.store.metadata(self.store.matching(where), ["key"])]
            if keys:
                self.store.delete(keys)
        return len(keys)

    def compact(self) -> None:
        """Merge small files, new rows into the index, and delete tables of former models; searches go on meanwhile."""
        with self._locked():
            self._tend(self.store, finished=True)
            self.store.drop_others()

    @property
    def unreadable(self) -> dict[str, str]:
        """Files that could not be read, by path, and why."""
        return {} if self.store is None else {row["path"]: row["reason"] for row in self.store.unreadable()}

    # --- searching ----------------------------------------------------------------------------------------------------

    def search(
        self,
        sentence: str,
        k: int = 10,
        where: str | None = None,
        *,
        exact: bool = False,
        candidates: int | None = None,
    ) -> Hits:
        """Find the pictures that fit a sentence best.

        Args:
            sentence: what is sought.
            k: how many, all if there are fewer.
            where: a condition on the metadata, in LanceDB's SQL, as in `"year >= 2020 AND path LIKE '%/trips/%'"`.
            exact: score everything in float32, however large the library is.
            candidates: C, items that the first stage finds; by default what `check` chose, 200 before.

        Returns:
            [`Hits`], the best first. Of equal scores any may come first.

        Raises:
            ValueError: for an empty sentence or one of more than 512 tokens, k or `candidates` below 1, or a `where`
                that is no filter.
        """
        if self.of != "pictures":
            raise ValueError("search looks for pictures, and this is a library of captions; use search_image.")
        return self._search(self._encode_text(sentence), "text", sentence, k, where, exact, candidates)

    def search_image(
        self, picture, k: int = 10, where: str | None = None, *, exact: bool = False, candidates: int | None = None
    ) -> Hits:
        """Find the captions that fit a picture best or, in a library of pictures, pictures like it.

        A head compares a picture with a text. Two pictures are compared in both roles, and the scores are averaged.

        Args:
            picture: PIL, a path or a URL; an array of regions [K, width] for a model that takes them.
            k, where, exact, candidates: as in `search`.
        """
        takes_regions = self.model.vision_encoder.input_name == "region_features"
        inputs = self.processor(regions=[picture]) if takes_regions else self.processor(images=as_picture(picture))
        with torch.inference_mode():
            features = self.model.get_image_features(**inputs.to(self.model.device)).select(slice(1))
        return self._search(features, "image", picture, k, where, exact, candidates)

    @torch.inference_mode()
    def _encode_text(self, sentence: str) -> OmitFeatures:
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"The sentence is {shown(sentence)}; expected a text of at least one word.")
        tokens = self.processor(text=sentence)
        if tokens["input_ids"].shape[1] > MOST_TOKENS:
            raise ValueError(
                f"The sentence has {tokens['input_ids'].shape[1]} tokens; expected at most {MOST_TOKENS}. Shorten it."
            )
        features = self.model.get_text_features(**tokens.to(self.model.device)).select(slice(1))
        if not features.mask.any():
            raise ValueError(
                f"The sentence {shown(sentence)} has no word that the model matches; expected at least one."
            )
        return features

    def _search(self, features, side: str, given, k: int, where, exact: bool, candidates: int | None) -> Hits:
        for name, value in (("k", k), ("candidates", candidates)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1.")
        store = self._store()
        query = self._query(features, side)
        if self.fits(len(store)):
            ranking = rank_everything(query, [self._in_memory(store, where)], k)
        elif exact or store.index is None:
            ranking = rank_everything(query, store.scan(where), k)
        else:
            count = max(k, candidates or store.settings.candidates)
            ranking = rank_candidates(query, store, k, where, count)
        return self._hits(store, ranking, given)

    def _hits(self, store: LanceStore, ranking: Ranking, given) -> Hits:
        rows = store.metadata(ranking.ids, [*store.columns, "grid", "boxes"])
        features = store.fragments(ranking.ids) if ranking.ids else None
        hits = []
        for place, (row, score) in enumerate(zip(rows, ranking.scores.tolist(), strict=True)):
            frame = {name: row.pop(name) for name in ("grid", "boxes")}
            hits.append(Hit(score, row, features.select(slice(place, place + 1)), given, frame, self))
        return Hits(hits, ranking.proven)

    def fits(self, count: int) -> bool:
        """Whether the features of so many items fit into memory, as large as the library's first one is."""
        return count * self.store.item_bytes <= MEMORY

    def check(self, queries: int | list[str] = 200, k: int = 10, share: float = 0.99) -> Check:
        """Measure how many of the best k the two stages find, against scoring everything, and keep the C that it takes.

        Args:
            queries: sentences; or how many to draw: captions of the library where it has any, and otherwise pieces of
                its own pictures, twelve fragments each.
            k: of the best.
            share: of the best k that is to be found on average, 0 to 1.

        Returns:
            [`Check`], whose `candidates` the library uses from then on.

        Raises:
            ValueError: for a library without an index, which is exact as it is.
        """
        store = self._store()
        if store.index is None:
            raise ValueError(f"The library has no index: its {len(store)} items are all scored, and nothing is missed.")
        encoded, kind = self._queries(store, queries)
        found = check_candidates(encoded, store, k, share, kind)
        with self._locked():
            self.store.write_settings(replace(self.store.settings, candidates=found.candidates))
        return found

    # --- within -------------------------------------------------------------------------------------------------------

    def _store(self) -> LanceStore:
        """The last state of the library, which stays as it is while others write."""
        if self.store is None:
            raise ValueError(f"The library {self.path!r} is empty; expected one to which pictures were added.")
        if self.store.is_old():
            self.store = LanceStore(self.path, self.storage_options)
        self._loaded  # noqa: B018 (the model must be the library's, which may have another by now)
        return self.store

    def _in_memory(self, store: LanceStore, where: str | None) -> tuple[list[int], OmitFeatures]:
        """Ids and features of all items, or of those that a filter lets pass; kept until the library changes."""
        if self._cached is None or self._cached[0] is not store:
            ids, blocks = [], []
            for block, features in store.scan():
                ids += block
                blocks.append(features)
            self._cached = store, ids, joined(blocks)
        _, ids, features = self._cached
        if where is None:
            return ids, features
        wanted = set(store.matching(where))
        places = [place for place, number in enumerate(ids) if number in wanted]
        return [ids[place] for place in places], take(features, torch.tensor(places, dtype=torch.long))

    def _queries(self, store: LanceStore, queries: int | list[str]) -> tuple[list[Query], str]:
        """Sentences as queries; drawn ones are captions of the library, or pieces of its pictures."""
        side = "text" if self.of == "pictures" else "image"
        if not isinstance(queries, int):
            texts, kind = list(queries), "sentences"
        else:
            rows = store.metadata(columns=["captions"]) if self.of == "pictures" else []
            texts, kind = [caption for row in rows for caption in row["captions"] or []], "captions of the library"
            generator = torch.Generator().manual_seed(0)
            texts = [texts[place] for place in torch.randperm(len(texts), generator=generator)[:queries].tolist()]
        if texts:
            return [self._query(self._encode_text(text), "text") for text in texts], kind
        pieces = []
        for ids, features in store.scan():
            share = queries * len(ids) / len(store)
            for place in torch.randperm(len(ids), generator=generator)[: round(share) or 1].tolist():
                item = features.select(slice(place, place + 1))
                chosen = torch.randperm(int(item.mask.sum()), generator=generator)[:PIECE]
                norms = None if item.norms is None else item.norms[:, chosen]
                embeds, mask = item.embeds[:, chosen].to(self.model.device), item.mask[:, chosen].to(self.model.device)
                piece = OmitFeatures(embeds=embeds, mask=mask, pooled=item.pooled.to(self.model.device), norms=norms)
                pieces.append(self._query(piece, side))
        return pieces[:queries], "pieces of its own items"

    def _query(self, features: OmitFeatures, side: str) -> Query:
        return Query(self.model, features, side, "image" if self.of == "pictures" else "text")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Own the library, as the only one that writes; in an object store whoever calls must see to that."""
        if not self.is_local:
            self._store()
            yield
            return
        with names_what_fails(self.path), FolderLock(self.path, WRITER, advice=MEANWHILE):
            self._store()
            yield

    @contextlib.contextmanager
    def _updating(self, batch_size: int, progress: bool) -> Iterator[Update]:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; expected a whole number from 1.")
        loaded = self._loaded
        if self.store is None or self.settings is None:
            self._make(loaded)
        with self._locked():
            tend = functools.partial(self._tend, self.store)
            yield Update(self.store, loaded.model, loaded.processor, batch_size, progress, tend)
            self._tend(self.store, finished=True)

    def _make(self, loaded: LoadedModel) -> None:
        """Make an empty library, unless somebody has done so meanwhile."""
        lock = contextlib.nullcontext()
        with names_what_fails(self.path):
            if self.is_local:
                os.makedirs(self.path, exist_ok=True)
                lock = FolderLock(self.path, WRITER, advice=MEANWHILE)
            with lock:
                self.store = LanceStore(self.path, self.storage_options)
                if self.store.settings is None:
                    width, table = loaded.model.config.projection_dim, _table_of(loaded.digest)
                    self.store.write_settings(Settings(self.of, loaded.name, loaded.digest, width, table))

    def _tend(self, store: LanceStore, finished: bool = False) -> None:
        """Index what was added, where that pays: searches go on with what there was until it is done."""
        if len(store) == 0 or self.fits(len(store)) or self.model.config.marginals == "cross_global":
            if finished:
                store.tidy()
        elif store.index is None:
            store.make_index()
        elif finished or store.num_unindexed >= MERGE_ROWS:
            store.tidy()


def _table_of(digest: str) -> str:
    return f"items_{digest[:16]}"


def _places(source) -> list[str | Path]:
    if isinstance(source, str | Path):
        return [source]
    if not isinstance(source, list | tuple) or not all(isinstance(each, str | Path) for each in source) or not source:
        raise ValueError(
            f"The source is {shown(source)}; expected a folder, a file, a list of them, or a datasets.Dataset."
        )
    return list(source)


def _texts(source) -> list[str]:
    if isinstance(source, Dataset):
        source = [caption for captions in source["captions"] for caption in captions]
    if isinstance(source, str) or not source or not all(isinstance(each, str) and each.strip() for each in source):
        raise ValueError(
            f"The source is {shown(source)}; expected a list of captions, or a datasets.Dataset with them."
        )
    return list(source)
