"""The MoEC Transformer: fairseq's Transformer with MoE blocks in some layers."""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairseq import utils
from fairseq.models import register_model
from fairseq.models.transformer import TransformerModelBase

from moec_fairseq.compat.versions import disable_fused_encoder
from moec_fairseq.models.config import MoECTransformerConfig, add_options
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

NAME = "moec_transformer"


@register_model(NAME, dataclass=MoECTransformerConfig)
class MoECTransformerModel(TransformerModelBase):
    """Transformer with MoE blocks whose experts form clusters (Xie et al., AAAI 2023, arXiv 2207.09094)."""

    def __init__(self, cfg: Any, encoder: Any, decoder: Any) -> None:
        super().__init__(cfg, encoder, decoder)
        self.collector = RoutingCollector()
        self.moe_layers = list[MoELayer]()
        self.num_moe_layers = 0
        self.kept_layers = dict[str, list[int]]()
        self.world_size = 1
        self.groups: ExpertParallelGroups | None = None

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the options of the model to fairseq's parser."""
        add_options(parser)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MoECTransformerModel":
        """Build the Transformer, then put the MoE blocks in their layers.

        Raises:
            ValueError: option values that do not exist or do not fit together.
        """
        config = MoECTransformerConfig(**{key: cfg[key] for key in cfg if key != "_name"})
        model: MoECTransformerModel = super().build_model(config.transformer_config(), task)
        model.kept_layers = config.kept_layers()
        if config.moe_expert_count != 0:
            model._place_moe_layers(config)
        disable_fused_encoder(model.encoder)
        use_cheap_masks(model)
        # the criterion, which fairseq builds from the same task, checks its options against those of the model
        task.moec_model = model
        return model

    def _place_moe_layers(self, config: MoECTransformerConfig) -> None:
        groups = ExpertParallelGroups.of_job(config.moe_expert_count)
        self.world_size = 1 if groups is None else groups.shard.world_size
        self.groups = groups
        for side, kept in self.kept_layers.items():
            layers = getattr(self, side).layers
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
                name for name, parameter in self.named_parameters() if hasattr(parameter, "expert")
            ]

    def _build_moe_layer(
        self, config: MoECTransformerConfig, stack: str, groups: ExpertParallelGroups | None
    ) -> MoELayer:
        """Build a block for a layer of the ``encoder`` or ``decoder``."""
        sizes = getattr(self.cfg, stack)
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
            stack=stack,
            collector=self.collector,
            shuffle=TokenShuffle(exchanging) if config.moec_token_shuffle and exchanging else None,
            evaluation_dispatcher=ExactDispatcher(exchanging_at_evaluation) if exchanging_at_evaluation else None,
        )

    @contextmanager
    def record_routing(self) -> Iterator[list[RoutingRecord]]:
        """Collect the routing records of the forward passes made in this context."""
        with self.collector.collect() as records:
            yield records

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Give parameters that an older version has written their current names, in place."""
        super().upgrade_state_dict_named(state_dict, name)
        rename_old_parameters(state_dict)

    def load_state_dict(
        self, state_dict: dict[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load parameters; those of a model with all layers fit a model in which some are pruned, too.

        fairseq's own pruning, for which it uses ``model_cfg``, loses all layers of a stack that is not pruned, and
        afterwards takes the configuration for that of a model with all layers.
        """
        for side, kept in self.kept_layers.items():
            state_dict = keep_layers(state_dict, side, kept)
        return super().load_state_dict(state_dict, strict)
