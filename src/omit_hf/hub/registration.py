"""Make the Auto classes of transformers know OMIT; done when `omit_hf` is imported."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

from omit_hf.modeling import OmitConfig, OmitModel, OmitProcessor


def register() -> None:
    AutoConfig.register(OmitConfig.model_type, OmitConfig, exist_ok=True)
    AutoModel.register(OmitConfig, OmitModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(OmitConfig, OmitModel, exist_ok=True)
    AutoProcessor.register(OmitConfig, OmitProcessor, exist_ok=True)
