"""LayerDrop with experts in the layers: what is dropped on one rank must be dropped on all."""

from .ranks import on_ranks
from .training import EXACT, batch, build, corpus

DROPPED = (
    "--encoder-layers", "4", "--decoder-layers", "4", "--encoder-moe-layers", "2,4", "--decoder-moe-layers", "2,4",
    "--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5", "--attention-dropout", "0.1", "--dropout", "0.1",
)  # fmt: skip


def train(rank, world_size, folder, flags, first, last):
    """Train from update ``first``, with batches of another shape on each rank; return the layers of each pass."""
    task, trainer = build(folder, world_size, rank, *EXACT, *DROPPED, *flags)
    trainer.set_num_updates(first)
    trainer._dummy_batch = batch(task, corpus(task, 0, 2))
    model, ran = trainer.get_model(), []
    for number, layer in enumerate([*model.encoder.layers.children(), *model.decoder.layers.children()]):
        layer.register_forward_hook(lambda *_, number=number: ran[-1].append(number))
    model.register_forward_pre_hook(lambda *_: ran.append([]))
    for update in range(first, last):
        micro_batches = 2 if update % 5 == 0 else 1
        samples = [batch(task, corpus(task, 4 * update + 2 * m + rank, 2 + 3 * rank)) for m in range(micro_batches)]
        if rank == 1 and update % 7 == 0:
            samples[-1] = None  # this rank has run out of data
        trainer.train_step(samples)
    return ran


def test_sixty_updates_on_two_ranks_drop_the_same_layers(dictionaries):
    first, second = on_ranks(2, train, dictionaries, (), 0, 60)
    assert first == second and len(first) == 60 + 12
    assert first[0] != first[1] and len(set(map(tuple, first))) > 40
    # a training that is started again in the middle, and recomputes its layers
    for again in on_ranks(2, train, dictionaries, ("--checkpoint-activations",), 55, 60):
        assert [sorted(set(ran)) for ran in again] == first[55 + 11 :]
