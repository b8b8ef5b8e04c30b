"""Any detector: a command, a MONAI bundle, or a Python callable, asked about images in batches.

Bundles and callables named as text run in a process of their own, as commands do: one that hangs is ended at its time
limit, one that crashes is started again, and either costs the image that it was asked about. What comes back of an
image is a `Detection`, or a sentence that says why there is none.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lungsynth.errors import InputError, reason
from lungsynth.io.atomic import write_json
from lungsynth.io.running import end_workers, start_workers
from lungsynth.trial.detections import Detection, TrialImage, detection_of, find_output, read_detection, read_table

__all__ = ["Answer", "DetectorRunner", "DetectorSpec", "open_runner", "parse_detector"]

_START_SECONDS = 300.0  # to import PyTorch and read weights
_DEFAULT_POINT = 0.5  # probability from which on a candidate counts, where a detector states none
_BUNDLE_MARK, _PYTHON_MARK = "bundle:", "python:"
_MONAI_RUN = (
    "{python} -m monai.bundle run --bundle_root '{bundle}' "
    "--config_file \"['{bundle}/configs/inference.json','{settings}']\""
)
_LAST_WORDS = 160  # characters of what a failed command said

Answer = Detection | str


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """A detector of a trial.

    Args:
        name: in the report.
        kind: how it is asked.
        target: the command; `FOLDER|CONFIGS|WEIGHTS` of a bundle; `MODULE:NAME` or `FILE.py:NAME` of a callable.
        operating_point: probability from which on a candidate counts; None for its own, else 0.5.
        mask_label: id of nodules where it writes label maps.
        time_limit_s: for each image.
        function: a callable itself, which is asked in this process, without a limit.
    """

    name: str
    kind: Literal["command", "bundle", "python", "function"]
    target: str
    operating_point: float | None = None
    mask_label: int | None = None
    time_limit_s: float = 120.0
    function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.operating_point is not None and not 0 <= self.operating_point <= 1:
            raise InputError(f"`operating_point` lies in [0, 1], got {self.operating_point:g} for {self.name}.")
        if not self.time_limit_s > 0:
            raise InputError(f"`time_limit_s` must be positive, got {self.time_limit_s:g} for {self.name}.")

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as far as that is known: of a command or callable, how it is called."""
        known: dict[str, Any] = {"kind": self.kind, "target": self.target, "mask_label": self.mask_label}
        if self.kind == "bundle":
            folder, configs, weights = self.target.split("|")
            file = Path(folder) / "models" / weights  # an absolute path of weights stays as it is
            known |= {"target": configs, "weights": hashlib.sha256(file.read_bytes()).hexdigest()}
        return known


@runtime_checkable
class DetectorRunner(Protocol):
    """Asks a detector."""

    operating_point: float

    def __call__(self, images: Sequence[TrialImage]) -> list[Answer]:
        """An answer an image."""
        ...

    def close(self) -> None:
        """Ends its process."""
        ...


def parse_detector(text: str, *, bundles: Path, weights: Path | None = None, **settings: Any) -> DetectorSpec:
    """The detector that a text means.

    Args:
        text: `NAME=` before it is what the report calls it. A command has `{image}` and `{output}`, or `{images}` and
            `{output}`, in it; `python:MODULE:NAME` or `python:FILE.py:NAME` is a callable; `bundle:FOLDER` a MONAI
            bundle; else it names lung_seg_bundle (`lung_seg`) or a method of its configs, such as `unet`.
        bundles: folder of the bundles.
        weights: folder with `NAME.pt` and `NAME.json` of methods but lung_seg_bundle itself.
        settings: further fields of `DetectorSpec`.

    Raises:
        InputError: when it is none of these, or files are missing.
    """
    head, mark, rest = text.partition("=")
    named = bool(mark) and head.replace("_", "").replace("-", "").isalnum()
    target = rest if named else text
    if "{output}" in target and ("{image}" in target or "{images}" in target):
        return DetectorSpec(name=head if named else "command", kind="command", target=target, **settings)
    if target.startswith(_PYTHON_MARK):
        place = target.removeprefix(_PYTHON_MARK)
        return DetectorSpec(name=head if named else place.rpartition(":")[2], kind="python", target=place, **settings)
    if target.startswith(_BUNDLE_MARK):
        folder = Path(target.removeprefix(_BUNDLE_MARK)).absolute()
        return _bundle_spec(head if named else folder.name, folder, settings)
    return _own_spec(head if named else target, target, bundles, weights, settings)


def _bundle_spec(name: str, folder: Path, settings: dict[str, Any]) -> DetectorSpec:
    config = folder / "configs" / "inference.json"
    if not config.is_file():
        raise InputError(f"{folder}: expected a MONAI bundle with configs/inference.json, found none.")
    entries = json.loads(config.read_text(encoding="utf-8"))
    if {"detector", "operating_point"} <= set(entries) and folder.name.endswith("_bundle"):
        return DetectorSpec(name=name, kind="bundle", target=f"{folder}|inference.json|model.pt", **settings)
    return DetectorSpec(name=name, kind="command", target=_MONAI_RUN.replace("{bundle}", str(folder)), **settings)


def _own_spec(name: str, method: str, bundles: Path, weights: Path | None, settings: dict[str, Any]) -> DetectorSpec:
    root = Path(bundles).absolute() / "lung_seg_bundle"
    if method in ("lung_seg", "dense_unet"):
        return DetectorSpec(name=name, kind="bundle", target=f"{root}|inference.json|model.pt", **settings)
    overlay = root / "configs" / f"inference_{method}.json"
    if not overlay.is_file():
        known = sorted(path.stem.removeprefix("inference_") for path in overlay.parent.glob("inference_*.json"))
        raise InputError(
            f"`detector`: {method!r} is unknown; give a command with {{image}} and {{output}}, python:MODULE:NAME, "
            f"bundle:FOLDER, lung_seg, or one of {', '.join(known)}."
        )
    file = (weights or root.parent.parent / "benchmarks" / "weights") / f"{method}.pt"
    if not file.is_file():
        raise InputError(f"{file}: the weights of {method} are missing. Name their folder with `weights`.")
    return DetectorSpec(name=name, kind="bundle", target=f"{root}|inference.json,{overlay.name}|{file}", **settings)


def open_runner(spec: DetectorSpec, work: Path) -> DetectorRunner:
    """What asks a detector.

    Args:
        spec: the detector.
        work: folder for files in between; they are removed again.
    """
    if spec.kind == "function":
        return _FunctionRunner(spec)
    if spec.kind == "command":
        return _CommandRunner(spec, work)
    return _ProcessRunner(spec)


class _StoppedError(Exception):
    """The trial was stopped while a detector was at work: there is no answer to keep."""


class _FunctionRunner:
    def __init__(self, spec: DetectorSpec) -> None:
        if spec.function is None:
            raise InputError(f"{spec.name}: a detector of the kind `function` needs a `function`.")
        self._function = spec.function
        self.operating_point = _point(spec, spec.function)

    def __call__(self, images: Sequence[TrialImage]) -> list[Answer]:
        return [_asked(self._function, image) for image in images]

    def close(self) -> None:
        pass


class _ProcessRunner:
    """A bundle or callable in a process of its own, which is started again when it ends."""

    def __init__(self, spec: DetectorSpec) -> None:
        self._spec = spec
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False
        point = self._start()
        self.operating_point = point if spec.operating_point is None else spec.operating_point

    def __call__(self, images: Sequence[TrialImage]) -> list[Answer]:
        return [self._ask(image) for image in images]

    def close(self) -> None:
        self._closed = True
        self._end()

    def _start(self) -> float:
        self._pool = start_workers(1)
        try:
            opened = self._pool.submit(_open, self._spec).result(_START_SECONDS)
        except (TimeoutError, BrokenProcessPool) as error:
            opened = reason(error)
        if isinstance(opened, str):
            self._end()
            raise InputError(f"`detector` {self._spec.name} could not be opened: {opened}.")
        return opened

    def _ask(self, image: TrialImage) -> Answer:
        answer: Answer
        try:
            if self._pool is None and not self._closed:
                self._start()
            if (pool := self._pool) is None:
                raise _StoppedError
            answer = pool.submit(_ask_opened, image).result(self._spec.time_limit_s)
        except TimeoutError:
            answer = f"it took longer than {self._spec.time_limit_s:g} s"
            self._end()
        except (BrokenProcessPool, CancelledError):
            answer = "its process ended"
            self._end()
        if self._closed:
            raise _StoppedError
        return answer

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            end_workers(pool)


_opened: list[Callable[..., Any]] = []  # in the process of a detector: the detector


def _open(spec: DetectorSpec) -> float | str:
    """Opens a detector in this process; its operating point, or why it cannot be opened."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a process a core; and sums do not depend on the number of threads
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        _opened[:] = [_load(spec)]
    except (Exception, SystemExit) as error:  # it imports and reads what others wrote
        return reason(error)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return _point(spec, _opened[0])


def _ask_opened(image: TrialImage) -> Answer:
    return _asked(_opened[0], image)


def _load(spec: DetectorSpec) -> Callable[..., Any]:
    if spec.kind == "bundle":
        from lungsynth.bundles import open_bundle

        folder, configs, weights = spec.target.split("|")
        root = Path(folder)
        loaded: Callable[..., Any] = open_bundle(
            root.parent,
            root.name.removesuffix("_bundle"),
            component="detector",
            configs=configs.split(","),
            weights=Path(weights) if os.sep in weights else weights,
        )
        return loaded
    place, _, name = spec.target.rpartition(":")
    if place.endswith(".py"):
        found = importlib.util.spec_from_file_location("trial_detector", place)
        if found is None or found.loader is None or not Path(place).is_file():
            raise InputError(f"{place}: no such Python file")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        module = importlib.import_module(place)
    function = getattr(module, name)
    return function() if isinstance(function, type) else function


def _point(spec: DetectorSpec, function: Callable[..., Any]) -> float:
    if spec.operating_point is not None:
        return spec.operating_point
    return float(getattr(function, "operating_point", _DEFAULT_POINT))


def _asked(function: Callable[..., Any], image: TrialImage) -> Answer:
    try:
        return detection_of(function(image.hu, image.spacing_mm), image)
    except InputError as error:
        return str(error)
    except Exception as error:  # a detector raises what it likes
        return f"it raised {type(error).__name__}: {reason(error)}"


class _CommandRunner:
    """A command line, run for each image, or for each batch where it takes a folder of them.

    A batch that fails is asked again image by image, so that one that crashes the detector costs itself alone.
    """

    def __init__(self, spec: DetectorSpec, work: Path) -> None:
        self._spec, self._work = spec, work
        self.operating_point = _DEFAULT_POINT if spec.operating_point is None else spec.operating_point
        try:
            self._template = shlex.split(spec.target)
        except ValueError as error:
            raise InputError(f"`detector`: {spec.target!r} is no command line ({error}).") from error
        program = self._template[0].replace("{python}", sys.executable)
        if shutil.which(program) is None:
            raise InputError(f"`detector`: there is no program {program!r} on this machine.")
        self._takes_folder = "{images}" in spec.target or "{settings}" in spec.target
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def __call__(self, images: Sequence[TrialImage]) -> list[Answer]:
        if not self._takes_folder:
            return [self._answers([image])[0] for image in images]
        answers = self._answers(images)
        if len(images) > 1:
            again = [index for index, answer in enumerate(answers) if isinstance(answer, str)]
            for index in again:
                answers[index] = self._answers([images[index]])[0]
        return answers

    def close(self) -> None:
        self._closed = True
        if self._process is not None:
            _end(self._process)

    def _answers(self, images: Sequence[TrialImage]) -> list[Answer]:
        from lungsynth.ct.write import write_nifti  # processes of detectors, which import this module, need it not

        with _scratch(self._work) as folder:
            for image in images:
                write_nifti(folder / "images" / f"{image.name}.nii.gz", image.hu, image.affine)
            output = folder / "output"
            if self._takes_folder:
                output.mkdir()
            problem = self._run(folder, images, output)
            return [self._read(output, image, images, problem) for image in images]

    def _run(self, folder: Path, images: Sequence[TrialImage], output: Path) -> str | None:
        """Runs the command; what went wrong, or None."""
        paths = [folder / "images" / f"{image.name}.nii.gz" for image in images]
        settings = folder / "settings.json"
        listed = [str(path) for path in paths]
        write_json(settings, {"dataset_dir": str(folder / "images"), "datalist": listed, "output_dir": str(output)})
        values = {"image": paths[0], "images": folder / "images", "output": output, "settings": settings}
        command = list(self._template)
        for key, value in {**values, "python": sys.executable}.items():
            command = [part.replace(f"{{{key}}}", str(value)) for part in command]
        limit_s = self._spec.time_limit_s * len(images)
        with (folder / "messages").open("wb") as messages:
            status = self._run_limited(command, limit_s, messages)
        if self._closed:
            raise _StoppedError
        if status is None:
            return f"it took longer than {limit_s:g} s"
        if status == 0:
            return None
        said = (folder / "messages").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = said[-1].replace(str(folder), ".")[:_LAST_WORDS] if said else ""
        return f"it ended {_how(status)}" + (f": {last}" if last else "")

    def _run_limited(self, command: Sequence[str], limit_s: float, messages: Any) -> int | None:
        """Runs a command and ends it, with all that it started, after its time; its status, or None if it was ended."""
        quiet = subprocess.DEVNULL
        try:
            process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=messages, start_new_session=True)
        except OSError as error:
            messages.write(reason(error).encode())
            return 127
        self._process = process
        try:
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)

    def _read(self, output: Path, image: TrialImage, images: Sequence[TrialImage], problem: str | None) -> Answer:
        if problem:  # what it wrote before may be cut off
            return problem
        try:
            found = self._find(output, image, images)
            if isinstance(found, Path):
                return read_detection(found, image, mask_label=self._spec.mask_label)
            return found or "it wrote nothing"
        except InputError as error:
            return str(error)

    def _find(self, output: Path, image: TrialImage, images: Sequence[TrialImage]) -> Path | Detection | None:
        """The file of an image: the output itself; in a folder that of its name, else one table of all."""
        if not self._takes_folder or (found := find_output(output / image.name)) is not None:
            return found if self._takes_folder else find_output(output)
        own = [path for path in sorted(output.rglob(f"{image.name}*")) if path.is_file()]
        if len(own) == 1:
            return own[0]
        tables = sorted(output.glob("*.csv"))
        if len(tables) == 1 and tables[0].stat().st_size:
            return read_table(tables[0].read_text(encoding="utf-8-sig"), images)[image.name]
        listed = sorted(output.glob("*.json"))
        return listed[0] if len(listed) == 1 else None


@contextlib.contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    work.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        (folder / "images").mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _how(status: int | None) -> str:
    if status is None:
        return "without a status"
    return f"by signal {-status}" if status < 0 else f"with status {status}"
