"""Read some images of a folder of regions, and print the MB that were read, the MB that stayed, and the peak.

The arguments are the folder, the captions of an image, and the number of images to read.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from omit_hf.data import ImageTextInputs, build_word_tokenizer, load_image_text


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith(("Rss", "VmHWM"))}


folder, captions, images = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rows = load_image_text(folder, captions_per_image=captions)["train"]
inputs = ImageTextInputs(rows, partial(build_word_tokenizer(["a man"]), padding=True, return_tensors="pt"))
order = np.random.default_rng(0).permutation(len(rows))[:images] * captions
read, before = 0, resident()
for batch in DataLoader(order, batch_size=128, collate_fn=inputs.pairs):
    read += batch["region_features"].nbytes // 2**20
after = resident()
print(len(rows), "images, MB:", before, after)
print(read, sum(after[name] - before[name] for name in ("RssAnon", "RssFile")), after["VmHWM"])
