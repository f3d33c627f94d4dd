"""MSIP from small fake downloads in the real layouts, and from the assembled folders."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vadapt.data.msip import Msip, list_images
from vadapt.datasets.msip import __main__ as command
from vadapt.datasets.msip import assemble
from vadapt.datasets.msip.layouts import PARTS, TOTAL, content
from vadapt.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
THINNED = {
    "DroneVehicle": 2, "SCUT": 5, "LLVIP": 2, "InfraredAerial": 3, "InfraredShip": 2,
    "InfraredSecurity": 3, "LSOTB-TIR": 4, "LasHeR": 3,
}  # fmt: skip


def put(path, value=100, size=(12, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode == "L" else (value,) * 3
    Image.new(mode, size, colour).save(path)


def fake_downloads(raw):
    """Every data set in its own layout, with things around it that are not to be taken."""
    drone = raw / "DroneVehicle" / "train"
    for name in ("00002.jpg", "00001.jpg"):
        put(drone / "trainimgr" / name, 255, (212, 208), "RGB")
        put(drone / "trainimg" / name, mode="RGB")
    put(raw / "DroneVehicle" / "val" / "valimgr" / "00001.jpg")
    inner = np.full((208, 212), 255, np.uint8)
    inner[100:108, 100:112] = 7
    Image.fromarray(inner).save(drone / "trainimgr" / "00003.png")
    (drone / "trainimgr" / "00002.jpg").unlink()

    scut = raw / "SCUT_FIR_101"
    for frame in range(21):  # frames 0, 10, 20 count; 10 is dark
        put(scut / "set00" / "V000" / f"I{frame}.png", 20 if frame == 10 else 100 + frame)
    for frame in range(11):  # the flat naming, two videos in one folder
        put(scut / "extracted" / f"set01_V001_I{frame:05d}.png", 50)
    put(scut / "extracted" / "set01_V002_I00000.png", 21)

    for split, count in (("train", 2), ("test", 1)):
        for number in range(count):
            put(raw / "LLVIP" / "infrared" / split / f"01000{number}.jpg")
            put(raw / "LLVIP" / "visible" / split / f"01000{number}.jpg", mode="RGB")
    for number in range(5):
        put(raw / "Infrared Aerial Photography" / "images" / f"{number}.jpg", number)
    for split, count in (("train", 2), ("test", 3)):
        for number in range(count):
            put(raw / "infrared_ship" / split / f"{number}.bmp")
    for folder, count in (("day", 2), ("night", 1)):  # names occur twice
        for number in range(count):
            put(raw / "InfraredSecurity" / folder / f"{number}.jpg")

    tracks = raw / "LSOTB-TIR"
    for part, video, count in ((1, "car", 11), (2, "boy", 1), (2, "dog", 10)):
        for frame in range(1, count + 1):
            folder = tracks / "LSOTB-TIR_TrainingData" / "TrainingData" / f"TIR_training_00{part}"
            put(folder / video / f"{frame:08d}.jpg", frame)
    put(tracks / "LSOTB-TIR_Evaluation" / "hog" / "img" / "0001.jpg")

    for kind, prefix in (("infrared", "i"), ("visible", "v")):
        for video, count in (("boy", 11), ("ball", 4)):
            for frame in range(count):
                put(raw / "LasHeR" / "trainingset" / video / kind / f"{prefix}{frame}.jpg", frame)
        put(raw / "LasHeR" / "testingset" / "cat" / kind / f"{prefix}0.jpg")
    return raw


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return fake_downloads(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def assembled(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("msip") / "MSIP"
    assert command.main([str(raw), "--out", str(out)]) == 0
    return out


def test_the_papers_counts_add_up():
    assert TOTAL == 178_756
    assert len(PARTS) == 8


def test_thinning_takes_what_the_paper_says(assembled):
    counts = {folder.name: len(list_images(folder)) for folder in assembled.iterdir()
              if folder.is_dir()}  # fmt: skip
    assert counts == THINNED


def test_the_white_border_is_cut(assembled):
    folder = assembled / "DroneVehicle"
    assert list_images(folder) == ["00001.png", "00003.png"]
    with Image.open(folder / "thermal" / "00003.png") as image:
        assert (image.size, image.mode) == ((12, 8), "L")
        assert np.asarray(image).min() == np.asarray(image).max() == 7


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    part = next(part for part in PARTS if part.crop)
    with pytest.raises(DataError, match=r"cannot read '.*a\.jpg': no image of a known format"):
        content(part, tmp_path / "a.jpg")


def test_every_tenth_frame_by_number_and_none_that_is_dark(assembled):
    greys = []
    for name in list_images(assembled / "SCUT"):
        with Image.open(assembled / "SCUT" / "thermal" / name) as image:
            greys.append(np.asarray(image).max())
    # By folder: the flat names come first; frame 10 comes before frame 2 by name, not by number.
    assert greys == [50, 50, 21, 100, 120]
    assert list_images(assembled / "SCUT")[-1] == "0000004.png"


def test_other_files_stay_byte_for_byte(assembled, raw):
    source = raw / "LLVIP" / "infrared" / "train" / "010001.jpg"
    assert (assembled / "LLVIP" / "thermal" / "010001.jpg").read_bytes() == source.read_bytes()


def test_the_manifest_names_every_source_in_order(assembled, raw):
    lines = (assembled / "manifest.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    assert lines[0] == "subset\tname\tsource"
    assert rows == sorted(rows)
    assert len(rows) == sum(THINNED.values())
    assert all(Path(source).is_file() for _, _, source in rows)
    sources = {(subset, name): Path(source) for subset, name, source in rows}
    lasher = [sources["LasHeR", f"{number:07d}.jpg"] for number in range(3)]
    ends = [path.relative_to(raw / "LasHeR" / "trainingset").as_posix() for path in lasher]
    assert ends == ["ball/infrared/i0.jpg", "boy/infrared/i0.jpg", "boy/infrared/i10.jpg"]
    aerial = [sources["InfraredAerial", f"{number}.jpg"].stem for number in (0, 2, 4)]
    assert aerial == ["0", "2", "4"]
    assert "night" in str(sources["InfraredSecurity", "0000002.jpg"])


def test_the_report_counts_and_says_what_is_missing(raw, tmp_path, capsys):
    assert command.main([str(raw)]) == 0
    text = capsys.readouterr().out
    assert "DroneVehicle" in text
    assert "17,990" in text
    assert "178,756" in text
    assert "missing" not in text
    put(tmp_path / "LLVIP" / "visible" / "train" / "1.jpg")
    assert command.main([str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "LasHeR: missing. Get it from https://github.com/BUGPLEASEOUT/LasHeR" in text
    assert "LLVIP: no image where they are expected" in text


def test_a_second_run_writes_nothing_and_links_are_links(raw, assembled, tmp_path, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in assembled.rglob("*.*g")}
    assert command.main([str(raw), "--out", str(assembled)]) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in assembled.rglob("*.*g")}
    assert command.main([str(raw), "--out", str(tmp_path), "--link"]) == 0
    linked = {path.parts[-3] for path in tmp_path.rglob("thermal/*") if path.is_symlink()}
    assert linked == set(THINNED) - {"DroneVehicle"}
    assert len(Msip(tmp_path)) == sum(THINNED.values())


def test_the_source_reads_subsets_by_name_and_files_by_number(assembled):
    source = Msip(assembled)
    assert len(source) == sum(THINNED.values())
    assert source.name(0) == str(assembled / "DroneVehicle" / "thermal" / "00001.png")
    record = source[1]
    assert record["image"].shape == (8, 12, 3)
    assert (record["rois"].shape, record["rois"].dtype) == ((0, 4), np.int32)
    chosen = Msip(assembled, subsets=["SCUT", "LLVIP"], channels=1)
    names = [chosen.name(index).split("/")[-3] for index in range(len(chosen))]
    assert names == ["SCUT"] * 5 + ["LLVIP"] * 2
    assert "SCUT" in repr(chosen)


def test_suffixes_are_case_sensitive_and_odd_names_sort_by_name(tmp_path):
    folder = tmp_path / "sub" / "thermal"
    for name in ("10.jpg", "9.JPEG", "2.bmp", "1.jpeg", "3.png"):
        put(folder / name)
    (folder / "4.JPG").write_bytes(b"")
    (folder / "5.PNG").write_bytes(b"")
    (folder / ".6.png").write_bytes(b"")
    assert list_images(tmp_path / "sub") == ["1.jpeg", "2.bmp", "3.png", "9.JPEG", "10.jpg"]
    put(folder / "x.png")
    assert list_images(tmp_path / "sub")[:2] == ["1.jpeg", "10.jpg"]


@pytest.mark.parametrize(("ratio", "kept"), [(1.0, 10), (0.4, 5), (0.5, 5), (0.1, 1), (0.3, 4)])
def test_data_ratio_keeps_whole_steps(tmp_path, ratio, kept):
    for number in range(10):
        put(tmp_path / "sub" / "thermal" / f"{number}.png")
    assert len(Msip(tmp_path, data_ratio=ratio)) == kept


def test_wrong_trees_are_named(tmp_path):
    with pytest.raises(DataError, match="expected the root of MSIP"):
        Msip(tmp_path / "none")
    with pytest.raises(DataError, match="no folder 'thermal' in any sub-set"):
        Msip(tmp_path)
    (tmp_path / "sub" / "thermal").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in"):
        Msip(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"in \['other'\]"):
        Msip(tmp_path)
    with pytest.raises(ConfigError, match="data_ratio is 0"):
        Msip(tmp_path, data_ratio=0)


SCRIPT = """
    import json, sys
    import numpy as np
    from vadapt.datasets.msip.__main__ import main
    from vadapt.data.roi_table import RoiTable
    from vadapt.data.sources import Tfds

    raw, assembled, out = sys.argv[1:]
    rois = RoiTable.of({"010000.jpg": np.array([[1, 2, 3, 4]], np.int32)})
    rois.save(f"{assembled}/LLVIP/roi.npz")
    report = {}
    for name, path in (("raw", raw), ("assembled", assembled)):
        main([path, "--tfds", f"{out}/{name}"])
        source = Tfds("msip", data_dir=f"{out}/{name}", channels=1)
        records = [source[index] for index in range(len(source))]
        report[name] = sorted(
            [str(r["source"]), r["image"].shape, np.asarray(r["rois"]).tolist(), str(r["file"])]
            for r in records
        )
    report["tensorflow"] = [n for n in sys.modules if n.split(".")[0] == "tensorflow"]
    print(json.dumps(report))
"""


def test_tfds_builds_from_both_kinds_of_folders_without_tensorflow(raw, assembled, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), raw, assembled, tmp_path],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["tensorflow"] == []
    for name in ("raw", "assembled"):
        assert len(report[name]) == sum(THINNED.values())
        assert {tuple(shape) for _, shape, _, _ in report[name]} == {(8, 12, 1)}
    found = [rois for _, _, rois, _ in report["assembled"] if rois]
    assert found == [[[1, 2, 3, 4]]]
    assert any("trainimgr" in file for *_, file in report["raw"])


def test_a_folder_without_any_of_the_eight_is_refused(tmp_path):
    found = assemble.find(tmp_path)
    assert not any(one.images for one in found)
    assert assemble.report(found).count("missing. Get it from") == 8
