"""The report in headless Chromium: it opens without errors or requests, sorts, filters, plays, and is labelled in."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import CLASSES, HANG_SECONDS, read_rows, until, write_csv
from pretended import Corpus, pretend_experiment, pretend_lalm, pretend_transfer

import mifuse_cli as m

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the browser Chromium: apt-get install chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright: pip install 'mifuse[dev]'"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
]
LIMIT = HANG_SECONDS * 1000


@pytest.fixture(scope="module")
def browser(pipeline):
    """Started after the pipeline, which runs an event loop: there is none beside that of playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=LIMIT)
        yield chromium
        chromium.close()


@dataclass
class Heard:
    """What a page complained of, and what it asked for."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser, path: Path, width: int = 1280, scheme: str = "light"):
    """The page, in a profile of its own; it may not have complained, nor asked for more than files."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    context.set_default_timeout(LIMIT)
    page, heard = context.new_page(), Heard()
    page.on(
        "console", lambda one: heard.errors.append(one.text) if one.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda one: heard.errors.append(str(one)))
    page.on("dialog", lambda one: heard.errors.append(f"a dialog: {one.message}"))
    page.on("request", lambda one: heard.requests.append(one.url))
    page.goto(path.resolve().as_uri())
    yield page, heard
    assert heard.errors == []
    assert [url for url in heard.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def written(tmp_path, *paths, **options) -> Path:
    out = tmp_path / "report.html"
    m.report(m.ReportConfig(paths=paths, out=out, **options))
    return out


@pytest.fixture
def transfer(tmp_path):
    corpus = Corpus(tmp_path / "data", clips=300, sounds=300).write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5")
    pretend_transfer(corpus, tmp_path / "run", lalm)
    return corpus, tmp_path / "run"


def column(page, selector: str) -> list[str]:
    return page.locator(f".row {selector}").all_inner_texts()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_experiment_opens_alone_and_fits(browser, tmp_path, width, scheme):
    out = written(tmp_path, pretend_experiment(tmp_path, seeds=(0,)))
    with opened(browser, out, width, scheme) as (page, heard):
        assert page.locator(".row").count() > 3
        assert heard.requests == [out.resolve().as_uri()]
        for name in ("anna-bob/seed0", "carla-bob/seed0"):
            page.select_option("#run", label=name)
            assert page.locator(".run:visible").count() == 1
            assert page.inner_text(".run:visible .run-name") == name
            assert page.locator(".run:visible .row").count() > 3
            assert page.evaluate("document.documentElement.scrollWidth") == width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        for _ in range(3):
            page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
        page.click("#theme")
        assert page.inner_text("#theme") == "Theme: light"
        page.reload()
        assert page.inner_text("#theme") == "Theme: light"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(247, 247, 245)"
        heard.requests.clear()


def test_sorting_and_filtering(browser, transfer, tmp_path):
    corpus, run = transfer
    with opened(browser, written(tmp_path, run)) as (page, _):
        assert page.inner_text(".count") == "300 of 300 clips"
        assert column(page, ".id")[:3] == corpus.ids[:3]
        page.click(".head button:has-text('disagreement')")
        falling = [float(text) for text in column(page, ".num:nth-of-type(5)")]
        assert falling == sorted(falling, reverse=True) and falling[0] > 0.2
        assert page.locator(".head [aria-sort=descending]").inner_text() == "disagreement"
        page.click(".head button:has-text('disagreement')")
        rising = [float(text) for text in column(page, ".num:nth-of-type(5)")]
        assert rising == sorted(rising) and rising[0] < 0.01

        page.click("button[data-view=all]")
        page.fill("input[type=search]", "Voice clip-0012")  # all words, wherever they are
        assert page.inner_text(".count") == "10 of 300 clips"
        page.fill("input[type=search]", "")
        page.select_option("label.voice select", "voice 7")
        assert set(column(page, ".voice")) == {"voice 7"}
        page.select_option("label.voice select", "")
        page.select_option("label.truth select", label="happy")
        happy = int((corpus.truth == CLASSES.index("happy")).sum())
        assert page.inner_text(".count") == f"{happy} of 300 clips"
        page.select_option("label.truth select", "")

        page.click("button[data-view=wrong]")
        student = corpus.samples(200, 1, 1.6)[:, 0]
        wrong = int((student.argmax(axis=1) != corpus.truth).sum())
        assert page.inner_text(".count") == f"{wrong} of 300 clips"
        sure = [int(text) for text in column(page, ".said:nth-of-type(4) .p")]
        assert sure == sorted(sure, reverse=True)
        page.click("button[data-view=unread]")
        assert column(page, ".id") == [corpus.ids[0]]


def test_an_experiment_of_six_transfers_is_sorted_filtered_heard_and_labelled(browser, tmp_path):
    expdir = pretend_experiment(tmp_path, seeds=(0,), clips=40, sounds=40)
    pick = tmp_path / "pick.csv"
    m.pick(m.PickConfig(fused=expdir / "anna-bob/seed0/fused.h5", n=8, out=pick))
    order = [row["utt_id"] for row in read_rows(pick)]
    out = written(tmp_path, expdir, pick=pick, embed_audio=8)
    with opened(browser, out) as (page, _):
        assert page.locator("#run option").count() == 6
        page.select_option("#run", label="carla-bob/seed0")
        run = page.locator(".run:visible")
        assert "32 of 40 clips" in run.locator(".count").inner_text()
        run.locator(".head button:has-text('uncertainty')").click()
        falling = [float(text) for text in run.locator(".row .num:nth-of-type(6)").all_inner_texts()]
        assert falling == sorted(falling, reverse=True) and len(falling) > 3
        run.locator("label.truth select").select_option(label="sad")
        assert set(run.locator(".row .true").all_inner_texts()) == {"sad"}
        run.locator("label.truth select").select_option("")
        run.locator(".row .play").first.click()
        until(lambda: page.evaluate("player.currentTime > 0.05"))
        for key in "12341":
            page.keyboard.press(key)
        assert "5 labelled, 0 skipped" in page.inner_text("#cards")
        assert "37 of 40 clips" in run.locator(".count").inner_text()
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "gold.csv")
    rows = read_rows(tmp_path / "gold.csv")
    assert [row["utt_id"] for row in rows] == order[:5]
    student = expdir / "anna-bob/seed0/mifuse/predictions.h5"
    scored = m.evaluate(
        m.EvaluateConfig(predictions=student, manifest=tmp_path / "gold.csv", out=tmp_path / "e.h5")
    )
    assert scored.metrics["n"] == 5


def test_scrolling_draws_the_rows_in_view_alone(browser, tmp_path):
    corpus = Corpus(tmp_path / "data", clips=10_000).write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5")
    pretend_transfer(corpus, tmp_path / "run", lalm)
    with opened(browser, written(tmp_path, tmp_path / "run")) as (page, _):
        assert page.inner_text(".count") == "10,000 of 10,000 clips"
        assert page.locator(".row").count() < 60
        page.evaluate("document.querySelector('.rows').scrollTop = 1e9")
        page.wait_for_selector(f".row[data-id={corpus.ids[-1]}]")
        assert page.locator(".row").count() < 60


def test_audio_plays_and_a_clip_opens_with_its_spectrogram(browser, transfer, tmp_path):
    _, run = transfer
    with opened(browser, written(tmp_path, run, embed_audio=2)) as (page, heard):
        # Linked audio, which is asked for when it is played and not before.
        assert not [url for url in heard.requests if url.endswith(".wav")]
        linked = page.locator(".row .play").first
        linked.click()
        until(lambda: page.evaluate("player.currentTime > 0.05"))
        assert [url for url in heard.requests if url.endswith(".wav")]
        # Embedded audio: that of the largest disagreement.
        page.click("button[data-view=disagree]")
        page.locator(".row .play").first.click()
        until(lambda: page.evaluate("player.src.startsWith('data:audio/flac') && player.currentTime > 0.05"))
        page.locator(".row .open").first.click()
        page.wait_for_selector("dialog canvas")
        until(lambda: page.evaluate("document.querySelector('dialog canvas').width === 600"))
        darkest, above = page.evaluate(
            """() => {
                const context = document.querySelector('dialog canvas').getContext('2d');
                const grey = context.getImageData(0, 0, 600, 256).data.filter((_, n) => n % 4 === 0);
                const rows = (first, last) => grey.slice(600 * first, 600 * last);
                return [Math.min(...rows(230, 250)), rows(0, 120).reduce((a, b) => a + b, 0) / (600 * 120)];
            }"""
        )
        # A tone of 200 to 520 Hz: the line at its pitch is darker than what is above 4 kHz.
        assert darkest < 60 < 100 < above
        assert "Answers of LALM standin" in page.inner_text("dialog")
        first = page.inner_text("dialog h2")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("dialog h2") != first
        page.keyboard.press("Escape")
        assert not page.evaluate("document.getElementById('clip').open")


def test_hostile_text_is_shown_as_text(browser, tmp_path):
    hostile = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"
    corpus = Corpus(tmp_path / "data", clips=12, mark=hostile.replace("/", "|")).write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5", text=hostile, model=hostile)
    pretend_transfer(corpus, tmp_path / "run", lalm)
    with opened(browser, written(tmp_path, tmp_path / "run")) as (page, heard):
        assert column(page, ".id")[0] == corpus.ids[0]
        page.locator(".row .open").first.click()
        assert hostile in page.inner_text("dialog .answer >> nth=0")
        assert page.locator("img").count() == 0 and len(heard.requests) == 1


def test_labelling_by_keys_gives_gold_that_fuse_and_evaluate_take(browser, pipeline, corpora, tmp_path):
    run, fused = tmp_path / "run", tmp_path / "run" / "fused.h5"
    m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, out=fused))
    pick = tmp_path / "pick.csv"
    m.pick(m.PickConfig(fused=fused, n=7, out=pick))
    order = [row["utt_id"] for row in read_rows(pick)]
    out = written(tmp_path, run, pipeline.student / "predictions.h5", pick=pick, embed_audio=7)
    with opened(browser, out) as (page, _):
        assert "7 are to be labelled and hidden until then" in page.inner_text(".count")

        def told() -> str:
            """All that is in the card and the table of clips, in text and attributes, but the sound."""
            parts = page.eval_on_selector_all("#cards, .sizer", "all => all.map((one) => one.outerHTML)")
            return " ".join(parts)

        assert not [name for name in order if name in told()]
        assert page.locator("#cards button:disabled").all_inner_texts() == ["u undo", "Download gold.csv"]
        page.keyboard.press("p")
        until(lambda: page.evaluate("document.querySelector('#cards audio').currentTime > 0"))
        for key in ("1", "2", "s", "3", "4"):
            page.keyboard.press(key)
        page.keyboard.press("9")  # there are four classes
        assert "4 labelled, 1 skipped" in page.inner_text("#cards")
        page.keyboard.press("u")
        assert "3 labelled, 1 skipped" in page.inner_text("#cards")
        page.reload()
        assert "3 labelled, 1 skipped" in page.inner_text("#cards")
        page.keyboard.press("2")
        page.locator("#cards .choices button").nth(2).click()
        assert "5 labelled, 1 skipped" in page.inner_text("#cards")
        # Keys that are typed into a field label nothing.
        page.fill("input[type=search]", "")
        page.type("input[type=search]", "1s")
        assert "5 labelled, 1 skipped" in page.inner_text("#cards")
        page.fill("input[type=search]", "")
        labelled = [order[n] for n in (0, 1, 3, 4, 5)]
        page.evaluate("document.querySelector('.rows').scrollTop = 0")
        assert "2 are to be labelled" in page.inner_text(".count")
        hidden = {order[2], order[6]}
        assert not [name for name in hidden if name in told()]
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "gold.csv")
        page.keyboard.press("1")
        page.click("text=go through the 1 skipped")
        page.keyboard.press("1")
        assert "7 labelled, 0 skipped" in page.inner_text(
            "#cards"
        ) and "All clips are labelled" in page.inner_text("#cards")

    rows = read_rows(tmp_path / "gold.csv")
    names = ("angry", "happy", "neutral", "happy", "neutral")
    assert {row["utt_id"]: row["emotion"] for row in rows} == dict(zip(labelled, names, strict=True))
    chances = {row["utt_id"]: row["inclusion"] for row in read_rows(pick)}
    assert all(row["inclusion"] == chances[row["utt_id"]] for row in rows)
    assert all((tmp_path / row["file"]).is_file() for row in rows)
    made = m.fuse(
        m.FuseConfig(
            lalm=pipeline.lalm, source=pipeline.source, gold=tmp_path / "gold.csv", out=tmp_path / "g.h5"
        )
    )
    assert made.gold == 5
    for number, what in enumerate(({"predictions": pipeline.fused}, {"model": pipeline.student})):
        scored = m.evaluate(
            m.EvaluateConfig(manifest=tmp_path / "gold.csv", out=tmp_path / f"e{number}.h5", **what)
        )
        assert scored.metrics["n"] == 5 and scored.estimate


def test_gold_csv_quotes_what_needs_it(browser, tmp_path):
    corpus = Corpus(tmp_path / "data", clips=12, mark=', "x"').write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5")
    pretend_transfer(corpus, tmp_path / "run", lalm)
    row = {"file": "data/wav/00000.wav", "utt_id": corpus.ids[0], "inclusion": "0.5"}
    pick = write_csv(tmp_path / "pick.csv", [row])
    with opened(browser, written(tmp_path, tmp_path / "run", pick=pick)) as (page, _):
        assert "is not where its manifest was" in page.inner_text("#cards")
        page.keyboard.press("4")
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "gold.csv")
    (row,) = read_rows(tmp_path / "gold.csv")
    assert (row["utt_id"], row["emotion"]) == (corpus.ids[0], "sad")
