"""How fairseq finds, batches and pads data: every sentence, of languages by any name, under any version of numpy."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fairseq.data import data_utils

from moec_fairseq.data.languages import language_pairs

_batch_by_size = data_utils.batch_by_size
_infer_language_pair = data_utils.infer_language_pair


def keep_last_batch(indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
    """Put every sentence into a batch.

    Reason: fairseq-fixed leaves out the last batch where its number of sentences is not a multiple of
    ``--required-batch-size-multiple`` (8 by default), also at validation and generation, without a word: translations
    are missing, and scores are those of fewer sentences. fairseq 0.12.2 keeps it.
    """
    batches = list(_batch_by_size(indices, *args, **kwargs))
    kept = sum(len(batch) for batch in batches)
    return [*batches, indices[kept:]] if kept < len(indices) else batches


def read_codes_with_hyphens(path: str) -> Sequence[str | None]:
    """Tell source and target from the names of files in which the code of a language has a hyphen itself.

    Reason: fairseq splits the middle of each name at its hyphens, finds no pair in ``train.en-pt-BR.en.idx``, and takes
    ``dict.pt-BR.txt`` for data from pt to BR.
    """
    found, pairs = _infer_language_pair(path), language_pairs(Path(path))
    if not pairs or tuple(found) in pairs:
        return found
    if len(pairs) > 1:
        held = ", ".join("-".join(pair) for pair in pairs)
        raise ValueError(
            f"{path} has several language pairs ({held}), or names that can be read in several ways; give "
            "--source-lang and --target-lang (task.source_lang= and task.target_lang= to moec train)"
        )
    return pairs[0]


def options_of_subwords(task: Any) -> Any:
    """Return what ``MaskedLMTask.args`` is needed for: the options of ``--bpe``, which tell where words begin.

    Reason: with ``--mask-whole-words`` fairseq reads them from there, but tasks no longer have it ("'MaskedLMTask'
    object has no attribute 'args'"); and without ``--bpe`` it would mask single subwords without a word.
    """
    bpe = task.cfg._get_parent().get("bpe")
    if not getattr(bpe, "_name", bpe):
        raise ValueError(
            "--mask-whole-words has to know which subwords begin a word; give --bpe sentencepiece "
            "--sentencepiece-model FILE or --bpe gpt2 --gpt2-encoder-json FILE --gpt2-vocab-bpe FILE (moec train: "
            "bpe._name=sentencepiece bpe.sentencepiece_model=FILE)"
        )
    return bpe


class NumpyAsItWas:
    """numpy with the names that fairseq uses and numpy no longer has, in place of ``np`` in fairseq's modules.

    Reason: ``np.int`` and ``np.float`` went with numpy 1.24, ``np.compat`` and the name ``interpolation`` later;
    without them ``--num-batch-buckets``, language models of whole sentences and decoders with a CRF fail.
    """

    int, float = int, float
    compat = SimpleNamespace(long=int)

    def __getattr__(self, name: str) -> Any:
        """Return what numpy still has."""
        return getattr(np, name)

    @staticmethod
    def percentile(values: Any, percents: Any, interpolation: str = "linear") -> Any:
        """Return ``np.percentile``, whose last argument has the same position in all versions, but another name."""
        compute: Any = np.percentile
        return compute(values, percents, None, None, False, interpolation)
