"""A YAML file and the KEY=VALUE of the command line, composed by hydra and checked before any rank starts."""

import difflib
import json
import logging
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import omegaconf_no_object_check
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from fairseq.utils import import_user_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import moec_fairseq
from moec_fairseq.compat.versions import compose, initialize_config_dir

USER_DIR = Path(moec_fairseq.__path__[0])
MISSING = "???"
_IN_DOUBLE = re.compile(r"[^\"$`\\!]*'[^\"$`\\!]*")
_WORD = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_/][\w./-]*", re.IGNORECASE)  # text that hydra takes as such
# hints of hydra for other uses than ours, and of omegaconf for programmers
_ASIDE = re.compile(
    r"See https|To append to your config|Either remove|Or add a|\w*_(key|type)[:=]|Config search path|provider="
)


@dataclass(frozen=True)
class Configuration:
    """A YAML file, and the values that replace some of its own.

    Attributes:
        path: of the file.
        overrides: KEY=VALUE as hydra accepts them, with a + before keys that the file lacks.
        values: of all keys, such as ``model.dropout``; interpolations are not resolved, and what the user has to give
            is ???.
    """

    path: Path
    overrides: list[str]
    values: dict[str, Any]


def configure(path: Path, overrides: Sequence[str]) -> Configuration:
    """Compose the configuration as the ranks will, and check it against all options of fairseq and of this plug-in.

    Args:
        path: a YAML file.
        overrides: KEY=VALUE; a key that the file lacks needs no +.

    Raises:
        ValueError: hydra cannot read the file or an override, there is no such option, or its value has the
            wrong type; says what was meant, or how to write it.
    """
    if path.suffix != ".yaml" or path.stem in ("config", *FairseqConfig.__dataclass_fields__):
        raise ValueError(
            f"hydra cannot find {path}; let its name end in .yaml, and not be fairseq's own, such as config or common"
        )
    given = [_parsed(text) for text in overrides]
    with _hydra(path) as groups:
        for_hydra = [text for text in given if _is_for_hydra(text, groups)]
        file = _composed(path, [str(text.input_line) for text in for_hydra])
        options = _options(path, file, given)
    there, known = set(_nodes(file)), [*_nodes(options), *groups, *(f"{group}._name" for group in _kinds())]
    complete = []
    for text in given:
        if text in for_hydra:
            complete.append(str(text.input_line))
            continue
        key = text.key_or_group
        _check(text, options, known)
        OmegaConf.update(file, key, text.value(), merge=True)
        # ++: its own keys may be there or not
        prefix = "++" if isinstance(text.value(), dict) else "" if key in there else "+"
        complete.append(f"{prefix}{key}={_value(text)}")
        there.add(key)
    return Configuration(path, complete, {**_nodes(options), **_nodes(file)})


def check_nothing_missing(configuration: Configuration) -> None:
    """Check that the user has given every value that the file, or a class of fairseq, leaves open (???).

    OmegaConf.missing_keys is not in the version that fairseq 0.12.2 needs.

    Raises:
        ValueError: one is missing; names it.
    """
    for key, value in configuration.values.items():
        if value == MISSING:
            name = f"{key}._name" if key in _kinds() else key
            raise ValueError(f"{name} is missing, which {configuration.path} leaves to you; give {name}=VALUE.")


def check_data(configuration: Configuration) -> None:
    """Check that the folders of binary data exist, unless their names are interpolated.

    Raises:
        ValueError: one is missing; says where it was expected.
    """
    data = configuration.values.get("task.data")
    if not isinstance(data, str) or "$" in data:
        return
    for folder in data.split(":"):  # fairseq takes several folders, with colons
        if not Path(folder).is_dir():
            raise ValueError(
                f"task.data is {data}, but there is no folder {folder}; make it with moec prepare or "
                "fairseq-preprocess, or give task.data=FOLDER."
            )


def complete(configuration: Configuration, own: Sequence[str]) -> DictConfig:
    """Return all options of fairseq as a rank will have them, as fairseq-hydra-train completes them.

    Args:
        configuration: as it was given.
        own: KEY=VALUE that the launcher gives to the rank; those of the user win.
    """
    path = configuration.path
    with _hydra(path):
        options = _options(path, _composed(path, [*own, *configuration.overrides]), [])

    def named(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: named(value) for key, value in content.items()}
        # which nobody but hydra's own main function can resolve
        return content.replace("${hydra:job.config_name}", path.stem) if isinstance(content, str) else content

    with omegaconf_no_object_check():
        unresolved = OmegaConf.create(named(OmegaConf.to_container(options, resolve=False, enum_to_str=True)))
        config = OmegaConf.create(OmegaConf.to_container(unresolved, resolve=True))
    OmegaConf.set_struct(config, True)
    return config


@contextmanager
def _hydra(path: Path) -> Iterator[list[str]]:
    """Let hydra find the files beside this one; yield the groups, of files and of fairseq's classes, to choose from."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hydra, about its own next version
            GlobalHydra.instance().clear()
            hydra_init(path.stem)
            with initialize_config_dir(config_dir=str(path.parent)):
                yield GlobalHydra.instance().config_loader().list_groups("")
    finally:
        logging.disable(before)


def _composed(path: Path, overrides: Sequence[str]) -> DictConfig:
    try:
        config = compose(path.stem, [user_dir(), *overrides])
        OmegaConf.set_struct(config, False)
        return config
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        kinds = [text for text in overrides if text.partition("=")[0] in _kinds()]  # such as task=translation
        instead = f"; give {' '.join(kinds).replace('=', '._name=')}" if kinds else ""
        raise ValueError(f"{' '.join([str(path), *overrides])}: {_reason(error)}{instead}.") from error


def user_dir() -> str:
    """Return the override that names this plug-in; the path may have any characters."""
    return f"common.user_dir={quoted(USER_DIR)}"


def quoted(text: Path | str) -> str:
    """Return a path, or another text, as the value of an override, whatever characters it has."""
    return str(QuotedString(str(text), Quote.single).with_quotes())


def as_hydra_reads(value: Any) -> str:
    """Return a value of an override: text and paths in quotation marks unless hydra takes them as they are."""
    if isinstance(value, (str, Path)):
        return str(value) if _WORD.fullmatch(str(value)) else quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(as_hydra_reads, value))}]"
    return json.dumps(value)  # numbers, true, false, null


def as_typed(overrides: Mapping[str, Any]) -> str:
    """Return values by name as one types them into a shell, behind ``moec train CONFIG``."""
    return " ".join(for_shell(f"{name}={as_hydra_reads(value)}") for name, value in overrides.items())


def _kinds() -> dict[str, Iterable[str]]:
    """Return the names that fairseq knows for each group of options whose ``_name`` selects a class."""
    names = {group: registry["registry"] for group, registry in REGISTRIES.items()}
    return {**names, "task": TASK_REGISTRY, "model": [*MODEL_DATACLASS_REGISTRY, *ARCH_MODEL_REGISTRY]}


def _options(path: Path, file: DictConfig, given: Sequence[Override]) -> DictConfig:
    """Return the configuration with all options and their types, those that the file lacks included."""
    options = deepcopy(file)
    for text in given:
        if text.key_or_group.endswith("._name") or text.key_or_group == "common.user_dir":
            OmegaConf.update(options, text.key_or_group, text.value(), merge=True)
    try:
        import_user_module(options.common)
    except (ImportError, FileNotFoundError) as error:
        raise ValueError(f"common.user_dir is {options.common.user_dir}, which cannot be imported: {error}") from error
    names = _nodes(options)
    for group, known in _kinds().items():
        name = names.get(f"{group}._name")
        if name is not None and name not in known:
            raise ValueError(f"{group}._name is {name}, which fairseq does not know{_nearest(str(name), known)}.")
        if names.get(group) == MISSING:
            options[group] = None  # fairseq's defaults cannot be added to what is missing
    try:
        add_defaults(options)
    except OmegaConfBaseException as error:
        nearest = _nearest(str(error.key), getattr(error.object_type, "__dataclass_fields__", ()))
        raise ValueError(
            f"{path}: {_reason(error)}{nearest}; correct it there, or leave it out with ~GROUP.KEY."
        ) from error
    return options


def _nodes(config: DictConfig) -> dict[str, Any]:
    """Return the values of all keys, such as ``model`` and ``model.dropout``."""

    def walk(content: Any, path: str) -> Iterator[tuple[str, Any]]:
        for key, value in content.items():
            yield f"{path}{key}", value
            if isinstance(value, dict):
                yield from walk(value, f"{path}{key}.")

    return dict(walk(OmegaConf.to_container(config, resolve=False), ""))


def _parsed(text: str) -> Override:
    key, equals, value = text.partition("=")
    if not key.strip("+~") or not (equals or key.startswith("~")):
        raise ValueError(f"{text} is not an override; give KEY=VALUE, such as optimization.max_update=1000.")
    try:
        return OverridesParser.create().parse_override(re.sub(r"^\+\+", "+", text))  # hydra 1.0 knows no ++
    except HydraException as error:
        reason = str(error).partition("\n")[0].partition(" expecting ")[0]
        raise ValueError(f"hydra cannot read {text} ({reason}){_other_spelling(key, value)}.") from error


def _value(text: Override) -> str:
    return str(text.input_line).partition("=")[2]


def _is_for_hydra(text: Override, groups: Sequence[str]) -> bool:
    """Whether it is a deletion, an option of hydra, or the choice of a file or a class, such as ``method=moe``."""
    key = text.key_or_group
    is_choice = key in groups and not text.is_sweep_override() and isinstance(text.value(), str)
    return is_choice or "/" in key or key.startswith("hydra.") or text.is_delete()


def _check(text: Override, options: DictConfig, known: Sequence[str]) -> None:
    """Raise ValueError unless there is such an option, and it can have this value."""
    key, value = text.key_or_group, _value(text)
    group = key.partition(".")[0]
    free = group in options and OmegaConf.get_type(options, group) is dict  # of a class without a list of options
    if key not in known and not free:
        nearest = _nearest(key, known) or f"; groups of options: {', '.join(map(str, options))}"
        raise ValueError(f"there is no option {key}{nearest}.")
    if text.is_sweep_override():
        spelling = _other_spelling(key, value, options)
        raise ValueError(
            f"{text.input_line} means several values to hydra, one training for each{spelling or '; give one'}."
        )
    try:
        OmegaConf.update(options, key, text.value(), merge=True)
    except OmegaConfBaseException as error:
        spelling = _other_spelling(key, value, options)
        raise ValueError(f"{text.input_line}: {_reason(error)}{spelling}.") from error


def _other_spelling(key: str, value: str, options: DictConfig | None = None) -> str:
    """Return, for a message, how to give a value so that hydra reads it as one text, or as a list, where that helps."""
    inner = value[1:-1] if re.fullmatch(r"\[.*\]", value) else value
    for spelling in (QuotedString(inner, Quote.single).with_quotes(), f"[{inner}]"):
        try:
            text = OverridesParser.create().parse_override(f"{key}={spelling}")
            if options is not None:
                OmegaConf.update(deepcopy(options), key, text.value(), merge=True)
        except (HydraException, OmegaConfBaseException):
            continue
        if not text.is_sweep_override() and spelling != value:
            return f"; give {for_shell(str(text.input_line))}"
    return ""


def for_shell(text: str) -> str:
    """Return an argument as it is typed into a shell; hydra's single quotes stay legible between double ones."""
    return f'"{text}"' if _IN_DOUBLE.fullmatch(text) else shlex.quote(text)


def _nearest(key: str, known: Iterable[str]) -> str:
    """Return, for a message, the known keys that are most like one: those of its name in other groups come first."""
    names: dict[str, list[str]] = {}
    for other in dict.fromkeys(known):
        names.setdefault(other.rpartition(".")[2], []).append(other)
    name = key.rpartition(".")[2]
    alike = [other for like in difflib.get_close_matches(name, names, cutoff=0.75) for other in names[like]]
    found = [*names.get(name, []), *difflib.get_close_matches(key, sum(names.values(), [])), *alike]
    return f"; nearest: {', '.join(list(dict.fromkeys(found))[:3])}" if found else ""


def _reason(error: BaseException | None) -> str:
    """Return in a line what hydra or omegaconf say, with the causes."""
    reason = ""
    while error is not None:
        for line in map(str.strip, str(error).splitlines()):
            if line and not _ASIDE.match(line):
                reason += ("; " if reason and line[0].isupper() else " ") + line.rstrip(".")
        error = error.__cause__
    return reason.strip()
