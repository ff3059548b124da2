"""fairseq's binary data, written in this process: for small files, fairseq-preprocess takes longest to start."""

from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm


def binarise_files(texts: Mapping[str, Path], dictionary: Path, out: Path) -> None:
    """Write NAME.bin and NAME.idx for each text, and dict.txt.

    Args:
        texts: files of subwords, by NAME.
        dictionary: says the number of each subword.
        out: folder.
    """
    # Here, because it imports torch, which the steps before do without.
    from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
    from fairseq.data import Dictionary

    out.mkdir(parents=True, exist_ok=True)
    vocabulary = Dictionary.load(str(dictionary))
    vocabulary.save(str(out / "dict.txt"))
    binarizer = VocabularyDatasetBinarizer(vocabulary, append_eos=True)
    for name, text in tqdm(texts.items(), desc=f"binarise {out.name}", unit=" files"):
        FileBinarizer.multiprocess_dataset(str(text), "mmap", binarizer, str(out / name), vocab_size=len(vocabulary))
