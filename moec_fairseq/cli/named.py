"""YAML files that a user gives by path, or by their names in a folder of this project."""

from pathlib import Path


def find_yaml(kind: str, name: str, folder: Path) -> Path:
    """Return the YAML file that ``name`` means: a path, or a name in ``folder``, with or without its ending.

    Args:
        kind: what the file holds, for the message.
        name: as the user gave it.
        folder: where files of this kind are; those that begin with ``_`` are not for users.

    Raises:
        ValueError: there is no such file; lists what there is.
    """
    for path in (Path(name), folder / name, folder / f"{name}.yaml"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in folder.glob("[!_]*.yaml"))) or "none"
    raise ValueError(f"there is no {kind} {name}; give the path of a YAML file, or one of {folder}: {known}")
