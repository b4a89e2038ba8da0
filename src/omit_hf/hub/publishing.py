"""Publishes a finished run on the Hub: loads it first, then uploads all of it in one commit, or nothing."""

import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of whichever HTTP library it is built on
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from omit_hf.cards import CardPictures, check_card, model_card
from omit_hf.cards.known_data import SCENES, known_data
from omit_hf.data import load_image_text
from omit_hf.data.pictures import open_picture, stored_pictures
from omit_hf.hub.endpoint import HANDLER_FILE, REQUIREMENTS_FILE, endpoint_files, missing_code, named_code, needed_code
from omit_hf.modeling import OmitModel, OmitProcessor
from omit_hf.modeling.backbones_omit import fit_tokenizer
from omit_hf.parsing import label, parse_yaml, read_json, read_text
from omit_hf.training.checkpoints import CARD_FILE, RECIPE_FILE, recipe_changes
from omit_hf.training.recipe import Recipe
from omit_hf.training.recipe_files import read_recipe_file, recipe_text
from omit_hf.training.records import METRICS_FILE, read_metrics

SAMPLE_FILE, ALIGNMENT_FILE = "sample.png", "alignment.png"
# Patterns of files that may go to the Hub; all others (checkpoints, logs, optimiser states) stay in the folder. Of the
# files that match, those go that a run writes; see `_written`.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")
TOKENIZER += ("added_tokens.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
PUBLISHED = (*WEIGHTS, "config.json", "processor_config.json", "preprocessor_config.json", *TOKENIZER)
PUBLISHED += (RECIPE_FILE, METRICS_FILE)
PUBLISHED += ("*_omit.py", "handler.py", "requirements.txt")  # remote code and the inference endpoint's
GENERATED = (CARD_FILE, SAMPLE_FILE, ALIGNMENT_FILE)
OF_A_NEW_REPOSITORY = {".gitattributes"}
# Of a recipe: fields that may name a model or data of the Hub, and options that name what is within the data.
OF_THE_HUB = ("data", "clip_model", "vision_model", "text_model", "vision_config", "text_config", "image_processor")
OF_THE_HUB += ("_name_or_path", "name_or_path")
OF_THE_DATA = ("columns", "splits", "split_column", "name", "revision")
OF_A_FILE = r".*\.(jsonl?|ya?ml|txt|[ct]sv|parquet|np[yz]|tar|gz|zip|vec|bin|pt|safetensors|jpe?g|png|webp|gif)"


@dataclass(frozen=True)
class Publication:
    """The files that go to the Hub.

    Args:
        repo_id: the repository, `user/name`.
        files: names in the repository → their content: a file of the folder, or bytes.
        notes: what is left out, or differs from what the publisher might expect.
    """

    repo_id: str
    files: dict[str, Path | bytes]
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def prepare(
    folder: str | Path, repo_id: str, *, licence: str | None = None, sample: int | None = None, own_card: bool = False
) -> Publication:
    """Load a finished run, make its card and pictures, and list the files for the Hub. Asks nobody, writes nothing.

    Recipe, metrics and card lose the folders of this machine: only the last name of a path, absolute or relative, is
    kept. Only files that a run or `write_handler` writes are published; the others stay, whatever their names.

    Args:
        folder: the `output_dir` of a training.
        repo_id: the repository, `user/name`.
        licence: licence of the weights; see `model_card`.
        sample: number of the test picture for the card, from 0. Default: the first if the pictures are generated here;
            none for other data, whose licence may not allow it.
        own_card: publish the folder's README.md as it is, without pictures.

    Raises:
        FileNotFoundError: if there is no such folder, or a file of a finished run or of its model's code is missing.
        ValueError: if a file to publish is a symbolic link, the run was not tested, the model or the processor does not
            load, a weight is not a number, recipe and metrics differ, the sample does not exist, the card is not fit
            for the Hub, or `repo_id` is not a valid name.
    """
    folder = Path(folder)
    _check_repo_id(repo_id)
    _check_links(folder)
    metrics = _finished(folder)
    model, processor = _loaded(folder)
    written, of_files = _written(folder, processor)
    files: dict[str, Path | bytes] = {name: folder / name for name in written}
    recipe = without_folders(metrics["recipe"])
    if own_card:
        if sample is not None or licence is not None:
            raise ValueError("own_card is on, and sample or licence is given; expected them in the card itself.")
        text, pictures, notes = read_text(folder / CARD_FILE), {}, ()
    else:
        pictures, of_card, notes = _pictures(Recipe(**metrics["recipe"]), model, processor, sample)
        text = model_card({**metrics, "recipe": recipe}, repo_id, licence=licence, pictures=of_card)
        if read_text(folder / CARD_FILE) != model_card(metrics):
            notes += (f"{CARD_FILE} is made anew and not the folder's, which is another; --own_card publishes that.",)
    if not named_code(folder):
        notes += (
            "No code goes along, so that the model loads with omit-hf alone; to bring it, load and save it anew.",
        )
    notes += of_files
    files[RECIPE_FILE] = recipe_text(recipe).encode()
    files[METRICS_FILE] = (json.dumps({**metrics, "recipe": recipe}, indent=2, ensure_ascii=False) + "\n").encode()
    files = {CARD_FILE: text.encode(), **pictures, **files}
    check_card(text, set(files))
    return Publication(repo_id, files, notes)


def without_folders(recipe: dict) -> dict:
    """Shorten the paths in a recipe's fields to `./name`. Defaults reveal nothing and stay.

    A name of the Hub looks like a path of two names. It counts as a name unless its field, its suffix or an existing
    file shows that it is a path.
    """
    defaults = {field.name: field.default for field in fields(Recipe)}
    return {
        name: value if value == defaults.get(name) else _without_folders(value, name) for name, value in recipe.items()
    }


def _without_folders(value, field: str):
    if isinstance(value, dict):
        within = field in OF_THE_DATA
        return {name: _without_folders(each, field if within else name) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each, field) for each in value]
    if isinstance(value, str) and _is_path(value, field):
        return f"./{PureWindowsPath(value).name}"  # knows both kinds of separators
    return value


def _is_path(text: str, field: str) -> bool:
    if any(kind(text).is_absolute() for kind in (PurePosixPath, PureWindowsPath)) or text.startswith("file:"):
        return True
    if not re.search(r"[/\\]", text) or "://" in text:
        return False
    if re.match(r"[.~]", text) or field not in (*OF_THE_HUB, *OF_THE_DATA):
        return True
    of_the_hub = re.fullmatch(r"(hub:)?[\w-][\w.-]*/[\w-][\w.-]*", text) is not None
    is_file = re.fullmatch(OF_A_FILE, text, re.IGNORECASE) is not None or os.path.exists(text)
    return field in OF_THE_HUB and (not of_the_hub or is_file)


def publish(
    publication: Publication,
    *,
    private: bool = False,
    create_pr: bool = False,
    overwrite: bool = False,
    report: Callable[[str], object] = print,
) -> CommitInfo:
    """Publish on the Hub, in a single commit.

    A missing repository is created. A repository with the same recipe gets the new files; files of the old run that are
    not in the new one are deleted. Any other content is replaced only with `overwrite`, or in a pull request.

    Args:
        publication: publication from `prepare`.
        private: make a new repository private.
        create_pr: open a pull request in an existing repository, instead of changing it.
        overwrite: replace whatever the repository holds; its history keeps the old content.
        report: called with a message for everything done besides the commit.

    Raises:
        ValueError: if the Hub does not take the card.
        FileExistsError: if the repository holds another model.
        PermissionError: if the token is wrong, missing or not for this repository.
        OSError: if the Hub cannot be reached, or the upload is interrupted; the message says what the Hub then holds.
    """
    api, repo_id = HfApi(), publication.repo_id
    for content in publication.files.values():
        if isinstance(content, Path):
            _check_link(content)
    with _explained(api, repo_id):
        user = api.whoami()["name"]
        info = _repository(api, repo_id)
        if info is None and create_pr:
            raise ValueError(f"create_pr is on, and there is no {repo_id} to open a pull request in; leave it out.")
        if info is not None and private and not info.private:
            raise ValueError(
                f"private is on, and {repo_id} is there and public; make it private in its settings first."
            )
        stale = [] if info is None else _replaced(api, info, publication, overwrite or create_pr)
        _ask_about_the_card(publication)  # before anything is made
        if info is None:
            api.create_repo(repo_id, private=private or None)
            report(f"Made {'the private repository ' if private else ''}{repo_id} as {user}.")
            info = _repository(api, repo_id)
    if info is None:
        raise OSError(f"{repo_id} was made, and is not to be seen; nothing was published. Try again.")
    operations = [CommitOperationAdd(name, content) for name, content in publication.files.items()]
    operations += [CommitOperationDelete(name) for name in stale]
    try:
        with _explained(api, repo_id):
            return api.create_commit(
                repo_id,
                operations,
                commit_message="Publish an omit-hf model",
                create_pr=create_pr,
                parent_commit=info.sha,  # protects what somebody else commits meanwhile
            )
    except (OSError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        if type(error).__module__ == "builtins":  # others may want more than a message
            kind = type(error)
        raise kind(f"{error}\n{_state(api, repo_id, info.sha, create_pr)}") from error


def _check_repo_id(repo_id: str) -> None:
    if repo_id.count("/") != 1:
        raise ValueError(f"The repository is {repo_id!r}; expected user/name.")
    validate_repo_id(repo_id)


def _finished(folder: Path) -> dict:
    """Read the metrics of a finished run."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; expected the output_dir of a training.")
    missing = [name for name in ("config.json", RECIPE_FILE, METRICS_FILE, CARD_FILE) if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in (WEIGHTS[0], WEIGHTS[2])):
        missing.append(WEIGHTS[0])
    if missing not in ([], [CARD_FILE]):
        raise FileNotFoundError(
            f"{folder} is no finished run: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. Finish "
            "the training with --resume; a model without its run goes to the Hub with its own push_to_hub."
        )
    try:
        metrics = read_metrics(folder / METRICS_FILE)
        if metrics["test"] is None:
            raise ValueError(
                f"The run in {folder} was not tested, so it has no results to publish; train with test on."
            )
        metrics["recipe"] = asdict(_recipe(folder, metrics["recipe"]))
        changes = recipe_changes(metrics["recipe"], _recipe(folder, read_recipe_file(folder / RECIPE_FILE)))
        model_card(metrics)  # which needs all of it
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / METRICS_FILE} is not what a run writes: {label(repr(error))}.") from error
    if changes:
        listed = "\n  ".join(changes)
        raise ValueError(
            f"{RECIPE_FILE} in {folder} is not the recipe that {METRICS_FILE} was measured with:\n  {listed}"
        )
    missing += missing_code(folder)
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which a run writes; put back what was there.")
    return metrics


def _recipe(folder: Path, fields: dict) -> Recipe:
    try:
        return Recipe(**fields)
    except ValueError as error:
        raise ValueError(f"The recipe in {folder} is not valid: {error}") from error


def _check_links(folder: Path) -> None:
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _matches(file.name, (*PUBLISHED, CARD_FILE)):
            _check_link(file)


def _check_link(file: Path) -> None:
    """Check that a file is in its folder, and not somewhere else on this machine."""
    if file.is_symlink():
        raise ValueError(
            f"{file} is a symbolic link to {os.readlink(file)}, which is not published; put a copy in its place if it "
            "is to go, or remove it."
        )


def _written(folder: Path, processor: OmitProcessor) -> tuple[list[str], tuple[str, ...]]:
    """List the files that a run or `write_handler` wrote, and notes on others that look like them."""
    names = {"config.json", *needed_code(folder), RECIPE_FILE, METRICS_FILE}
    if (folder / WEIGHTS[2]).is_file():
        weight_map = read_json(folder / WEIGHTS[2]).get("weight_map")  # with which the model has been loaded
        names |= {WEIGHTS[2], *weight_map.values()}
    else:
        names.add(WEIGHTS[0])
    with tempfile.TemporaryDirectory() as scratch:
        processor.save_pretrained(scratch)
        names |= {file.name for file in Path(scratch).iterdir() if file.suffix != ".py"}
    for name, content in endpoint_files().items():
        file = folder / name
        if file.is_file() and file.read_bytes() == content.encode() and (folder / HANDLER_FILE).is_file():
            names.add(name)
    there = sorted(file.name for file in folder.iterdir() if file.is_file() and _matches(file.name, PUBLISHED))
    notes = [
        f"{name} stays here, since it is not what omit_hf.hub.write_handler writes; write it anew to publish it."
        if name in (HANDLER_FILE, REQUIREMENTS_FILE)
        else f"{name} stays here, since no run of this model writes it."
        for name in there
        if name not in names
    ]
    return [name for name in there if name in names], tuple(notes)


def _loaded(folder: Path) -> tuple[OmitModel, OmitProcessor]:
    try:
        model, processor = OmitModel.from_pretrained(folder), OmitProcessor.from_pretrained(folder)
    except StrictDataclassError as error:
        raise ValueError(f"The configuration in {folder} is not valid: {error.__cause__}") from error
    except ValueError as error:
        raise ValueError(f"The model in {folder} does not load, so it is not published: {error}") from error
    fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
    broken = [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]
    if broken:
        raise ValueError(
            f"Weights in {folder} are NaN or infinite, so they are not published: {', '.join(broken[:10])}."
        )
    return model.eval(), processor


def _pictures(
    recipe: Recipe, model: OmitModel, processor: OmitProcessor, sample: int | None
) -> tuple[dict[str, bytes], CardPictures | None, tuple[str, ...]]:
    """Make the files of the card's pictures, and what the card says of them; or tell why there are none."""
    generated = known_data(recipe.data, recipe.data_options) is SCENES
    if recipe.takes_regions:
        if sample is not None:
            raise ValueError(
                "A sample is given, and the model takes regions, of which there is no picture; leave it out."
            )
        return {}, None, ("No pictures: the model takes precomputed regions.",)
    if sample is None and not generated:
        return {}, None, ("No pictures: whether those of the data may be published is not known; see --sample.",)
    number = sample or 0
    options = dict(recipe.data_options or {})
    if generated:  # of which a picture does not depend on how many there are
        options |= {"test_size": number + 3}
    test = load_image_text(recipe.data, **{**options, "only": ["test"]})["test"]
    if not 0 <= number < len(test):
        raise ValueError(f"sample is {number}; expected a test picture from 0 to {len(test) - 1}.")
    picture = open_picture(stored_pictures(test.select([number]))[0]["image"])
    captions = tuple(dict.fromkeys(test[(number + step) % len(test)]["captions"][0] for step in range(3)))
    drawing, notes = _alignment(model, processor, picture, captions[0])
    files = {SAMPLE_FILE: _png(lambda file: picture.save(file, format="PNG"))}
    if drawing is not None:
        files[ALIGNMENT_FILE] = drawing
    return files, CardPictures(SAMPLE_FILE, captions, None if drawing is None else ALIGNMENT_FILE), notes


def _alignment(model, processor, picture, caption: str) -> tuple[bytes | None, tuple[str, ...]]:
    try:
        from omit_hf.visualization import explain
    except ImportError as error:
        return None, (f"No {ALIGNMENT_FILE}: {error}",)
    try:
        figure = explain(model, processor, picture, caption)
    except ValueError as error:  # the head does not align, or the cells are no grid
        return None, (f"No {ALIGNMENT_FILE}: {error}",)
    return _png(lambda file: figure.savefig(file, format="png", dpi=150)), ()


def _png(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _ask_about_the_card(publication: Publication) -> None:
    try:
        check_card(publication.files[CARD_FILE].decode(), set(publication.files)).validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        raise ValueError(f"The Hub does not take the card: {error}") from error


def _repository(api: HfApi, repo_id: str) -> ModelInfo | None:
    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None


def _replaced(api: HfApi, info: ModelInfo, publication: Publication, allowed: bool) -> list[str]:
    """List the files of the repository that the commit deletes.

    Raises:
        FileExistsError: if it holds another model, and replacing it is not allowed.
    """
    there = {each.rfilename for each in info.siblings} - OF_A_NEW_REPOSITORY
    rest = sorted(there - publication.files.keys())
    if not there:
        return []
    if RECIPE_FILE in there and _same_recipe(api, info, publication):
        return [name for name in rest if _matches(name, (*PUBLISHED, *GENERATED))]
    if not allowed:
        shown = ", ".join(sorted(there)[:5]) + (" …" if len(there) > 5 else "")
        raise FileExistsError(
            f"{info.id} is there and holds something else ({shown}), and not a model of this recipe. Choose another "
            "name, or set create_pr to open a pull request, or overwrite to replace it."
        )
    return rest


def _same_recipe(api: HfApi, info: ModelInfo, publication: Publication) -> bool:
    file = api.hf_hub_download(info.id, RECIPE_FILE, revision=info.sha)
    ours = Recipe(**parse_yaml(publication.files[RECIPE_FILE].decode(), RECIPE_FILE))
    try:
        return not recipe_changes(without_folders(asdict(Recipe(**read_recipe_file(file)))), ours)
    except ValueError:  # of another version, or somebody else's recipe
        return False


@contextmanager
def _explained(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turn the errors of the Hub's client into advice for the user."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError("There is no token for the Hub; run `hf auth login`, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise _answered(error, repo_id) from error
    except HTTPError as error:
        raise ConnectionError(f"The Hub at {api.endpoint} cannot be reached: {error}") from error
    except RuntimeError as error:  # of an upload, whose cause tells more
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _answered(cause, repo_id) from error
        raise ConnectionError(f"The upload was interrupted: {cause or error}") from error
    except KeyboardInterrupt as error:
        raise InterruptedError("The upload was interrupted from the keyboard.") from error


def _answered(error: HfHubHTTPError, repo_id: str) -> OSError:
    status, said = error.response.status_code, error.server_message or str(error)
    if status == 401:
        return PermissionError(f"The Hub does not know the token (401, {said}); run `hf auth login`, or set HF_TOKEN.")
    if status == 403:
        return PermissionError(
            f"The token may not write to {repo_id} (403, {said}); expected one with write permission, of its owner or "
            "a member of its organisation. A pull request (create_pr) needs less."
        )
    if status == 409:
        return FileExistsError(f"{repo_id} has been made meanwhile by another (409, {said}); try again.")
    if status == 412:
        return FileExistsError(f"{repo_id} has changed while this was uploaded (412, {said}); try again.")
    return OSError(f"The Hub answered with an error ({status}, {said}).")


def _state(api: HfApi, repo_id: str, before: str | None, create_pr: bool) -> str:
    """Find out what the Hub holds after an error: the commit may have arrived though its answer did not."""
    try:
        info = _repository(api, repo_id)
    except (OSError, HTTPError):
        return f"What is there now could not be asked; see {api.endpoint}/{repo_id}/commits/main."
    if info is None or info.sha != before:
        return f"{repo_id} has changed meanwhile; see {api.endpoint}/{repo_id}/commits/main."
    if create_pr:
        return f"{repo_id} is as it was before; see its pull requests before you try again."
    return f"Nothing was published: {repo_id} is as it was before. The same command begins again."
