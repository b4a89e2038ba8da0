"""Load the models in the folders that are the arguments; print what modules of training and plotting came along."""

import sys

from omit_hf import OmitModel, OmitProcessor

for folder in sys.argv[1:]:
    OmitModel.from_pretrained(folder)
    OmitProcessor.from_pretrained(folder)
print([name for name in sys.modules if name.startswith(("omit_hf.training", "matplotlib"))])
