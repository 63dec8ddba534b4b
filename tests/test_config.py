from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import mifuse_cli
from mifuse_cli.config import (
    Config,
    Encoding,
    StepConfig,
    above_zero,
    as_dict,
    at_least,
    one_of,
    option,
    read_yaml,
    settings,
)
from mifuse_cli.errors import InputError, UsageError


@dataclass(frozen=True, kw_only=True)
class BakeConfig(StepConfig):
    oven: Path = option(help="Where.")
    rack: Path | None = option(None, "On what.")
    loaves: int = option(2, "How many.")
    flour: str = option("rye", "Of what.")
    window_open: bool = option(False, "Airing.", settles=False)

    def problems(self):
        yield from at_least("--loaves", self.loaves, 1)
        yield from one_of("--flour", self.flour, ("rye", "wheat", "spelt"))
        yield from above_zero("--seed", self.seed + 1)


def test_strings_become_paths():
    config = BakeConfig(oven="here/it/is", rack="top")
    assert (config.oven, config.rack) == (Path("here/it/is"), Path("top"))
    assert BakeConfig(oven="o").rack is None


def test_endings_that_promise_another_format():
    @dataclass(frozen=True, kw_only=True)
    class WriteConfig(Config):
        out: Path = option(endings=(".h5",))

    for name in ("x.h5", "x", "v1.2", "x.H5", "x.part"):
        WriteConfig(out=name)
    for name in ("x.csv", "x.JSON", "x.pdf"):
        with pytest.raises(
            UsageError, match=rf"--out {name}: what is written is no .*, expected a name with .h5"
        ):
            WriteConfig(out=name)


def test_a_required_option_is_required():
    with pytest.raises(TypeError, match="oven"):
        BakeConfig()


def test_all_problems_are_listed():
    with pytest.raises(UsageError) as caught:
        BakeConfig(oven="o", loaves=0, flour="weat", seed=-2)
    assert str(caught.value) == (
        "--loaves 0: expected 1 or more; "
        "--flour 'weat': expected one of rye, wheat, spelt (did you mean 'wheat'?); "
        "--seed -1: expected more than 0"
    )
    assert caught.value.exit_code == 2


def test_a_far_off_name_gets_no_hint():
    with pytest.raises(UsageError, match=r"expected one of rye, wheat, spelt$"):
        BakeConfig(oven="o", flour="concrete")


@pytest.mark.parametrize("check", [lambda x: at_least("--x", x, 0), lambda x: above_zero("--x", x)])
def test_nan_is_no_number(check):
    assert list(check(float("nan"))) and not list(check(0.5))


def test_as_dict_is_everything_as_json_types():
    assert as_dict(BakeConfig(oven="o", loaves=3)) == {
        "oven": "o",
        "rack": None,
        "loaves": 3,
        "flour": "rye",
        "window_open": False,
        "seed": 0,
        "device": "auto",
        "force": False,
        "update": False,
    }


@dataclass(frozen=True, kw_only=True)
class CoolDownConfig(Config):
    """Cool."""

    hours: int = option(1)


def test_settings_leave_out_paths_and_what_does_not_settle():
    config = BakeConfig(oven="o", rack="r", window_open=True, device="cpu", force=True, update=True, seed=7)
    assert settings(config) == {"loaves": 2, "flour": "rye", "seed": 7}


class TestReadYaml:
    def read(self, tmp_path, text):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return read_yaml(tmp_path / "c.yaml", "bake", {"bake": BakeConfig, "cool-down": CoolDownConfig})

    def test_a_list_is_what_the_flag_would_be(self, tmp_path):
        assert self.read(tmp_path, "flour: [rye, oat]") == {"flour": "rye,oat"}

    def test_dashes_and_underscores_are_the_same(self, tmp_path):
        found = self.read(tmp_path, "window-open: true\nloaves: 4\n")
        assert found == self.read(tmp_path, "window_open: true\nloaves: 4\n")
        assert found == {"window_open": True, "loaves": 4}

    def test_an_empty_file_sets_nothing(self, tmp_path):
        assert self.read(tmp_path, "# nothing yet\n") == {}

    def test_all_unknown_keys_are_named_with_hints(self, tmp_path):
        with pytest.raises(UsageError) as caught:
            self.read(tmp_path, "loafs: 4\nzzz: 1\noven: o\n")
        assert str(caught.value).endswith("unknown option 'loafs' (did you mean 'loaves'?), 'zzz'")

    def test_one_file_for_several_commands(self, tmp_path):
        text = "flour: rye\nbake:\n  flour: oat\n  loaves: 3\ncool-down: {hours: 2}\n"
        assert self.read(tmp_path, text) == {"flour": "oat", "loaves": 3}
        assert self.read(tmp_path, "bake:\nflour: rye\n") == {"flour": "rye"}

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("hours: 2\n", "'hours' (bake has none; cool-down has)"),
            ("bake: {window-opn: 2}\n", "'window-opn' (did you mean 'window-open'?)"),
            ("cool-dwn: {hours: 2}\n", "'cool-dwn' (did you mean 'cool-down'?)"),
            ("bake: 2\n", "'bake' (a command: expected a mapping of its options)"),
        ],
    )
    def test_keys_of_other_commands(self, tmp_path, text, told):
        with pytest.raises(UsageError) as caught:
            self.read(tmp_path, text)
        assert str(caught.value).endswith(told)

    @pytest.mark.parametrize("text", ["- a\n- b\n", "[]", "just words", "0", "a: [", "a: b: c"])
    def test_what_is_no_mapping_is_refused(self, tmp_path, text):
        with pytest.raises(UsageError, match=r"c\.yaml"):
            self.read(tmp_path, text)

    def test_unreadable(self, tmp_path):
        commands = {"bake": BakeConfig}
        with pytest.raises(InputError, match=r"--config .*none\.yaml: No such file or directory"):
            read_yaml(tmp_path / "none.yaml", "bake", commands)
        with pytest.raises(InputError, match="Is a directory"):
            read_yaml(tmp_path, "bake", commands)
        (tmp_path / "latin.yaml").write_bytes(b"flour: \xfc, and more words than one\n")
        with pytest.raises(
            InputError, match=r"latin\.yaml: is a file of another format, expected YAML in UTF-8"
        ):
            read_yaml(tmp_path / "latin.yaml", "bake", commands)

    def test_a_key_that_is_given_twice_is_refused(self, tmp_path):
        for text in ("flour: rye\nflour: oat\n", "bake: {loaves: 1, loaves: 2}\n"):
            with pytest.raises(UsageError, match="given twice"):
                self.read(tmp_path, text)


CLIPS = {"manifest": "m.csv"}
VALID = {
    "PrepareConfig": {"corpus": "emodb", "root": "r", "out": "o"},
    "TrainSourceConfig": {"manifest": "m.csv", "encoder": "logmel", "out": "o"},
    "QueryLalmConfig": {**CLIPS, "out": "o.h5", "model": "m"},
    "SampleSourceConfig": {**CLIPS, "model": "m", "out": "o.h5"},
    "FuseConfig": {"lalm": "l.h5", "source": "s.h5", "out": "o.h5"},
    "TrainConfig": {**CLIPS, "fused": "f.h5", "model": "m", "out": "o"},
    "EvaluateConfig": {"manifest": "m.csv", "model": "m", "out": "o.h5"},
    "CompareConfig": {"data": "d", "models": "m", "lalm": "l", "out": "o"},
    "CompareWorldsConfig": {"worlds": ("a", "b"), "out": "o"},
    "PredictConfig": {**CLIPS, "model": "m"},
    "ExportConfig": {"model": "m", "out": "o"},
    "ShowConfig": {"file": "o.h5"},
    "MergeConfig": {"parts": ("a.h5", "b.h5"), "out": "o.h5"},
    "CacheConfig": {},
    "ValidateConfig": {"paths": ("o.h5",)},
    "DoctorConfig": {},
    "ReportConfig": {"paths": ("exp",), "out": "r.html"},
    "PickConfig": {"fused": "f.h5", "out": "p.csv"},
}
BOTH = {"wav_dir": "w"}
NEITHER = {"manifest": None}

WRONG = [
    # config, values, what the message names
    ("TrainSourceConfig", {"classes": "angry"}, "--classes 'angry'"),
    ("TrainSourceConfig", {"classes": "angry,,sad"}, "--classes"),
    ("TrainSourceConfig", {"classes": "sad,sad"}, "--classes"),
    ("TrainSourceConfig", {"normalize": "sourc"}, "did you mean 'source'"),
    ("TrainSourceConfig", {"tune": "top-0"}, "--tune 'top-0': expected auto, head, top-N, all"),
    ("TrainSourceConfig", {"epochs": 0}, "--epochs 0"),
    ("TrainSourceConfig", {"batch_size": 0}, "--batch-size 0"),
    ("TrainSourceConfig", {"hidden": -1}, "--hidden -1"),
    ("TrainSourceConfig", {"dropout": 1.0}, "--dropout 1.0: expected at least 0 and below 1"),
    ("TrainSourceConfig", {"label_smoothing": -0.1}, "--label-smoothing"),
    ("TrainSourceConfig", {"validation": 0.95}, "--validation"),
    ("TrainSourceConfig", {"learning_rate": 0.0}, "--learning-rate"),
    ("TrainSourceConfig", {"encoder_learning_rate": -1e-5}, "--encoder-learning-rate"),
    ("TrainSourceConfig", {"weight_decay": float("nan")}, "--weight-decay"),
    ("TrainSourceConfig", {"layers": "1,x"}, "--layers '1,x'"),
    ("TrainSourceConfig", {"layers": ""}, "--layers ''"),
    ("TrainSourceConfig", {"layers": "1-"}, "--layers '1-'"),
    ("TrainSourceConfig", {"pooling": "max"}, "--pooling 'max'"),
    ("TrainSourceConfig", {"pooling": "attentive", "encoder": "e"}, "--pooling attentive looks at frames"),
    ("TrainSourceConfig", {"pooling": "mean+deviation", "encoder": "logmel"}, "--pooling: logmel keeps"),
    ("QueryLalmConfig", NEITHER, "one of --manifest and --wav-dir"),
    ("QueryLalmConfig", BOTH, "not both"),
    ("QueryLalmConfig", {"n_samples": 0}, "--n-samples 0"),
    ("QueryLalmConfig", {"temperature": -0.1}, "--temperature"),
    ("QueryLalmConfig", {"concurrency": 0}, "--concurrency"),
    ("QueryLalmConfig", {"timeout": 0.0}, "--timeout"),
    ("QueryLalmConfig", {"classes": ""}, "--classes"),
    ("SampleSourceConfig", NEITHER, "one of --manifest and --wav-dir"),
    ("SampleSourceConfig", BOTH, "not both"),
    ("SampleSourceConfig", {"n_samples": 1}, "--n-samples 1: expected 2 or more"),
    ("SampleSourceConfig", {"normalize": "all"}, "--normalize"),
    ("FuseConfig", {"weighting": "inverse_mi"}, "did you mean 'inverse-mi'"),
    ("FuseConfig", {"pool": "mean"}, "--pool"),
    ("FuseConfig", {"mi_estimator": "exact"}, "--mi-estimator"),
    ("FuseConfig", {"tau": 0.0}, "--tau"),
    ("TrainConfig", NEITHER, "one of --manifest and --wav-dir"),
    ("TrainConfig", BOTH, "not both"),
    ("TrainConfig", {"method": "mifus"}, "did you mean 'mifuse'"),
    ("TrainConfig", {"fused": None}, "--fused: --method mifuse learns from a LALM"),
    ("FuseConfig", {"weighting": "cross-fti"}, "did you mean 'cross-fit'"),
    ("TrainConfig", {"method": "oracle"}, "--labels: --method oracle needs them"),
    ("TrainConfig", {"labels": "l.csv"}, "no other method may see them"),
    ("TrainConfig", {"normalize": "target"}, "--normalize: it is given by the fused labels"),
    ("TrainConfig", {"method": "shot", "fused": None, "normalize": "x"}, "--normalize"),
    ("TrainConfig", {"method": "shot", "diversity_prior": "labels"}, "--method shot has no labels"),
    (
        "TrainConfig",
        {"method": "tent", "fused": None, "tune": "all"},
        "--method tent trains only the scale and shift",
    ),
    ("TrainConfig", {"tune": "auto"}, "--tune 'auto'"),
    ("TrainConfig", {"diversity_prior": "flat"}, "--diversity-prior"),
    ("TrainConfig", {"diversity_weight": -1.0}, "--diversity-weight"),
    ("TrainConfig", {"epochs": 0}, "--epochs"),
    ("TrainConfig", {"batch_size": 0}, "--batch-size"),
    ("TrainConfig", {"refresh": -1}, "--refresh"),
    ("TrainConfig", {"learning_rate": -1.0}, "--learning-rate"),
    ("TrainConfig", {"encoder_learning_rate": 0.0}, "--encoder-learning-rate"),
    ("TrainConfig", {"weight_decay": -1.0}, "--weight-decay"),
    ("TrainConfig", {"ema": 1.0}, "--ema"),
    ("PrepareConfig", {"corpus": "ravdes"}, "did you mean 'ravdess'"),
    ("PrepareConfig", {"classes": "angry"}, "--classes"),
    ("PrepareConfig", {"merge": "excited:happy"}, "--merge"),
    ("PrepareConfig", {"columns": "emotion="}, "--columns"),
    ("PrepareConfig", {"allow_pipes": True}, "--allow-pipes"),
    ("CompareConfig", {"names": "a"}, "--names a: expected two corpora"),
    ("CompareConfig", {"names": "a,b,a"}, "--names: a given more than once"),
    ("CompareConfig", {"seeds": ""}, "--seeds"),
    ("CompareConfig", {"seeds": "-1"}, "--seeds"),
    ("CompareConfig", {"systems": "mifuse-crossfit"}, "did you mean 'mifuse-cross-fit'"),
    ("CompareConfig", {"systems": " , "}, "--systems: expected at least one"),
    ("CompareConfig", {"normalize": "x"}, "--normalize"),
    ("CompareConfig", {"protocol": "deductive"}, "did you mean 'inductive'"),
    ("CompareConfig", {"folds": 1}, "--folds"),
    ("CompareConfig", {"n_answers": 0}, "--n-answers"),
    ("CompareConfig", {"n_samples": 1}, "--n-samples"),
    ("CompareConfig", {"resamples": 10}, "--resamples"),
    ("CompareWorldsConfig", {"resamples": 10}, "--resamples"),
    ("MergeConfig", {"parts": ()}, "artifacts of the parts"),
    ("MergeConfig", {"parts": ("a.h5", "a.h5")}, "a.h5: given 2 times"),
    ("QueryLalmConfig", {"shard": "3/2"}, "--shard '3/2': expected I/N"),
    ("SampleSourceConfig", {"shard": "0/2"}, "--shard '0/2': expected I/N"),
    ("SampleSourceConfig", {"shard": "1/2", "no_hidden_states": True}, "--no-hidden-states"),
    ("CacheConfig", {"cache_limit": "20"}, "--cache-limit '20': expected a size such as 500MB"),
    ("TrainConfig", {"cache_limit": "20GiB"}, "--cache-limit"),
    ("TrainConfig", {"cache_dtype": "float61"}, "did you mean 'float16'"),
    ("TrainConfig", {"engine": "rai"}, "did you mean 'ray'"),
    ("CompareConfig", {"jobs": -1}, "--jobs"),
    ("CompareConfig", {"ema": 1.0}, "--ema"),
    ("EvaluateConfig", {"predictions": "p.h5"}, "--model and --predictions, not both"),
    ("EvaluateConfig", {"model": None}, "one of --model and --predictions"),
    ("EvaluateConfig", {"resamples": 99}, "--resamples"),
    ("EvaluateConfig", {"normalize": "x"}, "--normalize"),
    ("PredictConfig", NEITHER, "expected one of files, --manifest and --wav-dir"),
    ("PredictConfig", {"files": ("a.wav",)}, "not several"),
    ("PredictConfig", {"out": "a.xml"}, "cannot tell its format"),
    ("PredictConfig", {"format": "csv"}, "give --out"),
    ("PredictConfig", {"out": "a", "format": "cvs"}, "did you mean 'csv'"),
    ("PredictConfig", {"hop": 1.0}, "give --segments"),
    ("PredictConfig", {"hop": 2.0, "segments": 1.0}, "leaves gaps"),
    ("PredictConfig", {"hop": 0.0, "segments": 1.0}, "--hop 0.0: expected more than 0"),
    ("PredictConfig", {"segments": 0.01}, "--segments 0.01: expected 0.1 or more"),
    ("PredictConfig", {"decision": "best"}, "--decision 'best': expected one of plain"),
    ("PredictConfig", {"normalize": "x"}, "--normalize"),
    ("PredictConfig", {"n_samples": 1}, "one pass does not vary"),
    ("PredictConfig", {"workers": -1}, "--workers"),
    ("ReportConfig", {"paths": ()}, "expected at least one path"),
    ("ReportConfig", {"embed_audio": -1}, "--embed-audio -1: expected 0 or more"),
    ("PickConfig", {"n": 0}, "--n 0: expected 1 or more"),
    ("DoctorConfig", {"model": "m"}, "give --base-url"),
    ("ExportConfig", {"to": "onxx"}, "did you mean 'onnx'"),
]


def test_every_step_is_checked_here():
    steps = {name for name in mifuse_cli.__all__ if name.endswith("Config")}
    assert steps == VALID.keys()
    assert steps - {config for config, _, _ in WRONG} == {
        "ShowConfig",
        "ValidateConfig",
    }  # nothing to get wrong


@pytest.mark.parametrize("name", VALID)
def test_defaults_are_valid_and_every_option_has_a_help(name):
    config = getattr(mifuse_cli, name)(**VALID[name])
    assert all(field.metadata["help"].endswith(".") for field in fields(config))


@pytest.mark.parametrize(("name", "values", "message"), WRONG)
def test_wrong_values_are_refused(name, values, message):
    with pytest.raises(UsageError) as caught:
        getattr(mifuse_cli, name)(**{**VALID[name], **values})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("TrainSourceConfig", {"tune": "top-12", "layers": "0, 3,12", "validation": 0.0, "dropout": 0.0}),
        ("QueryLalmConfig", {"manifest": None, "wav_dir": "w", "temperature": 0.0, "n_samples": 1}),
        ("TrainConfig", {"tune": "all", "refresh": 0, "ema": 0.0, "diversity_weight": 0.0}),
        ("EvaluateConfig", {"model": None, "predictions": "p.h5", "normalize": "speaker", "resamples": 100}),
    ],
)
def test_values_at_the_edge_are_allowed(name, values):
    config = getattr(mifuse_cli, name)(**{**VALID[name], **values})
    assert config.force is False


ENCODING = {
    "TrainSourceConfig": {"manifest": "m", "encoder": "e", "out": "o"},
    "SampleSourceConfig": {"model": "m", "manifest": "m", "out": "o"},
    "TrainConfig": {"model": "m", "fused": "f", "manifest": "m", "out": "o"},
    "EvaluateConfig": {"model": "m", "manifest": "m", "out": "o"},
    "CompareConfig": {"data": "d", "models": "m", "lalm": "l", "out": "o"},
}


@pytest.mark.parametrize("name", ENCODING)
def test_who_encodes_and_where_it_is_kept_settle_nothing(name):
    made = getattr(mifuse_cli, name)
    others = {
        "workers": 3,
        "cache_dir": "elsewhere",
        "cache_dtype": "float16",
        "cache_limit": "2 GB",
        "engine": "ray",
    }
    plain, other = made(**ENCODING[name]), made(**ENCODING[name], **others)
    assert (plain.workers, plain.cache_dir) == (0, None) and other.cache_dir == Path("elsewhere")
    assert settings(plain) == settings(other)
    assert plain.encoding == Encoding()
    assert other.encoding == Encoding(cache_dir=Path("elsewhere"), cache_dtype="float16", cache_limit=2 * 10**9,
                                      workers=3, engine="ray")  # fmt: skip
    with pytest.raises(UsageError, match="--workers -1: expected 0 or more"):
        made(**ENCODING[name], workers=-1)


def test_all_problems_of_steps_with_two_parents_are_listed():
    with pytest.raises(UsageError) as caught:
        mifuse_cli.TrainConfig(**ENCODING["TrainConfig"], workers=-1, ema=2, encoder_learning_rate=0)
    for flag in ("--workers", "--ema", "--encoder-learning-rate"):
        assert flag in str(caught.value)
