"""All that this plug-in changes in fairseq, torch and Python. Importing it applies the changes.

What a training does differently is in ``MoECTrainer``; the rest is the table of patches below. Branches for single
versions are in ``versions``.
"""

import atexit
import time
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from fairseq import checkpoint_utils, file_utils
from fairseq.criterions.sentence_prediction import SentencePredictionConfig
from fairseq.data import FastaDataset, data_utils, iterators, language_pair_dataset, token_block_dataset
from fairseq.dataclass import utils as dataclass_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.model_parallel.megatron_trainer import MegatronTrainer
from fairseq.models import distributed_fairseq_model
from fairseq.modules import AdaptiveSoftmax, LayerDropModuleList, dynamic_crf_layer
from fairseq.nan_detector import NanDetector
from fairseq.optim import AMPOptimizer
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.trainer import Trainer

from moec_fairseq.compat import checkpoints, data, modules, untrusted, versions
from moec_fairseq.trainer import MoECTrainer

_override_module_args = dataclass_utils.override_module_args


def new_trainer(cls: type[Trainer], *_: Any, **__: Any) -> Trainer:
    """Make every ``Trainer`` a ``MoECTrainer``.

    Reason: fairseq's commands import the class by name before they import the plug-in, and one of them may be the main
    module, or a copy of it in a process that was spawned; what all of them share is the class itself.
    """
    return object.__new__(MoECTrainer if cls is Trainer else cls)


def complete_options(args: Any) -> Any:
    """Let ``--bf16`` mean bfloat16 on the device that there is, and ``--task sentence_prediction`` need no criterion.

    Reason: fairseq's command line takes ``--bf16`` and ``--memory-efficient-bf16`` for the wish for a TPU, on a machine
    with a GPU, too, and stops with an AttributeError about ``xla_device`` where torch_xla is not installed. And it
    looks for two options of that task in those of ``--criterion``, which fairseq-validate takes from the checkpoint
    ("Interpolation key 'criterion.classification_head_name' not found").
    """
    if getattr(args, "task", None) == "sentence_prediction":
        defaults = SentencePredictionConfig()
        args.classification_head_name = getattr(args, "classification_head_name", defaults.classification_head_name)
        args.regression_target = getattr(args, "regression_target", defaults.regression_target)
    other_device = getattr(args, "cpu", False) or torch.cuda.is_available() or find_spec("torch_xla") is None
    if getattr(args, "bf16", False) and other_device:
        args.tpu = False
    return _override_module_args(args)


class Patch(NamedTuple):
    """A name in fairseq that gets another value when the plug-in is imported.

    Attributes:
        owner: module or class of fairseq.
        name: what is replaced there.
        replacement: by what; its docstring has the whole reason.
        why: the reason in a line.
        versions: of fairseq that need it.
        test: where it is tested, in tests/.
    """

    owner: Any
    name: str
    replacement: Any
    why: str
    versions: str
    test: str


ALL = "all"
PATCHES = (
    # training
    Patch(Trainer, "__new__", new_trainer,
          "experts on several ranks, exact resuming; most of what used to be patched", ALL, "test_trainer.py"),
    Patch(MegatronTrainer, "__bases__", (MoECTrainer,),
          "its options are checked, too: it cannot be combined with experts on several ranks", ALL, "test_trainer.py"),
    Patch(dataclass_utils, "override_module_args", complete_options,
          "--bf16 means bfloat16 on the device that there is; sentence_prediction needs no criterion", ALL,
          "compat/test_data.py"),
    Patch(AMPOptimizer, "step", modules.unscale_once,
          "--amp divides gradients by the loss scale once, not twice", ALL, "compat/test_modules.py"),
    Patch(distributed_fairseq_model, "DistributedDataParallel", modules.ddp_of_its_device,
          "--ddp-backend pytorch_ddp works on a CPU, too", ALL, "parallel/test_training.py"),
    Patch(distributed_utils, "all_gather_list", modules.gather_on_its_device,
          "predictions of processes are gathered on a CPU, too, and of any size", ALL, "compat/test_fine_tuning.py"),
    Patch(LayerDropModuleList, "__iter__", modules.drop_same_layers,
          "LayerDrop drops the same layers on all ranks", ALL, "compat/test_modules.py"),
    Patch(AdaptiveSoftmax, "get_log_prob", modules.train_adaptive_softmax,
          "the adaptive softmax can be trained with any criterion", ALL, "compat/test_modules.py"),
    Patch(NanDetector, "__init__", modules.detect_nan_forward,
          "the search for NaN does not fail itself", ALL, "compat/test_modules.py"),
    # checkpoints
    Patch(checkpoint_utils, "save_checkpoint", checkpoints.save_whole,
          "a kill leaves whole files, those of all ranks of one update", ALL, "compat/test_checkpoints.py"),
    Patch(checkpoint_utils, "load_checkpoint", checkpoints.load_together,
          "all ranks resume from one update, each with its own experts", ALL, "compat/test_own_experts.py"),
    Patch(distributed_utils, "_broadcast_object_slow", checkpoints.broadcast_loaded,
          "models without experts resume on several processes", "all, with torch ≥ 2.6", "compat/test_resuming.py"),
    Patch(checkpoint_utils, "load_model_ensemble_and_task", checkpoints.point_to_merge,
          "commands say how to make one file of those of ranks", ALL, "compat/test_checkpoints.py"),
    Patch(iterators, "EpochBatchIterator", checkpoints.EpochBatches,
          "a resumed training has the batches of the undisturbed one", ALL, "compat/test_resuming.py"),
    # data
    Patch(data_utils, "batch_by_size", data.keep_last_batch,
          "no sentence is left out", "fairseq-fixed 0.12.3.1", "compat/test_data.py"),
    Patch(MaskedLMTask, "args", property(data.options_of_subwords),
          "--mask-whole-words finds out where words begin", ALL, "compat/test_data.py"),
    Patch(data_utils, "infer_language_pair", data.read_codes_with_hyphens,
          "languages such as pt-BR are found", ALL, "compat/test_data.py"),
    *(Patch(module, "np", data.NumpyAsItWas(),
            "names that numpy 1.24 and later no longer have", ALL, "compat/test_data.py")
      for module in (data_utils, language_pair_dataset, token_block_dataset, dynamic_crf_layer)),
    # files of others
    Patch(checkpoint_utils, "load_checkpoint_to_cpu", untrusted.load_without_orders,
          "no checkpoint chooses what is imported, run and written", ALL, "compat/test_untrusted.py"),
    Patch(FastaDataset, "_build_index", untrusted.quote_for_shell,
          "no file name is run by the shell", ALL, "compat/test_untrusted.py"),
    Patch(file_utils, "tarfile", untrusted.InsideTarFile,
          "no archive is unpacked outside of its folder", ALL, "compat/test_untrusted.py"),
    *(Patch(module, "eval", untrusted.literal,
            "no option or line of data is run as Python", ALL, "compat/test_untrusted.py")
      for module in untrusted.modules_of_fairseq()),
    *(Patch(module, "ast", untrusted.Literals,
            "an option that is not a literal is named", ALL, "compat/test_untrusted.py")
      for module in untrusted.modules_of_fairseq(with_ast=True)),
)  # fmt: skip

# what is changed when and where it is needed: what, by which function, why
ELSEWHERE = (
    ("the class of each FairseqDropout of a MoEC model", "moec_fairseq.models.dropout.use_cheap_masks",
     "masks are cheap on a CPU; other models keep theirs"),
    ("the class of Transformer layers that get an MoE block", "moec_fairseq.models.layers.give_block",
     "fairseq builds all layers alike, with whatever it hands to them"),
    ("the fused path of a MoEC model's encoder", "moec_fairseq.compat.versions.disable_fused_encoder",
     "fairseq 0.12.2: it knows no MoE block"),
    ("torch.distributed.init_process_group and new_group", "moec_fairseq.launch.worker.wait_at_most",
     "in the ranks of moec train: --rank-timeout instead of torch's limit"),
    ("torch's handler of signals in its launcher", "moec_fairseq.launch.ranks._torch_in_charge",
     "in moec train: a signal that was ignored at its start, as under nohup, stays ignored"),
    ("torch's list of classes that are safe to load", "moec_fairseq.compat.versions.allow_fairseq_checkpoints",
     "it lacks those of fairseq's checkpoints"),
    ("the end of Python", "moec_fairseq.compat.wait_for_gloo", "torch would abort processes that are done"),
)  # fmt: skip


def wait_for_gloo(seconds: float = 0.5) -> None:
    """Let gloo's threads finish what they hold before Python ends.

    Reason: they need Python's lock to let go of the tensors they have sent; once the interpreter has begun to end they
    cannot get it, and torch aborts the process ("terminate called without an active exception", exit code -6) although
    all its work is done. Nothing tells when they are through, but while this sleeps the lock is free for them.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        time.sleep(seconds)


for patch in PATCHES:
    setattr(patch.owner, patch.name, patch.replacement)
versions.allow_fairseq_checkpoints()
atexit.register(wait_for_gloo)
