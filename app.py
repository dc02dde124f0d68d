"""The demo: `python app.py`, then open http://127.0.0.1:7860 (a Space runs this same file).

A cell comes in through the page or the API at /predict; a label, its probabilities and the Grad-CAM overlay go out.
Models are the Hub ids in models.txt, the releases under model_card/, and any Hub id a visitor types.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "src"))

from leukoscope import LeukoscopeError


def server_address(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Return host and port: loopback, or all addresses in a Space; GRADIO_SERVER_PORT, or 7860.

    Raises:
        LeukoscopeError: GRADIO_SERVER_PORT is not a port number; Gradio would fail with a traceback.
    """
    port = environment.get("GRADIO_SERVER_PORT", "7860")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise LeukoscopeError(f"GRADIO_SERVER_PORT={port}: is not a port number; give a number from 1 to 65535")
    host = "0.0.0.0" if environment.get("SPACE_ID") else "127.0.0.1"
    return host, int(port)


def run(releases: Path | None = None, models: Path | None = None) -> None:
    """Serve until interrupted.

    Args:
        releases: release folder, or folder of them, to offer; None for model_card/.
        models: file of Hub ids to offer, one per line; None for models.txt.

    Raises:
        LeukoscopeError: a path that does not exist, a folder with files but no release, an unusable port, or a version
            of Gradio that is not supported.
    """
    address = server_address()
    from leukoscope.demo import require_gradio

    require_gradio()
    from leukoscope.demo.models import find_releases
    from leukoscope.demo.server import serve

    for flag, path in {"releases": releases, "models": models}.items():
        if path is not None and not path.exists():
            raise LeukoscopeError(f"--{flag} {path}: not found; check the path")
    # An empty folder is no mistake: visitors then name models of the Hub.
    if releases and (releases.is_file() or any(releases.iterdir())) and not find_releases(releases):
        raise LeukoscopeError(f"--releases {releases}: holds no release; give a release folder, or a folder of them")
    serve(releases or HERE / "model_card", models or HERE / "models.txt", *address)


def main() -> int:
    """Read the flags, then serve; problems the user can fix end in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--releases", type=Path, help="release folder, or folder of them, to offer (default: model_card)"
    )
    parser.add_argument("--models", type=Path, help="file of Hub ids to offer, one per line (default: models.txt)")
    try:
        run(**vars(parser.parse_args()))
    except LeukoscopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SystemExit as ended:
        # Models may still be loading in threads, which would abort an interpreter that shuts down around them.
        sys.stdout.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
