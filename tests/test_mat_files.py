"""MATLAB files of level 5 against scipy's reader, and every kind of damage."""

import io
import random

import numpy as np
import pytest

from transformers_ait.data.mat_files import read_matrices

savemat = pytest.importorskip("scipy.io").savemat


def written(content, compressed=False):
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=compressed)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_matrices_of_every_type(dtype, compressed, tmp_path):
    content = {"a": np.arange(12).reshape(3, 4).astype(dtype), "long_name_of_it": np.ones((1, 1), dtype), "é": 5}
    content |= {"text": "some", "cell": np.array([1, "x"], dtype=object), "complex": np.array([[1j]]), "none": []}
    content.pop("é")
    path = tmp_path / "some.mat"
    path.write_bytes(written(content, compressed))
    found = read_matrices(str(path))
    assert set(found) == {"a", "long_name_of_it", "none"}
    np.testing.assert_array_equal(found["a"], content["a"])
    assert found["none"].size == 0 and found["a"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_named_and_never_ends_the_process(compressed, tmp_path):
    data = written({"trainNdxs": np.arange(1, 40)[:, None], "testNdxs": np.array([[41.0]])}, compressed)
    rng, path, refused = random.Random(0), tmp_path / "splits.mat", 0
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3))):
            changed[rng.randrange(len(changed))] = rng.choice((0, 255, rng.randrange(256)))
        path.write_bytes(bytes(changed[: rng.choice((len(data), rng.randrange(len(data))))]))
        try:
            read_matrices(str(path))
        except ValueError as error:
            refused += 1
            assert "splits.mat is" in str(error)
    assert refused > 150


def test_no_file_of_that_kind(tmp_path):
    path = tmp_path / "splits.mat"
    path.write_bytes(b"x" * 500)
    with pytest.raises(ValueError, match=r"splits\.mat is no MATLAB file of level 5"):
        read_matrices(str(path))
