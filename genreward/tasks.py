"""The tasks: one row each, with the words that describe it. Everything downstream is looked up here by the task's name.

Meta-World's 50 environments carry no language, so the captions are written here: a `prompt` (what a goal video is asked
for), paraphrases (averaged when frames are scored, Eq. 6) and the captions of five stages, which teach the frame
scorer to tell "the gripper is above the puck" from "the puck is at the goal". The same is written for the tasks of
the DeepMind Control Suite and for Adroit's door, whose environments are in `suites`.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import errors

STAGES = ("away", "above", "touching", "moving", "done")
SUITES = ("metaworld", "dm_control", "adroit")


@dataclass(frozen=True)
class Task:
    """One task. `start` says where the object is at first, `done` describes the last frame of a success.

    `captions` are the stages' captions where they are not of the kind "the gripper is above the puck": five, in order
    of progress, the last of them `done`.
    """

    name: str
    prompt: str
    noun: str
    start: str
    done: str
    suite: str = "metaworld"
    captions: tuple[str, ...] = ()

    @property
    def env_id(self) -> str:
        """The environment's name in its suite."""
        return {"metaworld": f"{self.name}-v3", "dm_control": self.name, "adroit": "AdroitHandDoor-v1"}[self.suite]

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """Sentences that a successful frame satisfies: the query of the goal frame, averaged over."""
        body = "a robot arm" if self.suite == "metaworld" else "the robot"
        return (self.done, f"{body} has finished: {self.done}", f"the task is solved, {self.done}")

    @property
    def stage_captions(self) -> tuple[str, ...]:
        """What a frame of each of `STAGES` shows, in that order."""
        return self.captions or (
            f"the gripper is away from the {self.noun} {self.start}",
            f"the gripper is above the {self.noun} {self.start}",
            f"the gripper touches the {self.noun} {self.start}",
            f"the robot moves the {self.noun}",
            self.done,
        )


_ROWS = """
assembly|put the nut on the peg|nut|on the table|the nut is on the peg
basketball|pick up the ball and put it in the basket|ball|on the table|the ball is in the basket
bin-picking|move the block from one bin into the other bin|block|in the bin|the block is in the other bin
box-close|put the lid on the box|lid|beside the box|the lid is on the box
button-press|press the button|button|at the box|the button is pressed in
button-press-topdown|press the button from above|button|on top of the box|the button is pressed down
button-press-topdown-wall|press the button from above behind the wall|button|on top of the box behind the wall|\
the button behind the wall is pressed down
button-press-wall|reach around the wall and press the button|button|behind the wall|\
the button behind the wall is pressed in
coffee-button|press the button of the coffee machine|coffee button|at the coffee machine|the coffee button is pressed
coffee-pull|pull the mug away from the coffee machine|mug|under the coffee machine|\
the mug is away from the coffee machine
coffee-push|push the mug under the coffee machine|mug|on the table|the mug is under the coffee machine
dial-turn|turn the dial|dial|on the table|the dial is turned
disassemble|pick the nut off the peg|nut|on the peg|the nut is off the peg
door-close|close the door|door|open|the door is closed
door-lock|turn the lock of the door down|lock|unlocked|the door is locked
door-open|open the door|door handle|of the closed door|the door is open
door-unlock|turn the lock of the door up|lock|locked|the door is unlocked
drawer-close|close the drawer|drawer|open|the drawer is closed
drawer-open|open the drawer|drawer handle|of the closed drawer|the drawer is open
faucet-close|turn the faucet to close it|faucet|open|the faucet is closed
faucet-open|turn the faucet to open it|faucet|closed|the faucet is open
hammer|hammer the nail into the box|hammer|on the table|the nail is in the box
hand-insert|pick up the block and put it into the hole|block|on the table|the block is in the hole
handle-press|press the handle down|handle|up|the handle is down
handle-press-side|press the handle down from the side|side handle|up|the side handle is down
handle-pull|pull the handle up|handle|down|the handle is up
handle-pull-side|pull the handle up from the side|side handle|down|the side handle is up
lever-pull|pull the lever up|lever|down|the lever is up
peg-insert-side|insert the peg into the hole at the side|peg|on the table|the peg is in the hole
peg-unplug-side|pull the peg out of the hole|peg|in the hole|the peg is out of the hole
pick-out-of-hole|pick the puck out of the hole to the goal|puck|in the hole|\
the puck is out of the hole at the goal
pick-place|pick up the puck and place it at the goal|puck|on the table|the puck is at the goal in the air
pick-place-wall|pick up the puck and place it over the wall|puck|in front of the wall|\
the puck is at the goal over the wall
plate-slide|slide the plate into the goal|plate|in front of the goal|the plate is in the goal
plate-slide-back|slide the plate back out of the goal|plate|in the goal|the plate is out of the goal
plate-slide-back-side|slide the plate sideways out of the goal|plate|in the side goal|the plate is out of the side goal
plate-slide-side|slide the plate sideways into the goal|plate|beside the goal|the plate is in the side goal
push|push the puck to the goal|puck|on the table|the puck is at the goal on the table
push-back|push the puck back to the goal|block|far away on the table|the block is back at the goal
push-wall|push the puck around the wall to the goal|puck|before the wall|the puck is at the goal behind the wall
reach|reach the goal with the hand|goal|in the air|the hand is at the goal
reach-wall|reach the goal behind the wall with the hand|goal|behind the wall|the hand is at the goal behind the wall
shelf-place|pick up the block and place it on the shelf|block|in front of the shelf|the block is on the shelf
soccer|kick the ball into the goal|football|on the table|the football is in the goal
stick-pull|pull the bottle with the stick|stick|beside the bottle|the bottle is pulled to the goal with the stick
stick-push|push the bottle with the stick|stick|before the bottle|the bottle is pushed to the goal with the stick
sweep|sweep the block off the table|block|on the table beside the edge|the block is swept off the table
sweep-into|sweep the block into the hole|block|beside the hole|the block is swept into the hole
window-close|close the window|window handle|of the open window|the window is closed
window-open|open the window|window handle|of the closed window|the window is open
"""

TASKS: dict[str, Task] = {
    task.name: task for task in (Task(*line.split("|")) for line in _ROWS.replace("\\\n", "").strip().splitlines())
}


def _own_captions(name: str, suite: str, noun: str, prompt: str, *captions: str) -> None:
    TASKS[name] = Task(name, prompt, noun, captions[0], captions[-1], suite, captions)


_own_captions("walker-walk", "dm_control", "walker", "make the walker walk upright",
              "the walker lies on the floor", "the walker kneels on the floor", "the walker stands still",
              "the walker takes a step", "the walker walks upright")
_own_captions("cheetah-run", "dm_control", "cheetah", "make the cheetah run",
              "the cheetah lies on its back", "the cheetah stands still", "the cheetah lifts a leg",
              "the cheetah leaps forward", "the cheetah runs fast")
_own_captions("reacher-easy", "dm_control", "red ball", "reach the red ball with the fingertip",
              "the fingertip is far from the red ball", "the arm turns toward the red ball",
              "the fingertip is near the red ball", "the fingertip touches the rim of the red ball",
              "the fingertip is on the red ball")
_own_captions("cartpole-swingup", "dm_control", "pole", "swing the pole up and balance it",
              "the pole hangs down", "the pole swings to the side", "the pole is level", "the pole is nearly upright",
              "the pole stands upright on the cart")
_own_captions("finger-spin", "dm_control", "spinner", "spin the spinner with the finger",
              "the finger is away from the spinner", "the finger is beside the spinner",
              "the finger touches the spinner", "the finger pushes the spinner", "the spinner spins fast")
_own_captions("ball_in_cup-catch", "dm_control", "ball", "catch the ball in the cup",
              "the ball hangs below the cup", "the ball swings beside the cup", "the ball is level with the cup",
              "the ball flies above the cup", "the ball is in the cup")
_own_captions("door", "adroit", "door handle", "open the door with the hand",
              "the hand is away from the door handle", "the hand is in front of the door handle",
              "the hand touches the door handle", "the hand pulls the door", "the door is wide open")

PAPER_TASKS = ("pick-place", "pick-out-of-hole", "bin-picking", "shelf-place", "disassemble")
"""The five tasks that the paper evaluates. No clip of them is in the data of the held-out video model."""

EASY_TASKS = ("reach", "push", "door-open", "drawer-open", "drawer-close", "button-press")
"""Tasks on which learning shows within a laptop's budget."""

METAWORLD_TASKS = tuple(name for name, task in TASKS.items() if task.suite == "metaworld")
CONTROL_TASKS = tuple(name for name, task in TASKS.items() if task.suite == "dm_control")

PRETRAIN_TASKS = tuple(name for name in METAWORLD_TASKS if name not in PAPER_TASKS)
"""What the held-out video model is trained on: the other 45 tasks of Meta-World."""

DOMAIN_TASKS = ("pick-place-wall", "push", "push-wall", "push-back", "reach", "basketball", "hand-insert", "assembly",
                "box-close", "peg-insert-side", "peg-unplug-side", "coffee-push", "coffee-pull", "sweep-into",
                "stick-push", "hammer")
"""Pick, carry and place: the domain to which LoRA finetuning adapts the model (the five evaluated tasks left out)."""


def get_task(name: str | Task) -> Task:
    """The task of that name (a `-v3` suffix is allowed); an unknown one is an `InputError` with the valid names."""
    if isinstance(name, Task):
        return name
    short = name.removesuffix("-v3") if isinstance(name, str) else name
    if short not in TASKS:
        raise errors.unknown("task", name, TASKS)
    return TASKS[short]
