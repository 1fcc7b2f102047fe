"""Image transformations: against `colorsys`, `scipy.ndimage`, sampling, and each other."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

import certify
from certify.bounds.evaluate import evaluate
from certify.core.claim import Case
from certify.evaluation.transformed.certificates import certificate
from certify.evaluation.transformed.pieces import Pieces
from certify.evaluation.transformed.sweep import Finding
from certify.importers.model_claim import claim_about
from certify.semantic.planes import warped_planes
from certify.semantic.transforms import TRANSFORMS, image_graph, named
from certify.semantic.warp import warped_boxes

named(["hue", "rotate", "blur"])  # registers all
RNG = np.random.default_rng(0)
COLOURS = np.concatenate([RNG.random((3, 99_000)),
                          RNG.integers(0, 4, (3, 1000)) / 3], 1).reshape(3, 250, 400)
SMALL = RNG.random((3, 7, 6))


def transform_at(image: np.ndarray, names: list[str], values: list[float]) -> np.ndarray:
    graph = image_graph(image, names)
    return evaluate(graph, torch.tensor([values], dtype=torch.float64))[0].numpy()


def classifier(seed: int = 0, shape: tuple[int, ...] = (3, 7, 6)) -> certify.core.graph.Graph:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(shape[0], 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.LazyLinear(3))
    net(torch.zeros(1, *shape))
    return certify.from_torch(net, torch.zeros(1, *shape))


@pytest.mark.parametrize(("name", "amount"), [
    ("hue", 75.0), ("hue", -170.0), ("saturation", 0.3), ("saturation", -0.4),
    ("lightness", 0.35), ("lightness", -0.6)])
def test_colours_equal_colorsys(name: str, amount: float) -> None:
    def shifted(r: float, g: float, b: float) -> tuple[float, float, float]:
        h, l, s = colorsys.rgb_to_hls(r, g, b)  # noqa: E741
        if name == "hue":
            h = (h + amount / 360) % 1
        elif name == "saturation":
            s = min(max(s + amount, 0.0), 1.0)
        else:
            l = min(max(l + amount, 0.0), 1.0)  # noqa: E741
        return colorsys.hls_to_rgb(h, l, s)

    wanted = np.array([shifted(*c) for c in COLOURS.reshape(3, -1).T]).T
    found = transform_at(COLOURS, [name], [amount]).reshape(3, -1)
    assert np.abs(found - wanted).max() <= 1e-12


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_the_identity_changes_nothing(name: str) -> None:
    found = transform_at(SMALL, [name], [TRANSFORMS[name].identity])
    assert np.abs(found - SMALL).max() < 1e-12


def inverse_matrix(name: str, value: float) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and shift of (row, column) from the centre, from output to input."""
    c, s = np.cos(np.radians(value)), np.sin(np.radians(value))
    found = {
        "rotate": ([[c, s], [-s, c]], (0, 0)), "scale": (np.eye(2) / (value or 1), (0, 0)),
        "translate-x": (np.eye(2), (0, -value)), "translate-y": (np.eye(2), (-value, 0)),
        "shear": ([[1, 0], [value, 1]], (0, 0)),
    }[name]
    return np.array(found[0]), np.array(found[1], dtype=float)


@pytest.mark.parametrize(("name", "value"), [
    ("rotate", 17.0), ("rotate", -40.0), ("scale", 1.3), ("scale", 0.8), ("translate-x", 1.3),
    ("translate-y", -0.6), ("shear", 0.25)])
def test_geometry_equals_scipy(name: str, value: float) -> None:
    matrix, shift = inverse_matrix(name, value)
    centre = (np.array(SMALL.shape[1:]) - 1) / 2
    wanted = np.stack([affine_transform(c, matrix, centre - matrix @ centre + shift, order=1,
                                        mode="grid-constant") for c in SMALL])
    assert np.abs(transform_at(SMALL, [name], [value]) - wanted).max() < 1e-12


def test_a_picture_turns_counter_clockwise_and_moves_right_and_down() -> None:
    image = np.zeros((1, 5, 5))
    image[0, 2, 4] = 1  # to the right of the centre
    assert transform_at(image, ["rotate"], [90.0])[0, 0, 2] == pytest.approx(1)
    image = np.zeros((1, 5, 5))
    image[0, 2, 2] = 1
    assert transform_at(image, ["translate-x", "translate-y"], [1.0, 2.0])[0, 4, 3] == 1


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@pytest.mark.parametrize("method", ["ibp", "crown", "forward"])
def test_bounds_contain_sampled_images(name: str, method: str) -> None:
    low, high = TRANSFORMS[name].typical
    graph = image_graph(SMALL, [name])
    for a, b in ((low, high), (low + 0.4 * (high - low), low + 0.5 * (high - low))):
        found = certify.bound(graph, certify.Box([a], [b]), method)
        theta = torch.from_numpy(RNG.uniform(a, b, (500, 1)))
        values = evaluate(graph, theta)
        assert (values >= found.lower).all()
        assert (values <= found.upper).all()
        assert float((found.upper - found.lower).max()) < 8


@pytest.mark.parametrize("names", [
    ["rotate"], ["scale", "rotate"], ["translate-x", "translate-y"],
    ["shear", "rotate", "translate-y"]])
def test_warped_boxes_contain_samples_and_are_those_of_the_graph(names: list[str]) -> None:
    chosen = named(names)
    graph = image_graph(SMALL, names)
    for width in (0.0, 0.01, 0.2):
        low = np.array([t.typical[0] + 0.6 * (t.typical[1] - t.typical[0]) for t in chosen])
        high = low + width * np.array([t.typical[1] - t.typical[0] for t in chosen])
        least, most = (a[0] for a in warped_boxes(SMALL[None], chosen, low, high))
        theta = torch.from_numpy(low + (high - low) * RNG.random((2000, len(names))))
        values = evaluate(graph, theta).numpy()
        assert (values >= least).all()
        assert (values <= most).all()
        by_graph = certify.bound(graph, certify.Box(low, high), "ibp")
        assert (by_graph.lower.numpy() <= least + 1e-9).all()
        assert (by_graph.upper.numpy() >= most - 1e-9).all()
        assert width or np.allclose(least, most, atol=1e-9)


def test_a_wide_rotation_knows_the_turning_points_of_the_circle() -> None:
    low, high = warped_boxes(SMALL[None], named(["rotate"]), np.array([-200.0]), np.array([200.0]))
    for angle in (-180.0, -90.0, 0.0, 90.0, 180.0):
        there = transform_at(SMALL, ["rotate"], [angle])
        assert (there >= low[0]).all()
        assert (there <= high[0]).all()


@pytest.mark.parametrize("names", [["rotate"], ["translate-x", "translate-y"], ["shear", "scale"],
                                   ["rotate", "scale", "shear"]], ids="+".join)
def test_planes_contain_samples_and_are_narrower_than_boxes(names: list[str]) -> None:
    rng = np.random.default_rng(3)
    chosen, images = named(names), rng.random((3, 3, 7, 6))
    for width in (0.0, 0.02, 0.2):
        low = np.array([t.identity for t in chosen]) - 0.01
        high = low + width * (1 + 9 * np.array([t.name == "rotate" for t in chosen]))
        region = warped_planes(images, chosen, low, high).batched((3, 7, 6))
        lower, upper = warped_boxes(images, chosen, low, high)
        theta = low + (high - low) * rng.random((50, len(names)))
        theta[:2] = low, high
        for n, image in enumerate(images):
            points = np.stack([transform_at(image, names, t.tolist()) for t in theta])
            one = certify.Zonotope(region.center[n:n + 1], region.generators[n:n + 1],
                                   region.radius[n:n + 1]).batched((3, 7, 6))
            assert one.contains(points[None, :6], 1e-12).all()
            share = (theta - low) / np.where(high > low, high - low, 1.0) * 2 - 1
            rest = points.reshape(50, -1) - (share @ one.generators[0]) * (high > low).any() \
                - one.center.reshape(1, -1)
            assert (np.abs(rest) <= one.radius.reshape(1, -1) + 1e-12).all()
        assert float(region.radius.mean()) <= 0.5 * float((upper - lower).mean()) + 1e-9


@pytest.mark.parametrize("ranges", [{"rotate": (-8.0, 8.0)},
                                    {"translate-x": (-0.4, 0.4), "scale": (0.97, 1.03)}],
                         ids="+".join)
def test_what_planes_prove_holds_and_its_certificate_is_checked(ranges: dict) -> None:
    rng, network = np.random.default_rng(3), classifier(1)
    images = rng.random((8, 3, 7, 6))
    labels = evaluate(network, torch.from_numpy(images)[:, None]).flatten(1).argmax(1).numpy()
    found = {m: certify.evaluate_transform(network, images, labels, ranges, method=m, attack=0,
                                           piece={n: (b - a) / 8 for n, (a, b) in ranges.items()})
             for m in ("intervals", "planes")}
    shares = {m: sum(f.share for f in each) for m, each in found.items()}
    assert shares["planes"] > shares["intervals"]
    checked = 0
    for f, image in zip(found["planes"], images, strict=True):
        graph = certify.semantic.transformed(network, image, list(ranges))
        for block in f.proved:
            low, high = f.pieces.ends(block)
            theta = torch.from_numpy(low + (high - low) * rng.random((200, len(ranges))))
            assert (evaluate(graph, theta).flatten(1).argmax(1) == f.label).all()
        if f.certified:
            checked += 1
            assert certify.check(certificate(network, image, f), network)
    assert checked


def test_planes_are_for_geometric_transformations() -> None:
    with pytest.raises(certify.core.errors.UsageError, match="planes"):
        certify.evaluate_transform(classifier(1), np.zeros((1, 3, 7, 6)), [0],
                                   {"rotate": (-1.0, 1.0), "contrast": (0.9, 1.1)}, method="planes")


RANGES = [{"rotate": (-8.0, 8.0)}, {"brightness": (-0.3, 0.3)}, {"hue": (-60.0, 60.0)},
          {"scale": (0.95, 1.05), "brightness": (-0.02, 0.02)}, {"blur": (0.0, 1.0)}]


@pytest.mark.parametrize("ranges", RANGES, ids=lambda r: "+".join(r))
@pytest.mark.parametrize("method", ["auto", "crown-ibp"])
def test_certified_never_contradicts_sampling(ranges: dict, method: str) -> None:
    network = classifier(1)
    images = RNG.random((12, 3, 7, 6))
    labels = evaluate(network, torch.from_numpy(images)[:, None]).flatten(1).argmax(1).numpy()
    found = certify.evaluate_transform(network, images, labels, ranges, method=method, attack=0,
                                       piece={n: (b - a) / 8 for n, (a, b) in ranges.items()})
    assert any(f.proved for f in found)
    for f, image in zip(found, images, strict=True):
        graph = certify.semantic.transformed(network, image, list(ranges))
        for block in f.proved:
            low, high = f.pieces.ends(block)
            theta = torch.from_numpy(low + (high - low) * RNG.random((200, len(ranges))))
            assert (evaluate(graph, theta).flatten(1).argmax(1) == f.label).all()


def test_attacks_and_proofs_exclude_each_other_and_ranges_nest() -> None:
    network = classifier(2)
    images = RNG.random((30, 3, 7, 6))
    labels = evaluate(network, torch.from_numpy(images)[:, None]).flatten(1).argmax(1).numpy()
    found = certify.evaluate_transform(network, images, labels, {"brightness": (-0.6, 0.6)})
    assert {"certified", "attacked"} <= {f.verdict for f in found}
    for f in found:
        assert not (f.certified and len(f.attacked))
        proved, possible = f.certified_range(), f.attacked_range()
        assert possible[0] <= proved[0] <= 0 <= proved[1] <= possible[1]


def test_a_certificate_of_pieces_is_checked_through_the_graph(tmp_path) -> None:
    network = classifier(1)
    image = RNG.random((1, 3, 7, 6))
    label = evaluate(network, torch.from_numpy(image)[:, None]).flatten(1).argmax(1).numpy()
    (f,) = certify.evaluate_transform(network, image, label, {"rotate": (-3.0, 3.0)}, piece=0.25)
    made = certificate(network, image[0], f)
    made.save(tmp_path / "c.json")
    again = certify.load_certificate(tmp_path / "c.json")
    assert again.verdict.value == "holds"
    assert "transform (names rotate)" in again.sentence()
    assert certify.check(again, network)
    other = certify.check(again, classifier(5))
    assert not other
    forged = again.text().replace('"names":"rotate"', '"names":"shear"')
    (tmp_path / "f.json").write_text(forged)
    with pytest.raises(certify.core.errors.CertifyError):
        certify.check(certify.load_certificate(tmp_path / "f.json"), network)


def test_verify_is_complete_over_parameters_and_runs_the_model_on_its_answer() -> None:
    network = classifier(2)
    verdicts = set()
    for i in range(8):
        image = np.random.default_rng(i).random((3, 7, 6))
        label = int(evaluate(network, torch.from_numpy(image)[None, None]).argmax())
        graph = certify.semantic.transformed(network, image, "hue")
        found = certify.verify(graph, certify.Box([-60.0], [60.0]),
                               certify.Spec.classify(label, 3), timeout=20)
        verdicts.add(found.verdict.value)
        theta = torch.linspace(-60, 60, 999, dtype=torch.float64)[:, None]
        same = bool((evaluate(graph, theta).flatten(1).argmax(1) == label).all())
        assert found.verdict.value == ("holds" if same else "violated")
        assert certify.check(found, network)
    assert verdicts == {"holds", "violated"}


def test_claims_name_the_original_and_the_change() -> None:
    network = classifier()
    graph = certify.semantic.transformed(network, SMALL, "rotate")
    case = Case(certify.Box([0.0], [1.0]).batched((1,)), certify.Spec.classify(0, 3))
    claim, plain = claim_about(graph, (case,)), claim_about(network, (case,))
    assert claim.model_sha256 == plain.model_sha256
    assert [e.kind for e in claim.edits] == ["transform"]


@pytest.mark.parametrize(("names", "said"), [
    ("twist", "no transformation 'twist'"), ("brightness,rotate", "geometric"),
    ("rotate,rotate", "twice"), ("rotate,hue", "original image"), ("gamma,gamma", "twice")])
def test_impossible_transformations_are_refused(names: str, said: str) -> None:
    with pytest.raises(certify.core.errors.UsageError, match=said):
        certify.semantic.transformed(classifier(), SMALL, names)


def test_images_out_of_range_are_refused() -> None:
    with pytest.raises(certify.core.errors.BadInput, match="divide by 255"):
        certify.semantic.transformed(classifier(), 255 * SMALL, "rotate")


def test_pieces_are_exact_and_split_like_a_tree() -> None:
    pieces = Pieces.of({"rotate": (-30.0, 30.0)}, {"rotate": 0.25})
    assert pieces.counts == (240,)
    assert np.allclose(np.diff(pieces.cuts[0]), 0.25)
    tree = pieces.tree(dict.fromkeys(pieces.blocks(8), 1.0))
    assert tree.leaves == len(pieces.blocks(8)) == 32
    with pytest.raises(KeyError):
        pieces.tree(dict.fromkeys(pieces.blocks(8)[1:], 1.0))


def test_pieces_are_counted_once_however_they_were_proved() -> None:
    pieces = Pieces.of({"rotate": (0.0, 8.0)}, {"rotate": 1.0})
    whole, (_, left, right) = pieces.whole, pieces.split(pieces.whole)
    _, inner, _ = pieces.split(left)
    assert pieces.covered({left: 1.0, inner: 1.0}) == 4
    assert pieces.covered({left: 1.0, inner: 1.0, right: 1.0}) == 8
    assert pieces.covered({whole: 1.0, left: 1.0}) == 8
    assert pieces.covered({inner: 1.0}, right) == 0
    assert pieces.covered({}) == 0
    assert pieces.tree({left: 1.0, inner: 1.0, right: 1.0}).leaves == 2


def test_a_leaf_that_is_not_proved_is_not_hidden_by_a_margin_that_is_no_number(monkeypatch) -> None:
    from certify.bounds.decide import Decision, Means
    from certify.core.certificate import Evidence
    from certify.search import pieces as module

    network = certify.semantic.transformed(classifier(), SMALL, "rotate")
    pieces = Pieces.of({"rotate": (0.0, 2.0)}, {"rotate": 1.0})
    tree = pieces.tree(dict.fromkeys(pieces.blocks(1), 1.0))
    case = Case(certify.Box(pieces.lower, pieces.upper).batched((1,)), certify.Spec.classify(0, 3))

    def odd(graph, question, method, means) -> Decision:
        margins = np.full(question.bound.shape, -1.0)
        margins[0] = np.nan  # one leaf is called proved, beside a row that is no number
        proved = np.arange(len(margins)) == 0
        return Decision(margins, proved if len(margins) > 1 else ~proved, None)

    monkeypatch.setattr(module, "decide", odd)
    held, margin = module.prove_pieces(
        network, case, Evidence(module.METHOD, {}, None, ((tree,),)), Means())
    assert not held
    assert not margin > 0


def test_too_many_turns_are_refused() -> None:
    with pytest.raises(certify.core.errors.UsageError, match="3600 degrees"):
        warped_boxes(SMALL[None], named(["rotate"]), np.array([1e6]), np.array([1e6 + 1]))


@pytest.mark.parametrize(("proved", "wanted"), [
    ([(0, 4)], (0.6, 1.4)), ([(2, 3)], (1.0, 1.2)), ([(1, 2)], (0.8, 1.0)), ([(0, 1)], None),
    ([], None)])
def test_ranges_begin_at_the_identity(proved: list, wanted: tuple | None) -> None:
    pieces = Pieces.of({"scale": (0.6, 1.4)}, {"scale": 0.2})
    found = Finding(0, 1, 1, pieces, {(block,): 1.0 for block in proved})
    assert found.certified_range() == pytest.approx(wanted or (np.nan, np.nan), nan_ok=True)


def test_a_range_without_the_identity_has_no_range_around_it() -> None:
    pieces = Pieces.of({"scale": (1.1, 1.5)}, {"scale": 0.1})
    found = Finding(0, 1, 1, pieces, {pieces.whole: 1.0})
    assert found.certified
    assert np.isnan(found.certified_range()).all() and np.isnan(found.attacked_range()).all()
