"""Distractions: what changes in the pictures of an environment while its physics, observations and rewards do not.

The three of the Distracting Control Suite (Stone et al. 2021, arXiv 2101.02722), written afresh for current MuJoCo and
for any environment of this package: a video behind the scene, a camera that stands or drifts elsewhere, and colours
that are off. In the flow this stands beside the environments: `make_env(task, distraction=Distraction("camera",
"hard"))` trains an agent with them, and `distracted_frames` renders the same physical states under several, so that a
study can ask what a reward model makes of looks alone.

Nothing is written into the simulator's model. A distraction edits the list of things to draw, which MuJoCo makes anew
for every picture, so there is nothing to put back when it is removed. Its state is two numbers, the episode's key and
the step: the same seed, key and step give the same picture in every process.

Where this departs from the published suite:

- the video fills the picture behind the scene and does not move with the camera (there: the sky's cube texture).
  Floors give way to it, and so do the tables of Meta-World and Adroit, which fill the picture otherwise (a table with
  a hole stays where the hole is the task). It is put where the depth says that nothing was drawn: no second pass;
- without a folder of videos, moving patterns from a seeded generator stand in for DAVIS 2017;
- the camera turns about its own axes, so that a camera straight above (reacher) needs no case of its own, and never
  sinks below the floor;
- things of one material, or of one colour where they have no material, change colour together;
- at equal seeds the draws are the same at every difficulty, only scaled: harder is further off in the same direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, unknown

KINDS = ("background", "camera", "colour")
SCALE = {"easy": 0.1, "medium": 0.2, "hard": 0.3}
VIDEOS = {"easy": 4, "medium": 8, "hard": 60}  # how many different backgrounds an episode's is drawn from
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
PATTERN_SEED = 2101
NEAR_FLOOR = 0.02  # metres above the floor that a camera keeps


@dataclass(frozen=True)
class Distraction:
    """Which distractions, how strong, and whether they move within an episode.

    kinds       one or more of KINDS, a name or several; "all" for the three together
    difficulty  easy, medium or hard
    dynamic     False: drawn anew for each episode and held; True: moves at every step
    seed        which draws
    videos      a folder of videos (or a demonstrations' folder) for the background; None: moving patterns
    """

    kinds: tuple[str, ...] = ("background",)
    difficulty: str = "easy"
    dynamic: bool = False
    seed: int = 0
    videos: str | None = None

    def __post_init__(self) -> None:
        kinds = self.kinds
        if isinstance(kinds, str):
            kinds = KINDS if kinds == "all" else (kinds,)
        for kind in kinds:
            if kind not in KINDS:
                raise unknown("distraction", kind, (*KINDS, "all"))
        if not kinds:
            raise InputError(f"a distraction needs at least one kind; valid: {', '.join(KINDS)}, all")
        if self.difficulty not in SCALE:
            raise unknown("difficulty", self.difficulty, SCALE)
        if not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise InputError(f"a distraction's seed must be a whole number, not negative, got {self.seed!r}")
        object.__setattr__(self, "kinds", tuple(kind for kind in KINDS if kind in kinds))  # one order
        if self.videos is not None:
            object.__setattr__(self, "videos", str(self.videos))
            if "background" in self.kinds:
                video_files(self.videos, VIDEOS[self.difficulty])

    @property
    def name(self) -> str:
        """For tables and file names, e.g. `camera+colour-hard-dynamic`."""
        return f"{'+'.join(self.kinds)}-{self.difficulty}-{'dynamic' if self.dynamic else 'static'}"

    @property
    def scale(self) -> float:
        """How far camera and colours may go: 0.1, 0.2 or 0.3."""
        return SCALE[self.difficulty]

    def begin(self, model: Any, size: int, camera: str | int, focus: np.ndarray | None = None,
              backdrop: Sequence[str] = ()) -> Distractor:
        """What applies it to the pictures of one environment; see `Distractor`."""
        return Distractor(self, model, size, camera, focus, backdrop)


# --- walks: what moves, as a function of the step ---------------------------------------------------------------------


class _Walk(ABC):
    """Values that are drawn once an episode and then go on at random; random access, and each step drawn only once."""

    def __init__(self, rng: np.random.Generator, dynamic: bool) -> None:
        self._rng, self._dynamic = rng, dynamic
        self._steps = [self._start(rng)]

    def at(self, step: int) -> np.ndarray:
        if not self._dynamic:
            return self._steps[0]
        while len(self._steps) <= step:
            self._steps.append(self._next(self._rng))
        return self._steps[step]

    @abstractmethod
    def _start(self, rng: np.random.Generator) -> np.ndarray:
        """Where the episode begins."""

    @abstractmethod
    def _next(self, rng: np.random.Generator) -> np.ndarray:
        """One step on from the last."""


class _Colours(_Walk):
    """(colours, 3) in [0, 1]: each within `scale` of its own, in steps of standard deviation 0.03 scale."""

    def __init__(self, rng: np.random.Generator, dynamic: bool, own: np.ndarray, scale: float) -> None:
        self._low, self._high, self._std = np.clip(own - scale, 0, 1), np.clip(own + scale, 0, 1), 0.03 * scale
        super().__init__(rng, dynamic)

    def _start(self, rng: np.random.Generator) -> np.ndarray:
        return self._low + rng.random(self._low.shape) * (self._high - self._low)

    def _next(self, rng: np.random.Generator) -> np.ndarray:
        return np.clip(self._steps[-1] + self._std * rng.normal(size=self._low.shape), self._low, self._high)


class _Camera(_Walk):
    """(4,) vertical and horizontal angle, distance as a multiple of its own, roll (radians).

    Angles up to pi/2 scale either way, distance from 1 - 0.5 scale to 1 + 1.5 scale. The camera has a velocity that
    changes by 0.1 scale a step (standard deviation) up to 0.4 scale, lengths at a distance of 4 as in the suite, hence
    a quarter of it as angles; the roll's changes by pi/300 scale up to pi/50 scale.
    """

    def __init__(self, rng: np.random.Generator, dynamic: bool, scale: float) -> None:
        turn = np.pi / 2 * scale
        self._low = np.array([-turn, -turn, 1 - 0.5 * scale, -turn])
        self._high = np.array([turn, turn, 1 + 1.5 * scale, turn])
        self._std, self._most = 0.1 * scale / 4, 0.4 * scale / 4
        self._roll_std, self._roll_most = np.pi / 300 * scale, np.pi / 50 * scale
        super().__init__(rng, dynamic)

    def _start(self, rng: np.random.Generator) -> np.ndarray:
        place = self._low + rng.random(4) * (self._high - self._low)
        direction = rng.normal(size=3)
        self._velocity = np.append(direction / np.linalg.norm(direction) * rng.uniform(0, self._most),
                                   rng.uniform(-self._roll_most, self._roll_most))
        return place

    def _next(self, rng: np.random.Generator) -> np.ndarray:
        velocity = self._velocity + rng.normal(size=4) * [self._std, self._std, self._std, self._roll_std]
        velocity[:3] *= min(1.0, self._most / max(np.linalg.norm(velocity[:3]), 1e-12))
        velocity[3] = np.clip(velocity[3], -self._roll_most, self._roll_most)
        place = np.clip(self._steps[-1] + velocity, self._low, self._high)
        self._velocity = place - self._steps[-1]  # a camera that meets its limit has lost its speed
        return place


# --- backgrounds ------------------------------------------------------------------------------------------------------


def video_files(folder: str | Path, wanted: int) -> list[Path]:
    """The first `wanted` videos of a folder by name; InputError when it is no folder or holds fewer."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder of background videos: {folder}")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    if len(found) < wanted:
        raise InputError(f"{folder} has {len(found)} videos ({', '.join(VIDEO_SUFFIXES)}), this difficulty draws from "
                         f"{wanted}; add some or take an easier one")
    return found[:wanted]


@lru_cache(maxsize=64)
def _video(file: Path, size: int) -> np.ndarray:
    from .demos import read_video, resize  # the readers of videos come later in the flow, and only videos need them

    return resize(read_video(file), size)


@lru_cache(maxsize=64)
def _pattern(index: int, size: int) -> _Pattern:
    return _Pattern(index, size)


class _Pattern:
    """A moving background that is drawn, not filmed: broad waves in three colours with discs gliding before them."""

    def __init__(self, index: int, size: int) -> None:
        rng = np.random.default_rng([PATTERN_SEED, index])
        self._colours = rng.uniform(20, 235, (3, 3)).astype(np.float32)
        angle, cycles = rng.uniform(0, 2 * np.pi, (2, 3)), rng.uniform(0.5, 2.5, (2, 3))
        self._speed, self._phase = rng.uniform(-0.25, 0.25, (2, 3)), rng.uniform(0, 2 * np.pi, (2, 3))
        line = ((np.arange(size) + 0.5) / size).astype(np.float32)
        self._x, self._y = line[None, :], line[:, None]
        across, down = (2 * np.pi * cycles * side(angle) for side in (np.cos, np.sin))
        self._waves = across[..., None, None] * self._x + down[..., None, None] * self._y
        discs = int(rng.integers(3, 7))
        self._radius, self._disc_colours = rng.uniform(0.04, 0.16, discs), rng.uniform(0, 255, (discs, 3))
        self._at, self._by = rng.uniform(0, 2, (discs, 2)), rng.uniform(-0.02, 0.02, (discs, 2))

    def frame(self, time: int) -> np.ndarray:
        """(size, size, 3) float32 in 0..255 at that step."""
        waves = np.sin(self._waves + (self._phase + self._speed * time)[..., None, None]).sum(1)  # (2, size, size)
        mix = (1 / (1 + np.exp(-1.5 * waves))).astype(np.float32)[..., None]
        first, second, third = self._colours
        picture = first + mix[0] * (second - first)
        picture += mix[1] * (third - picture)
        places = 1 - np.abs(1 - np.mod(self._at + self._by * time, 2))  # to and fro between the edges
        for (x, y), radius, colour in zip(places, self._radius, self._disc_colours, strict=True):
            picture[(self._x - x) ** 2 + (self._y - y) ** 2 < radius**2] = colour
        return picture


class _Background:
    """One episode's background: which of the pool, from which frame on, and how it plays."""

    def __init__(self, rng: np.random.Generator, distraction: Distraction, size: int) -> None:
        self._dynamic, self._size = distraction.dynamic, size
        wanted = VIDEOS[distraction.difficulty]
        share, self._start, self._sign = rng.random(), rng.random(), (-1, 1)[int(rng.integers(2))]
        index = int(share * wanted)
        self._file = None if distraction.videos is None else video_files(distraction.videos, wanted)[index]
        self._index = index

    def at(self, step: int) -> np.ndarray:
        """(size, size, 3), 0..255. A video plays to its end, then backwards, and so on."""
        step = step if self._dynamic else 0
        if self._file is None:
            return _pattern(self._index, self._size).frame(int(1000 * self._start) + self._sign * step)
        clip = _video(self._file, self._size)
        span = max(len(clip) - 1, 1)
        place = abs((int(self._start * len(clip)) + self._sign * step + span) % (2 * span) - span)
        return clip[min(place, len(clip) - 1)]


# --- applied to an environment's pictures -----------------------------------------------------------------------------


class Distractor:
    """Applies a `Distraction` to the pictures of one MuJoCo model; made by `Distraction.begin`.

    model     the compiled model, only read
    size      side length of the pictures
    camera    the camera's name or number
    focus     (3,) world point that the camera looks at, or None: the centre of mass that it follows, or the model's
              centre for a camera that stands still. What counts is its distance along the optical axis.
    backdrop  names of bodies or materials that give way to a background beside the world's own planes (floors)

    The environment's renderer calls `change` on the scene before it is drawn and `compose` on the picture.
    """

    def __init__(self, distraction: Distraction, model: Any, size: int, camera: str | int,
                 focus: np.ndarray | None = None, backdrop: Sequence[str] = ()) -> None:
        import mujoco

        self.distraction = distraction
        self._size = size
        self._model = model
        self._camera = model.camera(camera).id
        self._focus = None if focus is None else np.asarray(focus, float)
        planes = (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (model.geom_bodyid == 0)
        bodies = [body for body in range(model.nbody) if model.body(body).name in backdrop]
        materials = [material for material in range(model.nmat) if model.mat(material).name in backdrop]
        self._hidden = planes | np.isin(model.geom_bodyid, bodies) | np.isin(model.geom_matid, materials)
        self._floor = float(model.geom_pos[planes, 2].min()) if planes.any() else -np.inf
        self._geom, self._nothing = int(mujoco.mjtObj.mjOBJ_GEOM), int(mujoco.mjtGeom.mjGEOM_NONE)
        # one slot a material, or a colour where there is no material
        slots: dict[Any, int] = {}
        own: list[np.ndarray] = []
        self._slot = np.zeros(model.ngeom, int)
        for geom in range(model.ngeom):
            material, colour = int(model.geom_matid[geom]), model.geom_rgba[geom]
            by_material = material >= 0 and np.allclose(colour, (0.5, 0.5, 0.5, 1))  # else MuJoCo takes the geom's
            key = material if by_material else tuple(colour[:3].round(3).tolist())
            if key not in slots:
                slots[key] = len(slots)
                own.append(np.array(model.mat_rgba[material][:3] if by_material else colour[:3], float))
            self._slot[geom] = slots[key]
        self._own = np.array(own)
        self._key = -1
        self.seek(0, 0)

    @property
    def needs_background(self) -> bool:
        """Whether `compose` has anything to do."""
        return "background" in self.distraction.kinds

    def seek(self, key: int, step: int) -> None:
        """Go to `step` of the episode known by `key`, any whole number that is not negative."""
        if key < 0 or step < 0:
            raise InputError(f"a distraction's episode and step must not be negative, got {key} and {step}")
        self._step = int(step)
        if key == self._key:
            return
        self._key = int(key)
        chosen = self.distraction
        rngs = {kind: np.random.default_rng([chosen.seed, self._key, number]) for number, kind in enumerate(KINDS)}
        self._background = _Background(rngs["background"], chosen, self._size)
        self._view = _Camera(rngs["camera"], chosen.dynamic, chosen.scale)
        self._colours = _Colours(rngs["colour"], chosen.dynamic, self._own, chosen.scale)

    def state(self) -> np.ndarray:
        """(2,) int64: episode and step, for `seek`."""
        return np.array([self._key, self._step])

    def change(self, scene: Any, data: Any) -> None:
        """Edit a scene that was just made from `data`: camera, colours, and things that give way to the background."""
        kinds = self.distraction.kinds
        if "camera" in kinds:
            self._move_camera(scene, data)
        if "colour" not in kinds and "background" not in kinds:
            return
        colours = self._colours.at(self._step) if "colour" in kinds else None
        for number in range(scene.ngeom):
            drawn = scene.geoms[number]
            if drawn.objtype != self._geom:
                continue  # sites and other decoration keep their colours: they are marks, not things
            if colours is not None:
                drawn.rgba[:3] = colours[self._slot[drawn.objid]]
            if self.needs_background and self._hidden[drawn.objid]:
                drawn.type = self._nothing

    def compose(self, picture: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8: the background where nothing was drawn.

        picture (H, W, 3) uint8, black where nothing was drawn; empty (H, W) float, the share of each pixel where.
        """
        behind = self._background.at(self._step)
        return np.clip(picture + empty[..., None] * behind + 0.5, 0, 255).astype(np.uint8)

    def _move_camera(self, scene: Any, data: Any) -> None:
        vertical, horizontal, distance, roll = self._view.at(self._step)
        eyes = [scene.camera[0], scene.camera[1]]
        place = (np.array(eyes[0].pos, float) + eyes[1].pos) / 2
        forward, up = np.array(eyes[0].forward, float), np.array(eyes[0].up, float)
        right = np.cross(forward, up)
        away = float((self._looks_at(data) - place) @ forward)
        away = away if away > 0 else float(self._model.stat.extent)
        focus, radius = place + away * forward, away * distance
        # a camera that turns down about the focus must stay above the floor
        if np.isfinite(self._floor):
            rise = np.arcsin(np.clip(-forward[2], -1, 1))
            least = np.arcsin(np.clip((self._floor + NEAR_FLOOR - focus[2]) / radius, -1, 1))
            vertical = max(vertical, min(least - rise, 0.0))
        forward, up = _turn(forward, right, -vertical), _turn(up, right, -vertical)
        forward, right = _turn(forward, up, horizontal), _turn(right, up, horizontal)
        up = _turn(up, forward, roll)
        for eye in eyes:
            eye.pos[:], eye.forward[:], eye.up[:] = focus - radius * forward, forward, up
        for number in range(scene.nlight):
            light = scene.lights[number]
            if light.headlight:
                light.pos[:], light.dir[:] = focus - radius * forward, forward

    def _looks_at(self, data: Any) -> np.ndarray:
        if self._focus is not None:
            return self._focus
        if self._model.cam_mode[self._camera] == 0:  # fixed to its body
            return np.asarray(self._model.stat.center)
        return np.asarray(data.subtree_com[self._model.cam_bodyid[self._camera]])


def _turn(vector: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """`vector` turned about the unit vector `axis` by `angle` radians (Rodrigues)."""
    return (vector * np.cos(angle) + np.cross(axis, vector) * np.sin(angle)
            + axis * (axis @ vector) * (1 - np.cos(angle)))


def distracted_frames(env: Any, snapshots: Sequence[dict[str, np.ndarray]], distraction: Distraction | None,
                      episode: int = 0, stride: int = 1) -> np.ndarray:
    """(N, H, W, 3) uint8: the same physical states, looked at under a distraction.

    env          an environment of the snapshots' task and episode (as for `demos.render_states`); it is put back into
                 the state, and gets back the distraction, that it had
    snapshots    N states as `env.get_state` gave them, e.g. the second thing that `demos.episode` returns
    distraction  what distracts, or None for the plain pictures
    episode      which episode's draws; a study passes the episode's number, so that no two look alike
    stride       environment steps between snapshots: how far a dynamic distraction moves from one to the next
    """
    if len(snapshots) < 1:
        raise InputError("no states to render: snapshots is empty")
    if stride < 1 or episode < 0:
        raise InputError(f"stride must be at least 1 and episode at least 0, got {stride} and {episode}")
    env = env.unwrapped
    before, state = env.distraction, env.get_state()
    pictures = []
    try:
        env.set_distraction(distraction)
        for number, snapshot in enumerate(snapshots):
            env.set_state(snapshot)
            if distraction is not None:
                env.distractor.seek(episode, number * stride)
            pictures.append(env.render())
    finally:
        env.set_distraction(before)
        env.set_state(state)
    return np.stack(pictures)
