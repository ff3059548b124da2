"""Any range of experts out of the files of a checkpoint."""

from tqdm import tqdm

from moec_fairseq.checkpoint.loading import State
from moec_fairseq.checkpoint.places import expert_tensors, put
from moec_fairseq.checkpoint.shards import Checkpoint


def assemble(source: Checkpoint, experts: range) -> State:
    """Return the checkpoint with just these experts; everything else is that of rank 0.

    One file at a time is read beside the result.

    Args:
        source: where the experts come from.
        experts: numbers of experts, 0 to N − 1; a tensor (N, …) of the whole model becomes (len(experts), …).
    """
    state = source.load(0)
    results = {place: t.new_empty(len(experts), *t.shape[1:]) for place, t in expert_tensors(state).items()}
    # the ranks after these hold copies
    shards = [source.shard(rank) for rank in range(source.shard(0).num_ranks)]
    overlaps = {s: range(max(s.experts.start, experts.start), min(s.experts.stop, experts.stop)) for s in shards}
    needed = {shard: overlap for shard, overlap in overlaps.items() if overlap}
    with tqdm(desc="join", total=len(needed) * len(results), unit="tensor", leave=False, disable=None) as bar:
        for shard, overlap in needed.items():
            tensors = expert_tensors(state if shard.rank == 0 else source.load(shard.rank))
            for place, result in results.items():
                own = tensors[place][overlap.start - shard.experts.start : overlap.stop - shard.experts.start]
                result[overlap.start - experts.start : overlap.stop - experts.start] = own
                bar.update()
    for place, result in results.items():
        put(state, place, result)
    return state
