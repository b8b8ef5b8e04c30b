"""Laws of the last stage: a region is the whole slice's, a lung is enhanced once, what was lost is blended back."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from placement_toys import add_lung, add_nodule, group_at, library_in
from scipy import special

from lungsynth.bundles import open_bundle
from lungsynth.compositing.render import Renderer
from lungsynth.enhancement.label_check import LABEL_CHECK_RULES, LabelCheck, transition_mask
from lungsynth.enhancement.stage import (
    Changes,
    EnhancementStage,
    change_summary,
    enhancement_identity,
    enhancement_key,
    regions_of,
)
from lungsynth.geometry import Box
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Recipe, make_recipe
from lungsynth.placement.lung_shape import LungShape
from lungsynth.placement.rules import PlacementRules, resolve

sys.path.append(str(Path(__file__).resolve().parents[1] / "bundles" / "cyclegan_bundle"))

from cyclegan.inferer import Enhancer
from cyclegan.network import ResidualEnhancer

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
PLACES = [(0.2, 0.4), (0.8, 0.5)]


def recipe_on(library: AssetLibrary, *places: tuple[float, float], spacing=(0.7, 0.7), seed: int = 0) -> Recipe:
    lung, nodule = add_lung(library, spacing, seed=seed), add_nodule(library, 9.0)
    shape = LungShape.from_mask(library.load(lung.hash)[1] > 0, spacing_mm=lung.spacing_mm)
    placed = resolve(shape, group_at(nodule, *places), PlacementRules()).placements
    return make_recipe(lung, group_at(nodule, *places), placed, seed=seed)


def trained_like(**settings) -> Enhancer:
    torch.manual_seed(0)
    network = ResidualEnhancer(channels=8, dilations=[1, 2])
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.15)
    with torch.no_grad():
        network.last.weight.mul_(0.3)
    return Enhancer(network, nodule_max_residual_hu=40, **settings)


class Counting:
    """An enhancer that remembers the sizes it was asked for."""

    def __init__(self, enhance: Enhancer) -> None:
        self.enhance, self.sizes = enhance, []
        self.receptive_field_px, self.alignment_px = enhance.receptive_field_px, enhance.alignment_px

    def __call__(self, hu: np.ndarray, nodule: np.ndarray) -> np.ndarray:
        self.sizes.append(hu.shape)
        return self.enhance(hu, nodule)


class Bright:
    """Finds each 3 x 3 mean above a threshold as a candidate, one for each connected piece."""

    operating_point = 0.5

    def __init__(self, above_hu: float = -100.0) -> None:
        self.above_hu = above_hu

    def __call__(self, hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, np.ndarray]:
        from scipy import ndimage

        lung = ndimage.uniform_filter(hu[0].astype(float), 41) < -600  # the toys' soft tissue is no finding
        marked, count = ndimage.label((ndimage.uniform_filter(hu[0].astype(float), 3) > self.above_hu) & lung)
        centres = ndimage.center_of_mass(marked, marked, range(1, count + 1))
        return {"candidates": np.array([[0, *centre, 4.0, 0.9] for centre in centres]).reshape(-1, 5)}


# ---------------------------------------------------------------- regions


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("places", [PLACES[:1], PLACES, [(0.2, 0.3), (0.2, 0.65)]])
def test_local_enhancement_is_that_of_the_whole_slice(tmp_path, places, amp) -> None:
    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, *places), Renderer(library)
    sample, enhance = renderer.render(recipe), trained_like(amp=amp)
    image, outcome = EnhancementStage(enhance)(sample, recipe.lung, renderer.background(recipe))
    whole = enhance(sample.image, sample.label == Label.NODULE)
    off = np.abs(image.astype(int) - whole)
    assert off.max() <= 1
    assert np.count_nonzero(off) <= 2, "a sum in another order may fall on the other side of a half"
    assert (image != sample.image).mean() > 0.1
    np.testing.assert_array_equal(outcome.changes.counts, Changes.of(sample.image, image, sample.label).counts)


def test_a_lung_is_enhanced_once_and_a_sample_costs_its_regions(tmp_path) -> None:
    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[0]), Renderer(library)
    enhance = Counting(trained_like())
    stage = EnhancementStage(enhance, key="k", folder=tmp_path / "enhanced")
    sample, background = renderer.render(recipe), renderer.background(recipe)
    first, _ = stage(sample, recipe.lung, background)
    again, _ = stage(sample, recipe.lung, background)
    assert [size == background.hu.shape for size in enhance.sizes] == [True, False, False]
    assert np.prod(enhance.sizes[1]) < background.hu.size / 3
    other = Counting(trained_like())
    read, _ = EnhancementStage(other, key="k", folder=tmp_path / "enhanced")(sample, recipe.lung, background)
    assert len(other.sizes) == 1, "the lung comes from the folder"
    for image in (again, read):
        np.testing.assert_array_equal(first, image)
    (stored,) = (tmp_path / "enhanced").iterdir()
    assert stored.name == f"{recipe.lung}-k.npy"
    stored.write_bytes(b"half")
    np.testing.assert_array_equal(
        EnhancementStage(other, key="k", folder=stored.parent)(sample, recipe.lung, background)[0], first
    )


def test_the_lung_of_a_pair_is_the_slice_beyond_the_reach_of_its_nodules(tmp_path) -> None:
    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[0]), Renderer(library)
    enhance = trained_like()
    stage, background = EnhancementStage(enhance), renderer.background(recipe)
    image, _ = stage(renderer.render(recipe), recipe.lung, background)
    without, outcome = stage(renderer.lung(recipe), recipe.lung, background)
    np.testing.assert_array_equal(without, enhance(np.asarray(background.hu), np.zeros(background.hu.shape, bool)))
    rows, columns = np.nonzero(image != without)
    (window,), reach = renderer.render(recipe).windows, enhance.receptive_field_px // 2
    assert window.row_from - reach <= rows.min() <= rows.max() < window.row_to + reach
    assert window.column_from - reach <= columns.min() <= columns.max() < window.column_to + reach
    assert outcome.verdict == "unchecked"


@pytest.fixture
def bundles(tmp_path) -> Path:
    """A copy of the bundles that decide, to be edited."""
    for name in ("cyclegan_bundle", "lung_seg_bundle"):
        for part in ("configs", "models"):
            shutil.copytree(BUNDLES / name / part, tmp_path / name / part)
    return tmp_path


def edit(bundles: Path, name: str, **settings: object) -> None:
    path = bundles / f"{name}_bundle" / "configs" / "inference.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in settings.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config), encoding="utf-8")


def test_the_key_of_an_enhanced_lung_knows_no_place_and_no_device(bundles) -> None:
    shipped = enhancement_identity(BUNDLES, label_check=True)
    edit(bundles, "cyclegan", device="cpu", bundle_root=str(bundles), dataset_dir="elsewhere", handlers=[])
    edit(bundles, "lung_seg", device="cpu", batch_size=7, output_dir="elsewhere", min_probability=0.2)
    assert enhancement_identity(bundles, label_check=True) == shipped
    assert enhancement_key(enhancement_identity(bundles, label_check=True)) == enhancement_key(shipped)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cyclegan", {"nodule_max_residual_hu": 20.0}),
        ("cyclegan", {"network_def": {"max_residual_hu": 50.0}}),
        ("cyclegan", {"amp": False}),
        ("lung_seg", {"operating_point": 0.9}),
        ("lung_seg", {"finder": {"core_mm": 4.0}}),
        ("lung_seg", {"segmenter": {"reach_px": 64}}),
        ("label_check", {"margin": 2.0}),
        ("label_check", {"tolerance": 0.1}),
        ("label_check", {"doubt": 0.1}),
    ],
)
def test_a_setting_that_changes_results_changes_the_key(bundles, monkeypatch, name, settings) -> None:
    ways = (True, False)
    before = [enhancement_identity(bundles, label_check=check) for check in ways]
    if name == "label_check":
        monkeypatch.setattr("lungsynth.enhancement.stage.LABEL_CHECK_RULES", dict(LABEL_CHECK_RULES) | settings)
    else:
        edit(bundles, name, **settings)
    after = [enhancement_identity(bundles, label_check=check) for check in ways]
    part = "enhancer_settings" if name == "cyclegan" else "label_check_settings"
    assert [key for key in before[0] if before[0][key] != after[0][key]] == [part]
    assert (before[1] == after[1]) == (name != "cyclegan"), "without a label check, its settings decide nothing"
    assert enhancement_key(before[0]) != enhancement_key(after[0])


def test_regions_that_meet_are_one_and_begin_where_the_enhancer_can() -> None:
    boxes = [Box(50, 51, 60, 60), Box(63, 68, 70, 80), Box(150, 0, 160, 9)]
    first, second = regions_of(boxes, (200, 181), receptive_field_px=11, alignment_px=4)
    assert first.changed == Box(45, 46, 75, 85)
    assert first.seen == Box(40, 40, 80, 90)
    assert second.changed == Box(145, 0, 165, 14)
    assert first.inside == (slice(5, 35), slice(6, 45))
    assert regions_of([Box(0, 0, 200, 181)], (200, 181), receptive_field_px=11, alignment_px=4)[0].seen[2:] == (
        200,
        181,
    )


def test_an_enhancer_without_a_receptive_field_sees_whole_slices(tmp_path) -> None:
    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[0]), Renderer(library)
    sample = renderer.render(recipe)
    image, _ = EnhancementStage(lambda hu, nodule: np.where(nodule, hu, hu + hu.max()).astype(np.int16))(
        sample, recipe.lung, renderer.background(recipe)
    )
    np.testing.assert_array_equal(image, np.where(sample.label == 2, sample.image, sample.image + sample.image.max()))


# ---------------------------------------------------------------- check


def vanishing(hu: np.ndarray, nodule: np.ndarray) -> np.ndarray:
    """An enhancer that paints nodules over."""
    return np.where(nodule, -850, hu).astype(np.int16)


def inventive(hu: np.ndarray, nodule: np.ndarray) -> np.ndarray:
    """An enhancer that draws a nodule where the lung's noise is loudest, on whole slices."""
    drawn = hu.copy()
    drawn[60:66, 55:61] = 30
    return drawn


def run_check(tmp_path: Path, enhance, detector=None):
    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, *PLACES), Renderer(library)
    sample = renderer.render(recipe)
    stage = EnhancementStage(enhance, label_check=LabelCheck(detector or Bright()))
    return sample, *stage(sample, recipe.lung, renderer.background(recipe))


def test_a_nodule_that_vanished_is_blended_back(tmp_path) -> None:
    sample, image, outcome = run_check(tmp_path, vanishing)
    assert (outcome.verdict, outcome.found, outcome.lost) == ("blended", 2, 2)
    np.testing.assert_array_equal(image, sample.image)
    assert outcome.changes.figures()["nodule_mean_hu"] == 0


def test_a_finding_that_is_new_is_blended_back_on_its_lung_already(tmp_path) -> None:
    sample, image, outcome = run_check(tmp_path, inventive)
    assert (outcome.verdict, outcome.found, outcome.lost, outcome.invented) == ("kept", 2, 0, 0)
    np.testing.assert_array_equal(image, sample.image)


def test_what_the_label_check_does_not_mind_stays_enhanced(tmp_path) -> None:
    def grain(hu: np.ndarray, nodule: np.ndarray) -> np.ndarray:
        return (hu + hu % 7 - 3).astype(np.int16)

    sample, image, outcome = run_check(tmp_path, grain)
    assert (outcome.verdict, outcome.found, outcome.lost, outcome.invented) == ("kept", 2, 0, 0)
    np.testing.assert_array_equal(image, grain(sample.image, sample.label == Label.NODULE))


def test_a_sample_that_cannot_be_mended_is_left_as_it_was_composed(tmp_path) -> None:
    class Touchy(Bright):
        """Finds nothing as soon as the corner of a slice was changed."""

        def __call__(self, hu, spacing_mm):
            found = super().__call__(hu, spacing_mm)
            return found if hu[0, 0, 0] == corner else {"candidates": np.empty((0, 5))}

    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[0]), Renderer(library)
    sample, corner = renderer.render(recipe), int(renderer.render(recipe).image[0, 0])
    stage = EnhancementStage(lambda hu, nodule: (hu + 1).astype(np.int16), label_check=LabelCheck(Touchy()))
    image, outcome = stage(sample, recipe.lung, renderer.background(recipe))
    assert (outcome.verdict, outcome.lost) == ("refused", 1)
    np.testing.assert_array_equal(image, sample.image)


def test_a_nodule_never_found_is_not_lost_and_findings_of_the_lung_are_not_new(tmp_path) -> None:
    library, _, _ = library_in(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[0]), Renderer(library)
    sample, check = renderer.render(recipe), LabelCheck(Bright())
    row, column = (sample.boxes[0].row_from + 3.0, sample.boxes[0].column_from + 3.0)
    on, far = [0, row, column, 5, 0.9], [0, 20.0, 20.0, 5, 0.9]
    nothing = np.empty((0, 5))

    def compare(before, after):
        result = check.compare(np.array(before).reshape(-1, 5), np.array(after).reshape(-1, 5), sample, (0.7, 0.7))
        return result.n_found, len(result.lost), len(result.invented)

    assert compare(nothing, nothing) == (0, 0, 0)
    assert compare(nothing, [on]) == (0, 0, 0), "a nodule of the label is no invention"
    assert compare([on], nothing) == (1, 1, 0)
    assert compare([far], [far]) == (0, 0, 0)
    assert compare([far], [[0, 26.0, 20.0, 5, 0.9]]) == (0, 0, 0), "4.2 mm away it is the same"
    assert compare([far], [[0, 30.0, 20.0, 5, 0.9]]) == (0, 0, 1)
    assert compare([on, far], [on]) == (1, 0, 0)


class Again(Bright):
    """Looks again at boxes alone, and notes what it saw; what it finds there it moves by `off` in log-odds."""

    def __init__(self, off: float = 0.0, probability: float = 0.9) -> None:
        super().__init__()
        self.off, self.probability, self.seen = off, probability, []

    def _found(self, hu, spacing_mm, name, off=0.0):
        self.seen.append(name)
        candidates = super().__call__(np.array(hu)[None], (1.0, *spacing_mm))["candidates"]
        candidates[:, 4] = special.expit(special.logit(self.probability) + off)
        return SimpleNamespace(candidates=candidates)

    def look(self, hu, spacing_mm):
        return self._found(hu, spacing_mm, "whole")

    def look_again(self, findings, hu, spacing_mm, changed):
        assert all(box.row_to - box.row_from < hu.shape[0] for box in changed)
        self.off = -self.off  # before, after
        return self._found(hu, spacing_mm, "boxes", self.off)


@pytest.mark.parametrize(
    ("detector", "looks"),
    [
        (Again(), {"whole": 2, "boxes": 2}),  # the lung, before and after; then the sample where it is not the lung
        (Again(off=-0.09, probability=0.6), {"whole": 4, "boxes": 2}),  # 0.18 worse: within the tolerance, in doubt
        (Again(off=-0.09, probability=0.9), {"whole": 2, "boxes": 2}),  # outside the margin
    ],
)
def test_windows_decide_where_nothing_is_in_doubt(tmp_path, detector, looks) -> None:
    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[0]), Renderer(library)
    sample, background = renderer.render(recipe), renderer.background(recipe)
    check = LabelCheck(detector, margin=1.0, tolerance=0.2, doubt=0.05)
    stage = EnhancementStage(trained_like(), label_check=check)
    _, outcome = stage(sample, recipe.lung, background)
    assert (outcome.verdict, outcome.found) == ("kept", 1)
    assert Counter(detector.seen) == looks
    detector.seen.clear()
    stage(sample, recipe.lung, background)
    assert Counter(detector.seen)["whole"] == looks["whole"] - 2, "what was found on the lung is kept"


def test_findings_in_windows_are_those_of_whole_slices(tmp_path) -> None:
    """With the shipped networks: log-odds of nodules within 0.15 of those from whole slices, changes within 0.05."""
    library = AssetLibrary(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[1]), Renderer(library)
    sample, background = renderer.render(recipe), renderer.background(recipe)
    detector, mm = open_bundle(BUNDLES, "lung_seg", component="detector"), background.spacing_mm
    stage = EnhancementStage(trained_like())
    image, _ = stage(sample, recipe.lung, background)
    boxes = [region.changed for region in stage._regions(sample.windows, image.shape)]
    odds = []
    for lung, plane in ((background.hu, sample.image), (stage.lung(recipe.lung, background).hu, image)):
        known = detector.look(np.array(lung), mm)
        again, whole = detector.look_again(known, plane, mm, boxes), detector.look(plane, mm)
        odds.append([special.logit(np.clip(found.candidates[0, 4], 1e-4, 1 - 1e-4)) for found in (again, whole)])
        assert len(again.candidates) == len(whole.candidates)
    (before, before_whole), (after, after_whole) = odds
    assert (before, after) == pytest.approx((before_whole, after_whole), abs=0.15)
    assert after - before == pytest.approx(after_whole - before_whole, abs=0.05)


def test_within_the_margin_nothing_may_get_worse(tmp_path) -> None:
    library, _, _ = library_in(tmp_path)
    recipe, renderer = recipe_on(library, PLACES[0]), Renderer(library)
    sample, check = renderer.render(recipe), LabelCheck(Bright(), margin=0.85, tolerance=0.1)
    centre = sample.boxes[0].row_from + 3.0, sample.boxes[0].column_from + 3.0

    def worse(place, before: float, after: float) -> tuple[int, int, int, int]:
        found = [np.array([[0, *place, 5, probability]]) for probability in (before, after)]
        result = check.compare(*found, sample, (0.7, 0.7))
        return len(result.lost), result.n_lost, len(result.invented), result.n_invented

    assert worse(centre, 0.65, 0.60) == (1, 0, 0, 0), "still found, but less probable"
    assert worse(centre, 0.65, 0.64) == worse(centre, 0.95, 0.75) == (0, 0, 0, 0)
    assert worse(centre, 0.51, 0.495) == (1, 1, 0, 0), "nothing crosses the operating point"
    assert worse((20, 20), 0.35, 0.45) == (0, 0, 1, 0)
    assert worse((20, 20), 0.495, 0.505) == (0, 0, 1, 1)
    assert worse((20, 20), 0.75, 0.95) == worse((20, 20), 0.45, 0.35) == (0, 0, 0, 0)


def test_a_transition_is_smooth_and_leaves_nothing_of_the_change_on_the_spot() -> None:
    from lungsynth.enhancement.label_check import Spot

    share = transition_mask([Spot(20.0, 20.0, 3.0)], (60, 60))
    assert share[20, 20] == share[20, 26] == 0
    assert share[20, 45] == share[50, 50] == 1
    assert np.abs(np.diff(share[20])).max() < 0.15
    assert (share * 256 == np.rint(share * 256)).all()


# ---------------------------------------------------------------- figures


def test_changes_add_up_and_their_figures_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(-900, 100, (40, 50), dtype=np.int16)
    after = (before + rng.integers(-90, 90, before.shape)).astype(np.int16)
    label = rng.choice([0, 1, 2, 255], before.shape).astype(np.uint8)
    whole = Changes.of(before, after, label)
    halves = [Changes.of(before[half], after[half], label[half]) for half in (slice(0, 17), slice(17, None))]
    np.testing.assert_array_equal(Changes.total(halves).counts, whole.counts)
    np.testing.assert_array_equal((whole - halves[0]).counts, halves[1].counts)
    change = np.abs(after.astype(int) - before)
    figures = whole.figures()
    assert figures["nodule_mean_hu"] == pytest.approx(change[label == 2].mean())
    assert figures["lung_p95_hu"] == pytest.approx(np.percentile(change[label == 1], 95), abs=1)
    assert Changes.none().figures()["nodule_mean_hu"] is None
    facts = [{"verdict": "kept", "found": 2, "lost": 0, "invented": 0}] * 3
    facts.append({"verdict": "blended", "found": 2, "lost": 1, "invented": 1})
    told = change_summary(facts, whole)
    assert (told["samples"], told["kept"], told["blended"], told["labels_kept"]) == (4, 3, 1, 1 - 1 / 8)
