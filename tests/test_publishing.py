"""Publishing, with the Hub's own client, on a Hub in a thread; see hub_server.py."""

import hashlib
import json
import re
import runpy
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hub_server import HubServer, in_a_process
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import CODE, PROGRAMS, REGIONS, tiny_config, tiny_recipe

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import load_image_text
from omit_hf.evaluation import evaluate_split
from omit_hf.hub import publishing, write_handler
from omit_hf.hub.publishing import prepare, publish, without_folders
from omit_hf.training import Recipe, read_recipe_file, train, write_recipe_file

SCRIPT = Path(__file__).parents[1] / "examples" / "push_to_hub.py"
FILES = {"README.md", "config.json", "metrics.json", "model.safetensors", "processor_config.json", "recipe.yaml"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "alignment.png", "sample.png"} | CODE
READER = PROGRAMS / "read_from_the_hub.py"
STAYS = ("optimizer.pt", "pytorch_model.bin", "states.pkl", "notes.txt", "tokenizer.pkl", "training.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    AcceleratorState._reset_state(True)
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train(Recipe(**tiny_recipe(output_dir=str(folder), num_epochs=1)))
    AcceleratorState._reset_state(True)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A finished run of one's own, with much beside it that is nobody's business."""
    folder = shutil.copytree(trained, tmp_path / "tiny")
    for name in STAYS:
        (folder / name).write_bytes(b"private")
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "events").write_bytes(b"private")
    assert list((folder / "checkpoints").iterdir())
    return folder


@pytest.fixture(scope="module")
def publication(trained):
    """What of it goes to the Hub; for the tests that change nothing in the folder."""
    return prepare(trained, "user/model")


@pytest.fixture
def hub():
    with HubServer({"hf_right": "user", "hf_other": "other"}) as server:
        yield server


@pytest.fixture
def client(hub, monkeypatch, tmp_path):
    """The Hub's client in this process: of that Hub, with a cache of its own, and without waiting between attempts."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # for which it asks nobody
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    return hub


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs push_to_hub.py in this process."""

    def call(*arguments) -> tuple[str, str | None]:
        monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            error = None
        except SystemExit as stop:
            error = str(stop.code)
        return capsys.readouterr().out, error

    return call


def local(folder: Path) -> dict[str, bytes]:
    return {name: content if isinstance(content, bytes) else content.read_bytes() for name, content in folder.items()}


def test_a_run_goes_to_the_hub_in_one_commit_and_comes_back(hub, run, tmp_path):
    """In two processes, the second of which has nothing but the model's name."""
    pushed = in_a_process(hub, tmp_path, SCRIPT, run, "user/model")
    assert pushed.returncode == 0, pushed.stderr[-2000:]
    [_, (commit, _)] = hub.repositories["user/model"].commits
    assert f"Published: {hub.endpoint}/user/model/commit/{commit}" in pushed.stdout
    assert hub.files("user/model").keys() == FILES | {".gitattributes"}

    model, processor = OmitModel.from_pretrained(run), OmitProcessor.from_pretrained(run)
    test = load_image_text("scenes", train_size=8, validation_size=4, test_size=6)["test"]
    expected = evaluate_split(model, processor, test, progress=False)[1]
    shutil.rmtree(run)
    read = in_a_process(hub, tmp_path, READER, tmp_path / "scores.npy")
    assert read.returncode == 0, read.stderr[-2000:]
    published, pushed_again = np.load(tmp_path / "scores.npy")
    assert np.array_equal(published, expected)
    assert np.array_equal(pushed_again, expected)
    assert len(hub.repositories["user/again"].commits) == 3  # transformers makes a commit of each
    shown = [float(number) for number in re.search(r"tensor\(\[\[(.*)\]\]\)", read.stdout)[1].split(",")]
    assert shown == pytest.approx(expected[0, [0, 5, 10]], abs=1e-3)  # by the code of the card


def test_what_goes_is_all_of_the_run_and_nothing_else(client, run):
    write_handler(run)
    publication = prepare(run, "user/model")
    commit = publish(publication)
    there = client.files("user/model")
    assert there.keys() == FILES | {".gitattributes", "handler.py", "requirements.txt"}
    made = {".gitattributes", "README.md", "alignment.png", "sample.png", "recipe.yaml", "metrics.json"}
    for name in there.keys() - made:
        assert there[name] == (run / name).read_bytes(), name
    assert client.repositories["user/model"].commits[-1][0] == commit.oid
    assert client.repositories["user/model"].messages[1:] == ["Publish an omit-hf model"]
    assert not client.repositories["user/model"].private
    for name in ("sample.png", "alignment.png"):
        (run / name).write_bytes(there[name])
    test = load_image_text("scenes", train_size=1, validation_size=1, test_size=3)["test"]
    assert list(Image.open(run / "sample.png").get_flattened_data()) == list(test[0]["image"].get_flattened_data())
    assert Image.open(run / "alignment.png").width > 500
    [widget] = ModelCard(there["README.md"].decode()).data.widget
    assert widget["src"] == "sample.png"
    assert widget["candidate_labels"].split(", ") == [row["captions"][0].replace(",", "") for row in test]


def test_the_folders_of_this_machine_stay(client, run):
    """What else the recipe and the metrics tell, they tell on the Hub too."""
    home = {"data_options": {"train_size": 8, "image_folder": "/home/me/images", "exclude": [r"C:\me\a.png", "b.png"]}}
    home |= {"word_vectors": "/home/me/glove.txt", "cache_folder": "~/.cache/omit_hf", "output_dir": str(run)}
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["recipe"] |= home
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_recipe_file(Recipe(**metrics["recipe"]), run / "recipe.yaml")
    publication = prepare(run, "user/model", own_card=True)
    publish(publication)
    there = client.files("user/model")
    for name in ("recipe.yaml", "metrics.json"):
        assert b"/me" not in there[name]
        assert str(run.parent).encode() not in there[name]
        (run / name).write_bytes(there[name])
    published = json.loads(there["metrics.json"])
    assert {**published, "recipe": None} == {**metrics, "recipe": None}
    assert published["recipe"] == read_recipe_file(run / "recipe.yaml")
    changed = {name for name, value in published["recipe"].items() if value != metrics["recipe"][name]}
    assert changed == {"data_options", "word_vectors", "output_dir"}
    assert published["recipe"]["word_vectors"] == "./glove.txt"
    assert published["recipe"]["data_options"] == {
        "train_size": 8,
        "image_folder": "./images",
        "exclude": ["./a.png", "b.png"],
    }
    publish(publication)  # the same recipe still


@pytest.mark.parametrize(
    ("field", "value", "published"),
    [
        ("output_dir", "../alice/run", "./run"),
        ("output_dir", "outputs/run", "./run"),
        ("output_dir", "~/alice/run/", "./run"),
        ("output_dir", r"..\alice\run", "./run"),
        ("data", "../alice/dataset_coco.json", "./dataset_coco.json"),
        ("data", "alice/dataset_coco.json", "./dataset_coco.json"),
        ("data", "alice/secret/regions", "./regions"),
        ("data", "file:///home/alice/regions", "./regions"),
        ("data", "hub:../alice", "./alice"),
        ("data", "tests/helpers", "./helpers"),  # a folder that is there
        ("data", "hub:user/name", "hub:user/name"),
        ("data", "user/name-1.5", "user/name-1.5"),
        ("data", "scenes", "scenes"),
        ("word_vectors", "alice/glove", "./glove"),
        ("clip_model", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("clip_model", "./alice/clip", "./clip"),
        ("vision_config", {"_name_or_path": "../alice/vit", "sizes": ["a/b/c"]}, None),
        ("data_options", {"image_folder": "alice/images", "exclude": ["../alice/a.png", "b.png"]}, None),
        ("data_options", {"revision": "refs/pr/1", "columns": {"captions": "a/b"}, "split_file": "x/y"}, None),
        ("cache_folder", "~/.cache/omit_hf", "~/.cache/omit_hf"),  # the default
        ("cache_folder", "~/alice/cache", "./cache"),
    ],
)
def test_of_a_path_its_last_name_is_left(field, value, published, tmp_path, monkeypatch):
    (tmp_path / "tests" / "helpers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    expected = {
        "vision_config": {"_name_or_path": "./vit", "sizes": ["./c"]},
        "data_options": {"image_folder": "./images", "exclude": ["./a.png", "b.png"]},
    }
    if published is None and "revision" in value:
        published = {"revision": "refs/pr/1", "columns": {"captions": "a/b"}, "split_file": "./y"}
    assert without_folders({field: value}) == {field: published or expected[field]}
    assert without_folders({field: published or expected[field]}) == {field: published or expected[field]}


def test_relative_folders_stay_too(run):
    """In none of the files that are made."""
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["recipe"] |= {"output_dir": "../alice/tiny", "word_vectors": "../alice/glove.txt"}
    (run / "metrics.json").write_text(json.dumps(metrics))
    write_recipe_file(Recipe(**metrics["recipe"]), run / "recipe.yaml")
    for name, content in prepare(run, "user/model").files.items():
        assert b"alice" not in (content if isinstance(content, bytes) else content.read_bytes()), name


@pytest.mark.parametrize(
    "name",
    ["vocab.txt", "model.safetensors", "config.json", "README.md", "recipe.yaml", "modeling_omit.py", "handler.py"],
)
def test_a_symbolic_link_is_refused(run, name, tmp_path):
    """Whether it leads to a file or nowhere, and when it has come after the list was made."""
    key = tmp_path / "key"
    publication = prepare(run, "user/model")
    key.write_bytes((run / name).read_bytes() if (run / name).exists() else b"secret")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(key)
    with pytest.raises(ValueError, match=rf"{name} is a symbolic link to .*key, which is not published; put a copy"):
        prepare(run, "user/model")
    if name in ("model.safetensors", "config.json", "modeling_omit.py"):
        with pytest.raises(ValueError, match=rf"{name} is a symbolic link"):
            publish(publication)
    key.unlink()
    with pytest.raises(ValueError, match=rf"{name} is a symbolic link"):
        prepare(run, "user/model")


def test_what_no_run_writes_stays_whatever_its_name(run):
    strange = ["secret_omit.py", "vocab.txt", "merges.txt", "spiece.model", "model-00001-of-00002.safetensors"]
    for name in (*strange, "handler.py", "requirements.txt"):
        (run / name).write_text("secret")
    publication = prepare(run, "user/model")
    assert publication.files.keys() == FILES
    assert len(publication.notes) == 7
    assert f"{strange[0]} stays here, since no run of this model writes it." in publication.notes
    assert (
        "handler.py stays here, since it is not what omit_hf.hub.write_handler writes; write it anew to publish it."
        in (publication.notes)
    )


def test_code_that_is_imported_must_be_there(run):
    (run / "sinkhorn_omit.py").unlink()
    with pytest.raises(FileNotFoundError, match="lacks sinkhorn_omit.py, which a run writes"):
        prepare(run, "user/model")


def test_a_dry_run_lists_what_would_go_and_asks_nobody(client, run, script, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    out, error = script(run, "user/model", "--dry_run")
    assert error is None
    listed = dict(re.findall(r"^(\S+\.\w+) +([\d,]+) bytes$", out, flags=re.MULTILINE))
    assert listed.keys() == FILES
    size = (run / "model.safetensors").stat().st_size
    assert listed["model.safetensors"] == f"{size:,}"
    total = sum(int(each.replace(",", "")) for each in listed.values())
    assert re.search(rf"^in all +{total:,} bytes$", out, flags=re.MULTILINE)
    assert out.endswith("A dry run: nothing was sent.\n")
    assert client.requests == []
    assert not (run / "sample.png").exists()


def spoil(name, change):
    return lambda folder: change(folder / name)


def without_weights(file):
    save_file(dict(list(load_file(file).items())[:-1]), file, {"format": "pt"})


def nan_weights(file):
    weights = load_file(file)
    weights["vision_encoder.projection.weight"][0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})


def not_tested(folder):
    (folder / "README.md").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "test": None}))


def edited(old, new):
    return lambda file: file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "There is no folder .*tiny; expected the output_dir of a training"),
        (spoil("metrics.json", Path.unlink), FileNotFoundError, "is no finished run: metrics.json is missing"),
        (
            spoil("model.safetensors", Path.unlink),
            FileNotFoundError,
            "is no finished run: model.safetensors is missing",
        ),
        (
            lambda folder: [(folder / name).unlink() for name in ("recipe.yaml", "README.md")],
            FileNotFoundError,
            "is no finished run: recipe.yaml, README.md are missing",
        ),
        (spoil("metrics.json", lambda file: file.write_text("{")), ValueError, "metrics.json is no JSON: Expecting"),
        (spoil("metrics.json", edited('"splits"', '"split"')), ValueError, "is not what a run writes: KeyError"),
        (spoil("recipe.yaml", edited("seed: 0", "seed: 1")), ValueError, "is not the recipe .*\n  seed: was 0, is 1"),
        (
            spoil("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:5000])),
            ValueError,
            "The model in .* does not load, so it is not published",
        ),
        (spoil("model.safetensors", without_weights), ValueError, "1 parameters of the model are not those"),
        (spoil("model.safetensors", nan_weights), ValueError, "NaN or infinite, .*: vision_encoder.projection.weight"),
        (
            spoil("config.json", edited('"dustbin": "global"', '"dustbin": 3')),
            ValueError,
            "configuration in .* not valid",
        ),
        (spoil("tokenizer.json", Path.unlink), ValueError, "tokenizer"),
        (spoil("README.md", Path.unlink), FileNotFoundError, "lacks README.md, which a run writes"),
        (spoil("modeling_omit.py", Path.unlink), FileNotFoundError, "lacks modeling_omit.py, which a run writes"),
        (not_tested, ValueError, "was not tested, so it has no results to publish; train with test on"),
    ],
)
def test_what_is_broken_or_not_finished_is_not_published(run, change, kind, message):
    change(run)
    with pytest.raises(kind, match=message):
        prepare(run, "user/model")


@pytest.mark.parametrize("name", ["model", "a/b/c", "user/na me", "user/"])
def test_a_name_that_is_none(run, name):
    with pytest.raises(ValueError, match=re.escape(repr(name) if name.count("/") != 1 else name)):
        prepare(run, name)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_wrong", r"error: The Hub does not know the token \(401, .*\); run `hf auth login`, or set HF_TOKEN"),
        (None, "error: There is no token for the Hub; run `hf auth login`, or set HF_TOKEN"),
        ("hf_other", r"error: The token may not write to user/model \(403, You don't have the rights"),
    ],
)
def test_a_token_that_is_wrong_missing_or_of_another(client, run, script, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    out, error = script(run, "user/model")
    assert re.match(message, error)
    assert client.repositories == {}
    assert client.objects == {}


def test_another_model_is_replaced_only_when_asked(client, trained, publication, script):
    before = {"README.md": b"---\ntags: [a]\n---\n", "pytorch_model.bin": b"theirs", "config.json": b"{}"}
    client.create("user/model", files=before)
    with pytest.raises(
        FileExistsError, match=r"holds something else \(README.md, config.json, pytorch_model.bin\), and not"
    ):
        publish(publication)
    assert len(client.repositories["user/model"].commits) == 1
    assert client.objects == {}

    out, error = script(trained, "user/model", "--create-pr")
    assert error is None
    assert f"Published: {client.endpoint}/user/model/discussions/1" in out
    assert client.files("user/model").keys() == before.keys() | {".gitattributes"}
    assert client.files("user/model", "refs/pr/1").keys() == FILES | {".gitattributes"}

    publish(publication, overwrite=True)
    assert client.files("user/model").keys() == FILES | {".gitattributes"}
    assert len(client.repositories["user/model"].commits) == 2


def test_a_pull_request_to_somebody_else(client, publication):
    client.create("other/model", files={"README.md": b"theirs"})
    publication = replace(publication, repo_id="other/model")
    with pytest.raises(FileExistsError, match="other/model is there and holds something else"):
        publish(publication)
    with pytest.raises(PermissionError, match=r"may not write to other/model \(403(.|\n)*Nothing was published"):
        publish(publication, overwrite=True)
    commit = publish(publication, create_pr=True)
    assert commit.pr_num == 1
    assert client.files("other/model").keys() == {".gitattributes", "README.md"}
    with pytest.raises(ValueError, match="there is no other/nothing to open a pull request in"):
        publish(replace(publication, repo_id="other/nothing"), create_pr=True)


def test_the_same_recipe_again_is_an_update(client, run):
    publish(prepare(run, "user/model"))
    repository = client.repositories["user/model"]
    tree = {**repository.commits[-1][1], "model-00001-of-00002.safetensors": b"old", "notes.md": b"theirs"}
    client.commit(repository, tree, "Add notes")
    publish(prepare(run, "user/model", licence="mit"))
    assert client.files("user/model").keys() == FILES | {".gitattributes", "notes.md"}
    assert ModelCard(client.files("user/model")["README.md"].decode()).data.license == "mit"
    puts = [path for method, path, _ in client.requests if method == "PUT"]
    assert len(puts) == len(set(puts)) == 3  # the weights did not go twice

    for file, old in (("recipe.yaml", "seed: 0"), ("metrics.json", '"seed": 0')):
        (run / file).write_text((run / file).read_text().replace(old, old.replace("0", "1")))
    with pytest.raises(FileExistsError, match="not a model of this recipe"):
        publish(prepare(run, "user/model"))


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("PUT", "/lfs/", None, "The upload was interrupted: "),
        ("PUT", "/lfs/", 403, r"The token may not write to user/model \(403"),
        ("POST", "/verify", 500, r"The Hub answered with an error \(500"),
        ("POST", "/preupload/", 500, r"The Hub answered with an error \(500, a fault\)"),
        ("POST", "/preupload/", None, "cannot be reached"),
        ("POST", "objects/batch", 401, r"The Hub does not know the token \(401"),
        ("POST", "/commit/", 500, r"The Hub answered with an error \(500, a fault\)"),
        ("POST", "/commit/", None, "cannot be reached"),
    ],
)
def test_an_interrupted_upload_publishes_nothing_and_can_begin_again(
    client, publication, method, path, status, message
):
    client.fail(method, path, status)
    with pytest.raises(OSError, match=message) as error:
        publish(publication)
    assert "Nothing was published: user/model is as it was before. The same command begins again." in str(error.value)
    assert client.files("user/model").keys() == {".gitattributes"}
    client.faults.clear()
    publish(publication)
    assert client.files("user/model").keys() == FILES | {".gitattributes"}
    assert len(client.repositories["user/model"].commits) == 2


def test_a_fault_that_passes_is_not_noticed(client, publication):
    client.fail("PUT", "/lfs/", None, times=1)
    client.fail("PUT", "/lfs/", 500, times=1)
    client.fail("POST", "/preupload/", 503, times=2)
    publish(publication)
    assert client.files("user/model")["model.safetensors"] == publication.files["model.safetensors"].read_bytes()


@pytest.mark.parametrize("path", ["/whoami", "/validate-yaml", "/repos/create"])
def test_a_fault_before_the_upload_makes_nothing(client, publication, path):
    client.fail("GET" if path == "/whoami" else "POST", path, 500)
    with pytest.raises(OSError, match=r"The Hub answered with an error \(500, a fault\)"):
        publish(publication)
    assert client.repositories == {}


def test_an_answer_that_is_lost_is_not_called_a_failure(client, publication):
    client.fail("POST", "/commit/", None, after=True)
    with pytest.raises(OSError, match="cannot be reached(.|\n)*user/model has changed meanwhile; see .*/commits/main"):
        publish(publication)
    assert client.files("user/model").keys() == FILES | {".gitattributes"}


def test_a_hub_that_is_not_there(client, publication):
    client.server.shutdown()
    client.server.server_close()
    with pytest.raises(OSError, match=f"The Hub at {client.endpoint} cannot be reached"):
        publish(publication)


def test_what_somebody_commits_meanwhile_is_not_overwritten(client, publication, monkeypatch):
    upload = HfApi.preupload_lfs_files

    def slow(self, *arguments, **options):
        client.commit(client.repositories["user/model"], {"notes.md": b"theirs"}, "Faster")
        return upload(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", slow)
    with pytest.raises(FileExistsError, match=r"has changed while this was uploaded \(412"):
        publish(publication)
    assert client.files("user/model") == {"notes.md": b"theirs"}


def test_the_keyboard_interrupts_an_upload(client, publication, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "preupload_lfs_files", stop)
    with pytest.raises(InterruptedError, match="from the keyboard.\nNothing was published"):
        publish(publication)


def test_xet_that_fails_publishes_nothing(client, publication, monkeypatch):
    """The client's other way to upload; this Hub does not have it."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(OSError, match="xet-write-token(.|\n)*Nothing was published"):
        publish(publication)
    assert client.files("user/model").keys() == {".gitattributes"}


def test_private(client, publication):
    said = []
    publish(publication, private=True, report=said.append)
    assert said == ["Made the private repository user/model as user."]
    assert client.repositories.pop("user/model").private
    client.create("user/model")
    with pytest.raises(ValueError, match="private is on, and user/model is there and public; make it private"):
        publish(publication, private=True)
    publish(publication)  # into an empty repository


def test_a_licence_that_the_hub_does_not_know_makes_no_repository(client, run):
    with pytest.raises(ValueError, match="The Hub does not take the card(.|\n)*made-up"):
        publish(prepare(run, "user/model", licence="made-up"))
    assert client.repositories == {}


def test_a_model_without_code_of_its_own(run):
    """As versions before remote code saved it."""
    for file in (run / "config.json", run / "processor_config.json"):
        configuration = json.loads(file.read_text())
        del configuration["auto_map"]
        file.write_text(json.dumps(configuration))
    for name in CODE:
        (run / name).unlink()
    publication = prepare(run, "user/model")
    assert publication.files.keys() == FILES - CODE
    assert publication.notes == (
        "No code goes along, so that the model loads with omit-hf alone; to bring it, load and save it anew.",
    )


def test_a_card_of_ones_own(client, run):
    assert prepare(run, "user/model").notes == ()  # the folder's is that of the training
    mine = (run / "README.md").read_text().replace("## Use", "## How I use it")
    (run / "README.md").write_text(mine)
    publication = prepare(run, "user/model")
    assert "How I use it" not in publication.files["README.md"].decode()
    assert publication.notes == (
        "README.md is made anew and not the folder's, which is another; --own_card publishes that.",
    )
    publish(prepare(run, "user/model", own_card=True))
    assert client.files("user/model")["README.md"].decode() == mine
    assert client.files("user/model").keys() == FILES - {"alignment.png", "sample.png"} | {".gitattributes"}
    with pytest.raises(ValueError, match="own_card is on, and sample or licence is given"):
        prepare(run, "user/model", own_card=True, sample=1)
    (run / "README.md").write_text("# No metadata\n")
    with pytest.raises(ValueError, match="not fit for the Hub:\n  it has no metadata"):
        prepare(run, "user/model", own_card=True)


def pictures_of(recipe, model, processor, sample=None):
    return publishing._pictures(Recipe(**recipe), model, processor, sample)


def test_the_sample_may_be_another_test_picture(scenes, scenes_model, processor):
    files, card, notes = pictures_of(tiny_recipe(), scenes_model, processor, sample=5)
    assert files.keys() == {"sample.png", "alignment.png"}
    assert card.captions[0] == scenes["test"][5]["captions"][0]
    assert notes == ()
    with pytest.raises(ValueError, match="sample is -1; expected a test picture from 0 to"):
        pictures_of(tiny_recipe(), scenes_model, processor, sample=-1)


def test_pictures_that_are_not_ours_stay_unless_one_is_named(tmp_path, scenes_model, processor):
    import miniatures

    file, images = miniatures.karpathy(tmp_path / "data")
    recipe = tiny_recipe(data=str(file), data_options={"image_folder": str(images)})
    files, card, [note] = pictures_of(recipe, scenes_model, processor)
    assert (files, card) == ({}, None)
    assert "whether those of the data may be published is not known" in note
    files, card, notes = pictures_of(recipe, scenes_model, processor, sample=3)
    assert files.keys() == {"sample.png", "alignment.png"}
    with pytest.raises(ValueError, match="sample is 4; expected a test picture from 0 to 3"):
        pictures_of(recipe, scenes_model, processor, sample=4)


def test_models_without_alignment_or_without_pictures(scenes_model, processor, monkeypatch):
    torch.manual_seed(0)
    text = scenes_model.config.text_config.to_dict()
    mean = OmitModel(tiny_config(matching="mean", text_config=text)).eval()
    files, card, [note] = pictures_of(tiny_recipe(matching="mean"), mean, processor)
    assert files.keys() == {"sample.png"}
    assert card.alignment is None
    assert note.startswith("No alignment.png: ")
    regions = tiny_recipe(vision_config=REGIONS, image_processor=None, data="regions")
    assert pictures_of(regions, None, None) == ({}, None, ("No pictures: the model takes precomputed regions.",))
    with pytest.raises(ValueError, match="takes regions, of which there is no picture"):
        pictures_of(regions, None, None, sample=0)
    monkeypatch.setitem(sys.modules, "omit_hf.visualization", None)  # as without matplotlib
    files, card, [note] = pictures_of(tiny_recipe(), scenes_model, processor)
    assert files.keys() == {"sample.png"}
    assert note.startswith("No alignment.png: ")


def ask(hub, method, path, content, token="hf_right", **headers) -> int:
    request = urllib.request.Request(hub.endpoint + path, data=content, method=method, headers=headers)
    request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_hub_of_these_tests_believes_nothing(hub):
    hub.create("user/model")
    right = hashlib.sha256(b"content").hexdigest()
    header = {"key": "header", "value": {"summary": "by hand"}}
    lines = [header, {"key": "lfsFile", "value": {"path": "w.safetensors", "oid": right, "size": 7}}]
    commit = b"\n".join(json.dumps(line).encode() for line in lines)
    assert ask(hub, "POST", "/api/models/user/model/commit/main", commit) == 400  # names a missing object
    assert ask(hub, "PUT", f"/lfs/user/model/{right}", b"other content") == 400
    assert ask(hub, "POST", f"/lfs/user/model/{right}/verify", b'{"oid": "", "size": 7}') == 400
    assert ask(hub, "PUT", f"/lfs/user/model/{right}", b"content") == 200
    header["value"]["parentCommit"] = "0" * 40
    stale = b"\n".join(json.dumps(line).encode() for line in lines)
    assert ask(hub, "POST", "/api/models/user/model/commit/main", stale) == 412
    assert hub.files("user/model").keys() == {".gitattributes"}
    assert ask(hub, "POST", "/api/models/user/model/commit/main", commit) == 200
    assert hub.files("user/model")["w.safetensors"] == b"content"
    assert ask(hub, "GET", "/user/model/resolve/main/w.safetensors", None, Range="bytes=2-4") == 206
    assert ask(hub, "GET", "/user/model/resolve/main/none", None) == 404
    assert ask(hub, "GET", "/api/whoami-v2", None, token="hf_wrong") == 401
