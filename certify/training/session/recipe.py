"""What to train and how: one frozen value, from a TOML file or from options."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from certify.core.errors import BadInput, UsageError, one_line
from certify.importers.files import read_file, shown

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "float": ((int, float), "a number"), "int": ((int,), "a whole number"),
    "str": ((str,), "text"), "bool": ((bool,), "true or false"),
}
_SHARES = ("validation", "kappa_end", "beta_end", "small_box", "shrink")


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        data: see `certify.importers.datasets.load_images`; the test split is never touched.
        eps: radius trained for, in units of images in [0, 1].
        method: ``standard``, or a name of `certify.training.methods.METHODS`.
        arch: a name of `certify.training.architectures.ARCHITECTURES`, or
            ``package.module:function``.
        norm: ``"inf"``, ``"2"`` or ``"1"``.
        epochs, warmup, ramp: in passes over the images: all of them; before the radius begins to
            grow; and while it does.
        batch: images per step.
        rate: learning rate of Adam.
        decay: the rate is multiplied by this at 80 % and 90 % of the epochs.
        clip: gradients longer than this are scaled down.
        regularise: weight of Shi et al.'s regularisers. l1: of the sum of absolute weights.
        alpha: share of the bound in CC-, MTL- and Exp-IBP.
        small_box, shrink: of SABR, see `certify.training.methods.Options`.
        fusion: CROWN-IBP bounds the loss with one row.
        kappa_end, beta_end: weights of the clean loss and of the linear bound after the ramp.
        attack_steps, attack_step, attack_decay, attack_enlarge: inside the losses, see
            `certify.training.Ascent`.
        validation: share of the training images that is held out to choose the epoch; 0: the last
            epoch is the result.
        every: epochs between two validations, and between two checkpoints.
        seed: of everything random.
        threads: of torch; the same number gives the same bits.
    """

    data: str
    eps: float
    method: str = "ibp"
    arch: str = "mlp"
    norm: str = "inf"
    epochs: int = 30
    warmup: int = 1
    ramp: int = 15
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.2
    clip: float = 10.0
    regularise: float = 0.0
    l1: float = 0.0
    alpha: float = 0.1
    small_box: float = 0.4
    shrink: float = 1.0
    fusion: bool = True
    kappa_end: float = 0.0
    beta_end: float = 0.0
    attack_steps: int = 3
    attack_step: float = 0.7
    attack_decay: float = 1.0
    attack_enlarge: float = 1.0
    validation: float = 0.1
    every: int = 1
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.method not in known_methods():
            raise UsageError(f"method {self.method!r} is unknown; choose one of "
                             f"{', '.join(known_methods())}")
        for name in ("epochs", "batch", "every", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        if self.warmup < 0 or self.ramp < 0 or self.warmup + self.ramp > self.epochs:
            raise UsageError(f"warmup {self.warmup} and ramp {self.ramp} must fit into "
                             f"{self.epochs} epochs")
        if not 0 < self.eps < 1 or not self.rate > 0 or not self.clip > 0:
            raise UsageError(f"eps {self.eps:g} must lie between 0 and 1 (images lie in [0, 1]; "
                             "write 8/255 for eight grey levels), rate and clip above 0")
        if not 0 < self.alpha <= 1:
            raise UsageError(f"alpha must lie above 0 and at most at 1, got {self.alpha}")
        if self.norm not in ("inf", "2", "1"):
            raise UsageError(f"norm {self.norm!r} is unknown; choose one of inf, 2, 1")

    @property
    def bounded(self) -> bool:
        """Whether the loss has a bound in it; weights then begin as intervals like them."""
        return self.method not in ("standard", "pgd")

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def known_methods() -> tuple[str, ...]:
    """Standard training, and every method of `certify.training.CertifiedLoss`."""
    from certify.training.methods import METHODS

    return ("standard", *METHODS)


def read_recipe(path: str | Path, changes: Mapping[str, Any]) -> Recipe:
    """The recipe in a TOML file; its keys are the fields of `Recipe`.

    Args:
        changes: fields to put in the place of the file's.

    Raises:
        BadInput: not TOML, an unknown key, or a value of another type.
        UsageError: values that make no recipe.
    """
    try:
        found = tomllib.loads(read_file(path).data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise BadInput(f"{shown(path)}: not TOML: {one_line(problem, 100)}") from None
    return recipe_from({**found, **changes}, shown(path))


def recipe_from(values: Mapping[str, Any], name: str) -> Recipe:
    """A recipe from plain values; ``eps`` may be text such as ``8/255``.

    Raises:
        BadInput: an unknown or a missing key, or a value of another type.
        UsageError: values that make no recipe.
    """
    kinds = {f.name: str(f.type) for f in fields(Recipe)}
    unknown = sorted(set(values) - set(kinds))
    missing = [key for key in ("data", "eps") if key not in values]
    if unknown or missing:
        words = [f"unknown key {one_line(', '.join(unknown), 80)!r}"] if unknown else []
        words += [f"no {' and no '.join(missing)}"] if missing else []
        raise BadInput(f"{name}: {'; '.join(words)}; the keys are {', '.join(kinds)}")
    return Recipe(**{key: _typed(key, value, kinds[key], name) for key, value in values.items()})


def _typed(key: str, value: Any, kind: str, name: str) -> Any:
    if kind == "float" and isinstance(value, str):
        top, slash, bottom = value.partition("/")
        try:
            return float(top) / float(bottom) if slash else float(value)
        except (ValueError, ZeroDivisionError):
            value = None
    wanted, words = _KINDS[kind]
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, wanted):
        raise BadInput(f"{name}: {key} must be {words}, got {one_line(value, 40)!r}")
    return float(str(value)) if kind == "float" else value
