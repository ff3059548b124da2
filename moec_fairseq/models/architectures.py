"""Presets of the MoEC models: fairseq's sizes, with MoE blocks."""

from typing import Any

from fairseq.models import register_model_architecture

from moec_fairseq.models.moec_roberta import NAME as ROBERTA
from moec_fairseq.models.moec_transformer import NAME


def _defaults(args: Any, **values: Any) -> None:
    """Set what neither the command line nor the preset that calls this one has set."""
    for name, value in values.items():
        if not hasattr(args, name):
            setattr(args, name, value)


@register_model_architecture(NAME, f"{NAME}_tiny")
def tiny(args: Any) -> None:
    """2 + 2 layers of dimension 64, 8 small experts in 2 clusters: for tests and first steps."""
    _defaults(
        args,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=64,
        encoder_layers=2,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_attention_heads=2,
        moe_expert_count=8,
        moec_cluster_count=2,
        moec_sublayers=1,
        moec_router_dim=16,
    )


@register_model_architecture(NAME, f"{NAME}_iwslt_de_en")
def iwslt_de_en(args: Any) -> None:
    """fairseq's transformer_iwslt_de_en: 6 + 6 layers of dimension 512, 8 experts in 2 clusters."""
    _defaults(
        args,
        encoder_embed_dim=512,
        encoder_ffn_embed_dim=1024,
        encoder_layers=6,
        encoder_attention_heads=4,
        decoder_embed_dim=512,
        decoder_ffn_embed_dim=1024,
        decoder_layers=6,
        decoder_attention_heads=4,
        moe_expert_count=8,
        moec_cluster_count=2,
        moec_sublayers=1,
    )


@register_model_architecture(NAME, f"{NAME}_wmt_en_de")
def wmt_en_de(args: Any) -> None:
    """The published WMT recipe: Transformer base, pre-norm encoder, 64 experts in 8 clusters in the middle layers."""
    _defaults(
        args,
        encoder_normalize_before=True,
        dropout=0.3,
        attention_dropout=0.1,
        max_source_positions=256,
        max_target_positions=256,
        moe_expert_count=64,
        moec_cluster_count=8,
        moec_sublayers=3,
    )


@register_model_architecture(NAME, f"{NAME}_wmt_en_de_big")
def wmt_en_de_big(args: Any) -> None:
    """The published WMT recipe at the size of Transformer big."""
    _defaults(
        args,
        encoder_embed_dim=1024,
        encoder_ffn_embed_dim=4096,
        encoder_attention_heads=16,
        decoder_embed_dim=1024,
        decoder_ffn_embed_dim=4096,
        decoder_attention_heads=16,
    )
    wmt_en_de(args)


# Those of RoBERTa have sizes only: fine-tuning takes the MoE options from the checkpoint.


@register_model_architecture(ROBERTA, f"{ROBERTA}_tiny")
def roberta_tiny(args: Any) -> None:
    """2 layers of dimension 64: for tests and first steps."""
    _defaults(args, encoder_embed_dim=64, encoder_ffn_embed_dim=64, encoder_layers=2, encoder_attention_heads=2)


@register_model_architecture(ROBERTA, f"{ROBERTA}_base")
def roberta_base(args: Any) -> None:
    """fairseq's roberta_base: 12 layers of dimension 768."""
    _defaults(args, encoder_embed_dim=768, encoder_ffn_embed_dim=3072, encoder_layers=12, encoder_attention_heads=12)


@register_model_architecture(ROBERTA, f"{ROBERTA}_large")
def roberta_large(args: Any) -> None:
    """fairseq's roberta_large: 24 layers of dimension 1024."""
    _defaults(args, encoder_embed_dim=1024, encoder_ffn_embed_dim=4096, encoder_layers=24, encoder_attention_heads=16)
