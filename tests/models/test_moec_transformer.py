import copy
import logging

import pytest
import torch

from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.routing_metrics import by_name

LAYOUTS = ["inserted", "replaced"]


def moe_layers(model):
    return [m for m in model.modules() if isinstance(m, MoELayer)]


def awake(model, seed=0):
    """Give new experts something to do: they start as the identity."""
    torch.manual_seed(seed)
    for layer in moe_layers(model):
        for sublayer in layer.experts.sublayers:
            torch.nn.init.normal_(sublayer.w2_NDF, std=0.3)
    return model


@pytest.mark.parametrize(
    "arch, experts, clusters, sublayers, dim, layers",
    [
        ("moec_transformer", 8, 2, 3, 512, 6),
        ("moec_transformer_tiny", 8, 2, 1, 64, 2),
        ("moec_transformer_iwslt_de_en", 8, 2, 1, 512, 6),
        ("moec_transformer_wmt_en_de", 64, 8, 3, 512, 6),
        ("moec_transformer_wmt_en_de_big", 64, 8, 3, 1024, 6),
    ],
)
def test_presets(build, arch, experts, clusters, sublayers, dim, layers):
    # small hidden layers keep the memory of the test small; flags win over presets
    small = ("--moec-expert-ffn-embed-dim", "8", "--encoder-ffn-embed-dim", "16", "--decoder-ffn-embed-dim", "16")
    model = build("--arch", arch, *small).model
    encoder_moe, decoder_moe = moe_layers(model)
    assert len(model.encoder.layers) == len(model.decoder.layers) == layers
    assert encoder_moe.router.clusters.num_experts == experts
    assert encoder_moe.router.clusters.num_clusters == clusters
    assert len(encoder_moe.experts.sublayers) == sublayers
    assert encoder_moe.experts.sublayers[0].w1_NFD.shape == (experts, 8, dim)
    assert model.encoder.layers[(layers - 1) // 2].moe is encoder_moe
    assert model.decoder.layers[(layers - 1) // 2].moe is decoder_moe


def test_flags_reach_the_layers(build):
    model = build(
        "--moe-expert-count", "12", "--moec-cluster-count", "3", "--moec-router", "dot", "--moec-router-dim", "0",
        "--moe-capacity-factor", "0.5", "--moec-expert-dropout", "0.25", "--moec-expert-dropout-interval", "7",
        "--moec-activation-dropout", "0.2",
        "--moec-expert-dropout-scope", "global", "--no-moe-gating-use-fp32", "--moec-variance", "global",
        "--moe-freq", "1", "--seed", "5",
    ).model  # fmt: skip
    layers = moe_layers(model)
    assert [layer.layer_index for layer in layers] == [0, 1, 2, 3]
    for layer in layers:
        assert (layer.router.clusters.num_experts, layer.router.clusters.num_clusters) == (12, 3)
        assert layer.router.score.__name__ == "dot_scores" and layer.router.query_proj is None
        assert layer.capacity_factor == 0.5 and not layer.router.fp32
        assert all(block.activation_dropout == 0.2 for block in layer.experts.sublayers)
        assert (layer.dropout.rate, layer.dropout.interval, layer.dropout.scope, layer.dropout.seed) == (
            0.25,
            7,
            "global",
            5,
        )


def test_routing_is_in_fp32_unless_switched_off(build):
    assert moe_layers(build().model)[0].router.fp32
    assert moe_layers(build("--moe-gating-use-fp32").model)[0].router.fp32


def test_without_experts_it_is_fairseqs_transformer(build):
    plain = build("--moe-expert-count", "0")
    sizes = ("--encoder-layers", "2", "--decoder-layers", "2", "--encoder-embed-dim", "64", "--decoder-embed-dim", "64")
    ffn = ("--encoder-ffn-embed-dim", "64", "--decoder-ffn-embed-dim", "64")
    heads = ("--encoder-attention-heads", "2", "--decoder-attention-heads", "2")
    base = ("--arch", "transformer", "--criterion", "label_smoothed_cross_entropy", "--share-all-embeddings")
    stock = build(*sizes, *ffn, *heads, base=base)
    assert plain.model.state_dict().keys() == stock.model.state_dict().keys()
    plain.model.load_state_dict(stock.model.state_dict())
    batch = stock.batch()["net_input"]
    with torch.no_grad():
        assert torch.equal(plain.model.eval()(**batch)[0], stock.model.eval()(**batch)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", [(), ("--encoder-normalize-before", "--decoder-normalize-before")])
def test_padding_and_company_change_nothing(build, layout, norm):
    built = build("--moec-layout", layout, "--moe-freq", "1", "--encoder-layers", "3", *norm)
    model = awake(built.model).eval()
    batch = built.batch(size=6)
    pad = built.task.source_dictionary.pad()
    with torch.no_grad():
        together = model(**batch["net_input"])[0]
        for i in range(6):
            source = batch["net_input"]["src_tokens"][i]
            previous = batch["net_input"]["prev_output_tokens"][i]
            source, previous = source[source != pad], previous[previous != pad]
            alone = model(source.unsqueeze(0), torch.tensor([len(source)]), previous.unsqueeze(0))[0]
            torch.testing.assert_close(together[i, : len(previous)], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_experts_change_nothing_when_inserted_and_all_get_gradients(build, layout):
    built = build("--moec-layout", layout, "--moec-expert-dropout", "0", "--dropout", "0")
    loss, _, _ = built.criterion(built.model.train(), built.batch(size=32))
    loss.backward()
    missing = [name for name, p in built.model.named_parameters() if p.grad is None]
    assert missing == []
    if layout == "inserted":
        model, batch = built.model.eval(), built.batch()["net_input"]
        with torch.no_grad():
            expected = model(**batch)[0]
            for layer in moe_layers(model):
                layer.forward = lambda hidden, mask=None: hidden
            assert torch.allclose(model(**batch)[0], expected, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_incremental_decoding_equals_teacher_forcing(build, layout):
    built = build("--moec-layout", layout, "--moe-freq", "1")
    model = awake(built.model).eval()
    batch = built.batch(size=1, min_length=7)["net_input"]
    with torch.no_grad():
        whole = model(**batch)[0]
        encoder_out = model.encoder(batch["src_tokens"], batch["src_lengths"])
        state = {}
        for t in range(whole.shape[1]):
            step = model.decoder(batch["prev_output_tokens"][:, : t + 1], encoder_out, incremental_state=state)[0]
            torch.testing.assert_close(step[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)


def test_generation_keeps_no_records(build):
    built = build()
    with torch.no_grad():
        built.model.eval()(**built.batch()["net_input"])
    assert not built.model.collector.is_collecting
    with built.model.record_routing() as records:
        built.model(**built.batch()["net_input"])
    assert [record.layer_index for record in records] == [0, 1]


def test_a_copy_records_for_itself(build):
    built = build()
    copied = copy.deepcopy(built.model)
    with copied.record_routing() as records:
        built.model(**built.batch()["net_input"])
        assert records == []
        copied(**built.batch()["net_input"])
        assert len(records) == 2


def test_plain_criterion_trains_and_warns_once(build, caplog):
    built = build("--criterion", "label_smoothed_cross_entropy")
    with caplog.at_level(logging.WARNING, logger="moec_fairseq"):
        for _ in range(3):
            built.criterion(built.model.train(), built.batch())[0].backward()
        built.model.eval()(**built.batch()["net_input"])
    messages = [r.message for r in caplog.records if "router gets no balance" in r.message]
    assert len(messages) == 1
    assert "--criterion moec_label_smoothed_cross_entropy" in messages[0]


def test_active_follow_updates_not_forward_passes(build):
    built = build("--moec-expert-dropout-interval", "2")
    layer = moe_layers(built.model.train())[0]
    device = torch.device("cpu")
    drawn = []
    for update in range(8):
        built.model.set_num_updates(update)
        for _ in range(3):  # micro-batches of one update
            built.model(**built.batch()["net_input"])
            drawn.append(layer.active_experts(device)[0].tolist())
    assert all(drawn[i] == drawn[i - i % 6] for i in range(len(drawn)))
    assert len({tuple(d) for d in drawn}) > 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_and_autocast(build, layout):
    built = build("--moec-layout", layout)
    batch = built.batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = built.criterion(built.model.train(), batch)[0]
    loss.backward()
    assert loss.isfinite()
    model = built.model.bfloat16()
    loss, _, log = built.criterion(model, batch)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with model.record_routing() as records:
        model(**batch["net_input"])
    assert records[0].routing.scores_TS.dtype == torch.float32


def test_half_precision_routes_in_fp32(build):
    built = build()
    layer = moe_layers(built.model.half())[0]
    routing = layer.router(torch.randn(5, 64).half(), torch.arange(8))
    assert routing.scores_TS.dtype == torch.float32 and routing.gate_T.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("option", ["--checkpoint-activations", "--offload-activations"])
def test_checkpointed_activations_record_once(build, layout, option):
    built = build(option, "--moec-layout", layout, "--encoder-layers", "3")
    loss, _, log = built.criterion(built.model.train(), built.batch())
    loss.backward()
    tokens = built.batch()["net_input"]["src_lengths"].sum()
    assert by_name(log["moe_sums"])["tokens"][0] == tokens
    assert all(p.grad is not None for layer in moe_layers(built.model) for p in layer.router.parameters())


def test_layerdrop_keeps_the_log_in_shape(build):
    built = build("--encoder-layerdrop", "0.99", "--decoder-layerdrop", "0.99")
    for seed in range(5):
        torch.manual_seed(seed)
        _, _, log = built.criterion(built.model.train(), built.batch())
        sums = by_name(log["moe_sums"])
        assert sums["tokens_per_expert"].shape == (2, 8) and sums["tokens"].shape == (2,)


def test_nan_in_hidden_states_reaches_the_loss(build):
    built = build()
    with torch.no_grad():
        built.model.encoder.embed_tokens.weight.fill_(float("nan"))
    loss, _, _ = built.criterion(built.model.train(), built.batch())
    assert loss.isnan()
