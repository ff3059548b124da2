"""A fine-tuned checkpoint to what it predicts for each sentence or pair of sentences."""

import sys
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from moec_fairseq.util.progress import progress_bar


class Predictor:
    """A model of the task ``sentence_prediction``, and the binary data that it reads.

    Args:
        model: a checkpoint, one file.
        binary: binary data like those of its training.
        highest: of the numbers that a regression predicts, which it was trained on from 0 to 1.
        max_tokens: of a batch, padding included.
        cpu: do not use a GPU.
    """

    def __init__(self, model: Path, binary: Path, highest: float, max_tokens: int, cpu: bool) -> None:
        # rows that are too long are truncated, whatever the training did with them: each needs a prediction
        changes = {"data": str(binary), "shorten_method": "truncate", "shorten_data_split_list": ""}
        (self.model,), _, self.task = load_model_ensemble_and_task([str(model)], changes)
        self.on_gpu = torch.cuda.is_available() and not cpu
        self.model.to("cuda" if self.on_gpu else "cpu").eval()
        self.highest = highest
        self.max_tokens = max_tokens

    @torch.no_grad()
    def predict(self, split: str) -> list[str]:
        """Return the label, or the number, that the model predicts for each row of a split, in their order.

        Raises:
            ValueError: a row does not fit into a batch.
        """
        data = self.task.load_dataset(split)
        if (longest := max(map(data.num_tokens, range(len(data))))) > self.max_tokens:
            raise ValueError(f"--max-tokens is {self.max_tokens}, but {split} has a row of {longest}; give as many")
        batches = self.task.get_batch_iterator(data, max_tokens=self.max_tokens).next_epoch_itr(shuffle=False)
        found = [""] * len(data)
        with progress_bar(len(data), "rows", sys.stdout) as bar:
            for batch in batches:
                for row, prediction in zip(batch["id"].tolist(), self._of_batch(batch["net_input"]), strict=True):
                    found[row] = prediction
                bar.update(len(batch["id"]))
        return found

    def _of_batch(self, net_input: dict[str, Any]) -> list[str]:
        if self.on_gpu:
            net_input = utils.move_to_cuda(net_input)
        head = self.task.cfg.classification_head_name
        logits_BC, _ = self.model(**net_input, features_only=True, classification_head_name=head)
        if self.task.cfg.regression_target:
            return [f"{self.highest * value:.6f}" for value in logits_BC[:, 0].tolist()]
        labels = self.task.label_dictionary
        return [labels[label + labels.nspecial] for label in logits_BC.argmax(dim=1).tolist()]
