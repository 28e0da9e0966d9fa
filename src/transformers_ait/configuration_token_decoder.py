"""Configuration of the transformer encoder and token decoder between a backbone and the vocabulary."""

from huggingface_hub.dataclasses import strict

from .configuration_checks_ait import MAX_LAYERS, AiTBaseConfig, require_positive


@strict
class AiTTokenDecoderConfig(AiTBaseConfig):
    """Encoder and decoder of the task-solver (AiT, arXiv 2301.02229).

    Args:
        hidden_size: width d of encoder, decoder and embeddings; divisible by 4 (2-d sine table) and by the heads.
        num_attention_heads: heads of every attention.
        intermediate_size: hidden width of the feed-forward networks.
        num_encoder_layers: transformer blocks over the backbone's map; may be 0, as in UniPixTask.
        num_decoder_layers: causal blocks with cross-attention.
        dropout: dropout probability in training.
        drop_path_rate: stochastic-depth probability of every residual branch.
        num_tasks: learned task embeddings, at least (0 detection, 1 instance segmentation, 2 depth, then further dense
            tasks, for which a task-solver adds rows).
        max_positions: rows of each task's position table; the longest sequence, task embedding included.
        layer_norm_eps: epsilon of every LayerNorm.
        initializer_range: standard deviation of the truncated-normal initialisation.
    """

    model_type = "ait_token_decoder"
    base_config_key = "decoder_config"

    hidden_size: int = 256
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float | int = 0.1
    drop_path_rate: float | int = 0.1
    num_tasks: int = 4
    max_positions: int = 2100
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def validate_hidden_size(self):
        """Reject widths that the heads or the sine table cannot split."""
        require_positive(self, "hidden_size", "num_attention_heads", "intermediate_size", "max_positions")
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size must be divisible by num_attention_heads ({self.num_attention_heads}) and by 4, "
                f"got {self.hidden_size}."
            )

    def validate_counts(self):
        """No more layers and tasks than a model can have."""
        require_positive(self, "num_encoder_layers", least=0, most=MAX_LAYERS)
        require_positive(self, "num_decoder_layers", "num_tasks", most=MAX_LAYERS)
