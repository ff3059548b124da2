"""A model on a part of its data, batch by batch: where its tokens go, and its loss. Only sums are kept."""

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.logging import metrics
from torch import Tensor
from tqdm import tqdm

from moec_fairseq.checkpoint.state import group, load_state
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.router import Routing
from moec_fairseq.moe.routing_records import RoutingRecord
from moec_fairseq.util.progress import progress_bar

Batch = dict[str, Any]
BATCH_MULTIPLE = 8  # fairseq's default, so that batches are those of a validation


class ModelOnData:
    """A checkpoint and the binary data that it reads, at evaluation: all experts are active, and none is too full.

    Args:
        checkpoint: one file, of all ranks.
        data: binary data, or the folder of ``moec prepare`` around it; None: those of the training.
        max_tokens: of a batch, padding included.
        cpu: do not use a GPU.
        languages: source and target, where the data have several pairs; None: as in the training.

    Attributes:
        model: fairseq's, with experts.
        task: fairseq's.
        layers: its MoE layers, by the names of their modules.

    Raises:
        ValueError: the model has no experts, or there are no such data.
    """

    def __init__(
        self,
        checkpoint: Path,
        data: Path | None = None,
        max_tokens: int = 4096,
        cpu: bool = False,
        languages: tuple[str, str] | None = None,
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"--max-tokens is {max_tokens}, but must be 1 or more")
        self.checkpoint = checkpoint
        self.max_tokens = max_tokens
        changes = {"data": _binary(checkpoint, data)}
        if languages:
            changes |= dict(zip(("source_lang", "target_lang"), languages, strict=True))
        (self.model,), self._settings, self.task = load_model_ensemble_and_task([str(checkpoint)], changes)
        self.on_gpu = torch.cuda.is_available() and not cpu
        self.model.to("cuda" if self.on_gpu else "cpu").eval()
        self.layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, MoELayer)}
        if not self.layers:
            raise ValueError(f"{checkpoint} has no experts; give a model with some")

    @property
    def num_experts(self) -> int:
        """Return N."""
        return next(iter(self.layers.values())).router.clusters.num_experts

    def batches(self, subset: str, title: str | None = "") -> Iterator[Batch]:
        """Yield the batches of a part of the data, each on the device of the model, and show progress.

        Sentences that are longer than the model takes are left out, and counted.

        Args:
            subset: such as ``valid``.
            title: stands behind the progress; None: nothing is shown.

        Raises:
            ValueError: there is no such part, or a sentence does not fit into a batch.
        """
        try:
            self.task.load_dataset(subset, combine=False, epoch=1)
        except FileNotFoundError as error:
            raise ValueError(f"{error.args[0]}; give --subset or --data that has it") from error
        data = self.task.dataset(subset)
        try:
            iterator = self.task.get_batch_iterator(
                data,
                max_tokens=self.max_tokens,
                max_positions=utils.resolve_max_positions(self.task.max_positions(), self.model.max_positions()),
                ignore_invalid_inputs=True,
                required_batch_size_multiple=BATCH_MULTIPLE,
            )
        except AssertionError:  # all that fairseq says of a sentence that does not fit into a batch
            raise ValueError(
                f"--max-tokens is {self.max_tokens}, but {subset} has longer sentences; give more"
            ) from None
        used = sum(map(len, iterator.frozen_batches))
        if used < len(data) and title is not None:
            print(f"{len(data) - used} of {len(data)} sentences are longer than the model takes, and are left out")
        if not used:
            raise ValueError(f"{subset} has no sentence that the model takes; give another --subset or --data")
        with progress_bar(used, "sentences", sys.stdout) if title is not None else tqdm(disable=True) as bar:
            bar.set_postfix_str(title or "")
            for batch in iterator.next_epoch_itr(shuffle=False):
                yield utils.move_to_cuda(batch) if self.on_gpu else batch
                bar.update(len(batch["id"]))

    def routing(self, subset: str, title: str = "") -> Iterator[tuple[Batch, dict[str, RoutingRecord]]]:
        """Yield each batch and what each MoE layer, by its name, did with its tokens.

        The tokens of a record are those of the batch that are not padding, ordered by position, then by sentence: of
        ``tokens_BL``, they are ``tokens_BL.t()[tokens_BL.t() != padding]``. The encoder's are ``src_tokens`` of
        ``net_input``, the decoder's ``prev_output_tokens``. Whoever takes them keeps sums, so that memory does not grow
        with the data.

        Args:
            subset: such as ``valid``.
            title: stands behind the progress.
        """
        names = {layer.layer_index: name for name, layer in self.layers.items()}
        for batch in self.batches(subset, title):
            with torch.no_grad(), self.model.record_routing() as records:
                self.model(**batch["net_input"], features_only=True)
            yield batch, {names[record.layer_index]: record for record in records}

    def loads(self, subset: str) -> dict[str, Tensor]:
        """Return how many tokens each expert of each layer gets, (N,), int64, by the name of the layer."""
        sums: dict[str, Tensor] = {}
        for _, records in self.routing(subset, "loads"):
            for name, record in records.items():
                counts_N = record.tokens_per_expert_N
                sums[name] = sums[name] + counts_N if name in sums else counts_N
        return {name: counts_N.cpu() for name, counts_N in sums.items()}

    def criterion(self) -> Any:
        """Return the criterion of the training, at evaluation."""
        return self.task.build_criterion(self._settings.criterion).eval()

    def loss(self, subset: str, title: str | None = "") -> float:
        """Return the loss of the task for each token that it counts, in bits, without smoothing and router losses.

        That is what fairseq calls ``nll_loss`` for translation, and ``loss`` for masked language models.
        """
        criterion = self.criterion()
        loss = count = 0.0
        for batch in self.batches(subset, title):
            with torch.no_grad():
                _, sample_size, logged = criterion(self.model, batch)
            translates = "nll_loss" in logged
            loss += float(logged["nll_loss" if translates else "loss"])
            count += float(logged["ntokens"] if translates else sample_size)
        return loss / count / math.log(2)


@contextmanager
def noted_routers(layers: Mapping[str, MoELayer]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Note, in this context, the tokens that each router has got last, (T, D), and the expert of each, (T,).

    They are found by the name of the layer.
    """
    routed: dict[str, tuple[Tensor, Tensor]] = {}

    def note(_: Any, inputs: tuple[Tensor, Tensor], routing: Routing, name: str) -> None:
        routed[name] = inputs[0], routing.expert_T

    hooks = [layer.router.register_forward_hook(partial(note, name=name)) for name, layer in layers.items()]
    try:
        yield routed
    finally:
        for hook in hooks:
            hook.remove()


def logged(criterion: Any, sums: dict[str, Any]) -> dict[str, float]:
    """Return what fairseq-validate logs of the logging outputs of all batches, added up: rounded as there."""
    with metrics.aggregate() as found:
        type(criterion).reduce_metrics([sums])
    return {key: float(value) for key, value in found.get_smoothed_values().items()}


def _binary(checkpoint: Path, data: Path | None) -> str:
    """Return the binary data, as fairseq takes them.

    Raises:
        ValueError: there is no such folder.
    """
    given = str(data or group(load_state(checkpoint, optimizer=False), "task").get("data", ""))
    first, *others = given.split(os.pathsep)
    folder = Path(first, "binary") if Path(first, "binary").is_dir() else Path(first)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {first}; give --data, data like those of the training")
    return os.pathsep.join([str(folder), *others])
