from .configuration_omit import BiGRUConfig, OmitConfig, RegionEncoderConfig
from .features_omit import OmitFeatures
from .modeling_omit import OmitModel, OmitOutput, OmitPreTrainedModel
from .processing_omit import OmitProcessor
from .sinkhorn_omit import sinkhorn
from .transport_heads_omit import partial_sinkhorn_similarity

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
