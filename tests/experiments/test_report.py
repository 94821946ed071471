"""Tests of the report: what stands in results.json, Markdown and HTML in every state of a study,
the result in words, watching, and the page in a real browser."""

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from study_folders import measures_of, score, write_study

from fastfood.experiments import files
from fastfood.experiments.report import display, figures, headline, writer
from fastfood.experiments.settings.measurement import read_settings
from fastfood.experiments.settings.trial import Facts
from fastfood.experiments.trials import curves
from fastfood.experiments.trials.plan import trials

HOSTILE = "<script>document.title = 'run'</script> | *a*\n# b"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 40)


@pytest.fixture
def undrawn(monkeypatch):
    """Replaces the figures of reports by one pixel."""

    def draw(results, folder):
        first = [results.kind] if results.kind not in ("d90", "figure1") else []
        paths = [folder / f"{s}.{form}" for s in [*first, "figure1"] for form in ("png", "svg")]
        for path in paths:
            path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        return paths

    monkeypatch.setattr(figures, "draw", draw)


def _rows(page: str) -> list[list[str]]:
    """The cells of every row of every table of a page."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, flags=re.S)
    return [[html.unescape(c) for c in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", r)] for r in rows]


def _read(folder):
    text = (folder / "results.json").read_text()
    return json.loads(text, parse_constant=pytest.fail), (folder / "report.html").read_text()


def _check_self_contained(page: str) -> None:
    assert not re.search(r"<script|<link|<iframe|@import|url\(|\son\w+=", page)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?(.{30})""", page)
    assert sources and all(s.startswith("data:image/svg+xml;base64,") for s in sources)


# what is written


@pytest.mark.parametrize(
    "kind", ["d90", "figure1", "table1", "figure2", "figure3", "figure4", "figure5"]
)
def test_a_report_holds_the_numbers_of_its_results(tmp_path, kind, undrawn):
    record = write_study(tmp_path / "s", kind, measures_of(kind), title=f"all of {kind}")
    paths = writer.write_report(tmp_path / "s", record)
    stems = ["figure1"] if kind in ("d90", "figure1") else [kind, "figure1"]
    names = [f"{stem}.{form}" for stem in stems for form in ("png", "svg")]
    assert [p.name for p in paths] == ["results.json", *names, "report.md", "report.html"]
    assert {p.name for p in (tmp_path / "s").iterdir()} == {p.name for p in paths} | {"study.json"}
    results, page = _read(tmp_path / "s")
    markdown = (tmp_path / "s" / "report.md").read_text()
    _check_self_contained(page)
    assert "http-equiv" not in page and f"<h1>all of {kind}</h1>" in page
    rows = _rows(page)
    for measure in results["measures"]:
        for method, d90 in measure["summary"]["d90"].items():
            name = display.METHOD_NAMES[method]
            text = d90["text"].replace("<=", "≤")
            assert [measure["label"], name, text] in [row[:3] for row in rows]
            assert text.replace("<", "\\<") in markdown
        for point in measure["points"]:
            shown = [f"{point['d']:,}", f"{point['trained']:,}", f"{100 * point['mean']:.1f} %"]
            assert shown in [row[2:5] for row in rows]
        sizes = [f"{measure['facts']['sizes'][part]:,}" for part in ("train", "validation", "test")]
        assert sizes in [row[1:4] for row in rows]
    assert ["seeds", "2"] in rows and ["max_steps", "300"] in rows
    assert "torch 2.10.0" in page and results["environments"][0]["trials"] == len(results["trials"])
    assert f"fastfood study {kind} --scale small" in page and "3 test rows are training" in page


def test_the_page_names_the_hardware_before_the_versions(tmp_path, undrawn):
    record = write_study(tmp_path, "d90", measures_of("d90", dims=(10, 100)))
    gpu = {"name": "NVIDIA H200", "memory_gib": 139.8, "driver": "580.95.05", "cuda": "13.0"}
    hardware = {"cpu": "a CPU", "cores": 16, "system": "Linux", "gpus": [gpu | {"count": 2}]}
    for key, entry in record.entries.items():
        record.entries[key] = entry._replace(
            environment={"versions": {"torch": "2.11.0"}, "hardware": hardware}
        )
    writer.write_report(tmp_path, record)
    rows = _rows((tmp_path / "report.html").read_text())
    on = "2 × NVIDIA H200 (139.8 GiB, driver 580.95.05, CUDA 13.0); a CPU, 16 cores; system Linux"
    start = rows.index([f"{len(record.trials)} trials on", on])
    assert rows[start + 1] == ["with", "torch 2.11.0"]


def test_results_keep_every_trial_and_no_infinity(tmp_path, undrawn):
    censored = lambda trial, **shape: score(trial, **shape | {"half": 10**7})  # noqa: E731
    record = write_study(tmp_path / "s", "d90", measures_of("d90"), censored)
    writer.write_report(tmp_path / "s", record)
    results, page = _read(tmp_path / "s")
    d90 = results["measures"][0]["summary"]["d90"]["did"]
    assert d90["value"] is None and d90["text"] == "> 10000 [> 10000, > 10000]"
    assert "&gt; 10000 [&gt; 10000, &gt; 10000]" in page
    assert len(results["trials"]) == 2 + 2 * 2 * 2 * 7 == results["progress"]["complete"]
    row = results["trials"][0]
    assert row["method"] == "full" and row["state"] == "complete" and row["test"] > 0.8


@pytest.mark.parametrize("kind", ["figure1", "figure2", "figure5", "table1"])
def test_a_report_is_written_before_the_first_trial_has_finished(tmp_path, kind):
    record = write_study(tmp_path / "s", kind, measures_of(kind)[:1], share=0.0)
    writer.write_report(tmp_path / "s", record)
    results, page = _read(tmp_path / "s")
    _check_self_contained(page)
    asked = results["progress"]["asked"]
    assert "Nothing is measured yet." in page
    assert f"This study is not finished: 0 of {asked} trials are done." in page


def test_a_report_of_a_running_study_counts_every_state(tmp_path, undrawn):
    folder = tmp_path / "<script> | s"  # its name stands in a table
    record = write_study(folder, "d90", measures_of("d90", seeds=1, dims=(10, 100)), share=0.0)
    told = json.loads((folder / "study.json").read_text())["measures"][0]
    asked = trials(read_settings(told["settings"]), Facts(**told["facts"]), {})
    assert len(asked) == 1 + 2 * 2 * 2
    for trial in asked[:5]:
        record.add(trial, score(trial))
    record.add(asked[5], state="failed", error=f"RuntimeError: {HOSTILE}")
    record.add(asked[6], state="diverged", error="FloatingPointError: diverged")
    record.add(asked[7], state="running")
    writer.write_report(folder, record)
    results, page = _read(folder)
    counts = {"complete": 5, "failed": 1, "diverged": 1, "pruned": 0, "running": 1, "waiting": 1}
    progress = results["progress"]
    assert {name: progress[name] for name in counts} == counts and progress["missing"] == 3
    assert progress["seconds"] == 7 * 12.5 and progress["asked"] == 9
    assert "This study is running: 5 of 9 trials are done." in page
    assert ["MiniLM-L6, glue/sst2", "9", *map(str, counts.values()), "12.5 s", "0.02"] in _rows(
        page
    )
    _check_self_contained(page)
    assert "&lt;script&gt;" in page
    markdown = (folder / "report.md").read_text()
    assert "| \\<script> \\| s, d90, scale small |" in markdown
    assert "\\<script>document" in markdown and "\n# b" not in markdown


def test_rates_at_the_edge_of_the_grid_are_remarked(tmp_path, undrawn):
    measures = measures_of("d90", lrs=(0.1, 0.2, 0.4), dims=(10, 100))
    best = {10: 0.4, 100: 0.2}

    def scores(trial, **shape):
        right = best.get(trial.d) in (None, trial.learning_rate)
        return replace(score(trial, **shape), validation=0.9 if right else 0.5)

    writer.write_report(tmp_path / "s", write_study(tmp_path / "s", "d90", measures, scores))
    page = (tmp_path / "s" / "report.html").read_text()
    assert "DID: the highest rate tried was best at 1 of 2 points" in page
    assert "lowest rate" not in page
    chosen = {tuple(row[2:3] + row[8:10]) for row in _rows(page) if row[0] == "DID"}
    assert chosen == {("10", "0.4", "highest tried"), ("100", "0.2", "")}


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as partial:
        partial.write_text("half of the new")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"
    with files.whole(path) as one, files.whole(path) as other:  # two drivers at once
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "{", "{}", '{"measures": []}', "[]"])
def test_a_folder_without_a_study_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    for write in (writer.write_report, writer.watch):
        with pytest.raises(ValueError, match="^folder: wanted the folder of a study, .* got"):
            write(tmp_path)


def places(content):
    """Yields each container within `content`, itself included, with each of its keys."""
    keys = list(content) if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])


def test_a_description_with_a_value_of_another_form_is_refused_or_reported(tmp_path, undrawn):
    record = write_study(tmp_path, "d90", measures_of("d90", seeds=1))
    whole = json.loads((tmp_path / "study.json").read_text())
    refused = 0
    for holder, key in list(places(whole)):
        kept = holder[key]
        for other in ([], {}, None, "x", -1):
            holder[key] = other
            (tmp_path / "study.json").write_text(json.dumps(whole))
            try:
                writer.write_report(tmp_path, record)
            except ValueError as error:
                assert "with a whole study.json" in str(error)
                refused += 1
        holder[key] = kept
    assert refused > 200


def test_a_description_without_one_of_its_keys_is_refused(tmp_path, undrawn):
    record = write_study(tmp_path, "d90", measures_of("d90", seeds=1))
    whole = json.loads((tmp_path / "study.json").read_text())
    for name in whole.keys() - {"note", "pretrainings"}:
        content = {key: value for key, value in whole.items() if key != name}
        (tmp_path / "study.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"with a whole study.json, .*{name}"):
            writer.write_report(tmp_path, record)
    del whole["measures"][0]["settings"]["task"]  # has a default
    (tmp_path / "study.json").write_text(json.dumps(whole))
    assert writer.write_report(tmp_path, record)
    (tmp_path / "study.json").write_text(json.dumps({**whole, "kind": "figure6"}))
    with pytest.raises(ValueError, match="with a whole study.json, .*kind: wanted one of d90"):
        writer.write_report(tmp_path, record)


def test_the_terminal_shows_points_and_d90s(tmp_path, undrawn):
    from rich.console import Console

    record = write_study(tmp_path / "s", "table1", measures_of("table1", seeds=1))
    results = writer.gather(tmp_path / "s", record)
    console = Console(record=True, width=100)
    writer.print_report(console, results)
    text = console.export_text()
    assert text.count("d90 DID: ") == len(results.measures) == 4
    point = results.measures[0].points[0]
    assert re.search(rf"full .* {point.d:,} .* {100 * point.mean:.1f} .* – .* 1e-05", text)
    assert "note: one seed: no interval" in text


# the result in words


def _headline(folder, kind, **state):
    record = write_study(folder, kind, measures_of(kind), **state)
    return headline.headline(writer.gather(folder, record))


def test_the_headline_of_one_measure_names_its_d90s(tmp_path):
    (sentence,) = _headline(tmp_path / "s", "d90")
    start = r"MiniLM-L6, glue/sst2: full fine-tuning of D = 22,713,216 reaches 9\d\.\d %; d90, "
    assert re.match(start + r".*: DID [\d≤> \[\],]+, SAID [\d≤> \[\],]+\.$", sentence)


def test_the_headline_of_a_series_says_whether_intervals_differ(tmp_path):
    sentences = _headline(tmp_path / "s", "figure2")
    assert len(sentences) == 4 and sentences[0].startswith("DID on sst2: d90 is ")
    assert "at step 0 and " in sentences[0] and "at step 1,600: it falls" in sentences[0]
    (did, said) = _headline(tmp_path / "t", "figure3")
    assert "for albert-base-v2 (D = 12M) and " in did and "for roberta-large (D = 355M)" in said
    assert "over 8 measurements" in did

    def same(trial, **shape):
        return score(trial, full=0.9)

    (first, *_) = _headline(tmp_path / "u", "figure2", scores=same)
    assert "the intervals overlap, so no change is shown" in first


def test_one_seed_shows_no_change(tmp_path):
    record = write_study(tmp_path / "s", "figure2", measures_of("figure2", seeds=1))
    (first, *_) = headline.headline(writer.gather(tmp_path / "s", record))
    assert "one seed has no interval, so no change is shown" in first
    record = write_study(tmp_path / "t", "table1", measures_of("table1", seeds=1))
    (first, *_) = headline.headline(writer.gather(tmp_path / "t", record))
    assert "in 0 of them by intervals that do not overlap" in first


def test_the_headline_of_a_relation_is_a_rank_correlation(tmp_path):
    sentences = _headline(tmp_path / "s", "figure4")
    pattern = r"DID: over 6 measurements, the rank correlation of d90 and .* is [+−]\d\.\d\d\."
    assert re.fullmatch(pattern, sentences[0])
    gap = _headline(tmp_path / "t", "figure5")[0]
    assert "the relative generalization gap of the full run" in gap


def test_the_paper_stands_beside_ours(tmp_path):
    def scores(trial, **shape):  # d90 is 3000 for every model
        return replace(score(trial), test=0.9 if trial.d >= 3000 else 0.5)

    sentences = _headline(tmp_path / "s", "table1", scores=scores)
    assert sentences[0].startswith("SAID has the smaller d90 in 0 of 4 measurements, in 0 of them")
    # ours over BERT-base's 9295 (DID, QQP) and BERT-large's 1037 (SAID, MRPC)
    wanted = f"ours are between {3000 / 9295:.2g} and {3000 / 1037:.2g} times as large."
    assert sentences[1] == f"Of 8 d90s that the paper has too, {wanted}"


@pytest.mark.parametrize(
    ("pairs", "rho"),
    [
        ([(1, 1), (2, 2), (math.inf, 9)], 1.0),
        ([(1, 3), (2, 2), (3, 1)], -1.0),
        ([(1, 1), (2, 3), (3, 2), (4, 4)], 0.8),  # 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1))
        ([(1, 1), (2, 2)], None),
        ([(1, 1), (1, 2), (1, 3)], None),
    ],
)
def test_rank_correlation(pairs, rho):
    found = headline.rank_correlation(pairs)
    assert found is None if rho is None else found == pytest.approx(rho)


def test_many_curves_are_fitted_as_scipy_fits_each():
    from scipy.optimize import isotonic_regression

    rng = np.random.default_rng(0)
    means = rng.integers(0, 4, (500, 6)) + 0.5 * np.arange(6)
    lines = rng.choice(means.ravel(), 500)
    found = curves.first_reaching([1, 2, 3, 4, 5, 6], means, lines)
    for curve, line, d in zip(means, lines, found, strict=True):
        reached = np.flatnonzero(isotonic_regression(curve).x >= line - 1e-9)
        assert d == (reached[0] + 1 if len(reached) else math.inf)


# watching


def _watched(folder, monkeypatch, on_sleep):
    """Watches a study of nine trials with `on_sleep(record, trials left, number of sleeps)`."""
    record = write_study(folder, "d90", measures_of("d90", seeds=1, dims=(10, 100)), share=0.0)
    told = json.loads((folder / "study.json").read_text())["measures"][0]
    left = trials(read_settings(told["settings"]), Facts(**told["facts"]), {})
    pages, sleeps = [], []
    write = writer.write_results

    def write_and_keep(*args, **options):
        paths = write(*args, **options)
        pages.append((folder / "report.html").read_text())
        return paths

    def sleep(seconds):
        assert seconds == 2.5
        sleeps.append(seconds)
        on_sleep(record, left, len(sleeps))

    monkeypatch.setattr(writer, "write_results", write_and_keep)
    monkeypatch.setattr(writer, "_open", lambda folder, described, storage: record)
    monkeypatch.setattr(writer.time, "sleep", sleep)
    return pages


def test_watching_writes_what_changed_until_nothing_is_missing(tmp_path, undrawn, monkeypatch):
    def on_sleep(record, left, count):
        for trial in left[:3] if count % 2 else []:  # nothing new at every second look
            record.add(trial, score(trial))
            left.remove(trial)

    pages = _watched(tmp_path / "s", monkeypatch, on_sleep)
    writer.watch(tmp_path / "s", 2.5)
    assert len(pages) == 1 + 3
    reloads = ['<meta http-equiv="refresh" content="3">' in page for page in pages]
    assert reloads == [True, True, True, False]


def test_a_stopped_watch_leaves_a_page_that_stands_still(tmp_path, undrawn, monkeypatch):
    def on_sleep(record, left, count):
        raise KeyboardInterrupt

    pages = _watched(tmp_path / "s", monkeypatch, on_sleep)
    with pytest.raises(KeyboardInterrupt):
        writer.watch(tmp_path / "s", 2.5)
    assert ["http-equiv" in page for page in pages] == [True, False]
    with pytest.raises(ValueError, match="^every: wanted seconds above 0, at most a day, got 0"):
        writer.watch(tmp_path / "s", 0)


# a real browser

LOOK = """<script>addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(d => d.open = true);
  document.title = "LOOK" + JSON.stringify({
    title: page.title, width: root.clientWidth, inner: root.scrollWidth,
    images: [...page.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth]),
    loose: [...page.querySelectorAll("p, li, h1, h2, pre, figcaption, summary, .scroll")]
      .filter(e => e.getBoundingClientRect().right > root.clientWidth).map(e => e.outerHTML),
    cells: page.querySelectorAll("td").length,
  });
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page(tmp_path):
    measures = measures_of("table1", dims=(10, 100, 1000), lrs=(0.1,))
    measures[0] = (HOSTILE, *measures[0][1:])
    folder = tmp_path / "s"
    writer.write_report(folder, write_study(folder, "table1", measures, title="A title"))
    page = (folder / "report.html").read_text()
    _check_self_contained(page)
    phone, desk = (_look(tmp_path, page, width) for width in (390, 1200))
    for seen, width in ((phone, 390), (desk, 1200)):
        assert (seen["title"], seen["width"], seen["inner"]) == ("A title", width, width)
        assert seen["loose"] == [] and seen["cells"] > 100 and len(seen["images"]) == 2
        for natural_width, natural_height, shown in seen["images"]:
            assert natural_width > 300 and natural_height > 100 and shown > 300


def _look(folder, page: str, width: int) -> dict:
    """What the browser shows of the page in a frame, which may be narrower than any window."""
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}">'
    (folder / "look.html").write_text(f"<!DOCTYPE html>{LOOK}{frame}</iframe>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--window-size=1300,1000"]
    flags += ["--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom"]
    command = [CHROMIUM, *flags, f"file://{folder}/look.html"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>LOOK(.*?)</title>", ran.stdout)
    assert found, ran.stdout[:300] + ran.stderr[-2000:]
    return json.loads(html.unescape(found[1]))
