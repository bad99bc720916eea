"""Words become a complete, typed configuration, or one message and one hint."""

import sys

import pytest
from omegaconf import OmegaConf

from scalify_cli.config import build, catalogue, compose
from scalify_cli.errors import UserError

OPTIONS = [(group, option) for group in catalogue.GROUPS for option in catalogue.options(group)]
NEEDS = {"text": ["data.path=corpus.txt"], "hf": ["data.path=corpus.parquet"]}
CHOICES = (
    "precision, scaling, model, optimizer, data, trainer, launcher, tracking, seed, name, tags"
)

ERRORS = {
    "precison=fp8": ("'precison=fp8': there is no 'precison'", "did you mean 'precision'?"),
    "precision=fp9": (
        "'precision=fp9': precision has no option 'fp9'",
        "did you mean 'fp8'? choose from: bf16, fp16, fp32, fp8",
    ),
    "model.widht=3": ("model.widht: model has no 'widht'", "did you mean 'width'?"),
    "+foo=1": ("'+foo=1': there is no 'foo'", f"choose from: {CHOICES}"),
    "++model.foo=1": (
        "model.foo: model has no 'foo'",
        "choose from: layers, width, heads, context, vocab_size, tie_embeddings, remat",
    ),
    "precision=fp8,fp16": (
        "'precision=fp8,fp16' names more than one value, and this is one run",
        "use `scalify sweep precision=fp8,fp16`",
    ),
    "seed=range(0,3)": (
        "'seed=range(0,3)' names more than one value, and this is one run",
        "use `scalify sweep seed=range(0,3)`",
    ),
    "~seed": ("'~seed': 'seed' cannot be removed, every run has one", "set it instead: seed=VALUE"),
    "~scaling": (
        "'~scaling': 'scaling' cannot be removed, every run has one",
        "set it instead: scaling=none",
    ),
    "=3": ("'=3' has no key", "write KEY=VALUE, as in seed=3"),
    "precision": (
        "'precision' cannot be read as key=value",
        "write precision=VALUE, as in precision=fp8",
    ),
    "": ("'' cannot be read as key=value", "write key=VALUE, as in precision=fp8"),
    "precision=null": (
        "'precision=null': precision takes the name of an option",
        "choose from: bf16, fp16, fp32, fp8",
    ),
    "hydra.run.dir=x": (
        "'hydra.run.dir=x': Hydra's own settings are not used here",
        "use --runs-dir for where runs go and `scalify sweep` for many of them",
    ),
    "precision@model=fp8": (
        "'precision@model=fp8': a group cannot be moved with '@'",
        "write precision=OPTION",
    ),
    "model.width=abc": (
        "model.width=abc is not an integer",
        "write digits only: 1000, not 1e3 or 1000.0",
    ),
    "trainer.steps=null": (
        "trainer.steps=null is not an integer",
        "write digits only: 1000, not 1e3 or 1000.0",
    ),
    "optimizer.beta1=x": ("optimizer.beta1=x is not a number", "write it as 0.1 or 3e-4"),
    "model.remat=maybe": ("model.remat=maybe is not true or false", "write true or false"),
    "tags=a": ("tags=a is not a list", "write [a,b]"),
    "seed=-1": ("seed=-1 is out of range", "use 0 <= seed < 2147483648"),
    "model.width=${nope}": (
        "model.width: Interpolation key 'nope' not found",
        "${...} takes the full path of a key, as ${model.width}",
    ),
    "data.cache=/a=b": (
        "'data.cache=/a=b' cannot be read as key=value",
        "quote a value that has = or other signs in it: 'data.cache=\"/a=b\"'",
    ),
    "data.cache=~/x": (
        "'data.cache=~/x' cannot be read as key=value",
        "write data.cache=$HOME/x",
    ),
    "seed =3": ("'seed =3' cannot be read as key=value", "leave no space around '='"),
    "data=text": ("data.path is required", "add data.path=VALUE"),
    "model._target_=absent.Model": (
        "model._target_=absent.Model cannot be imported: "
        "ModuleNotFoundError: No module named 'absent'",
        "`python -c 'import absent'` has to work in this folder",
    ),
    "model._target_=Model": (
        "model._target_=Model is not a dotted path",
        "write it as my_package.MyModel",
    ),
    "model._target_=textwrap.shortn": (
        "model._target_=textwrap.shortn: textwrap has no 'shortn'",
        "did you mean 'shorten'?",
    ),
    "model._target_=math.pi": (
        "model._target_=math.pi is not a class",
        "name a class or a function",
    ),
    "trainer.sequence_length=2048": (
        "trainer.sequence_length=2048 is longer than model.context=1024",
        "use trainer.sequence_length=1024 or model.context=2048",
    ),
}


@pytest.mark.parametrize("word", ERRORS)
def test_a_mistake_gets_one_message_and_one_hint(word):
    with pytest.raises(UserError) as caught:
        compose([word])
    assert (caught.value.message, caught.value.hint) == ERRORS[word]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["launcher=local", "launcher.processes=3"],
        ["launcher=slurm", "launcher.nodes=3"],
        ["launcher=slurm", "launcher.nodes=3", "launcher.tasks_per_node=2"],
    ],
)
def test_a_batch_has_to_split_over_the_processes_of_a_run(words):
    words = ["trainer.accumulate=1", *words]
    assert compose([*words, "trainer.batch_size=12"]).trainer.batch_size == 12
    with pytest.raises(UserError, match=r"trainer\.batch_size=8 does not split over \d devices"):
        compose([*words, "trainer.batch_size=8"])


@pytest.mark.parametrize("word", ["trainer.steps=-1", "trainer.steps=0", "model.heads=7"])
def test_values_that_the_objects_refuse_are_named(word):
    with pytest.raises(UserError) as caught:
        compose([word])
    assert word in caught.value.message


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_builds(group, option):
    config = compose([f"{group}={option}", *NEEDS.get(option, [])])
    built = build(config[group])
    assert type(built).__module__.startswith("scalify_cli.")
    assert not OmegaConf.missing_keys(config)


def test_the_defaults_are_the_main_job():
    assert compose() == compose(["precision=fp8", "scaling=scalify", "model=gpt_small"])


@pytest.mark.parametrize("mark", ["", "+", "++"])
def test_a_plus_before_a_key_changes_nothing(mark):
    config = compose([f"{mark}precision=fp16", f"{mark}trainer.steps=7"])
    assert config.precision.name == "fp16"
    assert config.trainer.steps == 7


def test_the_quick_trainer_is_sized_to_the_model_and_yields_to_words():
    sizes = {m: compose([f"model={m}"]).trainer.steps for m in ("gpt_nano", "gpt_small")}
    assert sizes["gpt_nano"] > sizes["gpt_small"]
    assert compose(["trainer.steps=7", "model=gpt_nano"]).trainer.steps == 7


def test_the_paper_trainer_brings_its_optimizer_unless_told_otherwise():
    assert compose(["trainer=paper"]).optimizer.warmup_steps == 4070
    told = compose(["optimizer=adamw", "trainer=paper"])
    assert told.optimizer == compose().optimizer


def test_interpolation_is_resolved():
    config = compose(["trainer=gpu", "model.context=512"])
    assert config.trainer.sequence_length == 512


def test_values_are_typed():
    learning_rate = compose(["optimizer.learning_rate=1"]).optimizer.learning_rate
    assert (type(learning_rate), learning_rate) == (float, 1.0)


def test_the_last_word_on_a_key_counts():
    assert compose(["seed=1", "precision=fp8", "seed=2", "precision=fp32"]).seed == 2


def _own_options(folder):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("_target_: fractions.Fraction\nnumerator: 3\n")
    (folder / "model" / "gpt_small.yaml").write_text("_target_: fractions.Fraction\nnumerator: 5\n")
    return folder


def test_own_options_come_first_and_the_shipped_ones_stay(tmp_path):
    folder = _own_options(tmp_path / "my conf")
    assert compose(["model=mine"], folder).model.numerator == 3
    assert compose([], folder).model.numerator == 5
    assert compose(["model=gpt_nano"], folder).model.layers == 4


def test_the_environment_names_a_folder_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALIFY_CONF", str(_own_options(tmp_path)))
    assert compose(["model=mine"]).model.numerator == 3


def test_a_class_that_is_no_dataclass_takes_its_signature_s_keywords(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: textwrap.shorten\nwidth: 3\n")
    assert compose(["model=mine", "model.text=a"], tmp_path).model.text == "a"
    with pytest.raises(UserError, match=r"model\.text is required"):
        compose(["model=mine"], tmp_path)


def test_another_target_takes_none_of_the_option_s_values():
    config = compose(["model._target_=textwrap.shorten", "model.text=a", "model.width=768"])
    assert config.model == {"_target_": "textwrap.shorten", "text": "a", "width": 768}
    gpt = "scalify_cli.models.gpt.GPT"
    assert compose([f"model._target_={gpt}", "model.width=96", "model.heads=3"]).model.layers == 12


def test_a_module_in_the_current_folder_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "model_of_mine.py").write_text("def model(width: int = 3):\n    return width\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    config = compose(["model._target_=model_of_mine.model", "model.width=5"])
    assert build(config.model) == 5
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(("end", "told"), [("3", "SystemExit: 3"), ("'no'", "SystemExit: no")])
def test_a_module_that_ends_the_process_cannot_be_imported(tmp_path, monkeypatch, end, told):
    (tmp_path / "model_that_ends.py").write_text(f"import sys\nsys.exit({end})\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"cannot be imported: {told}"):
        compose(["model._target_=model_that_ends.model"])


def test_what_a_module_prints_is_chatter(tmp_path, monkeypatch, capsys):
    code = "print('imported')\ndef model():\n    print('built')\n"
    (tmp_path / "model_that_prints.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    build(compose(["model._target_=model_that_prints.model"]).model)
    assert capsys.readouterr() == ("", "imported\nbuilt\n")


def test_a_class_without_a_signature_takes_anything(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: datetime.timedelta\ndays: 3\n")
    assert compose(["model=mine", "model.hours=1"], tmp_path).model.hours == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="absent does not exist"):
        compose([], tmp_path / "absent")


def test_a_broken_file_is_a_user_error(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="not YAML"):
        compose(["model=mine"], tmp_path)
