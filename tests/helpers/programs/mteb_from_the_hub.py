"""Load user/model of the Hub for mteb, at a commit and as it is now, and print what mteb would keep, as JSON."""

import json
import sys

from mteb.models.model_meta import ModelMeta

from omit_hf.mteb import OmitForMteb

ModelMeta._check_requirements = lambda self: None  # torchvision, of every model of pictures; ours does without
commit = sys.argv[1]
at_commit = OmitForMteb("user/model", revision=commit)
loads = at_commit, at_commit.mteb_model_meta.load_model(), OmitForMteb("user/model")
print(
    json.dumps(
        [
            {
                "name": each.mteb_model_meta.name,
                "revision": each.mteb_model_meta.revision,
                "weight": each.model.text_encoder.backbone.embeddings.weight[3, 0].item(),
            }
            for each in loads
        ]
    )
)
