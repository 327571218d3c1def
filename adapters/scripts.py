"""`clipag run`: somebody else's program as `__main__`, and one sentence for what it lacks."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import logging
import os
import re
import runpy
import sys
import tempfile
import threading
import traceback
import urllib.error
from pathlib import Path
from types import ModuleType

from ..options.tools import Run
from . import catalog, cog, notebooks, start
from .patching import HERE

log = logging.getLogger("clipag_plug.adapters")
NO_CUDA = re.compile("no NVIDIA driver|not compiled with CUDA|No CUDA GPUs|CUDA must be available")
SHAPES = re.compile(
    r"cannot be multiplied \(\w+x(\d+) and (\d+)x|tensor a \((\d+)\) must match .* b \((\d+)\)"
)
BUNDLED = re.compile(r"'(?:Mini|Lite)Visual' object has no attribute '(\w+)'")
FITS = {512: "clipag", 768: "fare4-l14", 1024: "leaf-h14"}  # a robust model for a width of features


def run(options: Run) -> int:
    """Runs a program on this package's models, and returns its exit code; what it leaves behind is its own.

    Raises ValueError, OSError, ImportError or RuntimeError, one sentence each, for what the program cannot be run with
    or lacks.
    """
    program = _program(options)
    automatic = options.adapter == "auto"
    adapter = catalog.detect(program) if automatic else catalog.read(options.adapter)
    if options.model:  # minutes later would be late
        from ..weights import open_checkpoint

        open_checkpoint(options.model)
    _own_log(logging.WARNING if options.quiet else logging.INFO)
    tested = f", tested on commit {', '.join(adapter.tested)}" if adapter.tested else ""
    log.info("adapter %s (%s%s)", adapter.name, adapter.title, tested)
    report = Path(tempfile.mkdtemp(prefix="clipag-run-"), "answered")
    patch = start(options.model or None, options.device or None)
    patch.follow(report=str(report))
    # `python` and `python3` in the program's own commands are this one.
    os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    notebooks.pictures["stem"] = program.stem
    out, errors = sys.stdout, sys.stderr
    try:
        code = _execute(options, program)
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
        code = 1
        _as_python(error)
        if not options.device and NO_CUDA.search(str(error)):
            log.warning("the program asks for CUDA; `--device cpu` keeps it on the CPU")
        _explain_width(str(error), patch.widths)
        if found := BUNDLED.search(str(error)):
            text = "the bundled models are small convolutional networks without %r; a ViT has it: `--model clipag`"
            log.warning(text, found[1])
    if sys.stdout.closed:
        sys.stdout = out if not out.closed else io.StringIO()  # as Python, which does not mind
    for thread in threading.enumerate():  # Python waits for them, too, and they may ask for a model
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    if code == 0 and not report.exists():
        log.warning("nothing was answered: the program asked clip, open_clip or CLIPModel for none")
    return code


def _program(options: Run) -> Path:
    """The file of the script or module. Raises FileNotFoundError or ModuleNotFoundError."""
    if not options.module:
        if os.path.isfile(options.script):
            return Path(options.script)
        script = f"there is no script {options.script!r}"
        raise FileNotFoundError(f"{script}; give the path of a .py or .ipynb file")
    sys.path[0] = os.getcwd()
    # Its packages are not imported to look for it: they may import `clip`, which is not answered yet.
    top, *rest = options.module.split(".")
    spec = importlib.util.find_spec(top)
    for depth in range(len(rest)):
        path = spec.submodule_search_locations if spec else None
        name = ".".join((top, *rest[: depth + 1]))
        spec = importlib.machinery.PathFinder.find_spec(name, path) if path else None
    if spec is None or not spec.origin:
        module = f"there is no module {options.module!r}"
        raise ModuleNotFoundError(f"{module} to run with -m; a model is --model")
    return Path(spec.origin)


def _execute(options: Run, program: Path) -> int:
    """Runs the program as `python` would; a notebook cell by cell, a predictor as cog does."""
    sys.argv = [str(program), *options.arguments]
    if options.module:
        runpy.run_module(options.module, run_name="__main__", alter_sys=True)
        return 0
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main).update(__file__=str(program), __builtins__=__builtins__, __cached__=None)
    sys.path[0] = str(program.resolve().parent)
    if notebooks.is_notebook(program):
        return notebooks.run(program, vars(main), options.chosen_cells())
    source = program.read_bytes()
    predictor = cog.is_predictor(importlib.util.decode_source(source))
    if predictor:
        cog.parse(options.arguments)  # before minutes of loading
        sys.argv[1:] = []
    exec(compile(source, str(program), "exec", dont_inherit=True), vars(main))
    if predictor:
        cog.predict(vars(main), options.arguments)
    return 0


def _own_log(level: int) -> None:
    """Our lines go to stderr without the root handler: a program's own logging.basicConfig must find the root bare."""
    root, logger = logging.getLogger(), logging.getLogger("clipag_plug")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("clipag: %(message)s"))
    root.handlers[:] = [h for h in root.handlers if type(h) is not logging.StreamHandler]
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(level)


def _lacking(error: BaseException, adapter: catalog.Adapter) -> str | None:
    """One sentence for what a program lacks and did not look after itself; None for an error of its own."""
    from ..weights.registry import FetchError

    if isinstance(error, (cog.RequestError, notebooks.NotebookError)):
        return str(error)
    if isinstance(error, FetchError):
        return f"{error}; offline, `--model clipag-mini` needs no download"
    if isinstance(error, ModuleNotFoundError):
        top = (error.name or "").partition(".")[0]
        how = {**catalog.read(catalog.GENERIC).packages, **adapter.packages}.get(top)
        if top in sys.modules or not how:
            return None
        how = how if " " in how else f"pip install {how}"
        return f"the program needs the module {top!r}, which is not installed; {how}"
    if isinstance(error, FileNotFoundError) and error.filename:
        path = os.path.abspath(os.fspath(error.filename))
        weights = catalog.known_weights(path, adapter)
        return weights.missing(path) if weights else None
    address, place = _download(error)
    weights = catalog.known_weights(place or address, adapter)
    if weights:
        return weights.missing(place or weights.place, address)
    where = f" and put it at {place!r}" if place else ""
    text = f"the program downloads {address}, which cannot be reached; get it elsewhere{where}"
    return text if address else None


def _download(error: BaseException | None) -> tuple[str, str]:
    """Address and place of a download by `urllib`, `torch.hub` or `requests` that failed; empty for other errors."""
    address = place = ""
    failed = False
    while error is not None:
        failed |= isinstance(error, (urllib.error.URLError, ConnectionError, TimeoutError))
        request = getattr(getattr(error, "request", None), "url", None)
        if isinstance(error, OSError) and request:
            return str(request), ""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name in ("urlretrieve", "urlopen", "download_url_to_file"):
                names = frame.f_locals
                address = address or str(getattr(names.get("url"), "full_url", names.get("url")))
                place = place or str(names.get("filename") or names.get("dst") or "")
        error = error.__cause__ or error.__context__
    return (address, place and os.path.abspath(place)) if failed else ("", "")


def _as_python(error: BaseException) -> None:
    """Prints a traceback as `python` does: without the frames that lead to the program."""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if os.path.dirname(file) != str(HERE) and "runpy" not in file:
            break
        trace = trace.tb_next
    own = (
        sys.excepthook is not sys.__excepthook__
    )  # else the cells of a notebook would not be quoted
    (sys.excepthook if own else traceback.print_exception)(type(error), error, trace)


def _explain_width(text: str, widths: set[int]) -> None:
    """Says which model would fit where a part of the program expects features of another width."""
    found = SHAPES.search(text)
    numbers = {int(number) for number in found.groups() if number} if found else set()
    theirs = numbers - widths
    if len(numbers) == 2 and len(theirs) == 1:
        wanted, ours = theirs.pop(), (numbers & widths).pop()
        fits = (
            f"`--model {FITS[wanted]}` has {wanted}" if wanted in FITS else "no model has as many"
        )
        log.warning(
            "a part of the program expects features of %d numbers, and the model's have %d; %s",
            *(wanted, ours, fits),
        )
