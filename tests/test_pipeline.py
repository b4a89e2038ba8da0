import base64
import http.server
import io
import threading

import miniatures
import pytest
import torch
import transformers
from broken_pictures import FILES
from broken_pictures import PICTURE as WHOLE
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from tiny import REGIONS, tiny_config
from transformers import CLIPConfig, CLIPModel, ViTImageProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import word_alignment
from omit_hf.hub import ImageTextMatchingPipeline
from omit_hf.hub.handler import EndpointHandler
from omit_hf.modeling.backbones_omit import text_settings

TASK, ZERO_SHOT = "image-text-matching", "zero-shot-image-classification"
TEXT = ["a red circle", "a small blue star and a ring", "two of them"]


def picture(seed: int) -> Image.Image:
    drawn = Image.new("RGB", (96, 96), ("red", "teal", "gold", "navy", "grey")[seed])
    ImageDraw.Draw(drawn).ellipse((10 * seed, 20, 40 + 10 * seed, 60), fill="white")
    return drawn


PICTURES = [picture(seed) for seed in range(5)]


@pytest.fixture
def region_model(scenes_model) -> OmitModel:
    return OmitModel(tiny_config(vision_config=REGIONS, text_config=scenes_model.config.text_config.to_dict())).eval()


@pytest.fixture
def match(scenes_model, processor) -> ImageTextMatchingPipeline:
    return pipeline(TASK, model=scenes_model, processor=processor, device="cpu")


@pytest.fixture
def similarity(scenes_model, processor) -> torch.Tensor:
    with torch.inference_mode():
        return scenes_model(**processor(images=PICTURES, text=TEXT)).similarity


def scores(answers) -> torch.Tensor:
    """Of the answer for every picture, [images, texts]."""
    answers = list(answers)
    assert all([each["text"] for each in answer] == TEXT for answer in answers)
    return torch.tensor([[each["score"] for each in answer] for answer in answers])


@pytest.fixture
def quiet(caplog, monkeypatch):
    """Fails a test that makes transformers say something."""
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    yield
    assert not [record for record in caplog.get_records("call") if record.levelname in ("WARNING", "ERROR")]


class TestZeroShotImageClassification:
    """The pipeline of transformers, which never loads the processor."""

    @pytest.mark.usefixtures("quiet")
    def test_as_for_clip(self, scenes_model, processor, tmp_path):
        scenes_model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        classify = pipeline(ZERO_SHOT, model=str(tmp_path), device="cpu")
        assert type(classify.model) is OmitModel
        with torch.inference_mode():
            logits = scenes_model(**processor(images=PICTURES, text=TEXT)).logits_per_image
        labels = {"candidate_labels": TEXT, "hypothesis_template": "{}"}
        answers = [classify(PICTURES[0], **labels), *classify(PICTURES, batch_size=2, **labels)]
        found = torch.tensor(
            [[{each["label"]: each["score"] for each in one}[label] for label in TEXT] for one in answers]
        )
        torch.testing.assert_close(found, torch.cat([logits[:1], logits]).softmax(-1), rtol=1e-4, atol=1e-6)
        assert [each["score"] for each in answers[0]] == sorted((each["score"] for each in answers[0]), reverse=True)
        classify.save_pretrained(tmp_path / "again")
        again = pipeline(ZERO_SHOT, model=str(tmp_path / "again"), device="cpu")
        assert again(PICTURES[0], **labels) == answers[0]
        assert type(OmitProcessor.from_pretrained(tmp_path / "again").image_processor) is type(
            processor.image_processor
        )

    def test_a_model_of_regions(self, region_model, processor, tmp_path):
        region_model.save_pretrained(tmp_path)
        OmitProcessor(tokenizer=processor.tokenizer).save_pretrained(tmp_path)
        with pytest.raises(OSError, match="Can't load image processor"):
            pipeline(ZERO_SHOT, model=str(tmp_path))
        classify = pipeline(ZERO_SHOT, model=str(tmp_path), image_processor=ViTImageProcessor(), device="cpu")
        with pytest.raises(ValueError, match="pixel_values given; expected region_features.*encoder is 'omit_region'"):
            classify(PICTURES[0], candidate_labels=TEXT)


class TestForms:
    """Pictures in every form give the scores that the model gives them."""

    def test_one_picture(self, match, similarity, tmp_path):
        PICTURES[1].save(tmp_path / "one.png")
        for image in (PICTURES[1], tmp_path / "one.png", str(tmp_path / "one.png")):
            torch.testing.assert_close(scores([match(image, text=TEXT)])[0], similarity[1])
        [answer] = match(PICTURES[1], text=TEXT[0])
        assert answer == {"text": TEXT[0], "score": pytest.approx(similarity[1, 0].item(), abs=1e-6)}

    @pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
    def test_lists(self, match, similarity, batch_size):
        for images in (PICTURES, tuple(PICTURES)):
            answers = match(images, text=TEXT, batch_size=batch_size)
            assert type(answers) is list
            torch.testing.assert_close(scores(answers), similarity)
        assert match([], text=TEXT) == []

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_what_is_read_one_after_another(self, match, similarity, batch_size):
        data = Dataset.from_dict({"picture": PICTURES}).cast_column("picture", ImageFeature())
        for images in (iter(PICTURES), (each for each in PICTURES), KeyDataset(data, "picture"), data["picture"]):
            answers = match(images, text=TEXT, batch_size=batch_size)
            assert type(answers) is not list
            torch.testing.assert_close(scores(answers), similarity)

    def test_a_stream_is_read_no_further_than_it_is_asked_for(self, match):
        def stream():
            yield PICTURES[0]
            yield PICTURES[1]
            raise AssertionError("read on")

        answers = iter(match(stream(), text=TEXT))
        assert len(next(answers)) == 3

    def test_url(self, match, similarity):
        file = io.BytesIO()
        PICTURES[2].save(file, format="png")

        class Server(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(file.getvalue())

            def log_message(self, *_):
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/picture.png"
            torch.testing.assert_close(scores([match(url, text=TEXT, timeout=10)])[0], similarity[2])
            server.shutdown()

    @pytest.mark.parametrize("name", ["png header", "webp noise", "tiff xmp of numbers"])
    def test_broken_metadata(self, match, tmp_path, name):
        """Which `datasets` and transformers do not read past."""
        (tmp_path / "picture").write_bytes(FILES[name])
        expected = scores([match(WHOLE, text=TEXT)])
        stored = {"bytes": FILES[name], "path": None}
        data = Dataset.from_dict({"picture": [stored]}).cast_column("picture", ImageFeature())
        for images in ([tmp_path / "picture"], KeyDataset(data, "picture"), data["picture"]):
            torch.testing.assert_close(scores(match(images, text=TEXT)), expected)


class TestAnswers:
    def test_softmax_is_what_the_other_pipeline_gives(self, scenes_model, processor, match):
        parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
        classify = pipeline(ZERO_SHOT, model=scenes_model, device="cpu", **parts)
        expected = classify(PICTURES[0], candidate_labels=TEXT, hypothesis_template="{}")
        answer = match(PICTURES[0], text=TEXT, function_to_apply="softmax")
        found = {each["text"]: each["score"] for each in answer}
        assert found == pytest.approx({each["label"]: each["score"] for each in expected})
        assert sum(found.values()) == pytest.approx(1)

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_alignments(self, scenes_model, processor, match, batch_size):
        answers = match(PICTURES[:3], text=TEXT[:2], batch_size=batch_size, return_alignment=True)
        for shown, answer in zip(PICTURES, answers, strict=False):
            for sentence, each in zip(TEXT, answer, strict=False):
                assert each.keys() == {"text", "score", "alignment"}
                expected = word_alignment(scenes_model, processor, shown, sentence)
                assert each["alignment"] == expected.to_dict()
                assert [word["word"] for word in each["alignment"]["words"]] == sentence.split()
                assert each["score"] == pytest.approx(expected.similarity, abs=1e-6)

    def test_drawings(self, match):
        answer = match(PICTURES[0], text=TEXT[:2], return_picture=True)
        first, second = (each["picture"] for each in answer)
        assert isinstance(first, Image.Image)
        assert min(first.size) > 100
        assert second.tobytes() != first.tobytes()
        assert "alignment" not in answer[0]

    def test_what_is_given_when_it_is_made_holds_for_its_calls(self, scenes_model, processor, similarity):
        match = pipeline(TASK, model=scenes_model, processor=processor, device="cpu", text=TEXT, batch_size=2)
        torch.testing.assert_close(scores(match(PICTURES)), similarity)
        [answer] = match(PICTURES[0], text="a ring")
        assert answer["text"] == "a ring"
        torch.testing.assert_close(scores(match(PICTURES)), similarity)

    @pytest.mark.usefixtures("quiet")
    def test_saves_and_loads_whole(self, match, scenes_model, tmp_path):
        match.save_pretrained(tmp_path)
        again = pipeline(TASK, model=str(tmp_path), device="cpu")
        assert type(again) is ImageTextMatchingPipeline
        assert type(again.processor) is OmitProcessor
        assert again(PICTURES, text=TEXT) == match(PICTURES, text=TEXT)
        assert not hasattr(again.model.config, "custom_pipelines")
        assert "pipeline.py" not in {file.name for file in tmp_path.iterdir()}


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "No sentences given; expected text=…, a sentence or a list of sentences"),
            ({"text": None}, "No sentences given"),
            ({"text": []}, r"text is \[\]; expected a caption or a list of captions, at least one"),
            ({"text": ["a star", 3]}, r"text\[1\] is 3; expected a string"),
            (
                {"text": TEXT, "function_to_apply": "sigmoid"},
                "function_to_apply is 'sigmoid'; expected 'none' or 'soft",
            ),
            ({"texts": TEXT, "text": TEXT}, "image-text-matching has the unknown field 'texts'; did you mean 'text'"),
            ({"text": "...", "return_alignment": True}, "has no word that the model matches"),
        ],
    )
    def test_arguments(self, match, options, message):
        with pytest.raises(ValueError, match=message):
            match(PICTURES[0], **options)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (3, "3 is no picture; expected PIL, a path, a URL or base64"),
            ({"image": PICTURES[0]}, "is no picture; .* or a data set's column of such"),
            (torch.zeros(3, 8, 8), "is no picture"),
            (torch.zeros(8, 8, 3).numpy(), "is no picture"),
            (b"bytes", "is no picture"),
            ("no_such.png", "no file at 'no_such.png', and it is no URL and no picture in base64"),
            ([PICTURES[0], "no_such.png"], "no file at 'no_such.png'"),
            ([PICTURES[0], 3], "3 is no picture"),
        ],
    )
    def test_pictures(self, match, image, message):
        with pytest.raises(ValueError, match=message):
            match(image, text=TEXT)

    def test_a_file_that_is_no_picture(self, match, tmp_path):
        (tmp_path / "notes.png").write_text("no pixels")
        with pytest.raises(OSError, match="cannot identify image file"):
            match(tmp_path / "notes.png", text=TEXT)

    @pytest.mark.parametrize("batch_size", [1, 2])
    def test_which_picture(self, match, tmp_path, batch_size):
        """In a list, a generator, a data set and a column, whether read, decoded or encoded."""
        (tmp_path / "cut.png").write_bytes(FILES["png xmp"][:200])
        PICTURES[0].resize((6, 96)).save(tmp_path / "small.png")
        for name, why in (("cut.png", "truncated|Truncated"), ("small.png", "6 x 96 pixels.*at least 16 x 16")):
            file = tmp_path / name
            data = Dataset.from_dict({"picture": [*PICTURES[:3], {"path": str(file), "bytes": None}]})
            data = data.cast_column("picture", ImageFeature())
            several = [*PICTURES[:3], file]
            if name == "small.png":  # the one of its size, as those of a batch must be
                several, data = [Image.open(file), str(file)], data.select([3, 3])
            expected = rf"^images\[{0 if name == 'small.png' else 3}\] \(.*{name}\): .*({why})"
            for images in (several, iter(several), KeyDataset(data, "picture"), data["picture"]):
                with pytest.raises((ValueError, OSError), match=expected):
                    list(match(images, text=TEXT, batch_size=batch_size))

    def test_models(self, region_model, processor, scenes_model):
        with pytest.raises(
            ValueError, match="'omit_region', which takes precomputed regions, and a pipeline takes pict"
        ):
            pipeline(TASK, model=region_model, processor=OmitProcessor(tokenizer=processor.tokenizer))
        parts = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        other = CLIPModel(CLIPConfig(text_config={**parts, "vocab_size": 20}, vision_config=parts))
        with pytest.raises(ValueError, match="The model is a 'clip' model; expected 'omit'"):
            pipeline(TASK, model=other, processor=processor)
        with pytest.raises(ValueError, match="processor is None; expected the model's OmitProcessor"):
            ImageTextMatchingPipeline(scenes_model)
        with pytest.raises(ValueError, match="unknown field 'batchsize'"):
            pipeline(TASK, model=scenes_model, processor=processor, batchsize=2)

    def test_a_head_that_does_not_align(self, scenes_model, processor):
        config = tiny_config(matching="mean", text_config=scenes_model.config.text_config.to_dict())
        match = pipeline(TASK, model=OmitModel(config).eval(), processor=processor, device="cpu")
        assert len(match(PICTURES[0], text=TEXT)) == 3
        with pytest.raises(ValueError, match="matching is 'mean', which does not align"):
            match(PICTURES[0], text=TEXT, return_alignment=True)


@pytest.fixture
def short_bert(tmp_path):
    """A model whose BERT has 40 positions, and a processor that knows nothing of it."""
    tokenizer = miniatures.text_tokenizer("bert")
    text = {"model_type": "bert", **miniatures.text_options("bert", tokenizer), "max_position_embeddings": 40}
    model = OmitModel(tiny_config(text_config=text, **text_settings(tokenizer))).eval()

    def fresh_processor():
        tokenizer = miniatures.text_tokenizer("bert")
        tokenizer.model_max_length = int(1e30)
        return OmitProcessor(ViTImageProcessor(do_resize=False), tokenizer)

    return model, fresh_processor


def test_a_sentence_that_is_too_long_for_the_text_encoder(short_bert, tmp_path):
    """It is cut for whatever has the model beside the processor: pipeline, alignment and endpoint."""
    model, fresh_processor = short_bert
    long = "ab " * 100
    with pytest.raises(ValueError, match="has 202 tokens a caption; the text encoder takes 40. Cut them"):
        model(**fresh_processor()(images=PICTURES[0], text=long))
    [cut] = fresh_processor()(text=long, max_length=40)["input_ids"]
    with torch.inference_mode():
        expected = model(**fresh_processor()(images=PICTURES[0], text=long, max_length=40)).similarity.item()
    assert len(cut) == 40
    [answer] = pipeline(TASK, model=model, processor=fresh_processor(), device="cpu")(PICTURES[0], text=[long])
    assert answer["score"] == pytest.approx(expected)
    assert word_alignment(model, fresh_processor(), PICTURES[0], long).similarity == pytest.approx(expected)
    model.save_pretrained(tmp_path)
    fresh_processor().save_pretrained(tmp_path)
    file = io.BytesIO()
    PICTURES[0].save(file, "png")
    request = {"inputs": base64.b64encode(file.getvalue()).decode(), "parameters": {"captions": [long]}}
    [answer] = EndpointHandler(str(tmp_path))(request)
    assert answer["score"] == pytest.approx(expected, abs=1e-6)
