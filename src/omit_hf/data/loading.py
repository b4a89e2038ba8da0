"""Loads any source: chooses its loader, and leaves out unwanted images."""

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict

from omit_hf.data.pictures import unreadable_pictures
from omit_hf.data.schema import listed
from omit_hf.data.sources.coco import CAPTION_FILES, load_coco_captions
from omit_hf.data.sources.compositions import load_compositions
from omit_hf.data.sources.cutouts import CUTOUTS
from omit_hf.data.sources.hub import find_parquet, load_hub
from omit_hf.data.sources.image_folder import METADATA, load_image_folder
from omit_hf.data.sources.karpathy import load_karpathy
from omit_hf.data.sources.regions import load_regions
from omit_hf.data.sources.scenes import load_scenes
from omit_hf.data.sources.webdataset import load_webdataset
from omit_hf.parsing import text_lines

logger = logging.getLogger(__name__)


def _region_files(folder: Path) -> Iterable[Path]:
    yield from (file for name in ("*_ims.npy", "*_ims.tsv") for file in folder.glob(name))
    # A folder of any name may end so; one of regions has captions beside it.
    yield from (each for each in folder.glob("*_ims") if Path(f"{str(each).removesuffix('ims')}caps.txt").is_file())


# What marks a folder of every kind; the first match decides.
FOLDERS: dict[Callable, Callable[[Path], Iterable[Path]]] = {
    load_regions: _region_files,
    load_coco_captions: lambda folder: (file for name in CAPTION_FILES for file in folder.glob(name)),
    load_image_folder: lambda folder: folder.glob(f"*/{METADATA}"),
    load_webdataset: lambda folder: folder.glob("*.tar"),
    load_compositions: lambda folder: folder.glob(CUTOUTS),
    load_hub: find_parquet,
}
KINDS = f"""'scenes'; the path of a Karpathy .json file; 'hub:user/name'; or a folder with
  train_ims.npy, train_ims.tsv or train_ims/ …, precomputed regions
  {" and ".join(CAPTION_FILES)}, COCO's annotations
  train/{METADATA} …, image folders
  train-00000.tar …, WebDataset archives
  {CUTOUTS}, drawings from which pictures are composed
  train-00000.parquet …"""


def load_image_text(
    source: str | Path,
    *,
    only: Sequence[str] | None = None,
    exclude: str | Path | Sequence[str] | None = None,
    skip_unreadable: bool = False,
    **options,
) -> DatasetDict | IterableDatasetDict:
    """Load any known source of images and captions.

    Args:
        source: `scenes`, the built-in benchmark; the path of a Karpathy JSON; a Hub data set as `hub:user/name` or
            `user/name`; or a folder of precomputed regions, COCO's annotations, image folders, WebDataset archives,
            cut-outs or parquet files.
        only: splits to load, such as `["test"]`; nothing else of the source is requested, checked or opened. Default:
            all that it has.
        exclude: ids of images to leave out, or a file with an id per line (`omit-hf inspect --unreadable`
            writes one).
        skip_unreadable: open every picture first, and leave out those that cannot be opened; a warning counts and names
            them. Takes as long as reading all pictures, at every call; `exclude` takes no time.
        options: of the loader: `load_scenes`, `load_karpathy`, `load_hub`, `load_regions`, `load_coco_captions`,
            `load_image_folder`, `load_webdataset` or `load_compositions`.

    Returns:
        `DatasetDict` with `train`, `validation` and `test`, or those of them that the source has or `only` names.

    Raises:
        ValueError: if the source is none of these, lacks a split of `only`, or the loader has no such option; and as
            the loader.
    """
    load = loader_of(source)
    known = dict(inspect.signature(load).parameters)
    if load is not load_scenes:
        known.pop(next(iter(known)))  # the source
    unknown = [name for name in options if name not in known]
    if unknown:
        known = [*known, "exclude", "skip_unreadable"]
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}? Expected" if close else "expected"
        raise ValueError(
            f"{load.__name__}, which reads {str(source)!r}, has no option {listed(map(repr, unknown))}; {hint} some of "
            f"{', '.join(known)}."
        )
    missing = [name for name, each in known.items() if each.default is each.empty and name not in options]
    if missing:
        raise ValueError(f"{load.__name__}, which reads {str(source)!r}, needs the option {listed(missing)}.")
    options["only"] = only
    data = load(**options) if load is load_scenes else load(source, **options)
    if exclude is not None:
        data = _without(data, _ids(exclude), whole=only is None)
    if skip_unreadable:
        data = _without_unreadable(data)
    return data


def loader_of(source: str | Path) -> Callable:
    """Find the loader of a source.

    Raises:
        ValueError: if there is none.
    """
    path = Path(source)
    if source == "scenes":
        return load_scenes
    if str(source).startswith("hub:"):
        return load_hub
    if path.is_dir():
        for loader, files in FOLDERS.items():
            if any(True for _ in files(path)):
                return loader
        raise ValueError(f"{source} holds no data that is known; expected {KINDS}")
    if path.suffix == ".json":
        return load_karpathy
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        return load_hub
    raise ValueError(f"data source {str(source)!r} is unknown; expected {KINDS}")


def _ids(exclude: str | Path | Sequence[str]) -> list[str]:
    if not isinstance(exclude, str | Path):
        return [str(each) for each in exclude]
    if not Path(exclude).is_file():
        raise FileNotFoundError(f"exclude is {str(exclude)!r}, which is not there; expected a file with an id a line.")
    return [line.strip() for line in text_lines(exclude) if line.strip()]


def _without(data: DatasetDict, excluded: list[str], whole: bool) -> DatasetDict:
    """Leave some images out; unless all splits are loaded, an unknown name may be of another split."""
    _refuse_streams(data, "exclude")
    places = {image_id: (split, n) for split, rows in data.items() for n, image_id in enumerate(rows["image_id"])}
    unknown = [image_id for image_id in excluded if image_id not in places]
    if unknown and whole:
        raise ValueError(f"exclude names images that are not in the data: {listed(unknown)}.")
    return _drop(data, {places[image_id] for image_id in excluded if image_id in places})


def _without_unreadable(data: DatasetDict) -> DatasetDict:
    _refuse_streams(data, "skip_unreadable")
    found = {}
    for split, rows in data.items():
        if "image" not in rows.column_names:
            raise ValueError("skip_unreadable is on, and the data have no pictures; leave it out.")
        ids = rows["image_id"]
        found |= {(split, number): f"{ids[number]}: {why}" for number, why in unreadable_pictures(rows).items()}
    if found:
        total = sum(map(len, data.values()))
        names = "\n  ".join(found.values())
        logger.warning("Left out %d of %d images, which cannot be read:\n  %s", len(found), total, names)
    return _drop(data, found)


def _refuse_streams(data: DatasetDict | IterableDatasetDict, option: str) -> None:
    if isinstance(data, IterableDatasetDict):
        raise ValueError(f"{option} is set, and the data are a stream, whose rows are not known; leave out either.")


def _drop(data: DatasetDict, places: Iterable[tuple[str, int]]) -> DatasetDict:
    places = set(places)
    out = {}
    for split, rows in data.items():
        kept = [number for number in range(len(rows)) if (split, number) not in places]
        if len(kept) < len(rows) and "relevant_captions" in rows.column_names:
            raise ValueError("Images of scenes cannot be left out: their relevant_captions number all captions.")
        out[split] = rows if len(kept) == len(rows) else rows.select(kept)
    return DatasetDict(out)
