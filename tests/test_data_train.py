"""From a data set to a run: recipes, plans, pairs, and what happens to scans that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import data_layouts as layouts
import nibabel as nib
import numpy as np
import pytest
from training_runs import make_subjects

from ofg_deploy.data.description import read_dataset
from ofg_deploy.data.labels import ABDOMEN_CT, IXI, LPBA40, OASIS
from ofg_deploy.data.plan import Memory, make_plan
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.geometry import Grid
from ofg_deploy.preprocess import Intensity
from ofg_deploy.train.labels import load_label_pair
from ofg_deploy.train.pairs import check_pairs, find_pairs
from ofg_deploy.train.recipes import RECIPES, Options, check_pairing, resolve

QUICK = ["--epochs", 1, "--steps-per-epoch", 1, "--guidance-steps", 1, "--ncc-window", 3, "--threads", 1]
QUICK += ["--workers", 1, "--init", "none"]
ALL = ["--steps-per-epoch", 12]  # enough that training sees every pair: others are not even read


@pytest.fixture
def ofg(run_cli: Callable[[Sequence[object]], tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """The command line: (exit code, stdout, stderr)."""
    return lambda *arguments: run_cli(arguments)


def test_published_label_lists() -> None:
    """IXI: the published indices into FreeSurfer's numbers; LPBA40: the published list; names spot-checked."""
    numbers = [0, 2, 3, 4, 5, 7, 8, *range(10, 19), 24, 26, 28, 30, 31, *range(41, 45), 46, 47]
    numbers += [*range(49, 55), 58, 60, 62, 63]
    indices = [1, 2, 3, *range(5, 17), 18, *range(20, 24), *range(25, 33), 34, 36]
    assert sorted(IXI) == [numbers[i] for i in indices]
    assert list(OASIS) == list(range(1, 36))
    assert (OASIS[5], OASIS[13], OASIS[16], OASIS[30]) == (
        "Left-Cerebellum-White-Matter",
        "Brain-Stem",
        "Left-Accumbens-area",
        "Right-Hippocampus",
    )
    ranges = [(21, 35), (41, 51), (61, 69), (81, 93), (101, 103), (121, 123), (161, 167)]
    assert sorted(LPBA40) == [n for low, high in ranges for n in range(low, high)]
    assert len(ABDOMEN_CT) == 13
    assert [len(RECIPES[n].labels) for n in ("ixi", "oasis", "lpba40", "abdomenctct")] == [30, 35, 54, 13]


def test_given_wins_over_recipe_over_plan() -> None:
    recipe = RECIPES["abdomenctct"]
    plan = make_plan([Grid((50, 40, 30), np.diag([1.5, 1.5, 3, 1]))], Memory(64 * 10**9, "RAM"))
    assert (plan.grid, plan.spacing_mm) == ((64, 48, 32), (1.5, 1.5, 3.0))
    both = resolve(Options(intensity="minmax", two_way=False), recipe, plan, 16)
    assert both == Options((192, 160, 256), (2.0, 2.0, 2.0), "minmax", "none", False, False, "RAS")
    assert resolve(Options(), None, plan, 32) == Options(
        (64, 64, 32), (1.5, 1.5, 3.0), "percentile:0.5,99.5", "affine", False, False, "RAS"
    )
    assert resolve(Options(spacing_mm=(3, 3, 3)), recipe, plan, 16).grid is None  # another spacing, another grid
    assert resolve(Options(grid=(16, 16, 16)), None, None, 16).spacing_mm is None
    assert resolve(Options(), RECIPES["ixi"], None, 16).flip
    assert resolve(Options(), RECIPES["ixi"], None, 16).axes == "LIA"
    with pytest.raises(UsageError, match="grid and spacing must be given"):
        resolve(Options(axes="RAS", grid=(16, 16, 16)), RECIPES["ixi"], None, 16)


def test_recipes_need_the_pairing_that_they_name() -> None:
    with pytest.raises(UsageError, match="atlas"):
        check_pairing("ixi", RECIPES["ixi"], None, listed=False)
    check_pairing("ixi", RECIPES["ixi"], None, listed=True)
    check_pairing("oasis", RECIPES["oasis"], None, listed=False)


def test_published_ct_scaling_clips_nothing() -> None:
    from ofg_deploy.nifti import Volume

    data = np.array([-1000, -160, 40, 240, 1500], np.float32).reshape(5, 1, 1).repeat(2, 1).repeat(2, 2)
    volume = Volume(data, Grid(data.shape, np.eye(4)), Path("ct.nii.gz"))
    published = Intensity.parse(RECIPES["abdomenctct-published"].intensity).apply(volume)
    assert np.allclose(published, data / 500)
    window = Intensity.parse(RECIPES["abdomenctct"].intensity).apply(volume)
    assert np.allclose(window[:, 0, 0], [0, 0, 0.5, 1, 1])
    with pytest.raises(UsageError, match="linear:-1000,1000"):
        Intensity.parse("linear")


@pytest.mark.parametrize(
    ("size", "factor", "batch"), [(200e9, 1.0, 8), (20e9, 1.0, 1), (9e9, 1.5, 1), (8e9, 2.0, 2), (2.4e9, 4.0, 1)]
)
def test_plan_follows_the_memory(size: float, factor: float, batch: int) -> None:
    """By hand: 160x192x160 mm at 1 mm is 4.92 M voxels, 12.3 GB; 60 % of the memory less 1 GiB is spent."""
    grids = [Grid((160, 180, 150), np.eye(4)), Grid((150, 190, 158), np.eye(4))]
    if size == 20e9:
        size = (160 * 192 * 160 * 2500 + 1024**3) / 0.6 + 1  # just enough
    plan = make_plan(grids, Memory(int(size), "RAM"))
    voxels = np.prod(plan.grid, dtype=float)
    assert (plan.spacing_mm, plan.batch) == ((factor,) * 3, batch)
    assert voxels * 2500 * batch <= 0.6 * size - 1024**3
    assert all(n % 16 == 0 and n * factor >= e for n, e in zip(plan.grid, (160, 190, 158), strict=True))
    with pytest.raises(InputError, match="more memory"):
        make_plan(grids, Memory(int(2.2e9), "RAM"))


def test_folder_to_run(ofg: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    images, labels = make_subjects(tmp_path / "src", 6)
    nested = images / "site-2"
    nested.mkdir()
    (labels / "site-2").mkdir()
    for folder in (images, labels):
        (folder / "s5.nii.gz").rename(folder / "site-2/s5.nii.gz")
    code, out, err = ofg("data", "folder", images, tmp_path / "set", "--labels", labels)
    assert code == 0, err
    assert "32x16x32" in out
    path = tmp_path / "set/dataset.json"
    dataset = read_dataset(path)
    assert (dataset.plan.grid, dataset.plan.spacing_mm) == ((32, 16, 32), (2.0, 2.5, 2.0))
    assert {s.id for s in dataset.subjects()} == {"s0", "s1", "s2", "s3", "s4", "site-2/s5"}
    assert len(dataset.splits["validation"]) == 2
    record = json.loads(path.read_text())
    record["labels"] = {"2": "core"}
    record["plan"]["grid"] = [48, 16, 32]  # to see that the plan is what training takes
    path.write_text(json.dumps(record))
    code, _, err = ofg("train", path, "-o", tmp_path / "run", *QUICK, "--two-way", "--intensity", "minmax", *ALL)
    assert code == 0, err
    run = json.loads((tmp_path / "run/config.json").read_text())
    assert run["config"]["expects"]["shape"] == [48, 16, 32]
    assert run["config"]["expects"]["intensity"]["kind"] == "minmax"
    assert (run["config"]["two_way"], run["config"]["flip"]) == (True, False)
    assert run["pairs"]["evaluated"] == [2]
    assert len(run["pairs"]["training"]) == 12
    pairs = find_pairs(path, None, 3, 0)
    assert len(pairs.training) == 3
    pair = load_label_pair(pairs.validation[0], Grid((27, 15, 30), np.diag([2, 2.5, 2, 1])), pairs.evaluated)
    assert set(np.unique(pair.moving_labels.data)) == set(np.unique(pair.fixed_labels)) == {0, 2}


def test_recipe_is_what_the_run_records(ofg: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    layouts.make_ixi(tmp_path / "IXI_data", 2)
    assert ofg("data", "ixi", tmp_path / "IXI_data", tmp_path / "set")[0] == 0
    arguments = ["train", tmp_path / "set", "-o", tmp_path / "run", *QUICK, *ALL, "--recipe"]
    code, _, err = ofg(*arguments, "oasis", "--grid", 16, 16, 16)
    assert code == 2
    assert "another recipe" in err
    code, _, err = ofg(*arguments, "ixi", "--grid", 16, 16, 16, "--no-flip")
    assert code == 0, err
    run = json.loads((tmp_path / "run/config.json").read_text())
    assert run["config"]["expects"] == {
        "shape": [16, 16, 16],
        "spacing_mm": [1.0, 1.0, 1.0],
        "intensity": {"kind": "minmax", "low": 0.5, "high": 99.5},
        "init": "none",
        "axes": "LIA",
    }
    assert (run["config"]["two_way"], run["config"]["flip"]) == (False, False)
    assert run["pairs"]["evaluated"] == sorted(IXI)
    assert [Path(p["moving"]).name for p in run["pairs"]["training"]] == ["atlas.nii.gz"] * 2


def spoil(images: Path, labels: Path) -> None:
    """s0 truncated in its header, s1 in its voxels, s2's labels on another grid, s3's labels missing."""
    for name, keep in (("s0", 60), ("s1", -40)):
        path = images / f"{name}.nii.gz"
        path.write_bytes(path.read_bytes()[:keep])
    path = labels / "s2.nii.gz"
    drawn = nib.load(path)
    nib.save(nib.Nifti1Image(np.asanyarray(drawn.dataobj)[:, :, 1:], drawn.affine), path)
    (labels / "s3.nii.gz").unlink()


def test_bad_scans_are_named_or_left_out(ofg: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    images, labels = make_subjects(tmp_path / "src", 9)
    spoil(images, labels)
    train = ["train", images, "--labels", labels, "-o", tmp_path / "run", "--grid", 32, 16, 32, *QUICK]
    for arguments in (train, ["data", "folder", images, tmp_path / "set", "--labels", labels]):
        code, _, err = ofg(*arguments)
        assert code == 3
        assert err.count("\n") == 1
        assert "3 of 9 scans cannot be used" in err  # damaged voxels do not show in a header
        for words in ("s0.nii.gz cannot be read", "s2.nii.gz has (27, 15, 29)", "labels/s3.nii.gz does not exist"):
            assert words in err
        assert "--skip-bad" in err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "set").exists()
    code, _, err = ofg("data", "folder", images, tmp_path / "set", "--labels", labels, "--skip-bad")
    assert code == 0
    assert "ofg: warning: left out: 3 of 9" in err
    dataset = read_dataset(tmp_path / "set/dataset.json")
    assert {s.id for s in dataset.subjects()} == {"s1", *(f"s{n}" for n in range(4, 9))}
    again = ["train", tmp_path / "set", "-o", tmp_path / "run", *QUICK, *ALL]
    code, _, err = ofg(*again)
    assert code == 3
    assert "s1.nii.gz is truncated" in err
    assert not (tmp_path / "run/config.json").exists()
    code, _, err = ofg(*again, "--skip-bad")
    assert code == 0, err
    assert "warning" in err
    assert "s1.nii.gz is truncated" in err
    record = json.loads((tmp_path / "run/config.json").read_text())
    used = {Path(p[k]).name for split in ("training", "validation") for p in record["pairs"][split] for k in p}
    assert used == {f"s{n}.nii.gz" for n in range(4, 9)}


def test_labels_missing_for_part_of_a_data_set(ofg: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    images, labels = make_subjects(tmp_path / "src", 7)
    assert ofg("data", "folder", images, tmp_path / "set", "--labels", labels)[0] == 0
    path = tmp_path / "set/dataset.json"
    record = json.loads(path.read_text())
    del record["splits"]["training"][1]["labels"]
    path.write_text(json.dumps(record))
    name = Path(record["splits"]["training"][1]["image"]).name
    with pytest.raises(InputError, match=f"1 of 7 scans.*{name} has no labels and others have"):
        check_pairs(find_pairs(path, None, None, 0), skip_bad=False)
    kept, line = check_pairs(find_pairs(path, None, None, 0), skip_bad=True)
    assert len(kept.training) == 4 * 3
    assert "8 pairs left out" in line


def test_damaged_validation_labels_stop_before_training(
    ofg: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    images, labels = make_subjects(tmp_path / "src", 6)
    assert ofg("data", "folder", images, tmp_path / "set", "--labels", labels)[0] == 0
    victim = read_dataset(tmp_path / "set/dataset.json").splits["validation"][0].labels
    victim.write_bytes(victim.read_bytes()[:-30])
    code, _, err = ofg("train", tmp_path / "set", "-o", tmp_path / "run", *QUICK)
    assert code == 3
    assert f"{victim} is truncated" in err
    assert not (tmp_path / "run/config.json").exists()
    code, _, err = ofg("train", tmp_path / "set", "-o", tmp_path / "run", *QUICK, "--skip-bad")
    assert code == 3  # both validation pairs have it
    assert "leaves no pair" in err
