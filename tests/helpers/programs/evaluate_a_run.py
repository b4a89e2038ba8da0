"""Print the test metrics of a run as JSON; the arguments are its folder and the options of its data."""

import json
import sys

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import load_image_text
from omit_hf.evaluation import evaluate_split

folder, options = sys.argv[1], json.loads(sys.argv[2])
model, processor = OmitModel.from_pretrained(folder), OmitProcessor.from_pretrained(folder)
metrics, _ = evaluate_split(model, processor, load_image_text("scenes", **options)["test"])
assert not any(name.startswith(("omit_hf.training", "matplotlib")) for name in sys.modules)
print(json.dumps(metrics))
