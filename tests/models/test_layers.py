"""A layer with a block has all that fairseq hands to its layers."""

import pytest
import torch
from torch import nn

from moec_fairseq.compat.versions import FUSED_WEIGHTS
from moec_fairseq.models.layers import give_block
from moec_fairseq.moe.layer import MoELayer
from tests.models.built import ours, stock

SIZES = ("--encoder-layers", "3", "--decoder-layers", "3", "--dropout", "0")
BATCH = torch.tensor([[4, 5, 6, 2], [1, 7, 8, 2]]), torch.tensor([4, 3]), torch.tensor([[2, 6, 5], [2, 8, 7]])
HANDED = [
    ("--no-cross-attention",),
    ("--cross-self-attention",),
    ("--cross-self-attention", "--no-cross-attention"),
    ("--quant-noise-pq", "0.1", "--quant-noise-pq-block-size", "4"),
    ("--checkpoint-activations",),
    ("--offload-activations",),
    ("--encoder-normalize-before", "--decoder-normalize-before", "--activation-fn", "gelu"),
    ("--attention-dropout", "0.2", "--relu-dropout", "0.3"),
    ("--encoder-layerdrop", "0.2", "--decoder-layerdrop", "0.3"),
    ("--encoder-embed-dim", "32", "--decoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24"),
]


def both(layout, flags):
    """Build stock fairseq's Transformer, and the one with a block in every layer."""
    blocks = ("--moec-layout", layout, "--moe-freq", "1")
    return stock("transformer_tiny", *SIZES, *flags), ours("moec_transformer_tiny", *blocks, *SIZES, *flags)


def settings_of(module):
    plain = (bool, int, float, str, type(None))
    # a random name, and fairseq 0.12.2's path around all layers, which is closed for us
    apart = ("_incremental_state_id", "can_use_fastpath")
    own = {key: value for key, value in vars(module).items() if isinstance(value, plain) and key not in apart}
    # nor have layers without a feed-forward block the copies of it that this path reads
    parameters = [name for name, _ in module.named_parameters(recurse=False) if name not in FUSED_WEIGHTS]
    return own | {"hooks": len(module._forward_pre_hooks), "parameters": parameters}


@pytest.mark.parametrize("layout", ["inserted", "replaced"])
@pytest.mark.parametrize("flags", HANDED, ids="".join)
def test_parts_and_settings_are_those_of_stock(layout, flags):
    fairseqs, model = both(layout, flags)
    parts = dict(model.named_modules())
    replaced = ("fc1", "fc2", "activation_dropout_module") if layout == "replaced" else ()
    for name, part in fairseqs.named_modules():
        if not name or name.endswith(replaced):  # the model itself is another
            continue
        assert isinstance(parts[name], type(part)), name
        assert settings_of(parts[name]) == settings_of(part), name
    new = {name for name in parts if name not in dict(fairseqs.named_modules())}
    assert all(".moe" in name or (replaced and name.endswith("activation_fn")) for name in new)


@pytest.mark.parametrize("flags", HANDED, ids="".join)
def test_new_blocks_change_nothing_at_evaluation(flags):
    fairseqs, model = both("inserted", flags)
    missing, unexpected = model.load_state_dict(fairseqs.state_dict(), strict=False)
    assert unexpected == [] and all(".moe." in name for name in missing)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(*BATCH)[0], fairseqs.eval()(*BATCH)[0])


@pytest.mark.parametrize("option", ["--checkpoint-activations", "--offload-activations"])
@pytest.mark.parametrize("layout, times", [("inserted", 2), ("replaced", 1)])
def test_checkpointing_computes_what_has_no_router_again(layout, times, option):
    gradients = []
    for flags, expected in ((), 1), ((option,), times):
        torch.manual_seed(0)
        blocks = ("--moec-layout", layout, "--moe-freq", "1", "--moec-expert-dropout", "0")
        model = ours("moec_transformer_tiny", *blocks, *SIZES, *flags)
        calls = []
        for stack in (model.encoder, model.decoder):
            stack.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        model(*BATCH)[0].square().sum().backward()
        assert len(calls) == 2 * expected
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_a_layer_that_is_sharded_is_rejected():
    wrapped = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="--ddp-backend fully_sharded .* give --ddp-backend legacy_ddp"):
        give_block(wrapped, MoELayer.__new__(MoELayer), "inserted")


def test_a_replaced_layer_loads_what_fairseq_0_12_2_saves_of_a_dense_one():
    _, model = both("replaced", ())
    copies = {f"encoder.layers.1.{name}": torch.zeros(2) for name in FUSED_WEIGHTS}
    assert not copies.keys() & dict(model.named_parameters()).keys()
    loaded = model.load_state_dict(model.state_dict() | copies)
    assert not loaded.missing_keys and not loaded.unexpected_keys
