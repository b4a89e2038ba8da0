"""Regions in a table: a list of regions an image, each a list of numbers, as parquet files hold them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


def region_problems(name: str, table: Dataset, columns, labels: list[str | None]) -> list[str]:
    """What is wrong with the regions of the rows that are wanted; of lists no more than the lengths is looked at.

    Args:
        name: of the table, for messages.
        columns: `Columns`, whose `image` is the column of regions.
        labels: of a row that is not wanted, None.
    """
    column = columns.image
    kind = table.data.schema.field(column).type
    expected = "a list of regions, each a list of as many numbers"
    if not (_is_list(kind) and _is_list(kind.value_type) and _is_number(kind.value_type.value_type)):
        return [f"split {name!r}: column {column!r} holds {kind}; expected {expected}, such as list<list<float>>"]
    wanted = [number for number, label in enumerate(labels) if label is not None]
    values = table.select_columns([column]).select(wanted).with_format("arrow")
    boxes = table.select(wanted)[columns.kept["boxes"]] if "boxes" in columns.kept else None
    problems, width, first = [], None, 0
    for batch in values.iter(1000):
        rows = batch[column].combine_chunks() if isinstance(batch[column], pa.ChunkedArray) else batch[column]
        counts = pc.fill_null(pc.list_value_length(rows), 0).to_numpy(zero_copy_only=False)
        inner = pc.list_flatten(rows)
        widths = pc.fill_null(pc.list_value_length(inner), 0).to_numpy(zero_copy_only=False)
        missing = pc.list_flatten(inner).null_count
        ends = np.cumsum([0, *counts])
        for place, count in enumerate(counts):
            number = wanted[first + place]
            where = f"split {name!r} row {number}"
            found = sorted(set(widths[ends[place] : ends[place + 1]].tolist()))
            if count == 0:
                problems.append(f"{where}: {column} has no region; expected {expected}. Leave such an image out")
                continue
            width = found[0] if width is None else width
            if found != [width] or width == 0:
                problems.append(f"{where}: {column} has regions of {found} numbers; expected {width or 'some'} each")
            elif boxes is not None and len(boxes[first + place]) != count:
                problems.append(
                    f"{where}: {columns.kept['boxes']} has {len(boxes[first + place])} boxes and {column} {count} "
                    "regions; expected a box a region"
                )
        if missing:
            rows_of = f"split {name!r} rows {wanted[first]} to {wanted[first + len(counts) - 1]}"
            problems.append(f"{rows_of}: {missing} numbers of {column} are null; expected numbers alone")
        first += len(counts)
    return problems


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)
