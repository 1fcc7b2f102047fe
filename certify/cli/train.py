"""``certify train``: a network that certifies, from a recipe; evaluated and exported at the end."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import count, fraction, radius, seconds, seed
from certify.cli.campaigns import kept
from certify.cli.inputs import about
from certify.cli.streams import say
from certify.core.errors import UsageError

if TYPE_CHECKING:
    from certify.importers.datasets import Images
    from certify.training.session.recipe import Recipe

_EPILOG = """CONFIG is a TOML file; its keys are those of the options, with _ for -, and

  regularise, l1       weights of Shi's regularisers and of the sum of absolute weights
  small_box, shrink    of SABR; fusion = true, of CROWN-IBP
  clip = 10.0          longest gradient
  decay = 0.2          of the rate, at 80 % and 90 % of the epochs
  kappa_end, beta_end  weights of clean loss and linear bound after the ramp
  attack_steps, attack_step, attack_decay, attack_enlarge   inside the losses, in radii
  every = 1            epochs between two checkpoints and validations
  threads = 1          of torch: the same number gives the same bits

Options win over the file. The epoch is chosen on held-out training images; the test images are
looked at once, at the end. The same command goes on where it was interrupted and ends in the same
weights. DIR then holds recipe.json, metrics.jsonl, last.pt, best.pt, weights.pt, model.onnx,
eval/ (see certify eval) and, with --queries N, queries/ and instances.csv for certify bench."""
_OPTIONS = ("data", "eps", "norm", "method", "arch", "epochs", "warmup", "ramp", "batch", "rate",
            "alpha", "validation", "seed")


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "train", help="train a network that certifies", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a classifier whose robustness can be proved.")
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a .toml file")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the run")
    parser.add_argument("--data", metavar="DATA",
                        help="'digits', .npz, MNIST's folder, or a folder of images")
    parser.add_argument("--eps", type=radius, metavar="R", help="radius, for example 8/255")
    parser.add_argument("--norm", choices=("inf", "2", "1"), help="default: inf")
    parser.add_argument("--method", help="standard, pgd, ibp, crown-ibp, crown, alpha, sabr, "
                        "cc-ibp, mtl-ibp, exp-ibp, taps, staps or learned-slopes (default: ibp)")
    parser.add_argument("--arch", help="mlp, cnn3, dm-small, dm-medium, dm-large, cnn5, cnn7, "
                        "resnet-small ..., or package.module:function (default: mlp)")
    parser.add_argument("--epochs", type=count, metavar="N")
    parser.add_argument("--warmup", type=whole, metavar="N", help="epochs at radius 0")
    parser.add_argument("--ramp", type=whole, metavar="N", help="epochs while the radius grows")
    parser.add_argument("--batch", type=count, metavar="N", help="images per step")
    parser.add_argument("--rate", type=fraction, metavar="R", help="learning rate of Adam")
    parser.add_argument("--alpha", type=fraction, metavar="A",
                        help="share of the bound in CC-, MTL- and Exp-IBP")
    parser.add_argument("--validation", type=fraction, metavar="SHARE",
                        help="of the training images, to choose the epoch by")
    parser.add_argument("--seed", type=seed, metavar="N")
    parser.add_argument("--limit", type=count, metavar="N", help="test images of the evaluation")
    parser.add_argument("--queries", type=count, metavar="N",
                        help="write a VNN-LIB query for each of the first N test images")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S",
                        help="time limit of a query (default: 60)")
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    parser.set_defaults(run=run, verbose=False)


def whole(text: str) -> int:
    """A whole number from 0 to 100000.

    Raises:
        argparse.ArgumentTypeError: not such a number.
    """
    return 0 if text == "0" else count(text)


def run(options: argparse.Namespace) -> int:
    """Train, export, evaluate; the exit code is 0."""
    from certify.cli.eval import run as evaluate
    from certify.importers.datasets import load_images

    recipe = _recipe(options)
    with about(recipe.data):
        images, test = (load_images(recipe.data, part) for part in ("train", "test"))
    out = Path(options.out)
    _train(recipe, images, test, out, options)
    return evaluate(_evaluation(recipe, out, options))


def _recipe(options: argparse.Namespace) -> Recipe:
    from certify.training.session.recipe import read_recipe, recipe_from

    given = {name: getattr(options, name) for name in _OPTIONS
             if getattr(options, name) is not None}
    if options.config is not None:
        return read_recipe(options.config, given)
    if "data" not in given or "eps" not in given:
        raise UsageError("give a CONFIG.toml, or --data and --eps; see certify train --help")
    return recipe_from(given, "the options")


def _train(recipe: Recipe, images: Images, test: Images, out: Path,
           options: argparse.Namespace) -> None:
    """Train, and write weights, network and queries."""
    import torch

    from certify.core.errors import BadInput
    from certify.training.session.export import MODEL, export_onnx, write_queries
    from certify.training.session.loop import train
    from certify.training.session.store import write_state

    if test.shape != images.shape:
        raise BadInput(f"{recipe.data}: training images are {images.shape}, test images "
                       f"{test.shape}")
    with kept(out, "the last checkpoint"):
        model = train(recipe, images, out, _Teller(options.quiet))
    write_state(out / "weights.pt", dict(model.state_dict()))
    with torch.no_grad():
        export_onnx(model, images.shape, out / MODEL)
    if options.queries:
        chosen = test.take(slice(0, options.queries))
        write_queries(chosen, recipe.eps, images.num_classes, out, options.timeout)


def _evaluation(recipe: Recipe, out: Path, options: argparse.Namespace) -> argparse.Namespace:
    """What ``certify eval`` is asked about the exported network."""
    return argparse.Namespace(
        model=str(out / "model.onnx"), factory=None, data=recipe.data, split="test",
        eps=[recipe.eps], norm=recipe.norm, verifier="union", attack="full",
        timeout=options.timeout, semantics="real", limit=options.limit, out=str(out / "eval"),
        shard=None, workers=1, seed=recipe.seed, device="cpu", memory=None,
        quiet=options.quiet, verbose=False)


class _Teller:
    """A line on stderr now and then: where training is, and when it will end."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._begun, self._first = quiet, time.monotonic(), -1
        self._told = -1e9

    def __call__(self, line: dict[str, Any], epochs: int) -> None:
        """An epoch is over."""
        now, epoch = time.monotonic(), line["epoch"] + 1
        if self._first < 0:
            self._first = epoch - 1
            if self._first and not self._quiet:
                say(f"{self._first} of {epochs} epochs done before, going on")
        if self._quiet or (now - self._told < 1 and epoch < epochs):
            return
        self._told = now
        left = (now - self._begun) / (epoch - self._first) * (epochs - epoch)
        words = [f"epoch {epoch}/{epochs}", f"eps {line['eps']:.4g}", f"loss {line['loss']:.4f}"]
        if "validation_clean" in line:
            words.append(f"validation clean {100 * line['validation_clean']:.1f} %, robust "
                         f"{100 * line['validation_robust_estimate']:.1f} % (estimate)")
        say(f"{', '.join(words)}, ETA {int(left // 60):02d}:{int(left % 60):02d}")
