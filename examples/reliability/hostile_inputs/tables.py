"""Tables in parquet, whose columns may hold anything."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hostile_inputs.case import ANY, REFUSED, Case, WrongValue
from hostile_inputs.data import CAPTIONS, PNGS, rows_of
from hostile_inputs.mutations import dump, mutate_bytes, mutate_value

PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
COLUMNS = {
    "image": ([{"bytes": PNGS[n], "path": f"{n}.png"} for n in range(3)], PICTURE),
    "captions": (CAPTIONS[:3], pa.list_(pa.string())),
    "image_id": (["0", "1", "2"], pa.string()),
}
FEATURES = {
    "info": {
        "features": {
            "image": {"_type": "Image"},
            "captions": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
            "image_id": {"dtype": "string", "_type": "Value"},
        }
    }
}
# Other columns in the place of these three: the values, and their type.
OTHERS = {
    "image": {
        "paths": (["/etc/hostname"] * 3, pa.string()),
        "no bytes": ([{"bytes": None, "path": "/etc/hostname"}] * 3, PICTURE),
        "empty bytes": ([{"bytes": b"", "path": "a"}] * 3, PICTURE),
        "nulls": ([None] * 3, PICTURE),
        "all null": ([None] * 3, pa.null()),
        "numbers": ([0, 1, 2], pa.int64()),
        "text of bytes": ([{"bytes": "a", "path": "a"}] * 3, pa.struct({"bytes": pa.string(), "path": pa.string()})),
        "other fields": ([{"bytes": b"", "url": "a"}] * 3, pa.struct({"bytes": pa.binary(), "url": pa.string()})),
        "cut off": ([{"bytes": PNGS[n][:40], "path": "a"} for n in range(3)], PICTURE),
    },
    "captions": {
        "one text": (["a", "b", "c"], pa.string()),
        "numbers": ([[1], [2], [3]], pa.list_(pa.int64())),
        "lists of lists": ([[["a"]], [["b"]], [["c"]]], pa.list_(pa.list_(pa.string()))),
        "objects": ([{"a": "b"}] * 3, pa.struct({"a": pa.string()})),
        "objects in lists": ([[{"raw": "a"}]] * 3, pa.list_(pa.struct({"raw": pa.string()}))),
        "null": ([["a"], None, ["c"]], pa.list_(pa.string())),
        "null in a list": ([["a"], [None], ["c"]], pa.list_(pa.string())),
        "empty lists": ([[], [], []], pa.list_(pa.string())),
        "all null": ([None] * 3, pa.null()),
        "bytes": ([[b"a"], [b"\xff"], [b""]], pa.list_(pa.binary())),
        "text that is no UTF-8": ([[b"a"], [b"\xff"], [b"b"]], "text"),
        "dates": ([[0], [1], [2]], pa.list_(pa.timestamp("s"))),
        "a map": ([[("a", "b")]] * 3, pa.map_(pa.string(), pa.string())),
    },
    "image_id": {
        "nulls": (["0", None, "2"], pa.string()),
        "all alike": (["0"] * 3, pa.string()),
        "numbers": ([0, 1, 2], pa.int64()),
        "NaN": ([0.0, float("nan"), float("inf")], pa.float64()),
        "lists": ([["0"], ["1"], ["2"]], pa.list_(pa.string())),
        "bytes": ([b"0", b"1", b"\xff"], pa.binary()),
        "booleans": ([True, False, True], pa.bool_()),
        "odd": (["\0", "../..", "a\nEVIL LINE"], pa.string()),
        "empty": (["", " ", "2"], pa.string()),
    },
}
EXPECTED = {"test": [(str(n), CAPTIONS[n], (50 * n, 90, 200)) for n in range(3)]}


def _array(values, kind) -> pa.Array:
    if kind != "text":
        return pa.array(values, kind)
    plain = pa.array(values, pa.list_(pa.binary()))
    text = pa.Array.from_buffers(pa.string(), len(plain.values), plain.values.buffers())
    return pa.ListArray.from_arrays(plain.offsets, text)


def parquet(rng: random.Random, folder: Path) -> Case:
    columns, expected, way, metadata = dict(COLUMNS), ANY, rng.randrange(10), None
    if way < 5:
        name = rng.choice(list(OTHERS))
        what = rng.choice(list(OTHERS[name]))
        columns[name] = OTHERS[name][what]
        what = f"{name}: {what}"
    elif way == 5:
        what, metadata = mutate_value(rng, FEATURES)
        what = f"features: {what}"
    elif way == 6:
        what, columns = rng.choice(
            [
                ("a column is missing", {name: columns[name] for name in rng.sample(list(columns), 2)}),
                ("no row", {name: ([], kind) for name, (_, kind) in columns.items()}),
                ("no column", {}),
            ]
        )
        expected = REFUSED
    elif way == 7:
        what, metadata, expected = "as it is", FEATURES, EXPECTED
    else:
        what = ""
    arrays = {name: _array(values, kind) for name, (values, kind) in columns.items()}
    table = pa.table(arrays)
    if way == 6 and columns and rng.random() < 0.3:
        what, table = "a column twice", pa.table(list(arrays.values()) * 2, names=list(arrays) * 2)
    if metadata is not None:
        said = dump(metadata).encode(errors="surrogatepass")
        table = table.replace_schema_metadata({b"huggingface": said})
    file = folder / "test.parquet"
    pq.write_table(table, file, compression=rng.choice(["snappy", "none", "gzip", "zstd"]))
    if way > 7:
        what, content = mutate_bytes(rng, file.read_bytes())
        file.write_bytes(content)

    def read():
        found = rows_of(folder)
        json.dumps(found)
        if not all(isinstance(image_id, str) and captions for image_id, captions, _ in found["test"]):
            raise WrongValue(found)
        return found if expected is not ANY else None

    return Case("parquet", what, read, expected, ("test", folder.name))
