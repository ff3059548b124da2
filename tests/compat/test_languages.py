import pytest
from fairseq.data import data_utils

import moec_fairseq.compat  # noqa: F401  (importing it applies the workarounds)


def data(folder, source, target):
    for language in (source, target):
        (folder / f"dict.{language}.txt").touch()
        (folder / f"train.{source}-{target}.{language}.idx").touch()
    return str(folder)


@pytest.mark.parametrize(
    "pair", [("en", "de"), ("en", "pt-BR"), ("zh-Hant", "en"), ("zh-Hant", "pt-BR"), ("en", "zh_CN")]
)
def test_languages_come_from_the_names_of_files(tmp_path, pair):
    assert tuple(data_utils.infer_language_pair(data(tmp_path, *pair))) == pair


def test_where_names_do_not_tell(tmp_path):
    assert tuple(data_utils.infer_language_pair(str(tmp_path))) == (None, None)
    data(tmp_path, "en", "pt-BR")
    with pytest.raises(ValueError, match=r"\(en-pt-BR, en-zh-Hant\).* give --source-lang and --target-lang"):
        data_utils.infer_language_pair(data(tmp_path, "en", "zh-Hant"))
