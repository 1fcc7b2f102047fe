"""`evaluate_transform`: which images keep their label over a whole range of transformations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from certify.bounds.decide import Means
from certify.core.errors import BadInput, UsageError
from certify.core.semantics import Semantics
from certify.evaluation.transformed.attack import grid_points, predictions
from certify.evaluation.transformed.pieces import Block, Pieces
from certify.evaluation.transformed.provers import Grafted, Planed, Task, Wanted, Warped
from certify.semantic.transforms import checked_image, named

if TYPE_CHECKING:
    from certify.core.graph import Graph

METHODS = ("auto", "intervals", "planes", "crown-ibp", "forward", "crown", "alpha")
Prover = Warped | Planed | Grafted
_LADDERS = {True: ("intervals", "planes", "forward", "crown-ibp"), False: ("forward", "crown")}
_FIRST_BLOCK = {True: 8, False: 64}  # pieces in the first blocks tried; keys: moves pixels?


@dataclass(eq=False)
class Finding:
    """What is known about one image.

    Attributes:
        index, label, predicted: of the image; a wrong prediction is not certified anywhere.
        pieces: the question's.
        proved: margins of proved blocks of pieces.
        attacked: parameters ``(M, k)`` at which the label changes; not looked for where the whole
            range is proved.
        seconds: this image's share of the time spent on those judged with it.
    """

    index: int
    label: int
    predicted: int
    pieces: Pieces
    proved: dict[Block, float] = field(default_factory=dict)
    attacked: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    seconds: float = 0.0

    @property
    def certified(self) -> bool:
        """Whether the label is proved over the whole range."""
        return self.pieces.covered(self.proved) == self.pieces.size(self.pieces.whole)

    @property
    def share(self) -> float:
        """Proved share of the pieces."""
        return self.pieces.covered(self.proved) / self.pieces.size(self.pieces.whole)

    def certified_range(self) -> tuple[float, float]:
        """The largest proved interval around the identity; NaN where there is none.

        Raises:
            UsageError: there are several parameters.
        """
        proved = np.zeros(self._one(), dtype=bool)
        for ((a, b),) in self.proved:
            proved[a:b] = True
        return self._around(self.pieces.cuts[0], proved)

    def attacked_range(self) -> tuple[float, float]:
        """The largest interval around the identity in which no attack succeeded."""
        self._one()
        here = named(self.pieces.names)[0].identity
        if self.predicted != self.label or not self.pieces.lower[0] <= here <= self.pieces.upper[0]:
            return (np.nan, np.nan)
        bad = self.attacked[:, 0] if len(self.attacked) else np.zeros(0)
        low = max(bad[bad < here], default=float(self.pieces.lower[0]))
        high = min(bad[bad > here], default=float(self.pieces.upper[0]))
        return (float(low), float(high))

    def _one(self) -> int:
        if len(self.pieces.names) != 1:
            raise UsageError("a range around the identity is about one parameter")
        return self.pieces.counts[0]

    def _around(self, cuts: np.ndarray, proved: np.ndarray) -> tuple[float, float]:
        here = named(self.pieces.names)[0].identity
        if not cuts[0] <= here <= cuts[-1]:
            return (np.nan, np.nan)
        right = int(np.searchsorted(cuts, here, side="right"))
        left = int(np.searchsorted(cuts, here, side="left")) - 1
        high, low = right - 1, left + 1  # cuts reached so far; the identity may be a cut itself
        if right - 1 == left:  # strictly inside a piece
            if not proved[left]:
                return (np.nan, np.nan)
            high, low = left + 1, left
        while high < len(proved) and proved[high]:
            high += 1
        while low > 0 and proved[low - 1]:
            low -= 1
        inside = 0 <= low < high <= len(proved)
        return (float(cuts[low]), float(cuts[high])) if inside else (np.nan, np.nan)

    @property
    def verdict(self) -> str:
        """``"certified"``, ``"attacked"``, ``"misclassified"`` or ``"unknown"``."""
        if self.predicted != self.label:
            return "misclassified"
        if self.certified:
            return "certified"
        return "attacked" if len(self.attacked) else "unknown"


def evaluate_transform(
    network: Graph, images: Any, labels: Any, ranges: Mapping[str, tuple[float, float]],
    **options: Any,
) -> list[Finding]:
    """Certify labels over ranges of image transformations, and attack them.

    Args:
        network: a classifier with one input.
        images: ``(N, C, H, W)``, values in [0, 1]; normalisation belongs to the network.
        labels: ``(N,)``.
        ranges: parameter ranges by name of transformation, in the order they are applied.
        options: fields of `Options`.

    Returns:
        One finding per image, in order.

    Raises:
        BadInput: images, labels or network that do not fit each other.
        UsageError: unknown transformations, ranges or options.

    Blocks in which an attack succeeded are split without being tried.
    """
    return list(sweep(network, images, labels, ranges, Options(**options)))


@dataclass(frozen=True)
class Options:
    """How `evaluate_transform` works.

    Attributes:
        piece: width of the smallest pieces by name of transformation, or of all; default: 64
            pieces per range.
        method: ``"intervals"`` (geometric transformations; fast, for many images together);
            ``"planes"`` (likewise; planes per pixel, then linear bounds of the network);
            ``"crown-ibp"``, ``"forward"``, ``"crown"`` or ``"alpha"`` (linear bounds in the
            parameters); ``"auto"``: from cheap to tight, each on what is still open.
        attack: parameters tried by the attack; 0 for none.
        seconds: after which no further image is taken up; None for no limit.
        semantics, device: see `certify.verify`.
        together: images judged at once; progress and results come in such blocks.
    """

    piece: float | Mapping[str, float] | None = None
    method: str = "auto"
    attack: int = 241
    seconds: float | None = None
    semantics: str = "real"
    device: str = "cpu"
    together: int = 300

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"there is no method {self.method!r} for transformations; choose one "
                             f"of {', '.join(METHODS)}")
        if self.attack < 0 or self.together < 1:
            raise UsageError("attack must be at least 0 and together at least 1")


def sweep(
    network: Graph, images: Any, labels: Any, ranges: Mapping[str, tuple[float, float]],
    options: Options,
) -> Iterator[Finding]:
    """As `evaluate_transform`, image block by image block."""
    pixels = np.asarray(images, dtype=np.float64)
    wanted = np.asarray(labels).astype(np.int64)
    if pixels.ndim != 4 or len(pixels) != len(wanted) or not len(wanted):
        raise BadInput(f"images of shape {pixels.shape} and {len(wanted)} labels do not fit: give "
                       "(N, channels, height, width) and N labels")
    checked_image(pixels.reshape(-1, *pixels.shape[2:]))
    named(tuple(ranges))
    piece = options.piece if isinstance(options.piece, Mapping) else \
        {} if options.piece is None else dict.fromkeys(ranges, options.piece)
    pieces = Pieces.of(ranges, piece)
    means = Means(Semantics(options.semantics), options.device)
    started = time.monotonic()
    for start in range(0, len(pixels), options.together):
        if options.seconds is not None and time.monotonic() - started > options.seconds:
            return
        here = slice(start, start + options.together)
        task = Task(network, pixels[here], wanted[here], pieces, means)
        yield from _judge(task, options, start)


def _judge(task: Task, options: Options, first: int) -> list[Finding]:
    started = time.monotonic()
    identity = np.array([[t.identity for t in task.transforms]])
    clean = predictions(task, identity)[:, 0]
    found = [Finding(first + i, int(y), int(p), task.pieces)
             for i, (y, p) in enumerate(zip(task.labels, clean, strict=True))]
    right = np.flatnonzero(clean == task.labels)
    hit: dict[int, np.ndarray] = {}
    stages = _stages(task, options)
    if isinstance(stages[0][0], Warped):  # cheaper than the attack, which then has less to do
        _prove(task, found, right, stages.pop(0), hit)
    if options.attack:
        _attack(task, [found[i] for i in right if not found[i].certified], first, options.attack)
        hit = {i: f.attacked for i, f in enumerate(found) if len(f.attacked)}
    for stage in stages:
        _prove(task, found, right, stage, hit)
    for finding in found:
        finding.seconds = (time.monotonic() - started) / len(found)
    return found


def _attack(task: Task, open_: Sequence[Finding], first: int, count: int) -> None:
    """Note the parameters of a grid at which a label changes."""
    if not open_:
        return
    here = np.array([f.index - first for f in open_])
    points = grid_points(task, count)
    part = replace(task, images=task.images[here], labels=task.labels[here])
    wrong = predictions(part, points) != part.labels[:, None]
    for finding, where in zip(open_, wrong, strict=True):
        finding.attacked = points[where]


def ladder(names: Sequence[str], options: Options) -> tuple[str, ...]:
    """The methods that are tried on transformations, from cheap to tight.

    Raises:
        UsageError: the method is about other transformations.
    """
    moves = named(names)[0].geometric
    every = all(t.geometric for t in named(names))
    if (options.method == "intervals" and not moves) or (options.method == "planes" and not every):
        raise UsageError(f"method {options.method!r} is about geometric transformations; use crown")
    if options.method != "auto":
        return (options.method,)
    # 'forward' speaks of real arithmetic only, planes of geometric transformations
    barred = {"forward"} if options.semantics == "float32" else set()
    return tuple(n for n in _LADDERS[moves] if n not in barred | (set() if every else {"planes"}))


def _stages(task: Task, options: Options) -> list[tuple[Prover, int]]:
    """Provers from cheap to tight, with the size of the blocks each begins with."""
    size = _FIRST_BLOCK[task.transforms[0].geometric]
    special: dict[str, type[Warped | Planed]] = {"intervals": Warped, "planes": Planed}
    return [(special[n](task) if n in special else Grafted(task, n), size)
            for n in ladder(task.pieces.names, options)]


def _prove(task: Task, found: list[Finding], right: np.ndarray,
           stage: tuple[Prover, int], hit: Mapping[int, np.ndarray]) -> None:
    """Prove blocks, split those that are not, down to single pieces."""
    prover, most = stage
    quick = isinstance(prover, Warped)  # serves all images at once
    open_ = [Wanted(b, images) for b in task.pieces.blocks(most)
             if len(images := _still_open(task.pieces, b, found, right if quick else right[
                 [_worthwhile(found[i], b) for i in right.tolist()]]))]
    while open_:
        failed = list[Wanted]()
        for block, images, margins in prover.prove(_without_hits(task.pieces, open_, hit)):
            for i, margin in zip(images.tolist(), margins.tolist(), strict=True):
                if margin > 0:
                    found[i].proved[block] = margin
        for block, images in open_:
            rest = images[[block not in found[i].proved for i in images.tolist()]]
            halves = task.pieces.split(block)
            for half in halves[1:] if halves is not None and len(rest) else ():
                left = _still_open(task.pieces, half, found, rest)
                if len(left):
                    failed.append(Wanted(half, left))
        open_ = failed


def _still_open(pieces: Pieces, block: Block, found: Sequence[Finding],
                right: np.ndarray) -> np.ndarray:
    """Images for which a block is not covered by what is proved."""
    size = pieces.size(block)
    return right[[pieces.covered(found[i].proved, block) < size for i in right.tolist()]]


def _worthwhile(finding: Finding, block: Block) -> bool:
    """Whether proving a block could still change an image's verdict or its range."""
    if not len(finding.attacked):
        return True
    if len(finding.pieces.names) > 1:
        return False
    (low,), (high,) = finding.pieces.ends(block)
    left, right = finding.attacked_range()
    return bool(low < right and high > left)


def _without_hits(pieces: Pieces, wanted: list[Wanted],
                  hit: Mapping[int, np.ndarray]) -> list[Wanted]:
    """Blocks in which an attack has succeeded cannot be proved: they are split untried."""
    kept = []
    for block, images in wanted:
        low, high = pieces.ends(block)
        free = [i for i in images.tolist()
                if not len(hit.get(i, ())) or not _holds(low, high, hit[i])]
        if free:
            kept.append(Wanted(block, np.array(free)))
    return kept


def _holds(low: np.ndarray, high: np.ndarray, points: np.ndarray) -> bool:
    return bool(((points >= low) & (points <= high)).all(1).any())
