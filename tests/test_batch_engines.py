"""Several engines, several pairs in one run, engines that fail, and images that pairs share."""

from __future__ import annotations

import threading

import nibabel as nib
import numpy as np
import pytest
from batches import GAINS, batch_record, means, pairs_of, results, statuses

from ofg_deploy.cli.verbs.batch import Running, register
from ofg_deploy.errors import DeviceError, InputError
from ofg_deploy.nifti import load_image
from ofg_deploy.serve.engine import open_engine
from ofg_deploy.serve.images import Images


class Two:
    """Two engines on the CPU, as there would be for two GPUs; each remembers in which threads it was at once."""

    def __init__(self) -> None:
        self.used: list[int] = []

    def __call__(self, model, device, threads, rebuild, runtime):
        return [self.counted(open_engine(model, "cpu", 1), number) for number in (0, 1)]

    def counted(self, engine, number):
        inner, busy = engine.predict, threading.Lock()

        def predict(moving, fixed):
            assert busy.acquire(blocking=False), "an engine runs one pair at a time"
            try:
                self.used.append(number)
                if len(set(self.used)) < 2:  # hold on to it until the other one has been needed
                    assert meet.wait(20)
                else:
                    meet.set()
                return inner(moving, fixed)
            finally:
                busy.release()

        engine.predict = predict
        return engine


meet = threading.Event()


def test_two_engines_share_the_pairs(tmp_path, images, atlas, tiny_model) -> None:
    meet.clear()
    model, both = tiny_model(**GAINS).path, Two()
    for name, more in (("two", {"open": both}), ("one", {})):
        out = tmp_path / name
        record = register(pairs_of(atlas, images, out), out, means(model, out, 3, **more), Running(), [])
        assert record.counts()["done"] == 4
    assert set(both.used) == {0, 1}
    assert batch_record(tmp_path / "two")["runtime"]["engines"] == 2
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_lost_device_stops_the_batch(tmp_path, images, atlas, tiny_model) -> None:
    def lost(model, *_):
        engine = open_engine(model, "cpu", 1)

        def predict(moving, fixed):
            raise DeviceError("the GPU is gone")

        engine.predict = predict
        return [engine]

    out = tmp_path / "out"
    with pytest.raises(DeviceError, match=r"the GPU is gone: the batch stopped, 0 of 4 pairs done.*--resume goes on"):
        register(pairs_of(atlas, images, out), out, means(tiny_model().path, out, open=lost), Running(), [])
    assert set(statuses(out).values()) == {"pending"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtime_that_fails_stops_the_batch(tmp_path, images, atlas, tiny_model, runtime) -> None:
    """What a runtime raises where a GPU is gone or its memory is full is a class of its own, in no tree of ours."""
    pytest.importorskip(runtime)

    class Gone:
        def run(self, *_):
            raise RuntimeError("CUDA failure 999: unknown error\nstack")

        def infer(self, *_, **__):
            self.run()

    def broken(model, *_):
        engine = open_engine(model, "cpu", 1, runtime=runtime)
        engine._session = engine._request = Gone()
        return [engine]

    out = tmp_path / "out"
    with pytest.raises(DeviceError, match=f"{runtime} .* failed on CPU.*: CUDA failure 999.*the batch stopped, 0 of 4"):
        register(pairs_of(atlas, images, out), out, means(tiny_model().path, out, open=broken), Running(), [])
    assert set(statuses(out).values()) == {"pending"}


def test_several_pairs_in_one_run(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    """Elementwise arithmetic has no order of summation: here a batch must not change a bit."""
    model = tiny_model(**GAINS).path
    for size in (1, 3):  # four pairs: a run is filled up
        arguments = ["register", atlas, images, "-m", model, "-o", tmp_path / str(size), "--runtime", "onnxruntime"]
        code, out, _ = run_cli([*arguments, "--batch-size", size])
        assert code == 0
    assert "3 pairs in one run change a field in no bit" in out
    assert results(tmp_path / "3") == results(tmp_path / "1")


def test_resume_takes_what_another_batch_size_or_number_of_threads_made(
    tmp_path, images, atlas, tiny_model, run_cli
) -> None:
    arguments = ["register", atlas, images, "-m", tiny_model(**GAINS).path, "-o", tmp_path / "out"]
    arguments += ["--runtime", "onnxruntime", "--resume"]
    assert run_cli([*arguments, "--batch-size", 2, "--threads", 1, "--num-parts", 2])[0] == 0
    assert run_cli([*arguments, "--batch-size", 3, "--threads", 2])[0] == 0
    assert list(statuses(tmp_path / "out").values()) == ["skipped", "done", "skipped", "done"]


def test_a_batch_size_that_the_workers_cannot_fill_is_said(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    arguments = ["register", atlas, images, "-m", tiny_model().path, "--runtime", "onnxruntime", "--batch-size", 3]
    code, _, err = run_cli([*arguments, "-o", tmp_path / "2", "--workers", 2])
    assert (code, err.count("\n")) == (0, 1)
    assert "--batch-size 3 with --workers 2: every run repeats pairs to be full; give --workers 4" in err
    for workers in (0, 3):
        code, _, err = run_cli([*arguments, "-o", tmp_path / f"other{workers}", "--workers", workers])
        assert (code, err) == (0, "")


def test_engine_of_one_pair_refuses_a_batch_size(tmp_path, images, atlas, tiny_model, run_cli) -> None:
    pytest.importorskip("openvino")
    arguments = ["register", atlas, images, "-m", tiny_model().path, "-o", tmp_path / "out", "--runtime", "openvino"]
    code, _, err = run_cli([*arguments, "--batch-size", 2])
    assert (code, err.count("\n")) == (2, 1)
    assert "one pair at a time" in err


def test_shared_images_are_read_once_and_only_read(images, monkeypatch) -> None:
    path, other = images / "s0.nii.gz", images / "s1.nii.gz"
    reads = []
    monkeypatch.setattr("ofg_deploy.serve.images.load_image", lambda p, most: reads.append(p) or load_image(p, most))
    kept = Images({path})
    first = kept.image(path, 10**6)
    assert kept.image(path, 10**6) is first
    assert reads == [path]
    with pytest.raises(ValueError, match="read-only"):
        first.data[0, 0, 0] = 1
    kept.image(other, 10**6)
    kept.image(other, 10**6)
    assert reads == [path, other, other]
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1] * 2, image.affine), path)
    assert kept.image(path, 10**6).grid.shape != first.grid.shape  # another file under that name
    with pytest.raises(InputError, match="max_voxels"):
        kept.image(path, 10)
    small = Images({path, other}, max_bytes=kept.image(other, 10**6).data.nbytes)
    for _ in range(2):
        small.image(path, 10**6)
        small.image(other, 10**6)
    assert len(small._kept) == 1
    [held] = small._kept
    small._shared |= {images / "s2.nii.gz"}
    data = np.arange(64000, dtype=np.float32).reshape(40, 40, 40)
    nib.save(nib.Nifti1Image(data, image.affine), images / "s2.nii.gz")
    small.image(images / "s2.nii.gz", 10**6)  # larger than all that is kept: nothing makes way for it
    assert list(small._kept) == [held]
