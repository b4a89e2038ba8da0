"""Pretrained backbones in miniature, with untrained weights and real tokenizers, as the Hub has them; and data."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipTextModel,
    ViTImageProcessor,
)

from omit_hf.data import load_scenes

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "vit": {**SMALL, "image_size": 32, "patch_size": 8},
    "dinov2": {**SMALL, "image_size": 32, "patch_size": 8},
    "dinov2_with_registers": {**SMALL, "image_size": 32, "patch_size": 8, "num_register_tokens": 4},
    "swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "clip_vision_model": {**SMALL, "image_size": 32, "patch_size": 8},
    "siglip_vision_model": {**SMALL, "image_size": 32, "patch_size": 8},
}
TEXT = {
    "bert": SMALL,
    "roberta": SMALL,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "clip_text_model": SMALL,
    "siglip_text_model": SMALL,
}
SIGLIP_LENGTH = 12
KARPATHY = {"train": "train", "validation": "val", "test": "test"}
WORDS = ("red", "circle", "star", "zebra")  # of the word vectors; the last one no caption has
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def karpathy(folder: Path) -> tuple[Path, Path]:
    """The JSON and the image folder of a Karpathy data set: Scenes, 12 / 4 / 4 images of 5 captions."""
    entries = []
    (folder / "images").mkdir(parents=True)
    for split, name in KARPATHY.items():
        for number, row in enumerate(_scenes()[split]):
            row["image"].save(folder / "images" / f"{name}{number}.png")
            sentences = [{"raw": caption} for caption in row["captions"]]
            entries.append({"filename": f"{name}{number}.png", "split": name, "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": entries}))
    return folder / "dataset.json", folder / "images"


def entities(folder: Path) -> Path:
    """What Flickr30K Entities would have of the test images of `karpathy`: their captions with the phrases marked and
    commas parted from the words, and the boxes in pixels from 1."""
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True)
    for number, row in enumerate(_scenes()["test"]):
        lines = list(row["captions"])
        for phrase in sorted(row["phrases"], key=lambda each: -each["start"]):
            start, end, line = phrase["start"], phrase["end"], lines[phrase["caption"]]
            marked = f"[/EN#{100 + phrase['object']}/other/toys {line[start:end]}]"
            lines[phrase["caption"]] = f"{line[:start]}{marked}{line[end:]}"
        text = "".join(f"{line.replace(',', ' ,')} .\n" for line in lines)
        (folder / "Sentences" / f"test{number}.txt").write_text(text)
        objects = ""
        for place, (x0, y0, x1, y1) in enumerate(row["boxes"]):
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1), strict=True)
            box = "".join(f"<{name}>{int(value)}</{name}>" for name, value in corners)
            objects += f"<object><name>{100 + place}</name><bndbox>{box}</bndbox></object>"
        size = "<size><width>96</width><height>96</height><depth>3</depth></size>"
        (folder / "Annotations" / f"test{number}.xml").write_text(
            f"<annotation><filename>test{number}.jpg</filename>{size}{objects}</annotation>"
        )
    return folder


def regions(folder: Path) -> Path:
    """The same captions with regions of 10 numbers, in the layout of SCAN and VSE∞."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        rows = _scenes()[split]
        for prefix in (name, "testall") if split == "test" else (name,):
            np.save(folder / f"{prefix}_ims.npy", random.normal(size=(len(rows), 36, 10)).astype(np.float32))
            captions = [f"{caption}\n" for captions in rows["captions"] for caption in captions]
            (folder / f"{prefix}_caps.txt").write_text("".join(captions))
            (folder / f"{prefix}_ids.txt").write_text("".join(f"{prefix}{number}\n" for number in range(len(rows))))
    return folder


def word_vectors(file: Path, size: int) -> Path:
    file.write_text("".join(f"{word} {' '.join(['0.5'] * size)}\n" for word in WORDS))
    return file


def _scenes():
    return load_scenes(train_size=12, validation_size=4, test_size=4)


def text_tokenizer(kind: str):
    """A tokenizer of the class, with the special tokens and the padding of the real ones, over letters."""
    if kind in ("bert", "distilbert"):
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *LETTERS, *(f"##{each}" for each in LETTERS)]
        return BertTokenizer(vocab={token: n for n, token in enumerate(tokens)}, model_max_length=64)
    if kind == "roberta":
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        return RobertaTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=64)
    if kind == "clip_text_model":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
        return CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=64)
    # SigLIP's own needs sentencepiece; this one has its special tokens, its lack of a mask and its length.
    tokens = ["<unk>", "</s>", "▁", ".", *LETTERS]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=SIGLIP_LENGTH,
        model_input_names=["input_ids"],
    )


def text_options(kind: str, tokenizer) -> dict:
    length = SIGLIP_LENGTH if kind == "siglip_text_model" else 66  # RoBERTa counts positions from its padding's id
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}
    return {**TEXT[kind], "vocab_size": len(tokenizer), "max_position_embeddings": length, **ids}


def save_vision(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **VISION[kind])).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_text(kind: str, folder: Path, **options) -> Path:
    torch.manual_seed(1)
    tokenizer = text_tokenizer(kind)
    config = AutoConfig.for_model(kind, **{**text_options(kind, tokenizer), **options})
    model = SiglipTextModel(config) if kind == "siglip_text_model" else AutoModel.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_clip(kind: str, folder: Path) -> Path:
    """A CLIP or SigLIP whose every weight counts: norms and biases are not as they begin."""
    torch.manual_seed(2)
    tokenizer = text_tokenizer(f"{kind}_text_model")
    parts = {
        "vision_config": VISION[f"{kind}_vision_model"],
        "text_config": text_options(f"{kind}_text_model", tokenizer),
    }
    model = CLIPModel(CLIPConfig(**parts, projection_dim=24)) if kind == "clip" else SiglipModel(SiglipConfig(**parts))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder
