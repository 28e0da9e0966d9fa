"""Choosing, gathering and recovering tokens, against loops that say the same in other words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_ait.hourglass import Hourglass
from transformers_ait.token_pruning import (
    Pruned,
    cells_of,
    cluster_centroids,
    gather_tokens,
    select_by_cell,
    select_by_density,
    select_uniform,
)
from transformers_ait.token_recovery import (
    NearestRecovery,
    SimilarityRecovery,
    TokenRecoveringAttention,
    interpolate_tokens,
)


def random_tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def density_peaks(tokens, count, always=None):
    """The paper's choice for one sample (N, C) without ties, in NumPy and loops."""
    points = tokens.double().numpy()
    number = len(points)
    distance = [[np.linalg.norm(a - b) / np.sqrt(points.shape[1]) for b in points] for a in points]
    density = [np.exp(-np.mean(np.square(sorted(row)[:3]))) for row in distance]
    score = []
    for i in range(number):
        to_denser = [distance[i][j] for j in range(number) if density[j] > density[i]]
        score.append(density[i] * (min(to_denser) if to_denser else max(map(max, distance))))
    ranked = [i for i in sorted(range(number), key=lambda i: -score[i]) if i != always]
    return sorted(ranked[:count] if always is None else [always, *ranked[: count - 1]])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), number=st.integers(3, 24), data=st.data())
def test_density_peaks_are_the_papers(seed, number, data):
    count = data.draw(st.integers(1, number))
    always = data.draw(st.none() | st.integers(0, number - 1))
    tokens = random_tokens(2, number, 5, seed=seed)
    # Three neighbours: with two, those who are each other's nearest tie, and rounding decides.
    found = select_by_density(tokens, count, always, num_neighbours=3)
    assert found.tolist() == [density_peaks(sample, count, always) for sample in tokens]


def test_density_prefers_one_of_each_cluster():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    tokens = centres.repeat_interleave(4, 0)[None] + 0.1 * random_tokens(1, 12, 2)
    assert (select_by_density(tokens, 3, num_neighbours=3) // 4).tolist() == [[0, 1, 2]]


def test_equal_tokens_keep_the_first_and_no_gradient_flows():
    tokens = torch.ones(2, 6, 4, requires_grad=True)
    found = select_by_density(tokens, 3)
    assert found.tolist() == [[0, 1, 2]] * 2
    assert not found.requires_grad


def test_the_choice_of_a_sample_is_its_own():
    tokens = random_tokens(5, 30, 8)
    together = select_by_density(tokens, 7)
    assert torch.equal(together, torch.cat([select_by_density(sample[None], 7) for sample in tokens]))


@given(number=st.integers(1, 60), data=st.data())
def test_uniform_places_are_even_and_hold_the_wanted_one(number, data):
    count = data.draw(st.integers(1, number))
    always = data.draw(st.none() | st.integers(0, number - 1))
    places = select_uniform(torch.zeros(2, number, 1), count, always)
    assert places.shape == (2, count)
    (first, second) = places.tolist()
    assert first == second == sorted({*first}) and first[0] >= 0 and first[-1] < number
    if always is not None:
        assert always in first
    elif count > 1:
        assert first[0] == 0 and first[-1] == number - 1
        assert np.ptp(np.diff(first)) <= 1


@pytest.mark.parametrize("count", [0, 7])
@pytest.mark.parametrize("select", [select_by_density, select_uniform])
def test_counts_that_do_not_fit(select, count):
    with pytest.raises(ValueError, match=rf"num_kept must lie in 1..6, the number of tokens, got {count}"):
        select(torch.zeros(1, 6, 2), count)
    with pytest.raises(ValueError, match="always must be the number of a token, 0..5, or None, got 6"):
        select(torch.zeros(1, 6, 2), 2, 6)


def test_one_token_of_every_cell():
    tokens = random_tokens(3, 7 * 5, 4)
    cell = cells_of((7, 5), (3, 2))
    found = select_by_cell(tokens, (7, 5), (3, 2))
    for sample, kept in zip(tokens, found.tolist(), strict=True):
        assert kept == sorted(kept)
        assert sorted(cell[kept].tolist()) == [*range(6)]
        for number in kept:
            members = (cell == cell[number]).nonzero().flatten()
            distance = (sample[members] - sample[members].mean(0)).norm(dim=1)
            assert members[distance.argmin()] == number


def test_cells_cut_the_grid_into_rectangles():
    assert cells_of((4, 4), (2, 2)).view(4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    with pytest.raises(ValueError, match=r"one number in 1..length per axis of the grid \(4, 4\), got \(5, 2\)"):
        cells_of((4, 4), (5, 2))
    with pytest.raises(ValueError, match="has 16 positions, but there are 15 tokens"):
        select_by_cell(torch.zeros(1, 15, 2), (4, 4), (2, 2))


def test_centroids_of_flat_cells_are_the_cells():
    flat = random_tokens(1, 4, 6)[:, cells_of((6, 6), (2, 2))]
    centroids, middle = cluster_centroids(flat, (6, 6), (2, 2), sharpness=100.0)
    assert (centroids - flat[:, [0, 3, 18, 21]]).abs().max() < 1e-4
    assert middle.tolist() == [[7, 10, 25, 28]]
    same, _ = cluster_centroids(torch.ones(2, 36, 3), (6, 6), (2, 2))
    assert (same - 1).abs().max() < 1e-6


def test_gathering_masks_and_biases():
    kept = torch.tensor([[0, 2], [1, 3]])
    bias = random_tokens(1, 2, 4, 4)
    found = gather_tokens(bias, kept, (2, 3))
    expected = torch.stack([bias[0][:, rows][:, :, rows] for rows in kept])
    assert torch.equal(found, expected)
    table = random_tokens(4, 5)
    assert torch.equal(gather_tokens(table, kept, (0,)), table[kept])
    mask = random_tokens(2, 1, 1, 4)
    assert torch.equal(gather_tokens(mask, kept, (2, 3)), torch.stack([mask[i][..., kept[i]] for i in range(2)]))


def test_blocks_see_kept_tokens_and_their_terms():
    x, mask = random_tokens(2, 9, 4), torch.arange(9.0).expand(2, 9)
    seen = []

    def block(tokens, mask, scale):
        seen.append((tokens.shape[1], mask))
        return (tokens * scale, "a tuple's first element counts")

    hourglass = Hourglass([1, 2], [5, 3])
    tokens, pruned = hourglass(x, [block] * 3, per_token={"mask": (mask, (1,)), "none": (None, (1,))}, scale=1.0)
    assert [count for count, _ in seen] == [9, 5, 3]
    assert torch.equal(seen[2][1], pruned.kept.float())
    assert torch.equal(tokens, gather_tokens(x, pruned.kept))
    assert torch.equal(pruned.before, x) and torch.equal(pruned.chosen, tokens)


def test_prefix_and_wanted_token_stay_in_a_pyramid():
    x = random_tokens(40, 1 + 12, 4)
    tokens, pruned = Hourglass([0, 1], [6, 2], always=7, num_prefix=1, table_size=4)(x, [torch.nn.Identity()] * 2)
    assert tokens.shape == (40, 3, 4)
    # Among the six that are left first, the wanted one has another place in every sample.
    assert len({sample.index(7) for sample in select_by_density(x[:, 1:], 6, always=7).tolist()}) > 1
    assert (pruned.kept[:, 0] == 0).all() and (pruned.kept == 8).any(1).all()


def test_frames_are_chosen_by_their_mean_over_joints():
    x = random_tokens(2, 10, 5, 4)
    _, pruned = Hourglass([0], [4])(x, [torch.nn.Identity()])
    assert torch.equal(pruned.kept, select_by_density(x.mean(2), 4))
    assert torch.equal(pruned.chosen, torch.stack([a[k] for a, k in zip(x, pruned.kept, strict=True)]))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"before": [], "kept": []}, "before must be increasing"),
        ({"before": [2, 1], "kept": [5, 3]}, "before must be increasing"),
        ({"before": [1, 2], "kept": [3, 5]}, "kept must be decreasing"),
        ({"before": [1], "kept": [0]}, "kept must be decreasing"),
        ({"before": [1], "kept": [3], "selection": "best"}, "selection must be one of"),
        ({"before": [1], "kept": [[2, 2]], "selection": "cell"}, "needs the grid of the tokens"),
        ({"before": [1], "kept": [[2, 2]], "selection": "centroid", "grid": (4, 4), "always": 3}, "leave it out"),
    ],
)
def test_settings_that_do_not_go_together(settings_, message):
    with pytest.raises(ValueError, match=message):
        Hourglass(**settings_)


def test_more_blocks_are_needed_than_there_are():
    with pytest.raises(ValueError, match="before block 3, but there are 2 blocks"):
        Hourglass([3], [2])(random_tokens(1, 4, 2), [torch.nn.Identity()] * 2)


def pruned_at(kept, before):
    kept = torch.tensor(kept)
    return Pruned(kept, before, gather_tokens(before, kept))


def test_interpolation_is_numpys():
    before = random_tokens(2, 11, 3, 2)
    pruned = pruned_at([[1, 4, 9], [0, 5, 10]], before)
    found = interpolate_tokens(pruned.chosen, pruned)
    for sample, kept, tokens in zip(found, pruned.kept, pruned.chosen, strict=True):
        for joint in range(3):
            for channel in range(2):
                expected = np.interp(np.arange(11), kept, tokens[:, joint, channel])
                assert np.allclose(sample[:, joint, channel], expected, atol=1e-6)


def test_the_nearest_token_on_a_grid():
    before = random_tokens(1, 12, 2)
    pruned = pruned_at([[0, 7]], before)
    found = NearestRecovery((3, 4))(pruned.chosen, pruned)
    # Token 9, at (2, 1), is as far from (0, 0) as from (1, 3): the lower number counts.
    assert [0 if torch.equal(x, before[0, 0]) else 7 for x in found[0]] == [0, 0, 7, 7, 0, 0, 7, 7, 0, 0, 7, 7]


def test_similarity_loses_nothing_when_blocks_do_nothing():
    before = random_tokens(2, 16, 4)
    pruned = pruned_at([[1, 4, 9, 12], [0, 5, 10, 11]], before)
    assert (SimilarityRecovery()(pruned.chosen, pruned) - before).abs().max() < 1e-6
    moved = SimilarityRecovery()(pruned.chosen + 1, pruned)
    assert (moved - before - 1).abs().max() < 1e-5
    change = random_tokens(2, 4, 4, seed=1)
    mixed = SimilarityRecovery(num_neighbours=1)(pruned.chosen + change, pruned)
    nearest = torch.cdist(before, pruned.chosen).argmin(-1)
    assert (mixed - before - gather_tokens(change, nearest)).abs().max() < 1e-6


def test_recovering_attention_is_torchs():
    torch.manual_seed(0)
    recovery = TokenRecoveringAttention(8, 2, 7).eval()
    torch.nn.init.normal_(recovery.queries)
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    layers = (recovery.query, recovery.key, recovery.value)
    reference.in_proj_weight.data = torch.cat([layer.weight for layer in layers])
    reference.in_proj_bias.data = torch.cat([layer.bias for layer in layers])
    reference.out_proj.load_state_dict(recovery.projection.state_dict())
    tokens = random_tokens(3, 4, 8)
    queries = recovery.queries.expand(3, -1, -1)
    expected = queries + reference(queries, tokens, tokens)[0]
    assert (recovery(tokens) - expected).abs().max() < 1e-5
    joints = torch.stack([tokens, 2 * tokens], 2)
    assert (recovery(joints)[:, :, 1] - recovery(2 * tokens)).abs().max() < 1e-5
