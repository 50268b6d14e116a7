"""The explorer: follows a run that is being written, and says what was clicked."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dash import no_update
from werkzeug.serving import make_server

from dashboards.explorer import Explorer, create_app
from dashboards.live import LiveRun
from nas.difference import difference
from nas.errors import RunError
from nas.report.architecture import architecture_svg

CHROMIUM = shutil.which("chromium")


def texts(component: Any) -> str:
    """Every text in a tree of Dash components."""
    if isinstance(component, (list, tuple)):
        return " ".join(texts(part) for part in component)
    if component is None or isinstance(component, (str, int, float)):
        return str(component or "")
    return texts(getattr(component, "children", None))


def shown_ids(figure: Any) -> set[str]:
    return {name for t in figure.data if t.customdata is not None for name in t.customdata}


class Browser:
    """What the page would hold while the callbacks answer: the choices of one user."""

    def __init__(self, run_dir: Path) -> None:
        self.explorer = Explorer(LiveRun(run_dir))
        self.device: str | None = None
        self.offered: list[str] = []
        self.searches: list[str] = []
        self.x: str | None = None
        self.y: str | None = None
        self.follow()

    def follow(self) -> None:
        self.explorer.look(0, -1)
        _, self.device = self.explorer.devices(0, self.device)
        chosen = (self.offered, self.searches, self.x, self.y)
        answer = self.explorer.choices(0, self.device, *chosen)
        self.offered, self.searches, _, self.x, _, self.y = answer

    def front(self, selected: str | None = None) -> Any:
        chosen = (self.device, self.searches, self.x, self.y)
        return self.explorer.front(0, *chosen, selected)

    def detail(self, selected: str | None, pinned: str | None = None) -> str:
        return texts(self.explorer.detail(0, self.device, selected, pinned))


class TestLiveRun:
    def test_reads_only_what_was_added(self, run_dir: Path) -> None:
        log = run_dir / "trials.jsonl"
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(lines[:100]) + lines[100][:40])
        live = LiveRun(run_dir)
        first = live.poll()
        assert len(live.view.trials) == 100  # the half line waits
        assert live.poll() == first  # nothing new
        with log.open("a") as file:
            file.write(lines[100][40:] + "".join(lines[101:150]))
        assert live.poll() > first
        assert [t["id"] for t in live.view.trials] == [json.loads(line)["id"] for line in lines[:150]]

    def test_waits_for_files_that_come_later(self, run_dir: Path, tmp_path: Path) -> None:
        growing = tmp_path / "growing"
        growing.mkdir()
        live = LiveRun(growing)
        assert live.poll() == 0
        for name in ("experiment.json", "trials.jsonl", "front.json"):
            before = live.version
            shutil.copy(run_dir / name, growing / name)
            assert live.poll() > before
        shutil.copytree(run_dir / "devices", growing / "devices")
        live.poll()
        assert (len(live.view.trials), set(live.view.devices)) == (300, {"onnxruntime", "pi4"})
        assert live.view.front

    def test_keeps_the_last_front_while_the_next_is_half_written(self, run_dir: Path) -> None:
        live = LiveRun(run_dir)
        live.poll()
        front, whole = live.view.front, (run_dir / "front.json").read_text()
        (run_dir / "front.json").write_text(whole[:500])
        live.poll()
        assert live.view.front == front
        (run_dir / "front.json").write_text(json.dumps(front[:2]))
        live.poll()
        assert live.view.front == front[:2]

    def test_counts_lines_that_are_no_trials(self, run_dir: Path) -> None:
        with (run_dir / "trials.jsonl").open("a") as file:
            file.write('nonsense\n{"search": "nsga2.pi4"}\n[1]\n')
        live = LiveRun(run_dir)
        live.poll()
        assert (len(live.view.trials), live.unreadable) == (300, 3)


class TestExplorer:
    def test_starts_before_the_first_trial(self, tmp_path: Path) -> None:
        browser = Browser(tmp_path)
        assert browser.device is None
        assert "Waiting" in browser.front().layout.annotations[0].text
        assert "Waiting" in browser.explorer.hypervolume(0, None, None).layout.annotations[0].text
        assert "0 trials" in texts(browser.explorer.status(0))

    def test_looks_without_redrawing_when_nothing_is_new(self, run_dir: Path) -> None:
        explorer = Explorer(LiveRun(run_dir))
        version = explorer.look(0, -1)
        assert explorer.look(1, version) is no_update

    def test_shows_every_complete_trial_of_the_device(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        trials = browser.explorer.live.view.trials
        expected = {
            t["id"] for t in trials if t["state"] == "complete" and t["search"].endswith(".onnxruntime")
        }
        assert shown_ids(browser.front()) == expected

    def test_axes_and_searches_can_be_chosen(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        browser.device = "pi4"
        browser.follow()
        assert browser.searches == ["nsga2.pi4", "random.pi4"]
        browser.x, browser.searches = "size_bytes", ["random.pi4"]
        browser.follow()
        assert browser.searches == ["random.pi4"]  # what was hidden stays hidden
        figure = browser.front()
        assert figure.layout.xaxis.title.text == "size (B)"
        assert not any((t.name or "").startswith("nsga2") for t in figure.data)

    def test_a_search_that_appears_is_shown(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        line = json.loads((run_dir / "trials.jsonl").read_text().splitlines()[0])
        with (run_dir / "trials.jsonl").open("a") as file:
            file.write(json.dumps(line | {"search": "tpe.onnxruntime"}) + "\n")
        browser.follow()
        assert "tpe.onnxruntime" in browser.searches

    def test_every_objective_can_be_an_axis(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        names = ["accuracy", "latency_ms.onnxruntime", "size_bytes"]
        for browser.x in names:
            for browser.y in names:
                assert browser.front().data

    def test_hypervolume_has_a_line_for_each_chosen_search(self, run_dir: Path) -> None:
        explorer = Browser(run_dir).explorer
        figure = explorer.hypervolume(0, "pi4", ["nsga2.pi4"])
        assert [t.name for t in figure.data] == ["nsga2.pi4"]

    def test_status_tells_of_failures(self, run_dir: Path) -> None:
        text = texts(Browser(run_dir).explorer.status(0))
        assert "8 failed" in text
        assert "the worker was killed" in text

    def test_a_missing_directory_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="must exist"):
            create_app(tmp_path / "nowhere")


class TestClick:
    def test_selects_the_architecture_under_it(self, run_dir: Path) -> None:
        explorer = Browser(run_dir).explorer
        assert explorer.select({"points": [{"customdata": "abc"}]}) == "abc"
        elsewhere: list[Any] = [None, {}, {"points": []}, {"points": [{"x": 1}]}]
        for nothing in elsewhere:
            assert explorer.select(nothing) is no_update

    def test_on_a_verified_point_shows_measured_numbers_and_the_command(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        entry = next(e for e in browser.explorer.live.view.front if e["front"])
        text = browser.detail(entry["id"])
        assert "on the verified front" in text
        assert "latency (ms) on onnxruntime" in text
        assert f"nas export {run_dir} --device onnxruntime --id {entry['id']}" in text
        assert f"{entry['objectives']['accuracy']['measured']:#.4g} ± " in text
        assert "stages.1: Stage(" in text
        assert '"type": "Stage"' in text

    def test_on_an_unverified_point_says_so(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        verified = {e["id"] for e in browser.explorer.live.view.front}
        trial = next(
            t
            for t in browser.explorer.live.view.trials
            if t["state"] == "complete" and t["id"] not in verified
        )
        text = browser.detail(trial["id"])
        assert "not verified" in text
        assert "verified first" in text
        assert f"--id {trial['id']}" in text
        assert f"{trial['objectives']['accuracy']:#.4g}" in text

    def test_never_shows_the_split_test(self, run_dir: Path) -> None:
        front = json.loads((run_dir / "front.json").read_text())
        front[0]["test"]["accuracy"] = 12.34
        (run_dir / "front.json").write_text(json.dumps(front))
        assert "12.34" not in Browser(run_dir).detail(front[0]["id"])

    def test_before_any_there_is_a_hint(self, run_dir: Path) -> None:
        assert "Click a point" in Browser(run_dir).detail(None)
        assert "Click a point" in Browser(run_dir).detail("gone")

    def test_quotes_paths_for_the_shell(self, run_dir: Path) -> None:
        spaced = run_dir.rename(run_dir.with_name("my run"))
        browser = Browser(spaced)
        selected = browser.explorer.live.view.trials[0]["id"]
        assert f"nas export '{spaced}' --device" in browser.detail(selected)

    def test_shows_the_picture(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        entry = browser.explorer.live.view.front[0]
        panel = browser.explorer.detail(0, browser.device, entry["id"])
        (image,) = (part.children for part in panel if getattr(part, "className", "") == "picture")
        kind, _, content = image.src.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(content).decode() == architecture_svg(entry["architecture"])
        assert entry["id"] in image.alt

    def test_compares_with_the_pinned_one(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        first, second = browser.explorer.live.view.front_of("onnxruntime")[:2]
        changes = difference(first["architecture"], second["architecture"])
        pinned = browser.explorer.pin(1, first["id"])
        assert changes in browser.detail(second["id"], pinned)
        assert changes not in browser.detail(second["id"])
        assert "Others will be compared with this one" in browser.detail(first["id"], pinned)
        assert changes not in browser.detail(second["id"], "gone")

    def test_rings_the_selected_point(self, run_dir: Path) -> None:
        browser = Browser(run_dir)
        entry = browser.explorer.live.view.front_of("onnxruntime")[0]
        ring = browser.front(selected=entry["id"]).data[-1]
        assert ring.marker.symbol == "circle-open"
        assert len(ring.x) == 2  # as predicted and as measured


class TestServed:
    def test_page_and_scripts_come_from_here(self, run_dir: Path) -> None:
        client = create_app(run_dir).server.test_client()
        page = client.get("/").text
        assert "digits – nas" in page
        assert "https://" not in page
        assert client.get("/_dash-layout").status_code == 200

    def test_callbacks_answer_over_http(self, run_dir: Path) -> None:
        client = create_app(run_dir).server.test_client()
        request = {
            "output": "version.data",
            "outputs": {"id": "version", "property": "data"},
            "inputs": [{"id": "tick", "property": "n_intervals", "value": 1}],
            "state": [{"id": "version", "property": "data", "value": -1}],
            "changedPropIds": ["tick.n_intervals"],
        }
        answer = client.post("/_dash-update-component", json=request).get_json()
        assert answer["response"]["version"]["data"] == 1

    def test_the_button_pins_what_is_selected(self, run_dir: Path) -> None:
        client = create_app(run_dir).server.test_client()
        request = {
            "output": "pinned.data",
            "outputs": {"id": "pinned", "property": "data"},
            "inputs": [{"id": "pin", "property": "n_clicks", "value": 1}],
            "state": [{"id": "selected", "property": "data", "value": "abc"}],
            "changedPropIds": ["pin.n_clicks"],
        }
        answer = client.post("/_dash-update-component", json=request).get_json()
        assert answer["response"]["pinned"]["data"] == "abc"
        (follows,) = (d for d in client.get("/_dash-dependencies").get_json() if d["output"] == "pinned.data")
        assert follows["inputs"] == [{"id": "pin", "property": "n_clicks"}]


@pytest.fixture
def address(run_dir: Path) -> Iterator[str]:
    """The explorer, served on a free port of this machine."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, create_app(run_dir).server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_click_in_a_browser_shows_the_command(address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
            + [f"--disable-{part}" for part in ("background-networking", "component-update", "sync")],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        point = page.locator("#front .scatterlayer .trace:last-child .points path").first
        point.wait_for(timeout=20_000)
        box = point.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.locator("#command").wait_for(timeout=10_000)
        assert "nas export" in page.inner_text("#command")
        browser.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
