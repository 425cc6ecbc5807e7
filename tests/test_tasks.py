"""The task table: the paper's five are there, held out, and every task says what success looks like."""

import re

import pytest

from genreward.errors import InputError
from genreward.profiles import get_profile
from genreward.tasks import (
    CONTROL_TASKS,
    DOMAIN_TASKS,
    EASY_TASKS,
    METAWORLD_TASKS,
    PAPER_TASKS,
    PRETRAIN_TASKS,
    STAGES,
    SUITES,
    TASKS,
    get_task,
)


def test_names_are_those_of_the_simulator():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP

    assert {TASKS[name].env_id for name in METAWORLD_TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert set(ALL_V3_ENVIRONMENTS) <= set(ENV_POLICY_MAP)


def test_names_are_those_of_the_other_suites():
    import gymnasium_robotics  # noqa: F401  (registers its environments)
    from dm_control import suite
    from gymnasium import registry

    assert {tuple(name.split("-")) for name in CONTROL_TASKS} <= set(suite.ALL_TASKS) and len(CONTROL_TASKS) == 6
    assert TASKS["door"].env_id in registry
    assert {task.suite for task in TASKS.values()} == set(SUITES)


def test_evaluated_tasks_are_held_out():
    assert PAPER_TASKS == ("pick-place", "pick-out-of-hole", "bin-picking", "shelf-place", "disassemble")
    assert len(METAWORLD_TASKS) == 50 and len(PRETRAIN_TASKS) == 45 and not set(PRETRAIN_TASKS) & set(PAPER_TASKS)
    assert not set(DOMAIN_TASKS) & set(PAPER_TASKS) and set(DOMAIN_TASKS) <= set(PRETRAIN_TASKS)
    assert set(EASY_TASKS) >= {"reach", "push", "door-open", "drawer-close", "button-press"}


def test_captions_tell_tasks_and_stages_apart():
    prompts = [task.prompt for task in TASKS.values()]
    assert len(set(prompts)) == len(prompts)
    done = [task.done for task in TASKS.values()]
    assert len(set(done)) == len(done)
    for task in TASKS.values():
        assert len(task.stage_captions) == len(STAGES) == len(set(task.stage_captions))
        assert task.stage_captions[-1] == task.done
        assert all(task.done in sentence for sentence in task.paraphrases) and len(set(task.paraphrases)) == 3
        assert re.fullmatch(r"[a-z ,]+", task.prompt), task.prompt


def test_a_task_is_found_by_either_name_and_a_wrong_one_is_named():
    assert get_task("pick-place") is get_task("pick-place-v3") is get_task(TASKS["pick-place"])
    with pytest.raises(InputError, match="unknown task 'pick-plaze'; valid: assembly, ball_in_cup-catch, .*walk"):
        get_task("pick-plaze")
    with pytest.raises(InputError, match="unknown task None"):
        get_task(None)


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu"])
def test_no_prompt_is_cut_by_the_text_encoder(profile):
    room = get_profile(profile).video.text_length - 1  # one byte a token, and the end of the sentence
    assert {name for name, task in TASKS.items() if len(task.prompt.encode()) > room} == set()
