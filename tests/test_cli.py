"""The command line, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fcnopt.bundle import Bundle
from fcnopt.cli import main
from fcnopt.evaluate.bench import BenchResult
from fcnopt.graph import io
from fcnopt.media.synth import SceneOptions, SynthClip


def fcnopt(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def work(tmp_path: Path, tiny_model: Path, street: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: checkpoint, frames in calib/, a clip."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_model.with_suffix(".pth"), tmp_path / "net.pth")
    shutil.copytree(street / "images", tmp_path / "calib" / "drive")
    shutil.copy(street / "clip.mp4", tmp_path / "video.mp4")
    return tmp_path


def test_the_three_commands_work_one_after_another(work: Path) -> None:
    exported = fcnopt("export", "net.pth", "--size", "64x96")
    assert exported.exit_code == 0, exported.output
    assert "wrote engines/net.onnx" in exported.output
    assert "FCN-8s VGG16 BN, 5 classes" in exported.output
    assert "verified on" in exported.output

    built = fcnopt("build", "--precision", "int8")
    assert built.exit_code == 0, built.output
    assert "wrote engines/net-int8-" in built.output

    benched = fcnopt("bench", "video.mp4")
    assert benched.exit_code == 0, benched.output
    assert "net-int8-" in benched.output
    assert "FPS" in benched.output
    assert [p.name for p in sorted(work.glob("calib/*.json"))] == ["net-int8-openvino.recipe.json", "net.json"]


def test_bench_writes_what_is_asked_for_and_records_it(work: Path) -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    fcnopt("build", "--precision", "fp32", "--name", "mine")
    files = ("--json", "r.json", "--html", "r.html", "--overlay", "r.mp4")
    result = fcnopt("bench", "video.mp4", "--engine", "engines/mine", "--record", "--per-class", *files)
    assert "The reference is engines/net.onnx" in result.output
    assert result.exit_code == 0, result.output
    found = BenchResult.from_json((work / "r.json").read_text())
    assert found.frames == 6
    assert found.engines[0].equal_labels > 99
    assert "<html" in (work / "r.html").read_text()
    assert (work / "r.mp4").stat().st_size > 1000
    assert Bundle.read(work / "engines/mine").manifest.measurements[0]["fps"] == pytest.approx(found.engines[0].fps)
    shown = fcnopt("inspect", "engines/mine")
    assert "measured   video" in shown.output


@pytest.mark.usefixtures("work")
def test_a_bench_on_the_calibration_frames_says_so() -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    fcnopt("build", "--precision", "int8")
    assert "was calibrated on this clip" in fcnopt("bench", "calib/drive").output
    assert "was calibrated on this clip" not in fcnopt("bench", "video.mp4").output


@pytest.mark.usefixtures("work")
def test_select_picks_frames_that_cover_the_clip() -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    built = fcnopt("build", "--precision", "int8", "--max-frames", 2, "--select", "diverse")
    assert built.exit_code == 0, built.output
    assert "2 of 6 frames, 96x64, from calib, picked from 6 to cover them" in built.output
    wrong = fcnopt("build", "--precision", "int8", "--select", "random")
    assert wrong.exit_code == 2
    assert "select 'random' is unknown" in wrong.output
    assert "use one of even, diverse" in wrong.output


@pytest.mark.usefixtures("work")
def test_an_onnx_file_is_benched_under_its_own_name() -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    result = fcnopt("bench", "video.mp4", "--engine", "engines/net.onnx", "--reference", "engines/net.onnx")
    assert result.exit_code == 0, result.output
    assert "net.onnx on " in result.output


@pytest.mark.usefixtures("work")
def test_a_checkpoint_can_be_the_reference() -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    fcnopt("build", "--precision", "fp32")
    result = fcnopt("bench", "video.mp4", "--reference", "net.pth", "--max-frames", 3)
    assert result.exit_code == 0, result.output
    assert "3 frames" in result.output
    assert "torch" in result.output


def test_gates_exit_1_and_say_which(work: Path) -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    fcnopt("build", "--precision", "fp32")
    result = fcnopt("bench", "video.mp4", "--min-fps", 1e9, "--json", "r.json")
    assert result.exit_code == 1
    assert "at least 1e+09 wanted" in result.output
    assert (work / "r.json").exists(), "a missed gate loses no result"
    assert fcnopt("bench", "video.mp4", "--min-fps", 0.001, "--max-miou-drop", 5).exit_code == 0


def test_optimize_prints_each_pass(work: Path) -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    result = fcnopt("optimize")
    assert result.exit_code == 0, result.output
    assert "GMACs" in result.output
    assert "wrote engines/net.opt.onnx" in result.output
    assert io.load(work / "engines/net.opt.onnx")


@pytest.mark.usefixtures("work")
def test_inspect_prints_spec_and_layers_or_json() -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    result = fcnopt("inspect", "engines/net.onnx")
    assert result.exit_code == 0
    assert "uint8 [N, 64, 96, 3] BGR" in result.output
    data = json.loads(fcnopt("inspect", "engines/net.onnx", "--json").output)
    assert data["stats"]["ops"]["ConvTranspose"] == 3
    assert data["spec"]["frame"]["height"] == 64


@pytest.mark.usefixtures("work")
def test_doctor_names_every_runtime() -> None:
    result = fcnopt("doctor")
    assert result.exit_code == 0
    for name in ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"):
        assert name in result.output
    if "not installed" in result.output:
        assert 'pip install "fcnopt[' in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("export", "missing.pth"), 2, ["missing.pth: no such file", "fix:"]),
        (("export", "nett.pth"), 2, ["nett.pth: no such file; did you mean net.pth?"]),
        (("export", "calib"), 2, ["calib: is a folder, expected a file"]),
        (("export", "net.pth", "--frames", "nothing"), 2, ["nothing: no such file or folder"]),
        (("export", "net.pth", "-o", "net.bin"), 2, ["an ONNX file's name ends in .onnx"]),
        (("export", "net.pth", "--size", "big"), 2, ["HEIGHTxWIDTH"]),
        (("export", "net.pth", "--classes", "camvid"), 2, ["5 classes", "11 class names"]),
        (("export", "net.pth", "--classes", "nowhere"), 2, ["nowhere", "camvid"]),
        (("build",), 2, ["none in engines/", "fcnopt export"]),
        (("build", "missing.onnx"), 2, ["missing.onnx", "no such file"]),
        (("build", "calib"), 2, ["calib: is a folder, expected a file"]),
        (("build", "--calibration", "calib", "--calibration", "no"), 2, ["no: no such file or folder"]),
        (("optimize", "missing.onnx"), 2, ["missing.onnx", "no such file"]),
        (("slim", "missing.pth", "--frames", "calib"), 2, ["missing.pth: no such file"]),
        (("slim", "net.pth", "--frames", "missing"), 2, ["missing: no such file or folder"]),
        (("slim", "net.onnx", "--frames", "calib"), 2, ["net.onnx: no such file"]),
        (("bench", "video.mp4"), 2, ["none in engines/", "fcnopt build"]),
        (("bench", "video.mp4", "--engine", "nope"), 2, ["nope: does not exist"]),
        (("bench", "video.mp4", "--engine", "calib"), 2, ["calib: is no bundle"]),
        (("bench", "missing.mp4", "--engine", "net.pth"), 2, ["missing.mp4: no such file or folder", "a video"]),
        (("bench", "video.mp4", "--labels", "nothing"), 2, ["nothing: no such file or folder", "label maps"]),
        (("compare", "a.onnx", "calib", "video.mp4"), 2, ["a.onnx: no such file or folder", "engines/NAME"]),
        (("compare", "calib", "calib", "video.mp4"), 2, ["calib: is no bundle", "manifest.json"]),
        (("inspect", "missing"), 2, ["missing: no such file or folder"]),
        (("bench", "video.mp4", "--max-miou-drop", "nan"), 2, ["max_miou_drop is nan"]),
        (("bench", "video.mp4", "--html", "calib"), 2, ["calib: is a folder"]),
        (("build", "net.pth"), 2, ["is a checkpoint", "fcnopt export net.pth"]),
        (("inspect", "net.pth"), 2, ["is a checkpoint"]),
        (("bench", "video.mp4", "--json", "no/r.json"), 2, ["no/r.json", "does not exist"]),
        (("inspect", "calib"), 2, ["is no bundle", "no manifest.json"]),
        (("build", "--precision", "int2"), 2, ["int2", "int8"]),
        (("build", "--html", "s.html"), 2, ["--html s.html was given without a budget", "--max-miou-drop"]),
        (("build", "--html", "s.html", "--validation", "calib"), 2, ["--html s.html was given without a budget"]),
    ],
)
def test_mistakes_print_one_clear_error_and_no_traceback(
    work: Path, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    result = fcnopt(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert "fix:" in result.output
    for word in words:
        assert word in result.output
    assert not list(work.glob("engines/*.partial"))


@pytest.mark.parametrize(
    ("arguments", "word", "fix"),
    [
        (("bench", "video.mp4", "engines/net"), "engines/net", "fcnopt bench CLIP --engine BUNDLE"),
        (("build", "a.onnx", "int8"), "int8", "--precision"),
        (("compare", "a", "b", "c", "d"), "d", "one clip"),
        (("export", "a.pth", "b.onnx"), "b.onnx", "name the result with -o"),
        (("inspect", "a", "b"), "b", "one bundle or file"),
        (("optimize", "a", "b"), "b", "name the result with -o"),
        (("slim", "a.pth", "video.mp4", "--frames", "x"), "video.mp4", "--frames"),
        (("demo", "folder"), "folder", "-o"),
    ],
)
def test_a_word_too_many_is_told_where_it_belongs(arguments: tuple[str, ...], word: str, fix: str) -> None:
    result = fcnopt(*arguments)
    assert result.exit_code == 2
    assert f"Got unexpected extra argument ({word})\n  fix: " in result.output
    assert fix in result.output.split("fix: ")[1]


@pytest.mark.parametrize("place", ["engines/net", "net.onnx"])
def test_an_engine_in_place_of_the_clip_is_told_where_it_belongs(work: Path, place: str) -> None:
    (work / "engines/net").mkdir(parents=True)
    (work / "engines/net/manifest.json").write_text("{}")
    (work / "net.onnx").write_bytes(b"")
    result = fcnopt("bench", place)
    assert result.exit_code == 2
    assert f"{place}: is an engine, not a clip" in result.output
    assert f"fix: run fcnopt bench CLIP --engine {place}" in result.output


def test_an_onnx_file_is_not_slimmed(work: Path) -> None:
    (work / "net.onnx").write_bytes(b"")
    result = fcnopt("slim", "net.onnx", "--frames", "calib")
    assert result.exit_code == 2
    assert "net.onnx: is an ONNX file\n  fix: give the checkpoint" in result.output


@pytest.mark.parametrize("arguments", ["export missing.pth", "slim missing.pth --frames x", "build missing.onnx"])
def test_a_missing_file_is_found_before_any_library_is_loaded(arguments: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from fcnopt.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print('LOADED', sorted({'torch', 'onnx', 'cv2', 'numpy'} & set(sys.modules)))\n"
    )
    words = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "no such file\n  fix: " in done.stderr
    assert "LOADED []" in done.stdout


@pytest.mark.usefixtures("work")
def test_what_is_chosen_by_itself_is_said() -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    built = fcnopt("build", "--precision", "fp32")
    assert built.output.startswith("no MODEL given: using engines/net.onnx, the newest\n")
    benched = fcnopt("bench", "video.mp4", "--max-frames", 2)
    assert benched.output.startswith("no --engine given: using engines/net-fp32-")


@pytest.mark.usefixtures("work")
def test_inspect_shows_how_many_frames_a_bundle_computes_at_once() -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    fcnopt("build", "--precision", "fp32", "--batch", 2, "--name", "two")
    assert "  batch      2 frames at once\n" in fcnopt("inspect", "engines/two").output
    assert "  batch      1 frame at once\n" in fcnopt("inspect", "engines/net.onnx").output
    assert json.loads(fcnopt("inspect", "engines/two", "--json").output)["batch"] == 2
    fcnopt("export", "net.pth", "--dynamic", "-o", "open.onnx")
    assert "  batch      any number of frames at once\n" in fcnopt("inspect", "open.onnx").output


@pytest.mark.parametrize("place", ["calib", "no/s.html"])
def test_a_page_that_cannot_be_written_is_found_before_the_work(work: Path, place: str) -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    result = fcnopt(
        "build", "--precision", "int8", "--validation", "calib", "--max-miou-drop", 1, "--html", work / place
    )
    assert result.exit_code == 2
    assert f"{place}: cannot be written there" in result.output
    assert not list(work.glob("calib/*.json"))


def test_a_missed_budget_has_a_page_too(work: Path) -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    SynthClip(SceneOptions(seed=8, frames=1, height=64, width=96)).write_images(work / "held")  # too few to tell
    held = ("--method", "minmax", "--validation", "held", "--max-miou-drop", 50)
    result = fcnopt("build", "--precision", "int8", "--target", "onnxruntime", *held, "--html", "s.html")
    assert result.exit_code == 1, result.output
    assert "No candidate keeps the budget." in result.output
    assert "wrote s.html" in result.output
    assert 'id="candidates"' in (work / "s.html").read_text()
    assert "error: " in result.output
    assert not [path for path in (work / "engines").iterdir() if path.is_dir()]


def test_a_search_under_a_budget_has_a_page(work: Path) -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    SynthClip(SceneOptions(seed=8, frames=4, height=64, width=96)).write_images(work / "held")
    held = ("--validation", "held", "--max-class-drop", 100)
    result = fcnopt("build", "--precision", "int8", *held, "--html", "s.html")
    assert result.exit_code == 0, result.output
    assert "wrote s.html" in result.output
    assert 'id="candidates"' in (work / "s.html").read_text()


def test_int8_without_frames_exits_1(work: Path) -> None:
    fcnopt("export", "net.pth", "--size", "64x96")
    shutil.rmtree(work / "calib")
    result = fcnopt("build", "--precision", "int8")
    assert result.exit_code == 1
    assert "int8 needs calibration frames" in result.output
    assert not [p for p in (work / "engines").iterdir() if p.is_dir()]


def test_help_loads_no_runtime() -> None:
    code = (
        "import sys\n"
        "from fcnopt.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx'}\n"
        "heavy |= {'cv2', 'av', 'numpy', 'rich'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fcnopt build --precision int8" in done.stdout
    assert "LOADED []" in done.stdout
    assert "\\b" not in done.stdout
    assert "\n    fcnopt export fcn8s.pth" in done.stdout
    assert "..." not in done.stdout.split("Commands:")[1], "a summary is too long to be shown whole"


def test_every_command_explains_itself() -> None:
    for command in ("export", "optimize", "build", "bench", "inspect", "doctor", "demo"):
        result = fcnopt(command, "--help")
        assert result.exit_code == 0
        assert len(result.output) > 100
