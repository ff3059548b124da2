"""Made-up files of GLUE's tasks, in the layouts in which they are published."""

import zipfile
from pathlib import Path

PAIR = ("sentence1", "sentence2")
MNLI = (
    "index",
    "promptID",
    "pairID",
    "genre",
    *(f"sentence{n}_{kind}" for kind in ("binary_parse", "parse") for n in "12"),
    *PAIR,
)
STS = ("index", "genre", "filename", "year", "old_index", "source1", "source2", *PAIR)
MRPC = ("#1 ID", "#2 ID", "#1 String", "#2 String")
HEADERS: dict[str, dict[str, tuple[str, ...]]] = {
    "CoLA": {"train": (), "dev": (), "test": ("index", "sentence")},
    "SST-2": {"train": ("sentence", "label"), "dev": ("sentence", "label"), "test": ("index", "sentence")},
    "MRPC": {"train": ("Quality", *MRPC), "dev": ("Quality", *MRPC), "test": ("index", *MRPC)},
    "QQP": {
        "train": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        "dev": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        "test": ("id", "question1", "question2"),
    },
    "STS-B": {"train": (*STS, "score"), "dev": (*STS, "score"), "test": STS},
    "MNLI": {
        "train": (*MNLI, "label1", "gold_label"),
        **{f"dev_{kind}": (*MNLI, *(f"label{n}" for n in "12345"), "gold_label") for kind in ("matched", "mismatched")},
        **{f"test_{kind}": MNLI for kind in ("matched", "mismatched")},
    },
    "QNLI": {
        "train": ("index", "question", "sentence", "label"),
        "dev": ("index", "question", "sentence", "label"),
        "test": ("index", "question", "sentence"),
    },
    "RTE": {"train": ("index", *PAIR, "label"), "dev": ("index", *PAIR, "label"), "test": ("index", *PAIR)},
    "WNLI": {"train": ("index", *PAIR, "label"), "dev": ("index", *PAIR, "label"), "test": ("index", *PAIR)},
}
LABELS = {
    "STS-B": ["0.000", "5.000", "3.800"],
    "MNLI": ["entailment", "neutral", "contradiction"],
    **dict.fromkeys(("QNLI", "RTE"), ["entailment", "not_entailment", "entailment"]),
}  # fmt: skip
FIRST = 7  # index of the first row of a test file
TEXTS = {"sentence", "question", "question1", "question2", "#1 String", "#2 String", *PAIR}


def labels(task: str) -> list[str]:
    return LABELS.get(task, ["1", "0", "1"])


def rows(task: str, part: str) -> list[list[str]]:
    """Return three rows of a file: 'She said "PART SIDE' and a number, then a label."""
    found = []
    for n, label in enumerate(labels(task)):
        side = iter("ab")
        if header := HEADERS[task][part]:
            row = [f'She said "{part} {next(side)} {n}' if name in TEXTS else f"<{name}>" for name in header]
        else:
            row = ["gj04", label, "" if label == "1" else "*", f'She said "{part} a {n}']
        for place, name in enumerate(header):
            if name in ("index", "id"):
                row[place] = str(FIRST + n)
            elif name in ("label", "gold_label", "is_duplicate", "Quality", "score"):
                row[place] = label
        found.append(row)
    return found


def site_files(task: str) -> dict[str, str]:
    """Return the files of a task as GLUE's site has them."""
    return {
        f"{part}.tsv": "".join("\t".join(row) + "\n" for row in ([list(header)] if header else []) + rows(task, part))
        for part, header in HEADERS[task].items()
    }


def write_folder(task: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, text in site_files(task).items():
        (folder / name).write_text(text)


def write_zip(task: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{task}/", "")
        for name, text in site_files(task).items():
            archive.writestr(f"{task}/{name}", text)
