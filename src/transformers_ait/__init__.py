"""AiT ("All in Tokens", arXiv 2301.02229) as a transformers model family. Importing it registers the Auto classes.

Where `datasets` is installed, its `load_dataset` finds this package's builders by name from then on.
"""

import importlib.util

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)
from transformers.models.auto import modeling_auto

from .coco_annotations_ait import contiguous_categories
from .configuration_ait import (
    AiTBinTokenizerConfig,
    AiTConfig,
    AiTDenseTaskConfig,
    AiTSwinV2Config,
    AiTVQVAEConfig,
)
from .configuration_hourglass_pose import HourglassPoseConfig
from .configuration_plain_dense import AiTPlainDenseConfig
from .configuration_token_decoder import AiTTokenDecoderConfig
from .configuration_unipixtask import DenseDecoderConfig
from .hourglass import Hourglass
from .hourglass_images import HourglassHandle, add_hourglass
from .image_processing_ait_dense import AiTDenseImageProcessor
from .image_processing_ait_depth import AiTDepthImageProcessor
from .image_processing_ait_instance import AiTInstanceImageProcessor
from .modeling_ait import AiTForDenseAndInstancePrediction
from .modeling_ait_base import AiTModel
from .modeling_ait_swinv2 import AiTSwinV2Backbone
from .modeling_ait_vqvae import AiTVQVAEModel, AiTVQVAEOutput
from .modeling_bin_tokenizer import AiTBinTokenizer, AiTBinTokenizerOutput
from .modeling_dense_decoder import DenseDecoderModel, DenseDecoderOutput
from .modeling_hourglass_pose import HourglassForPoseLifting, HourglassPoseOutput
from .modeling_plain_dense import AiTPlainDenseModel
from .outputs_ait import AiTModelOutput, AiTOutput
from .paligemma_tokens import PaliGemmaDetection, format_detections, from_instances, parse_detections, to_instances
from .processing_hourglass_pose import HourglassPoseProcessor
from .remote_code import save_with_code
from .teacher_loading_ait import describe_teacher, load_task_model
from .token_vocabulary import TokenVocabulary

__version__ = "0.1.0"

__all__ = [
    "AiTBinTokenizer",
    "AiTBinTokenizerConfig",
    "AiTBinTokenizerOutput",
    "AiTConfig",
    "AiTDenseImageProcessor",
    "AiTDenseTaskConfig",
    "AiTDepthImageProcessor",
    "AiTForDenseAndInstancePrediction",
    "AiTInstanceImageProcessor",
    "AiTModel",
    "AiTModelOutput",
    "AiTOutput",
    "AiTPlainDenseConfig",
    "AiTPlainDenseModel",
    "AiTSwinV2Backbone",
    "AiTSwinV2Config",
    "AiTTokenDecoderConfig",
    "AiTVQVAEConfig",
    "AiTVQVAEModel",
    "AiTVQVAEOutput",
    "DenseDecoderConfig",
    "DenseDecoderModel",
    "DenseDecoderOutput",
    "Hourglass",
    "HourglassForPoseLifting",
    "HourglassHandle",
    "HourglassPoseConfig",
    "HourglassPoseOutput",
    "HourglassPoseProcessor",
    "PaliGemmaDetection",
    "TokenVocabulary",
    "add_hourglass",
    "contiguous_categories",
    "describe_teacher",
    "format_detections",
    "from_instances",
    "load_task_model",
    "parse_detections",
    "save_with_code",
    "to_instances",
]

for _config_class, _model_class in (
    (AiTConfig, AiTModel),
    (AiTVQVAEConfig, AiTVQVAEModel),
    (AiTBinTokenizerConfig, AiTBinTokenizer),
    (AiTSwinV2Config, AiTSwinV2Backbone),
    (AiTPlainDenseConfig, AiTPlainDenseModel),
    (DenseDecoderConfig, DenseDecoderModel),
    (HourglassPoseConfig, HourglassForPoseLifting),
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    AutoModel.register(_config_class, _model_class, exist_ok=True)

AutoFeatureExtractor.register(HourglassPoseConfig, HourglassPoseProcessor, exist_ok=True)
AutoBackbone.register(AiTSwinV2Config, AiTSwinV2Backbone, exist_ok=True)
for _auto_class in (
    AutoModelForDepthEstimation,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
):
    _auto_class.register(AiTConfig, AiTForDenseAndInstancePrediction, exist_ok=True)
for _auto_class in (AutoModelForDepthEstimation, AutoModelForSemanticSegmentation):
    _auto_class.register(AiTPlainDenseConfig, AiTPlainDenseModel, exist_ok=True)

# The segmentation and detection pipelines copy these tables, which forgets registered classes, and then log an error
# for a model that works; one entry does for every kind of segmentation. Private to transformers, hence the default.
for _task in ("INSTANCE_SEGMENTATION", "OBJECT_DETECTION"):
    getattr(modeling_auto, f"MODEL_FOR_{_task}_MAPPING_NAMES", {}).setdefault(
        AiTConfig.model_type, AiTForDenseAndInstancePrediction.__name__
    )
getattr(modeling_auto, "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES", {}).setdefault(
    AiTPlainDenseConfig.model_type, AiTPlainDenseModel.__name__
)


class _InstanceProcessorKey(AiTConfig):
    """Stands for the second image processor: one entry holds one class, or saved processors come back as another."""


for _key, _processor_class in (
    (AiTConfig, AiTDepthImageProcessor),
    (_InstanceProcessorKey, AiTInstanceImageProcessor),
    (AiTPlainDenseConfig, AiTDenseImageProcessor),
):
    AutoImageProcessor.register(_key, image_processor_classes={"torchvision": _processor_class}, exist_ok=True)

if importlib.util.find_spec("datasets") is not None:  # an optional requirement, imported in a quarter of a second
    from . import data  # noqa: F401
