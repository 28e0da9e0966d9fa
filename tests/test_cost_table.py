"""`training/cost_table.py`: counts against arithmetic at a tiny size, and the published numbers at theirs."""

import importlib.util
import json
import sys

import pytest
import torch

from transformers_ait import AiTConfig, AiTPlainDenseConfig, AiTPlainDenseModel, DenseDecoderConfig, describe_teacher
from transformers_ait.teachers_ait import PlainTaskModel

# Sides and widths: image, codes, latent features, backbone map; width, feed-forward, code, codebook, layers; the
# teacher's features, as the output of 1 x 1 convolutions with two by two pixels for each latent position.
SIDE, CODES, LATENT, MAP = 64, 4, 8, 16
FEATURES = 16 * 4
WIDTH, FORWARD, CODE, BOOK, LAYERS = 32, 48, 4, 8, 2
POINTS, FINE = CODES**2, LATENT**2
BACKBONE = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": FORWARD}
# A step of attention: projections, and products with keys and values.
PROJECTIONS = 4 * WIDTH**2


@pytest.fixture(scope="module")
def cost_table(repository):
    spec = importlib.util.spec_from_file_location("cost_table", repository / "training" / "cost_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost_table"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Configurations of a tiny dense decoder for depth and of a sequence learner of its codes."""
    folder = tmp_path_factory.mktemp("cost")
    backbone = BACKBONE | {"out_indices": [1]}
    plain = AiTPlainDenseConfig(backbone_config=backbone, image_size=SIDE, hidden_size=FEATURES // 4)
    described = describe_teacher(PlainTaskModel(AiTPlainDenseModel(plain)), SIDE)
    shared = {"downsample_ratio": 16, "num_codes": BOOK, "code_dim": CODE, "num_layers": LAYERS, "num_groups": 4}
    dense = DenseDecoderConfig(**described, **shared, **SIZES, backbone_config=backbone)
    dense.save_pretrained(folder / "dense")
    tokenizer = dense.to_dict() | {"has_encoder": False}
    AiTConfig(
        backbone_config=backbone,
        decoder_config=SIZES | {"num_encoder_layers": 0, "num_decoder_layers": LAYERS, "max_positions": POINTS},
        image_size=SIDE,
        feature_stride=16,
        feature_pyramid=True,
        dense_tasks=[{"name": "depth", "tokenizer_config": tokenizer}],
        num_depth_codes=BOOK,
    ).save_pretrained(folder / "solver")
    return folder


@pytest.fixture(scope="module")
def costs(cost_table, folders):
    return cost_table.cost_table(folders / "solver", folders / "dense", None)


def transformer(tokens):
    """Multiply-adds of `LAYERS` layers over tokens, with the attention and without."""
    forward = LAYERS * tokens * 2 * WIDTH * FORWARD
    return forward + LAYERS * (tokens * PROJECTIONS + 2 * tokens**2 * WIDTH), forward


def test_the_decoded_mapping_costs_what_arithmetic_says(costs):
    # Two over the codes, one transposed from codes to latent features, one of the output, then 1 x 1.
    convolutions = (
        POINTS * 9 * WIDTH * (CODE + WIDTH) + POINTS * 9 * WIDTH**2 + FINE * (9 * WIDTH**2 + WIDTH * FEATURES)
    )
    (coarse, coarse_seen), (fine, fine_seen) = transformer(POINTS), transformer(FINE)
    cost = costs["decoded mapping"]
    assert cost.gflop == pytest.approx((convolutions + coarse + fine) / 1e9, rel=1e-9)
    assert cost.paper_gflop == pytest.approx((convolutions + coarse_seen + fine_seen) / 1e9, rel=1e-9)
    weights = 9 * WIDTH * (CODE + 3 * WIDTH) + WIDTH * FEATURES + 4 * WIDTH + FEATURES  # with biases
    forward = 2 * LAYERS * (2 * WIDTH * FORWARD + WIDTH + FORWARD)
    assert cost.paper_parameters * 2**20 == pytest.approx(weights + forward, rel=1e-9)
    norms = 2 * LAYERS * 2 * 2 * WIDTH + 2 * 2 * WIDTH + 2 * WIDTH  # of layers, at the ends, of the groups
    attention = 2 * LAYERS * (PROJECTIONS + 4 * WIDTH)
    assert cost.parameters * 1e6 == pytest.approx(weights + forward + norms + attention, rel=1e-9)


def test_the_token_decoder_costs_what_arithmetic_says(costs):
    forward, logits = 2 * WIDTH * FORWARD, WIDTH * BOOK
    # Once per run, keys and values of the memory; per step all projections but those, and all that came before.
    memory = LAYERS * POINTS * 2 * WIDTH**2
    steps = LAYERS * sum(6 * WIDTH**2 + forward + 2 * WIDTH * (step + POINTS) for step in range(1, POINTS + 1))
    cost = costs["token decoder"]
    assert cost.gflop == pytest.approx((memory + steps + POINTS * logits) / 1e9, rel=1e-9)
    # Without a cache, step t runs over t tokens.
    assert cost.paper_gflop == pytest.approx(LAYERS * forward * sum(range(1, POINTS + 1)) / 1e9, rel=1e-9)
    assert cost.paper_parameters * 2**20 == pytest.approx(LAYERS * (forward + WIDTH + FORWARD), rel=1e-9)


def test_pyramids_and_compression_cost_what_arithmetic_says(costs):
    pyramid, projections = MAP**2 * 9 * 8 * WIDTH, POINTS * 2 * (WIDTH**2 + WIDTH * FORWARD)
    assert costs["feature pyramid and encoder"].gflop == pytest.approx((pyramid + projections) / 1e9, rel=1e-9)
    compression = POINTS * (9 * WIDTH**2 + WIDTH * CODE)
    cost = costs["encoded mapping"]
    assert cost.gflop == pytest.approx((pyramid + compression + POINTS * CODE * BOOK) / 1e9, rel=1e-9)
    assert cost.paper_gflop == pytest.approx((pyramid + compression) / 1e9, rel=1e-9)


def test_sums_are_sums(costs, cost_table):
    assert list(costs) == [
        *("backbone", "feature pyramid and encoder", "token decoder"),
        *("encoded mapping", "decoded mapping", "task head", "UniPixTask", "dense decoder"),
    ]
    for name, parts in cost_table.SUMS.items():
        for field in ("gflop", "parameters", "paper_gflop", "paper_parameters"):
            assert getattr(costs[name], field) == pytest.approx(sum(getattr(costs[part], field) for part in parts))
    assert all(cost.seconds is None for cost in costs.values())


def test_files_hold_the_table_with_times(cost_table, folders, tmp_path, capsys):
    output = tmp_path / "cost"
    words = ["--solver", folders / "solver", "--decoder", folders / "dense", "--rounds", 1, "--output", output]
    assert cost_table.main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    assert output.with_suffix(".md").read_text() == text and "paper: GFLOP" not in text
    rows = json.loads(output.with_suffix(".json").read_text())
    assert len(rows) == 8 and all(row["seconds"] > 0 for row in rows.values())
    assert f"| {1 / rows['UniPixTask']['seconds']:.2f} |" in text


def test_bad_arguments_end_with_one_line(cost_table, folders, tmp_path, capsys):
    def error(*words):
        assert cost_table.main([str(word) for word in words]) == 1
        return capsys.readouterr().err

    assert "no/such/folder" in error("--solver", "no/such/folder", "--no-speed")
    (tmp_path / "depth").mkdir()
    AiTConfig(backbone_config=BACKBONE | {"out_indices": [1]}, image_size=480).save_pretrained(tmp_path / "depth")
    assert "whose tokenizer is a dense decoder" in error("--solver", tmp_path / "depth", "--decoder", folders / "dense")
    with pytest.raises(SystemExit):
        cost_table.main(["--rounds", "0"])


@pytest.mark.slow
def test_the_papers_backbone_and_token_decoder_come_out(cost_table):
    """What settles how the paper counts: two rows of table 7 that our Swin-B and our decoder repeat."""
    arguments = cost_table.SOLVER, AiTConfig, cost_table.AiTForDenseAndInstancePrediction, "meta"
    solver = cost_table.build(*arguments)
    found = {}
    with torch.no_grad(), cost_table.seen_layers([solver.model.backbone], found):
        solver.model.backbone(torch.empty(1, 3, 640, 640, device="meta"))
    parameters = sum(p.numel() for layer in found for p in layer.parameters())
    assert (round(sum(found.values()) / 1e9, 1), round(parameters / 2**20, 1)) == cost_table.PAPER["backbone"]
    tokens, found = torch.empty(1, 400, 512, device="meta"), {}
    with torch.no_grad(), cost_table.seen_layers([solver.model.decoder], found):
        solver.model.decoder(tokens, tokens)
    gflop, parameters = cost_table.PAPER["token decoder"]
    assert sum(found.values()) * 401 / 2 / 1e9 == pytest.approx(gflop, abs=0.1)  # a difference of two rounded numbers
    assert round(sum(p.numel() for layer in found for p in layer.parameters()) / 2**20, 1) == parameters
