import json

import pytest
import sources

from omit_hf.data import load_coco_captions, load_image_text


def by_file(split, number):
    place = "train2014" if split == "train" and number != 5 else "val2014"
    return f"{place}/COCO_{place}_{number:012d}.jpg"


def test_captions_of_coco_with_the_splits_of_karpathy(tmp_path):
    folder, options = sources.coco(tmp_path)
    sources.expect(load_image_text(folder, **options), by_file)


def test_the_json_needs_no_sentences_and_may_lie_elsewhere(tmp_path):
    folder, options = sources.coco(tmp_path)
    entries = json.loads((folder / "dataset_coco.json").read_text())["images"]
    kept = [{"cocoid": entry["cocoid"], "split": entry["split"]} for entry in entries]
    (folder / "dataset_coco.json").unlink()
    (folder / "splits.json").write_text(json.dumps({"images": kept}))
    sources.expect(load_coco_captions(folder, karpathy=folder / "splits.json", **options), by_file)


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_every_problem_is_listed(tmp_path):
    folder, options = sources.coco(tmp_path)

    def change(content):
        content["images"][0]["cocoid"] = 99
        content["images"][1]["split"] = "training"
        del content["images"][2]["split"]

    change_json(folder / "dataset_coco.json", change)
    change_json(folder / "captions_val2014.json", lambda content: content["annotations"].clear())
    (tmp_path / "images" / "train2014" / "COCO_train2014_000000000003.jpg").unlink()
    with pytest.raises(ValueError, match="has 11 problems") as caught:
        load_image_text(folder, **options)
    for problem in (
        "dataset_coco.json images[0]: cocoid 99 is in neither of captions_train2014.json, captions_val2014.json",
        "images[1]: split 'training', expected one of train, restval, val, test",
        "images[2]: not the expected fields (KeyError('split'))",
        "images[3]: train2014/COCO_train2014_000000000003.jpg is missing",
        "images[5] (val2014/COCO_val2014_000000000005.jpg): no caption",
    ):
        assert problem in str(caught.value)


def test_a_path_cannot_leave_the_image_folder(tmp_path):
    folder, options = sources.coco(tmp_path)
    (tmp_path / "secret.jpg").write_bytes(sources.png(0))

    def change(content):
        content["images"][0]["file_name"] = "../../secret.jpg"

    change_json(folder / "captions_train2014.json", change)
    with pytest.raises(ValueError, match="lies outside the image folder"):
        load_image_text(folder, **options)


@pytest.mark.parametrize("content", ["", "[]", '{"images": []}', '{"images": [{}], "annotations": []}', "[" * 10_000])
def test_other_json(tmp_path, content):
    folder, options = sources.coco(tmp_path)
    (folder / "captions_val2014.json").write_text(content)
    with pytest.raises(ValueError, match=r"captions_val2014.json is no file of COCO's captions"):
        load_image_text(folder, **options)


def test_what_is_not_there(tmp_path):
    folder, options = sources.coco(tmp_path)
    (folder / "captions_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match="No captions_val2014.json in"):
        load_image_text(folder, **options)
    with pytest.raises(ValueError, match="load_coco_captions, which reads .*, needs the option image_folder"):
        load_image_text(folder)


def test_two_images_of_one_number(tmp_path):
    folder, options = sources.coco(tmp_path)
    again = {"id": 0, "file_name": "COCO_train2014_000000000001.jpg"}
    change_json(folder / "captions_train2014.json", lambda content: content["images"].append(again))
    with pytest.raises(ValueError, match=r"captions_train2014.json images\[5\]: id 0 is that of train2014/.*0.jpg too"):
        load_image_text(folder, **options)
    change_json(folder / "captions_train2014.json", lambda content: content["images"].pop())
    change_json(folder / "captions_train2014.json", lambda content: content["images"].append(content["images"][0]))
    sources.expect(load_image_text(folder, **options), by_file)  # the same once more is no other


def test_a_caption_that_no_table_can_hold(tmp_path):
    folder, options = sources.coco(tmp_path)
    change_json(
        folder / "captions_val2014.json", lambda content: content["annotations"][3].update(caption="a \ud83d b")
    )
    with pytest.raises(ValueError, match=r"captions_val2014.json is no file of COCO's captions.*annotations\[3\] is"):
        load_image_text(folder, **options)
