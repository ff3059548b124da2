"""Every workaround for fairseq and torch versions, each with its reason. Importing applies the global ones."""

import atexit

from fairseq import checkpoint_utils, file_utils, utils
from fairseq.data import FastaDataset, data_utils, iterators, language_pair_dataset, token_block_dataset
from fairseq.dataclass import utils as dataclass_utils
from fairseq.models import BaseFairseqModel
from fairseq.modules import AdaptiveSoftmax, LayerDropModuleList, dynamic_crf_layer
from fairseq.nan_detector import NanDetector
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

from moec_fairseq.compat.checkpoints import (
    allow_fairseq_checkpoints,
    keep_crashes_apart,
    load_together,
    point_to_merge,
    save_whole,
)
from moec_fairseq.compat.languages import read_codes_with_hyphens
from moec_fairseq.compat.precision import (
    amp_on_cpu,
    bf16_without_tpu,
    copy_full_precision,
    half_if_memory_efficient,
    keep_full_precision,
    save_full_precision,
)
from moec_fairseq.compat.ranks import (
    check_before_training,
    clip_experts_too,
    drop_same_layers,
    fail_as_one,
    keep_expert_marks,
    seed_layer_drop,
    try_once,
    wait_for_gloo,
    watch_batches,
)
from moec_fairseq.compat.resuming import (
    EpochBatches,
    begin_with_the_first_epoch,
    go_on_as_if_never_stopped,
    load_counters,
    save_counters,
    save_progress,
    say_what_changed,
)
from moec_fairseq.compat.steps import NumpyAsItWas, keep_last_batch, look_for_nan_forward, train_adaptive_softmax
from moec_fairseq.compat.untrusted import (
    InsideTarFile,
    evaluate_literals_only,
    load_without_orders,
    quote_for_shell,
)

allow_fairseq_checkpoints()
atexit.register(wait_for_gloo)
dataclass_utils.override_module_args = bf16_without_tpu(dataclass_utils.override_module_args)
Trainer.__init__ = half_if_memory_efficient(check_before_training(Trainer.__init__))
Trainer.train_step = fail_as_one(Trainer.train_step)
Trainer.valid_step = try_once(Trainer.valid_step)
Trainer._set_seed = seed_layer_drop(Trainer._set_seed)
LayerDropModuleList.__iter__ = drop_same_layers(LayerDropModuleList.__iter__)
NanDetector.__init__ = look_for_nan_forward(NanDetector.__init__)
checkpoint_utils.save_checkpoint = save_whole(checkpoint_utils.save_checkpoint)
checkpoint_utils.load_checkpoint = go_on_as_if_never_stopped(load_together(checkpoint_utils.load_checkpoint))
checkpoint_utils.load_model_ensemble_and_task = point_to_merge(checkpoint_utils.load_model_ensemble_and_task)
Trainer.load_checkpoint = say_what_changed(Trainer.load_checkpoint)
Trainer.save_checkpoint = keep_crashes_apart(save_progress(Trainer.save_checkpoint))
Trainer.get_train_iterator = begin_with_the_first_epoch(Trainer.get_train_iterator)
iterators.EpochBatchIterator = EpochBatches
ReduceLROnPlateauLRSchedule.state_dict = save_counters(ReduceLROnPlateauLRSchedule.state_dict)
ReduceLROnPlateauLRSchedule.load_state_dict = load_counters(ReduceLROnPlateauLRSchedule.load_state_dict)
FairseqTask.train_step = watch_batches(amp_on_cpu(FairseqTask.train_step))
utils.clip_grad_norm_ = clip_experts_too(utils.clip_grad_norm_)
Trainer.state_dict = save_full_precision(Trainer.state_dict)
BaseFairseqModel.load_state_dict = keep_full_precision(BaseFairseqModel.load_state_dict)
Trainer._build_optimizer = copy_full_precision(Trainer._build_optimizer)
FP16Optimizer.build_fp32_params = classmethod(keep_expert_marks(FP16Optimizer.build_fp32_params))
AdaptiveSoftmax.get_log_prob = train_adaptive_softmax(AdaptiveSoftmax.get_log_prob)
for module in (data_utils, language_pair_dataset, token_block_dataset, dynamic_crf_layer):
    module.np = NumpyAsItWas()
data_utils.batch_by_size = keep_last_batch(data_utils.batch_by_size)
data_utils.infer_language_pair = read_codes_with_hyphens(data_utils.infer_language_pair)
checkpoint_utils.load_checkpoint_to_cpu = load_without_orders(checkpoint_utils.load_checkpoint_to_cpu)
FastaDataset._build_index = quote_for_shell(FastaDataset._build_index)
file_utils.tarfile = InsideTarFile
evaluate_literals_only()
