from .configuration_omit import BiGRUConfig, OmitConfig, RegionEncoderConfig
from .features_omit import OmitFeatures
from .matching_omit import MATCHING, Match, MatchingHead
from .modeling_omit import OmitModel, OmitOutput, OmitPreTrainedModel
from .processing_omit import OmitProcessor
from .sinkhorn_omit import sinkhorn
from .transport_omit import partial_sinkhorn_similarity

__all__ = ["BiGRUConfig", "OmitConfig", "RegionEncoderConfig", "OmitFeatures", "MATCHING", "sinkhorn", "MatchingHead"]
__all__ += ["OmitModel", "OmitOutput", "OmitPreTrainedModel", "OmitProcessor", "Match", "partial_sinkhorn_similarity"]
