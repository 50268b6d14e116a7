"""The report: one file that renders offline, says what was measured, and hides what was not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest

from nas.difference import difference
from nas.errors import RunError
from nas.objectives import Objective
from nas.reading import Roles, read_run
from nas.report import render_front_png, render_report
from nas.report.architecture import architecture_svg
from nas.report.figures import (
    hypervolume_figure,
    latency_figure,
    training_figure,
)
from nas.report.front import front_figure, hover
from nas.report.style import GRID, MARKER_PIXELS, RANDOM, marker_sizes
from nas.report.tables import finalists_table, number, separation

ACCURACY = Objective("accuracy", "%", "maximize")
LATENCY = Objective("latency_ms.pi4", "ms", "minimize")


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = shutil.copytree(finished_run, tmp_path_factory.mktemp("report") / "digits")
    path = render_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text()


def words(page: str) -> str:
    """What a reader sees, without scripts, styles and tags."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(script|style).*?</\1>", "", page))


class TestPage:
    def test_needs_no_network(self, page: str) -> None:
        assert "Plotly.newPlot" in page
        assert len(page) > 3_000_000
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)

    def test_has_a_section_for_each_device(self, page: str) -> None:
        assert re.findall(r"<h2>(.*?)</h2>", page) == [
            "onnxruntime",
            "pi4",
            "Training",
            "Settings",
        ]

    def test_has_the_models_quality_the_settings_and_versions(self, page: str) -> None:
        text = words(page)
        for expected in ("noise floor", "0.8100", "settings.training.steps", "1.31.1", "seed 7"):
            assert expected in text

    def test_shows_every_finalist_with_select_and_test(self, page: str, finished_run: Path) -> None:
        text = words(page)
        for entry in read_run(finished_run).front:
            assert entry["id"] in text
            low, high = entry["test"]["interval"]
            assert f"{number(entry['test']['accuracy'])} [{number(low)}, {number(high)}]" in text

    def test_draws_every_architecture_on_a_front_and_what_it_changes(
        self, page: str, finished_run: Path
    ) -> None:
        front = [e for e in read_run(finished_run).front if e["front"]]
        pictures = re.findall(r'<svg xmlns[^>]* class="architecture".*?</svg>', page)
        assert len(pictures) == len(front)
        assert {architecture_svg(e["architecture"]) for e in front} == set(pictures)
        ours = [e for e in front if e["device"] == "pi4"]
        ours.sort(key=lambda e: e["objectives"]["latency_ms.pi4"]["measured"])
        before, after = (e["architecture"] for e in ours[:2])
        assert escape(difference(before, after)) in page

    def test_counts_what_failed(self, page: str) -> None:
        assert "300 trials (8 failed, 4 pruned)" in words(page)

    @pytest.mark.parametrize(
        "missing", ["front.json", "devices", "supernet", "experiment.json", "trials.jsonl"]
    )
    def test_is_written_from_whatever_is_there(self, run_dir: Path, missing: str) -> None:
        path = run_dir / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert render_report(run_dir).stat().st_size > 3_000_000

    def test_of_an_empty_directory_says_so(self, tmp_path: Path) -> None:
        text = words(render_report(tmp_path).read_text())
        assert "No search has written a trial yet" in text

    def test_escapes_what_comes_from_files(self, run_dir: Path) -> None:
        evil = "<script>alert(1)</script>"
        front = json.loads((run_dir / "front.json").read_text())
        front[0]["search"] = front[0]["architecture"]["type"] = evil
        (run_dir / "front.json").write_text(json.dumps(front))
        experiment = json.loads((run_dir / "experiment.json").read_text())
        experiment |= {"name": evil, "settings": {evil: evil}}
        (run_dir / "experiment.json").write_text(json.dumps(experiment))
        assert "<script>alert" not in render_report(run_dir).read_text()

    def test_does_not_import_torch(self, finished_run: Path) -> None:
        code = "import sys, nas.report, dashboards.explorer; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestFigures:
    def test_front_has_measured_points_where_they_were_measured(self, finished_run: Path) -> None:
        view = read_run(finished_run)
        made = front_figure(view, "pi4")
        assert made is not None
        (measured,) = (t for t in made.data if (t.name or "").startswith("the front, measured"))
        expected = [e for e in view.front_of("pi4") if e["front"]]
        expected.sort(key=lambda e: e["objectives"]["latency_ms.pi4"]["measured"])
        for axis, name in (("x", "latency_ms.pi4"), ("y", "accuracy")):
            values = [e["objectives"][name]["measured"] for e in expected]
            assert list(measured[axis]) == values
        errors = [e["objectives"]["accuracy"]["std_error"] for e in expected]
        assert list(measured.error_y.array) == errors

    def test_random_search_is_grey_and_below(self, finished_run: Path) -> None:
        made = front_figure(read_run(finished_run), "pi4")
        assert made is not None
        assert made.data[0].name.startswith("random.pi4")
        assert made.data[0].marker.color == RANDOM

    def test_axes_have_units(self, finished_run: Path) -> None:
        made = front_figure(read_run(finished_run), "pi4")
        assert made is not None
        assert made.layout.xaxis.title.text == "latency (ms)"
        assert made.layout.yaxis.title.text == "accuracy (%)"

    def test_latency_shows_only_samples_that_were_held_out(self, finished_run: Path) -> None:
        profile = read_run(finished_run).devices["pi4"]
        made = latency_figure(profile)
        assert made is not None
        held_out = [s["latency_ms"] for s in profile["samples"] if s["held_out"]]
        assert list(made.data[-1].x) == held_out

    def test_hypervolume_has_a_line_for_each_search(self, finished_run: Path) -> None:
        made = hypervolume_figure(read_run(finished_run), "pi4")
        assert made is not None
        assert [t.name for t in made.data] == ["nsga2.pi4", "random.pi4"]

    def test_hypervolume_leaves_out_the_sample_that_fixes_the_scale(self, run_dir: Path) -> None:
        log = run_dir / "trials.jsonl"
        log.write_text(log.read_text().replace('"random.', '"bounds.'))
        made = hypervolume_figure(read_run(run_dir), "pi4")
        assert made is not None
        assert [t.name for t in made.data] == ["nsga2.pi4"]

    def test_training_shows_loss_and_the_accuracy_of_both_subnets(self, finished_run: Path) -> None:
        view = read_run(finished_run)
        made = training_figure(view.history, view.objectives[0])
        assert made.layout.yaxis2.title.text == "accuracy (%)"
        assert [t.name for t in made.data] == ["loss", "first subnet of a step", "second subnet of a step"]
        assert made.layout.xaxis.domain[1] < made.layout.xaxis2.domain[0]  # side by side
        assert made.layout.yaxis2.gridcolor == GRID

    def test_marker_areas_grow_linearly(self) -> None:
        small, middle, large = marker_sizes([10.0, 20.0, 30.0])
        assert (small, large) == MARKER_PIXELS
        assert middle**2 == pytest.approx((small**2 + large**2) / 2)
        assert marker_sizes([None, 5.0]) == [MARKER_PIXELS[0]] * 2

    def test_hover_tells_the_architecture(self, finished_run: Path) -> None:
        entry = read_run(finished_run).front[0]
        text = hover(entry, (ACCURACY,)).replace("\u00a0", " ")
        assert entry["id"] in text
        assert "stages.0: Stage(" in text
        assert "measured" in text


class TestTables:
    def test_finalists_behind_the_front_are_marked(self, finished_run: Path) -> None:
        view = read_run(finished_run)
        entries = view.front_of("pi4")
        html = finalists_table(view, entries, ACCURACY)
        assert html.count('class="behind"') == sum(not e["front"] for e in entries) > 0

    def test_separation_counts_neighbours_that_differ(self) -> None:
        def entry(measured: float, front: bool = True) -> dict[str, Any]:
            figures = {"accuracy": {"measured": measured, "std_error": 1.0}}
            return {"front": front, "objectives": figures}

        accuracies = (90.0, 95.0, 91.0, 96.0)
        entries = [*map(entry, accuracies), entry(93.0, front=False)]
        text = separation(entries, Roles(ACCURACY, LATENCY, None))
        assert text.startswith("1 of the 3 pairs")  # 91 and 95; √2 is the error of a difference
        assert "differ by 6.00 ± 1.4 %" in text
        assert separation(entries[:1], Roles(ACCURACY, LATENCY, None)) == ""

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "–"), (0.12, "0.1200"), (12345.6, "12,346"), (99.0, "99.00"), (30, "30")],
    )
    def test_numbers(self, value: float | None, text: str) -> None:
        assert number(value) == text


class TestPicture:
    def test_is_a_png_of_readable_size(self, run_dir: Path) -> None:
        assert render_front_png(run_dir, "onnxruntime") == run_dir / "front.png"
        path = render_front_png(run_dir, "pi4")
        assert path == run_dir / "front.pi4.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000

    def test_works_before_anything_is_verified(self, run_dir: Path) -> None:
        (run_dir / "front.json").unlink()
        assert render_front_png(run_dir, "pi4").exists()

    def test_an_unknown_device_is_an_error(self, run_dir: Path) -> None:
        with pytest.raises(RunError, match=r"'pi5'.*onnxruntime, pi4"):
            render_front_png(run_dir, "pi5")
