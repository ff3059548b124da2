import subprocess
import sys

import pytest

from moec_fairseq.util.deferred import deferred

MODULE = "import sys\nsys.imported = True\ndef double(x): return 2 * x\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``slow`` with a module ``slow.inner``, which notes that it was imported."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/__init__.py").write_text("")
    (tmp_path / "slow/inner.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "imported", False, raising=False)
    yield
    for name in ("slow", "slow.inner"):
        sys.modules.pop(name, None)


def test_what_is_imported_meanwhile_waits_for_its_call(package):
    with deferred("slow", "slow.inner"):
        from slow import inner
        from slow.inner import double
    assert not sys.imported and "slow" not in sys.modules
    assert double(3) == inner.double(x=3) == 6 and sys.imported


def test_an_import_that_comes_later_is_the_real_one(package):
    with deferred("slow.inner"):
        pass
    from slow.inner import double

    assert sys.imported and double.__module__ == "slow.inner"


def test_what_is_imported_already_stays(package):
    import slow.inner

    with deferred("slow.inner"):
        from slow.inner import double
    assert double is slow.inner.double


def test_commands_start_without_scikit_learn():
    code = "import sys, moec_fairseq; print(*{'sklearn', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
