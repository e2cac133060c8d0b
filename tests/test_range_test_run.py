"""Only the range test of a study: through the real program, on digits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lrsearch.config import StudyConfig, load_study
from lrsearch.errors import StudyFailedError, UsageError
from lrsearch.images import WIDTH
from lrsearch.range_test import combine_verdicts
from lrsearch.range_test_run import run_range_test
from tests.test_cli import ENVIRONMENT
from tests.test_images import can_draw

STUDY = """\
version: 1
name: tiny
workload: {name: digits, batch_size: 32}
training:
  epochs: 1
  optimizer: {name: sgd, momentum: 0.9}
  device: cpu
seeds: [3, 8]
rates: {low: 1e-5, high: 10}
strategies:
  grid: {name: grid, points: 2}
  clr: {name: range_tested}
  smith: {name: range_tested, policy: smith2015, low: 1e-4}
"""


def written(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return load_study(written(tmp_path))


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "lrsearch", "range-test", str(folder / "study.yaml"), *arguments]
    return subprocess.run(program, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_it_is_the_test_that_the_study_would_run(config: StudyConfig) -> None:
    said: list[str] = []
    run = run_range_test(config, repeats=3, tell=said.append)
    assert (run.way, [test.seed for test in run.tests], len(said)) == ("clr", [3, 4, 5], 4)
    assert run.verdict == combine_verdicts([test.verdict for test in run.tests])
    assert run.verdict.status == "ok"
    assert 0 < run.seconds == sum(test.seconds for test in run.tests)
    assert len({test.points for test in run.tests}) == 3
    again = run_range_test(config, way="clr").tests[0]
    assert (again.points, again.verdict) == (run.tests[0].points, run.tests[0].verdict)


def test_a_way_brings_its_own_settings(config: StudyConfig) -> None:
    verdict = run_range_test(config, way="smith").verdict
    assert verdict.max_lr == pytest.approx(3 * (verdict.base_lr or 0))
    with pytest.raises(UsageError, match=r"No way 'smit' with a range test; known: clr, smith\. Did you mean 'smith'"):
        run_range_test(config, way="smit")


def test_a_way_s_own_optimizer_takes_its_steps(config: StudyConfig, tmp_path: Path) -> None:
    adam = "optimizer: {name: adam, weight_decay: 0.01}"
    own = load_study(written(tmp_path, STUDY.replace("{name: range_tested}", f"{{name: range_tested, {adam}}}")))
    studys = load_study(written(tmp_path, STUDY.replace("optimizer: {name: sgd, momentum: 0.9}", adam)))
    found, expected = (run_range_test(one, way="clr").tests[0] for one in (own, studys))
    assert (found.points, found.verdict) == (expected.points, expected.verdict)
    assert found.points != run_range_test(config, way="clr").tests[0].points


def test_a_study_without_a_range_tested_way_is_tested_over_its_rates(tmp_path: Path) -> None:
    config = load_study(written(tmp_path, STUDY.split("  clr:")[0]))
    run = run_range_test(config)
    assert run.way is None
    assert run.tests[0].points[0].learning_rate == 1e-5


def test_a_test_that_fails_says_why(tmp_path: Path) -> None:
    """A model that raises after nine passes: later than the throw-away steps of the preparation."""
    (tmp_path / "mine.py").write_text(
        "import torch\nseen = []\n"
        "def data():\n    x = torch.randn(64, 4)\n    part = (x, (x[:, 0] > 0).long())\n    return part, part\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.l = torch.nn.Linear(4, 2)\n"
        "    def forward(self, x):\n        seen.append(1)\n"
        "        if len(seen) > 9: raise RuntimeError('worn out')\n        return self.l(x)\n"
    )
    workload = '{name: callable, model: "mine:Net", data: "mine:data", batch_size: 16, python_path: .}'
    study = STUDY.replace("{name: digits, batch_size: 32}", workload)
    with pytest.raises(StudyFailedError, match=r"The range test with seed 3 failed: .*worn out"):
        run_range_test(load_study(written(tmp_path, study)))


def test_the_program_prints_chart_verdict_and_page(tmp_path: Path) -> None:
    written(tmp_path)
    answer = command(tmp_path, "--output", "page.html")
    assert answer.returncode == 0, answer.stderr
    assert "[1/1] seed 3" in answer.stderr
    for word in ("█", "↑ max_lr", "verdict      ok", "confidence", "advice", "device time", "(cpu)", "Page: page.html"):
        assert word in answer.stdout
    page = (tmp_path / "page.html").read_text()
    assert "Range test of tiny" in page
    assert "processor seconds; a value is" in page, "a processor's seconds are no device's"
    assert 'src="http' not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "study.yaml"], "no database"


def test_json_holds_every_test_with_its_points(tmp_path: Path) -> None:
    written(tmp_path)
    document: dict[str, Any] = json.loads(command(tmp_path, "--repeats", "2", "--json", "--way", "clr").stdout)
    assert (document["way"], document["exit_code"], len(document["tests"])) == ("clr", 0, 2)
    rates = [point["learning_rate"] for point in document["tests"][0]["points"]]
    assert rates == sorted(rates)
    assert document["tests"][0]["verdict"]["max_lr"] in document["verdict"]["max_lr_interval"]
    assert (tmp_path / document["page"]).is_file()


@can_draw
@pytest.mark.slow
def test_the_curve_is_written_as_a_picture_too(tmp_path: Path) -> None:
    written(tmp_path)
    answer = command(tmp_path, "--png", "curve.png")
    assert answer.returncode == 0, answer.stderr
    assert "Image: curve.png" in answer.stderr
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"
        assert picture.size[0] == 2 * WIDTH
        assert len(picture.convert("RGB").getcolors(maxcolors=1_000_000) or ()) > 20  # something is drawn
    both = command(tmp_path, "--png", "curves", "--repeats", "2", "--json")
    assert json.loads(both.stdout)["exit_code"] == 0
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == ["seed-3.png", "seed-4.png"]


@can_draw
def test_a_picture_of_another_kind_is_refused_before_anything_runs(tmp_path: Path) -> None:
    written(tmp_path)
    answer = command(tmp_path, "--png", "curve.jpg")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "takes a file that ends in .png or a folder, got curve.jpg" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--way", "grid"], 2), (["--repeats", "0"], 2), (["--output", "study.yaml/x.html"], 4)]
)
def test_what_cannot_be_run_leaves_with_its_code(tmp_path: Path, arguments: list[str], code: int) -> None:
    written(tmp_path)
    answer = command(tmp_path, *arguments)
    assert answer.returncode == code
    assert "Traceback" not in answer.stderr
