"""Make the Auto classes and the pipelines of transformers know OMIT; done when `omit_hf` is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from omit_hf.hub.pipeline import TASK, ImageTextMatchingPipeline
from omit_hf.migration import register_migration
from omit_hf.modeling import OmitConfig, OmitModel, OmitProcessor


def register() -> None:
    AutoConfig.register(OmitConfig.model_type, OmitConfig, exist_ok=True)
    AutoModel.register(OmitConfig, OmitModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(OmitConfig, OmitModel, exist_ok=True)
    AutoProcessor.register(OmitConfig, OmitProcessor, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(TASK, ImageTextMatchingPipeline, pt_model=AutoModel, type="multimodal")
    register_migration()
