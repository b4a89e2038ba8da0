"""Import all of the package, and print where it and its models lie, and what AutoModel makes of its configuration."""

import json

from transformers import AutoModel

import omit_hf
import omit_hf.cards
import omit_hf.comparison
import omit_hf.data
import omit_hf.evaluation
import omit_hf.hub
import omit_hf.metrics
import omit_hf.modeling.modeling_omit
import omit_hf.training
import omit_hf.visualization

model = AutoModel.from_config(omit_hf.OmitConfig(projection_dim=8, text_config={"model_type": "omit_bigru"}))
print(json.dumps([omit_hf.__file__, omit_hf.modeling.modeling_omit.__file__, type(model).__name__]))
