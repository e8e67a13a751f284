"""``ofg report``: what lies in a folder, judged and told; exit codes; nothing that is broken stops the others."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from report_pairs import GOOD, Done, Page, run_ofg, write_pair

from ofg_deploy.report.measures import NONE

HOSTILE = "<img src=x onerror=alert(1)>&\"'_to_\té\n"
posix = pytest.mark.skipif(os.name != "posix", reason="such file names need a POSIX file system")


@pytest.fixture
def ofg(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``ofg report`` in this process."""
    return lambda *arguments: run_ofg(monkeypatch, capfd, "report", *arguments)


def tsv(path: Path) -> dict[str, dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["pair"]: row for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)}


def test_folder_of_good_pairs(ofg: Callable[..., Done], tmp_path: Path) -> None:
    for seed, name in enumerate(("a_to_f", "b_to_f", "c_to_f")):
        write_pair(tmp_path, name, seed, ncc_after=0.9 + 0.01 * seed)
    (tmp_path / "results.json").write_text(json.dumps({"tool": "ofg_deploy", "schema": 1}))  # of ofg eval
    (tmp_path / "somebody.json").write_text("[1]")
    done = ofg(tmp_path, "--qc-fail")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 pairs: 3 pass" in done.stdout
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.named("section")) == 3
    rows = tsv(tmp_path / "qc.tsv")
    assert list(rows) == ["a_to_f", "b_to_f", "c_to_f"]
    for seed, row in enumerate(rows.values()):
        assert (row["status"], row["reasons"], row["outlier_z"], row["dice_after"]) == ("pass", "n/a", "n/a", "n/a")
        assert float(row["ncc_after"]) == pytest.approx(0.9 + 0.01 * seed)
        assert float(row["ncc_gain"]) == pytest.approx(0.1 + 0.01 * seed)
        assert float(row["seconds"]) == pytest.approx(0.75)


def test_numbers_that_differ_by_rounding_have_a_distribution(ofg: Callable[..., Done], tmp_path: Path) -> None:
    for seed, (ncc, jacobian) in enumerate([(0.9, 0.0), (math.nextafter(0.9, 1), 5e-324), (0.9, 0.0)]):
        write_pair(tmp_path, f"{seed}_to_f", seed, ncc_after=ncc, min_jacobian=jacobian)
    done = ofg(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len([a for a in page.named("svg") if "3 pairs, median" in a.get("aria-label", "")]) == 6  # judged, and known


def test_the_same_files_make_the_same_bytes(ofg: Callable[..., Done], tmp_path: Path) -> None:
    for seed in range(6):
        write_pair(tmp_path, f"{seed}_to_f", seed)
    written = []
    for name in ("one", "two"):
        assert ofg(tmp_path, "-o", tmp_path / name / "report.html").returncode == 0
        written.append([(tmp_path / name / file).read_bytes() for file in ("report.html", "qc.tsv")])
    assert written[0] == written[1]


def test_outliers_come_first_and_say_by_what(ofg: Callable[..., Done], tmp_path: Path) -> None:
    for seed in range(11):
        write_pair(tmp_path, f"{seed:02}_to_f", seed, ncc_after=0.9 + 0.001 * (seed % 5), overlap=1 - 0.001 * seed)
    write_pair(tmp_path, "zz_to_f", 20, ncc_after=0.85)
    write_pair(tmp_path, "zy_to_f", 21, folding_percent=5.5)
    assert ofg(tmp_path).returncode == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    table = [cells for cells in page.cells if cells and re.search("_to_f", cells[0])]
    assert [cells[0] for cells in table[:2]] == ["zy_to_f", "zz_to_f"]
    rows = tsv(tmp_path / "qc.tsv")
    assert rows["zy_to_f"]["status"] == "fail"
    assert rows["zy_to_f"]["reasons"].startswith("fail: folding_percent 5.5 is above 5")
    assert rows["zz_to_f"]["status"] == "warn"
    assert rows["zz_to_f"]["outlier_measure"] == "ncc_after"
    assert float(rows["zz_to_f"]["outlier_z"]) > 3.5


@pytest.mark.parametrize(("value", "code"), [(0.5, 0), (0.5000001, 7)])
def test_qc_fail_and_a_value_at_its_limit(ofg: Callable[..., Done], tmp_path: Path, value: float, code: int) -> None:
    write_pair(tmp_path, "a_to_f", folding_percent=value)
    done = ofg(tmp_path, "--limit", "folding_percent=0.5", "--qc-fail")
    assert done.returncode == code
    assert tsv(tmp_path / "qc.tsv")["a_to_f"]["status"] == ("fail" if code else "pass")
    assert (tmp_path / "report.html").exists()  # after everything is written
    if code:
        assert re.fullmatch(r"ofg: error: 1 of 1 pairs fail, the worst \(a_to_f\): .*\n", done.stderr)


def test_without_qc_fail_a_failure_is_told_but_no_error(ofg: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, "a_to_f", ncc_after=0.7, folding_percent=30)
    (tmp_path / "limits.json").write_text('{"ncc_gain": {"warn": 0.1, "fail": -0.05}}')
    done = ofg(tmp_path, "--limits", tmp_path / "limits.json", "-o", tmp_path / "out/x.html")
    assert (done.returncode, done.stderr) == (0, "")
    reasons = tsv(tmp_path / "out/qc.tsv")["a_to_f"]["reasons"]
    assert reasons == "fail: ncc_gain -0.1 is below -0.05; fail: folding_percent 30 is above 5"
    assert "ncc_gain -0.1 is below -0.05" in done.stdout


def test_what_is_broken_is_a_row_of_its_own(ofg: Callable[..., Done], tmp_path: Path) -> None:
    names = ["good", "half", "changed", "gone", "damaged", "infinite", "other-shape", "newer", "endless", "far"]
    paths = {name: write_pair(tmp_path, name, seed) for seed, name in enumerate(names)}
    paths["half"].write_text(paths["half"].read_text()[:200])
    images = tmp_path / "images"
    (images / "2-moving.nii.gz").write_bytes((images / "0-moving.nii.gz").read_bytes())
    (images / "3-fixed.nii.gz").unlink()
    (tmp_path / "damaged_Warp.nii.gz").write_bytes(b"nothing")
    record = json.loads(paths["infinite"].read_text())
    paths["infinite"].write_text(json.dumps({**record, "metrics": {**GOOD, "overlap": float("inf")}}))
    (tmp_path / "other-shape_warped.nii.gz").unlink()
    write_other_shape(tmp_path / "other-shape_warped.nii.gz")
    paths["newer"].write_text(json.dumps({**json.loads(paths["newer"].read_text()), "schema": 2}))
    endless = 10**400  # JSON's whole numbers have no end
    paths["endless"].write_text(json.dumps({**record, "metrics": {**GOOD, "overlap": endless}}))
    record = json.loads(paths["far"].read_text())
    paths["far"].write_text(json.dumps({**record, "start": {"moving_from_fixed": [[endless] * 4] * 4}}))
    done = ofg(tmp_path)
    assert done.returncode == 6
    assert done.stderr.count("\n") == 1
    assert "9 of 10 pairs cannot be read in full" in done.stderr
    rows = tsv(tmp_path / "qc.tsv")
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(names, "unreadable") | {"good": "pass"}
    for name, told in {
        "half": "not a readable sidecar",
        "changed": "has changed since",
        "gone": "cannot be read: No such file",
        "damaged": "damaged_Warp.nii.gz",
        "infinite": "overlap is inf, no finite number",
        "other-shape": "has the shape (3, 3, 3), not that of the fixed image, (12, 14, 10)",
        "newer": "schema 1",
        "endless": "overlap is 1000",
        "far": "start.moving_from_fixed[0][0] is 1000",
    }.items():
        assert told in rows[name]["reasons"], name
    assert float(rows["gone"]["ncc_after"]) == 0.9  # what is known is shown all the same
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.named("section")) == 10


def write_other_shape(path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    np = pytest.importorskip("numpy")
    nib.save(nib.Nifti1Image(np.arange(27, dtype=np.float32).reshape(3, 3, 3), np.eye(4)), path)


def test_a_failing_pair_whose_image_is_gone_still_fails(ofg: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, "a_to_f", folding_percent=50)
    (tmp_path / "images/0-moving.nii.gz").unlink()
    assert ofg(tmp_path).returncode == 6
    done = ofg(tmp_path, "--qc-fail", "--overwrite")
    assert done.returncode == 7
    assert tsv(tmp_path / "qc.tsv")["a_to_f"]["status"] == "fail"


def test_pairs_that_could_not_be_registered_are_shown_and_fail(ofg: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, "a_to_f")
    with (tmp_path / "failures.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["pair", "error"], ["b_to_f", 'no "overlap",\nnone at all']])
    done = ofg(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    row = tsv(tmp_path / "qc.tsv")["b_to_f"]
    assert row["status"] == "not registered"
    assert row["reasons"] == 'not registered: no "overlap",\\nnone at all'
    assert ofg(tmp_path, "--qc-fail", "--overwrite").returncode == 7
    (tmp_path / "a_to_f.json").unlink()
    assert ofg(tmp_path, "--overwrite").returncode == 0  # nothing but failures is still worth a page
    (tmp_path / "failures.csv").write_text("name,reason\nb,c\n")
    assert ofg(tmp_path, "--overwrite").returncode == 3


def test_pairs_of_a_batch_in_folders_and_parts(ofg: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, "a_to_f")
    write_pair(tmp_path / "visit-1", "b_to_f", 1)
    for seed, name in enumerate(("c_to_f", "d_to_f"), start=2):
        write_pair(tmp_path / "visit-2", name, seed)
    write_pair(tmp_path / ".partial-x", "e_to_f", 4)
    (tmp_path / "._a_to_f.json").write_bytes(b"\x00\x05")  # what a Mac leaves on other disks
    (tmp_path / "batch.json").write_text(json.dumps({"tool": "ofg_deploy", "schema": 1, "kind": "batch"}))
    for part in (0, 2):
        text = f"pair,error,exit_code\np{part}_to_f,damaged,3\n"
        (tmp_path / f"failures_part-{part}-of-3.csv").write_text(text)
    assert ofg(tmp_path).returncode == 0
    names = ["a_to_f", "visit-1", "visit-2/c_to_f", "visit-2/d_to_f"]
    assert {name: row["status"] for name, row in tsv(tmp_path / "qc.tsv").items()} == {
        **dict.fromkeys(["p0_to_f", "p2_to_f"], "not registered"),
        **dict.fromkeys(names, "pass"),
    }
    assert len(Page((tmp_path / "report.html").read_text(encoding="utf-8")).named("img")) == 4


@posix
def test_names_are_text_wherever_they_appear(ofg: Callable[..., Done], tmp_path: Path) -> None:
    names = [HOSTILE, "<script>alert(2)", "[bold]x[:smile:", os.fsdecode(b"\xff\xfe")]
    for seed, name in enumerate(names):
        write_pair(tmp_path, name, seed, folding_percent=2)  # a reason to be told on the terminal
    with (tmp_path / "failures.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["pair", "error"], ["</a></script>", "</td><script>alert(3)</script>"]])
    done = ofg(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.named("script")) == 1
    assert {a["class"] for a in page.named("img")} == {"thumb"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    shown = {cells[0] for cells in page.cells}
    assert {*names[:3], r"\udcff\udcfe", "</a></script>"} <= shown
    lines = (tmp_path / "qc.tsv").read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    assert len({line.count("\t") for line in lines}) == 1
    assert len(lines) == 2 + len(names)


def test_the_policy_names_the_one_style_and_script(ofg: Callable[..., Done], tmp_path: Path) -> None:
    for seed in range(3):
        write_pair(tmp_path, f"{seed}_to_f", seed)
    assert ofg(tmp_path).returncode == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    [policy] = [a["content"] for a in Page(text).named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed.pop("default-src") == "'none'"
    assert allowed.pop("img-src") == "data:"
    for tag in ("style", "script"):
        [inside] = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert allowed.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert allowed == {"base-uri": "'none'", "form-action": "'none'"}
    assert not [a for _, a in Page(text).tags if "style" in a]  # the policy would not apply it
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|fetch\(|XMLHttp|import\(", text)


def test_columns_can_be_sorted_by_the_keyboard(ofg: Callable[..., Done], tmp_path: Path) -> None:
    for seed in range(3):
        write_pair(tmp_path, f"{seed}_to_f", seed)
    assert ofg(tmp_path).returncode == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    sortable = [a for a in page.named("th") if "data-kind" in a]
    assert len(sortable) == len([a for a in page.named("button") if a["type"] == "button"]) > 8
    values = [a["data-value"] for a in page.named("td") if "data-value" in a]
    assert all(value == "" or float(value) == float(value) for value in values)


@pytest.mark.parametrize(("pictures", "figures"), [("0", 0), ("2", 2), ("all", 4)])
def test_number_of_figures(ofg: Callable[..., Done], tmp_path: Path, pictures: str, figures: int) -> None:
    for seed in range(4):
        write_pair(tmp_path, f"{seed}_to_f", seed, overlap=0.6 if seed == 3 else 0.3)
    assert ofg(tmp_path, "--pictures", pictures).returncode == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.named("section")) == figures
    assert len(page.named("img")) == 4
    linked = [a["href"] for a in page.named("a")]
    assert sorted(linked) == sorted(f"#{a['id']}" for a in page.named("section"))
    if figures == 2:
        assert "3_to_f" not in [cells[0] for cells in page.cells[:3]]  # worst first


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["absent"], 3, "is not a folder"),
        (["empty"], 3, "holds no sidecar"),
        (["pairs", "--pictures", "some"], 2, "a number or all"),
        (["pairs", "--limit", "beauty=1"], 2, "use one of"),
        (["pairs", "--limits", "absent.json"], 3, "cannot be read"),
        (["pairs", "-o", "report.pdf"], 2, "ends in .html"),
        (["pairs"], 3, "exists already"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    ofg: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    write_pair(tmp_path / "pairs", "a_to_f")
    (tmp_path / "pairs/qc.tsv").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = sorted(p.name for p in (tmp_path / "pairs").iterdir())
    monkeypatch.chdir(tmp_path)
    done = ofg(*arguments)
    assert done.returncode == code
    assert re.fullmatch(r"ofg: error: .*\n", done.stderr)
    assert told in done.stderr
    assert sorted(p.name for p in (tmp_path / "pairs").iterdir()) == before
    assert (tmp_path / "pairs/qc.tsv").read_text() == "mine"


def test_a_warning_of_the_registration_is_at_least_warn(ofg: Callable[..., Done], tmp_path: Path) -> None:
    """Text and status in the terminal, in the table and in the page; a failure stays one."""
    said = "93 % of the fixed image's content lies outside the network's grid"
    for name, numbers in (("a_to_f", {}), ("b_to_f", {"folding_percent": 30.0}), ("c_to_f", {})):
        path = write_pair(tmp_path, name, **numbers)
        if name != "c_to_f":
            path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": [said]}))
    done = ofg(tmp_path)
    assert done.returncode == 0
    assert "3 pairs: 1 pass, 1 warn, 1 fail" in done.stdout
    assert f"a_to_f: warn: {said}" in done.stdout
    rows = tsv(tmp_path / "qc.tsv")
    assert {name: row["status"] for name, row in rows.items()} == {"a_to_f": "warn", "b_to_f": "fail", "c_to_f": "pass"}
    assert rows["b_to_f"]["reasons"].endswith(f"warn: {said}")
    assert (
        Page((tmp_path / "report.html").read_text(encoding="utf-8")).text.count(said) == 4
    )  # table and figure of both


@pytest.mark.parametrize("warnings", ["all is well", [3], {"a": "b"}])
def test_warnings_that_are_none_are_damage(ofg: Callable[..., Done], tmp_path: Path, warnings: object) -> None:
    path = write_pair(tmp_path, "a_to_f")
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": warnings}))
    done = ofg(tmp_path)
    assert done.returncode == 6
    assert "is a damaged sidecar: warnings" in done.stderr


def test_an_earlier_report_is_replaced_and_another_file_is_not(ofg: Callable[..., Done], tmp_path: Path) -> None:
    write_pair(tmp_path, "a_to_f", folding_percent=0.4)
    assert ofg(tmp_path).returncode == 0
    assert ofg(tmp_path, "--limit", "folding_percent=0.3").returncode == 0
    assert tsv(tmp_path / "qc.tsv")["a_to_f"]["status"] == "fail"
    (tmp_path / "report.html").write_text("<html>mine</html>")
    assert ofg(tmp_path).returncode == 3
    assert (tmp_path / "report.html").read_text() == "<html>mine</html>"


def test_the_page_names_images_model_and_labels(ofg: Callable[..., Done], tmp_path: Path) -> None:
    path = write_pair(tmp_path, "a_to_f", seed=4)
    record = json.loads(path.read_text())
    record |= {
        "version": "1.2.3",
        "model": {"network": "lku-net", "sha256": "0123456789abcdef" * 4},
        "runtime": {"name": "onnxruntime 1.2", "provider": "CPU"},
    }
    record["metrics"] |= {
        "dice_per_label": {"17": 0.8125, "4": 0.5},
        "dice_before_per_label": {"17": 0.25, "<b>": 0.5},
        "hd95_mm_per_label": {"4": None, "17": 2.5},
    }
    path.write_text(json.dumps(record))
    assert ofg(tmp_path).returncode == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for text in ("4-fixed.nii.gz", "4-moving.nii.gz", "lku-net", "0123456789ab", "onnxruntime 1.2", "ofg_deploy 1.2.3"):
        assert text in page.text
    assert str(tmp_path) not in page.text  # names, not places
    rows = {cells[0]: cells[1:] for cells in page.cells if cells and cells[0] in ("4", "17", "<b>")}
    assert rows == {"4": [NONE, "0.500", NONE], "17": ["0.250", "0.812", "2.50"], "<b>": ["0.500", NONE, NONE]}
