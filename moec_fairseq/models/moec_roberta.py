"""MoEC RoBERTa: fairseq's RoBERTa with MoE blocks in some layers of its encoder."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.models import register_model
from fairseq.models.roberta.model import RobertaModel

from moec_fairseq.checkpoint.names import find_files
from moec_fairseq.checkpoint.state import State, group, load_state
from moec_fairseq.models.config import MoECRobertaConfig, add_options
from moec_fairseq.models.moe_model import MoEModel
from moec_fairseq.models.placement import kept_layers

NAME = "moec_roberta"
# the end of the name of a parameter
POSITIONS = "sentence_encoder.embed_positions.weight"
# kind of subwords -> option -> name of its file
SUBWORDS = {
    "sentencepiece": {"sentencepiece_model": "spm.model"},
    "gpt2": {"gpt2_encoder_json": "encoder.json", "gpt2_vocab_bpe": "vocab.bpe"},
}


@register_model(NAME, dataclass=MoECRobertaConfig)
class MoECRobertaModel(MoEModel, RobertaModel):
    """RoBERTa with MoE blocks whose experts form clusters (Xie et al., AAAI 2023, arXiv 2207.09094).

    The layers are initialised as in BERT. Experts keep their own initialisation: W2 = 0 makes a new block the identity,
    and the scale of W1, 1/√(3D), is BERT's 0.02 at the size of RoBERTa base.
    """

    stacks = {"encoder": "encoder.sentence_encoder"}
    criterions = "moec_masked_lm or moec_sentence_prediction"
    origins = "moec_roberta or roberta"
    dictionaries = ("dict.txt", "input0/dict.txt")

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the options of the model to fairseq's parser."""
        add_options(parser, MoECRobertaConfig())

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MoECRobertaModel":
        """Build RoBERTa, then put the MoE blocks in their layers.

        Raises:
            ValueError: option values that do not exist or do not fit together.
        """
        config = MoECRobertaConfig(**{key: cfg[key] for key in cfg if key != "_name"})
        options = config.completed()
        if options.max_positions is None:
            options.max_positions = task.max_positions() or task.cfg.tokens_per_sample
        if options.moec_layout == "replaced" and (options.ffn_reg_scale_factor or options.ffn_blocks_to_remove != -1):
            raise ValueError(
                "--ffn-reg-scale-factor and --ffn-blocks-to-remove prune the feed-forward blocks of all layers, but "
                "with --moec-layout replaced some have none; leave them out, or give --moec-layout inserted."
            )
        args = Namespace(**vars(options))
        kept = kept_layers(options.encoder_layers_to_keep, options.encoder_layers, "encoder")
        args.encoder_layers, args.encoder_layers_to_keep = len(kept), None
        model: MoECRobertaModel = super().build_model(args, task)
        model.give_experts(options, {"encoder": kept}, task)
        model.options = {name: value for name, value in vars(options).items() if getattr(config, name, "") is None}
        # whoever loads this model later must not look for the one that it began with
        model.options |= {"finetune_from_model": None, "restore_file": None}
        return model

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        checkpoint_file: str = "model.pt",
        data_name_or_path: str | None = None,
        bpe: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return fairseq's interface of a RoBERTa: ``encode``, ``extract_features``, ``predict``, ``fill_mask``.

        Args:
            model_name_or_path: the folder of the checkpoint.
            checkpoint_file: its name there.
            data_name_or_path: the folder of ``moec prepare``, or binary data; None: those of the training, or the
                folder of the checkpoint.
            bpe: how fairseq calls the kind of subwords; None: sentencepiece or GPT-2's, whose files are beside the data
                or the checkpoint.
            **kwargs: other options, such as ``sentencepiece_model``.

        Raises:
            ValueError: there is no dictionary, or there are no subwords.
        """
        folder = Path(model_name_or_path)
        if data_name_or_path is None:
            file = next(iter(find_files(folder / checkpoint_file).ranks.values()))
            data_name_or_path = str(group(load_state(file, optimizer=False), "task")["data"])
        first = utils.split_paths(data_name_or_path)[0]
        data = folder / first if first.startswith(".") else Path(first)  # as fairseq takes it
        places = [data / "binary", data, folder]
        found = [place for place in places if any((place / name).is_file() for name in cls.dictionaries)]
        if not found:
            raise ValueError(
                f"there is no {' or '.join(cls.dictionaries)} in {', '.join(map(str, places))}; give "
                "data_name_or_path, the folder of moec prepare."
            )
        if bpe is None:
            bpe, files = find_subwords([data, data.parent, folder])
            kwargs = files | kwargs
        return super().from_pretrained(str(folder), checkpoint_file, str(found[0].absolute()), bpe=bpe, **kwargs)

    def check_origin(self, path: Path, state: State) -> None:
        """Refuse to start from a checkpoint of another kind, another vocabulary or with too few positions.

        Raises:
            ValueError: says what it is.
        """
        super().check_origin(path, state)
        (saved,) = (value for name, value in state["model"].items() if name.endswith(POSITIONS))
        own = self.encoder.sentence_encoder.embed_positions
        if len(saved) < len(own.weight):
            positions = len(saved) - own.padding_idx - 1
            raise ValueError(
                f"{path} has positions for {positions} subwords, but the model to be trained for {own.max_positions}; "
                f"give --max-positions {positions} (--tokens-per-sample for --task masked_lm), and --shorten-method "
                "truncate for longer text."
            )

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Give parameters their current names, and leave out positions that this model has not, in place.

        Shorter inputs do not use them, and a task has as many positions as its longest input needs.
        """
        super().upgrade_state_dict_named(state_dict, name)
        for key in [key for key in state_dict if key.endswith(POSITIONS)]:
            state_dict[key] = state_dict[key][: len(self.encoder.sentence_encoder.embed_positions.weight)]


def find_subwords(folders: Sequence[Path]) -> tuple[str, dict[str, str]]:
    """Return the kind of the subwords whose files are in one of the folders, and these files, as fairseq's options.

    Raises:
        ValueError: there are none.
    """
    for folder in folders:
        for kind, files in SUBWORDS.items():
            if all((folder / file).is_file() for file in files.values()):
                return kind, {option: str(folder / file) for option, file in files.items()}
    raise ValueError(
        f"there is neither spm.model nor encoder.json and vocab.bpe in {', '.join(map(str, folders))}; give "
        "data_name_or_path, the folder of moec prepare, or bpe and its files, such as bpe='sentencepiece', "
        "sentencepiece_model=FILE."
    )
