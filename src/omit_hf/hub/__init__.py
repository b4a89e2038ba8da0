"""Auto classes, pipelines, publishing, and the handler of an endpoint."""

from omit_hf.hub.endpoint import write_handler
from omit_hf.hub.pipeline import ImageTextMatchingPipeline

__all__ = ["ImageTextMatchingPipeline", "write_handler"]
