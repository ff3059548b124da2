"""The pictures of a report."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.report.collect import Layer
from moec_fairseq.report.information import EXPERT, SHUFFLES
from moec_fairseq.report.tables import Reported
from moec_fairseq.report.words import CLASS, KINDS

Draw = Callable[[Reported], Figure | None]
# what is logged -> title of its panel, in the order of the panels
CURVES = {
    "loss": "loss (bits)",
    "nll_loss": "nll (bits)",
    "moe_balance": "balance (1 is best)",
    "moe_spread": "spread inside clusters",
    "moe_gap": "gap between clusters",
    "moe_entropy": "entropy of routing (bits)",
    "moe_load_max": "busiest expert (%)",
    "moe_load_min": "idlest expert (%)",
    "moe_unused": "unused experts",
}


def _borders(axes: Any, clusters: ExpertClusters, both: bool = False) -> None:
    """Draw lines between the clusters, and number the experts."""
    for border in range(clusters.cluster_size, clusters.num_experts, clusters.cluster_size):
        axes.axvline(border - 0.5, color="black" if both else "white", linewidth=1.5)
        if both:
            axes.axhline(border - 0.5, color="black", linewidth=1.5)
    step = -(-clusters.num_experts // 16)
    axes.set_xticks(range(0, clusters.num_experts, step))
    if both:
        axes.set_yticks(range(0, clusters.num_experts, step))


def _width(clusters: ExpertClusters) -> float:
    return 2.5 + min(10.0, 0.35 * clusters.num_experts)


def loads(model: Reported) -> Figure:
    """Draw the load of each expert of each layer, as multiples of an equal share."""
    layers = model.survey.layers
    clusters = layers[0].clusters
    shares = np.stack([layer.tokens_N / max(1, layer.tokens_N.sum()) * len(layer.tokens_N) for layer in layers])
    figure = Figure(figsize=(_width(clusters), 1.3 + 0.4 * len(layers)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0)
    figure.colorbar(image, label="times an equal share")
    axes.set(xlabel="expert", yticks=range(len(layers)), yticklabels=[layer.name for layer in layers])
    axes.set_title("load of the experts", fontsize="medium")
    _borders(axes, clusters)
    return figure


def information(model: Reported) -> Figure | None:
    """Draw how much each layer's choice of experts tells about each feature beyond chance; None if there is nothing."""
    features = list(dict.fromkeys(name for found in model.information.values() for name in found))
    if not features:
        return None
    values = np.full((len(features), len(model.information)), np.nan)
    for column, found in enumerate(model.information.values()):
        for name, of in found.items():
            values[features.index(name), column] = 100 * next(one.share for one in of if one.of == EXPERT)
    figure = Figure(figsize=(3.5 + 0.9 * len(model.information), 1.3 + 0.35 * len(features)), layout="constrained")
    axes = figure.subplots()
    highest = max(1.0, float(np.nanmax(values)))
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=highest)
    figure.colorbar(image, label="% of the entropy of the classes")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < highest / 2 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize="small")
    axes.set(yticks=range(len(features)), yticklabels=features)
    axes.set_xticks(range(len(model.information)), list(model.information), rotation=45, ha="right")
    axes.set_title(f"known from the expert, less {SHUFFLES} shuffles", fontsize="medium")
    return figure


def classes(model: Reported) -> Figure:
    """Draw for each layer which classes of words each expert gets more and less often than others."""

    def draw(axes: Any, layer: Layer) -> Any:
        _, counts_NK = layer.classes[CLASS]
        here = counts_NK / np.maximum(1, counts_NK.sum(axis=1, keepdims=True))
        everywhere = counts_NK.sum(axis=0) / max(1, counts_NK.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log2(here / everywhere).T  # −inf where an expert has none of a class, NaN where nobody has
        ratio[:, layer.tokens_N == 0] = np.nan
        image = axes.imshow(np.clip(ratio, -3, 3), aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3)
        axes.set(yticks=range(len(KINDS)), yticklabels=KINDS, xlabel="expert")
        axes.set_title(layer.name, fontsize="medium")
        _borders(axes, layer.clusters)
        return image

    layers = model.survey.layers
    columns = min(2, len(layers))
    rows = -(-len(layers) // columns)
    size = ((_width(layers[0].clusters) + 1) * columns, 2.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, layer in zip(panels.flat, layers, strict=False):
        image = draw(axes, layer)
    for axes in panels.flat[len(layers) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=panels, label="log2 (ratio to all tokens)")
    return figure


def resemblance(model: Reported) -> Figure:
    """Draw the similarity of each pair of experts, for each layer and in each way."""
    layers = model.survey.layers
    kinds = [one.what for one in layers[0].resemblances]
    figure = Figure(figsize=(1.5 + 2.4 * len(layers), 2.4 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(layers), squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            one = next(found for found in layer.resemblances if found.what == kind)
            image = axes.imshow(one.cosine_NN.numpy(), cmap="PuOr_r", vmin=-1, vmax=1)
            axes.set_title(f"{layer.name}: {kind}", fontsize="small")
            _borders(axes, one.groups, both=True)
    figure.colorbar(image, ax=panels, label="cosine")
    return figure


def curves(models: Sequence[Reported]) -> Figure | None:
    """Draw what was logged of training and validation over updates; None if there is nothing."""
    logged = [model for model in models if model.train or model.valid]
    known = {
        name.removeprefix("valid_") for m in logged for part in (m.train, m.valid) for v in part.values() for name in v
    }
    titles = {name: title for name, title in CURVES.items() if name in known}
    if not titles:
        return None
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, title) in zip(panels.flat, titles.items(), strict=False):
        for number, model in enumerate(logged):
            for history, prefix, style in ((model.train, "", "-"), (model.valid, "valid_", "--")):
                points = sorted((update, row[prefix + name]) for update, row in history.items() if prefix + name in row)
                if points:
                    name_as_text = model.name.replace("$", r"\$")  # or matplotlib takes it for a formula
                    label = f"{'validation' if prefix else 'training'}, {name_as_text}"
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label, linewidth=1.2)
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(titles) :]:
        axes.set_axis_off()
    for axes in panels[-1]:
        axes.set_xlabel("update")
    panels[0, 0].legend(fontsize="x-small")
    return figure


# name of the file -> what draws it, for each model
EACH: dict[str, Draw] = {"loads": loads, "information": information, "classes": classes, "resemblance": resemblance}
