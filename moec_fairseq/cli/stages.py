"""Steps that are done once: each leaves a note of the settings it was done with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stages:
    """The steps of a pipeline; when the settings of one change, it and all later ones are done again.

    Args:
        out: folder of all results.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.settings: list[Any] = []

    def do(self, name: str, settings: Any, step: Callable[[], Any]) -> Any:
        """Return what ``step`` returned (something JSON can hold), now or when it was done with the same settings.

        Args:
            name: of the step.
            settings: what its result depends on beside those of the steps before; something JSON can hold.
            step: does it; a step that is broken off is done again from its beginning.
        """
        self.settings.append([name, settings])
        note = self.out / f".{name}.done"
        wanted = json.loads(json.dumps(self.settings))
        if note.is_file():
            done = json.loads(note.read_text(encoding="utf-8"))
            if done["settings"] == wanted:
                print(f"{name}: done before", flush=True)
                return done["result"]
            note.unlink()
        print(f"{name} ...", flush=True)
        result = step()
        part = note.with_suffix(".part")
        part.write_text(json.dumps({"settings": wanted, "result": result}), encoding="utf-8")
        part.replace(note)
        return result
