"""The interface of torch.hub: what stock fairseq's model can do, ours can."""

import copy

import pytest
import torch
from fairseq import tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.transformer import TransformerModel
from omegaconf import OmegaConf

from moec_fairseq.models import MoECTransformerModel
from tests.models.built import parsed, task_of

MODELS = {TransformerModel: "transformer_tiny", MoECTransformerModel: "moec_transformer_tiny"}
SIZES = ("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16", "--share-all-embeddings", "--max-tokens", "100")

SHORT = {"max_len_b": 5}  # new models do not end by themselves
CALLS = {
    "translate": lambda hub: hub.translate("a b c", **SHORT),
    "translate several": lambda hub: hub.translate(["a b c", "d"], beam=2, verbose=True, lenpen=0.5, **SHORT),
    "translate with unknown words": lambda hub: hub.translate("a x", **SHORT),
    "translate too much": lambda hub: hub.translate("a " * 1100),
    "sample": lambda hub: hub.sample(["a b"], beam=1, sampling=True, sampling_topk=2, **SHORT),
    "generate": lambda hub: hub.generate(hub.encode("a b"), **SHORT)[0]["tokens"],
    "generate several": lambda hub: hub.generate(
        [hub.encode("a b"), hub.encode("c")], skip_invalid_size_inputs=True, **SHORT
    ),
    "generate with a prefix": lambda hub: hub.generate(
        [hub.encode("a b")], inference_step_args={"prefix_tokens": torch.tensor([[5]])}, **SHORT
    ),
    "generate allowed words": lambda hub: hub.generate(
        [hub.encode("a")], prefix_allowed_tokens_fn=lambda *_: [4, 2], **SHORT
    ),
    "generate diverse": lambda hub: hub.generate([hub.encode("a b")], beam=4, diverse_beam_groups=2, nbest=4, **SHORT),
    "print alignment": lambda hub: hub.translate("a b", verbose=True, print_alignment="hard", **SHORT),
    "score": lambda hub: hub.score("a b"),
    "score several": lambda hub: hub.score(["a b\nc", "d"], replace_newline_with_eos=True),
    "encode and decode": lambda hub: hub.decode(hub.encode("a b c")),
    "tokenize": lambda hub: hub.detokenize(hub.tokenize("a b")),
    "bpe": lambda hub: hub.remove_bpe(hub.apply_bpe("a b")),
    "binarize": lambda hub: hub.string(hub.binarize("a b")),
    "positions": lambda hub: (hub.max_positions, hub.models[0].max_positions(), hub.device),
    "bfloat16": lambda hub: copy.copy(hub).bfloat16().translate("a b", **SHORT),
    "train": lambda hub: hub.train(),
    "state": lambda hub: hub.load_state_dict(hub.state_dict()),
}
OVERRIDES = [
    {},
    {"beam": 2},
    {"retain_dropout": True},
    {"tokenizer": "space", "bpe": "characters"},
    {"encoder_layers_to_keep": "1", "decoder_layers_to_keep": "0"},
    {"dropout": 0.5, "max_source_positions": 3},
]


@pytest.fixture(scope="module")
def hubs(tmp_path_factory):
    """Return a folder with a new model of stock fairseq's, and one with ours, both with their dictionaries."""
    folders = {}
    for model_class, arch in MODELS.items():
        folder = folders[model_class] = tmp_path_factory.mktemp(arch)
        for language in ("src", "tgt"):
            task_of().source_dictionary.save(str(folder / f"dict.{language}.txt"))
        arguments = parsed(arch, "-s", "src", "-t", "tgt", *SIZES)
        arguments.data = str(folder)
        config = convert_namespace_to_omegaconf(arguments)
        torch.manual_seed(1)
        model = tasks.setup_task(config.task).build_model(config.model)
        state = {
            "args": None,
            "cfg": OmegaConf.to_container(config, resolve=True, enum_to_str=True),
            "model": model.state_dict(),
            "optimizer_history": [{"num_updates": 1, "optimizer_name": "", "lr_scheduler_state": {}}],
            "extra_state": {"train_iterator": {"epoch": 1}},
        }
        torch.save(state, folder / "model.pt")
    return folders


def outcome(call, *arguments):
    """Return whether it works, or how it fails."""
    try:
        call(*arguments)
    except Exception as error:
        return type(error)
    return "works"


def test_what_works_for_stock_works(hubs):
    loaded = {model_class: model_class.from_pretrained(str(folder)) for model_class, folder in hubs.items()}
    outcomes = {
        model_class: {name: outcome(call, hub) for name, call in CALLS.items()} for model_class, hub in loaded.items()
    }
    assert outcomes[MoECTransformerModel] == outcomes[TransformerModel]
    assert outcomes[MoECTransformerModel]["translate"] == "works"
    assert outcomes[TransformerModel]["score"] is TypeError  # "this doesn't support translation tasks", it says


@pytest.mark.parametrize("overrides", OVERRIDES, ids=str)
def test_what_can_be_loaded_for_stock_can_be_loaded(hubs, overrides):
    for model_class, folder in hubs.items():
        hub = model_class.from_pretrained(str(folder), **overrides)
        assert isinstance(hub.translate("a b", **SHORT), str)
