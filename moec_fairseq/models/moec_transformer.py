"""The MoEC Transformer: fairseq's Transformer with MoE blocks in some layers."""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairseq import utils
from fairseq.models import register_model
from fairseq.models.transformer import TransformerModelBase

from moec_fairseq import preflight
from moec_fairseq.compat.steps import disable_fused_encoder
from moec_fairseq.models.config import MoECTransformerConfig, add_options
from moec_fairseq.models.dropout import use_cheap_masks
from moec_fairseq.models.layers import give_block
from moec_fairseq.models.placement import keep_layers, moe_layer_indices
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.dispatch import LocalDispatcher
from moec_fairseq.moe.exchange import DISPATCHERS, ExactDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.ranks import Ranks
from moec_fairseq.moe.records import LayerRecord, RecordBook
from moec_fairseq.moe.router import Router
from moec_fairseq.moe.shuffle import TokenShuffle

NAME = "moec_transformer"


@register_model(NAME, dataclass=MoECTransformerConfig)
class MoECTransformerModel(TransformerModelBase):
    """Transformer with MoE blocks whose experts form clusters (Xie et al., AAAI 2023, arXiv 2207.09094)."""

    def __init__(self, cfg: Any, encoder: Any, decoder: Any) -> None:
        super().__init__(cfg, encoder, decoder)
        self.book = RecordBook()
        self.moe_layers = list[MoELayer]()
        self.num_moe_layers = 0
        self.kept_layers = dict[str, list[int]]()
        self.world_size = 1

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
        preflight.check_model(config)
        model: MoECTransformerModel = super().build_model(config.transformer_config(), task)
        model.kept_layers = config.kept_layers()
        if config.moe_expert_count != 0:
            model._place_moe_layers(config)
        disable_fused_encoder(model.encoder)
        use_cheap_masks(model)
        # the criterion, which fairseq builds from the same task, checks its options against the model's
        task.moec_model = model
        return model

    def _place_moe_layers(self, config: MoECTransformerConfig) -> None:
        ranks = Ranks.of_job(config.moe_expert_count)
        self.world_size = 1 if ranks is None else ranks.shard.world_size
        for side, kept in self.kept_layers.items():
            layers = getattr(self, side).layers
            spec, num_layers = (getattr(config, f"{side}_{key}") for key in ("moe_layers", "layers"))
            # blocks are placed in the whole stack and numbered there; those of pruned layers go with them
            for index in moe_layer_indices(spec, config.moe_freq, num_layers, side):
                if index in kept:
                    moe = self._build_moe_layer(config, getattr(self.cfg, side), ranks)
                    give_block(layers[kept.index(index)], moe, config.moec_layout)
                    self.moe_layers.append(moe)
                self.num_moe_layers += 1
        if ranks is not None:
            # the mark that torch's DistributedDataParallel looks for
            self._ddp_params_and_buffers_to_ignore = [
                name for name, parameter in self.named_parameters() if hasattr(parameter, "expert")
            ]

    def _build_moe_layer(self, config: MoECTransformerConfig, stack: Any, ranks: Ranks | None) -> MoELayer:
        """Build a block for a layer of encoder or decoder, whose sizes (of fairseq's configuration) are ``stack``."""
        dim = stack.embed_dim
        ffn_dim = config.moec_expert_ffn_embed_dim or stack.ffn_embed_dim
        clusters = ExpertClusters(config.moe_expert_count, config.moec_cluster_count)
        partners = ranks if ranks is not None and ranks.shard.num_ranks > 1 else None
        exchanged = partners if config.moec_evaluation == "exchanged" else None
        return MoELayer(
            Router(dim, clusters, config.moec_router, config.moec_router_dim, config.moe_gating_use_fp32),
            Experts(
                clusters.num_experts,
                dim,
                ffn_dim,
                config.moec_sublayers,
                utils.get_activation_fn(config.activation_fn),
                ranks,
                gather=exchanged is None,
            ),
            DISPATCHERS[config.moec_dispatch](partners) if partners else LocalDispatcher(clusters.num_experts),
            ExpertDropout(
                config.moec_expert_dropout,
                config.moec_expert_dropout_interval,
                config.moec_expert_dropout_scope,
                config.seed,
            ),
            config.moe_capacity_factor,
            layer=self.num_moe_layers,
            book=self.book,
            shuffle=TokenShuffle(partners) if config.moec_token_shuffle and partners else None,
            evaluation_dispatcher=ExactDispatcher(exchanged) if exchanged else None,
        )

    @contextmanager
    def record_routing(self) -> Iterator[list[LayerRecord]]:
        """Collect what the MoE layers did in the forward passes of this context."""
        with self.book.open() as records:
            yield records

    def load_state_dict(
        self, state_dict: dict[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load parameters, of a model with all layers also where some are pruned here.

        fairseq's own pruning, for which it takes ``model_cfg``, loses all layers of the stack that keeps its own, and
        takes the configuration for that of a model with all layers afterwards.
        """
        for side, kept in self.kept_layers.items():
            state_dict = keep_layers(state_dict, side, kept)
        return super().load_state_dict(state_dict, strict)
