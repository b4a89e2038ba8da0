"""Writes regions whose number differs from image to image, in every layout that has them."""

import base64

import numpy as np
import sources
from datasets import Dataset

COUNTS = {number: 1 + number % 5 for numbers in sources.NUMBERS.values() for number in numbers}


def array(number):
    return sources.region_array(number, COUNTS[number])


def corners(number):
    return np.float32([[n, 1, n + 2.5, 4] for n in range(COUNTS[number])])


def texts(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in sources.NUMBERS.items():
        prefix = "dev" if split == "validation" else split
        lines = [caption for number in numbers for caption in sources.captions(number)]
        (folder / f"{prefix}_caps.txt").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{prefix}_ids.txt").write_text("".join(f"{number}\n" for number in numbers))
        yield prefix, numbers


def flat(folder):
    for prefix, numbers in texts(folder):
        np.save(folder / f"{prefix}_ims.npy", np.concatenate([array(n) for n in numbers]))
        np.save(folder / f"{prefix}_boxes.npy", np.concatenate([corners(n) for n in numbers]))
        np.save(folder / f"{prefix}_offsets.npy", np.cumsum([0, *(COUNTS[n] for n in numbers)]))
        np.save(folder / f"{prefix}_img_sizes.npy", np.tile([[640, 480]], (len(numbers), 1)))


def one_npy_an_image(folder):
    for prefix, numbers in texts(folder):
        (folder / f"{prefix}_ims").mkdir()
        for number in numbers:
            np.save(folder / f"{prefix}_ims" / f"{number}.npy", array(number))


def one_npz_an_image(folder):
    for prefix, numbers in texts(folder):
        (folder / f"{prefix}_ims").mkdir()
        for number in numbers:
            save = np.savez_compressed if number % 2 else np.savez
            values = {"features": array(number), "boxes": corners(number), "image_w": 640, "image_h": 480}
            save(folder / f"{prefix}_ims" / f"{number}.npz", **values)


def encoded(values):
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def line(number):
    return "\t".join([str(number), "640", "480", str(COUNTS[number]), encoded(corners(number)), encoded(array(number))])


def tsv(folder):
    for prefix, numbers in texts(folder):
        lines = [line(number) for number in numbers][::-1]
        (folder / f"{prefix}_ims.tsv").write_text("".join(f"{each}\n" for each in lines))


def parquet(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, numbers in sources.NUMBERS.items():
        rows = [
            {
                "features": array(number).tolist(),
                "boxes": corners(number).tolist(),
                "captions": sources.captions(number),
                "image_id": str(number),
            }
            for number in numbers
        ]
        Dataset.from_list(rows).to_parquet(folder / f"{split}-00000.parquet")
    return {"columns": {"region_features": "features", "boxes": "boxes"}}


LAYOUTS = {each.__name__: each for each in (flat, one_npy_an_image, one_npz_an_image, tsv, parquet)}
