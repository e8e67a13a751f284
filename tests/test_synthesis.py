"""Pairs rendered from label maps: geometry, contrasts, reproducibility, and a whole run of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_label_maps import SHAPE, TURNED, head, make_label_maps
from scipy.ndimage import map_coordinates

from ofg_deploy.data.description import Dataset, Subject
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Grid, lattice, transform_points
from ofg_deploy.kernels.rendering import averaged, carried
from ofg_deploy.metrics import folding_percent
from ofg_deploy.nifti import load_image, load_labels, save_volume
from ofg_deploy.preprocess import Intensity, NetworkInput
from ofg_deploy.train.api import train_network
from ofg_deploy.train.batches import TrainingFiles
from ofg_deploy.train.checkpoint import load_checkpoint
from ofg_deploy.train.config import TrainConfig
from ofg_deploy.train.dataset import prepare_all
from ofg_deploy.train.devices import launch
from ofg_deploy.train.loop import Trainer
from ofg_deploy.train.pairs import PairFiles
from ofg_deploy.train.run import Run
from ofg_deploy.train.starts import images_of
from ofg_deploy.train.synthesis import deformation, label_maps
from ofg_deploy.train.synthesis.contrasts import Contrasts, draw_means, t1_means
from ofg_deploy.train.synthesis.held_out import with_images
from ofg_deploy.train.synthesis.people import find_people, load_person, prepare_people
from ofg_deploy.train.synthesis.source import Synthesis, finer_grid

EXPECTS = NetworkInput((16, 20, 24), (5.0, 4.0, 4.5), Intensity(), "affine")


def config(**changes: object) -> TrainConfig:
    given = {"synthesise": True, "epochs": 2, "steps_per_epoch": 3, "ncc_window": 5, "lr": 1e-3, "picture_every": 0}
    return TrainConfig(EXPECTS, **{**given, **changes})


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> list[Path]:
    return sorted(make_label_maps(tmp_path_factory.mktemp("heads") / "maps").iterdir())


@pytest.fixture(scope="module")
def people(maps, tmp_path_factory) -> list[Path]:
    """Three of them, prepared with the first as their frame."""
    cache = tmp_path_factory.mktemp("cache")
    return prepare_people(maps[:3], maps[0], EXPECTS, True, cache, 1, lambda: None)


def test_codes_are_carried_as_scipy_samples_them() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 200, (9, 12, 7)).astype(np.uint8)
    nodes = rng.uniform(-1, 10, (3, 3, 4, 5))
    shape = (13, 10, 17)
    at = np.stack(
        np.meshgrid(*(np.linspace(0, m - 1, n) for m, n in zip((3, 4, 5), shape, strict=True)), indexing="ij")
    )
    index = np.floor(np.stack([map_coordinates(c, at, order=1) for c in nodes]) + 0.5).astype(int)
    inside = ((index >= 0) & (index < np.array(codes.shape).reshape(3, 1, 1, 1))).all(axis=0)
    x, y, z = np.where(inside, index, 0)
    found = carried(codes, nodes, shape)
    assert inside.mean() > 0.3
    assert (~inside).mean() > 0.1
    assert (found != np.where(inside, codes[x, y, z], 0)).mean() < 1e-3  # ties between voxels alone


def test_table_is_averaged_over_blocks() -> None:
    rng = np.random.default_rng(2)
    codes, table = rng.integers(0, 300, (6, 10, 4)).astype(np.uint16), rng.random(300, dtype=np.float32)
    wanted = table[codes].reshape(3, 2, 5, 2, 2, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(averaged(codes, table, 2), wanted, rtol=1e-6)
    np.testing.assert_array_equal(averaged(codes, table, 1), table[codes])


def test_contrasts_are_those_of_scans() -> None:
    fluid, cortex, white, right = 0, 1, 2, 3
    numbers = np.array([4, 3, 2, 41, 42, 507, 0])
    rng = np.random.default_rng(0)
    order = {"t1": (fluid, cortex, white), "t2": (white, cortex, fluid), "flair": (fluid, white, cortex)}
    for contrast, dark_to_bright in order.items():
        means = draw_means(numbers, contrast, rng)
        assert [*np.argsort(means[:3])] == [*dark_to_bright]
        assert means[right] == means[white]
        assert means[6] == 0
    drawn = np.array([draw_means(numbers, "random", rng) for _ in range(200)])
    assert 0.15 < (drawn[:, white] < drawn[:, cortex]).mean() - 0.25 < 0.35
    np.testing.assert_array_equal(t1_means(numbers)[[0, 1, 2]], np.float32([0.15, 0.54, 0.85]))
    # Labels that are numbered from 1 on are not FreeSurfer's white matter because there is a 2.
    assert t1_means(np.array([0, 1, 2, 3]))[2] != np.float32(0.85)


def test_contrasts_are_read_and_drawn_by_their_shares() -> None:
    parsed = Contrasts.parse("t1:3, random")
    assert dict(parsed.shares) == {"t1": 0.75, "random": 0.25}
    rng = np.random.default_rng(0)
    assert 0.7 < np.mean([parsed.draw(rng) == "t1" for _ in range(500)]) < 0.8
    for text in ("t3", "t1:x", "t1:-1", "t1:0", "t1,t1", "", "t1:nan"):
        with pytest.raises(UsageError, match="contrasts"):
            config(contrasts=text)


def test_people_stand_where_their_maps_lie(people, maps, monkeypatch) -> None:
    """Undeformed, the codes of a pair are the labels of the map at the same place in the world."""
    for name in ("TURN_DEGREES", "STRETCH", "SHEAR", "SHIFT_MM"):
        monkeypatch.setattr(deformation, name, 0.0)
    monkeypatch.setattr(deformation, "VELOCITY_MM", ((12.0, 1e-9),))
    synthesis = Synthesis(people, config())
    assert synthesis.finer == 2
    halves = np.diag([0.5, 0.5, 0.5, 1.0])
    halves[:3, 3] = -0.25  # the first of two voxels in each
    grid = Grid(tuple(2 * n for n in EXPECTS.shape), synthesis.grid.world_from_vox @ halves)
    np.testing.assert_allclose(finer_grid(synthesis.grid, 2).world_from_vox, grid.world_from_vox, atol=1e-12)
    for file, path in zip(people, maps, strict=False):
        person = load_person(file)
        codes = deformation.deformed(person, grid, np.random.default_rng(0))
        whole = load_labels(path)
        index = transform_points(
            np.linalg.inv(TURNED) @ person.own_from_frame @ grid.world_from_vox, lattice(grid.shape)
        )
        wanted = map_coordinates(whole.data, index, order=0, mode="constant")
        assert (person.coded.numbers[codes] != wanted).mean() < 0.002
        assert np.isin([2, 3, 41, 42, 507], wanted).all()
        brain = np.argwhere(np.isin(wanted, [2, 3, 41, 42]))  # which lies in the middle of the grid
        assert np.abs((brain.min(axis=0) + brain.max(axis=0) + 1) / 2 - np.array(grid.shape) / 2).max() < 2.5


def test_deformations_do_not_fold_and_differ() -> None:
    from ofg_deploy.field import jacobian_determinant

    fields = [
        deformation.random_displacement((20, 16, 18), (6.0, 6.5, 5.5), np.random.default_rng(n)) for n in range(4)
    ]
    assert all(folding_percent(jacobian_determinant(f)) == 0 for f in fields)
    assert all(0.05 < np.abs(f).mean() < 1.5 for f in fields)
    assert np.abs(fields[0] - fields[1]).mean() > 0.05


def test_a_pair_depends_on_seed_and_number_alone(people) -> None:
    one, other = Synthesis(people, config()), Synthesis(people, config())
    forward = [one.pair(n) for n in range(0, 200, 25)]
    back = [other.pair(n) for n in reversed(range(0, 200, 25))][::-1]
    for first, second in zip(forward, back, strict=True):
        assert first.keys() == {"moving", "fixed", "moving_guide", "fixed_guide"}
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
            assert first[name].shape == EXPECTS.shape
            assert first[name].dtype == np.float32
            assert 0 <= first[name].min() < first[name].max() <= 1
    assert not np.array_equal(forward[0]["fixed"], forward[1]["fixed"])
    assert not np.array_equal(forward[0]["fixed"], Synthesis(people, config(seed=1)).pair(0)["fixed"])


def test_two_people_of_a_pair_are_different(people) -> None:
    """The pool holds everybody more than once."""
    synthesis = Synthesis(people, config())
    asked: list[int] = []
    found = synthesis._deformed
    synthesis._deformed = lambda member, first: (asked.append(synthesis._who(member)), found(member, first))[1]
    for n in range(12):
        synthesis.pair(n)
    assert all(a != b for a, b in zip(asked[::2], asked[1::2], strict=True))
    assert set(asked) == {0, 1, 2}


def test_labels_guides_and_images_show_the_same(people) -> None:
    synthesis = Synthesis(people, config(dice_weight=1.0, skull=1.0, contrasts="t1"))
    for n in range(3):
        pair = synthesis.pair(n)
        for side in ("fixed", "moving"):
            labels, guide, image = pair[f"{side}_labels"], pair[f"{side}_guide"], pair[side]
            assert 507 not in labels
            assert {2, 41, 3, 42} <= set(np.unique(labels))
            white, cortex = (np.isin(labels, numbers) for numbers in ((2, 41), (3, 42)))
            assert guide[white].mean() > guide[cortex].mean() + 0.1
            assert guide[labels == 0].mean() < 0.15
            assert np.corrcoef(image[labels > 0], guide[labels > 0])[0, 1] > 0.4
    bare = Synthesis(people, config(skull=0.0, contrasts="t2")).pair(0)["fixed"]
    assert (bare == 0).mean() > 0.4  # exact background


def test_a_shell_grows_around_bare_brains(tmp_path) -> None:
    [path] = make_label_maps(tmp_path / "maps", 1, skull=False).iterdir()
    bare, dressed = label_maps.coded(path, shell=False), label_maps.coded(path, shell=True)
    assert {*dressed.numbers} - {*bare.numbers} == {-1, -2, -3}
    assert dressed.outer[dressed.numbers < 0].all()
    voxel = 2.5**3
    inside = (bare.codes > 0).sum()
    for number, volume in zip((-1, -2, -3), (3, 5, 5), strict=True):
        code = int(np.flatnonzero(dressed.numbers == number)[0])
        assert (dressed.codes == code).sum() > 0.3 * volume / 10 * inside, voxel
    [headed] = make_label_maps(tmp_path / "heads", 1).iterdir()
    np.testing.assert_array_equal(label_maps.coded(headed, shell=True).numbers, label_maps.coded(headed, False).numbers)


@pytest.mark.parametrize(("spacing", "voxels"), [((5.0, 4.0, 4.5), 2.5), ((8.0, 7.5, 7.0), 3.5)])
def test_validation_pairs_lie_in_the_worlds_of_their_maps(maps, tmp_path, spacing, voxels) -> None:
    """In voxels half as large as the network's smallest, but not smaller than the map's, which are 2.5 mm."""
    options = replace(config(skull=1.0, contrasts="t1"), expects=replace(EXPECTS, spacing_mm=spacing))
    pairs = with_images((PairFiles(maps[3], maps[4], maps[3], maps[4]),), options, tmp_path)
    [pair] = pairs
    for path, image, drawn in ((maps[3], pair.fixed, pair.fixed_labels), (maps[4], pair.moving, pair.moving_labels)):
        seen, labels, whole = load_image(image), load_labels(drawn), load_labels(path)
        assert seen.grid.shape == labels.grid.shape
        assert seen.grid.orientation == whole.grid.orientation
        np.testing.assert_allclose(seen.grid.spacing_mm, voxels)
        points = transform_points(labels.grid.world_from_vox, lattice(labels.grid.shape))
        index = transform_points(np.linalg.inv(TURNED), points)
        wanted = map_coordinates(np.where(whole.data == 507, 0, whole.data), index, order=0, mode="constant")
        assert (labels.data != wanted).mean() < 1e-3
        white, fluid = (seen.data[np.isin(labels.data, n)].mean() for n in ((2, 41), (4, 43)))
        assert white > 1.5 * fluid
    again = with_images((PairFiles(maps[3], maps[4], maps[3], maps[4]),), options, tmp_path)
    assert again == pairs
    assert len(list(tmp_path.iterdir())) == 4


def test_who_trains_and_who_validates(maps) -> None:
    pairs, looked, left_out = find_people(maps[0].parent, None, 0, skip_bad=False)
    training, validation = (
        {p for pair in split for p in (pair.fixed, pair.moving)} for split in (pairs.training, pairs.validation)
    )
    assert len(training) == 3
    assert len(validation) == 2
    assert not training & validation
    assert left_out is None
    assert set(pairs.evaluated) == {2, 3, 4, 10, 41, 42, 43, 49}
    assert all(p.fixed_labels == p.fixed for p in pairs.validation)
    # The content is the brain with its margin, in the map's own axes.
    brain = np.isin(head(0), [2, 3, 4, 10, 41, 42, 43, 49])
    one = next(one for one in [*looked, label_maps.look(maps[0])] if one.path == maps[0])
    extent = [int(np.ptp(np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {a}))))) + 1 + 8 for a in range(3)]
    assert one.content.shape == tuple(extent)
    assert one.volume_mm3[2] == pytest.approx(2.5**3 * (head(0) == 2).sum())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda folder: save_volume(folder / "p2.nii.gz", (head(2) > 0).astype(np.int16), Grid(SHAPE, TURNED)),
            "has 1 labels",
        ),
        (lambda folder: save_volume(folder / "p2.nii.gz", head(2) + 0.5, Grid(SHAPE, TURNED)), "fractional"),
        (lambda folder: save_volume(folder / "p2.nii.gz", -head(2), Grid(SHAPE, TURNED)), "negative"),
        (lambda folder: [p.unlink() for p in folder.iterdir()], "at least 2 of each"),
    ],
)
def test_maps_that_cannot_be_rendered(tmp_path, make, words) -> None:
    folder = make_label_maps(tmp_path / "maps", 5)
    make(folder)
    with pytest.raises(InputError, match=words):
        find_people(folder, None, 0, skip_bad=False)
    if words in ("has 1 labels", "negative"):
        pairs, _, left_out = find_people(folder, None, 3, skip_bad=True)
        assert "p2.nii.gz" in left_out
        assert all(folder / "p2.nii.gz" not in (p.fixed, p.moving) for p in (*pairs.training, *pairs.validation))


def test_a_killed_run_ends_as_one_that_was_not(maps, tmp_path) -> None:
    """To the bit, whatever was rendered ahead, with validation pairs rendered beside it."""
    folder, cache = maps[0].parent, tmp_path / "cache"
    pairs, _, _ = find_people(folder, None, 0, skip_bad=False)
    options = config(guidance_start=0.0, steps_per_epoch=2)
    people = prepare_people(images_of(pairs.training), maps[0], EXPECTS, True, cache, 1, lambda: None)
    shown = with_images(pairs.validation[:1], options, cache)
    validation = prepare_all(list(shown), EXPECTS, cache, 1, lambda: None)
    states = []
    for name, stops, workers in (("whole", (2,), 0), ("killed", (1, 2), 2)):
        run = Run(tmp_path / name)
        run.start(options, pairs, cache, ["test"], [*people, *validation])
        for stop in stops:
            files = TrainingFiles(people, [], synthesis=Synthesis(people, options))
            trainer = Trainer(
                run, options, replace(pairs, validation=shown), files, validation, launch("cpu", "fp32"), workers
            )
            for row in trainer.train():
                if row.epoch == stop:
                    break
        assert [r.epoch for r in trainer.history] == [1, 2]
        assert 0 < trainer.history[-1].val_dice < 1
        states.append(load_checkpoint(run.last).state)
        read, listed, _ = run.read()
        assert read == options
        assert listed == pairs
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": "labels"}, "labels has no effect with synthesise=True"),
        ({"max_pairs": 3}, "max_pairs has no effect with synthesise=True"),
        ({"recipe": "oasis"}, "recipe has no effect with synthesise=True"),
        ({"intensity": "window:0,100"}, "intensity=window:0,100 is for scans in units"),
        ({"synthesise": False, "skull": 0.1}, "skull has no effect without synthesise=True"),
        ({"synthesise": False, "contrasts": "t1"}, "contrasts has no effect without synthesise=True"),
        ({"skull": 2.0}, "skull 2"),
        ({"contrasts": "pd"}, "'pd' is unknown: use t1, t2, flair, random"),
    ],
)
def test_options_that_mean_nothing_are_refused(maps, tmp_path, options, words) -> None:
    with pytest.raises(UsageError) as error:
        train_network(maps[0].parent, tmp_path / "run", **{"synthesise": True, **options})
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_folder_of_label_maps(maps, tmp_path) -> None:
    (tmp_path / "pairs.csv").write_text("fixed,moving\na.nii,b.nii\n")
    (tmp_path / "empty").mkdir()
    for name, words in (("pairs.csv", "is a file: "), ("empty", "has 0 label maps"), ("gone", "does not exist")):
        with pytest.raises(InputError, match=words):
            train_network(tmp_path / name, tmp_path / "run", synthesise=True)
    assert not (tmp_path / "run").exists()


def test_a_data_set_says_who_trains(maps, tmp_path) -> None:
    people = [Subject(f"p{n}", tmp_path / "no.nii.gz", labels=path) for n, path in enumerate(maps)]
    splits = {"training": tuple(people[:2]), "validation": tuple(people[2:4]), "test": (people[4],)}
    pairs, _, _ = find_people(tmp_path, Dataset("d", "labels", splits, labels={2: "white"}), 0, skip_bad=False)
    assert images_of(pairs.training) == maps[:2]
    assert sorted(images_of(pairs.validation)) == maps[2:4]
    assert pairs.evaluated == (2,)
