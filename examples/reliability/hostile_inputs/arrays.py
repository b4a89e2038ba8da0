"""Arrays of precomputed regions, and archives."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np

from hostile_inputs.case import ANY, Case, WrongValue
from hostile_inputs.data import CAPTIONS, ODD_NAMES, PNGS, rows_of
from hostile_inputs.mutations import (
    harmless_text,
    mutate_bytes,
    mutate_json,
    mutate_text,
)
from omit_hf.data import check_data, load_image_text


def _npy(shape: str, descr: str = "'<f4'", order: str = "False", body: bytes = bytes(64)) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


HEADERS = {
    "a negative shape": _npy("(-4, 2, 2)"),
    "a huge shape": _npy("(4, 2, 4611686018427387904)"),
    "a shape that overflows": _npy("(4294967296, 4294967296, 2)"),
    "a shape of nothing": _npy("(4, 0, 2)"),
    "no shape": _npy("()"),
    "a shape of text": _npy("('4', 2, 2)"),
    "a shape of floats": _npy("(4.0, 2, 2)"),
    "objects": _npy("(4, 2, 2)", "'|O'", body=b"cposix\nsystem\n(S'true'\ntR." * 4),
    "text": _npy("(4, 2, 2)", "'<U1'"),
    "complex numbers": _npy("(4, 2, 2)", "'<c8'", body=bytes(128)),
    "dates": _npy("(4, 2, 2)", "'<M8[s]'", body=bytes(128)),
    "records": _npy("(4, 2, 2)", "[('a', '<f4')]"),
    "booleans": _npy("(4, 2, 2)", "'|b1'"),
    "columns first": _npy("(4, 2, 2)", order="True"),
    "no type": _npy("(4, 2, 2)", "'none'"),
    "a program": _npy("__import__('os').getpid()"),
    "nested": _npy("(" * 5000 + ")" * 5000),
    "version 9": b"\x93NUMPY\x09\x00" + bytes(64),
    "a head of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(64),
    "NaN": _npy("(4, 2, 2)", body=np.full(16, np.nan, "<f4").tobytes()),
    "infinity": _npy("(4, 2, 2)", body=np.full(16, np.inf, "<f4").tobytes()),
}


def regions(rng: random.Random, folder: Path) -> Case:
    arrays = {
        "ims": np.arange(16, dtype="<f4").reshape(4, 2, 2),
        "boxes": np.tile(np.float32([1, 2, 3, 4]), (4, 2, 1)),
        "img_sizes": np.tile([64, 48], (4, 1)),
    }
    for name, array in arrays.items():
        np.save(folder / f"test_{name}.npy", array)
    texts = {"caps": "".join(f"{each}\n" for both in CAPTIONS for each in both), "ids": "a\nb\nc\nd\n"}
    for name, text in texts.items():
        (folder / f"test_{name}.txt").write_text(text, encoding="utf-8")
    name = rng.choice([*arrays, *texts])
    file = folder / f"test_{name}.{'txt' if name in texts else 'npy'}"
    harmless = name in texts and rng.random() < 0.2
    if harmless:
        what, content = harmless_text(rng, file.read_bytes())
    elif name in texts:
        what, content = mutate_text(rng, file.read_bytes())
    elif rng.random() < 0.5:
        what = rng.choice(list(HEADERS))
        content = HEADERS[what]
    else:
        what, content = mutate_bytes(rng, file.read_bytes())
    file.write_bytes(content)

    def read():
        data = load_image_text(folder, captions_per_image=2)
        check_data(data, list(data), read_images=True)
        rows = data["test"]
        values = np.stack([rows[n]["region_features"] for n in range(len(rows))])
        if not np.array_equal(values, np.load(folder / "test_ims.npy", allow_pickle=False)[: len(values)]):
            raise WrongValue("other regions than numpy reads")
        if "boxes" in rows.column_names and not np.isfinite([row["boxes"] for row in rows]).all():
            raise WrongValue("boxes")
        return [list(each) for each in rows["captions"]] if harmless else None

    expected = CAPTIONS if harmless else ANY
    return Case("precomputed regions", what, read, expected, (file.name, folder.name, "test image"))


TARS = ("a link out", "a device", "an absolute name", "a name with ..", "no name", "twice", "no text", "no picture")
TARS += ("odd key", "folders", "JSON", "as it is", "compressed")


def webdataset(rng: random.Random, folder: Path) -> Case:
    made, what, as_json = io.BytesIO(), rng.choice(TARS), rng.random() < 0.4
    changed = rng.random() < 0.4
    with tarfile.open(fileobj=made, mode="w:gz" if what == "compressed" else "w") as archive:
        for number in range(3):
            key = rng.choice(ODD_NAMES).replace(".", "") if what == "odd key" and number == 1 else f"000{number}"
            text = ("\n".join(CAPTIONS[number]) + "\n").encode()
            if as_json:
                document = {"captions": CAPTIONS[number], "url": "http://127.0.0.1:1/", "other": number}
                mutated = what == "JSON" and number == rng.randrange(3)
                text = mutate_json(rng, document)[1] if mutated else json.dumps(document).encode()
            members = {f"{key}.png": PNGS[number], f"{key}.{'json' if as_json else 'txt'}": text}
            for name, content in members.items():
                if number == 1:
                    if (what == "no text" and not name.endswith("png")) or (what == "no picture" and "png" in name):
                        continue
                    name = {"an absolute name": f"/{name}", "a name with ..": f"../{name}", "no name": name[4:]}.get(
                        what, f"a/./{name}" if what == "folders" else name
                    )
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                if number == 1 and name.endswith("png") and what in ("a link out", "a device"):
                    entry.type = tarfile.SYMTYPE if what == "a link out" else tarfile.CHRTYPE
                    entry.linkname, entry.size = "/etc/hostname", 0
                archive.addfile(entry, io.BytesIO(content))
                if number == 1 and what == "twice":
                    archive.addfile(entry, io.BytesIO(content))
    content = made.getvalue()
    if changed:
        how, content = mutate_bytes(rng, content)
        what = f"{what}, {how}"
    (folder / "test-0.tar").write_bytes(content)
    options = {"columns": {"captions": "json.captions"}, "captions_as": "list"} if as_json else {}

    def read():
        found = rows_of(folder, **options)["test"]
        for image_id, captions, color in found:
            right = any(captions == CAPTIONS[n] and color == (50 * n, 90, 200) for n in range(3))
            if not right and not changed and what != "JSON":
                raise WrongValue((image_id, captions, color))
        return len(found) if what == "as it is" else None

    return Case("WebDataset archive", what, read, 3 if what == "as it is" else ANY, ("test-0", folder.name))
