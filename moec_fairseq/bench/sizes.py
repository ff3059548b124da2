"""Sizes of the benchmark: the published ones, or small ones that only show that it runs."""

from dataclasses import dataclass


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
    """Sizes of the train and generate suites."""

    arch: str = "moec_transformer_iwslt_de_en"
    vocabulary: int = 8000
    max_tokens: int = 4096
    sentences: int = 64
    length: int = 30
    experts: tuple[int, int] = (8, 64)
    repeats: int = 7
    warmup: int = 2


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
class Sizes:
    """Sizes of all suites."""

    layer: LayerSizes = LayerSizes()
    loss: LossSizes = LossSizes()
    model: ModelSizes = ModelSizes()
    text: TextSizes = TextSizes()
    clean: CleanSizes = CleanSizes()


SIZES = {
    "full": Sizes(),
    "small": Sizes(
        LayerSizes(16, 32, 64, (2, 4, 8), (32, 64, 128), repeats=1, warmup=1),
        LossSizes(64, 50, repeats=1, warmup=1),
        ModelSizes("moec_transformer_tiny", 50, 256, 4, 6, (2, 4), repeats=1, warmup=1),
        TextSizes(200, 60, repeats=1),
        CleanSizes(200, 60, repeats=1),
    ),
}
