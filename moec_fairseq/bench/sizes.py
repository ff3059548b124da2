"""Sizes of the benchmark: the published ones, or small ones that only show that it runs."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of the layer suite; ``experts`` are three increasing numbers of experts."""

    dim: int = 512
    ffn_dim: int = 2048
    tokens: int = 4096
    experts: tuple[int, int, int] = (8, 64, 128)
    sweep: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    repeats: int = 7
    warmup: int = 3


@dataclass(frozen=True)
class LossSizes:
    """Sizes of the loss suite."""

    tokens: int = 4096
    vocabulary: int = 32_000
    repeats: int = 7
    warmup: int = 3


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of whole models; ``options`` are further ones of fairseq-train."""

    arch: str = "moec_transformer_iwslt_de_en"
    vocabulary: int = 8000
    max_tokens: int = 4096
    sentences: int = 64
    length: int = 30
    experts: tuple[int, int] = (8, 64)
    repeats: int = 7
    warmup: int = 2
    options: tuple[str, ...] = ()


ROBERTA = ModelSizes(
    "moec_roberta", max_tokens=2176, length=27,
    options=(
        "--encoder-layers", "4", "--encoder-embed-dim", "192", "--encoder-ffn-embed-dim", "768",
        "--encoder-attention-heads", "4", "--encoder-normalize-before", "--optimizer", "fused_adam",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the prepare suite."""

    pairs: int = 100_000
    vocabulary: int = 8000
    repeats: int = 7


@dataclass(frozen=True)
class CleanSizes:
    """Sizes of the clean suite."""

    pairs: int = 200_000
    vocabulary: int = 8000
    repeats: int = 3


@dataclass(frozen=True)
class GpuSizes:
    """Sizes of the gpu suite.

    Attributes:
        dim: model dimension.
        ffn_dim: hidden dimension of the dense block and of each expert.
        tokens: of a batch; targets are for the first, equality is shown with the second.
        experts: targets are for the first two.
        dtypes: of the tensors whose equality with the CPU is shown.
        skews: share of the fullest expert / mean share, beside 1.
        fairscale_tokens: the most that fairscale's layer gets: it needs memory for their number squared.
        repeats: rounds that count.
        warmup: rounds before them.
        model: whole models, in half precision.
        tiny: the model whose synchronisations are counted, and which is saved and resumed.
        trained: precisions in which it is, see ``models.PRECISIONS``.
    """

    dim: int = 512
    ffn_dim: int = 2048
    tokens: tuple[int, ...] = (16_384, 4096, 65_536)
    experts: tuple[int, ...] = (64, 8, 128)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    skews: tuple[float, ...] = (3, 8)
    fairscale_tokens: int = 16_384
    repeats: int = 7
    warmup: int = 3
    model: ModelSizes = ModelSizes(options=("--bf16",))
    tiny: ModelSizes = ModelSizes("moec_transformer_tiny", 1000, 1000, 64, 10)
    trained: tuple[str, ...] = ("fp16", "bf16", "amp")


@dataclass(frozen=True)
class Sizes:
    """Sizes of all suites; those of RoBERTa are in configs/training/roberta_small.yaml."""

    layer: LayerSizes = LayerSizes()
    loss: LossSizes = LossSizes()
    model: ModelSizes = ModelSizes()
    roberta: ModelSizes = ROBERTA
    text: TextSizes = TextSizes()
    clean: CleanSizes = CleanSizes()
    gpu: GpuSizes = GpuSizes()


TINY = ModelSizes("moec_transformer_tiny", 50, 256, 4, 6, (2, 4), repeats=1, warmup=1)
SIZES = {
    "full": Sizes(),
    "small": Sizes(
        LayerSizes(16, 32, 64, (2, 4, 8), (32, 64, 128), repeats=1, warmup=1),
        LossSizes(64, 50, repeats=1, warmup=1),
        TINY,
        replace(TINY, arch="moec_roberta_tiny"),
        TextSizes(200, 60, repeats=1),
        CleanSizes(200, 60, repeats=1),
        GpuSizes(
            16, 32, (64, 128), (4, 2), (torch.float32, torch.bfloat16), (2,), 64, repeats=1, warmup=1,
            model=replace(TINY, options=("--bf16",)), tiny=TINY, trained=("amp",),
        ),
    ),
}  # fmt: skip
