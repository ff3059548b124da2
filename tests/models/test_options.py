"""Options are derived from each other as stock fairseq derives them, and presets give way to the user."""

from argparse import ArgumentParser
from dataclasses import fields
from unittest import mock

import pytest
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, merge_with_parent
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer.transformer_base import TransformerModelBase
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from moec_fairseq.models import MoECTransformerModel
from moec_fairseq.models.config import MoECTransformerConfig
from moec_fairseq.moe.layer import MoELayer
from tests.launch.test_configs import composed
from tests.models.built import ours, parsed, stock, task_of

# preset -> the architecture of stock fairseq that it follows
STOCK = {
    "moec_transformer": "transformer",
    "moec_transformer_tiny": "transformer_tiny",
    "moec_transformer_iwslt_de_en": "transformer_iwslt_de_en",
    "moec_transformer_wmt_en_de": "transformer_wmt_en_de",
    "moec_transformer_wmt_en_de_big": "transformer_wmt_en_de_big",
}
# the authors' command line, where it differs
PUBLISHED = {
    "encoder_normalize_before": True,
    "dropout": 0.3,
    "attention_dropout": 0.1,
    "max_source_positions": 256,
    "max_target_positions": 256,
}
BLOCKS_OF_BASE_LAYERS = {"base_layers", "base_sublayers", "base_shuffle"}  # those of BASE layers, which we have not
# one of each that have their own sizes
YAML_FILES = ["moec_transformer", "small", "multi30k_en_de", "iwslt14_de_en", "wmt14_en_de"]
OF_LANGUAGE_MODELS = {"adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj"}  # which ours rejects
PRUNING = {"encoder_layers_to_keep", "decoder_layers_to_keep"}  # stock stops at any value on its command line


class Captured(Exception):
    """What fairseq has derived when it begins to build."""


def _capture(cls, cfg, dictionary, embed_tokens):
    raise Captured(cfg)


def built_with(build, *arguments):
    """Return the sizes that fairseq builds a model with, or its complaint."""
    with (
        mock.patch.object(TransformerModelBase, "build_embedding", classmethod(lambda *_: nn.Embedding(4, 1))),
        mock.patch.object(TransformerModelBase, "build_encoder", classmethod(_capture)),
    ):
        try:
            build(*arguments)
        except Captured as captured:
            return spelt_out(captured.args[0])
        except ValueError as error:
            return str(error)


def spelt_out(config):
    return {
        f.name: spelt_out(getattr(config, f.name)) if f.name in ("encoder", "decoder", "quant_noise") else
        getattr(config, f.name)
        for f in fields(config)
        if not f.name.startswith("_") and f.name not in BLOCKS_OF_BASE_LAYERS
    }  # fmt: skip


def stock_options():
    """All options of stock's model, each with values that it takes."""
    parser = ArgumentParser()
    TransformerModel.add_args(parser)
    choices = {
        "adaptive_softmax_cutoff": ["2", "2,5"],
        "encoder_embed_path": ["vectors"],
        "decoder_embed_path": ["vectors", "others"],
        "encoder_xformers_att_config": ["linear"],
        "decoder_xformers_att_config": ["linear"],
    }
    for action in parser._actions:
        if action.dest in {"help"} | BLOCKS_OF_BASE_LAYERS | OF_LANGUAGE_MODELS | PRUNING:
            continue
        flag = action.option_strings[0]
        if action.nargs == 0:
            yield [(flag,)]
        elif action.dest in choices or action.choices:
            yield [(flag, value) for value in choices.get(action.dest) or list(action.choices)]
        else:
            yield [(flag, value) for value in (["0.0", "0.25"] if action.type is float else ["8", "24", "40"])]


def given_as(flags):
    return {flag.removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")}


def expected(arch, flags):
    sizes = built_with(stock, STOCK[arch], *flags)
    if isinstance(sizes, dict) and "wmt" in arch:
        for name, value in PUBLISHED.items():
            if name not in given_as(flags):
                side, _, key = name.partition("_")
                sizes.update({name: value} if name in sizes else {side: sizes[side] | {key: value}})
    return sizes


any_flags = st.lists(st.sampled_from(list(stock_options())).flatmap(st.sampled_from), max_size=8).map(
    lambda chosen: [part for option in {option[0]: option for option in chosen}.values() for part in option]
)


@settings(max_examples=60, deadline=None)
@given(arch=st.sampled_from(sorted(STOCK)), flags=any_flags)
def test_what_is_not_given_is_derived_as_stock_derives_it(arch, flags):
    assert built_with(ours, arch, *flags) == expected(arch, flags)


@pytest.mark.parametrize(
    "arch, flags",
    [
        ("moec_transformer", ["--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64"]),
        ("moec_transformer_tiny", ["--encoder-embed-dim", "32", "--decoder-ffn-embed-dim", "16"]),
        ("moec_transformer_wmt_en_de_big", ["--encoder-layers", "3", "--decoder-output-dim", "8"]),
    ],
)
def test_the_whole_way_from_the_command_line(arch, flags):
    config = convert_namespace_to_omegaconf(parsed(arch, *flags)).model
    config = merge_with_parent(MoECTransformerConfig(), config)
    assert built_with(MoECTransformerModel.build_model, config, task_of()) == expected(arch, flags)


def test_decoder_and_experts_follow_the_encoder():
    model = ours("moec_transformer_tiny", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "24")
    assert model.decoder.layers[1].fc1.weight.shape == (24, 32)
    encoder_moe, decoder_moe = (m for m in model.modules() if isinstance(m, MoELayer))
    assert encoder_moe.experts.sublayers[0].w1_NFD.shape == decoder_moe.experts.sublayers[0].w1_NFD.shape == (8, 24, 32)


def model_of(name, *overrides):
    """Return the options of the model in a YAML file, as fairseq-hydra-train finds them."""
    values = composed(name, *overrides)
    model = {key.removeprefix("model."): value for key, value in values.items() if key.startswith("model.")}
    return OmegaConf.create({"model": model, "common": {"seed": values["common.seed"]}}).model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", YAML_FILES)
def test_yaml_sizes_are_derived_too(name):
    given_sizes = ("model.encoder_embed_dim=48", "model.encoder_ffn_embed_dim=24", "model.decoder_ffn_embed_dim=12")
    cfg = merge_with_parent(MoECTransformerConfig(), model_of(name, *given_sizes))
    sizes = built_with(MoECTransformerModel.build_model, cfg, task_of())
    assert (sizes["encoder"]["embed_dim"], sizes["encoder"]["ffn_embed_dim"]) == (48, 24)
    assert (sizes["decoder"]["embed_dim"], sizes["decoder"]["ffn_embed_dim"]) == (48, 12)
    assert (sizes["decoder"]["input_dim"], sizes["decoder"]["output_dim"]) == (48, 48)


@pytest.mark.parametrize("arch", sorted(STOCK))
def test_presets_leave_the_places_of_blocks_to_the_user(arch):
    frequent = MoECTransformerConfig.from_namespace(parsed(arch, "--moe-freq", "2"))
    assert (frequent.moe_freq, frequent.encoder_moe_layers, frequent.decoder_moe_layers) == (2, None, None)
    named = MoECTransformerConfig.from_namespace(parsed(arch, "--decoder-moe-layers", "none"))
    assert (named.moe_freq, named.encoder_moe_layers, named.decoder_moe_layers) == (0, None, "none")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", YAML_FILES)
def test_yaml_files_leave_them_too(name):
    for override, places in {
        "model.moe_freq=2": (2, None, None),
        "model.decoder_moe_layers=none": (0, None, "none"),
    }.items():
        model = merge_with_parent(MoECTransformerConfig(), model_of(name, override))
        assert (model.moe_freq, model.encoder_moe_layers, model.decoder_moe_layers) == places


def test_a_preset_with_another_frequency():
    small = ("--moec-expert-ffn-embed-dim", "8", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16")
    model = ours("moec_transformer_wmt_en_de", "--moe-freq", "2", *small)
    for stack in (model.encoder, model.decoder):
        assert [hasattr(layer, "moe") for layer in stack.layers] == [False, True] * 3


@pytest.mark.parametrize("option", ["adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj"])
def test_options_that_fairseq_knows_by_name_only(build, option):
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"^{flag} is for language models.*leave it out"):
        build(flag, "--adaptive-softmax-cutoff", "4,8")
    build("--adaptive-softmax-cutoff", "4,8")
