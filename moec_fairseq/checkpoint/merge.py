"""All ranks of a checkpoint in one file."""

from pathlib import Path

from moec_fairseq.checkpoint.assemble import assemble
from moec_fairseq.checkpoint.files import listed, whole_path
from moec_fairseq.checkpoint.settings import set_rank
from moec_fairseq.checkpoint.shards import open_checkpoint, shard_of
from moec_fairseq.checkpoint.writing import output_paths, write_together


def merge(checkpoint: Path, out: Path, optimizer: bool = True) -> None:
    """Write the checkpoint of any number of ranks as one file, for generation and training on one process.

    Args:
        checkpoint: NAME.pt, NAME or NAME-rank-R.pt.
        out: the new NAME.pt.
        optimizer: whether to take the optimizer's state along.

    Raises:
        ValueError: the files of the checkpoint do not fit together.
    """
    source = open_checkpoint(checkpoint, optimizer)
    (file,) = output_paths(whole_path(out), 1)
    whole = shard_of(source.num_experts, 1, 0)
    state = assemble(source, whole.experts)
    set_rank(state, whole, len(source.ranks))
    write_together([(file, state)])
    print(f"{listed(source.ranks)} -> {file}")
