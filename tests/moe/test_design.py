"""What docs/design.md tells to write works."""

import re
from pathlib import Path
from unittest import mock

import torch

from moec_fairseq.moe.losses import VARIANCES
from moec_fairseq.moe.router import SCORES

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"


def test_the_snippets_make_a_layer_that_trains():
    torch.manual_seed(1)
    snippets = re.findall(r"^```python\n(.*?)^```$", DESIGN.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 5
    found = {}
    with mock.patch.dict(SCORES), mock.patch.dict(VARIANCES):
        for snippet in snippets:
            exec(snippet, found)
    (record,) = found["records"]
    assert found["variance_L"] > 0 and record.overflow > 0
    for name, parameter in found["layer"].named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert found["router"].expert_embeddings_NK.grad.any() and found["layer"].experts.w_out_NDF.grad.any()


def test_the_dispatcher_keeps_the_last_tokens():
    found = {}
    (snippet,) = re.findall(
        r"(from dataclasses import replace\n.*?)^```$", DESIGN.read_text(encoding="utf-8"), re.S | re.M
    )
    exec(snippet, found)
    dispatcher = found["KeepLastDispatcher"](2)
    tokens_TD = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    dispatched = dispatcher.dispatch(tokens_TD, torch.tensor([0, 0, 1, 0]), 2)
    assert dispatcher.combine(dispatched.tokens_AD, dispatched, 4).flatten().tolist() == [0, 2, 3, 4]


def test_every_file_and_class_that_it_names_exists():
    text = DESIGN.read_text(encoding="utf-8")
    package = DESIGN.parents[1] / "moec_fairseq"
    for names, path in re.findall(r"^\| (`[^|]+`) \| `([^`]+)` \|", text, flags=re.MULTILINE):
        file = package / path
        code = file.read_text() if file.is_file() else "".join(p.read_text() for p in sorted(file.glob("*.py")))
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(class|def) {name}\b", code, flags=re.MULTILINE), f"{name} in {path}"
