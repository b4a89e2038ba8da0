"""A library of pictures, or captions, that is searched by a sentence or a picture, with OMIT's own score."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from omit_hf.library.changing import adopt_rows, is_foreign, owned, place_of, places_of, texts_of
from omit_hf.library.checking import Check, check_candidates
from omit_hf.library.files import find_pictures
from omit_hf.library.hits import Hits
from omit_hf.library.lance import LanceStore, Settings
from omit_hf.library.models import LoadedModel, load_library_model, load_model
from omit_hf.library.searching import Snapshot, check_whole
from omit_hf.library.updating import Report, Update
from omit_hf.modeling import OmitFeatures, OmitModel, OmitProcessor

MEMORY = 2**30  # bytes of features up to which a library is searched in memory, exactly; 28 000 pictures of 37 x 256
MERGE_ROWS = 16_384  # that may be missing in the index while an update goes on
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
            library's; if there is neither a library nor a model; if the library has the layout of another version, or
            the place holds something else.
        OSError: if the place cannot be reached.

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
        self.path, self.is_local = place_of(path)
        self.storage_options = storage_options
        self._lock = threading.RLock()
        self._snapshot: Snapshot | None = None
        self._store: LanceStore | None = None
        self._given = None if model is None else load_model(model, processor)  # which is checked at once
        self._loaded = self._given
        settings = self.settings
        if settings is None and model is None:
            raise ValueError(f"There is no library at {self.path!r}; expected one, or a model to make one with.")
        self.of = settings.of if settings is not None and of is None else of or "pictures"
        if settings is not None:
            self._check_kind(settings)
            if model is not None:
                self._model_of(settings)

    def _check_kind(self, settings: Settings) -> None:
        if self.of != settings.of:
            raise ValueError(f"The library {self.path!r} is one of {settings.of}; expected of={settings.of!r}.")

    @property
    def store(self) -> LanceStore | None:
        """The library's last state, for reading; None before there is a library."""
        with self._lock:
            if self._store is None or self._store.settings is None or self._store.is_old():
                self._store = self._open()
            return self._store

    @property
    def settings(self) -> Settings | None:
        store = self.store
        return None if store is None else store.settings

    @property
    def model(self) -> OmitModel:
        return self._current().model

    @property
    def processor(self) -> OmitProcessor:
        return self._current().processor

    def __len__(self) -> int:
        store = self.store
        return 0 if store is None else len(store)

    # --- adding -------------------------------------------------------------------------------------------------------

    def add(self, source, *, batch_size: int = 64, progress: bool = True) -> Report:
        """Add pictures; those that are there already are left as they are.

        It can be stopped at any moment: what was added is there, and another call goes on. A row whose picture is there
        already gets its other metadata. What cannot be read is named in the report and in `unreadable`; a picture that
        was read before stays as it was.

        Args:
            source: a folder or a file, or a list of them; a `datasets.Dataset` with `image` or `region_features`, all
                of whose other columns become metadata; in a library of captions a list of texts.
            batch_size: how many are encoded together.
            progress: show a bar.

        Raises:
            BlockingIOError: while another process adds.
            FileNotFoundError, ValueError: for a place without pictures, or data that do not fit: the model takes
                something else, columns have the names or hold other values than those of the library, two rows have
                the same `image_id`.
            OSError: for a full or read-only disk.
        """
        check_whole("batch_size", batch_size)
        if self.of == "captions":
            texts = texts_of(source)
            with self._updating(batch_size, progress) as update:
                return update.captions(texts)
        if isinstance(source, Dataset):
            with self._updating(batch_size, progress) as update:
                return update.rows(source)
        return self._files(source, batch_size, progress, remove=False)

    def sync(self, source, *, batch_size: int = 64, progress: bool = True) -> Report:
        """Bring the library up to date with folders: what is new, changed, moved or gone since.

        What is gone is removed, unless the folder has no picture at all any more, as one of a disk that is not there.

        Args:
            source: a folder, or a list of them.
            batch_size, progress: as in `add`.

        Raises:
            ValueError: for a library of captions; otherwise as `add`.
        """
        if self.of == "captions" or isinstance(source, Dataset):
            raise ValueError("sync compares folders of pictures with the library; expected a folder, or use add.")
        check_whole("batch_size", batch_size)
        return self._files(source, batch_size, progress, remove=True)

    def _files(self, source, batch_size: int, progress: bool, remove: bool) -> Report:
        problems: dict[str, str] = {}
        places = places_of(source)
        found = find_pictures(places, problems)
        with self._updating(batch_size, progress) as update:
            return update.files(found, problems, places, remove)

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

        It can be stopped at any moment, and another call with the same model goes on. The former model is not needed.
        Pictures that cannot be read any more are left out, and named. What was encoded before stays on the disk until
        `compact`.

        Args:
            model, processor: as of `PictureLibrary`.
            data: the rows that came from data sets, in one `datasets.Dataset`; their `image_id` tells which they are.
            batch_size, progress: as in `add`.

        Raises:
            ValueError: if rows came from data sets and are missing in `data`, or all pictures of a folder are;
                otherwise as `add`.
        """
        check_whole("batch_size", batch_size)
        loaded = load_model(model, processor)
        with self._writing() as store:
            new = store.beside(loaded.name, loaded.digest, loaded.model.config.projection_dim)
            update = Update(new, loaded.model, loaded.processor, batch_size, progress, lambda: self._tend(new, loaded))
            report = adopt_rows(update, store, data)
            store.write_settings(new.settings)
            self._tend(store, loaded, finished=True)
            self._loaded = loaded
            self._given = loaded if self._given is not None else None
        return report

    def remove(self, where: str) -> int:
        """Remove the items that a filter lets pass, such as `"year < 2000"`, and return how many; files stay."""
        with self._writing() as store:
            return store.delete_where(where)

    def compact(self) -> None:
        """Merge small files, and new rows into the index; delete what is needed no more.

        That is tables of former models, states older than an hour, and what updates left that were stopped. Searches go
        on meanwhile.
        """
        with self._writing() as store:
            self._tend(store, None, finished=True)
            store.clean()
            store.drop_others()

    @property
    def unreadable(self) -> dict[str, str]:
        """Files that could not be read, by path, and why."""
        store = self.store
        return {} if store is None else {row["path"]: row["reason"] for row in store.unreadable()}

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
            candidates: C, items that the first stage finds; by default what `check` chose, 400 before.

        Returns:
            [`Hits`], the best first. Of equal scores any may come first. None for a library without items.

        Raises:
            ValueError: for an empty sentence or one of more than 512 tokens, k or `candidates` below 1, or a `where`
                that is no filter.
        """
        if self.of != "pictures":
            raise ValueError("search looks for pictures, and this is a library of captions; use search_image.")
        return self._search("text", sentence, k, where, exact, candidates)

    def search_image(
        self, picture, k: int = 10, where: str | None = None, *, exact: bool = False, candidates: int | None = None
    ) -> Hits:
        """Find the captions that fit a picture best or, in a library of pictures, pictures like it.

        A head compares a picture with a text. Two pictures are compared in both roles, and the scores are averaged.

        Args:
            picture: PIL, a path or a URL; an array of regions [K, width] for a model that takes them.
            k, where, exact, candidates: as in `search`.
        """
        return self._search("image", picture, k, where, exact, candidates)

    def _search(self, side: str, given, k: int, where, exact: bool, candidates: int | None) -> Hits:
        check_whole("k", k)
        if candidates is not None:
            check_whole("candidates", candidates)
        snapshot = self._current()
        while True:
            encode = snapshot.encode_text if side == "text" else snapshot.encode_image
            query = snapshot.query(encode(given), side)
            try:
                in_memory = self.fits(len(snapshot.store), snapshot.store)
                ranking = snapshot.rank(query, k, where, exact, candidates, in_memory)
                return snapshot.hits(ranking, given)
            except (LookupError, RuntimeError, ValueError, OSError):
                latest = self._current()
                if latest is snapshot:
                    raise
                snapshot = latest  # what it looked at was deleted meanwhile

    def _encode_text(self, sentence: str) -> OmitFeatures:
        return self._current().encode_text(sentence)

    def fits(self, count: int, store: LanceStore | None = None) -> bool:
        """Whether the features of so many items fit into memory, as large as the library's first ones are."""
        return count * (store or self.store).item_bytes <= MEMORY

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
            BlockingIOError: while another process changes the library, since this changes it too.
        """
        check_whole("k", k)
        if isinstance(queries, int):
            check_whole("queries", queries)
        with self._writing() as store:
            snapshot = self._current()
            if snapshot.store.index is None:
                found = f"The library has no index: its {len(snapshot.store)} items are all scored"
                raise ValueError(f"{found}, and nothing is missed.")
            found = check_candidates(*snapshot.queries(queries), snapshot.store, k, share)
            store.write_settings(replace(store.settings, candidates=found.candidates))
        return found

    # --- within -------------------------------------------------------------------------------------------------------

    def _open(self) -> LanceStore | None:
        """The store, None if there is none yet."""
        if self.is_local and not os.path.isdir(self.path):
            if os.path.lexists(self.path):
                raise NotADirectoryError(f"{self.path!r} is a file; expected the folder of a library.")
            return None
        store = LanceStore(self.path, self.storage_options)
        if store.settings is None and is_foreign(store, self.is_local):
            raise ValueError(f"{self.path!r} holds something else; expected a library, an empty folder or a new one.")
        return store

    def _current(self) -> Snapshot:
        """The last state of the library, and the model that made it."""
        with self._lock:
            store = self.store
            if store is None or store.settings is None:
                if self._given is None:
                    raise ValueError(f"There is no library at {self.path!r} any more; expected one.")
                raise ValueError(f"The library {self.path!r} is empty; expected one to which pictures were added.")
            if self._snapshot is None or self._snapshot.store is not store:
                self._check_kind(store.settings)
                self._snapshot = Snapshot(store, self._model_of(store.settings), self.of)
            return self._snapshot

    def _model_of(self, settings: Settings) -> LoadedModel:
        """The model that made the library; another process may have encoded it again."""
        loaded = self._loaded
        if (loaded is None or loaded.digest != settings.digest) and self._given is None:
            loaded = load_library_model(settings.model, self.path)
        if loaded.digest != settings.digest:
            made = repr(settings.model) if settings.model else "a model that has no name"
            raise ValueError(
                f"The library {self.path!r} was made with {made}, and {loaded.name or 'the one given'} has other "
                "weights, another configuration or processor. Open it with the model that made it, or encode it again: "
                "PictureLibrary(path).reencode(model)."
            )
        self._loaded = loaded
        return loaded

    @contextlib.contextmanager
    def _writing(self) -> Iterator[LanceStore]:
        """Own the library, as the only one that writes; in an object store whoever calls must see to that."""
        if self.settings is None:
            raise ValueError(f"The library {self.path!r} is empty; expected one to which pictures were added.")
        with owned(self.path, self.is_local):
            yield LanceStore(self.path, self.storage_options)  # of its own: searches keep their state

    @contextlib.contextmanager
    def _updating(self, batch_size: int, progress: bool) -> Iterator[Update]:
        if self.settings is None:
            self._make(self._given)
        with self._writing() as store:
            self._check_kind(store.settings)
            loaded = self._model_of(store.settings)
            yield Update(store, loaded.model, loaded.processor, batch_size, progress, lambda: self._tend(store, loaded))
            self._tend(store, loaded, finished=True)

    def _make(self, loaded: LoadedModel) -> None:
        """Make an empty library, unless somebody has done so meanwhile."""
        if self.is_local:
            os.makedirs(self.path, exist_ok=True)
        with owned(self.path, self.is_local):
            store = self._open()
            if store.settings is None:
                width = loaded.model.config.projection_dim
                store.write_settings(Settings.of_model(self.of, loaded.name, loaded.digest, width))

    def _tend(self, store: LanceStore, loaded: LoadedModel | None, finished: bool = False) -> None:
        """Index what was added, where that pays: searches go on with what there was until it is done."""
        if len(store) and not self.fits(len(store), store):
            if store.index is not None:
                if finished or store.num_unindexed >= MERGE_ROWS:
                    store.tidy()
                return
            loaded = loaded or self._model_of(store.settings)
            if loaded.model.config.marginals != "cross_global":
                store.make_index()
                return
        if finished:
            store.tidy()
