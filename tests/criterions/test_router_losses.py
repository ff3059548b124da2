"""The weight of the router losses beside losses that are not sums over tokens."""

import pytest
import torch

from moec_fairseq.moe.routing_metrics import by_name
from tests.texts import MASKED_LM, PAIRS, SPARSE, STOCK, built, write_pairs, write_text

QUIET = ("--dropout", 0, "--attention-dropout", 0, "--moec-expert-dropout", 0, "--moe-gate-loss-wt", 0.5)


@pytest.mark.parametrize("write, flags", [(write_text, MASKED_LM), (write_pairs, PAIRS)], ids=["masked_lm", "pairs"])
def test_the_router_losses_per_token_have_the_weight_lambda(tmp_path, write, flags):
    """loss / sample size = task's loss / sample size + λ · Σ_layers gate loss / tokens."""
    model = built(write(tmp_path, train=40, valid=10), *flags, *QUIET, "--moe-freq", 1)
    batch = model.batch()
    tokens = int((batch["net_input"]["src_tokens"] != model.task.source_dictionary.pad()).sum())
    trained, sample_size, log = model.criterion(model.model.train(), batch)
    validated, _, valid_log = model.criterion(model.model.eval(), batch)
    assert sample_size < tokens and by_name(log["moe_sums"])["tokens"].tolist() == [tokens] * 2
    gate = sum(by_name(log["moe_sums"])[key].sum() for key in ("balance", "variance"))
    torch.testing.assert_close((trained - validated) / sample_size, 0.5 * gate / tokens, rtol=1e-4, atol=1e-5)
    assert log["loss"] == trained and valid_log["loss"] == validated


@pytest.mark.parametrize("base, criterion, advice", [
    (SPARSE, "moec_label_smoothed_cross_entropy", "--criterion moec_masked_lm or moec_sentence_prediction"),
    (STOCK, "moec_masked_lm", "--arch moec_roberta or a preset of it, or --criterion masked_lm"),
])  # fmt: skip
def test_models_of_other_tasks_are_refused(tmp_path, base, criterion, advice):
    with pytest.raises(ValueError, match=f"--criterion {criterion} needs a model .* {advice}"):
        built(write_text(tmp_path, train=4, valid=4), *MASKED_LM, "--criterion", criterion, base=base)
