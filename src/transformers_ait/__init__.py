"""AiT ("All in Tokens", arXiv 2301.02229) as a transformers model family. Importing it registers the Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
)

from .configuration_ait import AiTBinTokenizerConfig, AiTConfig, AiTSwinV2Config, AiTVQVAEConfig
from .configuration_token_decoder import AiTTokenDecoderConfig
from .image_processing_ait_depth import AiTDepthImageProcessor
from .modeling_ait import AiTForDenseAndInstancePrediction, AiTModel, AiTModelOutput, AiTOutput
from .modeling_ait_swinv2 import AiTSwinV2Backbone
from .modeling_ait_vqvae import AiTVQVAEModel, AiTVQVAEOutput
from .modeling_bin_tokenizer import AiTBinTokenizer
from .remote_code import save_with_code
from .token_vocabulary import TokenVocabulary

__version__ = "0.1.0"

__all__ = [
    "AiTBinTokenizer",
    "AiTBinTokenizerConfig",
    "AiTConfig",
    "AiTDepthImageProcessor",
    "AiTForDenseAndInstancePrediction",
    "AiTModel",
    "AiTModelOutput",
    "AiTOutput",
    "AiTSwinV2Backbone",
    "AiTSwinV2Config",
    "AiTTokenDecoderConfig",
    "AiTVQVAEConfig",
    "AiTVQVAEModel",
    "AiTVQVAEOutput",
    "TokenVocabulary",
    "save_with_code",
]

for _config_class, _model_class in (
    (AiTConfig, AiTModel),
    (AiTVQVAEConfig, AiTVQVAEModel),
    (AiTBinTokenizerConfig, AiTBinTokenizer),
    (AiTSwinV2Config, AiTSwinV2Backbone),
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    AutoModel.register(_config_class, _model_class, exist_ok=True)

AutoBackbone.register(AiTSwinV2Config, AiTSwinV2Backbone, exist_ok=True)
AutoModelForDepthEstimation.register(AiTConfig, AiTForDenseAndInstancePrediction, exist_ok=True)
AutoImageProcessor.register(AiTConfig, image_processor_classes={"torchvision": AiTDepthImageProcessor}, exist_ok=True)
