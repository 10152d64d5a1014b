"""Recipes: what is accepted, what is refused and with which way out, what they resolve to.

Mutations that were seen to fail here: numbers in text that stay text; an unknown key that passes;
overrides that lose to the file; a default that changes; a resolved recipe that is no recipe; a
changed recipe that goes on in the old folder; --restart that deletes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from interlace import (
    BridgeConfig,
    GatedConfig,
    LaneRoPEConfig,
    MixConfig,
    ParScaleConfig,
    PMatchConfig,
)
from interlace.errors import ConfigError, RunError
from interlace.files import LOCK
from interlace.tasks import list_tasks
from interlace.training.recipe import STAGES, load_recipe, packaged_recipes, parse_recipe
from interlace.training.run import (
    RECIPE,
    as_yaml,
    blocking_differences,
    holding,
    prepare_folder,
    starting_folder,
)

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "tiny_grpo_resolved.yaml"
BARE = {"model": "tiny", "task": "countdown", "output_dir": "runs/x"}


def recipe(**more):
    return parse_recipe(BARE | {"warmup": {}, "grpo": {}} | more)


@pytest.mark.parametrize("name", packaged_recipes())
@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_that_comes_along_resolves_to_a_recipe(name, stage):
    """The resolved text is a recipe again, and resolves to itself."""
    if getattr(load_recipe(name), stage) is None:
        return  # such as blocks-last, which is a warm-up alone
    text = as_yaml(load_recipe(name).resolved(stage), stage)
    again = parse_recipe(yaml.safe_load(text))
    assert as_yaml(again.resolved(stage), stage) == text
    task, options = again.task_of(stage)
    assert task in {info.name for info in list_tasks()}
    assert options["split"] == "train"


def test_the_recipes_that_were_promised_are_there():
    assert set(packaged_recipes()) >= {
        "tiny",
        "smollm2-135m-gpu",
        "smollm2-135m-cpu",
        "paper-deepseek-r1-distill-qwen-1.5b",
        "paper-deepseek-r1-distill-qwen-7b",
        "paper-deepseek-r1-distill-llama-8b",
    }


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("paper-*.yaml")), ids=str)
def test_what_the_paper_leaves_open_is_marked(path):
    marked = {
        line.split(":")[0].strip() for line in path.read_text().splitlines() if "OPEN" in line
    }
    assert marked >= {"learning_rate", "max_steps", "kl_weight", "clip_low", "clip_high", "train"}


def test_the_tiny_recipe_resolves_to_what_was_reviewed():
    """A changed default of ours or of Hugging Face's shows here as text."""
    text = as_yaml(load_recipe("tiny").resolved("grpo"), "grpo").split("\n", 1)[1]
    assert text == GOLDEN.read_text()


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: tiny\ntask: countdown\noutput_dir: x\n"
        "grpo: {learning_rate: 1e-6, max_steps: 1e3, rewards: {correctness: 1}}\n"
    )
    assert yaml.safe_load(path.read_text())["grpo"]["learning_rate"] == "1e-6"
    found = load_recipe(path).grpo
    assert found == {"learning_rate": 1e-6, "max_steps": 1000, "rewards": {"correctness": 1.0}}
    assert type(found["max_steps"]) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, "no key 'modle'. Did you mean 'model'"),
        ({"learning_rate": 1}, "belongs to a section: warmup.learning_rate or grpo.learning_rate"),
        ({"width": 4}, "belongs to a section: warmup.width or grpo.width"),
        ({"dtype": "float32"}, "Did you mean 'load'"),
        ({"grpo": {"widht": 4}}, "grpo has no option 'widht'. Did you mean 'width'"),
        ({"grpo": {"lr": 1}}, "Did you mean 'learning_rate'"),
        ({"grpo": {"max_completion_length": 8}}, "Did you mean 'max_new_tokens'"),
        ({"grpo": {"beta": 0.1}}, "Did you mean 'kl_weight'"),
        ({"grpo": {"rollouts": 8}}, "no option 'rollouts'. It is called num_generations now"),
        ({"warmup": {"batch_size": 8}}, "Did you mean 'groups_per_step'"),
        ({"warmup": {"num_generations": 8}}, "an option of grpo: write grpo.num_generations"),
        ({"grpo": {"attach": "none"}}, "attach stands at the top of a recipe"),
        ({"grpo": {"output_dir": "y"}}, "stands at the top|holds both stages; set it there"),
        ({"grpo": {"seed": 3}}, "the recipe's seed is that of both stages"),
        ({"grpo": {"per_device_train_batch_size": 3}}, "prompts_per_rollout is the batch"),
        ({"grpo": {"include_for_metrics": []}}, "no effect, since an evaluation samples"),
        ({"grpo": {"neftune_noise_alpha": 3}}, "another model than the one that samples"),
        ({"grpo": {"resume_from_checkpoint": "x"}}, "goes on from the last checkpoint by itself"),
        ({"grpo": {"learning_rate": "fast"}}, "grpo.learning_rate takes a number; got 'fast'"),
        ({"grpo": {"learning_rate": True}}, "grpo.learning_rate takes a number; got True"),
        ({"grpo": {"max_steps": 1.5}}, "grpo.max_steps takes a whole number; got 1.5"),
        ({"grpo": {"guard": "off!"}}, "grpo.guard takes true or false; got 'off!'"),
        ({"grpo": {"save_strategy": False}}, "write the word in quotes"),
        ({"grpo": {"lr_scheduler_type": "liner"}}, "one of 'linear'"),
        ({"grpo": {"width": [1, "x"]}}, "a list with commas .each a whole number.; got .1, 'x'"),
        ({"grpo": {"loss": "ppo"}}, "one of 'token', 'sequence', 'dr_grpo'; got 'ppo'"),
        ({"grpo": {"width": 3}}, "In the section grpo: .*whole groups"),
        ({"grpo": 4}, "holds options by name; got 4"),
        ({"load": {"dtyp": "x"}}, "no option 'dtyp'. Did you mean 'dtype'"),
        ({"load": {"dtype": "float33"}}, "load.dtype is float32, bfloat16, float16 or auto"),
        ({"load": {"token": "x"}}, "holds no hub token"),
        ({"attach": "brigde"}, "Did you mean 'bridge'"),
        ({"attach": None}, "attach takes a mapping; got None"),
        ({"attach": {"head_dim": 8}}, "attach.method is one of bridge, pmatch, .*none, auto"),
        ({"attach": {"method": "bridge", "head_dims": 8}}, "Did you mean 'head_dim'"),
        ({"attach": {"method": "none", "head_dim": 8}}, "takes no options"),
        ({"attach": {"method": "bridge", "parameter_share": 5}}, "between 0 and 1; got 5"),
        ({"seed": -1}, "from 0 on; got -1"),
        ({"task": 3}, "task takes a text; got 3"),
        ({"task": None}, "task takes a text; got None"),
        ({"task": ""}, "task is missing"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(values, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**values)


def written(folder: Path, **more) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(BARE | more))
    return path


def test_overrides_win_and_may_go_deep(tmp_path):
    grpo = {"width": 8, "num_generations": 8, "rewards": {"steps": 0.5}}
    found = load_recipe(
        written(tmp_path, attach="pmatch", grpo=grpo),
        [
            *("grpo.width=[1,2]", "grpo.rewards.format=0.1", "attach.num_heads=4", "seed=3"),
            *("grpo.width=4", "grpo.max_steps=1e3", "grpo.lr_scheduler_kwargs={lr_end: 1e-7}"),
            *("warmup.data=null", "task_options.template={question}", "grpo.save_strategy=no"),
        ],
    )
    assert found.grpo == {
        "width": 4,
        "num_generations": 8,
        "rewards": {"steps": 0.5, "format": 0.1},
        "max_steps": 1000,
        "lr_scheduler_kwargs": {"lr_end": 1e-7},
        "save_strategy": "no",
    }
    assert found.warmup == {"data": None}
    assert found.attach == PMatchConfig(num_heads=4)
    assert (found.seed, found.task_options) == (3, {"template": "{question}"})
    assert load_recipe(written(tmp_path, attach={"method": "bridge"}), ["attach=none"]).attach == (
        "none"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.width", "An override is section.key=value, .* got 'grpo.width'"),
        ("grpo..width=3", "The section grpo has no option '.width'"),
        ("grpo.width=[1,", "grpo.width takes a whole number or a list .*; got '.1,'"),
        ("model.dtype=x", "A recipe has no key 'model'"),
        ("=3", "A recipe has no key"),
        ("grpo.widht=3", "The section grpo has no option 'widht'. Did you mean 'width'?"),
        ("grpo.seed=3", "grpo.seed is not set here: the recipe's seed is that of both stages"),
        ("grpo.learning_rate=fast", "grpo.learning_rate takes a number; got 'fast'"),
        ("grpo.max_steps=" + "9" * 5000, "characters left out"),
    ],
)
def test_overrides_that_make_no_sense(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_recipe(written(tmp_path), [override])


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: a\nmodel: b\n")
    with pytest.raises(ConfigError, match="'model' stands twice"):
        load_recipe(path)


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
        load_recipe("tinny")


def test_weights_are_loaded_in_float32_unless_the_recipe_says_otherwise():
    assert recipe().load == {"dtype": "float32"}
    assert recipe(load={"dtype": "bfloat16"}).load == {"dtype": "bfloat16"}
    assert recipe(load={"quantization_config": {}}).load == {"quantization_config": {}}
    assert recipe().resolved("grpo")["load"] == {"dtype": "float32"}


def test_attach_in_all_its_forms():
    assert recipe().attach == "auto"
    assert recipe(attach="none").attach == "none"
    assert recipe(attach="pmatch").attach == PMatchConfig()
    share = {"method": "bridge", "parameter_share": "5e-2", "layers": 2}
    assert recipe(attach=share).attach == BridgeConfig(parameter_share=0.05, layers=2)


@pytest.mark.parametrize(
    ("given", "config"),
    [
        ({"method": "gated", "rank": "16"}, GatedConfig(rank=16)),
        ({"method": "lanerope", "learned": False}, LaneRoPEConfig(learned=False)),
        ({"method": "mix", "share": "0.2"}, MixConfig(share=0.2)),
        ({"method": "parscale", "streams": "4"}, ParScaleConfig(streams=4)),
    ],
)
def test_every_rival_is_a_method_with_its_options(given, config):
    assert recipe(attach=given).attach == config
    assert recipe(attach=given["method"]).attach == type(config)()
    method, name = given["method"], list(given)[1]
    with pytest.raises(ConfigError, match=f"attach has no option 'mystery'.*{name}"):
        recipe(attach={"method": method, "mystery": 1})
    overrides = [f"attach={method}", f"attach.{name}={given[name]}"]
    assert load_recipe("tiny", overrides).attach == config


def test_new_weights_cannot_train_where_none_are_attached():
    with pytest.raises(ConfigError, match=r"RLVR-only has no warm-up.*warmup.train=all"):
        recipe(attach="none").section("warmup")
    assert recipe(attach="none", warmup={"train": "all"}).section("warmup") == {"train": "all"}
    assert recipe(attach="none").section("grpo") == {}
    with pytest.raises(ConfigError, match=r"grpo\.train=new"):
        recipe(attach="none", grpo={"train": "new"}).section("grpo")


def test_a_missing_section_is_refused():
    with pytest.raises(ConfigError, match="no section 'grpo'"):
        parse_recipe(BARE).section("grpo")


def test_a_stage_may_have_a_task_of_its_own():
    found = recipe(
        task_options={"max_number": 9}, warmup={"task": "gsm8k", "task_options": {"size": 5}}
    )
    assert found.task_of("warmup") == ("gsm8k", {"split": "train", "size": 5})
    assert found.task_of("grpo") == ("countdown", {"split": "train", "max_number": 9})
    assert found.resolved("warmup")["task"] == "gsm8k"
    file = recipe(task="gsm8k", task_options={"data": "train.jsonl"})
    assert file.task_of("grpo") == ("gsm8k", {"data": "train.jsonl"})


def test_arguments_are_hugging_faces(tmp_path):
    """The very options reach the trainer, whichever name transformers has for checkpointing."""
    found = recipe(
        output_dir=str(tmp_path),
        seed=5,
        grpo={"use_cpu": True, "gradient_checkpointing": True, "width": [2, 4], "save_steps": 7},
    )
    args = found.arguments("grpo")
    assert (args.output_dir, args.seed, args.width) == (str(tmp_path / "grpo"), 5, [2, 4])
    assert args.gradient_checkpointing is True
    assert args.save_steps == 7
    assert found.resolved("grpo")["grpo"]["gradient_checkpointing"] is True


def test_what_hugging_face_refuses_is_a_clean_error(tmp_path):
    found = recipe(output_dir=str(tmp_path), grpo={"use_cpu": True, "fsdp": "nonsense"})
    with pytest.raises(ConfigError, match="section grpo cannot be carried out here"):
        found.arguments("grpo")


def test_a_folder_knows_its_recipe(tmp_path):
    first = recipe(output_dir=str(tmp_path / "a"), grpo={"max_steps": 5})
    prepare_folder(first, "grpo")
    folder = tmp_path / "a" / "grpo"
    written = (folder / RECIPE).read_text()
    assert parse_recipe(yaml.safe_load(written)).resolved("grpo") | {"blocks": "auto"} == (
        first.resolved("grpo")
    )
    (folder / "checkpoint-1").mkdir()
    prepare_folder(first, "grpo")
    other = recipe(output_dir=str(tmp_path / "a"), grpo={"max_steps": 6}, seed=1)
    with pytest.raises(RunError, match=r"seed was 0 and is 1; grpo.max_steps was 5 and is 6"):
        prepare_folder(other, "grpo")
    assert (folder / RECIPE).read_text() == written


def test_a_folder_that_version_0_1_wrote_goes_on(tmp_path):
    """It calls num_generations "rollouts", and lacks what is new."""
    now = recipe(output_dir=str(tmp_path), blocks="fresh")
    prepare_folder(now, "grpo")
    written = tmp_path / "grpo" / RECIPE
    then = yaml.safe_load(written.read_text())
    then["grpo"]["rollouts"] = then["grpo"].pop("num_generations")
    for name in ("eval_widths", "num_generations_eval"):
        del then["grpo"][name]
    written.write_text(yaml.safe_dump(then))
    (tmp_path / "grpo" / "metrics.jsonl").write_text("")
    prepare_folder(now, "grpo")
    other = {"grpo": {"num_generations": 16}, "output_dir": str(tmp_path), "blocks": "fresh"}
    with pytest.raises(RunError, match=r"grpo\.num_generations was 8 and is 16"):
        prepare_folder(recipe(**other), "grpo")


def test_a_run_that_never_began_leaves_no_trace(tmp_path):
    """A recipe that failed at once may be corrected without --restart."""
    prepare_folder(recipe(output_dir=str(tmp_path), seed=1), "grpo")
    prepare_folder(recipe(output_dir=str(tmp_path), seed=2), "grpo")
    assert yaml.safe_load((tmp_path / "grpo" / RECIPE).read_text())["seed"] == 2


def test_restart_moves_aside_and_deletes_nothing(tmp_path):
    first = recipe(output_dir=str(tmp_path))
    prepare_folder(first, "grpo")
    for number in (1, 2):
        (tmp_path / "grpo" / "checkpoint").write_text(str(number))
        with pytest.warns(UserWarning, match=f"before-{number}"):
            prepare_folder(recipe(output_dir=str(tmp_path), seed=1), "grpo", restart=True)
    kept = [(tmp_path / f"grpo.before-{n}" / "checkpoint").read_text() for n in (1, 2)]
    assert kept == ["1", "2"]
    assert [p.name for p in (tmp_path / "grpo").iterdir()] == [RECIPE]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"not empty and has no recipe\.yaml"):
        prepare_folder(recipe(output_dir=str(tmp_path)), "grpo")


@pytest.mark.parametrize("moment", ["pathlib.Path.mkdir", "os.fsync", "pathlib.Path.replace"])
def test_a_run_killed_while_it_begins_its_folder_begins_again(moment, tmp_path, monkeypatch):
    """Fails if the half of a recipe that it left stands for something of the user's."""
    now = recipe(output_dir=str(tmp_path / "new"))
    folder = now.folder("grpo")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, killed)
        with pytest.raises(KeyboardInterrupt), holding(folder):
            prepare_folder(now, "grpo")
    assert not (folder / "recipe.yaml").exists()
    with holding(folder):
        assert prepare_folder(now, "grpo") is False
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == now.resolved("grpo") | {
        "blocks": "fresh"
    }
    assert {entry.name for entry in folder.iterdir()} == {"recipe.yaml", LOCK}


@pytest.mark.parametrize(
    ("before", "after", "blocked"),
    [
        ({"micro_rows": 8}, {"micro_rows": 16}, False),
        ({}, {"logging_steps": 5, "report_to": "none", "save_steps": 10}, False),
        ({"max_steps": 5}, {"max_steps": 9}, True),  # the schedule would be another
        (
            {"max_steps": 5, "lr_scheduler_type": "constant"},
            {"max_steps": 9, "lr_scheduler_type": "constant"},
            False,
        ),
        ({}, {"width": [2, 4]}, True),
        ({}, {"learning_rate": 1e-5}, True),
    ],
)
def test_only_what_changes_the_result_stops_a_run_from_going_on(before, after, blocked):
    then, now = (recipe(grpo=values).resolved("grpo") for values in (before, after))
    assert bool(blocking_differences(then, now, "grpo")) is blocked


def test_an_option_that_is_newer_than_the_run_counts_as_its_default():
    then, now = recipe().resolved("grpo"), recipe(grpo={"clip_low": 0.1}).resolved("grpo")
    del then["grpo"]["clip_low"]
    assert blocking_differences(then, recipe().resolved("grpo"), "grpo") == []
    assert blocking_differences(then, now, "grpo") == ["grpo.clip_low was 0.2 and is 0.1"]


def test_a_run_may_move_to_another_folder():
    then, now = (recipe(output_dir=name).resolved("grpo") for name in ("a", "b"))
    assert blocking_differences(then, now, "grpo") == []


def test_blocks_come_from_where_the_recipe_says(tmp_path):
    found = recipe(output_dir=str(tmp_path))
    assert starting_folder(found, "grpo") is None
    with pytest.raises(ConfigError, match="holds no finished warm-up"):
        starting_folder(recipe(output_dir=str(tmp_path), blocks="warmup"), "grpo")
    with pytest.raises(ConfigError, match=r"has no interlace\.json"):
        starting_folder(recipe(output_dir=str(tmp_path), blocks=str(tmp_path)), "grpo")
    model = tmp_path / "warmup" / "model"
    model.mkdir(parents=True)
    assert starting_folder(found, "grpo") is None  # begun, not finished
    (model / "interlace.json").touch()
    assert starting_folder(found, "grpo") == model
    assert starting_folder(found, "warmup") is None
    assert starting_folder(recipe(output_dir=str(tmp_path), blocks="fresh"), "grpo") is None


def test_a_warm_up_of_other_blocks_is_refused(tmp_path):
    prepare_folder(recipe(output_dir=str(tmp_path), attach="pmatch"), "warmup")
    model = tmp_path / "warmup" / "model"
    model.mkdir()
    (model / "interlace.json").touch()
    with pytest.raises(ConfigError, match="was 'pmatch' and is 'bridge'"):
        starting_folder(recipe(output_dir=str(tmp_path), attach="bridge"), "grpo")


def test_options_that_came_later_do_not_stop_an_older_run(tmp_path):
    """Fails if an option that is new, at its default, is a difference to a recipe without it."""
    now = recipe(output_dir=str(tmp_path))
    for stage in ("warmup", "grpo"):
        prepare_folder(now, stage)
        folder = now.folder(stage)
        (folder / "metrics.jsonl").write_text("{}\n")
        values = yaml.safe_load((folder / RECIPE).read_text())
        for name in ("splice", "splice_by", "width", "sibling_dropout", "rollout_backend"):
            if (stage, name) != ("grpo", "width"):
                values[stage].pop(name, None)
        (folder / RECIPE).write_text(yaml.safe_dump(values))
        assert prepare_folder(now, stage) is False
        changed = {"splice": 0.5} if stage == "warmup" else {"sibling_dropout": 0.5}
        with pytest.raises(RunError, match=f"{next(iter(changed))} was 0.0 and is 0.5"):
            prepare_folder(recipe(output_dir=str(tmp_path), **{stage: changed}), stage)


def test_no_recipe_leaves_its_words_to_the_next(tmp_path):
    """Breaks if recipes share more of their parser than its declared options."""
    path = tmp_path / "wrong.yaml"
    path.write_text("model: tiny\ntask: countdown\noutput_dir: x\ngrpo: {width: nine}\n")
    with pytest.raises(ConfigError, match=r"wrong.yaml: grpo.width takes .*got 'nine'"):
        load_recipe(path)
    with pytest.raises(ConfigError, match=r"^grpo.width takes .*got 'ten'"):
        load_recipe("tiny", ["grpo.width=ten"])
    values = {"model": "m", "task": "t", "output_dir": "o", "grpo": {"max_steps": 7}}
    assert parse_recipe(values).grpo["max_steps"] == 7
    assert "max_steps" not in parse_recipe(values | {"grpo": {}}).grpo
