"""The page as a browser reads it, of a model that is made up, with names that try to be HTML."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.report.collect import survey
from moec_fairseq.report.page import write
from moec_fairseq.report.tables import Reported, information_of, tables, typical

from .made import END, TWO_PAIRS, reading

EVIL = "▁<script>document.title='bad'</script>"
SYMBOLS = ("▁a", EVIL, "▁\"'&amp;<b>", "▁x")  # 4 to 7
NAME = "_$x$<img src=x.png onerror=\"document.title='bad'\">"
SENTENCES = [([4, 5, 6, 7, END], [6, 5, END]), ([7, END], [5, 5, END])] * 3
HISTORY = {10: {"loss": 5.0, "moe_balance": 1.5}, 20: {"loss": 4.0, "moe_balance": 1.25}}
VALID = {20: {"valid_loss": 4.5, "valid_moe_balance": 1.75}}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# what the browser is to say of the page, at the end of it
ASK = """<script>
addEventListener("load", () => {
  const found = {title: document.title, images: [...document.images].map(image => image.naturalWidth)};
  const names = performance.getEntriesByType("resource").map(entry => entry.name);
  found.fetched = names.filter(name => !name.startsWith("data:"));
  found.rows = [...document.querySelectorAll("table")].map(table => [table.id, table.tBodies[0].rows.length]);
  const column = () => [...document.querySelectorAll("#loads tbody tr")].map(row => row.cells[4].textContent);
  const head = document.querySelectorAll("#loads th")[4];
  head.click(); found.rising = column(); head.click(); found.falling = column();
  const token = () => document.querySelector(".stack[data-stack=encoder] .token").style.backgroundColor;
  const select = document.querySelector("select[data-stack=encoder]");
  found.before = token(); select.dispatchEvent(new Event("change")); found.after = token();
  document.body.dataset.found = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two models: one of clusters, which has a log, and plain MoE."""
    folder = tmp_path_factory.mktemp("report")
    table = [9, 9, 3, 9, 0, 1, 1, 2]
    models = []
    for name, clusters, logs in ((NAME, TWO_PAIRS, (HISTORY, VALID)), ("moe", ExpertClusters(4, 1), ({}, {}))):
        found = survey([reading(SYMBOLS, table, clusters, SENTENCES)], 3, 2)
        models.append(Reported(name, {"seed": 1}, "<i>test</i>", found, information_of(found), *logs))
    write(models, folder)
    return folder


class Reader(HTMLParser):
    """Notes elements and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text.append(text)


def test_text_is_no_html(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    read = Reader(page)
    tags = [tag for tag, _ in read.elements]
    assert tags.count("script") == 1 and tags.count("b") == 6 * 2 and "i" in tags  # b: names of stacks
    assert tags.count("img") == 2 * 4 + 1 and not any("onerror" in attributes for _, attributes in read.elements)
    text = "".join(read.text)
    assert EVIL[1:] in text and "\"'&amp;<b>" in text and NAME in text and "<i>test</i>" in text


def test_nothing_is_fetched(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    for tag, attributes in Reader(page).elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert re.match("data:|#", attributes.get(name) or "#"), f"<{tag} {name}={attributes[name][:50]}>"

    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page


def test_files_beside_the_page(out):
    names = {path.name for path in out.iterdir()}
    pictures = {
        f"{kind}{other}" for kind in ("loads", "information", "classes", "resemblance") for other in ("", "-against")
    }
    assert {f"{name}.{ending}" for name in pictures | {"curves"} for ending in ("png", "svg")} <= names
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["cosine"]["moe"]["encoder 3"]["router embeddings"][1] == [0, 1, 0, 0]
    for name, rows in found["tables"].items():
        with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            read = list(csv.DictReader(file))
        assert len(read) == len(rows) > 0
        assert [row["model"] for row in read] == [row["model"] for row in rows] and {NAME, "moe"} >= {
            r["model"] for r in read
        }
    curves = [(row["when"], row["update"], row["measure"], row["value"]) for row in found["tables"]["curves"]]
    assert curves == [
        ("training", 10, "loss", 5.0), ("training", 10, "moe_balance", 1.5), ("training", 20, "loss", 4.0),
        ("training", 20, "moe_balance", 1.25), ("validation", 20, "loss", 4.5), ("validation", 20, "moe_balance", 1.75),
    ]  # fmt: skip


def test_numbers_of_a_layer_by_hand(out):
    rows = json.loads((out / "report.json").read_text(encoding="utf-8"))["tables"]
    encoder = next(row for row in rows["layers"] if row["layer"] == "encoder 3")
    # 21 tokens: 3 on expert 0, 6 on 1, 6 on 2, 6 on 3
    assert (encoder["tokens"], encoder["unused experts"], encoder["clusters"]) == (21, 0, 2)
    shares = [encoder[f"{which} {of} %"] for of in ("expert", "cluster") for which in ("busiest", "idlest")]
    assert shares == pytest.approx([100 * part / 21 for part in (6, 3, 12, 9)])
    assert encoder["entropy of the load (bits)"] == pytest.approx(1.9502, abs=1e-4) and encoder["at most"] == 2
    loads = [row["tokens"] for row in rows["loads"] if row["model"] == NAME and row["layer"] == "encoder 3"]
    assert loads == [3, 6, 6, 6]
    ratio = next(row for row in rows["classes"] if row["of"] == "cluster 0" and row["class"] == "frequent word")
    # encoder: a and x are words of letters, 3 of the 9 tokens of cluster 0, and 9 of all 21
    assert [ratio["share %"], ratio["ratio"]] == pytest.approx([100 / 3, 7 / 9])


def test_a_single_model_in_the_place_of_two_none_of_whose_experts_has_a_choice(tmp_path):
    found = survey([reading(("▁a",), [9, 9, 0, 9, 0], TWO_PAIRS, [([4, END], [END])])], 0)
    model = Reported("m", {}, "t", found, information_of(found), {}, {})
    first = tables([model])["layers"][0]
    assert (first["unused experts"], first["idlest expert %"], first["busiest cluster %"]) == (3, 0, 100)
    for name in ("loads-against.png", "curves.svg", "curves.csv", "notes.txt"):
        (tmp_path / name).touch()
    write([model], tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"report.html", "loads.png", "notes.txt"} and not {
        n for n in names if "against" in n or "curves" in n
    }
    assert '<th scope="col">model' not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_text_of_empty_lines(tmp_path):
    found = survey([reading(("▁a",), [9, 9, 0, 9, 0], TWO_PAIRS, [([END], [END])], stacks=("encoder",))], 1)
    write([Reported("m", {}, "t", found, information_of(found), {}, {})], tmp_path)
    assert (tmp_path / "report.html").exists() and not (tmp_path / "information.png").exists()


def test_typical_words_by_hand():
    labels = ("the", "rare", "file", "window", "all others")
    counts_W, total_W = [50, 4, 30, 0, 16], [500, 4, 40, 100, 356]
    assert typical(labels, *map(np.array, (counts_W, total_W))) == [("file", 30, pytest.approx(7.5))]  # 4 is too few


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_browser_shows_it(out, tmp_path):
    page = (out / "report.html").read_text(encoding="utf-8")
    asked = tmp_path / "asked.html"
    asked.write_text(page.replace("</body>", f"{ASK}</body>"), encoding="utf-8")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [
            CHROMIUM, "--headless", *sandbox, "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'chromium'}",
            "--dump-dom", asked.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))
    assert found["title"].startswith("Experts of ") and "bad" not in found["title"].split("onerror")[0]
    assert len(found["images"]) == 9 and min(found["images"]) > 100
    assert found["fetched"] == []
    rows = dict(found["rows"])
    assert rows["loads"] == 2 * 2 * 4 and rows["layers"] == 4 and all(rows.values())
    numbers = [int(text) for text in found["rising"]]
    assert numbers == sorted(numbers) and list(map(int, found["falling"])) == sorted(numbers, reverse=True)
    assert found["before"] == found["after"] != ""  # script and template agree on colours
