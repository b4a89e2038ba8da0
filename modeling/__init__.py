from .configuration_omit import BiGRUConfig, OmitConfig, RegionEncoderConfig
from .matching_omit import OmitFeatures, partial_sinkhorn_similarity
from .modeling_omit import OmitModel, OmitOutput, OmitPreTrainedModel
from .processing_omit import OmitProcessor
from .sinkhorn_omit import sinkhorn

__all__ = [
    "BiGRUConfig",
    "OmitConfig",
    "OmitFeatures",
    "OmitModel",
    "OmitOutput",
    "OmitPreTrainedModel",
    "OmitProcessor",
    "RegionEncoderConfig",
    "partial_sinkhorn_similarity",
    "sinkhorn",
]
