"""A grid is written once and means a list of words for every point."""

import json

import hydra
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scalify_cli.config import compose, signature
from scalify_cli.config.catalogue import folders, stands_alone
from scalify_cli.config.composition import Composer, searching
from scalify_cli.config.grid import Grid, adjusted, axes, definition, expand
from scalify_cli.config.overrides import normalise
from scalify_cli.config.sweep_file import read_grid
from scalify_cli.errors import UserError
from scalify_cli.shipped import shipped

SHIPPED = sorted(shipped("sweeps").glob("*.yaml"))


def words(grid: Grid) -> list[str]:
    return [" ".join(point.words) for point in expand(grid)]


def of(*changes: str) -> Grid:
    return adjusted(Grid(), changes)


def values(key: str, text: object) -> list[object]:
    """The values of one axis; a second one makes it vary when it has one value only."""
    points = expand(Grid(grid={key: text}, include=[{"name": "beside"}]))
    return [point.values[key] for point in points[:-1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        (3, [3]),
        ([0, 1], [0, 1]),
        ("0,1,2", [0, 1, 2]),
        ("range(0,3)", [0, 1, 2]),
        ("range(5,0,-2)", [5, 3, 1]),
        ("choice(4,7)", [4, 7]),
        ("sort(3,1,2,reverse=true)", [3, 2, 1]),
        ([7, "range(0,2)"], [7, 0, 1]),
    ],
)
def test_values_are_written_in_hydra_s_grammar(text, expected):
    assert values("seed", text) == expected


def test_glob_chooses_options_by_name():
    assert values("precision", "glob(fp*,exclude=fp32)") == ["fp16", "fp8"]


def test_values_keep_their_types():
    grid = of("tags=[a],[b,c]", "optimizer.learning_rate=1e-3,2e-3", "model.remat=true,false")
    point = expand(grid)[0]
    expected = {"tags": ["a"], "optimizer.learning_rate": 0.001, "model.remat": True}
    assert point.values == expected
    assert json.loads(json.dumps(point.values)) == expected


def test_points_are_the_product_in_the_order_of_writing():
    assert words(of("model=gpt_nano", "precision=fp16,fp8", "seed=0,1")) == [
        "model=gpt_nano precision=fp16 seed=0",
        "model=gpt_nano precision=fp16 seed=1",
        "model=gpt_nano precision=fp8 seed=0",
        "model=gpt_nano precision=fp8 seed=1",
    ]


def test_only_axes_that_vary_are_values():
    points = expand(Grid(grid={"seed": [4], "precision": ["fp8", "fp16"]}))
    assert axes(points) == ["precision"]
    assert points[0].words == ("seed=4", "precision=fp8")


def test_linked_values_go_together():
    grid = Grid(zip=[{"seed": [1, 2], "name": ["a", "b"]}], grid={"precision": ["fp8", "fp16"]})
    assert words(grid) == [
        "seed=1 name=a precision=fp8",
        "seed=1 name=a precision=fp16",
        "seed=2 name=b precision=fp8",
        "seed=2 name=b precision=fp16",
    ]


def test_included_points_come_on_top_and_excluded_ones_go():
    grid = Grid(
        base=["model=gpt_nano"],
        grid={"precision": ["fp32", "fp8"], "scaling": ["none", "scalify"]},
        include=[{"precision": "fp16"}],
        exclude=[{"precision": "fp32", "scaling": "scalify"}],
    )
    assert words(grid) == [
        "model=gpt_nano precision=fp32 scaling=none",
        "model=gpt_nano precision=fp8 scaling=none",
        "model=gpt_nano precision=fp8 scaling=scalify",
        "model=gpt_nano precision=fp16",
    ]


def test_an_exclusion_may_name_several_values_and_words_of_the_base():
    grid = Grid(base=["seed=3"], grid={"precision": ["fp32", "bf16", "fp8"]})
    left = [{"precision": ["fp32", "bf16"], "seed": 3}]
    assert words(Grid(**{**vars(grid), "exclude": left})) == ["seed=3 precision=fp8"]


def test_included_points_alone_are_all_there_are():
    assert words(Grid(include=[{"seed": "1,2"}, {"precision": "fp8"}])) == [
        "seed=1",
        "seed=2",
        "precision=fp8",
    ]


def test_an_axis_takes_the_place_of_a_word_of_the_base():
    grid = Grid(base=["seed=5", "model=gpt_nano"], grid={"seed": [0, 1]})
    assert words(grid) == ["model=gpt_nano seed=0", "model=gpt_nano seed=1"]


def test_the_same_point_twice_is_one():
    assert words(of("seed=0,1,0")) == ["seed=0", "seed=1"]


def test_a_word_of_the_command_line_replaces_what_the_file_says():
    grid = Grid(base=["model=gpt_nano"], grid={"precision": ["fp8", "fp16"], "seed": [0, 1]})
    assert words(adjusted(grid, ["seed=7", "model=gpt_micro"])) == [
        "seed=7 model=gpt_micro precision=fp8",
        "seed=7 model=gpt_micro precision=fp16",
    ]
    assert len(expand(adjusted(grid, ["seed=range(0,5)"]))) == 10


def test_a_word_of_the_command_line_holds_for_included_points_too():
    grid = Grid(include=[{"precision": "fp8"}, {"precision": "fp16"}])
    assert words(adjusted(grid, ["seed=0,1", "model=gpt_nano"])) == [
        "model=gpt_nano precision=fp8 seed=0",
        "model=gpt_nano precision=fp8 seed=1",
        "model=gpt_nano precision=fp16 seed=0",
        "model=gpt_nano precision=fp16 seed=1",
    ]


MISTAKES = {
    "seed=interval(0,1)": "'seed=interval(0,1)' has no list of values",
    "seed=range(0,3,0)": "'seed=range(0,3,0)' has no list of values",
    "seed=range(0,nan)": "'seed=range(0,nan)' has no list of values",
    "seed=range(0,inf)": "'seed=range(0,inf)' has more than 100,000 values",
    "seed=range(0,0)": "seed=range(0,0) names no value",
    "precision=glob(zzz*)": "precision=glob(zzz*) names no value",
    "seed=[": "'seed=[' cannot be read as key=value",
    "fp8": "'fp8' cannot be read as key=value",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_in_a_value_is_named(word):
    with pytest.raises(UserError) as caught:
        expand(of(word))
    assert caught.value.message == MISTAKES[word]


def test_a_product_of_too_many_points_is_a_mistake():
    with pytest.raises(UserError, match="the sweep has 250,000 points; 100,000 are the most"):
        expand(of("seed=range(0,500)", "trainer.steps=range(1,501)"))


@pytest.mark.parametrize("section", ["exclude", "baseline"])
def test_a_condition_on_a_key_that_nothing_sets_is_a_mistake(section):
    condition = {"precison": "fp8"}
    grid = Grid(
        grid={"precision": ["fp8", "fp16"]},
        **{section: [condition] if section == "exclude" else condition},
    )
    with pytest.raises(UserError, match=f"{section}: .*'precison'") as caught:
        expand(grid)
    assert caught.value.hint == "did you mean 'precision'?"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(), "this sweep names no key and no value"),
        (Grid(grid={"seed": [0]}, exclude=[{"seed": 0}]), "the sweep's `exclude` leaves no point"),
        (Grid(grid={"seed": [0]}, zip=[{"seed": [1]}]), "seed has two axes"),
        (Grid(zip=[{"seed": [0]}, {"seed": [1]}]), "seed has two axes"),
        (
            Grid(grid={"precision": ["fp8"]}, exclude=[{"precision": ["fp8", "fp23"]}]),
            "'exclude: precision=fp23': precision has no option 'fp23'",
        ),
        (
            Grid(grid={"precision": ["fp8"]}, baseline={"precision": "fp23"}),
            "'baseline: precision=fp23': precision has no option 'fp23'",
        ),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(grid, message):
    with pytest.raises(UserError) as caught:
        expand(grid)
    assert message in caught.value.message


def test_a_condition_may_name_an_option_that_this_sweep_does_not_try():
    grid = Grid(grid={"precision": ["fp8"]}, exclude=[{"precision": "fp32"}])
    assert words(grid) == ["precision=fp8"]


def test_linked_values_have_to_be_as_many():
    with pytest.raises(UserError, match="seed has 2, name has 1"):
        expand(Grid(zip=[{"seed": [0, 1], "name": ["a"]}]))


def test_linked_values_cannot_be_set_apart():
    with pytest.raises(UserError, match="seed goes together with name"):
        adjusted(Grid(zip=[{"seed": [0, 1], "name": ["a", "b"]}]), ["seed=3"])


def test_what_is_recorded_means_the_same_points(tmp_path):
    grid = adjusted(read_grid(shipped("sweeps") / "smoke.yaml"), ["seed=range(3,5)"])
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(definition(grid), sort_keys=False))
    assert expand(read_grid(path)) == expand(grid)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_expands_into_valid_points(path):
    grid, composer = read_grid(path), Composer()
    points = expand(grid)
    ids = [signature(composer.values(point.words)) for point in points]
    assert grid.description
    assert len(set(ids)) == len(points) > 1
    baseline = definition(grid)["baseline"]
    assert any(baseline.items() <= point.values.items() for point in points)


def test_the_paper_s_sweep_is_its_table():
    composer = Composer()
    points = expand(read_grid(shipped("sweeps") / "paper.yaml"))
    rows = [composer.compose(point.words) for point in points]
    keys = ("forward", "parameters", "moments")
    assert [tuple(row.precision[key] for key in keys) for row in rows] == [
        ("fp32", "fp32", "fp32"),
        ("fp16", "fp32", "fp32"),
        ("fp16", "fp16", "fp32"),
        ("e4m3", "fp16", "fp32"),
        ("e4m3", "fp16", "fp16"),
    ]
    rescaled = [
        (row.scaling.rescale_norm_backward, row.scaling.rescale_gradients) for row in rows[1:]
    ]
    assert rescaled == [("none", "none"), ("l2", "none"), ("l2", "none"), ("l2", "l2")]


CHOICES = st.lists(
    st.sampled_from(
        [
            "precision=fp16",
            "scaling=none",
            "model=gpt_nano",
            "model=gpt_micro",
            "trainer=gpu",
            "trainer=paper",
            "optimizer=adamw",
            "trainer.steps=7",
            "model.context=512",
            "trainer.sequence_length=${model.context}",
            "tags=[a,b]",
            "name='x y'",
            "optimizer.learning_rate=1e-3",
            "seed=4",
        ]
    ),
    max_size=5,
)


@settings(max_examples=15, deadline=None)
@given(st.lists(CHOICES, min_size=2, max_size=4))
def test_many_configurations_composed_together_are_those_that_hydra_composes(points):
    composers = Composer(), Composer(apart=True)
    for point in points:
        with searching(folders()):
            config = hydra.compose("config", overrides=normalise(point))
        expected = OmegaConf.to_container(config, resolve=True)
        for composer in composers:
            assert composer.raw(point) == expected


def test_another_target_is_the_same_together_and_alone():
    words = ["model._target_=textwrap.shorten", "model.text=a", "precision=fp16"]
    together = Composer(apart=True)
    together.raw(["precision=fp8"])
    assert together.raw(words) == Composer().raw(words)


@pytest.fixture
def asked(monkeypatch):
    """The overrides of every call of Hydra."""
    calls, original = [], hydra.compose

    def counted(*args, **kwargs):
        calls.append(kwargs["overrides"])
        return original(*args, **kwargs)

    monkeypatch.setattr(hydra, "compose", counted)
    return calls


def test_hydra_composes_each_choice_of_groups_once(asked):
    composer = Composer()
    points = expand(of("precision=fp8,fp16", "seed=0,1,2", "optimizer.learning_rate=1e-3,2e-3"))
    ids = {signature(composer.values(point.words)) for point in points}
    assert asked == [["precision=fp8"], ["precision=fp16"]]
    assert len(ids) == 12


def test_hydra_composes_an_option_that_stands_alone_once_in_all(asked):
    composer = Composer(apart=True)
    axes = ("precision=fp8,fp16", "scaling=none,scalify", "model=gpt_nano,gpt_micro,gpt_small")
    for point in expand(of(*axes)):
        composer.values(point.words)
    assert len(asked) == 2 + 2 + 3


def test_an_option_that_brings_others_does_not_stand_alone(tmp_path):
    (tmp_path / "precision").mkdir()
    own = tmp_path / "precision" / "mine.yaml"
    for head in ("# @package _global_", "defaults: [fp8]"):
        own.write_text(f"{head}\n")
        assert not stands_alone("precision", "mine", tmp_path)
    assert stands_alone("precision", "fp8")
    assert not stands_alone("model", "gpt_nano")
    assert not stands_alone("trainer", "paper")
    assert not stands_alone("optimizer/sized", "adamw_gpt_nano")


def test_ids_are_those_of_single_runs():
    composer = Composer()
    for point in expand(of("precision=fp8,fp16", "seed=0,1", "model=gpt_nano")):
        assert signature(composer.values(point.words)) == signature(compose(point.words))
