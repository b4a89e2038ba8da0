"""Score with a published model, publish it again, save both scores in the file that is the argument, run its card."""

import re
import sys
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import load_image_text
from omit_hf.evaluation import evaluate_split


def scores(name):
    model, processor = OmitModel.from_pretrained(name), OmitProcessor.from_pretrained(name)
    test = load_image_text("scenes", train_size=8, validation_size=4, test_size=6)["test"]
    return model, processor, evaluate_split(model, processor, test, progress=False)[1]


model, processor, first = scores("user/model")
model.push_to_hub("user/again")
processor.push_to_hub("user/again")
np.save(sys.argv[1], np.stack([first, scores("user/again")[2]]))
card = Path(hf_hub_download("user/model", "README.md")).read_text(encoding="utf-8")
[code] = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
exec(code)
