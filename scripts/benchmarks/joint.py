"""What training and pruning at once costs beside the training: an epoch of agent=rlal with its default settings.

usage: python scripts/benchmarks/joint.py [--models resnet20 resnet56] [--images 45000] [--batches 8] [--candidates 3]

As shares of the time that training on so many images takes; each is measured on some batches or candidates, in turn, the best of three
rounds counts:
  alignment   the group lasso on half of all units, forward and backward
  statistics  new batch-norm statistics for every candidate
  measuring   cutting candidates out and measuring them on so many images as agent=rlal takes
  agent       updates of actor, critics, targets, decoder, GRU and embeddings, in the 10th and in the 200th epoch
Images, labels and weights are random: speed does not ask. Ratios within one run mean something, times between runs do not.
"""

import argparse
import time
from functools import partial

import numpy as np
import pandas as pd
import torch

from rlprune.agents.rlal import RLAL, STATE
from rlprune.config import build, conf_dir, load_yaml, shipped
from rlprune.data.base import Augmentation, Images, Normalization, Splits
from rlprune.graph import Slicer, prune, trace
from rlprune.results.origin import Origin
from rlprune.results.tables import to_markdown
from rlprune.rl.episode import Transition
from rlprune.rl.joint import JointLearner
from rlprune.setup import Setup
from rlprune.training.alignment import Alignment
from rlprune.training.evaluate import Evaluator
from rlprune.training.execution import choose_execution
from rlprune.training.fit import Recipe, Trainer, cross_entropy
from rlprune.training.merged import mergeable
from rlprune.training.recover import training_batches
from rlprune.training.refresh import Recalibration

ROUNDS, BATCH, STATISTICS = 3, 128, 512
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def seconds(work):
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def updates(agent, epochs, transitions):
    """What an epoch's updates are, when so many epochs have begun."""
    generator = np.random.default_rng(0)
    learner = JointLearner(agent.learning, agent.modelling, num_features=len(STATE), most=agent.pr_max, epochs=epochs, generator=generator)
    learner.begin(epochs - 1)
    for _ in range(transitions):
        state = generator.random((2, len(STATE)), dtype=np.float32)
        learner.store(Transition(state[0], float(generator.random()), 0.5, state[1], False), int(generator.integers(epochs)))
    return lambda: learner.update(agent.updates * agent.episodes, generator)


def line(model, count, batches, candidates):
    torch.manual_seed(0)
    settings = load_yaml(conf_dir() / "agent/rlal.yaml")
    del settings["_target_"]
    agent = RLAL(**settings)
    execution = choose_execution(device="auto", precision="auto", channels_last="auto", compile=False)
    network = build(shipped("model", model, {}), "model", in_channels=3, num_classes=10).to(execution.device)
    looked_at = min(5000, count // (2 * agent.candidates_per_step))
    images = Images(torch.randint(0, 255, (max(looked_at, BATCH * batches), 3, 32, 32), dtype=torch.uint8), torch.arange(10).repeat(10000))
    images = Images(images.pixels, images.labels[: len(images.pixels)])
    splits = Splits(images, images, Normalization((0.5,) * 3, (0.25,) * 3), tuple("abcdefghij"), Augmentation(crop=4, flip=True))
    origin = Origin("", {}, "", {}, 3, (32, 32), splits.class_names, (0.5,) * 3, (0.25,) * 3)
    setup = Setup(execution, None, splits, origin, 0)
    graph = trace(network.eval(), setup.example(), prove=False)
    keep = {group.name: np.arange(group.num_units // 2, group.num_units) for group in graph.groups}
    few = Splits(Images(images.pixels[: BATCH * batches], images.labels[: BATCH * batches]), *list(vars(splits).values())[1:])
    feed = training_batches(few, BATCH, execution, 0, "x")
    trainer = Trainer(
        network, feed, epochs=100, recipe=Recipe(SGD, "constant", (), 0.1, 0, None, None), execution=execution, description=""
    )
    plain, alignment = cross_entropy(0.0), Alignment(network, graph, keep)
    evaluator = Evaluator(Images(images.pixels[:looked_at], images.labels[:looked_at]), splits.normalization, execution,
                          pairs=mergeable(network, setup.example()))  # fmt: skip
    recalibrate, slicer, small = Recalibration(setup, STATISTICS, 0), Slicer(network, graph), prune(network, graph, keep)
    work = {
        "plain": lambda: trainer.epoch(plain, int),
        "aligned": lambda: trainer.epoch(lambda logits, images, labels: plain(logits, images, labels) + 1e-4 * alignment(), int),
        "statistics": lambda: [recalibrate(small) for _ in range(candidates)],
        "measuring": lambda: [evaluator.accuracy(slicer(keep)) for _ in range(candidates)],
        "agent, 10th": updates(agent, 10, min(agent.learning.replay_size, 10 * agent.episodes * len(graph.groups))),
        "agent, 200th": updates(agent, 200, agent.learning.replay_size),
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(ROUNDS):
        for name, one in work.items():
            best[name] = min(best[name], seconds(one))
    epoch = best["plain"] * count / (BATCH * batches)
    shares = {
        "alignment": best["aligned"] / best["plain"] - 1,
        "statistics": best["statistics"] / candidates * agent.candidates_per_step / epoch,
        "measuring": best["measuring"] / candidates * agent.candidates_per_step / epoch,
        "agent, 10th": best["agent, 10th"] / epoch,
        "agent, 200th": best["agent, 200th"] / epoch,
    }
    total = sum(shares.values()) - shares["agent, 10th"]
    return {"model": model, "epoch s": f"{epoch:.0f}"} | {name: f"{100 * share:.1f} %" for name, share in shares.items()} | {
        "all, 200th": f"{100 * total:.1f} %"
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--images", type=int, default=45000)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=3)
    chosen = parser.parse_args()
    print(to_markdown(pd.DataFrame([line(model, chosen.images, chosen.batches, chosen.candidates) for model in chosen.models])))


if __name__ == "__main__":
    main()
