import json
import re
import runpy
import sys
from pathlib import Path

import miniatures
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from tiny import REGIONS, TEXT, tiny_config
from torch.nn.functional import normalize
from transformers import ViTImageProcessor

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import build_word_tokenizer
from omit_hf.export import DESCRIPTION_FILE, export_model, files, parts, picture_size
from omit_hf.export.stand_ins import ExportedBiGRU, exportable
from omit_hf.modeling import OmitFeatures

ATOL = 1e-5  # float32, in cosines: a few roundings, times 1/λ
SENTENCES = ["a small red circle", "two rings", "a star left of a large blue square and a ring"]
EXAMPLE = Path(__file__).parents[1] / "examples" / "export.py"


def build(vision: str, text: str, **options) -> tuple[OmitModel, OmitProcessor]:
    torch.manual_seed(0)
    if text == "bert":
        tokenizer = miniatures.text_tokenizer("bert")
        options |= {"text_pooling": "cls", "special_token_ids": [0, 2, 3]}
        text_config = {"model_type": "bert", **miniatures.text_options("bert", tokenizer), "num_hidden_layers": 1}
    else:
        tokenizer = build_word_tokenizer(SENTENCES)
        text_config = {**TEXT, "vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 2}
    if vision == "regions":
        image_processor, vision_config = None, REGIONS
    else:
        image_processor = ViTImageProcessor(size={"height": 32, "width": 32})
        vision_config = {"model_type": vision, **miniatures.VISION[vision]}
        if vision == "vit":
            vision_config["num_hidden_layers"] = 1
    model = OmitModel(tiny_config(vision_config=vision_config, text_config=text_config, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that are not as they begin
                parameter += 0.1 * torch.randn_like(parameter)
    return model, OmitProcessor(image_processor, tokenizer)


MODELS = {
    "vit-bert": ("vit", "bert", {}),
    "resnet-bigru": ("resnet", "bigru", {"dustbin": "learned", "marginals": "norm", "regularization": 0.1}),
    "regions-chan": ("regions", "bigru", {"matching": "chan"}),
    "regions-bigru": ("regions", "bigru", {"matching": "ot", "marginals": "cross_global"}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Makes an export when it is first asked for."""
    made = {}

    def export(name: str, format: str):
        if (name, format) not in made:
            vision, text, options = MODELS[name]
            model, processor = build(vision, text, **options)
            folder = tmp_path_factory.mktemp("export") / "out"
            description = export_model(model, processor, folder, format)
            made[name, format] = model, folder, description
        return made[name, format]

    return export


def runner(file: Path):
    """Takes and gives tensors by name, as export.json has them."""
    if file.suffix == ".pt2":
        program = torch.export.load(file).module()
        return lambda **inputs: program(**inputs)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(**inputs):
        found = [torch.from_numpy(each) for each in session.run(None, {k: v.numpy() for k, v in inputs.items()})]
        return found if len(found) > 1 else found[0]

    return run


def served_similarity(folder: Path, images, sentences) -> torch.Tensor:
    """By what is in the folder alone."""
    description = json.loads((folder / DESCRIPTION_FILE).read_text())
    processor = OmitProcessor.from_pretrained(folder)
    kind = "regions" if processor.image_processor is None else "images"
    inputs = processor(**{kind: images}, text=sentences)
    values = dict(inputs)
    for part in description["parts"].values():
        names = [each["name"] for each in part["inputs"]]
        found = runner(folder / part["file"])(**{name: values[name] for name in names})
        found = found if isinstance(found, list | tuple) else [found]
        values |= zip([each["name"] for each in part["outputs"]], found, strict=True)
    return values["similarity"]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("vit-bert", "onnx"),
        ("resnet-bigru", "onnx"),
        ("regions-chan", "onnx"),
        ("vit-bert", "torch_export"),
        ("regions-bigru", "torch_export"),
    ],
)
@pytest.mark.parametrize("count", [4, 1])
def test_what_is_exported_scores_as_the_model_does(exported, name, format, count):
    """Pictures and sentences of other numbers than at the export, with padding, through the saved processor."""
    model, folder, _ = exported(name, format)
    sentences = SENTENCES[:count]
    random = torch.Generator().manual_seed(1)
    if name.startswith("regions"):
        images = [torch.randn(50 - 13 * number, 10, generator=random) for number in range(count)]
        inputs = OmitProcessor.from_pretrained(folder)(regions=images, text=sentences)
    else:
        images = [torch.randint(0, 256, (3, 40, 30), generator=random, dtype=torch.uint8) for _ in range(count)]
        inputs = OmitProcessor.from_pretrained(folder)(images=images, text=sentences)
    with torch.no_grad():
        expected = model(**inputs).similarity
    found = served_similarity(folder, images, sentences)
    assert found.shape == (count, len(sentences))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
    assert count == 1 or expected.std() > 100 * ATOL  # there is something to tell apart


def test_the_bigru_is_an_operator_of_onnx(exported):
    model, folder, _ = exported("resnet-bigru", "onnx")
    graph = onnx.load(folder / "text_encoder.onnx").graph
    nodes = [node for node in graph.node if node.op_type == "GRU"]
    assert len(nodes) == 2  # layers
    assert all(node.input[4] for node in nodes)  # the lengths, without which the way back begins in the padding
    assert not [node for node in graph.node if node.op_type in ("Loop", "Scan") or node.domain]


def test_the_description_is_what_the_files_say(exported):
    model, folder, description = exported("vit-bert", "onnx")
    assert description == json.loads((folder / DESCRIPTION_FILE).read_text())
    assert description["matching"] == "omit"
    assert description["logit_scale"] == pytest.approx(model.logit_scale.exp().item())
    kinds = {"float32": "tensor(float)", "int64": "tensor(int64)", "bool": "tensor(bool)"}
    for part in description["parts"].values():
        onnx.checker.check_model(folder / part["file"], full_check=True)
        session = onnxruntime.InferenceSession(folder / part["file"])
        for told, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert part[told] == [
                {"name": each.name, "type": next(k for k in kinds if kinds[k] == each.type), "shape": each.shape}
                for each in found
            ]
        assert part["largest_difference_from_the_model"] < ATOL
    shapes = {each["name"]: each["shape"] for each in description["parts"]["head"]["inputs"]}
    assert shapes["image_embeds"] == ["images", 16, 16]
    assert shapes["text_mask"] == ["captions", "words"]
    assert {each.name for each in folder.iterdir()} >= {"processor_config.json", "tokenizer.json", "head.onnx"}
    assert [each.name for each in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "options",
    [
        {"dustbin": "scalar", "marginals": "self_global", "num_iterations": 6},
        {"score": "augmented", "global_weight": 0.2},
        {"matching": "ot", "marginals": "norm"},
        {"matching": "mean"},
        {"matching": "maxsim"},
        {"matching": "chan"},
        {"matching": "scan_t2i"},
        {"matching": "scan_i2t"},
        {"matching": "pem"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_other_heads(options):
    model, _ = build("regions", "bigru", **options)
    both = exportable(model), model
    part = parts.head_part(*both, parts.region_part(*both, 5, None), parts.text_part(*both))
    with torch.no_grad():
        program = files._program(part).module()
        for example in part.examples:
            expected = parts.Head(model)(**example)
            torch.testing.assert_close(program(**example), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_exported_bigru_is_the_same(layers):
    torch.manual_seed(layers)
    text = {**TEXT, "num_hidden_layers": layers}
    bigru = OmitModel(tiny_config(text_config=text)).eval().text_encoder.backbone
    ids = torch.randint(1, 30, (4, 6))
    mask = (torch.arange(6) < torch.tensor([[6], [1], [3], [0]])).long()
    with torch.no_grad():
        expected = bigru(ids, mask).last_hidden_state
        found = ExportedBiGRU(bigru)(ids, mask).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert (found[1, 1:] == 0).all()


@pytest.mark.parametrize("matching", ["maxsim", "chan"])
def test_the_exported_late_interaction_is_the_same(matching):
    """Images without a region and captions without a word too."""
    model, _ = build("regions", "bigru", matching=matching)
    random = torch.Generator().manual_seed(0)
    image, text = (
        OmitFeatures(
            embeds=normalize(torch.randn(3, size, 16, generator=random), dim=-1) * mask[..., None],
            mask=mask,
        )
        for size, mask in (
            (4, torch.arange(4) < torch.tensor([[4], [2], [0]])),
            (5, torch.arange(5) < torch.tensor([[0], [5], [1]])),
        )
    )
    torch.testing.assert_close(exportable(model).matching(image, text), model.matching(image, text), rtol=0, atol=ATOL)


def test_the_model_is_left_as_it_was(exported):
    model, _, _ = exported("resnet-bigru", "onnx")
    assert type(model.text_encoder.backbone).__name__ == "BiGRU"
    assert model.matching.options.backend == "auto"
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if name != "logit_scale")


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid():
    return build("resnet", "bigru", matching="mean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite'; expected one of onnx, torch_export"),
        ({"num_images": 0}, "num_images is 0; expected at least 1"),
        ({"image_size": (0, 32)}, "image_size is 0; expected at least 1"),
        ({"image_size": (48, 48)}, "image_size is 48 x 48, but the processor makes 32 x 32 pixels of such a picture"),
    ],
)
def test_options_that_do_not_fit(grid, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_model(*grid, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_no_regions(tmp_path):
    with pytest.raises(ValueError, match="num_regions is 0; expected at least 1"):
        export_model(*build("regions", "bigru"), tmp_path / "out", num_regions=0)


def test_sizes_that_a_processor_leaves():
    processor = OmitProcessor(ViTImageProcessor(do_resize=False), build_word_tokenizer(SENTENCES))
    with pytest.raises(ValueError, match="does not resize pictures to one size; pass image_size"):
        picture_size(processor)
    assert picture_size(processor, (24, 40)) == (24, 40)


def test_nothing_is_overwritten(grid, tmp_path):
    (tmp_path / "notes").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes"):
        with pytest.raises(FileExistsError, match="is not empty; choose another folder"):
            export_model(*grid, folder)
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_part_that_gives_something_else_is_not_written(grid, tmp_path, monkeypatch):
    def write(part, file):
        file.write_text("")
        return lambda inputs: [each + 1e-3 if each.is_floating_point() else each for each in part.truth(**inputs)]

    monkeypatch.setattr(files, "_write_program", write)
    with pytest.raises(
        RuntimeError, match=r"exported image_encoder gives another image_embeds than the model, by 1.0e-03"
    ):
        export_model(*grid, tmp_path / "out", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_part_that_torch_cannot_export(grid, tmp_path, monkeypatch):
    def write(part, file):
        file.write_text("half")
        raise TypeError("no\nsuch operator")

    monkeypatch.setattr(files, "_write_program", write)
    with pytest.raises(
        RuntimeError,
        match=r"cannot export the image_encoder \('resnet'\) as torch_export: no With a fixed .*num_images=1",
    ):
        export_model(*grid, tmp_path / "out", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_fixed_number_of_images(grid, tmp_path):
    description = export_model(*grid, tmp_path / "out", "torch_export", num_images=2)
    [pixels] = description["parts"]["image_encoder"]["inputs"]
    assert pixels["shape"] == [2, 3, 32, 32]
    assert description["parts"]["head"]["inputs"][0]["shape"] == ["images", 16, 16]


def test_the_extra_is_named_where_it_is_missing(grid, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'omit-hf\[onnx\]'"):
        export_model(*grid, tmp_path / "out")


# --- the script -------------------------------------------------------------------------------------------------------


def script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_the_script_and_the_code_that_its_help_shows(tmp_path, monkeypatch, capsys):
    model, processor = build("resnet", "bigru", matching="mean")
    processor.image_processor.do_resize = False
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: The processor does not resize pictures to one size"):
        script(monkeypatch, "model", "outputs/scenes_onnx")
    script(monkeypatch, "model", "outputs/scenes_onnx", "--image_size", 24, 40)
    printed = capsys.readouterr().out
    assert "| image_encoder | image_encoder.onnx | pixel_values [images, 3, 24, 40] |" in printed
    with pytest.raises(SystemExit, match="error: outputs/scenes_onnx is not empty"):
        script(monkeypatch, "model", "outputs/scenes_onnx", "--image_size", 24, 40)

    picture = Image.new("RGB", (40, 24), "red")
    picture.save("picture.png")
    with pytest.raises(SystemExit):
        script(monkeypatch, "--help")
    code = re.search(r"(    import onnxruntime\n.*?)\n\n\S", capsys.readouterr().out, re.DOTALL)[1]
    names = {}
    exec("\n".join(line[4:] for line in code.splitlines()), names)
    with torch.no_grad():
        expected = model(**processor(images=picture, text=["a red star", "two rings"])).similarity
    torch.testing.assert_close(torch.from_numpy(names["similarity"]), expected, rtol=0, atol=ATOL)
