"""What all models with MoE blocks have in common: placing the blocks, building them, recording what they do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from fairseq import utils
from fairseq.data import Dictionary

from moec_fairseq.checkpoint.state import State, group
from moec_fairseq.compat.versions import FUSED_WEIGHTS, disable_fused_encoder
from moec_fairseq.models.dropout import use_cheap_masks
from moec_fairseq.models.layers import give_block
from moec_fairseq.models.placement import keep_layers, moe_layer_indices
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.dispatch import LocalDispatcher
from moec_fairseq.moe.exchange import DISPATCHERS, ExactDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.expert_parallel import ExpertParallelGroups
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.router import Router, rename_old_parameters
from moec_fairseq.moe.routing_records import RoutingCollector, RoutingRecord
from moec_fairseq.moe.shuffle import TokenShuffle


class MoEModel:
    """A mixin for models of fairseq, some layers of whose stacks have an MoE block.

    Attributes:
        stacks: name of each stack in the options (``encoder``, ``decoder``) -> of its module in the model.
        criterions: those that add the router losses.
        origins: models whose checkpoints a training may start from.
        dictionaries: where data have the dictionary of the encoder, under their folder.
        collector: takes the routing records of all blocks.
        moe_layers: the blocks that this model has.
        num_moe_layers: the blocks of the model before pruning, by which they are numbered.
        kept_layers: layers of each stack that pruning keeps.
        world_size: processes that share the experts.
        groups: these processes; None if there is only one.
        options: what a checkpoint is to say of options that were not given, but completed when the model was built.
    """

    stacks: ClassVar[Mapping[str, str]]
    criterions: ClassVar[str]
    origins: ClassVar[str]
    dictionaries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.collector = RoutingCollector(self.criterions)
        self.moe_layers = list[MoELayer]()
        self.num_moe_layers = 0
        self.kept_layers = dict[str, list[int]]()
        self.world_size = 1
        self.groups: ExpertParallelGroups | None = None
        self.options = dict[str, Any]()

    def stack(self, side: str) -> Any:
        """Return the module of a stack, which has ``layers`` and fairseq's configuration of them."""
        return self.get_submodule(self.stacks[side])  # type: ignore[attr-defined]

    def give_experts(self, config: Any, kept: dict[str, list[int]], task: Any) -> None:
        """Put the MoE blocks in their layers, once fairseq has built the model.

        Args:
            config: the model's options.
            kept: layers of each stack that pruning keeps, from 0.
            task: is told the model; the criterion, which fairseq builds from the same task, checks its options against
                those of the model.

        Raises:
            ValueError: option values that do not exist or do not fit together.
        """
        self.kept_layers = kept
        if config.moe_expert_count != 0:
            self._place_moe_layers(config)
        disable_fused_encoder(self.stack("encoder"))
        use_cheap_masks(self)  # type: ignore[arg-type]
        task.moec_model = self

    def _place_moe_layers(self, config: Any) -> None:
        groups = ExpertParallelGroups.of_job(config.moe_expert_count)
        self.world_size = 1 if groups is None else groups.shard.world_size
        self.groups = groups
        for side, kept in self.kept_layers.items():
            layers = self.stack(side).layers
            spec, num_layers = (getattr(config, f"{side}_{key}") for key in ("moe_layers", "layers"))
            # blocks are placed and numbered in the whole stack; those of pruned layers are pruned, too
            for index in moe_layer_indices(spec, config.moe_freq, num_layers, side):
                if index in kept:
                    moe = self._build_moe_layer(config, side, groups)
                    give_block(layers[kept.index(index)], moe, config.moec_layout)
                    self.moe_layers.append(moe)
                self.num_moe_layers += 1
        if groups is not None:
            # the attribute that torch's DistributedDataParallel looks for
            self._ddp_params_and_buffers_to_ignore = [
                name
                for name, parameter in self.named_parameters()  # type: ignore[attr-defined]
                if hasattr(parameter, "expert")
            ]

    def _build_moe_layer(self, config: Any, side: str, groups: ExpertParallelGroups | None) -> MoELayer:
        """Build a block for a layer of the ``encoder`` or ``decoder``."""
        sizes = getattr(self.stack(side).cfg, side)
        dim = sizes.embed_dim
        ffn_dim = config.moec_expert_ffn_embed_dim or sizes.ffn_embed_dim
        clusters = ExpertClusters(config.moe_expert_count, config.moec_cluster_count)
        exchanging = groups if groups is not None and groups.shard.num_ranks > 1 else None
        exchanging_at_evaluation = exchanging if config.moec_evaluation == "exchanged" else None
        return MoELayer(
            Router(dim, clusters, config.moec_router, config.moec_router_dim, config.moe_gating_use_fp32),
            Experts(
                clusters.num_experts,
                dim,
                ffn_dim,
                config.moec_sublayers,
                utils.get_activation_fn(config.activation_fn),
                groups,
                gather=exchanging_at_evaluation is None,
                activation_dropout=config.moec_activation_dropout,
                norm=config.moec_expert_norm == "layer",
            ),
            DISPATCHERS[config.moec_dispatch](exchanging) if exchanging else LocalDispatcher(clusters.num_experts),
            ExpertDropout(
                config.moec_expert_dropout,
                config.moec_expert_dropout_interval,
                config.moec_expert_dropout_scope,
                config.seed,
            ),
            config.moe_capacity_factor,
            layer_index=self.num_moe_layers,
            stack=side,
            collector=self.collector,
            shuffle=TokenShuffle(exchanging) if config.moec_token_shuffle and exchanging else None,
            evaluation_dispatcher=ExactDispatcher(exchanging_at_evaluation) if exchanging_at_evaluation else None,
        )

    @contextmanager
    def record_routing(self) -> Iterator[list[RoutingRecord]]:
        """Collect the routing records of the forward passes made in this context."""
        with self.collector.collect() as records:
            yield records

    def check_origin(self, path: Path, state: State) -> None:
        """Refuse to start from a checkpoint of another kind of model, or of another vocabulary.

        Args:
            path: of the checkpoint.
            state: its content.

        Raises:
            ValueError: says what it is.
        """
        name = f"{self.stacks['encoder']}.embed_tokens.weight"
        model = state["model"]
        embeddings = model.get(name, model.get(name.replace("encoder.", "decoder.", 1)))  # of RoBERTa until 2020
        if embeddings is None:
            arch = group(state, "model").get("_name") or group(state, "model").get("arch")
            raise ValueError(
                f"{path} is a {arch}, but the model to be trained can only start from a {self.origins}; give the "
                "checkpoint of one."
            )
        own = self.stack("encoder").dictionary.symbols
        data = Path(utils.split_paths(str(group(state, "task").get("data")))[0])
        before = [Dictionary.load(str(data / file)).symbols for file in self.dictionaries if (data / file).is_file()]
        if len(embeddings) != len(own) or any(symbols != own[: len(symbols)] for symbols in before):
            raise ValueError(
                f"{path} has another vocabulary ({len(embeddings)} subwords) than the data ({len(own)}); prepare the "
                "data with the subwords of its training (moec prepare glue/TASK --subwords-of DIR)."
            )

    def add_new_blocks(self, state: State) -> list[str]:
        """Give the MoE blocks of this model to a checkpoint that has none, in place; return their names.

        Inserted blocks are the identity until they are trained.
        """
        blocks = [name for name, module in self.named_modules() if isinstance(module, MoELayer)]  # type: ignore[attr-defined]
        parameters = self.state_dict()  # type: ignore[attr-defined]
        new = {n: value.clone() for n, value in parameters.items() if n.startswith(tuple(f"{b}." for b in blocks))}
        state["model"].update(new)
        return blocks

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Give parameters that an older version has written their current names, in place.

        Copies of parameters that fairseq 0.12.2 keeps of each layer are left out where this model has none.
        """
        super().upgrade_state_dict_named(state_dict, name)  # type: ignore[misc]
        rename_old_parameters(state_dict)
        own = {name for name, _ in self.named_parameters()}  # type: ignore[attr-defined]
        for copy in [name for name in state_dict if name.rpartition(".")[2] in FUSED_WEIGHTS and name not in own]:
            del state_dict[copy]

    def load_state_dict(
        self, state_dict: dict[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load parameters; those of a model with all layers fit a model in which some are pruned, too.

        fairseq's own pruning, for which it uses ``model_cfg``, loses all layers of a stack that is not pruned, and
        afterwards takes the configuration for that of a model with all layers.
        """
        for side, kept in self.kept_layers.items():
            state_dict = keep_layers(state_dict, self.stacks[side], kept)
        return super().load_state_dict(state_dict, strict)  # type: ignore[misc]
