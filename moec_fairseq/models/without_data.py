"""Models with experts built from what a checkpoint says of itself, without the data of its training."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY

from moec_fairseq.checkpoint.state import State, group
from moec_fairseq.models.config import MoECRobertaConfig, MoECTransformerConfig
from moec_fairseq.models.moe_model import MoEModel
from moec_fairseq.models.moec_roberta import NAME as ROBERTA
from moec_fairseq.models.moec_roberta import POSITIONS, MoECRobertaModel
from moec_fairseq.models.moec_transformer import NAME as TRANSFORMER
from moec_fairseq.models.moec_transformer import MoECTransformerModel

# fairseq's model -> the same with experts
KINDS: dict[str, str] = {"transformer": TRANSFORMER, TRANSFORMER: TRANSFORMER, "roberta": ROBERTA, ROBERTA: ROBERTA}
MODELS: dict[str, tuple[type[Any], type[Any]]] = {
    TRANSFORMER: (MoECTransformerModel, MoECTransformerConfig),
    ROBERTA: (MoECRobertaModel, MoECRobertaConfig),
}
# a model loads these when it is built, and the values of the checkpoint take their place
FILES = {"encoder_embed_path": None, "decoder_embed_path": None, "finetune_from_model": None, "restore_file": None}


def build_with_experts(path: Path, state: State, changes: Mapping[str, Any]) -> tuple[MoEModel, dict[str, Any]]:
    """Build the MoEC model of the sizes of a checkpoint, its parameters new; return its options, too, as fairseq saves.

    Args:
        path: of the checkpoint, for messages.
        state: its content: a Transformer or RoBERTa of fairseq, or one of ours; changed in place: parameters of older
            versions of fairseq get their current names.
        changes: options of the model to be built, such as ``moe_expert_count``.

    Raises:
        ValueError: the checkpoint is of another kind, or the options do not fit together.
    """
    given = Namespace(**group(state, "model"))
    arch = getattr(given, "_name", None) or getattr(given, "arch", None)
    kind = KINDS.get(ARCH_MODEL_NAME_REGISTRY.get(arch, arch))
    if kind is None:
        raise ValueError(f"{path} is a {arch}; give the checkpoint of a transformer or roberta of fairseq, or of ours")
    if arch in ARCH_CONFIG_REGISTRY:
        ARCH_CONFIG_REGISTRY[arch](given)  # what older versions did not save
    model_class, config_class = MODELS[kind]
    changed = {"seed": int(group(state, "common").get("seed") or 1), **FILES, **changes}
    if kind == ROBERTA:
        changed["max_positions"] = _rows(state, POSITIONS) - 2  # the first follow the index of padding, 1
    for name, value in changed.items():
        setattr(given, name, value)
    config = config_class.from_namespace(given)
    options = {f.name: getattr(config, f.name) for f in fields(config) if not f.name.startswith("_")}
    task = SimpleNamespace(
        source_dictionary=_dictionary(_rows(state, "encoder.embed_tokens.weight")),
        target_dictionary=_dictionary(_rows(state, "decoder.embed_tokens.weight")) if kind == TRANSFORMER else None,
    )
    model: MoEModel = model_class.build_model(options, task)
    model.upgrade_state_dict(state["model"])  # type: ignore[attr-defined]
    if isinstance(state.get("cfg"), dict):
        return model, {**options, **model.options, "_name": kind}
    # of before fairseq 0.10.2, where the options of everything are together
    return model, {**options, **model.options, "arch": kind, "restore_file": "checkpoint_last.pt"}


def _rows(state: State, ending: str) -> int:
    """Return the rows of the first parameter whose name ends so; RoBERTa was a decoder until 2020."""
    endings = (ending, ending.replace("encoder.", "decoder.sentence_encoder.", 1))
    return next(len(value) for name, value in state["model"].items() if name.endswith(endings))


def _dictionary(size: int) -> Dictionary:
    """Return a dictionary of so many symbols."""
    dictionary = Dictionary()
    for number in range(size - len(dictionary)):
        dictionary.add_symbol(f"symbol{number}")
    return dictionary
