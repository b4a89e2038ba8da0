import numpy as np
import pytest
from datasets import Dataset, Features, Value, concatenate_datasets, load_from_disk

from omit_hf.data.sources.npy import NpyRow, array_layout, read_row

FEATURES = Features({"array": NpyRow(), "number": Value("int32")})


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "array.npy", np.arange(24).reshape(4, 3, 2))
    values = [{"path": str(tmp_path / "array.npy"), "row": row} for row in range(4)]
    return Dataset.from_dict({"array": values, "number": range(4)}, features=FEATURES)


def test_a_value_is_a_row_of_the_file(rows):
    assert rows[2]["array"].tolist() == [[12, 13], [14, 15], [16, 17]]
    assert rows[2]["array"].dtype == np.float32
    assert [array[0, 0] for array in rows[1:3]["array"]] == [6, 12]


def test_arrow_holds_no_values(rows):
    stored = rows.cast_column("array", NpyRow(decode=False))
    assert stored[3]["array"]["row"] == 3
    assert rows.data.nbytes < 1000


def test_the_ways_of_datasets(rows, tmp_path):
    doubled = concatenate_datasets([rows, rows.select([1])])
    assert doubled[4]["array"][0, 0] == 6
    mapped = rows.map(lambda row: {"double": 2 * row["number"]})
    assert mapped[3]["double"] == 6
    assert mapped[3]["array"][0, 0] == 18
    rows.save_to_disk(tmp_path / "saved")
    assert load_from_disk(tmp_path / "saved")[1]["array"][0, 0] == 6


def test_only_places_are_stored():
    with pytest.raises(TypeError, match="is no row of a .npy file; expected"):
        NpyRow().encode_example(np.zeros(3))


def test_other_byte_orders_and_versions(tmp_path):
    with (tmp_path / "array.npy").open("wb") as file:
        np.lib.format.write_array(file, np.arange(6, dtype=">i4").reshape(3, 2), version=(2, 0))
    assert array_layout(tmp_path / "array.npy")[0] == (3, 2)
    assert read_row(tmp_path / "array.npy", 2).tolist() == [4, 5]
    with pytest.raises(ValueError, match="has no row -1; it has 3 rows"):
        read_row(tmp_path / "array.npy", -1)
    with pytest.raises(FileNotFoundError, match="No array at"):
        read_row(tmp_path / "gone.npy", 0)
