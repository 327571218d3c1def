"""`clipag run`: somebody else's program as `__main__`, and one sentence for what it lacks."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import re
import runpy
import sys
import tempfile
import traceback
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from ..options.run import Run
from . import catalog, cog, notebooks, start
from .patching import HERE, Patch

log = logging.getLogger("clipag_plug.adapters")
NO_CUDA = re.compile("no NVIDIA driver|not compiled with CUDA|No CUDA GPUs|CUDA must be available")
FITS = {
    512: "clipag",
    768: "fare4-l14",
    1024: "leaf-h14",
}  # a robust model for each width of features
SHAPES = re.compile(
    r"shapes cannot be multiplied \(\w+x(\d+) and (\d+)x|tensor a \((\d+)\) must match .* b \((\d+)\)"
)


def run(options: Run) -> int:
    """Runs a program on this package's models, and returns its exit code; what it leaves behind is its own.

    Raises ValueError, OSError or ImportError, one sentence each, for what the program cannot be run with or lacks.
    """
    program, main = _program(options)
    adapter = (
        catalog.detect(program) if options.adapter == "auto" else catalog.read(options.adapter)
    )
    _check_model(options)
    _own_log(logging.WARNING if options.quiet else logging.INFO)
    tested = f", tested on commit {', '.join(adapter.tested)}" if adapter.tested else ""
    log.info("adapter %s (%s%s)", adapter.name, adapter.title, tested)
    report = Path(tempfile.mkdtemp(prefix="clipag-run-"), "answered")
    patch = start(options.model or None, options.device or None)
    patch.follow(report=str(report))
    # `python` and `python3` in the program's own commands are this one.
    os.environ["PATH"] = os.pathsep.join(
        [os.path.dirname(sys.executable), os.environ.get("PATH", "")]
    )
    notebooks.PICTURES.stem = program.stem
    out, errors = sys.stdout, sys.stderr
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:
        sys.stderr = sys.stderr if not sys.stderr.closed else errors
        sentence = _lacking(error, adapter)
        if sentence:
            raise ImportError(sentence) from error
        code = _as_python(error)
        _hint(error, options, patch)
    if sys.stdout.closed:
        sys.stdout = out if not out.closed else io.StringIO()  # as Python, which does not mind
    if code == 0 and not report.exists():
        log.warning(
            "nothing was answered: the program asked no clip, open_clip or CLIPModel for a model"
        )
    return code


def _program(options: Run) -> tuple[Path, Callable[[], int]]:
    """The program's file, and the call that runs it as `__main__`."""
    if options.module:
        sys.path.insert(0, os.getcwd())
        spec = importlib.util.find_spec(options.module)
        if spec is None or not spec.origin:
            raise ModuleNotFoundError(
                f"there is no module {options.module!r} to run with -m; a model is --model"
            )
        arguments = [*filter(None, [options.script]), *options.arguments]

        def module() -> int:
            sys.argv = [str(spec.origin), *arguments]
            runpy.run_module(options.module, run_name="__main__", alter_sys=True)
            return 0

        return Path(spec.origin), module
    script = Path(options.script)
    if not script.is_file():
        raise FileNotFoundError(
            f"there is no script {options.script!r}; give the path of a .py or .ipynb file"
        )

    def main() -> int:
        made = ModuleType("__main__")
        vars(made).update(__file__=str(script), __builtins__=__builtins__, __cached__=None)
        sys.modules["__main__"], sys.argv = made, [str(script), *options.arguments]
        sys.path[0] = str(script.resolve().parent)
        if notebooks.is_notebook(script):
            return notebooks.run(script, vars(made), options.chosen_cells())
        source = script.read_bytes()
        predictor = cog.is_predictor(importlib.util.decode_source(source))
        if predictor:
            cog.parse(options.arguments)  # before minutes of loading
            sys.argv[1:] = []
        exec(compile(source, str(script), "exec", dont_inherit=True), vars(made))
        if predictor:
            cog.predict(vars(made), options.arguments)
        return 0

    return script, main


def _check_model(options: Run) -> None:
    """Opens `--model` before the program starts: minutes later would be late."""
    if options.model:
        from ..weights import open_checkpoint

        open_checkpoint(options.model)


def _own_log(level: int) -> None:
    """Our lines go to stderr without the root handler: a program's own logging.basicConfig must find the root bare."""
    root, logger = logging.getLogger(), logging.getLogger("clipag_plug")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("clipag: %(message)s"))
    root.handlers[:] = [h for h in root.handlers if type(h) is not logging.StreamHandler]
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _lacking(error: BaseException, adapter: catalog.Adapter) -> str | None:
    """One sentence for what a program lacks and did not look after itself; None for an error of its own."""
    from ..weights.registry import FetchError

    if isinstance(error, (cog.RequestError, notebooks.NotebookError)):
        return str(error)
    if isinstance(error, FetchError):
        return f"{error}; offline, `--model clipag-mini` needs no download"
    if isinstance(error, ModuleNotFoundError):
        return _install(error, adapter)
    if isinstance(error, FileNotFoundError) and error.filename:
        weights = catalog.known_weights(os.path.abspath(os.fspath(error.filename)), adapter)
        return weights and weights.missing(os.path.abspath(os.fspath(error.filename)))
    for address, place in _downloads(error):
        weights = catalog.known_weights(place or address, adapter)
        if weights:
            return weights.missing(os.path.abspath(place) if place else weights.place, address)
        where = f" and put it at {os.path.abspath(place)!r}" if place else ""
        return f"the program downloads {address}, which cannot be reached; get it elsewhere{where}"
    return None


def _downloads(error: BaseException | None) -> Iterator[tuple[str, str]]:
    """Address and place of downloads that failed, of `urllib`, `torch.hub` and `requests`."""
    seen, found = False, {"url": "", "place": ""}
    while error is not None:
        seen |= isinstance(error, (urllib.error.URLError, ConnectionError, TimeoutError))
        request = getattr(getattr(error, "request", None), "url", None)
        if isinstance(error, OSError) and request:
            yield str(request), ""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name in ("urlretrieve", "urlopen", "download_url_to_file"):
                url, names = frame.f_locals.get("url"), frame.f_locals
                found["url"] = found["url"] or str(getattr(url, "full_url", url))
                found["place"] = found["place"] or str(
                    names.get("filename") or names.get("dst") or ""
                )
        error = error.__cause__ or error.__context__
    if seen and found["url"]:
        yield found["url"], found["place"]


def _install(error: ModuleNotFoundError, adapter: catalog.Adapter) -> str | None:
    """What to install, if the module is known and no part of something that is there."""
    top = (error.name or "").partition(".")[0]
    how = {**catalog.read(catalog.GENERIC).packages, **adapter.packages}.get(top)
    if top in sys.modules or not how:
        return None
    how = how if " " in how else f"pip install {how}"
    return f"the program needs the module {top!r}, which is not installed; {how}"


def _as_python(error: BaseException) -> int:
    """Prints a traceback as `python` does: without the frames that lead to the program."""
    trace = error.__traceback__
    while trace is not None and (
        os.path.dirname(trace.tb_frame.f_code.co_filename) == str(HERE)
        or "runpy" in trace.tb_frame.f_code.co_filename
    ):
        trace = trace.tb_next
    own = (
        sys.excepthook is not sys.__excepthook__
    )  # else the cells of a notebook would not be quoted
    show = sys.excepthook if own else traceback.print_exception
    show(type(error), error, trace)
    return 1


def _hint(error: BaseException, options: Run, patch: Patch) -> None:
    """What an error that is the program's own may have to do with the choice of device or model."""
    if not options.device and NO_CUDA.search(str(error)):
        print(
            "clipag: the program asks for CUDA; `--device cpu` keeps it on the CPU", file=sys.stderr
        )
    found = SHAPES.search(str(error))
    numbers = {int(number) for number in found.groups() if number} if found else set()
    wanted = numbers - patch.widths
    if len(numbers) == 2 and len(wanted) == 1:
        ours, theirs = (numbers - wanted).pop(), wanted.pop()
        fits = (
            f"`--model {FITS[theirs]}` has {theirs}"
            if theirs in FITS
            else "no model here has as many"
        )
        text = f"the program has a part for features of {theirs} numbers, and the model's have {ours}; {fits}"
        print(f"clipag: {text}", file=sys.stderr)
