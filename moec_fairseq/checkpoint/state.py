"""What one checkpoint file holds: read safely, and what in it concerns ranks, experts and the optimizer."""

import math
import os
import pickle
import pickletools
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from moec_fairseq.checkpoint.names import find_files, rank_suffix
from moec_fairseq.compat.versions import load_options
from moec_fairseq.moe.expert_parallel import Shard
from moec_fairseq.moe.router import rename_old_parameters

State = dict[str, Any]
# the keys that lead from the top of a checkpoint to a tensor
Place = tuple[Any, ...]

OPTIMIZER = "last_optimizer_state"
MARK = ".experts.sublayers."  # in the name of every parameter that is stacked over experts
EMBEDDINGS = ".router.expert_embeddings_NK"  # the end of the name of a router's embeddings
# what fairseq's Transformers keep in a state dict beside parameters; the values of _float_tensor are arbitrary
BUFFER = re.compile(r"(.*\.)?(version|_float_tensor)")
# settings that make another model, by group, None: all; schedule and length often change on purpose
OF_THE_MODEL: dict[str, tuple[str, ...] | None] = {"common": ("seed",), "model": None, "criterion": None}
# settings that ranks of a training have in common, too
OF_THE_TRAINING = OF_THE_MODEL | {"optimization": None, "optimizer": None, "lr_scheduler": None}
# these make no other model, nor does the model's copy of the seed
OF_THE_MACHINES = {
    f"model.{name}" for name in ("base_layers", "moec_dispatch", "moec_evaluation", "moec_token_shuffle", "seed", "tpu")
}
_HINT = "leave it out with --no-optimizer"


def load_state(path: Path, optimizer: bool = True) -> State:
    """Return the content of a checkpoint file of fairseq; tensors stay on the disk until used, where torch can do so.

    Args:
        path: the file.
        optimizer: whether to keep the optimizer's state.

    Raises:
        ValueError: the file is truncated or corrupt, not a checkpoint of fairseq, or contains code.
    """
    check_checksums(path, tensors=False)
    state = _load(path)
    if not (isinstance(state, dict) and isinstance(state.get("model"), dict) and _has_settings(state)):
        raise ValueError(f"{path} has no model and configuration; give a checkpoint written by fairseq-train.")
    with readable(path):
        _check_names(path, group(state, "task"))
        rename_in_checkpoint(state)
    if not optimizer:
        state.pop(OPTIMIZER, None)
    return state


def rename_in_checkpoint(state: State) -> None:
    """Give parameters that an older version has written their current names, in the model and its moving averages."""
    extra_state = state.get("extra_state") or {}
    for tensors in (state["model"], extra_state.get("ema"), extra_state.get("ema_fp32_params")):
        rename_old_parameters(tensors or {})


def leave_out_averages(state: State) -> None:
    """Remove moving averages, which are those of other parameters, from a checkpoint whose parameters change."""
    for averages in ("ema", "ema_fp32_params"):
        (state.get("extra_state") or {}).pop(averages, None)


def load_if_readable(path: Path) -> State | None:
    """Return the content of a checkpoint without the optimizer's state; None if it is missing or cannot be read.

    Whoever asks loads it later, and is then told why it cannot be read.
    """
    try:
        return load_state(path, optimizer=False) if path.is_file() else None
    except ValueError:
        return None


def saved_options(path: str | None) -> dict[str, Any]:
    """Return the model's options in a checkpoint; none of them if it is missing or cannot be read.

    Args:
        path: NAME.pt, or NAME-rank-R.pt; None: no checkpoint.
    """
    try:
        state = load_if_readable(next(iter(find_files(Path(path)).ranks.values()))) if path else None
    except ValueError:  # whoever loads it says so
        return {}
    return {} if state is None else dict(group(state, "model"))


def check_checksums(path: Path, tensors: bool = True) -> None:
    """Compare a file with the checksums that torch writes beside each of its parts, at about 5 GB per second.

    A file from before torch 1.6 has none; it is loaded instead.

    Args:
        path: the file.
        tensors: read these, too; otherwise only what says how they are arranged, which is short.

    Raises:
        ValueError: the file has changed since it was written.
    """
    if not zipfile.is_zipfile(path):
        if tensors:
            _load(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if tensors or "/data/" not in name:
                    with archive.open(name) as part:
                        while part.read(1 << 20):
                            pass
    except Exception as error:  # damage makes zipfile raise ten kinds of them
        raise ValueError(f"{path} is corrupt ({_reason(error)}); copy it again or use another checkpoint.") from error


def _load(path: Path) -> Any:
    with readable(path):
        try:
            return torch.load(str(path), map_location="cpu", **load_options(path))
        except ValueError as error:  # of a pickle, about numbers and texts that the user does not know
            raise pickle.UnpicklingError(str(error)) from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one sentence why torch cannot load ``path``; torch takes half a page, and advises to run the code.

    Raises:
        ValueError: the file is truncated or corrupt, not a checkpoint, or contains code.
    """
    try:
        yield
    except Exception as error:  # what a damaged pickle raises can be anything
        if isinstance(error, OSError) and error.filename is not None:
            raise  # no such file, no permission; where torch seeks beyond the end of a truncated file it names none
        if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
            raise  # of ours
        if code := _code(path, str(error)):
            raise ValueError(
                f"{path} contains code ({code}) and was not loaded, as checkpoints hold none; use one from someone "
                "you trust."
            ) from None
        protocol = _protocol(path)
        reason = f"its pickle has protocol {protocol}, of which torch loads none above 2 safely" if protocol > 2 else ""
        raise ValueError(
            f"{path} is truncated, corrupt or not a checkpoint ({reason or _reason(error)}); copy it again or use "
            "another checkpoint."
        ) from (None if isinstance(error, pickle.UnpicklingError) else error)


def _reason(error: Exception) -> str:
    """Return the first sentence of a message; torch's safe loader gives its advice before its reason."""
    message = str(error)
    message = message.partition("WeightsUnpickler error:")[2].strip() or message
    return message.partition("\n")[0].partition(". ")[0] or type(error).__name__


# torch says what it has refused of pickles as it writes them itself; in others its own names count as harmless
_REFUSED = re.compile(r"GLOBAL ([\w.]+) (?:was not|whose)")
_HARMLESS = ("_codecs", "argparse", "collections", "numpy", "torch")


def _code(path: Path, reason: str) -> str:
    """Return in words what code a file contains, judged by torch's ``reason``; "" if it is only corrupt."""
    if "TorchScript" in reason:
        return "a TorchScript program"
    refused = _REFUSED.search(reason)
    for name in _globals(path):
        if name.partition(".")[0] not in _HARMLESS or (refused and name == refused[1]):
            return f"its pickle names {name!r:.100}"
    return ""


def _globals(path: Path) -> Iterator[str]:
    """Yield the functions and classes that the complete pickles of a file name; nothing is loaded."""
    try:
        with _pickles(path) as file:
            while True:  # files from before torch 1.6 hold several pickles, then tensors
                names: list[str] = []
                texts = ["", ""]  # the last two name a global
                memo: dict[Any, str] = {}  # through which a pickle repeats a text
                for opcode, value, _ in pickletools.genops(file):
                    if opcode.name in ("GLOBAL", "INST"):
                        names.append(str(value).replace(" ", "."))
                    elif opcode.name == "STACK_GLOBAL":
                        names.append(".".join(texts[-2:]))
                    elif opcode.name == "MEMOIZE":
                        memo[len(memo)] = texts[-1]
                    elif opcode.name.endswith("GET"):
                        texts.append(memo.get(value, ""))
                    elif isinstance(value, str):
                        texts.append(value)
                yield from names
    except Exception:  # not a pickle, or no further one
        return


def _protocol(path: Path) -> int:
    """Return the protocol of the first pickle of a file; 0 if it does not say."""
    try:
        with _pickles(path) as file:
            opcode, value, _ = next(pickletools.genops(file))
            return int(value or 0) if opcode.name == "PROTO" else 0
    except Exception:  # not a pickle
        return 0


@contextmanager
def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """Open what holds the pickles of a file."""
    with ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            yield stack.enter_context(archive.open(f"{archive.namelist()[0].partition('/')[0]}/data.pkl"))
        else:
            yield stack.enter_context(path.open("rb"))


def _check_names(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse data and languages that would mislead commands, which use them as arguments and in file names.

    Raises:
        ValueError: says which.
    """
    for name, value in settings.items():
        elsewhere = name in ("source_lang", "target_lang") and os.sep in str(value)
        if elsewhere or str(value).startswith("--"):
            raise ValueError(
                f"{path} has task.{name}={str(value)!r:.200}, which a command could mistake for an option or a path; "
                "use a checkpoint from someone you trust."
            )


def _has_settings(state: State) -> bool:
    return isinstance(state.get("cfg"), dict) or isinstance(state.get("args"), Namespace)


def group(state: State, name: str) -> dict[str, Any]:
    """Return a group of settings, such as ``model``; changing it changes ``state``.

    Checkpoints from before fairseq 0.10.2 have all settings in one group.
    """
    if not isinstance(state.get("cfg"), dict):
        settings: Namespace = state["args"]
        return vars(settings)
    values = state["cfg"].get(name)
    if values is None:
        values = state["cfg"][name] = {}
    return vars(values) if isinstance(values, Namespace) else values


def common_settings(state: State) -> dict[str, dict[str, Any]]:
    """Return the groups of settings that all ranks have in common; none where they are in one group with all others.

    A part of fairseq that declares no options, such as ``--optimizer sgd``, is saved with those of all groups.
    """
    cfg = state.get("cfg")
    if not isinstance(cfg, dict):
        return {}
    declared = {name for values in cfg.values() if isinstance(values, Mapping) for name in values}
    return {
        name: {
            setting: value
            for setting, value in group(state, name).items()
            if setting not in declared or not isinstance(cfg[name], Namespace)
        }
        for name in OF_THE_TRAINING
    }


def differing(
    before: Mapping[str, Any], after: Mapping[str, Any], groups: Mapping[str, tuple[str, ...] | None]
) -> list[tuple[str, Any, Any]]:
    """Return the settings that two configurations have both, and that differ: name, such as model.dropout, and values.

    Args:
        before: groups of settings, of fairseq.
        after: the same.
        groups: what is compared in which group; None: all.
    """
    found = []
    for name, settings in groups.items():
        one, other = before.get(name), after.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):  # None where a training has no such part
            compared = [setting for setting in settings or one if setting in one and setting in other]
            found += [(f"{name}.{setting}", one[setting], other[setting]) for setting in compared]
    return [(name, one, other) for name, one, other in found if one != other and name not in OF_THE_MACHINES]


def num_experts(state: State) -> int:
    """Return N, the experts of a layer over all ranks; 0 for a model without experts."""
    return int(group(state, "model").get("moe_expert_count", 0))


def trained_world_size(state: State) -> int:
    """Return the number of processes of the training."""
    return int(group(state, "distributed_training").get("distributed_world_size", 1))


def suffix(state: State) -> str:
    """Return what the training added to the file's name."""
    return str(group(state, "checkpoint").get("checkpoint_suffix") or "")


def num_updates(state: State) -> int | None:
    """Return the number of updates so far; None if the file does not say."""
    history = state.get("optimizer_history") or [{}]
    updates = history[-1].get("num_updates")
    return None if updates is None else int(updates)


def run(state: State) -> str | None:
    """Return what the training called itself; None if it was of version 0.2 or earlier, or of fairseq alone."""
    return (state.get("extra_state") or {}).get("run")


def epoch(state: State) -> int | None:
    """Return the epoch in which the checkpoint was written; None if the file does not say."""
    return _iterator(state).get("epoch")


def _iterator(state: State) -> dict[str, Any]:
    return (state.get("extra_state") or {}).get("train_iterator") or {}


def set_rank(state: State, shard: Shard, previous: int) -> None:
    """Make ``state`` that of a rank: its configuration, and its position in the epoch.

    Args:
        state: changed in place.
        shard: rank and number of ranks; a single one keeps what the configuration says of the training.
        previous: number of ranks so far.
    """
    single = shard.world_size == 1
    group(state, "checkpoint")["checkpoint_suffix"] = "" if single else rank_suffix(shard.rank)
    if not single:
        group(state, "distributed_training").update(
            distributed_world_size=shard.world_size, distributed_rank=shard.rank
        )
    iterator = _iterator(state)
    if iterations := iterator.get("iterations_in_epoch"):
        # of one rank: with fewer ranks each has more batches of the epoch
        batches = iterator.setdefault("batches_in_epoch", iterations * previous)
        iterator.setdefault("num_shards", previous)
        iterator["iterations_in_epoch"] = math.ceil(batches / shard.world_size)


def first_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return for each tensor the first name of the same memory: tied parameters have several names."""
    first: dict[tuple[int, torch.Size], str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.shape), name)
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)
    }


def parameters(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the parameters of a state dict, each once, in the order of ``Module.parameters()``."""
    return {
        name: tensors[name]
        for name, first in first_names(tensors).items()
        if name == first and tensors[name].is_floating_point() and not BUFFER.fullmatch(name)
    }


def shared_tensors(state: State) -> dict[str, Tensor]:
    """Return the tensors of the model that all ranks have in common."""
    return {key: value for key, value in state["model"].items() if isinstance(value, Tensor) and MARK not in key}


def expert_tensors(state: State) -> dict[Place, Tensor]:
    """Return all tensors stacked over experts in dimension 0, by place: of the model, averages of it, the optimizer.

    Raises:
        ValueError: the optimizer's state does not fit the model, or cannot be split by experts.
    """
    found: dict[Place, Tensor] = {}
    for key, tree in state.items():
        if key != OPTIMIZER:
            found.update(_named_experts(tree, (key,)))
    for index, (name, parameter) in optimizer_parameters(state).items():
        for key, tensor in _optimizer_tensors(state, index).items() if MARK in name else ():
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer's {key} of {name} has the shape {tuple(tensor.shape)}, which cannot be split by "
                    f"experts; {_HINT}."
                )
            found[OPTIMIZER, "state", index, key] = tensor
    return found


def of_experts(place: Place) -> bool:
    """Whether a place that ranks have in common is that of a tensor stacked over experts."""
    return place[0] == OPTIMIZER or MARK in str(place[-1])


def _named_experts(tree: object, place: Place) -> Iterator[tuple[Place, Tensor]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(value, Tensor) and MARK in str(key):
                yield (*place, key), value
            else:
                yield from _named_experts(value, (*place, key))


def optimizer_parameters(state: State) -> dict[int, tuple[str, Tensor]]:
    """Return name and value of the parameter that each number in the optimizer's state stands for.

    torch numbers the trainable parameters of model and criterion in their order, which is that of the state dict.

    Raises:
        ValueError: the number or the shapes of the optimizer's tensors are not those of the parameters.
    """
    optimizer = state.get(OPTIMIZER)
    if not optimizer:
        return {}
    named = [*parameters(state["model"]).items(), *parameters(state.get("criterion") or {}).items()]
    groups = optimizer.get("param_groups", [])
    if len(groups) != 1 or sorted(groups[0]["params"]) != list(range(len(named))):
        numbers = sum(len(group["params"]) for group in groups)
        raise ValueError(
            f"the optimizer's state has {len(groups)} groups with {numbers} parameters, but the model {len(named)} "
            "parameters in one group, so that the state of the experts cannot be told apart (--fp16 needs "
            f"--fp16-no-flatten-grads, and frozen parameters are not supported); {_HINT}."
        )
    for index, (name, parameter) in enumerate(named):
        shapes = [tensor.shape for tensor in _optimizer_tensors(state, index).values()]
        if shapes and parameter.shape not in shapes:
            raise ValueError(
                f"the optimizer's state of parameter {index} has the shape {tuple(shapes[0])}, but {name} has "
                f"{tuple(parameter.shape)}, so that the state of the experts cannot be told apart; {_HINT}."
            )
    return dict(enumerate(named))


def _optimizer_tensors(state: State, index: int) -> dict[str, Tensor]:
    """Return the tensors, except for scalars, that the optimizer keeps of a parameter."""
    kept = state[OPTIMIZER]["state"].get(index, {})
    return {key: value for key, value in kept.items() if isinstance(value, Tensor) and value.dim() > 0}


def put(state: State, place: Place, tensor: Tensor) -> None:
    """Replace the tensor at a place."""
    tree: Any = state
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = tensor


def place_name(place: Place) -> str:
    """Return a place in words."""
    return "/".join(map(str, place))
