"""Text of one language: who is held out, how it is segmented, and that fairseq sees its documents."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from moec_fairseq.__main__ import run
from moec_fairseq.data.documents import write_documents
from moec_fairseq.data.gpt2_bpe import Gpt2Model, check_gpt2
from moec_fairseq.data.subwords import _segment_lines, segment_lines, train_model

SPLITS = ("train", "valid", "test")
WORDS = "one two three four five six seven eight nine ten".split()


def documents(path: Path) -> list[list[str]]:
    return [document.splitlines() for document in path.read_text().split("\n\n")]


def many(number: int = 300) -> list[list[str]]:
    """Return documents of 2 to 5 sentences, no two alike."""
    return [
        [f"{WORDS[n % 10]} {WORDS[n // 10 % 10]} {WORDS[n // 100]} {WORDS[k]}" for k in range(2 + n % 4)]
        for n in range(number)
    ]


def as_text(texts: list[list[str]]) -> str:
    return "\n\n".join("\n".join(document) for document in texts) + "\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text(as_text(many()))
    return path


def gpt2_files(folder: Path, **more: int) -> Path:
    """Write an encoder of the bytes a to z and of Ġ, a space, with one merge: a b."""
    folder.mkdir(exist_ok=True)
    numbers = {chr(97 + n): n for n in range(26)} | {"Ġ": 26, "ab": 27} | more
    (folder / "encoder.json").write_text(json.dumps(numbers))
    (folder / "vocab.bpe").write_text("#version: 0.2\na b\n", encoding="utf-8")
    return folder


def test_whole_documents_are_held_out_and_none_is_lost(text: Path, tmp_path: Path) -> None:
    counts = write_documents({"train": text}, tmp_path / "out")
    found = {split: documents(tmp_path / f"out/{split}.txt") for split in SPLITS}
    assert sorted(sum(found.values(), [])) == sorted(many())
    assert all(5 <= len(found[split]) <= 30 for split in SPLITS[1:])  # about 5 %, as the text is small
    for split, texts in found.items():
        assert counts[f"{split}: documents"] == len(texts)
        assert counts[f"{split}: sentences"] == sum(map(len, texts))


def test_the_choice_depends_on_the_documents_alone(tmp_path: Path) -> None:
    texts = {"a": many(), "b": many()[::-1]}
    for name, content in texts.items():
        (tmp_path / f"{name}.txt").write_text(as_text(content))
        write_documents({"train": tmp_path / f"{name}.txt"}, tmp_path / name)
    for split in SPLITS:
        assert documents(tmp_path / f"a/{split}.txt") == documents(tmp_path / f"b/{split}.txt")[::-1]


def test_given_texts_stay_and_lines_are_tidied(text: Path, tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_bytes("\ufeff\r\n  two \u2028 words\r\n\r\n \t\r\n\x0cnew\n\n\n".encode())
    counts = write_documents({"train": text, "valid": tmp_path / "valid.txt"}, tmp_path / "out")
    assert (tmp_path / "out/valid.txt").read_text() == "two words\n\nnew\n"
    assert counts["valid: documents"] == 2
    assert len(documents(tmp_path / "out/train.txt")) + counts["test: documents"] == 300


def test_one_document_cannot_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n" * 50)
    with pytest.raises(
        ValueError, match="a.txt: no document falls to .*valid.*; give more text, an empty line between"
    ):
        write_documents({"train": tmp_path / "a.txt"}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(ValueError, match="is in the folder for the results"):
        write_documents({"train": tmp_path / "a.txt"}, tmp_path)


def test_long_lines_are_split_and_empty_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b c\n" * 3)
    train_model([tmp_path / "a.txt"], 10, "char", 1.0, tmp_path / "spm.model")
    text, read, counts = _segment_lines(tmp_path / "spm.model", 4, ["a b c", "", "a b"])
    assert text == "▁ a ▁ b\n▁ c\n\n▁ a ▁ b\n"
    assert (read, counts) == (3, {"lines split": 1, "subwords": 10})


def test_gpt2_bpe(tmp_path: Path) -> None:
    folder = gpt2_files(tmp_path / "bpe")
    check_gpt2(folder)
    assert Gpt2Model(folder).encode(["ab ba", ""]) == [[27, 26, 1, 0], []]
    with ThreadPoolExecutor(1) as pool:
        counts = segment_lines({"a": iter(["ab ba", "", "z"])}, folder, 3, tmp_path / "out", pool, 2)
    assert (tmp_path / "out/a.txt").read_text() == "27 26 1\n0\n\n25\n"
    assert counts == {"a: lines split": 1, "a: subwords": 5}
    with pytest.raises(ValueError, match="encoder.json lacks 'Ã', which vocab.bpe makes"):
        Gpt2Model(folder).encode(["é"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.bpe", None, r"has no vocab.bpe; give the folder with encoder.json and vocab.bpe"),
        ("vocab.bpe", "", "vocab.bpe: the file is empty"),
        ("encoder.json", "{", "encoder.json is not JSON"),
        ("encoder.json", '["a"]', "does not give each subword a number"),
    ],
)
def test_files_of_gpt2_bpe_are_checked(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = gpt2_files(tmp_path / "bpe") / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        check_gpt2(tmp_path / "bpe")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--valid-text", "a.txt"], "--valid-text and --test-text need --train-text"),
        (["--train-text", "no.txt"], "no.txt: no such file"),
        (["--train-text", "a.txt", "--tokens-per-sample", 2], "--tokens-per-sample is 2, but must be 3 or more"),
        (["--train-text", "a.txt", "--workers", 0], "--workers is 0"),
        (["--train-text", "a.txt", "--train-prefix", "a"], "--train-prefix is not for text of one language; leave it"),
        (["--train-text", "a.txt", "--source", "en"], "--source is not for text of one language"),
        (["--train-text", "a.txt", "--max-ratio", 2], "--max-ratio is not for"),
        (["--train-text", "a.txt", "--gpt2-bpe", "."], r"\. has no encoder.json"),
        (["--train-text", "a.txt", "--gpt2-bpe", ".", "--vocab-size", 9], "--vocab-size is not for .* with --gpt2-bpe"),
        (["wmt14_en_de", "--train-text", "a.txt"], "--train-text is not for pairs to translate"),
        (["--train-prefix", "a", "--tokens-per-sample", 9], "--tokens-per-sample is not for pairs to translate"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(words, message, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(ValueError, match=message):
        run(["prepare", *words])


def test_from_text_to_blocks_of_documents(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command, with the dictionary that belongs to the subwords; then the same text with sentencepiece."""
    folder = gpt2_files(tmp_path / "bpe")
    (folder / "dict.txt").write_text("".join(f"{n} 1\n" for n in range(28)))
    out = tmp_path / "out"
    command = ["prepare", "--train-text", text, "--gpt2-bpe", folder, "--tokens-per-sample", 64, "--out", out]
    run([*command, "--workers", 1])
    assert (out / "binary/dict.txt").read_text() == (folder / "dict.txt").read_text() == (out / "dict.txt").read_text()
    assert (out / "vocab.bpe").exists() and json.loads((out / "prepared.json").read_text())["kind"] == "text"
    dictionary = Dictionary.load(str(out / "binary/dict.txt"))
    train = data_utils.load_indexed_dataset(str(out / "binary/train"), dictionary)
    lines = (out / "subwords/train.txt").read_text().splitlines()
    assert [dictionary.string(train[n]) for n in range(len(train))] == lines
    sentences = Counter(line.count(" ") + 2 for line in lines if line)
    assert Counter(train.sizes.tolist()) == sentences | Counter({1: lines.count("")})

    config = MaskedLMConfig(data=str(out / "binary"), tokens_per_sample=512, sample_break_mode="complete_doc")
    blocks = MaskedLMTask.setup_task(config)._load_dataset_split("train", 1, False)
    assert len(blocks) == lines.count("") + 1 == len(documents(out / "text/train.txt"))  # each in a block of its own

    monkeypatch.setattr("moec_fairseq.data.pipeline.binarise_text", lambda *_: (out / "binary").mkdir())
    run([*command[:3], "--out", out, "--vocab-size", 40, "--workers", 1])  # a folder holds one model
    assert (out / "spm.model").exists() and not (out / "vocab.bpe").exists() and not (out / "dict.txt").exists()
