"""Archives in exactly the layouts in which the corpora are published, with sentences made up here."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

SAMPLE = Path(__file__).parents[3] / "shared/data/wmt-sample"  # not part of the project
WORDS = {
    "en": "the a big small red green house tree dog cat sees likes has old new and or under over".split(),
    "de": "das ein große kleine rote grüne Haus Baum Hund Katze sieht mag hat alt neu und oder unter über".split(),
    "fr": "la un grande petite rouge verte maison arbre chien chat voit aime a vieux neuf et ou sous sur".split(),
}


def pairs(count: int, source: str, target: str, seed: int = 1) -> tuple[list[str], list[str]]:
    """Return sentences and their translations, word by word."""
    chance = random.Random(seed)
    numbers = [[chance.randrange(len(WORDS["en"])) for _ in range(chance.randint(3, 12))] for _ in range(count)]
    one, other = (
        [" ".join(WORDS[language][n] for n in row) + " ." for row in numbers] for language in (source, target)
    )
    return one, other


Pairs = Callable[..., tuple[list[str], list[str]]]


def real_pairs(count: int, source: str, target: str, seed: int = 1) -> tuple[list[str], list[str]]:
    """Return real sentences of WMT, English and German, where they are at hand; else made up ones."""
    if not SAMPLE.is_dir():
        return pairs(count, source, target, seed)
    files = {"en": SAMPLE / "src-train.txt", "de": SAMPLE / "tgt-train.txt"}
    one, other = (files[language].read_text(encoding="utf-8").splitlines() for language in (source, target))
    chosen = random.Random(seed).sample(range(len(one)), count)
    return [one[n] for n in chosen], [other[n] for n in chosen]


def tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def plain(sentences: list[str]) -> bytes:
    return "".join(f"{sentence}\n" for sentence in sentences).encode()


def sgml(sentences: list[str], kind: str, language: str) -> bytes:
    lang = 'srclang="any"' if kind == "src" else f'srclang="any" trglang="{language}"'
    segments = "\n".join(
        f'<seg id="{n}">{s.replace("&", "&amp;").replace("<", "&lt;")}</seg>' for n, s in enumerate(sentences, 1)
    )
    return (
        f'<{kind}set setid="newstest2014" {lang}>\n<doc sysid="ref" docid="1" genre="news" origlang="en">\n<p>\n'
        f"{segments}\n</p>\n</doc>\n</{kind}set>\n"
    ).encode()


def talks(sentences: list[str]) -> bytes:
    head = ["<url>http://www.ted.com/talks/x</url>", "<keywords>a, b</keywords>", "<speaker>N N</speaker>"]
    talk = [
        "<talkid>1</talkid>",
        f"<title>{sentences[0]}</title>",
        f"<description>TED Talk: {sentences[1]}</description>",
    ]
    lines = [*head, *talk, *sentences[2:], "<reviewer></reviewer>", "<translator></translator>"]
    return plain(lines)


def talk_xml(sentences: list[str], kind: str, language: str) -> bytes:
    lang = f' trglang="{language}"' if kind == "ref" else ""
    body = "\n".join(f'<seg id="{n}"> {s} </seg>' for n, s in enumerate(sentences, 1))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<{kind}set setid="iwslt2014" srclang="german"{lang}>\n'
        f'<doc docid="1" genre="lectures">\n{body}\n</doc>\n</{kind}set>\n</mteval>\n'
    ).encode()


def wmt14_en_de(folder: Path, count: int = 400, pairs: Pairs = pairs) -> None:
    """Write the archives of WMT14 English–German; CommonCrawl has some pairs that cleaning drops."""
    train = pairs(3 * count, "en", "de")
    third = [[side[i * count : (i + 1) * count] for side in train] for i in range(3)]
    tar(
        folder / "wmt13/training-parallel-europarl-v7.tgz",
        {
            "training/europarl-v7.cs-en.en": b"other\n",
            "training/europarl-v7.de-en.en": plain(third[0][0]),
            "training/europarl-v7.de-en.de": plain(third[0][1]),
        },
    )
    dirty = [("", "leer"), ("word " * 300, "Wort " * 300), ("one", "das ist ein viel zu langer Satz für ein Wort")]
    tar(
        folder / "wmt13/training-parallel-commoncrawl.tgz",
        {
            "commoncrawl.de-en.de": plain([*third[1][1], *(d for _, d in dirty)]),
            "commoncrawl.de-en.en": plain([*third[1][0], *(e for e, _ in dirty)]),
        },
    )
    tar(
        folder / "wmt17/translation-task/training-parallel-nc-v12.tgz",
        {
            "training/news-commentary-v12.de-en.de": plain(third[2][1]),
            "training/news-commentary-v12.de-en.en": plain(third[2][0]),
        },
    )
    valid, test = pairs(20, "en", "de", 2), pairs(15, "en", "de", 3)
    tar(
        folder / "wmt17/translation-task/dev.tgz",
        {"dev/newstest2013.de": plain(valid[1]), "dev/newstest2013.en": plain(valid[0])},
    )
    tar(
        folder / "wmt14/test-full.tgz",
        {
            "test-full/newstest2014-deen-src.en.sgm": sgml([*test[0][:-1], "“R&D” – it’s <5 …"], "src", "en"),
            "test-full/newstest2014-deen-ref.de.sgm": sgml([*test[1][:-1], "„F&E“ ist <5"], "ref", "de"),
        },
    )


def iwslt14_de_en(folder: Path) -> None:
    train = pairs(230, "de", "en")
    members = {f"de-en/train.tags.de-en.{lang}": talks(side) for lang, side in zip(("de", "en"), train, strict=True)}
    for number, name in enumerate(("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")):
        test = pairs(4, "de", "en", 10 + number)
        for lang, side, kind in zip(("de", "en"), test, ("src", "ref"), strict=True):
            members[f"de-en/IWSLT14.{name}.de-en.{lang}.xml"] = talk_xml(side, kind, lang)
    tar(folder / "fairseq/data/iwslt14/de-en.tgz", members)


def giga(folder: Path) -> None:
    """Write the one archive of WMT14 English–French whose members are compressed again."""
    one, other = pairs(10, "en", "fr")
    tar(
        folder / "training-giga-fren.tar",
        {
            "giga-fren.release2.fixed.en.gz": gzip.compress(plain(one)),
            "giga-fren.release2.fixed.fr.gz": gzip.compress(plain(other)),
        },
        "w",
    )


def multi30k(folder: Path, target: str) -> None:
    for seed, (name, count) in enumerate((("train", 200), ("val", 10), ("test_2016_flickr", 10))):
        for lang, side in zip(("en", target), pairs(count, "en", target, seed), strict=True):
            path = folder / f"multi30k/dataset/master/data/task1/raw/{name}.{lang}.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(plain(side)))
