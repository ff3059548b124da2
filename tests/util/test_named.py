import pytest

from moec_fairseq.util.files import find_yaml


def test_by_path_and_by_name(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("x: 1")
    assert find_yaml("recipe", str(file), tmp_path / "other") == file
    assert find_yaml("recipe", "a", tmp_path) == find_yaml("recipe", "a.yaml", tmp_path) == file


def test_no_such_file(tmp_path):
    for name in ("a", "b", "_c"):
        (tmp_path / f"{name}.yaml").write_text("x: 1")
    with pytest.raises(ValueError, match="there is no recipe d; give the path of a YAML file, or one of .*: a, b$"):
        find_yaml("recipe", "d", tmp_path)
