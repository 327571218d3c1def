"""The handler of `clipag run`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from ..options.run import Run
from ..weights.errors import FetchError
from . import catalog, loading
from .errors import MissingWeightsError, RequestError
from .patching import Patch

_log = logging.getLogger("clipag_plug.adapters")
NO_CUDA = (
    "Found no NVIDIA driver",
    "not compiled with CUDA",
    "No CUDA GPUs are available",
    "CUDA must be available",
)


def run(options: Run) -> int:
    """Runs somebody else's script on this package's models, and returns the script's exit code."""
    script = Path(options.script)
    if not script.is_file():
        raise FileNotFoundError(
            f"there is no script {options.script!r}; give the path of a .py or .ipynb file"
        )
    automatic = options.adapter == "auto"
    adapter = catalog.detect(script) if automatic else catalog.read(options.adapter)
    with _own_log():
        tested = f", tested on commit {', '.join(adapter.tested)}" if adapter.tested else ""
        _log.info(
            "adapter %s%s (%s%s)",
            adapter.name,
            ", found by its imports" if automatic else "",
            adapter.title,
            tested,
        )
        return _run(options, script, adapter)


def _run(options: Run, script: Path, adapter: catalog.Adapter) -> int:
    from . import scripts

    folder = script.resolve().parent
    with Patch(adapter, options.model or None, options.device or None, [folder]):
        try:
            return scripts.run(script, options.arguments, options.chosen_cells())
        except (MissingWeightsError, RequestError, FetchError):
            raise
        except FileNotFoundError as error:
            sentence = loading.missing(error.filename, adapter) if error.filename else None
            if sentence is None:
                return _python_would(error)
            raise MissingWeightsError(sentence) from error
        except ModuleNotFoundError as error:
            if _own(error, folder):
                return _python_would(error)
            raise ImportError(_install(error.name or str(error), adapter)) from error
        except (KeyboardInterrupt, BrokenPipeError):
            raise
        except BaseException as error:
            sentence = loading.unreachable(error, adapter)
            if sentence is not None:
                raise MissingWeightsError(sentence) from error
            code = _python_would(error)
            if not options.device and any(text in str(error) for text in NO_CUDA):
                print(
                    "clipag: the script asks for CUDA; `--device cpu` keeps it on the CPU",
                    file=sys.stderr,
                )
            return code


def _python_would(error: BaseException) -> int:
    from . import scripts

    sys.stdout.flush()
    scripts.print_traceback(error)
    return 1


def _own(error: ModuleNotFoundError, folder: Path) -> bool:
    """Whether the missing module is part of a package that is there, or of the script's own folder."""
    top = (error.name or "").partition(".")[0]
    return not top or top in sys.modules or (folder / top).exists()


def _install(name: str, adapter: catalog.Adapter) -> str:
    top = name.partition(".")[0]
    known = {**catalog.read(catalog.GENERIC).packages, **adapter.packages}
    package = known.get(top, top)
    how = package if " " in package else f"pip install {package}"
    return f"the script needs the module {top!r}, which is not installed; {how}"


class _own_log:
    """Our lines go to stderr without the root handler: a script's own logging.basicConfig must find the root bare."""

    def __enter__(self) -> None:
        self.root, self.logger = logging.getLogger(), logging.getLogger("clipag_plug")
        self.handlers, self.propagate = list(self.root.handlers), self.logger.propagate
        self.level = self.root.level
        self.handler = logging.StreamHandler(sys.stderr)
        self.handler.setFormatter(logging.Formatter("clipag: %(message)s"))
        self.moved = [h for h in self.handlers if type(h) is logging.StreamHandler]
        for handler in self.moved:
            self.root.removeHandler(handler)
        self.logger.addHandler(self.handler)
        self.logger.propagate = not self.moved

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self.handler)
        self.logger.propagate = self.propagate
        self.root.handlers[:] = self.handlers
        self.root.setLevel(self.level)


def describe() -> list[str]:
    """One line for each adapter: name, title, commits it was tested on."""
    return [
        f"{row['name']:<18}{row['title']}{' @ ' + ', '.join(row['tested']) if row['tested'] else ''}"
        for row in (catalog.as_table(catalog.read(name)) for name in catalog.names())
    ]
