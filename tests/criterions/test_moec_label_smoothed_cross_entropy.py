import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.logging import metrics

from moec_fairseq.compat import modules
from moec_fairseq.criterions.router_losses import on_host
from moec_fairseq.moe.routing_metrics import by_name

ROUTER_KEYS = {
    f"moe_{key}"
    for key in ("balance", "variance", "spread", "gap", "entropy", "overflow", "load_max", "load_min", "unused")
}


def reduced(criterion, *logs):
    with metrics.aggregate() as logged:
        criterion.reduce_metrics(list(logs))
    return {key: value for key, value in logged.get_smoothed_values().items()}


def test_without_weight_it_is_fairseqs_criterion(build):
    ours = build("--moe-gate-loss-wt", "0", "--dropout", "0")
    stock = build("--criterion", "label_smoothed_cross_entropy", "--dropout", "0")
    stock.model.load_state_dict(ours.model.state_dict())
    batch = ours.batch()
    assert torch.equal(ours.criterion(ours.model, batch)[0], stock.criterion(stock.model, batch)[0])


def stock_losses(built, output, batch, reduce=True):
    return super(type(built.criterion), built.criterion).compute_loss(built.model, output, batch, reduce=reduce)


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("flags", [[], ["--ignore-prefix-size", "1"], ["--label-smoothing", "0"]], ids=str)
def test_losses_and_gradients_are_those_of_fairseq(build, flags, reduce):
    built = build("--dropout", "0", *flags)
    batch = built.batch()  # sentences of different lengths: there is padding
    output = built.model(**batch["net_input"])
    results = [
        (losses, torch.autograd.grad(losses[0].sum(), output[0], retain_graph=True))
        for losses in (
            built.criterion.compute_loss(built.model, output, batch, reduce=reduce),
            stock_losses(built, output, batch, reduce=reduce),
        )
    ]
    torch.testing.assert_close(*results)


def test_an_adaptive_softmax_is_trained_together_with_the_router(build):
    built = build("--dropout", "0", "--moec-expert-dropout", "0", "--adaptive-softmax-cutoff", "4,8")
    batch = built.batch()
    loss, _, log = built.criterion(built.model.train(), batch)
    loss.backward()
    with torch.no_grad():  # where fairseq itself can compute them
        hidden, _ = built.model.eval()(**batch["net_input"])
        softmax, target = built.model.decoder.adaptive_softmax, batch["target"].flatten()
        log_probs = modules._get_log_prob(softmax, hidden, None).flatten(end_dim=1)
        losses = label_smoothed_nll_loss(log_probs, target, 0.1, built.criterion.padding_idx)
    torch.testing.assert_close(log["nll_loss"], losses[1])
    sums = by_name(log["moe_sums"])
    torch.testing.assert_close(loss, losses[0] + 0.01 * (sums["balance"].sum() + sums["variance"].sum()))
    trained = [name for name, p in built.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    for part in ("router.expert_embeddings_NK", "adaptive_softmax.head.weight", "adaptive_softmax.tail.1.2.weight"):
        assert any(name.endswith(part) for name in trained), part


def test_training_loss_has_the_gate_loss_and_validation_loss_has_not(build):
    built = build("--dropout", "0", "--moec-expert-dropout", "0", "--moe-gate-loss-wt", "0.5")
    batch = built.batch()
    trained, _, log = built.criterion(built.model.train(), batch)
    validated, _, valid_log = built.criterion(built.model.eval(), batch)
    gate = sum(by_name(log["moe_sums"])[key].sum() for key in ("balance", "variance"))
    torch.testing.assert_close(trained - validated, 0.5 * gate, rtol=1e-4, atol=1e-4)
    assert log["loss"] == trained and valid_log["loss"] == validated


def test_metrics_of_micro_batches_and_workers_are_those_of_the_whole(build):
    built = build("--dropout", "0", "--moec-expert-dropout", "0")
    first, second = built.batch(seed=1), built.batch(seed=2)
    logs = [built.criterion(built.model, batch)[2] for batch in (first, second)]
    together = reduced(built.criterion, *logs)
    assert ROUTER_KEYS <= together.keys()
    # workers are added up before they are reduced
    keys = logs[0].keys()
    summed = {key: sum(log[key] for log in logs) for key in keys}
    assert reduced(built.criterion, summed) == together
    # by hand: tokens on the most loaded expert of each layer, over both micro-batches
    per_expert = by_name(summed["moe_sums"])["tokens_per_expert"]
    by_hand = (100 * per_expert.max(dim=1).values / per_expert.sum(dim=1)).mean().item()
    assert together["moe_load_max"] == pytest.approx(by_hand, abs=1e-3)
    tokens = sum(int(b["net_input"]["src_lengths"].sum() + b["ntokens"]) for b in (first, second))
    assert per_expert.sum() == tokens  # no padding


class OnDevice(torch.Tensor):
    """Cannot be read before ``cpu()``, which is counted; nor can what is computed from it."""

    transfers = 0
    READS = {getattr(torch.Tensor, name) for name in ("item", "tolist", "numpy", "__float__", "__int__", "__bool__")}

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function not in cls.READS, f"{function.__name__} waits for the device"
        result = super().__torch_function__(function, types, args, kwargs)
        if function is not torch.Tensor.cpu:
            return result
        OnDevice.transfers += 1
        return result.as_subclass(torch.Tensor)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_log_reads_a_device_once(build, micro_batches):
    built = build("--dropout", "0")
    logs = [built.criterion(built.model, built.batch(seed=seed))[2] for seed in range(micro_batches)]
    assert [key for key, value in logs[0].items() if torch.is_tensor(value)] == ["loss", "nll_loss", "moe_sums"]
    on_device = [{k: v.as_subclass(OnDevice) if torch.is_tensor(v) else v for k, v in log.items()} for log in logs]
    OnDevice.transfers = 0
    assert reduced(built.criterion, *on_device) == reduced(built.criterion, *logs)
    assert OnDevice.transfers == 1


def test_sums_on_the_host_are_those_of_fairseq():
    third = torch.tensor(1 / 3)
    logs = [{"loss": third, "sample_size": 3}, {"loss": third, "sample_size": 2**40 + 1, "n": torch.tensor(2**40 + 1)}]
    sums = on_host(logs)
    assert sums == {"loss": 0 + third + third, "sample_size": 2**40 + 4, "n": torch.tensor(2**40 + 1)}
    assert sums["loss"].dtype == torch.float32 and sums["n"].dtype == torch.int64
    assert on_host([]) == {}


def test_dense_transformer_has_no_routing_metrics(build):
    built = build("--moe-expert-count", "0")
    _, _, log = built.criterion(built.model, built.batch())
    assert not [key for key in reduced(built.criterion, log) if key.startswith("moe_")]


def test_gradient_of_the_router_comes_from_the_gate_loss(build):
    built = build("--dropout", "0", "--moec-expert-dropout", "0", "--moe-gate-loss-wt", "1")
    built.criterion(built.model, built.batch())[0].backward()
    with_gate = built.model.moe_layers[0].router.expert_embeddings_NK.grad.clone()
    built.model.zero_grad()
    built.criterion.gate_loss_weight = 0
    built.criterion(built.model, built.batch())[0].backward()
    without = built.model.moe_layers[0].router.expert_embeddings_NK.grad
    assert with_gate.norm() > 10 * without.norm()


def test_random_groups_are_drawn_for_each_update(build):
    random, fixed = (
        build("--dropout", "0", "--moec-expert-dropout", "0", "--moec-variance-groups", groups, "--moe-freq", "1")
        for groups in ("random", "clusters")
    )
    fixed.model.load_state_dict(random.model.state_dict())

    def logged(built, update):
        built.model.set_num_updates(update)
        loss, _, log = built.criterion(built.model.train(), built.batch())
        sums = by_name(log["moe_sums"])
        return loss.item(), sums["variance"].sum().item(), sums["spread"].tolist(), sums["balance"].sum().item()

    first, again, second, clusters = logged(random, 3), logged(random, 3), logged(random, 4), logged(fixed, 3)
    assert first == again
    assert len({values[0] for values in (first, second, clusters)}) == 3  # losses
    assert len({values[1] for values in (first, second, clusters)}) == 3  # variances
    assert first[2] == second[2] == clusters[2]  # the spread inside clusters
    for values in (first, second):
        assert values[3] == pytest.approx(clusters[3], rel=1e-5)
        assert values[0] - clusters[0] == pytest.approx(0.01 * (values[1] - clusters[1]), abs=1e-4)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--moec-cluster-count", "3"], r"8 experts .* cannot form 3 clusters .*choose one of 1, 2, 4, 8 clusters"),
        (["--moec-cluster-count", "0"], r"cannot form 0 clusters"),
        (["--moec-cluster-count", "8"], r"--moec-variance intra_cv compares the experts of a cluster.*only 1 of them"),
        (
            ["--moec-variance-groups", "random", "--moec-variance", "global"],
            r"--moec-variance-groups random changes nothing with --moec-variance global, .*; leave it out, or",
        ),
        (
            ["--moec-cluster-count", "8", "--moec-variance", "intra", "--moec-expert-dropout", "0"],
            r"--moec-variance intra compares .* or --moec-variance none or global",
        ),
        (["--moec-expert-dropout", "1"], r"--moec-expert-dropout is 1.0, but .* in \[0, 1\)"),
        (["--moec-expert-dropout", "-0.1"], r"--moec-expert-dropout is -0.1, but .* in \[0, 1\)"),
        (["--moec-expert-dropout-interval", "0"], r"--moec-expert-dropout-interval is 0, but .* 1 or more"),
        (["--encoder-moe-layers", "3"], r"--encoder-moe-layers names layer 3, which the encoder does not have"),
        (["--decoder-moe-layers", "1,1"], r"--decoder-moe-layers is '1,1', which names a layer twice"),
        (["--moe-capacity-factor", "0"], r"--moe-capacity-factor is 0.0, but must be finite and above 0"),
        (["--moe-expert-count", "-1"], r"at least 1 expert, but --moe-expert-count is -1"),
        (["--moec-sublayers", "0"], r"--moec-sublayers is 0, but an expert needs 1 block or more"),
        (["--moec-router-dim", "-1"], r"--moec-router-dim is -1; give"),
        (["--moec-variance-wt", "-1"], r"--moec-variance-wt is -1.0, but"),
        (["--arch", "transformer"], r"needs a model with a MoEC router, but --arch names another; give"),
    ],
)
def test_bad_input_is_rejected_before_training_in_one_sentence(build, flags, message):
    base = ("--criterion", "moec_label_smoothed_cross_entropy")
    architecture = () if "--arch" in flags else ("--arch", "moec_transformer_tiny")
    with pytest.raises(ValueError, match=message) as error:
        build(*architecture, *flags, base=base)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        ["--moe-expert-count", "1", "--moec-cluster-count", "1", "--moec-variance", "none"],
        ["--moec-cluster-count", "1", "--moec-variance", "none", "--moec-expert-dropout", "0"],
        ["--moec-cluster-count", "8", "--moec-variance", "global"],
        ["--moec-variance", "intra_inter", "--moec-router", "dot"],
        ["--moec-variance", "intra_inter_sorted", "--moec-layout", "replaced"],
    ],
)
def test_ablations_train(build, flags):
    built = build(*flags)
    loss, _, _ = built.criterion(built.model.train(), built.batch())
    loss.backward()
    assert loss.isfinite()
