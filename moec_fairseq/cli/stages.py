"""Steps that are done once: each leaves a note of the settings it was done with."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Stages:
    """The steps of a pipeline; when one is done again, so are all later ones, even if that is broken off in between.

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
        note = self.out / f".{name}.done"
        wanted = json.loads(json.dumps(self.settings))
        if note.is_file():
            done = json.loads(note.read_text(encoding="utf-8"))
            changed = any(path.exists() and path.stat().st_mtime > note.stat().st_mtime for path in inputs)
            if done["settings"] == wanted and not changed and all(path.exists() for path in results):
                print(f"{name}: done before", flush=True)
                self.settings.append(done["when"])
                return done["result"]
            note.unlink()
        print(f"{name} ...", flush=True)
        result = step()
        part = note.with_suffix(".part")
        when = time.time_ns()
        part.write_text(json.dumps({"settings": wanted, "result": result, "when": when}), encoding="utf-8")
        part.replace(note)
        self.settings.append(when)  # with which no later step has been done yet
        return result
