"""Certify a small character network against substituted characters.

Without ``--data`` a generated corpus is used. With it, DIR holds sentences in the format of the
Stanford sentiment data (``stsa.binary.train`` and ``stsa.binary.test``: a label, a space, the
sentence) and, optionally, ``character_substitution_enkey_sub1.json``: neighbours on the keyboard.

The network is trained as in Huang et al. 2019: a quarter of the loss on the sentence, three
quarters on the worst case over substitutions, which is exact through the first layer. Then every
test sentence is certified for one, two and three substitutions, and for one and two the answer of
trying them all is shown beside it.

    python examples/text_substitution.py
    python examples/text_substitution.py --data DIR --epochs 20 --limit 200
"""

from __future__ import annotations

import argparse
import json
import math
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


def bounded(network: Network, x: Tensor, other: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Interval bounds of the logits over at most ``budget`` substitutions.

    ``x`` and ``other`` are embeddings ``(B, L, d)``. A filter's output at t sees five positions;
    what replacing one of them adds is exact, and the worst ``budget`` of them add up.
    """
    z = network.conv(x.transpose(1, 2))
    change = torch.einsum("bld,fdk->bklf", other - x, network.conv.weight)
    places = z.shape[-1]
    moved = torch.stack([change[:, k, k:k + places] for k in range(TAPS)])  # (taps, B, L', F)
    low = moved.clamp(max=0).sort(0).values[:budget].sum(0).transpose(1, 2)
    high = moved.clamp(min=0).sort(0, descending=True).values[:budget].sum(0).transpose(1, 2)
    lower, upper = (torch.relu(z + c).amax(-1) for c in (low, high))
    for layer in (network.hidden, network.out):
        mid, rad = (lower + upper) / 2, (upper - lower) / 2
        centre = layer(mid)
        spread = F.linear(rad, layer.weight.abs())
        lower, upper = centre - spread, centre + spread
        if layer is network.hidden:
            lower, upper = torch.relu(lower), torch.relu(upper)
    return lower, upper


def train(data: Corpus, epochs: int, seed: int = 0, budget: int = 3
          ) -> tuple[nn.Embedding, Network]:
    """Embedding and network; plain for a quarter of the steps, then a growing radius for half."""
    torch.manual_seed(seed)
    embedding, network = nn.Embedding(len(ALPHABET) + 1, WIDTH), Network()
    optimiser = torch.optim.Adam([*embedding.parameters(), *network.parameters()], lr=1e-3)
    x, y = data.train
    steps, count = epochs * math.ceil(len(x) / 64), 0
    for epoch in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            count += 1
            share = min(1.0, max(0.0, 2 * count / steps - 0.5))
            here = embedding(x[index])
            there = here + share * (embedding(data.substitute[x[index]]) - here)
            low, high = bounded(network, here, there, budget)
            worst = torch.where(F.one_hot(y[index], 2).bool(), low, high)
            loss = (1 - 0.75 * share) * F.cross_entropy(network(here), y[index])
            loss = loss + 0.75 * share * F.cross_entropy(worst, y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
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
    """Whether the label is proved over all substitutions, by `certify.verify` without attack."""
    row, label = data.test[0][index], int(data.test[1][index])
    region = certify.Substitutions(
        embedding(row).numpy(), embedding(data.substitute[row])[:, None].numpy(), budget)
    found = certify.verify(graph, region, certify.Spec.classify(label, 2), timeout=10.0,
                           method="crown-ibp", attack=False)
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
