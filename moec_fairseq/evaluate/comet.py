"""COMET, the score of a neural model that reads source, translation and reference, where unbabel-comet is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moec_fairseq.evaluate.scores import References, Score


class Comet:
    """A model of COMET (Rei et al., 2020, https://aclanthology.org/2020.emnlp-main.213), fetched but not loaded yet.

    Args:
        model: its name at Hugging Face, or a file .ckpt.

    Raises:
        ValueError: unbabel-comet is not installed, or it cannot get the model.
    """

    def __init__(self, model: str) -> None:
        try:
            import comet
            from comet import download_model, load_from_checkpoint
        except ImportError as error:
            raise ValueError(
                f"COMET needs the package unbabel-comet ({error}); install it with: pip install unbabel-comet"
            ) from error
        self._load: Any = load_from_checkpoint
        self._signature = f"model:{model}|version:{comet.__version__}"
        try:
            self._checkpoint = model if Path(model).is_file() else download_model(model)
        except (KeyError, OSError) as error:
            raise ValueError(
                f"COMET cannot get the model {model}; check the name and the network, or give the path of its .ckpt "
                "file as --comet-model"
            ) from error

    def score(self, source: Sequence[str], hypotheses: Sequence[str], references: References, cpu: bool) -> Score:
        """Score translations, from 0 to 100, as most papers give it; with several references, by the mean of all.

        Args:
            source: sentences.
            hypotheses: their translations.
            references: one or several texts of as many sentences.
            cpu: do not use a GPU.
        """
        samples = [
            {"src": sentence, "mt": translation, "ref": reference}
            for text in references
            for sentence, translation, reference in zip(source, hypotheses, text, strict=True)
        ]
        gpus = 0 if cpu or not torch.cuda.is_available() else 1
        model = self._load(self._checkpoint)
        found = model.predict(samples, gpus=gpus, accelerator="auto" if gpus else "cpu")
        return Score(round(100 * float(found.system_score), 2), f"nrefs:{len(references)}|{self._signature}")
