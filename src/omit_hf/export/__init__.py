"""Checkpoints for servers without this package: both encoders and the head as ONNX, or as programs of torch.export.

An image is encoded once, a caption once, and the head scores every image against every caption. A program of
torch.export whose text encoder is a BiGRU needs `import omit_hf.export` before it is loaded, which makes its GRU known.
"""

from omit_hf.export.files import DESCRIPTION_FILE, export_model
from omit_hf.export.parts import picture_size
from omit_hf.export.quantized import save_quantized

__all__ = ["DESCRIPTION_FILE", "export_model", "picture_size", "save_quantized"]
