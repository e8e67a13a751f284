"""Guides: compared where the network sees the images; carried onto its grid; absent without a trace; never exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import EXPECTS, make_subjects, tiny_config

from ofg_deploy.data.description import Dataset, Subject, read_dataset, write_dataset
from ofg_deploy.errors import InputError, UsageError
from ofg_deploy.export.api import export_model
from ofg_deploy.geometry import Grid, lattice, transform_points
from ofg_deploy.nifti import load_image, save_volume
from ofg_deploy.preprocess import Intensity
from ofg_deploy.train.api import train_network
from ofg_deploy.train.batches import Item, TrainingFiles, load_batches
from ofg_deploy.train.checkpoint import load_checkpoint
from ofg_deploy.train.dataset import file_digest, load_cached, prepare_all
from ofg_deploy.train.guides import check_own, prepare_guides, without_guides
from ofg_deploy.train.objective import Batch, Objective
from ofg_deploy.train.pairs import PairFiles, PairList, check_pairs, find_pairs

SLOPE = np.array([1.0, 2.5, -0.7])


@pytest.fixture(scope="module")
def guided(tmp_path_factory) -> tuple[Path, Path]:
    """Images in which bright is dark, and the others, their guides: coarser, with axes turned around."""
    folder = tmp_path_factory.mktemp("guided")
    images, _ = make_subjects(folder)
    guides = folder / "guides"
    guides.mkdir()
    for path in sorted(images.iterdir()):
        volume = load_image(path)
        rng = np.random.default_rng(int(path.name[1]))
        turned = volume.grid.world_from_vox @ np.array([[-1, 0, 0, 26], [0, 1, 0, 0], [0, 0, -1, 29], [0, 0, 0, 1.0]])
        save_volume(
            guides / path.name, np.ascontiguousarray(volume.data[::-1, :, ::-1]), Grid(volume.grid.shape, turned)
        )
        save_volume(path, 200 - 2 * volume.data + rng.normal(0, 3, volume.data.shape).astype(np.float32), volume.grid)
    return images, guides


def listed(folder: Path, images: Path, guides: Path, names: str = "01234", guided_by: str | None = None) -> Path:
    """A list of all ordered pairs of the first three to train on, and of the others to validate on."""
    rows = ["fixed,moving,fixed_guide,moving_guide,split"]
    own = dict(zip(names, guided_by or names, strict=True))
    for a in names:
        for b in names:
            split = {"0": "training", "1": "training", "2": "training"}.get(a, "validation")
            if a != b and (a in "012") == (b in "012"):
                files = (images / f"s{a}", images / f"s{b}", guides / f"s{own[a]}", guides / f"s{own[b]}")
                rows.append(",".join([*(f"{f}.nii.gz" for f in files), split]))
    path = folder / "pairs.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_guides_lie_where_their_images_lie(tmp_path) -> None:
    """A guide that is linear in the world, in another orientation and voxel size, through a start that is a shift."""
    rng = np.random.default_rng(0)
    shape, files = (20, 14, 24), {}
    for n, name in enumerate(("fixed", "moving")):
        own = np.array([[2.0, 0, 0, -20], [0, 2.5, 0, -16], [0, 0, 2.0, -25], [0, 0, 0, 1]])
        own[:3, 3] += n * np.array([7.0, -4.0, 3.0])  # what init=centre takes away
        other = np.array([[0, 0, -3.0, 62], [0, 3.0, 0, -40], [2.0, 0, 0, -50], [0, 0, 0, 1]])
        files[name], files[f"{name}_guide"] = (tmp_path / f"{name}{kind}.nii.gz" for kind in ("", "_guide"))
        save_volume(files[name], rng.random(shape, dtype=np.float32), Grid(shape, own))
        grid = Grid((50, 28, 42), other)
        ramp = np.tensordot(SLOPE, transform_points(other, lattice(grid.shape)), 1)
        save_volume(files[f"{name}_guide"], ramp.astype(np.float32), grid)
    pair = PairFiles(**files)
    expects = replace(EXPECTS, shape=(16, 12, 20), init="centre", intensity=Intensity("minmax"))
    [on] = prepare_all([pair], expects, tmp_path / "cache", 1, lambda: None)
    [file] = prepare_guides([pair], [on], expects, 1)
    [batch] = load_batches(TrainingFiles([on], [], [file]), [[Item(0, False, ())]], 0)
    prepared = load_cached(on)
    assert np.abs(prepared.moving_from_fixed[:3, 3] - [7, -4, 3]).max() < 1e-6
    points = transform_points(prepared.grid.world_from_vox, lattice(prepared.grid.shape))
    for found, matrix in ((batch.fixed_guide, np.eye(4)), (batch.moving_guide, prepared.moving_from_fixed)):
        whole = load_image(pair.fixed_guide).data  # both guides have the same grid and values
        wanted = (np.tensordot(SLOPE, transform_points(matrix, points), 1) - whole.min()) / np.ptp(whole)
        np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=2e-6)
    [turned] = load_batches(TrainingFiles([on], [], [file]), [[Item(0, True, (1,))]], 0)
    torch.testing.assert_close(turned.fixed_guide, batch.moving_guide.flip(3), rtol=0, atol=0)
    torch.testing.assert_close(turned.fixed, batch.moving.flip(3), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"guidance": "none"}, {"guidance_optimiser": "greedy"}, {"similarity": "mse"}])
def test_the_guides_are_compared_and_nothing_else(options) -> None:
    """The loss of images with guides is that of the guides as images, and of none it is that of the images."""
    torch.manual_seed(0)
    moving, fixed, moving_guide, fixed_guide = torch.rand(4, 1, 1, *EXPECTS.shape)
    field = 0.3 * torch.randn(1, 3, *EXPECTS.shape)
    objective = Objective(tiny_config(**options), torch.device("cpu"))
    for epoch in (0, 1):
        with_guides = objective(field, Batch(moving, fixed, None, None, moving_guide, fixed_guide), epoch).numbers()
        # Sums are in another order where arrays lie otherwise in memory.
        assert with_guides == pytest.approx(
            objective(field, Batch(moving_guide, fixed_guide), epoch).numbers(), rel=1e-5
        )
        assert with_guides != pytest.approx(objective(field, Batch(moving, fixed), epoch).numbers(), rel=1e-4)


def test_the_network_is_trained_by_guides_and_exported_as_without(guided, tmp_path) -> None:
    """Weights differ, the graph does not: node for node, and the names and shapes of the tensors."""
    import onnx

    source = listed(tmp_path, *guided)
    how = {"grid": EXPECTS.shape, "spacing": EXPECTS.spacing_mm, "init": "none", "epochs": 1, "steps_per_epoch": 2}
    how |= {"ncc_window": 5, "guidance_start": 0.0, "picture_every": 0, "network": "voxelmorph", "threads": 1}
    graphs, configs = [], []
    for name, options in (("with", {}), ("without", {"guides": False})):
        run = train_network(source, tmp_path / name, cache=tmp_path / "cache", **how, **options)
        configs.append(run.config)
        model = onnx.load(export_model(run.folder, tmp_path / f"{name}.onnx").path)
        nodes = [
            (n.op_type, [*n.input], [*n.output], [a.SerializeToString() for a in n.attribute]) for n in model.graph.node
        ]
        weights = {i.name: [*i.dims] for i in model.graph.initializer}
        graphs.append((nodes, weights, [i.name for i in model.graph.input], [o.name for o in model.graph.output]))
    assert graphs[0] == graphs[1]
    assert [c.guides for c in configs] == [True, False]
    record = json.loads((tmp_path / "with/config.json").read_text())
    assert all(row["fixed_guide"] for row in record["pairs"]["training"])
    assert record["config"]["guides"] is True
    states = [load_checkpoint(tmp_path / f"{name}/last.pt").state for name in ("with", "without")]
    assert any(not torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    guide = Path(record["pairs"]["training"][0]["fixed_guide"]).name
    changed = load_image(guided[1] / guide)
    save_volume(guided[1] / guide, changed.data * 2, changed.grid)
    file_digest.cache_clear()
    with pytest.raises(InputError, match="images changed"):
        train_network(None, tmp_path / "with", resume=True)


def test_a_data_set_and_a_list_name_guides(guided, tmp_path) -> None:
    images, guides = guided
    people = [Subject(f"s{n}", images / f"s{n}.nii.gz", guide=guides / f"s{n}.nii.gz") for n in range(5)]
    path = tmp_path / "dataset.json"
    write_dataset(path, Dataset("d", "mr", {"training": tuple(people[:3]), "validation": tuple(people[3:])}))
    assert [s.guide for s in read_dataset(path).subjects()] == [s.guide for s in people]
    of_set, of_list = find_pairs(path, None, None, 0), find_pairs(listed(tmp_path, images, guides), None, None, 0)
    for pairs in (of_set, of_list):
        assert len(pairs.training) == 6
        assert check_pairs(pairs, skip_bad=False) == (pairs, None)
        assert all(p.moving_guide == guides / p.moving.name for p in pairs.training)
    assert without_guides(of_set).training[0].fixed_guide is None


def test_a_guide_of_somebody_else_is_refused(guided, tmp_path) -> None:
    for order, names in (("01234", None), ("12034", "s[012].nii.gz")):
        pairs = find_pairs(listed(tmp_path, *guided, guided_by=order), None, None, 0).training
        prepared = prepare_all(list(pairs), EXPECTS, tmp_path / "cache", 1, lambda: None)
        files = prepare_guides(pairs, prepared, EXPECTS, 1)
        if names is None:
            check_own(pairs, prepared, files)
        else:
            with pytest.raises(InputError, match=f"no better than those of other subjects do, first .*{names}"):
                check_own(pairs, prepared, files)


def test_guides_that_are_missing_or_elsewhere(guided, tmp_path) -> None:
    images, guides = guided
    pairs = find_pairs(listed(tmp_path, images, guides), None, None, 0)
    part = PairList((replace(pairs.training[0], fixed_guide=None, moving_guide=None), *pairs.training[-1:]), ())
    with pytest.raises(InputError, match="has no guide and others have"):
        check_pairs(part, skip_bad=False)
    away = load_image(guides / "s0.nii.gz")
    matrix = away.grid.world_from_vox.copy()
    matrix[0, 3] += 45
    save_volume(tmp_path / "away.nii.gz", away.data, Grid(away.grid.shape, matrix))
    elsewhere = replace(pairs.training[0], fixed_guide=tmp_path / "away.nii.gz")
    with pytest.raises(InputError, match=r"away.nii.gz covers \d+% of its image .*another subject"):
        check_pairs(PairList((elsewhere,), ()), skip_bad=False)
    with pytest.raises(InputError, match=r"gone\.nii\.gz"):
        check_pairs(PairList((replace(elsewhere, fixed_guide=tmp_path / "gone.nii.gz"),), ()), skip_bad=False)
    with pytest.raises(UsageError, match=r"guides=True.*no guides"):
        train_network(images, tmp_path / "run", guides=True)
    text = "fixed,moving,fixed_guide\na.nii,b.nii,c.nii\n"
    (tmp_path / "half.csv").write_text(text)
    with pytest.raises(InputError, match="has a guide for one image only"):
        find_pairs(tmp_path / "half.csv", None, None, 0)
