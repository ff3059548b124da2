"""Steps that are done once: each leaves a note of the settings it was done with."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moec_fairseq.util.files import write_json


class Stages:
    """The steps of a pipeline; before one is done again, what it no longer makes and all later results are removed.

    Args:
        out: folder of all results.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.settings: list[Any] = []

    def do(
        self,
        name: str,
        settings: Any,
        step: Callable[[], Any],
        results: Sequence[Path] = (),
        inputs: Sequence[Path] = (),
    ) -> Any:
        """Return what ``step`` returned (something JSON can hold), now or when it was done with the same settings.

        Args:
            name: of the step.
            settings: what its result depends on beside those of the steps before; something JSON can hold.
            step: does it; a step that is broken off is done again from its beginning.
            results: files it makes; where one is missing, the step is done again.
            inputs: files it reads; where one has changed since, it is done again. They need not stay.
        """
        self.settings.append([name, settings])
        note = self._note(name)
        wanted = json.loads(json.dumps(self.settings))
        now = _states(inputs)
        if note.is_file():
            done = json.loads(note.read_text(encoding="utf-8"))
            changed = any(done.get("inputs", {}).get(name) != state for name, state in now.items())
            if done["settings"] == wanted and not changed and all(path.exists() for path in results):
                print(f"{name}: done before", flush=True)
                self.settings.append(done["when"])
                return done["result"]
        self._forget_from(name, results)
        print(f"{name} ...", flush=True)
        result = step()
        when = time.time_ns()
        content = {
            "settings": wanted,
            "inputs": _states(inputs) | now,  # some may have come just now
            "results": [str(path.relative_to(self.out)) for path in results],
            "result": result,
            "when": when,
        }
        write_json(note, content)
        self.settings.append(when)  # with which no later step has been done yet
        return result

    def _note(self, name: str) -> Path:
        return self.out / f".{name}.done"

    def _forget_from(self, name: str, results: Sequence[Path]) -> None:
        """Remove what is known of a step, and what no longer fits: later results, and its own of other names."""
        for note in self.out.glob(".*.done"):
            done = json.loads(note.read_text(encoding="utf-8"))
            if name in (step[0] for step in done["settings"][::2]):
                for result in map(self.out.joinpath, done.get("results", [])):
                    if note != self._note(name) or result not in results:  # its own are replaced as they are made
                        _remove(result)
                note.unlink()


def _remove(path: Path) -> None:
    """Remove a file or folder such that at no moment a part of it has its name."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)  # of a removal that was broken off
    if path.is_dir():
        path.replace(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _states(paths: Sequence[Path]) -> dict[str, list[int]]:
    """Return what changes when files do, by their names: size and time, even if the new one is older."""
    found = {path.name: path.stat() for path in paths if path.exists()}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in found.items()}
