"""Configuration of pose lifting: 2-D joints of a video to 3-D, with fewer frames in the middle of the transformer."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_checks_ait import MAX_LAYERS, AiTBaseConfig, require_positive

ARCHITECTURES = ("mixste", "motionbert", "mhformer")
OUTPUTS = ("sequence", "frame")
FRAME_SELECTIONS = ("density", "uniform")
LEFT_JOINTS, RIGHT_JOINTS = (4, 5, 6, 11, 12, 13), (1, 2, 3, 14, 15, 16)
"""Pairs of Human3.6M's 17 joints."""
RECOVERIES = ("attention", "interpolate", "nearest", "similarity")


def middle_frame(num_frames: int) -> int:
    """Number, counted from 0, of the frame in the middle of so many: the earlier of two."""
    return (num_frames - 1) // 2


@strict
class HourglassPoseConfig(AiTBaseConfig):
    """Pose lifting by MixSTE, MotionBERT or MHFormer, with the Hourglass Tokenizer around them (arXiv 2311.12028).

    The defaults are the published HoT with MixSTE.

    Args:
        architecture: "mixste" alternates attention over joints and over frames (arXiv 2203.00859); "motionbert" runs
            both orders side by side and mixes them (arXiv 2210.06551); "mhformer" makes three hypotheses of every
            frame, attends over frames, and predicts the middle one alone: it needs the output "frame" (arXiv
            2111.12707).
        num_frames: F, length of a sequence.
        num_joints: J.
        input_size: channels of a joint in `keypoints`: 2 coordinates, or 3 with a confidence.
        hidden_size: C, of MHFormer the channels of one hypothesis.
        num_hidden_layers: pairs of blocks of MixSTE, double blocks of MotionBERT; of MHFormer blocks that refine
            hypotheses and, the last, one that crosses them.
        num_attention_heads: of every attention, but for those that generate MHFormer's hypotheses.
        mlp_ratio: width of the blocks' MLP over C.
        representation_size: width of MotionBERT's last hidden layer.
        generation_layers: blocks of each of the three encoders that generate MHFormer's hypotheses.
        generation_heads: heads of their attention, whose channels are the frames: a divisor of `num_frames`.
        dropout: rate in MHFormer's blocks, 0.1 as published; the other architectures have none.
        drop_path_rate: stochastic depth of the last block; it grows from 0.
        prune_before: layers, counted from 0, that frames are pruned before; an empty list prunes none.
        num_kept_frames: frames that are left from each of them on.
        selection: "density" (the paper's) or "uniform".
        recovery: how a sequence's frames come back: "attention" (the paper's), "interpolate", "nearest", "similarity".
        output: "sequence" predicts all frames; "frame" the middle one, (F - 1) // 2, which pruning then always keeps.
        left_joints: joints that change places with `right_joints` in a mirrored pose.
        right_joints: see there.
        root_joint: joint that poses are relative to.
        initializer_range: standard deviation of linear weights and position tables.
        layer_norm_eps: of the blocks' normalisations.
    """

    model_type = "hourglass_pose"

    architecture: str = "mixste"
    num_frames: int = 243
    num_joints: int = 17
    input_size: int = 2
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    mlp_ratio: float | int = 2
    representation_size: int = 512
    generation_layers: int = 4
    generation_heads: int = 9
    dropout: float | int = 0.0
    drop_path_rate: float | int = 0.1
    prune_before: list[int] | tuple[int, ...] = (3,)
    num_kept_frames: list[int] | tuple[int, ...] = (81,)
    selection: str = "density"
    recovery: str = "attention"
    output: str = "sequence"
    left_joints: list[int] | tuple[int, ...] = LEFT_JOINTS
    right_joints: list[int] | tuple[int, ...] = RIGHT_JOINTS
    root_joint: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs: Any):
        for name in ("prune_before", "num_kept_frames", "left_joints", "right_joints"):
            setattr(self, name, [*getattr(self, name)])  # as JSON gives them back
        super().__post_init__(**kwargs)

    @property
    def middle_frame(self) -> int:
        """Number of the frame that sequence-to-frame models predict."""
        return middle_frame(self.num_frames)

    @property
    def has_recovery(self) -> bool:
        """Whether pruned frames come back."""
        return self.output == "sequence" and bool(self.prune_before)

    def validate_sizes(self):
        """Nothing can be empty, and heads share the channels evenly."""
        require_positive(
            self,
            *("num_frames", "num_joints", "hidden_size", "num_attention_heads", "mlp_ratio", "representation_size"),
        )
        require_positive(self, "num_hidden_layers", most=MAX_LAYERS)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads {self.num_attention_heads}, got "
                f"{self.hidden_size}."
            )
        if self.input_size not in (2, 3):
            raise ValueError(f"input_size must be 2 (x, y) or 3 (x, y, confidence), got {self.input_size}.")

    def validate_hypotheses(self):
        """MHFormer predicts one frame, and its generating heads share the frames evenly; others have no dropout."""
        if not 0 <= self.dropout < 1 or (self.dropout and self.architecture != "mhformer"):
            raise ValueError(
                f"dropout must lie in [0, 1), and be 0 but for the architecture 'mhformer', got {self.dropout} with "
                f"{self.architecture!r}."
            )
        if self.architecture != "mhformer":
            return
        require_positive(self, "generation_layers", "generation_heads", most=MAX_LAYERS)
        if self.output != "frame":
            raise ValueError(
                f"output must be 'frame' for the architecture 'mhformer', which predicts the middle frame alone, got "
                f"{self.output!r}."
            )
        if self.num_frames % self.generation_heads:
            raise ValueError(
                f"num_frames must be a multiple of generation_heads {self.generation_heads}, got {self.num_frames}; "
                "change one of the two."
            )

    def validate_choices(self):
        """Names must be known."""
        for name, allowed in (
            ("architecture", ARCHITECTURES),
            ("output", OUTPUTS),
            ("selection", FRAME_SELECTIONS),
            ("recovery", RECOVERIES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")

    def validate_pruning(self):
        """Frames are pruned before existing layers, to fewer and fewer."""
        layers, kept = self.prune_before, self.num_kept_frames
        if (
            len(layers) != len(kept)
            or sorted({*layers}) != layers
            or not all(0 <= layer < self.num_hidden_layers for layer in layers)
        ):
            raise ValueError(
                f"prune_before must be increasing numbers of layers in 0..{self.num_hidden_layers - 1}, one per entry "
                f"of num_kept_frames {kept}, got {layers}."
            )
        if sorted({*kept}, reverse=True) != kept or not all(1 <= count <= self.num_frames for count in kept):
            raise ValueError(f"num_kept_frames must be decreasing numbers in 1..{self.num_frames}, got {kept}.")

    def validate_joints(self):
        """Left and right joints are pairs, and all joints exist."""
        left, right = self.left_joints, self.right_joints
        joints = [*left, *right, self.root_joint]
        if len(left) != len(right) or len({*left, *right}) < len(left) + len(right):
            raise ValueError(f"left_joints and right_joints must be pairs of different joints, got {left}, {right}.")
        if not all(0 <= joint < self.num_joints for joint in joints):
            raise ValueError(
                f"left_joints, right_joints and root_joint must lie in 0..{self.num_joints - 1}, got {left}, {right} "
                f"and {self.root_joint}; for other joints than Human3.6M's 17 give all three."
            )


__all__ = ["HourglassPoseConfig"]
