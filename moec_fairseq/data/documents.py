"""Text of one language for masked language models: one sentence a line, an empty line between documents.

What is held out are whole documents, chosen by a hash of their beginning: a sentence says much about its neighbours, so
documents that were torn apart would measure memory. In every run, the same documents are held out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, groupby, islice
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.data.formats.text import lines
from moec_fairseq.data.languages import SPLITS
from moec_fairseq.data.splits import HELD_OUT, check_apart, fingerprint, share_for, split_of
from moec_fairseq.util.files import whole_texts

BEGINNING = 10  # sentences by which documents are told apart


def document_paths(folder: Path) -> dict[str, Path]:
    """Return where ``folder`` holds the text of each split."""
    return {split: folder / f"{split}.txt" for split in SPLITS}


def write_documents(files: Mapping[str, Path], out: Path) -> Counter[str]:
    """Write train.txt, valid.txt and test.txt into ``out``; return documents and sentences of each split.

    Valid and test are used as they are when given, and held out of train otherwise. White space is normalised, and
    exactly one empty line stays between documents. Text is streamed.

    Args:
        files: by split; train is needed.
        out: folder.

    Raises:
        ValueError: a file cannot be read, or there is too little text to hold out.
    """
    check_apart(files.values(), out)
    held_out = tuple(split for split in HELD_OUT if split not in files)
    share = share_for(sum(map(bool, _lines(files["train"], "count")))) if held_out else 0.0
    counts: Counter[str] = Counter()
    paths = document_paths(out)
    with whole_texts(list(paths.values())) as texts:
        for use, path in files.items():
            for document in _documents(path):
                beginning = list(islice(document, BEGINNING))
                split = split_of(fingerprint(" ".join(beginning)), share, held_out) if use == "train" else use
                file = texts[SPLITS.index(split)]
                if counts[f"{split}: documents"]:
                    file.write("\n")
                counts[f"{split}: documents"] += 1
                for sentence in chain(beginning, document):
                    file.write(f"{sentence}\n")
                    counts[f"{split}: sentences"] += 1
        if empty := [split for split in SPLITS if not counts[f"{split}: documents"]]:
            raise ValueError(
                f"{files.get(empty[0], files['train'])}: no document falls to {' and '.join(empty)}; give more text, "
                "an empty line between documents, or --valid-text and --test-text"
            )
    for split in held_out:
        documents, sentences = (counts[f"{split}: {what}"] for what in ("documents", "sentences"))
        print(f"{split}: {documents:,} documents ({sentences:,} sentences) of {files['train']}, held out by a hash")
    return counts


def _documents(path: Path) -> Iterator[Iterator[str]]:
    """Yield the sentences of each document."""
    for is_text, block in groupby(_lines(path, "read"), bool):
        if is_text:
            yield block


def _lines(path: Path, what: str) -> Iterator[str]:
    yield from tqdm(lines(path), desc=f"{what} {path.name}", unit=" lines", unit_scale=True)
