import pytest

from moec_fairseq.models.placement import moe_layer_indices


@pytest.mark.parametrize(
    "spec, freq, num_layers, expected",
    [
        (None, 0, 6, [2]),  # the published place: after layer 3 of 6
        (None, 0, 1, [0]),
        ("3", 0, 6, [2]),
        ("5, 1,3", 0, 6, [0, 2, 4]),
        ("none", 0, 6, []),
        (None, 2, 6, [1, 3, 5]),
        (None, 4, 6, [3]),
    ],
)
def test_indices(spec, freq, num_layers, expected):
    assert moe_layer_indices(spec, freq, num_layers, "encoder") == expected


@pytest.mark.parametrize(
    "spec, freq, message",
    [
        ("7", 0, r"--encoder-moe-layers names layer 7, which the encoder does not have.* from 1 to 6"),
        ("0", 0, r"names layer 0, .* from 1 to 6"),
        ("2,2", 0, r"--encoder-moe-layers is '2,2', which names a layer twice"),
        ("two", 0, r"--encoder-moe-layers is 'two', which is not a list of layer numbers; give a comma-separated list"),
        ("", 0, r"not a list of layer numbers"),
        ("3", 2, r"Both --moe-freq 2 and --encoder-moe-layers 3 are given; give one of the two"),
        (None, 7, r"--moe-freq is 7, but the encoder has 6 layers.*give 1 to 6"),
        (None, -1, r"--moe-freq is -1; give 1 or more"),
    ],
)
def test_bad_input(spec, freq, message):
    with pytest.raises(ValueError, match=message):
        moe_layer_indices(spec, freq, 6, "encoder")
