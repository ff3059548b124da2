"""Blocks go with their layers when layers are pruned."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from moec_fairseq.models import MoECTransformerModel
from moec_fairseq.models.config import MoECTransformerConfig
from moec_fairseq.models.placement import kept_layers
from tests.models.built import task_of

LAYERS = range(4)
SIDES = ("encoder", "decoder")
PLACES = {
    "in 2 and 4": {"moe_freq": 2},
    "in the middle": {},
    "in 3, replaced": {"encoder_moe_layers": "3", "decoder_moe_layers": "1,3", "moec_layout": "replaced"},
}


@pytest.fixture(scope="module")
def task():
    return task_of()


def make(task, places, **kept):
    stack = {"embed_dim": 16, "layers": 4, "ffn_embed_dim": 8, "attention_heads": 2}
    sizes = {f"{side}_{key}": value for side in SIDES for key, value in stack.items()}
    experts = {"moe_expert_count": 4, "moec_sublayers": 1, "moec_router_dim": 8, "seed": 1}
    config = MoECTransformerConfig(**sizes, **experts, **PLACES[places], share_all_embeddings=True)
    return MoECTransformerModel.build_model(vars(config) | kept, task)


@pytest.fixture(scope="module", params=PLACES)
def whole(request, task):
    """A model whose layers, blocks and experts all differ."""
    torch.manual_seed(1)
    model = make(task, request.param)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return request.param, model.eval()


def output(model):
    source, target = torch.tensor([[4, 5, 6, 2], [1, 7, 8, 2]]), torch.tensor([[2, 6, 5], [2, 8, 7]])
    with torch.no_grad():
        return model.eval()(source, torch.tensor([4, 3]), target)[0]


def check(task, whole, kept):
    """Compare the pruned model with the whole one, of whose layers some are left out."""
    places, model = whole
    lists = {f"{side}_layers_to_keep": ",".join(map(str, layers)) for side, layers in kept.items()}
    pruned = make(task, places, **lists)
    pruned.load_state_dict(model.state_dict(), model_cfg=OmegaConf.create(lists | {"_name": "moec_transformer"}))
    stacks = {side: getattr(model, side).layers for side in SIDES}
    try:
        for side, layers in kept.items():
            getattr(model, side).layers = nn.ModuleList(stacks[side][i] for i in sorted(layers))
        assert torch.equal(output(pruned), output(model))
        for side in SIDES:
            numbers = [
                [module.layer_index for module in getattr(m, side).modules() if hasattr(module, "dropout")]
                for m in (pruned, model)
            ]
            assert numbers[0] == numbers[1], "draws of expert dropout follow the number"
    finally:
        for side in SIDES:
            getattr(model, side).layers = stacks[side]
    return pruned, lists


some_layers = st.lists(st.sampled_from(LAYERS), min_size=1, unique=True)


@settings(max_examples=8, deadline=None)
@given(encoder=some_layers, decoder=some_layers)
def test_any_layers(task, whole, encoder, decoder):
    check(task, whole, {"encoder": encoder, "decoder": decoder})


@pytest.mark.parametrize("side", SIDES)
def test_all_choices_of_one_stack(task, whole, side):
    for size in LAYERS:
        for layers in combinations(LAYERS, size + 1):
            check(task, whole, {side: layers})


def test_training_goes_on_with_what_a_pruned_model_has_saved(task, whole):
    pruned, lists = check(task, whole, {"encoder": [1, 3], "decoder": [2]})
    again = make(task, whole[0], **lists)
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(output(again), output(pruned))


@pytest.mark.parametrize("spec", [None, "", "0,1,2,3", [3, 2, 1, 0], "[0, 1, 2, 3]"])
def test_all_are_kept(spec):
    assert kept_layers(spec, 4, "encoder") == [0, 1, 2, 3]


@pytest.mark.parametrize("spec, expected", [("2,0", [0, 2]), ([1], [1]), (0, [0]), ("0", [0]), (" 1, 3", [1, 3])])
def test_some_are_kept(spec, expected):
    assert kept_layers(spec, 4, "encoder") == expected


@pytest.mark.parametrize(
    "spec, message",
    [
        ("1,4", "--encoder-layers-to-keep names layer 4, which the encoder does not have; give .* from 0 to 3"),
        ("-1", "names layer -1"),
        ("1,1", "is '1,1', which names a layer twice"),
        ("first", "is 'first', which is not a list of layer numbers"),
    ],
)
def test_layers_that_cannot_be_kept(spec, message):
    with pytest.raises(ValueError, match=message):
        kept_layers(spec, 4, "encoder")


@pytest.mark.parametrize("keep", [("--encoder-layers-to-keep", "0"), ("--decoder-layers-to-keep", "0,1")])
def test_from_the_command_line(build, keep):
    built = build("--encoder-layers", "3", "--decoder-layers", "3", "--encoder-layerdrop", "0.1", *keep)
    lengths = [len(built.model.encoder.layers), len(built.model.decoder.layers)]
    assert lengths == ([1, 3] if "0" in keep else [3, 2])
    loss, _, log = built.criterion(built.model.train(), built.batch())
    loss.backward()
    assert len(log["moe_sums"]) == 2  # the encoder's block is pruned, the decoder's keeps its number
