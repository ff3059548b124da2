"""Archives over HTTP to scores and translations: prepare, train on two processes, evaluate, translate."""

import csv
import json
import re

import pytest

from moec_fairseq.__main__ import run as moec
from tests.python import python_m

from . import published

SIZES = [
    f"model.{side}_{name}={value}"
    for side in ("encoder", "decoder")
    for name, value in (("embed_dim", 32), ("ffn_embed_dim", 64), ("attention_heads", 2), ("layers", 2))
]


def run(*arguments, cwd, stdin=""):
    return python_m("moec_fairseq", *arguments, cwd=cwd, stdin=stdin)


@pytest.fixture
def trained(tmp_path, server, local_recipe):
    """Return a folder with prepared data and the checkpoints of two processes."""
    published.wmt14_en_de(tmp_path / "web", pairs=published.real_pairs)
    broken = tmp_path / "web/wmt17/translation-task/dev.tgz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    recipe = local_recipe("wmt14_en_de")  # to a code with a hyphen, which is nowhere given again
    recipe.write_text(re.sub(r'\bde(?=: "|\n)', "de-AT", recipe.read_text()))
    prepare = ["prepare", recipe, "--vocab-size", 500]

    server.break_after["/wmt13/training-parallel-europarl-v7.tgz"] = [3000]
    done = run(*prepare, cwd=tmp_path)
    assert done.returncode == 1 and "raw/wmt17-dev.tgz is broken" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "wmt14_en_de-en-de-AT/text").glob("*"))
    broken.write_bytes(whole)
    (tmp_path / "wmt14_en_de-en-de-AT/raw/wmt17-dev.tgz").unlink()
    done = run(*prepare, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    done = run(
        "train", "small", "task.data=wmt14_en_de-en-de-AT/binary", *SIZES,
        "optimization.max_epoch=3", "dataset.max_tokens=4000", "dataset.num_workers=0", "--processes", 2,
        "optimization.lr=[0.01]", "lr_scheduler.warmup_updates=10", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_from_archives_to_scores(trained, monkeypatch):
    evaluate = ["evaluate", "--checkpoints", "checkpoints/small_moec/seed1", "--table", "results.csv", "--beam", 2]
    done = run(*evaluate, "--average", 2, cwd=trained)
    assert done.returncode == 0, done.stderr + done.stdout
    out = trained / "checkpoints/small_moec/seed1/evaluation/last2/test-beam2"
    translations, references = (
        (out / f"{name}.txt").read_text().splitlines() for name in ("translations", "references")
    )
    assert len(translations) == len(references) == 15 and not any("\u2581" in line for line in translations)
    assert references[-1] == "„F&E“ ist <5"  # as published, not normalised
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores["scores"]) == {"BLEU", "chrF", "chrF++", "TER", "BLEU, tokenised", "BLEU, compounds split"}
    assert all("version:" in score["signature"] for score in scores["scores"].values())
    assert scores["checkpoints"] == [f"checkpoints/small_moec/seed1/checkpoint{n}.pt" for n in (2, 3)]
    for fact in ("experts:8", "clusters:2", "checkpoints:2", "beam:2", "seed:1"):
        assert fact in scores["model"]
    assert f"{scores['scores']['BLEU']['value']:.2f}" in done.stdout

    # once more: nothing is made again; a perfect translation is better
    made = (out / "translations.txt").stat().st_mtime_ns
    done = run(*evaluate, "--average", 2, "--against", out / "references.txt", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == 2 and (out / "translations.txt").stat().st_mtime_ns == made
    against = json.loads((out / "scores.json").read_text())["against"][str(out / "references.txt")]
    assert against["BLEU"]["other"]["score"] == 100.0 and against["BLEU"]["p_value"] < 0.01

    # text of the user, another checkpoint: a second row
    (trained / "mine.en").write_text("The house is red .\nThe dog sleeps .\n")
    (trained / "mine.de").write_text("Das Haus ist rot .\nDer Hund schläft .\n")
    mine = ["--best", "--input", "mine.en", "--references", "mine.de"]
    done = run(*evaluate, *mine, "--name", "best", cwd=trained)
    assert done.returncode == 0, done.stderr
    with (trained / "results.csv").open() as file:
        assert [(row["system"], row["set"]) for row in csv.DictReader(file)] == [
            ("small_moec/seed1", "wmt14_en_de-en-de-AT/test"), ("best", "mine.en"),
        ]  # fmt: skip

    done = run(*evaluate, *mine, "--against", out / "references.txt", cwd=trained)
    assert done.returncode == 1 and "mine.en has 2, " in done.stderr.splitlines()[-1]
    for name, text in (("source", "Another house .\nAnother dog .\n"), ("translations", "Ein Haus .\nEin Hund .\n")):
        (trained / f"{name}.txt").write_text(text)
    done = run(*evaluate, *mine, "--against", "translations.txt", cwd=trained)
    assert done.returncode == 1 and "which are other sentences than mine.en" in done.stderr.splitlines()[-1]
    done = run(*evaluate, "--best", "--input", "mine.en", cwd=trained)
    assert done.returncode == 1 and "scores need --references" in done.stderr.splitlines()[-1]

    # plain text to plain text, in order
    text = "The house is red .\n\nThe dog sleeps .\n"
    done = run("translate", "checkpoints/small_moec/seed1", "--beam", 2, cwd=trained, stdin=text)
    assert done.returncode == 0, done.stderr
    first, empty, third = done.stdout.splitlines()
    assert first and third and not empty and "\u2581" not in done.stdout and "2/2 sentences" in done.stderr
    (trained / "in.en").write_text("\n\n" + "word " * 2000)
    monkeypatch.chdir(trained)
    with pytest.raises(ValueError, match="line 3 has 2001 subwords, but the model takes at most 1024; divide it"):
        moec(["translate", "checkpoints/small_moec/seed1", "--input", "in.en"])
    (trained / "in.en").write_text(text)
    options = ("--n-best", 2, "--score", "--beam", 2, "--input", "in.en", "--output", "out.de", "--batch-size", 1)
    done = run("translate", "checkpoints/small_moec/seed1/checkpoint_best.pt", *options, cwd=trained)
    assert done.returncode == 0 and not done.stdout, done.stderr
    found = [line.split("\t") for line in (trained / "out.de").read_text().splitlines()]
    assert len(found) == 6 and found[0][1] == first and found[2] == found[3] == ["0.0000", ""]
    assert float(found[0][0]) >= float(found[1][0]) and float(found[4][0]) >= float(found[5][0])
