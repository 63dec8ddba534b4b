"""The systems that `mifuse compare` knows, the tables that it writes, and the command itself."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
from conftest import mifuse, read_rows, refused, write_csv

from mifuse_cli.evaluation import METRICS
from mifuse_cli.methods.adaptation import METHODS, WITHOUT_STUDENT
from mifuse_cli.steps.compare.systems import GROUPS, MAIN, SYSTEMS, chosen


class TestSystems:
    def test_every_method_is_one(self):
        shown = {one.method: one.shows for one in SYSTEMS.values() if one.shows in ("student", "predictions")}
        assert shown.keys() == METHODS.keys()
        assert {name for name, shows in shown.items() if shows == "predictions"} == set(WITHOUT_STUDENT)

    def test_names_and_groups(self):
        assert {one.group for one in SYSTEMS.values()} == GROUPS.keys()
        assert {one.group for one in chosen(["main"])} == set(MAIN)
        assert [one.name for one in chosen(["shot", "lalm", "shot"])] == ["lalm", "shot"]
        assert all(one.group == "oracle" for one in chosen(["oracle"]))
        with pytest.raises(KeyError):
            chosen(["nothing"])

    def test_no_name_has_a_comma_or_a_space(self):
        assert not [name for name in (*SYSTEMS, *GROUPS) if set(name) & set(", ")]

    def test_no_two_are_of_the_same_make(self):
        made = {}
        for one in SYSTEMS.values():
            made.setdefault(repr(replace(one, name="", group="")), []).append(one.name)
        assert [names for names in made.values() if len(names) > 1] == []


class TestTables:
    def test_markdown(self, compared):
        text = (compared.out / "table.md").read_text()
        assert "### Methods" in text and "### Ablations" in text and "### Upper bound" in text
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert {line.count("|") for line in rows[:3]} == {rows[0].count("|")}
        assert rows[0].startswith("| system | a>b | b>a | average | less ")
        # One bold mean a column of the methods, that of the highest.
        methods = text.partition("### Methods")[2].partition("###")[0]
        assert methods.count("**") == 2 * 3
        assert "`mifuse-cross-fit` against" in text and "of 2 transfers: the highest mean in" in text

    def test_all_metrics_with_the_best_baseline_of_each(self, compared):
        text = (compared.out / "table.md").read_text().partition("### All metrics of the methods")[2]
        header, _, *rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        assert header[1::2] == [*METRICS.values()]
        systems, best = compared.results["systems"], compared.results["best_baselines"]
        assert compared.results["best_baseline"] == best["ua"] and best.keys() == METRICS.keys()
        for metric, name in best.items():
            means = {one: systems[one][metric]["average"]["mean"] for one in compared.results["baselines"]}
            assert means[name] == (min if metric == "ece" else max)(means.values())
            gap = systems["mifuse-cross-fit"]["against_best"][metric]
            ours = systems["mifuse-cross-fit"][metric]["average"]["mean"]
            assert gap["difference"] == pytest.approx(ours - means[name], abs=2e-3)
            assert gap["low"] <= gap["difference"] <= gap["high"] and gap["low"] < gap["high"]
            assert metric not in systems[name]["against_best"]
        ours = next(row for row in rows if row[0] == "| mifuse-cross-fit")
        assert ours[1].split(" ± ")[0] == f"{systems['mifuse-cross-fit']['ua']['average']['mean']:.1f}"

    def test_latex(self, compared):
        text = (compared.out / "table.tex").read_text()
        assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 4
        for table in text.split(r"\begin{table}")[1:]:
            body = [line for line in table.splitlines() if line.endswith(r"\\")]
            assert len({line.count("&") for line in body}) == 1
        assert "UA, prior-corrected argmax p/prior" in text
        assert r"a$\to$b" in text and "±" not in text and r"\textbf{" in text

    def test_csv(self, compared):
        with (compared.out / "scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * len(compared.results["systems"]) == compared.runs
        assert {row["protocol"] for row in rows} == {compared.protocol}
        one = next(row for row in rows if row["system"] == "mifuse-cross-fit" and row["target"] == "b")
        assert 0 <= float(one["ua"]) <= 1 and one["group"] == "cross-fit"

    def test_json(self, compared):
        assert json.loads((compared.out / "results.json").read_text()) == compared.results

    def test_standing(self, compared):
        standing = compared.results["standing"]
        assert standing.keys() == {"a>b", "b>a"}
        systems = compared.results["systems"]
        for column, one in standing.items():
            rivals = [n for n, s in systems.items() if s["rank"] is not None and n != "mifuse-cross-fit"]
            best = max(rivals, key=lambda name, column=column: systems[name]["ua"][column]["mean"])
            assert systems[best]["ua"][column]["mean"] == systems[one["best_other"]]["ua"][column]["mean"]
            assert (one["state"] in ("ahead", "higher")) == (one["difference"] > 0)
            assert (one["state"] == "behind") == (one["high"] < 0)
            assert (one["state"] == "ahead") == (one["low"] > 0)


class TestCommand:
    def arguments(self, world, out):
        return (
            "compare", "--data", world / "data", "--models", world / "models", "--lalm", world / "lalm", "--out", out,
            "--seeds", "0", "--n-answers", "3", "--epochs", "1", "--resamples", "100", "--jobs", "1",
        )  # fmt: skip

    def test_prints_the_table(self, world, tmp_path):
        done = mifuse(
            *self.arguments(world, tmp_path / "out"), "--systems", "source-only,lalm,mifuse-cross-fit"
        )
        assert done.exit_code == 0, done.stderr
        assert "mifuse-cross-fit" in done.stdout and "best baseline" in done.stdout
        again = mifuse(
            *self.arguments(world, tmp_path / "out"), "--systems", "lalm,mifuse-cross-fit", "--quiet"
        )
        assert again.exit_code == 0 and again.stdout == ""
        shown = mifuse("show", tmp_path / "out/runs/a/b/seed0.h5")
        assert shown.exit_code == 0 and "compared" in shown.stdout

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (("--systems", "mifuse-crossfit"), 2, ("mifuse-crossfit", "did you mean 'mifuse-cross-fit'")),
            (("--systems", ""), 2, ("--systems",)),
            (("--seeds", "0,x"), 2, ("--seeds '0,x'", "whole numbers")),
            (("--seeds", "0,0"), 2, ("given more than once",)),
            (("--names", "a"), 2, ("two corpora",)),
            (("--protocol", "inductve"), 2, ("did you mean 'inductive'",)),
            (("--names", "a,c"), 3, ("models/c/seed0",)),
            (("--names", "a,b", "--sources", "a"), 2, ("--names", "leave it out with --sources")),
            (("--targets", "b,b"), 2, ("--targets: b given more than once",)),
            (("--sources", "a", "--targets", "a"), 2, ("no target of its own model",)),
            (("--sources", "c"), 3, ("models/c/seed0",)),
            (("--targets", "c"), 3, ("data/c", "no manifest")),
            (("--targets", "a", "--seeds", "7"), 3, ("the sources none and the targets a",)),
            (("--seeds", "5"), 3, ("models/a/seed5",)),
            (("--n-answers", "9"), 3, ("4 answers a clip", "--n-answers 9")),
            (("--data", "nowhere"), 3, ("nowhere: no such directory",)),
        ],
    )
    def test_what_cannot_be_is_refused(self, world, tmp_path, options, code, words):
        refused(mifuse(*self.arguments(world, tmp_path / "out"), *options), code, *words)
        assert not (tmp_path / "out/runs").exists()

    def test_a_directory_of_something_else_is_left_alone(self, world, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.tex").touch()
        refused(mifuse(*self.arguments(world, tmp_path / "out")), 3, "something else than a comparison")

    def test_answers_about_other_clips(self, world, tmp_path):
        root = shutil.copytree(world, tmp_path / "world")
        shutil.copyfile(root / "lalm/a.h5", root / "lalm/b.h5")
        refused(mifuse(*self.arguments(root, tmp_path / "out")), 4, "lalm/b.h5 has 24 clips")

    def test_unknown_labels_are_told_of_before_anything_is_run(self, world, tmp_path):
        root = shutil.copytree(world, tmp_path / "world")
        rows = read_rows(root / "data/b/labels.csv")
        write_csv(root / "data/b/labels.csv", [{**row, "emotion": "joyful"} for row in rows])
        refused(mifuse(*self.arguments(root, tmp_path / "out")), 3, "unknown label 'joyful'")
        assert not (tmp_path / "out/runs").exists()
