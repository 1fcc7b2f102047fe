"""Certify a small character network against substituted characters.

Without ``--data`` a generated corpus is used. With it, DIR holds sentences in the format of the
Stanford sentiment data (``stsa.binary.train`` and ``stsa.binary.test``: a label, a space, the
sentence) and, optionally, ``character_substitution_enkey_sub1.json``: neighbours on the keyboard.

The network is trained on sentences and on attacked ones: the substitutions that the gradient likes
best (Ebrahimi et al. 2018). Then every test sentence is decided for one, two and three
substitutions by linear bounds and a search over positions, and for one and two the answer of trying
them all is shown beside it.

    python examples/text_substitution.py
    python examples/text_substitution.py --data DIR --epochs 20 --limit 200
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import certify

LENGTH, WIDTH, FILTERS, TAPS = 120, 48, 96, 5
ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'`-()$%&/*\\\"#@+=_<>[]{}|~^"
KEYBOARD = ("1234567890", "qwertyuiop", "asdfghjkl;", "zxcvbnm,.")
BUDGETS = (1, 2, 3)


@dataclass(frozen=True)
class Corpus:
    """Sentences as symbols ``(N, LENGTH)`` (0 fills up) with labels, and one substitute each."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    substitute: Tensor


class Network(nn.Module):
    """Embeddings ``(B, LENGTH, WIDTH)`` to two logits: convolution, maximum over time, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, FILTERS, TAPS)
        self.hidden = nn.Linear(FILTERS, 32)
        self.out = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Two logits."""
        peak = torch.relu(self.conv(x.transpose(-1, -2))).amax(-1)
        return self.out(torch.relu(self.hidden(peak)))


def symbols(text: str) -> list[int]:
    """Positions in the alphabet, from 1; unknown characters are left out."""
    found = [ALPHABET.find(c) + 1 for c in text.lower()[:LENGTH]]
    return [n for n in found if n > 0]


def read(path: Path) -> tuple[Tensor, Tensor]:
    """A file of labelled sentences."""
    rows, labels = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        label, _, text = line.partition(" ")
        row = symbols(text)
        rows.append(row + [0] * (LENGTH - len(row)))
        labels.append(int(label))
    return torch.tensor(rows), torch.tensor(labels)


def generated(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sentences about films, good and bad."""
    rng = random.Random(seed)
    words = {1: ["wonderful", "brilliant", "moving", "funny", "charming", "superb", "delightful"],
             0: ["dreadful", "tedious", "boring", "clumsy", "lifeless", "awful", "pointless"]}
    things = ["film", "plot", "cast", "story", "ending", "dialogue", "music", "camera"]
    rows, labels = [], []
    for _ in range(count):
        label = rng.randrange(2)
        text = " and ".join(f"the {rng.choice(things)} is {rng.choice(words[label])}"
                            for _ in range(rng.randint(1, 3)))
        row = symbols(text)
        rows.append(row + [0] * (LENGTH - len(row)))
        labels.append(label)
    return torch.tensor(rows), torch.tensor(labels)


def neighbours(table: Path | None) -> Tensor:
    """For every symbol the one it may be replaced by; itself where there is none."""
    found = list(range(len(ALPHABET) + 1))
    pairs = {}
    if table is not None and table.is_file():
        pairs = {a: b[0] for a, b in json.loads(table.read_text()).items() if b}
    else:
        for row in KEYBOARD:
            pairs |= dict(zip(row, row[1:] + row[-2], strict=True))
    for a, b in pairs.items():
        if len(a) == 1 and a in ALPHABET and b in ALPHABET:
            found[ALPHABET.index(a) + 1] = ALPHABET.index(b) + 1
    return torch.tensor(found)


def corpus(folder: Path | None) -> Corpus:
    """The data in ``folder``, or the generated ones."""
    if folder is None:
        return Corpus(generated(1500, 0), generated(200, 1), neighbours(None))
    return Corpus(read(folder / "stsa.binary.train"), read(folder / "stsa.binary.test"),
                  neighbours(folder / "character_substitution_enkey_sub1.json"))


def attacked(embedding: nn.Embedding, network: Network, batch: tuple[Tensor, Tensor],
             substitute: Tensor, budget: int = 2) -> Tensor:
    """Sentences with the ``budget`` substitutions that raise the loss most, to first order."""
    x, y = batch
    here = embedding(x).detach().requires_grad_()
    loss = F.cross_entropy(network(here), y, reduction="sum")
    (slope,) = torch.autograd.grad(loss, here)
    other = substitute[x]
    gain = ((embedding(other).detach() - here.detach()) * slope).sum(-1)
    top = gain.topk(budget, 1)
    chosen = torch.zeros_like(gain).scatter_(1, top.indices, top.values) > 0
    return torch.where(chosen, other, x)


def train(data: Corpus, epochs: int, seed: int = 0) -> tuple[nn.Embedding, Network]:
    """Embedding and network."""
    torch.manual_seed(seed)
    embedding, network = nn.Embedding(len(ALPHABET) + 1, WIDTH), Network()
    optimiser = torch.optim.Adam([*embedding.parameters(), *network.parameters()], lr=1e-3)
    x, y = data.train
    for epoch in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            batch = x[index], y[index]
            bad = attacked(embedding, network, batch, data.substitute)
            loss = torch.zeros(())
            for share, rows in ((0.3, x[index]), (0.7, bad)):
                logits = network(F.dropout(embedding(rows), 0.1))
                loss = loss + share * F.cross_entropy(logits, y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * (1 - 0.9 * (epoch + 1) / epochs)
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    return embedding.eval(), network.eval()


def variants(row: Tensor, substitute: Tensor, budget: int) -> Iterator[Tensor]:
    """All sentences with at most ``budget`` substitutions, in blocks."""
    places = [int(i) for i in (substitute[row] != row).nonzero()]
    block = []
    for size in range(budget + 1):
        for chosen in combinations(places, size):
            other = row.clone()
            other[list(chosen)] = substitute[row[list(chosen)]]
            block.append(other)
            if len(block) == 2048:
                yield torch.stack(block)
                block = []
    if block:
        yield torch.stack(block)


@torch.no_grad()
def exhaustive(embedding: nn.Embedding, network: Network, data: Corpus, index: int,
               budget: int) -> bool:
    """Whether no sentence within the budget changes the label."""
    row, label = data.test[0][index], int(data.test[1][index])
    return all(bool((network(embedding(block)).argmax(1) == label).all())
               for block in variants(row, data.substitute, budget))


@torch.no_grad()
def certified(embedding: nn.Embedding, network: Network, data: Corpus, index: int,
              budget: int, graph: certify.core.graph.Graph) -> bool:  # noqa: PLR0913
    """Whether the label is proved over all substitutions, by `certify.verify`."""
    row, label = data.test[0][index], int(data.test[1][index])
    region = certify.Substitutions(
        embedding(row).numpy(), embedding(data.substitute[row])[:, None].numpy(), budget)
    found = certify.verify(graph, region, certify.Spec.classify(label, 2), timeout=10.0)
    return found.verdict is certify.Verdict.HOLDS


def main() -> None:
    """Train, certify, compare."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the sentences")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--limit", type=int, default=50, help="test sentences")
    options = parser.parse_args()
    for line in report(corpus(options.data), options.epochs, options.limit):
        print("  ".join(f"{value:>12}" for value in line))


def report(data: Corpus, epochs: int, limit: int) -> list[list[str]]:
    """Lines of a table: budget, clean, certified and exhaustive accuracy in per cent."""
    embedding, network = train(data, epochs)
    graph = certify.from_torch(network, torch.zeros(1, LENGTH, WIDTH))
    with torch.no_grad():
        right = (network(embedding(data.test[0][:limit])).argmax(1) == data.test[1][:limit])
    lines = [["budget", "clean", "certified", "exhaustive"]]
    chosen = np.flatnonzero(right.numpy())
    count = len(right)
    for budget in BUDGETS:
        proved = {i for i in chosen if certified(embedding, network, data, i, budget, graph)}
        tried = {i for i in chosen if exhaustive(embedding, network, data, i, budget)} \
            if budget < 3 else None
        if tried is not None and not proved <= tried:
            raise RuntimeError("a proof contradicts a sentence that was tried")
        lines.append([str(budget), f"{100 * len(chosen) / count:.1f}",
                      f"{100 * len(proved) / count:.1f}",
                      "-" if tried is None else f"{100 * len(tried) / count:.1f}"])
    return lines


if __name__ == "__main__":
    main()
