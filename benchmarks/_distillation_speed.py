"""What a teacher costs a training: the same student trained without one, with stored answers and with a live one, in turn.

``python benchmarks/_distillation_speed.py time|memory FOLDER SPEC`` is one measurement in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _claims import THREADS, Claim, claim

from mmcompress.compare import mean_of
from mmcompress.metrics import Row

STUDENT = {"vision": (4, 192), "text": (3, 128)}
"""Layers and width of both towers."""
TEACHERS = {"4": {"vision": (6, 320), "text": (4, 256)}, "10": {"vision": (8, 384), "text": (6, 384)}}
"""By about how many times as many parameters they have; random weights, for they are timed alone."""
PIXELS, PATCH, PROJECTION = 48, 8, 256


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    steps: int = 30
    rounds: int = 10
    batch: int = 128
    examples: int = 4096
    memory_runs: int = 2


QUICK = Size(steps=3, rounds=2, batch=32, examples=256, memory_runs=1)


def speed(quick: bool, data: Path, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Examples per second by who is asked, paired by round; bytes of what is stored; peaks of anonymous memory."""
    size = QUICK if quick else Size()
    folder = work / ("speed-quick" if quick else "speed")
    made = _measured("time", folder, {"size": asdict(size)})
    plain = made["seconds"]["plain"]
    claims: list[Claim] = []
    for name in TEACHERS:
        cached, live, forward = (made["seconds"][f"{kind} {name}"] for kind in ("cached", "online", "forward"))
        times = made["parameters"][name] / made["parameters"]["student"]
        of = f"teacher of {times:.1f} times the student"
        share = [p / c for p, c in zip(plain, cached, strict=True)]
        claims.append(_claim(f"{of}: examples/s cached over plain", share, 0.95))
        gain = [o / c for o, c in zip(live, cached, strict=True)]
        ideal = [(f + p) / p for f, p in zip(forward, plain, strict=True)]
        claims.append(_claim(f"{of}: examples/s cached over live", gain))
        reached = [g / i for g, i in zip(gain, ideal, strict=True)]
        claims.append(_claim(f"{of}: that gain, of (teacher's forward + plain step) / plain step", reached, 0.9))
        claims.append(_exact(f"{of}: bytes per stored value", made["bytes_per_value"][name], "bytes", 2.4))
    peaks: dict[str, list[float]] = {}
    for _ in range(size.memory_runs):
        for kind in ("plain", *(f"cached {name}" for name in TEACHERS)):
            found = _measured("memory", folder, {"size": asdict(size), "kind": kind})
            peaks.setdefault(kind, []).append(found["peak_bytes"])
    for name in TEACHERS:
        ratio = max(peaks[f"cached {name}"]) / max(peaks["plain"])
        claims.append(_exact(f"teacher {name}: peak anonymous memory, cached over plain", ratio, "ratio", 1.1))
    return claims, {"speed": made, "peak_anonymous_bytes": peaks}


def _claim(name: str, values: Sequence[float], goal: float | None = None) -> Claim:
    """The mean over rounds, with Student's t interval: a round is what varies."""
    row = Row("", name, "student", "distill", "torch", "ratio", {}, None, "ratio", True)
    return claim(name, mean_of(row, list(values), [str(i) for i in range(len(values))]), goal)


def _exact(name: str, value: float, unit: str, goal: float) -> Claim:
    return Claim(name, value, unit, None, goal, False, value <= goal)


def _measured(what: str, folder: Path, spec: Mapping[str, Any]) -> Any:
    command = [sys.executable, __file__, what, str(folder), json.dumps(spec)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(THREADS))}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


# --- in a process of its own ---------------------------------------------------------------------------------------


def _model(folder: Path, towers: Mapping[str, tuple[int, int]]) -> Any:
    """A model folder of random weights, written once."""
    from mmcompress.data.scenes import vocabulary
    from mmcompress.families._texts import write_word_level_tokenizer
    from mmcompress.families.clip import Clip
    from mmcompress.stages import Model

    words = vocabulary()
    source = folder.with_name(folder.name + "-source")
    source.mkdir(parents=True, exist_ok=True)

    def tower(name: str) -> dict[str, Any]:
        layers, width = towers[name]
        heads = width // 64
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }

    tokens = {"vocab_size": len(words) + 3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = {
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "vision_config": {**tower("vision"), "image_size": PIXELS, "patch_size": PATCH},
        "text_config": {**tower("text"), "max_position_embeddings": 40, **tokens},
    }
    (source / "config.json").write_text(json.dumps(config))
    side = {"height": PIXELS, "width": PIXELS}
    settings = {"image_processor_type": "CLIPImageProcessor", "size": side, "do_center_crop": False, "resample": 3}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (source / "preprocessor_config.json").write_text(json.dumps(settings))
    write_word_level_tokenizer(words, 40, source)
    family = Clip(config=source / "config.json")
    if not (folder / "model.safetensors").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        family.write(folder, 0)
    return Model(family, folder)


class Bench:
    """The data, the student and the teachers, and a training of each kind."""

    def __init__(self, folder: Path, size: Size) -> None:
        from mmcompress.data.scenes import Scenes

        self.folder, self.size = folder, size
        self.student = _model(folder / "student", STUDENT)
        self.teachers = {name: _model(folder / f"teacher-{name}", towers) for name, towers in TEACHERS.items()}
        self.scenes = Scenes(split="train", size=size.examples, image_size=PIXELS, captions=2)
        self.examples = self.scenes.read()
        self.runs = 0

    def given(self, teacher: Any) -> Any:
        """A stage's input, with folders of its own."""
        from mmcompress.stages import StageInput

        self.runs += 1
        own = self.folder / "runs" / f"{os.getpid()}-{self.runs}"
        (own / "output").mkdir(parents=True)
        (own / "work").mkdir()
        return StageInput(
            model=self.student,
            teacher=teacher,
            train=self.examples,
            validation=None,
            seed=0,
            output=own / "output",
            work=own / "work",
            cache=self.folder / "cache",
            teacher_key="" if teacher is None else teacher.folder.name,
            train_identity=self.scenes.identity(),
        )

    def train(self, kind: str, steps: int) -> float:
        """Train as a recipe does; gives seconds from the model folder to the trained one."""
        from mmcompress.stages.distill import Distill
        from mmcompress.stages.finetune import Finetune

        asking, _, name = kind.partition(" ")
        fields: dict[str, Any] = {"steps": steps, "batch_size": self.size.batch}
        began = time.perf_counter()
        if asking == "plain":
            Finetune(**fields).run(self.given(None))
        else:
            Distill(teacher_outputs=asking, **fields).run(self.given(self.teachers[name]))
        return time.perf_counter() - began

    def forward(self, name: str, steps: int) -> float:
        """Seconds of a teacher's forward over as many batches."""
        import torch

        from mmcompress.stages._trainer_modules import autocast
        from mmcompress.stages.finetune import Finetune

        teacher = self.teachers[name]
        model = teacher.family.load(teacher.folder).eval()
        bf16 = Finetune(steps=1).resolved_precision() == "bf16"
        examples = [self.examples[i].values for i in range(self.size.batch)]
        columns = {"image": [v["image"] for v in examples], "text": [v["texts"][0] for v in examples]}
        feeds = {n: torch.from_numpy(a) for n, a in teacher.family.processor(teacher.folder).encode(columns).items()}
        want = frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale"})
        began = time.perf_counter()
        for _ in range(steps):
            with torch.no_grad(), autocast(torch.device("cpu"), bf16):
                teacher.family.outputs(model, feeds, want)
        return time.perf_counter() - began


def _time(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    size = Size(**spec["size"])
    bench = Bench(folder, size)
    # those that are compared closest stand side by side, and every second round goes backwards
    kinds = ["plain", *(f"{kind} {name}" for kind in ("cached", "online", "forward") for name in TEACHERS)]
    for kind in kinds:  # once for what is written once, and for caches of libraries
        _once(bench, kind, 2)
    stored = _stored(folder / "cache")
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(size.rounds):
        for kind in reversed(kinds) if number % 2 else kinds:
            seconds[kind].append(_once(bench, kind, size.steps))
    parameters = {"student": _parameters(bench.student), **{n: _parameters(t) for n, t in bench.teachers.items()}}
    return {"size": asdict(size), "seconds": seconds, "bytes_per_value": stored, "parameters": parameters}


def _once(bench: Bench, kind: str, steps: int) -> float:
    if kind.startswith("forward "):
        return bench.forward(kind.partition(" ")[2], steps)
    return bench.train(kind, steps)


def _stored(cache: Path) -> dict[str, float]:
    """Bytes of everything that is kept for the answers, over the numbers that it holds; all teachers keep as many."""
    numbers = 0
    for note in cache.glob("teacher_outputs/*/*.json"):
        if note.name != "about.json":
            shape = json.loads(note.read_text())["arrays"]["values"][2]
            numbers += shape[0] * shape[1]
    files = [p for p in cache.glob("teacher_outputs/*/*") if p.is_file()]
    digests = list(cache.glob("examples/*/*.digests.npy"))
    used = sum(path.stat().st_size for path in files) + len(TEACHERS) * sum(p.stat().st_size for p in digests)
    return {name: used / numbers for name in TEACHERS}


def _parameters(model: Any) -> int:
    from safetensors import safe_open

    with safe_open(model.folder / "model.safetensors", framework="np") as file:
        return sum(int(_product(file.get_slice(name).get_shape())) for name in file.keys())


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _memory(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The peak of this process's anonymous memory while it trains, looked at every 5 ms."""
    size = Size(**spec["size"])
    bench = Bench(folder, size)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.partition("RssAnon:")[2].split()[0]) * 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    bench.train(spec["kind"], size.steps)
    done.set()
    thread.join()
    return {"peak_bytes": peak[0]}


if __name__ == "__main__":
    measure = {"time": _time, "memory": _memory}[sys.argv[1]]
    sys.stdout.write(json.dumps(measure(Path(sys.argv[2]), json.loads(sys.argv[3]))) + "\n")
